"""YouTube-VIS of both years, written here byte by byte; the expected arrays are typed, not computed."""

import json

import numpy as np
import pytest
from official_bytes import compressed, photograph, run_lengths, through_a_shard
from pycocotools import mask as coco_mask
from scored import scores

from post_platform.datasets import reader
from post_platform.datasets.frame import MissingSplit
from post_platform.errors import DataError
from post_platform.metrics.results import ResultFrame, write_results

# Two objects that overlap, the smaller one inside the larger; and a crowd under both. 4 x 6 pixels.
LARGE = np.array([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0]])
SMALL = np.array([[0, 0, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]])
CROWD = np.array([[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]])
# person = 1 of 2019 and 26 of 2021; dog = 8 and 10 or so: read from the contract's names below.
NAMES = {"youtube_vis_2019": {"person": 1, "dog": 8}, "youtube_vis_2021": {"person": 26, "dog": 9}}
YEARS = tuple(NAMES)


def classes_of(dataset):
    p, d = NAMES[dataset]["person"], NAMES[dataset]["dog"]
    return [[p, p, p, p, 255, 255], [p, d, d, p, 0, 255], [p, p, p, p, 0, 0], [0, 0, 0, 0, 0, 0]]


INSTANCES = [[3, 3, 3, 3, 0, 0], [3, 5, 5, 3, 0, 0], [3, 3, 3, 3, 0, 0], [0, 0, 0, 0, 0, 0]]


def content(dataset):
    """A track as compressed run lengths, absent, and as a polygon; one uncompressed; one crowd."""
    person, dog = NAMES[dataset]["person"], NAMES[dataset]["dog"]
    polygon = [[0.0, 0.0, 4.0, 0.0, 4.0, 3.0, 0.0, 3.0]]
    size = {"size": [4, 6]}
    return {
        "videos": [
            {"id": 7, "width": 6, "height": 4, "length": 3, "file_names": [f"ab12/{n:05d}.jpg" for n in (0, 5, 10)]},
            {"id": 9, "width": 6, "height": 4, "length": 1, "file_names": ["cd34/00000.jpg"]},
        ],
        "annotations": [
            {"id": 5, "video_id": 7, "category_id": dog, "iscrowd": 0,
             "segmentations": [run_lengths(SMALL), None, run_lengths(SMALL)]},
            {"id": 3, "video_id": 7, "category_id": person, "iscrowd": 0,
             "segmentations": [{**size, "counts": compressed(LARGE)}, None, polygon]},
            {"id": 4, "video_id": 7, "category_id": person, "iscrowd": 1,
             "segmentations": [run_lengths(CROWD), None, run_lengths(CROWD)]},
        ],
        "categories": [{"id": person, "name": "person"}, {"id": dog, "name": "dog"}],
    }  # fmt: skip


def place(dataset, split):
    return f"{split}.json" if dataset.endswith("2019") else f"{split}/instances.json"


def rewrite(source, dataset, changed, split="train"):
    path = source / place(dataset, split)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(changed))


@pytest.fixture(params=YEARS)
def dataset(request):
    return request.param


def write_source(tmp_path, dataset):
    for split in ("train", "valid"):
        for name in ("ab12/00000", "ab12/00005", "ab12/00010", "cd34/00000"):
            photograph(tmp_path / f"{split}/JPEGImages/{name}.jpg", 4, 6)
    rewrite(tmp_path, dataset, content(dataset))
    rewrite(tmp_path, dataset, {key: value for key, value in content(dataset).items() if key != "annotations"}, "valid")
    return tmp_path


@pytest.fixture
def source(tmp_path, dataset):
    return write_source(tmp_path, dataset)


def test_frames(dataset, source):
    refs = reader(dataset).frames(source, "train")
    assert [ref.key for ref in refs] == ["ab12/000000", "ab12/000005", "ab12/000010", "cd34/000000"]
    assert [ref.seconds_since_previous for ref in refs] == [None, 0.166667, 0.166667, None]
    assert refs[0].source_video == "youtube_vis/ab12"  # the same in both years
    assert refs[1].native == {"video_id": 7, "length": 3, "index": 1}


