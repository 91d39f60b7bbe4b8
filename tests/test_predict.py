"""A video goes in; what is written about it can be read by others, is the same in every file, and outlives a stop."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from post_model.network import Post
from post_model.predictor import FrameResult, Segment
from post_model.weights import save_model
from post_platform import render
from post_platform.datasets.masks import decode_mask
from post_platform.errors import ConfigError, DataError
from post_platform.footage import open_source
from post_platform.metrics.results import panoptic_json
from post_platform.prediction import answering, predict
from post_platform.prediction_files import Category, FrameSegments, GrowingJson, TrackCount, shown_id
from post_platform.prediction_files import Segment as FileSegment
from post_platform.training.evaluate import open_model
from post_platform.video import InputFrame, VideoWriter

ROOT = Path(__file__).resolve().parent.parent
NAMES, THINGS = ("road", "sky-other-merged", "car", "person"), (False, False, True, True)
SIZE = (48, 64)


class Painter:
    """Stands for a predictor: a road below, a sky above, and car 7 that moves one column per frame."""

    def __init__(self, number=7, index=2):
        self.number, self.index, self.tracking = number, index, "prev_offset"
        self.model = Post(4, "small", norm="group")

    def step(self, frames, states):
        height, width = frames[0].shape[:2]
        left = 4 + (states[0] or 0)
        classes = torch.zeros(height, width, dtype=torch.int32)
        classes[: height // 2] = 1
        box = (height // 4, left, 3 * height // 4, left + 20)
        inside = (slice(box[0], box[2]), slice(box[1], box[3]))
        classes[inside] = self.index
        tracks = torch.where(classes == self.index, self.number, 0).int()
        places = torch.where(classes == self.index, 3, classes + 1).int()
        area = int((places == 3).sum())
        segments = (
            Segment(1, 0, "road", False, 0, None, int((places == 1).sum()), None),
            Segment(2, 1, "sky-other-merged", False, 0, None, int((places == 2).sum()), None),
            Segment(3, self.index, NAMES[self.index], True, self.number, 0.9, area, box),
        )
        return [FrameResult(places, segments, tracks, classes)], [(states[0] or 0) + 1]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    save_model(folder, Post(4, "small", norm="group"), NAMES, THINGS)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "street.mp4"
    with VideoWriter(path, 10) as video:
        for k in range(12):
            image = np.full((*SIZE, 3), 90, np.uint8)
            image[10:30, 3 * k : 3 * k + 16] = (200, 60, 60)
            video.write(image, k / 10)
    return path


def read_json(path):
    return json.loads(path.read_text())


def panoptic(path):
    rgb = np.asarray(Image.open(path)).astype(np.int32)
    return rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]


def painted(checkpoint, clip, out, predictor=None, **settings):
    _, vocabulary = answering(*open_model(checkpoint))
    source = open_source(str(clip), settings.pop("every", 1), settings.pop("size", None))
    return predict(source, predictor or Painter(), vocabulary, out, **settings)


def test_every_file_tells_the_same(checkpoint, clip, tmp_path):
    summary = painted(checkpoint, clip, tmp_path, every=3)
    assert summary == read_json(tmp_path / "summary.json")
    assert (summary["frames"], summary["fps"], summary["finished"]) == (4, 3.333, True)
    assert summary["tracks"] == {"car": 1}
    expected = {"video": "street", "track": 7, "class": "car", "frames": 4, "first": 0, "last": 9}
    assert summary["longest_tracks"] == [expected]

    lines = [line.split() for line in (tmp_path / "tracks.txt").read_text().splitlines()]
    assert [line[:5] for line in lines] == [[str(k), "7", "3", "48", "64"] for k in (0, 3, 6, 9)]
    tracks = read_json(tmp_path / "tracks.json")
    assert tracks["videos"] == [{"id": 1, "name": "street", "height": 48, "width": 64, "length": 4}]
    assert [image["frame_id"] for image in tracks["images"]] == [0, 3, 6, 9]
    assert tracks["categories"] == [{"id": 3, "name": "car"}, {"id": 4, "name": "person"}]
    listed = read_json(tmp_path / "panoptic.json")
    assert len(listed["annotations"]) == len(tracks["annotations"]) == 4
    for place, (line, track, entry) in enumerate(zip(lines, tracks["annotations"], listed["annotations"], strict=True)):
        mask = np.zeros(SIZE, bool)
        mask[12:36, 4 + place : 24 + place] = True
        assert (decode_mask(line[5], *SIZE, "") == mask).all()
        assert track["segmentation"]["counts"] == line[5]
        assert (track["instance_id"], track["image_id"], track["bbox"]) == (7, place + 1, [4 + place, 12, 20, 24])
        ids = panoptic(tmp_path / "panoptic" / entry["file_name"])
        assert ((ids == 4 * 65536 + 7) == mask).all()
        assert {info["id"]: info["area"] for info in entry["segments_info"]} == dict(
            zip(*(values.tolist() for values in np.unique(ids, return_counts=True)), strict=True)
        )
    with av.open(str(tmp_path / "overlay.mp4")) as container:
        times = [round(frame.time, 3) for frame in container.decode(video=0)]
    assert times == [0, 0.3, 0.6, 0.9]


def test_the_panoptic_files_are_read_by_the_reader_of_results(checkpoint, clip, tmp_path):
    painted(checkpoint, clip, tmp_path)
    file = tmp_path / "panoptic.json"
    entries = read_json(file)["annotations"]
    found = panoptic_json.read_annotations(file, entries, tmp_path / "panoptic", {1, 2, 3, 4})
    maps = panoptic_json.numbered(found.values())(found["000003"])
    assert np.unique(maps[0]).tolist() == [1, 2, 3]


@pytest.mark.parametrize("dataset", ["kitti_step", "kitti_mots"])
def test_a_dataset_s_classes_come_in_its_own_format(checkpoint, clip, tmp_path, dataset):
    predictor, vocabulary = answering(*open_model(checkpoint), dataset)
    names = [one.name for one in vocabulary.categories]
    index = names.index("car")
    painter = Painter(index=index)
    summary = predict(open_source(str(clip)), Repaint(painter, names, predictor), vocabulary, tmp_path)
    assert (summary["classes"], summary["format"]) == (dataset, dataset)
    assert not (tmp_path / "panoptic").exists()
    if dataset == "kitti_step":
        rgb = np.asarray(Image.open(tmp_path / "kitti_step" / "street" / "000011.png"))
        assert rgb[20, 20].tolist() == [13, 0, 7]  # the official id of a car, and its track
    else:
        (line, *_) = (tmp_path / "kitti_mots" / "street.txt").read_text().splitlines()
        assert line.split()[:5] == ["0", "1000", "1", "48", "64"]
        assert (tmp_path / "tracks.txt").read_text().splitlines()[0].split()[:3] == ["0", "7", "1"]


class Repaint:
    """The painter in a dataset's classes: everything but the car is void."""

    def __init__(self, painter, names, predictor):
        self.painter, self.model, self.tracking = painter, predictor.model, predictor.tracking
        self.names = names

    def step(self, frames, states):
        (result,), states = Painter(7, 2).step(frames, states)
        car = result.classes == 2
        one = result.segments[2]
        segment = Segment(1, self.painter.index, "car", True, 7, 0.9, one.area, one.box)
        classes = torch.where(car, self.painter.index, -1).int()
        return [FrameResult(car.int(), (segment,), result.tracks, classes)], states


