"""Labels that went through a shard and were exported are perfect predictions of their own truth; moved ones are not."""

import json
from dataclasses import replace

import numpy as np
import pytest
import test_bdd100k_mots
import test_cityscapes
import test_cityscapes_vps
import test_coco_panoptic
import test_davis_unsup
import test_kitti_mots
import test_kitti_step
import test_motchallenge_step
import test_mots20
import test_rob_mots
import test_vipseg
import test_youtube_vis
from official_bytes import through_a_shard
from scored import scores

from post_platform.errors import DataError
from post_platform.labels import DATASETS, load_contract
from post_platform.metrics.results import ResultFrame, readable, write_results
from post_platform.metrics.score import headline

# Dataset -> how its fixture is written, the split, the official truth, the sequences scored (None: all).
CASES = {
    "kitti_mots": (test_kitti_mots.write_source, "val", "instances", None),
    "mots20": (test_mots20.write_source, "train", "MOTS/train", None),
    "kitti_step": (test_kitti_step.write_source, "val", "kitti-step/panoptic_maps/val", None),
    "motchallenge_step": (
        test_motchallenge_step.write_source, "val", "motchallenge-step/panoptic_maps/train", ["0002"],
    ),
    "cityscapes": (test_cityscapes.write_source, "train", "gtFine/train", None),
    "cityscapes_vps": (test_cityscapes_vps.write_source, "val", "val", ["0005", "0010"]),
    "coco_panoptic": (test_coco_panoptic.write_source, "val", "annotations/panoptic_val2017.json", None),
    "vipseg": (test_vipseg.write_source, "val", "VIPSeg/val.txt", None),
    "bdd100k_mots": (test_bdd100k_mots.write_source, "val", "bdd100k/labels/seg_track_20/bitmasks/val", None),
    "youtube_vis_2019": (
        lambda path: test_youtube_vis.write_source(path, "youtube_vis_2019"), "train", "train.json", None,
    ),
    "youtube_vis_2021": (
        lambda path: test_youtube_vis.write_source(path, "youtube_vis_2021"), "train", "train/instances.json", None,
    ),
    "davis_unsup": (test_davis_unsup.write_source, "val", "DAVIS/Annotations_unsupervised/480p", None),
    "rob_mots": (test_rob_mots.write_source, "train", "data/gt/rob_mots/train", ["kitti_mots-0001", "kitti_mots-0002"]),
}  # fmt: skip
FLAT = [name for name in CASES if not name.startswith("youtube_vis")]  # masks overlap there, and all is one file


@pytest.fixture(params=CASES)
def case(request, tmp_path):
    """Dataset, its official truth, its sequences, and its labels as they come out of a shard."""
    dataset = request.param
    write, split, truth, sequences = CASES[dataset]
    (tmp_path / "source").mkdir()
    source = write(tmp_path / "source")
    if dataset == "coco_panoptic":  # the fixture's JSON says nothing of its categories; results are scored by them
        file = source / truth
        names = [(entry.id, entry.name, int(entry.isthing)) for entry in load_contract(dataset).classes]
        listed = [{"id": number, "name": name, "isthing": thing} for number, name, thing in names]
        file.write_text(json.dumps({**json.loads(file.read_text()), "categories": listed}))
    frames = [
        ResultFrame(frame.meta["sequence"], frame.meta["frame"], frame.classes, frame.instances, frame.meta)
        for frame in through_a_shard(dataset, split, source).values()
        if sequences is None or frame.meta["sequence"] in sequences
    ]
    return dataset, source / truth, sequences, frames


def test_every_dataset_can_be_read_and_written():
    assert {*DATASETS} <= {*CASES} == {*readable()} - {"coco_instances"}


def test_perfect(case, tmp_path):
    dataset, truth, sequences, frames = case
    write_results(dataset, frames, tmp_path / "results")
    found = scores(dataset, truth, tmp_path / "results", sequences)
    best = headline(found, load_contract(dataset))
    assert best == pytest.approx(1.0, abs=1e-12)
    wrong = {
        name: value
        for name, value in found.items()
        if value is not None and value != pytest.approx(0.0 if name.startswith("IDS") else 1.0, abs=1e-12)
    }
    assert not wrong


def test_moved(case, tmp_path):
    dataset, truth, sequences, frames = case
    moved = [
        replace(
            frame,
            classes=np.roll(frame.classes, 1, axis=1),
            tracks=np.roll(frame.tracks, 1, axis=1),
            meta={name: value for name, value in frame.meta.items() if name != "masks"},
        )
        for frame in frames
    ]
    write_results(dataset, moved, tmp_path / "results")
    best = headline(scores(dataset, truth, tmp_path / "results", sequences), load_contract(dataset))
    assert best is not None
    assert best < 0.9


@pytest.mark.parametrize("case", FLAT, indirect=True)
def test_predicted_tracks_of_any_number(case, tmp_path):
    """A model numbers tracks as it likes, and knows no native ids."""
    dataset, truth, sequences, frames = case
    limit = 20 if dataset == "davis_unsup" else 60_000
    renamed = [
        replace(
            frame,
            tracks=np.where((frame.tracks > 0) & (frame.tracks < 65535), limit - frame.tracks.astype(int), 0),
            meta={name: value for name, value in frame.meta.items() if name != "instances"},
        )
        for frame in frames
    ]
    write_results(dataset, renamed, tmp_path / "results")
    best = headline(scores(dataset, truth, tmp_path / "results", sequences), load_contract(dataset))
    assert best == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("case", FLAT, indirect=True)
def test_names_that_would_leave_the_folder(case, tmp_path):
    dataset, _, _, frames = case
    native = {**frames[0].meta.get("native", {})}
    for name in ("image_id", "benchmark", "sequence"):
        if name in native:
            native[name] = "../../evil"
    evil = replace(frames[0], sequence="../evil", meta={**frames[0].meta, "native": native})
    with pytest.raises(DataError, match="plain"):
        write_results(dataset, [evil], tmp_path / "results")
    assert not (tmp_path / "evil").exists()