def test_through_a_shard(dataset, source):
    frames = through_a_shard(dataset, "train", source)
    person, dog = f"{NAMES[dataset]['person']}/3", f"{NAMES[dataset]['dog']}/5"
    for key in ("ab12/000000", "ab12/000010"):
        assert frames[key].classes.tolist() == classes_of(dataset)
        assert frames[key].instances.tolist() == INSTANCES
        assert frames[key].meta["instances"] == {person: 3, dog: 5}
        whole = {name: coco_mask.decode(mask).tolist() for name, mask in frames[key].meta["masks"].items()}
        assert whole == {person: LARGE.tolist(), dog: SMALL.tolist()}
    for key in ("ab12/000005", "cd34/000000"):
        assert not frames[key].classes.any()
        assert frames[key].meta["labelled"]
        assert frames[key].meta["native"]["video_id"] in (7, 9)


@pytest.mark.parametrize("annotations", ["left out", None])
def test_splits_without_annotations_are_unlabelled(dataset, source, annotations):
    if annotations is None:
        rewrite(source, dataset, {**content(dataset), "annotations": None}, "valid")
    assert {ref.label for ref in reader(dataset).frames(source, "valid")} == {None}


def test_large_annotation_ids_are_counted(dataset, source):
    changed = content(dataset)
    for entry in changed["annotations"]:
        entry["id"] += 10**7
    rewrite(source, dataset, changed)
    frame = through_a_shard(dataset, "train", source)["ab12/000000"]
    assert frame.meta["instances"] == {
        f"{NAMES[dataset]['person']}/1": 10**7 + 3,
        f"{NAMES[dataset]['dog']}/3": 10**7 + 5,
    }


def test_file_of_the_other_year_is_refused(dataset, source):
    (other,) = set(YEARS) - {dataset}
    rewrite(source, dataset, content(other))
    with pytest.raises(DataError, match=rf"^{dataset}: .* calls category \d+ '(person|dog)', expected ") as error:
        reader(dataset).frames(source, "train")
    assert f"python pipelines/convert.py {other}" in error.value.hint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["annotations"][0]["segmentations"].pop(), "annotation 5 has 2 segmentations, the video 3 frames"),
        (lambda c: c["annotations"][0].update(category_id=99), "annotation 5 has unknown category 99"),
        (lambda c: c["annotations"][0].update(id=3), "two annotations have one id"),
        (lambda c: c["annotations"][0].update(video_id=1), "annotates the unlisted video 1"),
        (lambda c: c["annotations"][0].pop("segmentations"), "malformed: KeyError"),
        (lambda c: c["videos"][0]["file_names"].reverse(), "not in time order"),
        (lambda c: c["videos"][0]["file_names"].append("ab12/00015.jpg"), "1 of 4 images are not in"),
        (lambda c: c["videos"][0].update(file_names=["../ab12/00000.jpg"]), "must be <video>/<number>.jpg"),
        (lambda c: c["videos"][0].update(file_names=["../00000.jpg"]), "must be <video>/<number>.jpg"),
        (lambda c: c["videos"][0].update(file_names=["/00000.jpg"]), "must be <video>/<number>.jpg"),
        (lambda c: c["videos"][0].update(file_names=["ab12/x.jpg"]), "video 7: file_names .*, got 'ab12/x.jpg'"),
        (lambda c: c["videos"][0].update(file_names=["ab12/-0005.jpg"]), "must be <video>/<number>.jpg"),
        (lambda c: c["videos"][0].update(file_names=["ab12/9999999999.jpg"]), "must be <video>/<number>.jpg"),
        (lambda c: c["videos"][1].update(id=7), "json lists two videos of id 7"),
        (lambda c: c["videos"][1].update(file_names=["ab12/00000.jpg"]), "json lists two videos of folder ab12"),
        (lambda c: c["videos"][1].update(width=10**9), "cd34: size 4x1000000000, must be 1 to"),
        (lambda c: c["videos"][1].update(width=-6, height=-4), "cd34: size -4x-6, must be 1 to"),
        (lambda c: c["videos"][0].update(file_names=[]), "malformed: IndexError"),
        (lambda c: c.update(videos=3), "malformed: TypeError"),
        (
            lambda c: c["annotations"][0]["segmentations"][0].update(counts=[99]),
            "annotation 5: the run lengths fill",
        ),
        (lambda c: c["videos"][0].update(height=5), "label is 5x6, image is 4x6"),
    ],
)
def test_wrong_json(dataset, source, change, message):
    changed = content(dataset)
    change(changed)
    rewrite(source, dataset, changed)
    with pytest.raises(DataError, match=f"^{dataset}:? .*{message}"):
        [reader(dataset).label(ref) for ref in reader(dataset).frames(source, "train")]