def test_unknown_classes_are_refused(checkpoint):
    with pytest.raises(ConfigError, match=r"--classes kitti_stepp: .*did you mean kitti_step"):
        answering(*open_model(checkpoint), "kitti_stepp")


def test_a_real_network_runs_from_end_to_end_at_another_size(checkpoint, clip, tmp_path):
    predictor, vocabulary = answering(*open_model(checkpoint))
    source = open_source(str(clip), every=4, size=(33, 47))
    summary = predict(source, predictor, vocabulary, tmp_path, show=())
    assert (summary["frames"], summary["size"]) == (3, [33, 47])
    assert np.asarray(Image.open(tmp_path / "panoptic" / "000008.png")).shape == (33, 47, 3)


def test_videos_of_a_split_have_files_of_their_own(checkpoint, toy_shards, tmp_path):
    _, vocabulary = answering(*open_model(checkpoint))
    source = open_source(str(toy_shards / "kitti_mots" / "val"))
    names = list(dict.fromkeys(row["sequence"] for row in split_rows(toy_shards)))
    predict(source, Painter(), vocabulary, tmp_path)
    assert sorted(path.stem for path in (tmp_path / "tracks").iterdir()) == sorted(names)
    assert {path.name for path in (tmp_path / "panoptic").iterdir()} == set(names)
    tracks = read_json(tmp_path / "tracks.json")
    assert [video["name"] for video in tracks["videos"]] == names
    assert sum(video["length"] for video in tracks["videos"]) == source.count
    first = [image["id"] for image in tracks["images"] if image["frame_id"] == tracks["images"][0]["frame_id"]]
    lefts = {entry["bbox"][0] for entry in tracks["annotations"] if entry["image_id"] in first}
    assert lefts == {4}, "the state of a video does not go over to the next"


