"""TrackEval reads the same official files as our readers, and the results that we write, and agrees on both."""

import json
import shutil
import sys
import types

import numpy as np
import pytest
import test_davis_unsup
import test_kitti_mots
import test_mots20
import test_rob_mots
import test_youtube_vis
import trackeval
from official_bytes import run_lengths, through_a_shard
from pycocotools import mask as coco_mask
from scored import scores
from trackeval.datasets.rob_mots import RobMOTS
from trackeval.metrics.j_and_f import JAndF
from trackeval.metrics.track_map import TrackMAP

from post_platform.labels import load_contract
from post_platform.metrics.davis_j_and_f import Frame, boundary, j_and_f
from post_platform.metrics.results import ResultFrame, write_results

QUIET = {"PRINT_CONFIG": False, "TRACKERS_TO_EVAL": ["ours"]}


@pytest.fixture(autouse=True)
def disk(monkeypatch):
    """TrackEval takes one function from scikit-image, which is not installed: a disk of pixels."""

    def make(radius):
        ys, xs = np.mgrid[-int(radius) : int(radius) + 1, -int(radius) : int(radius) + 1]
        return (ys**2 + xs**2 <= radius**2).astype(np.uint8)

    package, module = types.ModuleType("skimage"), types.ModuleType("skimage.morphology")
    module.disk = make
    monkeypatch.setitem(sys.modules, "skimage", package)
    monkeypatch.setitem(sys.modules, "skimage.morphology", module)


def labels(dataset, split, source, sequences=None):
    return [
        ResultFrame(frame.meta["sequence"], frame.meta["frame"], frame.classes, frame.instances, frame.meta)
        for frame in through_a_shard(dataset, split, source).values()
        if sequences is None or frame.meta["sequence"] in sequences
    ]


def moved(frame):
    """Objects a pixel to the right: some still match."""
    maps = {name: np.roll(getattr(frame, name), 1, axis=1) for name in ("classes", "tracks")}
    return ResultFrame(frame.sequence, frame.frame, maps["classes"], maps["tracks"], {"native": frame.meta["native"]})


def official_masks(dataset, sequence):
    """Frame (from 0) -> {id: mask}, as the official reader decodes the truth."""
    raw = dataset.get_raw_seq_data("ours", sequence)
    return [
        {int(number): coco_mask.decode(mask).astype(bool) for number, mask in zip(ids, masks, strict=True)}
        for ids, masks in zip(raw["gt_ids"], raw["gt_dets"], strict=True)
    ]


def our_masks(frame):
    """{native id: mask} of a label out of a shard."""
    return {
        native: (frame.classes == int(name.split("/")[0])) & (frame.tracks == int(name.split("/")[1]))
        for name, native in frame.meta["instances"].items()
    }


def assert_same_masks(official, frames):
    assert len(official) == len(frames)
    for theirs, frame in zip(official, frames, strict=True):
        ours = our_masks(frame)
        assert theirs.keys() == ours.keys()
        for number, mask in theirs.items():
            np.testing.assert_array_equal(mask, ours[number])


def evaluate(dataset, metrics):
    """Combined official results, by class."""
    evaluator = trackeval.Evaluator(
        {"PRINT_RESULTS": False, "PRINT_CONFIG": False, "TIME_PROGRESS": False, "OUTPUT_SUMMARY": False,
         "OUTPUT_DETAILED": False, "PLOT_CURVES": False, "LOG_ON_ERROR": None}
    )  # fmt: skip
    results, _ = evaluator.evaluate([dataset], metrics)
    return results[dataset.get_name()]["ours"]["COMBINED_SEQ"]


def mots(kind, source, tmp_path, dataset, sequences, location):
    config = {
        **QUIET,
        "GT_FOLDER": str(source),
        "TRACKERS_FOLDER": str(tmp_path),
        "SEQ_INFO": dict.fromkeys(sequences, 3),
        "GT_LOC_FORMAT": location,
        **({"SKIP_SPLIT_FOL": True} if dataset == "mots20" else {}),
    }
    return kind(config)