def test_missing_split(dataset, source):
    with pytest.raises(MissingSplit, match=f"{dataset} test: nothing found"):
        reader(dataset).frames(source, "test")


def test_more_annotations_than_can_be_stored(dataset, source):
    track = {"video_id": 9, "category_id": NAMES[dataset]["dog"], "segmentations": [None]}
    rewrite(source, dataset, {**content(dataset), "annotations": [{**track, "id": n} for n in range(65535)]})
    with pytest.raises(DataError, match=f"{dataset} cd34: 65535 annotations, no more than 65534 can be stored"):
        reader(dataset).frames(source, "train")


def labels(dataset, source):
    return [
        ResultFrame(frame.meta["sequence"], frame.meta["frame"], frame.classes, frame.instances, frame.meta)
        for frame in through_a_shard(dataset, "train", source).values()
    ]


def test_results_as_written(dataset, source, tmp_path):
    """A score is the mean over the frames that name one, 1 without; null where a track is not."""
    person, dog = NAMES[dataset]["person"], NAMES[dataset]["dog"]
    frames = labels(dataset, source)
    frames[0].scores.update({f"{dog}/5": 0.25})
    frames[2].scores.update({f"{dog}/5": 0.75})
    write_results(dataset, frames, tmp_path / "results")
    listed = json.loads((tmp_path / "results/results.json").read_text())
    whole = [{"size": [4, 6], "counts": compressed(mask)} for mask in (LARGE, SMALL)]
    assert listed == [
        {"video_id": 7, "category_id": person, "score": 1.0, "segmentations": [whole[0], None, whole[0]]},
        {"video_id": 7, "category_id": dog, "score": 0.5, "segmentations": [whole[1], None, whole[1]]},
    ]


def test_perfect_where_masks_of_one_size_overlap(dataset, source, tmp_path):
    """Listed by falling id, and one of two identical masks hides the other; in the label the higher id is on top."""
    left, right = np.zeros((4, 6), int), np.zeros((4, 6), int)
    left[0:2, 0:3], right[1:3, 1:4] = 1, 1
    track = {"video_id": 7, "category_id": NAMES[dataset]["dog"]}
    tracks = [
        {**track, "id": 9, "segmentations": [run_lengths(left)] * 3},
        {**track, "id": 4, "segmentations": [run_lengths(left), run_lengths(right), None]},
        {**track, "id": 2, "segmentations": [run_lengths(right), None, run_lengths(right)]},
    ]
    rewrite(source, dataset, {**content(dataset), "annotations": tracks})
    frames = labels(dataset, source)
    assert frames[0].tracks.tolist() == [[9, 9, 9, 0, 0, 0], [9, 9, 9, 2, 0, 0], [0, 2, 2, 2, 0, 0], [0] * 6]
    write_results(dataset, frames, tmp_path / "results")
    best = scores(dataset, source / place(dataset, "train"), tmp_path / "results")
    assert best["HOTA"] == pytest.approx(1.0, abs=1e-12)
    assert best["AP"] == best["AR10"] == pytest.approx(1.0, abs=1e-12)