def split_rows(root):
    from post_platform.shards.index import read_split

    return read_split(root, "kitti_mots", "val").index.to_pylist()


def test_without_any_object_nothing_breaks(checkpoint, clip, tmp_path):
    class Empty(Painter):
        def step(self, frames, states):
            void = torch.zeros(SIZE, dtype=torch.int32)
            return [FrameResult(void, (), void, void - 1)], [None]

    summary = painted(checkpoint, clip, tmp_path, Empty())
    assert (summary["tracks"], summary["longest_tracks"]) == ({}, [])
    assert (tmp_path / "tracks.txt").read_text() == ""
    assert read_json(tmp_path / "tracks.json")["annotations"] == []
    assert not panoptic(tmp_path / "panoptic" / "000000.png").any()


def test_a_stop_and_damage_leave_whole_files(checkpoint, clip, tmp_path):
    done = []
    summary = painted(checkpoint, clip, tmp_path / "stop", progress=done.append, stopped=lambda: len(done) == 5)
    assert (summary["frames"], summary["finished"]) == (5, False)
    assert_whole(tmp_path / "stop", 5)

    frames = tmp_path / "frames"
    frames.mkdir()
    for k in range(4):
        Image.new("RGB", (64, 48)).save(frames / f"{k}.png")
    (frames / "2.png").write_bytes((frames / "2.png").read_bytes()[:60])
    with pytest.raises(DataError, match=r"2\.png: image cannot be read: .*; what came before, 2 frames, is in "):
        painted(checkpoint, frames, tmp_path / "damaged")
    assert_whole(tmp_path / "damaged", 2)
    assert "2.png" in read_json(tmp_path / "damaged" / "summary.json")["problem"]


def assert_whole(out, frames):
    assert len((out / "tracks.txt").read_text().splitlines()) == frames
    assert len(read_json(out / "tracks.json")["images"]) == frames
    assert len(read_json(out / "panoptic.json")["annotations"]) == frames
    with av.open(str(out / "overlay.mp4")) as container:
        assert len(list(container.decode(video=0))) == frames


def test_a_growing_json_can_be_parsed_at_any_moment(tmp_path):
    file = GrowingJson(tmp_path / "a.json", "entries", {"head": [1]})
    assert read_json(tmp_path / "a.json") == {"head": [1], "entries": []}
    file.add([{"a": 1}, {"b": "ü\n"}])
    assert read_json(tmp_path / "a.json")["entries"] == [{"a": 1}, {"b": "ü\n"}]
    file.add([3])
    file.close("more", iter(["1\n", "2\n"]), tail="x")
    found = read_json(tmp_path / "a.json")
    assert found == {"head": [1], "entries": [{"a": 1}, {"b": "ü\n"}, 3], "more": [1, 2], "tail": "x"}


def test_tracks_are_counted_in_bounded_memory():
    car, counts = Category(1, "car", True), TrackCount()
    for number in range(1000):
        tracks = (1 if number < 600 else 2, 10 + number)  # two long ones, and a new one in every frame
        segments = [FileSegment(k, car, track, 1, 0.5, (0, 0, 1, 1)) for k, track in enumerate(tracks, start=1)]
        counts.add(FrameSegments("v", number, "", 0.0, np.zeros((1, 1)), segments))
        assert len(counts._live) <= 2 * 64 + 2
    assert counts.tracks == {"car": 1002}
    longest = counts.longest()
    assert [(track["track"], track["frames"]) for track in longest[:3]] == [(1, 600), (2, 400), (10, 1)]
    assert len(longest) == 10