@pytest.mark.parametrize("change", [lambda frame: frame, moved])
@pytest.mark.parametrize("dataset", ["kitti_mots", "mots20"])
def test_mots(dataset, change, tmp_path):
    (tmp_path / "source").mkdir()
    if dataset == "kitti_mots":
        source = test_kitti_mots.write_source(tmp_path / "source")
        test_kitti_mots.write_text_labels(source)
        truth, split, sequences = source / "instances_txt", "val", ["0002", "0006"]
        kind, location = trackeval.datasets.KittiMOTS, "{gt_folder}/{seq}.txt"
    else:
        source = test_mots20.write_source(tmp_path / "source")
        truth, split, sequences = source / "MOTS/train", "train", ["MOTS20-02", "MOTS20-05"]
        kind, location = trackeval.datasets.MOTSChallenge, "{gt_folder}/{seq}/gt/gt.txt"
    frames = labels(dataset, split, source)
    write_results(dataset, map(change, frames), tmp_path / "ours/data")
    official = mots(kind, truth, tmp_path, dataset, sequences, location)
    for sequence in sequences:
        own = [frame for frame in frames if frame.sequence == sequence]
        known = [{n: m for n, m in found.items() if n < 10000} for found in official_masks(official, sequence)]
        assert_same_masks(known, own)
    found = evaluate(official, [trackeval.metrics.HOTA(), trackeval.metrics.CLEAR(), trackeval.metrics.Identity()])
    ours = scores(dataset, truth, tmp_path / "ours/data")
    for entry in load_contract(dataset).classes:
        theirs = found[entry.name]
        expected = {
            "HOTA": theirs["HOTA"]["HOTA"].mean(),
            "AssA": theirs["HOTA"]["AssA"].mean(),
            "MOTSA": theirs["CLEAR"]["MOTA"],
            "sMOTSA": theirs["CLEAR"]["sMOTA"],
            "IDF1": theirs["Identity"]["IDF1"],
        }
        for name, value in expected.items():
            assert ours[f"{name}/{entry.name}"] == pytest.approx(value, abs=1e-9), name


def test_rob_mots_truth_and_perfect_result(tmp_path):
    (tmp_path / "source").mkdir()
    source = test_rob_mots.write_source(tmp_path / "source")
    truth = source / "data/gt/rob_mots"
    frames = labels("rob_mots", "train", source, ["kitti_mots-0001", "kitti_mots-0002"])
    write_results("rob_mots", frames, tmp_path / "trackers/train/ours")
    official = RobMOTS({
        **QUIET, "GT_FOLDER": str(truth), "TRACKERS_FOLDER": str(tmp_path / "trackers"), "SPLIT_TO_EVAL": "train",
        "SUB_BENCHMARK": "kitti_mots", "SEQMAP_FILE": str(truth / "train/kitti_mots/seqmap.txt"),
        "CLSMAP_FILE": str(truth / "train/kitti_mots/clsmap.txt"),
    })  # fmt: skip
    for sequence in ("0001", "0002"):
        own = [frame for frame in frames if frame.sequence == f"kitti_mots-{sequence}"]
        raw = official.get_raw_seq_data("ours", sequence)
        for frame, ids, masks, classes in zip(own, raw["gt_ids"], raw["gt_dets"], raw["gt_classes"], strict=True):
            # Objects and ignore regions by class; in a shard regions lie under objects, of one class lowest.
            painted = np.zeros(frame.classes.shape, int)
            numbers = np.zeros(frame.classes.shape, int)
            order = sorted(range(len(ids)), key=lambda place: (classes[place] < 100, classes[place] == 100))
            for place in order:
                mask = coco_mask.decode(masks[place]).astype(bool)
                painted[mask], numbers[mask] = classes[place], ids[place] if classes[place] < 100 else 0
            np.testing.assert_array_equal(painted, frame.classes)
            np.testing.assert_array_equal(numbers, frame.tracks)
    found = evaluate(official, [trackeval.metrics.HOTA()])
    ours = scores("rob_mots", truth / "train", tmp_path / "trackers/train/ours", [f.sequence for f in frames[::3]])
    for name in ("person", "car"):
        assert found[name]["HOTA"]["HOTA"].mean() == pytest.approx(1.0, abs=1e-9)
        assert ours[f"HOTA/{name}"] == pytest.approx(1.0, abs=1e-9)


def davis_scene(rng, frames=4, height=40, width=60, objects=3):
    """Blobs that wander, sometimes vanish, and a void stripe."""
    maps = []
    for _ in range(frames):
        values = np.zeros((height, width), np.uint8)
        for number in range(1, objects + 1):
            if rng.random() < 0.8:
                y, x = rng.integers(0, height - 10), rng.integers(0, width - 10)
                values[y : y + rng.integers(4, 14), x : x + rng.integers(4, 20)] = number
        maps.append(values)
    return maps