def test_mean_area_leaves_out_frames_without_a_pixel(dataset, source, tmp_path):
    """200 x 200 pixels in one of three frames are a medium track, also where the other frames have an empty mask."""
    shown, empty = [{"size": [300, 300], "counts": counts} for counts in ([0, *[200, 100] * 199, 200, 30100], [90000])]
    changed = content(dataset)
    changed["videos"][0].update(width=300, height=300)
    track = {"video_id": 7, "category_id": NAMES[dataset]["dog"], "segmentations": [empty, shown, empty]}
    rewrite(source, dataset, {**changed, "annotations": [{**track, "id": 1}]})
    (tmp_path / "results.json").write_text(json.dumps([{**track, "score": 0.5}]))
    found = scores(dataset, source / place(dataset, "train"), tmp_path)
    assert found["AP"] == found["APm"] == pytest.approx(1.0, abs=1e-12)
    assert (found["APs"], found["APl"]) == (None, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["videos"][1].update(id=7), "lists two videos of id 7"),
        (lambda c: c["videos"][1].update(file_names=["ab12/00000.jpg"]), "lists two videos of folder ab12"),
        (lambda c: c["videos"][1].update(width=10**9, height=10**9), "size 1000000000x1000000000, must be 1 to"),
        (lambda c: c["videos"][1].update(file_names=["cd34/99999999999.jpg"]), "must be <video>/<number>.jpg"),
        (lambda c: c["categories"][0].update(name="yeti"), "category [0-9]+ 'yeti', expected 'person'"),
        (lambda c: c.pop("annotations"), "has no annotations, so there is nothing to score against"),
        (lambda c: c["annotations"][0].pop("id"), r"malformed \(KeyError\('id'\)\)"),
    ],
)
def test_wrong_truth(dataset, source, tmp_path, change, message):
    changed = content(dataset)
    change(changed)
    rewrite(source, dataset, changed)
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(DataError, match=message):
        scores(dataset, source / place(dataset, "train"), tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.update(video_id=8), "video 8 is not in the truth"),
        (lambda r: r.update(category_id=41), "unknown category 41"),
        (lambda r: r.update(score=float("nan")), "a score is nan"),
        (lambda r: r.pop("score"), "result 0: malformed"),
        (lambda r: r.update(segmentations=[None]), r"result 0: video 7 \(ab12\) has 3 frames, the track 1 masks"),
        (
            lambda r: r.update(segmentations=[None, {"counts": [9]}, None]),
            r"results\.json, result 0, video 7, 00005\.jpg: the run",
        ),
        (lambda r: r.pop("video_id"), "malformed"),
    ],
)
def test_wrong_results(dataset, source, tmp_path, change, message):
    entry = {"video_id": 7, "category_id": 1, "score": 0.5, "segmentations": [None, None, None]}
    change(entry)
    (tmp_path / "results.json").write_text(json.dumps([entry]))
    with pytest.raises(DataError, match=message):
        scores(dataset, source / place(dataset, "train"), tmp_path)


def test_equal_scores_rank_in_the_order_of_video_ids(dataset, source, tmp_path):
    """cd34 has the lower id, so its wrong track is before the right one of ab12, and precision is 1/2."""
    changed = content(dataset)
    changed["videos"][0]["id"], changed["videos"][1]["id"] = 9, 7
    for entry in changed["annotations"]:
        entry["video_id"] = 9
    rewrite(source, dataset, changed)
    right = {"video_id": 9, "category_id": NAMES[dataset]["dog"], "score": 0.5,
             "segmentations": [run_lengths(SMALL), None, run_lengths(SMALL)]}  # fmt: skip
    wrong = {**right, "video_id": 7, "segmentations": [run_lengths(SMALL)]}
    (tmp_path / "results.json").write_text(json.dumps([right, wrong]))
    found = scores(dataset, source / place(dataset, "train"), tmp_path)
    assert found["AP/dog"] == pytest.approx(0.5, abs=1e-9)


def test_an_annotation_that_is_listed_twice(dataset, source, tmp_path):
    changed = content(dataset)
    changed["annotations"].append(changed["annotations"][0])
    rewrite(source, dataset, changed)
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(DataError, match=r"json: annotation 5 is listed twice"):
        scores(dataset, source / place(dataset, "train"), tmp_path)


@pytest.mark.parametrize(
    "native",
    [
        {},
        {"video_id": "7", "length": 3, "index": 0},
        {"video_id": 7, "length": 3, "index": 3},
        {"video_id": 7, "length": 3, "index": -1},
        {"video_id": 7, "length": 10**12, "index": 0},
    ],
)
def test_frames_that_do_not_know_their_video(dataset, tmp_path, native):
    frame = ResultFrame("ab12", 5, np.ones((4, 6), np.uint8), np.ones((4, 6), int), {"native": native})
    with pytest.raises(DataError, match=f"{dataset} ab12/000005: meta.json must have a native video_id"):
        write_results(dataset, [frame], tmp_path)


def test_frames_of_one_sequence_that_name_two_videos(dataset, tmp_path):
    natives = [{"video_id": 7, "length": 3, "index": 0}, {"video_id": 7, "length": 9, "index": 8}]
    frames = [
        ResultFrame("ab12", 5 * n, np.ones((4, 6), np.uint8), np.ones((4, 6), int), {"native": native})
        for n, native in enumerate(natives)
    ]
    with pytest.raises(DataError, match=f"{dataset} ab12/000005: meta.json says video 7 of 9 frames, in an earlier"):
        write_results(dataset, frames, tmp_path)