def test_ids_of_sixteen_bits_begin_again():
    assert [shown_id(track) for track in (0, 1, 65_534, 65_535, 131_068)] == [0, 1, 65_534, 1, 65_534]


def test_tags_do_not_cover_each_other_and_colours_are_the_overlay_s():
    image = np.full((200, 300, 3), 100, np.uint8)
    tags = [render.Tag("car 1", (255, 0, 0), (60, 20, 150, 200)), render.Tag("car 2", (0, 255, 0), (60, 22, 150, 90))]
    one = render.annotate(image, tags[:1])
    both = render.annotate(image, tags)
    changed = (both != one).any(-1)
    assert changed.any()
    assert not (changed & (one != image).any(-1)).any(), "the second tag is beside the first"
    boxed = render.annotate(image, tags[:1], boxes=True, legend=[("road", (0, 0, 255))])
    assert boxed[149, 199].tolist() == [255, 0, 0]
    assert boxed[195, 3].tolist() == [0, 0, 255], "the legend is bottom left"
    crowd = [render.Tag("person 1", (255, 0, 0), (5, 5, 9, 9))] * 50
    assert (render.annotate(image, crowd) != image).any(-1).mean() < 0.2, "what has no room is left out"
    assert (render.annotate(image, []) == image).all()


def test_a_frame_of_another_size_is_one_line(checkpoint, tmp_path):
    predictor, vocabulary = answering(*open_model(checkpoint))
    images = [InputFrame("v", k, np.zeros((32, 32 + k, 3), np.uint8), k / 10, first=k == 0) for k in range(2)]
    source = open_source(str(save_one(tmp_path / "one")))
    with pytest.raises(DataError, match=r"one v/000001: .*\(32, 33\)"):
        predict(type(source)("one", 10.0, 1, 2, iter(images)), predictor, vocabulary, tmp_path / "out")


def save_one(folder):
    folder.mkdir()
    Image.new("RGB", (32, 32)).save(folder / "0.png")
    return folder


def command(*arguments):
    return [sys.executable, ROOT / "pipelines" / "predict.py", *arguments]


def test_the_command(checkpoint, clip, tmp_path):
    out = tmp_path / "out"
    done = subprocess.run(
        command(clip, "--checkpoint", checkpoint, "--out", out, "--every", "6", "--show", "ids,boxes", "--json",
                tmp_path / "s.json"),
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "street: 2 frames in " in done.stdout
    assert {path.name for path in out.iterdir()} == {
        "overlay.mp4", "panoptic", "panoptic.json", "summary.json", "tracks.json", "tracks.txt",
    }  # fmt: skip
    assert read_json(tmp_path / "s.json") == read_json(out / "summary.json")
    again = subprocess.run(command(clip, "--checkpoint", checkpoint, "--out", out), capture_output=True, text=True)
    assert (again.returncode, again.stderr.splitlines()[0]) == (1, f"error: --out {out} is not empty")


def test_ctrl_c_ends_the_files_and_says_so(checkpoint, tmp_path):
    frames = tmp_path / "frames"
    frames.mkdir()
    for k in range(3000):
        (frames / f"{k}.png").symlink_to(save_first(tmp_path))
    out = tmp_path / "out"
    running = subprocess.Popen(
        command(frames, "--checkpoint", checkpoint, "--out", out), text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    patience = time.monotonic() + 120
    while not (out / "panoptic" / "000002.png").exists() and time.monotonic() < patience and running.poll() is None:
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    stdout, stderr = running.communicate(timeout=60)
    assert running.returncode == 130, stderr
    assert "stopped early: what is there is whole, as far as it goes" in stdout
    frames_done = read_json(out / "summary.json")["frames"]
    assert 3 <= frames_done < 3000
    assert len(read_json(out / "panoptic.json")["annotations"]) == frames_done


def save_first(folder):
    path = folder / "first.png"
    if not path.exists():
        Image.new("RGB", (64, 48), (90, 90, 90)).save(path)
    return path