@pytest.mark.parametrize("seed", range(6))
def test_davis_j_and_f(seed, tmp_path):
    """Random scenes, with more and with fewer proposals than objects."""
    rng = np.random.default_rng(seed)
    names = ("dog", "camel")
    for name in names:
        truth, pred = davis_scene(rng), davis_scene(rng, objects=2 + 2 * (seed % 2))
        for frame, (values, proposals) in enumerate(zip(truth, pred, strict=True)):
            proposals = np.where(rng.random(values.shape) < 0.6, values, proposals)
            values[:, 50:52] = 255
            test_davis_unsup.palette(tmp_path / f"gt/{name}/{frame:05d}.png", values)
            test_davis_unsup.palette(tmp_path / f"trackers/ours/data/{name}/{frame:05d}.png", proposals)
    official = trackeval.datasets.DAVIS(
        {**QUIET, "GT_FOLDER": str(tmp_path / "gt"), "TRACKERS_FOLDER": str(tmp_path / "trackers")}
    )
    metric = JAndF()
    metric.optim_type = "J&F"  # as the benchmark's own tool
    found = evaluate(official, [metric])["general"]["JAndF"]
    ours = scores("davis_unsup", tmp_path / "gt", tmp_path / "trackers/ours/data")
    for name, theirs in (("J&F", "J&F"), ("J", "J-Mean"), ("F", "F-Mean")):
        assert ours[name] == pytest.approx(float(found[theirs]), abs=1e-12), name


def test_j_and_f_by_hand():
    """One object, one proposal, a pixel too wide: J is 4/6, all boundaries lie within the tolerance."""
    truth, pred = np.zeros((6, 8), int), np.zeros((6, 8), int)
    truth[2:4, 2:4], pred[2:4, 2:5] = 1, 7
    nothing = np.zeros((6, 8), bool)
    assert j_and_f([Frame("s", truth, nothing, pred)]) == {"J&F": (4 / 6 + 1) / 2, "J": 4 / 6, "F": 1.0}
    assert j_and_f([Frame("s", truth, nothing, np.zeros_like(pred))]) == {"J&F": 0.0, "J": 0.0, "F": 0.0}
    assert j_and_f([Frame("s", np.zeros_like(truth), nothing, pred)]) == {"J&F": None, "J": None, "F": None}
    assert j_and_f([Frame("s", truth, truth > 0, pred)])["J"] is None  # all of it is void
    assert boundary(truth > 0).astype(int).tolist() == [
        [0, 0, 0, 0, 0, 0, 0, 0],
        [0, 1, 1, 1, 0, 0, 0, 0],
        [0, 1, 0, 1, 0, 0, 0, 0],
        [0, 1, 1, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0],
    ]


def track(rng, length, height=20, width=30):
    masks = []
    for _ in range(length):
        mask = np.zeros((height, width), int)
        y, x = rng.integers(0, height - 6), rng.integers(0, width - 6)
        mask[y : y + rng.integers(3, 9), x : x + rng.integers(3, 12)] = 1
        masks.append(mask if rng.random() < 0.8 else None)
    return masks


def disturbed(rng, masks):
    """The same track, a little off, or now and then missing."""
    return [
        None if mask is None or rng.random() < 0.2 else np.roll(mask, rng.integers(-1, 2, 2), (0, 1)) for mask in masks
    ]


@pytest.mark.parametrize("seed", range(4))
def test_youtube_vis_average_precision(seed, tmp_path):
    rng = np.random.default_rng(seed)
    names = {entry.id: entry.name for entry in load_contract("youtube_vis_2019").classes}
    videos, truth, pred = [], [], []
    for video in range(1, 7):
        length = int(rng.integers(2, 5))
        files = [f"v{video}/{5 * frame:05d}.jpg" for frame in range(length)]
        videos.append({"id": video, "width": 30, "height": 20, "length": length, "file_names": files})
        for _ in range(3):
            category, masks = int(rng.choice([1, 8])), track(rng, length)
            if all(mask is None for mask in masks):
                continue
            areas = [None if mask is None else int(mask.sum()) for mask in masks]
            truth.append({
                "id": len(truth) + 1, "video_id": video, "category_id": category, "iscrowd": 0, "areas": areas,
                "height": 20, "width": 30, "bboxes": [None if mask is None else [0, 0, 1, 1] for mask in masks],
                "segmentations": [None if mask is None else run_lengths(mask) for mask in masks],
            })  # fmt: skip
            for found in (disturbed(rng, masks), track(rng, length)):
                if any(mask is not None for mask in found):
                    shown = [
                        None if mask is None else coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
                        for mask in found
                    ]
                    pred.append({
                        "video_id": video, "category_id": category, "score": float(rng.random()),
                        "segmentations": [
                            None if mask is None else {"size": [20, 30], "counts": mask["counts"].decode()}
                            for mask in shown
                        ],
                    })  # fmt: skip
    categories = [{"id": number, "name": name} for number, name in names.items()]
    for folder, name, content in (
        ("gt/youtube_vis_train", "train.json", {"videos": videos, "annotations": truth, "categories": categories}),
        ("trackers/youtube_vis_train/ours/data", "results.json", pred),
    ):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / name).write_text(json.dumps(content))
    official = trackeval.datasets.YouTubeVIS({
        **QUIET, "GT_FOLDER": f"{tmp_path}/gt/", "TRACKERS_FOLDER": f"{tmp_path}/trackers/", "SPLIT_TO_EVAL": "train",
    })  # fmt: skip
    found = evaluate(official, [TrackMAP({"USE_TIME_RANGES": False, "USE_AREA_RANGES": False, "PRINT_CONFIG": False})])
    ours = scores(
        "youtube_vis_2019",
        tmp_path / "gt/youtube_vis_train/train.json",
        tmp_path / "trackers/youtube_vis_train/ours/data",
    )
    values = []
    for number in {entry["category_id"] for entry in truth}:
        theirs = found[names[number]]["TrackMAP"]["AP_all"]
        assert ours[f"AP/{names[number]}"] == pytest.approx(theirs.mean(), abs=1e-9)
        values.append(theirs)
    assert ours["AP"] == pytest.approx(np.mean(values), abs=1e-9)
    assert ours["AP50"] == pytest.approx(np.mean([value[0] for value in values]), abs=1e-9)
    assert ours["AP75"] == pytest.approx(np.mean([value[5] for value in values]), abs=1e-9)
    assert 0 < ours["AP"] < 1


def test_youtube_vis_masks(tmp_path):
    source = test_youtube_vis.write_source(tmp_path, "youtube_vis_2019")
    content = json.loads((source / "train.json").read_text())
    for entry in content["annotations"]:
        # The official reader takes uncompressed run lengths alone; the large object's are compressed in the fixture.
        shown = [None if mask is None or isinstance(mask, list) else mask for mask in entry["segmentations"]]
        entry["segmentations"] = [
            run_lengths(test_youtube_vis.LARGE) if mask and isinstance(mask["counts"], str) else mask for mask in shown
        ]
        entry.update(height=4, width=6, areas=[1, None, 1], bboxes=[[0, 0, 1, 1], None, [0, 0, 1, 1]])
    (tmp_path / "gt/youtube_vis_train").mkdir(parents=True)
    (tmp_path / "trackers/youtube_vis_train/ours/data").mkdir(parents=True)
    (tmp_path / "gt/youtube_vis_train/train.json").write_text(json.dumps(content))
    (tmp_path / "trackers/youtube_vis_train/ours/data/results.json").write_text("[]")
    shutil.copy(source / "train.json", tmp_path / "copy.json")
    official = trackeval.datasets.YouTubeVIS({
        **QUIET, "GT_FOLDER": f"{tmp_path}/gt/", "TRACKERS_FOLDER": f"{tmp_path}/trackers/", "SPLIT_TO_EVAL": "train",
    })  # fmt: skip
    raw = official.get_raw_seq_data("ours", "ab12")
    theirs = sorted(coco_mask.decode(mask).astype(bool).tolist() for mask in raw["gt_dets"][0])
    frame = through_a_shard("youtube_vis_2019", "train", source)["ab12/000000"]
    ours = [coco_mask.decode(mask).astype(bool).tolist() for mask in frame.meta["masks"].values()]
    assert sorted(ours) == [mask for mask in theirs if mask != test_youtube_vis.CROWD.astype(bool).tolist()]
