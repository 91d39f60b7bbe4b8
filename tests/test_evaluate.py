"""Evaluation over whole sequences: every one once, in native classes, and the truth itself scores 1."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from post_platform.data.load import read_frame
from post_platform.errors import DataError
from post_platform.labels import load_contract
from post_platform.shards.index import read_split
from post_platform.training import evaluate, timelines
from post_platform.training.evaluate import (
    Stretch,
    evaluate_share,
    joined,
    mean_score,
    native_ids,
    open_model,
    run_sequence,
    scores_of,
    sequences,
    share_of,
)

DATASETS = ("kitti_mots", "kitti_step", "coco_panoptic")


def split(lengths, unlabelled=()):
    """A split whose sequences, named by their place, have these lengths."""
    rows = [
        {"sequence": f"{s:04d}", "frame": frame, "labelled": s not in unlabelled}
        for s, length in enumerate(lengths)
        for frame in range(length)
    ]
    return SimpleNamespace(dataset="kitti_step", index=pa.Table.from_pylist(rows))


def test_sequences_are_whole_labelled_and_in_order():
    first, second = split([3, 2, 4], unlabelled=(1,)), split([1, 1])
    found = sequences([first, second])
    assert [(item.split is first, item.start, item.stop) for item in found] == [
        (True, 0, 3),
        (True, 5, 9),
        (False, 0, 1),
        (False, 1, 2),
    ]
    assert [(item.start, item.stop) for item in sequences([first], max_frames=2)] == [(0, 2), (5, 7)]


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 8))
def test_ranks_share_every_sequence_once_and_evenly(lengths, world_size):
    work, start = [], 0
    for length in lengths:
        work.append(Stretch(None, start, start + length))
        start += length
    parts = [share_of(work, rank, world_size) for rank in range(world_size)]
    assert sorted((item.start, item.stop) for part in parts for item in part) == [(i.start, i.stop) for i in work]
    frames = [sum(item.stop - item.start for item in part) for part in parts]
    assert max(frames) - min(frames) <= max(lengths, default=0)


def test_native_ids_answer_background_and_void():
    mots = native_ids(load_contract("kitti_mots"))
    assert mots.tolist() == [1, 2, 0, 255]
    assert mots[np.array([[0, 2], [1, -1]])].tolist() == [[1, 0], [2, 255]]
    assert native_ids(load_contract("kitti_step"))[-1] == 255


class Oracle:
    """A predictor that returns the truth of the frame that was read last, in a predictor's own terms."""

    def __init__(self, contract, seen):
        self.model, self.seen = torch.nn.Linear(1, 1), seen
        self.index = np.full(256, -1)
        for place, entry in enumerate(contract.classes):
            self.index[entry.id] = place
        if contract.background is not None:
            self.index[0] = len(contract.classes)

    def step(self, frames, states):
        truth = self.seen[-1]
        assert frames[0].shape == (*truth.classes.shape, 3)
        classes = self.index[truth.classes]
        objects = (truth.instances > 0) & (truth.instances < 65535)
        tracks = np.where(objects, classes * 70_000 + truth.instances, 0)
        found = SimpleNamespace(classes=torch.from_numpy(classes), tracks=torch.from_numpy(tracks))
        return [found], [(states[0] or 0) + 1]


@pytest.fixture
def oracle(monkeypatch):
    seen = []

    def read(*arguments):
        seen.append(read_frame(*arguments))
        return seen[-1]

    monkeypatch.setattr(evaluate, "read_frame", read)
    monkeypatch.setattr(evaluate, "projection_of", lambda contract, names: contract)
    monkeypatch.setattr(evaluate, "Predictor", lambda model, contract, tracking: Oracle(contract, seen))


def test_a_perfect_predictor_scores_one_on_every_dataset(toy_shards, oracle):
    splits = [read_split(toy_shards, name, "val") for name in DATASETS]
    model = torch.nn.Linear(1, 1).train()
    parts = [evaluate_share(model, (), share_of(sequences(splits), rank, 2), "iou", pictures=1) for rank in range(2)]
    assert model.training, "the model is handed back as it came"
    whole = joined(parts)
    scores = scores_of(whole.tables)
    assert set(scores) == set(DATASETS)
    for name in DATASETS:
        assert scores[name]["PQ"] == 1, name
        assert scores[name]["mIoU"] == 1, name
    assert scores["kitti_mots"]["sMOTSA/car"] == 1
    assert scores["kitti_mots"]["IDS/car"] == 0
    assert scores["kitti_step"]["STQ"] == 1
    assert mean_score(scores) == 1
    pictures = whole.pictures
    assert sorted(picture.dataset for picture in pictures) == sorted(item.split.dataset for item in sequences(splits))
    assert {picture.key for picture in pictures if picture.dataset == "kitti_step"} == {"0002/000001", "0006/000001"}


def test_scores_do_not_depend_on_how_sequences_are_spread(toy_shards, oracle):
    splits = [read_split(toy_shards, name, "val") for name in DATASETS]
    model = torch.nn.Linear(1, 1)
    alone = scores_of(evaluate_share(model, (), sequences(splits), "iou").tables)
    for world_size in (2, 3):
        shares = [share_of(sequences(splits), rank, world_size) for rank in range(world_size)]
        assert alone == scores_of(joined([evaluate_share(model, (), part, "iou") for part in shares]).tables)


def test_the_first_sequences_of_a_video_dataset_get_timelines_that_show_what_was_predicted(
    toy_shards, oracle, monkeypatch
):
    """Every identity changes once, in the second frame of a sequence."""
    step = Oracle.step

    def forget(self, frames, states):
        found, (age,) = step(self, frames, states)
        found[0].tracks[found[0].tracks > 0] += 500 * (age > 1)
        return found, [age]

    monkeypatch.setattr(Oracle, "step", forget)
    shown = []
    monkeypatch.setattr(timelines, "draw_timeline", lambda *arguments: shown.append(arguments))
    monkeypatch.setattr(timelines, "png", lambda figure: b"png")
    splits = [read_split(toy_shards, name, "val") for name in DATASETS]
    model = torch.nn.Linear(1, 1)
    assert not evaluate_share(model, (), sequences(splits), "iou").timelines
    found = joined([evaluate_share(model, (), share_of(sequences(splits), r, 2), "iou", 0, 1) for r in range(2)])
    assert found.timelines == {("kitti_mots", "0002"): b"png", ("kitti_step", "0002"): b"png"}
    for timeline, contract, closeups in shown:
        assert timeline.sequence == f"{contract.dataset}/0002"
        assert 0 < len(closeups) <= 3
        for lane in timeline.lanes:
            assert (lane.found > 0).all()
            there_before = lane.frames[0] == timeline.frames[0] and len(lane.frames) > 1
            assert lane.switched.sum() == there_before
        for closeup in closeups:
            assert closeup.switch.new - closeup.switch.old == 500
            assert (closeup.truth[0] != closeup.prediction[1]).any()


def test_a_tape_gives_back_image_truth_and_prediction(toy_shards):
    found = read_split(toy_shards, "kitti_step", "val")
    rows = sequences([found])[0].rows()
    tape = timelines.Tape(found, rows)
    record = read_frame(found.folder, rows[1], "x")
    tracks = record.instances.astype(np.int64) * 1000
    tape.keep(rows[1]["frame"], (record.classes, tracks))
    image, truth, prediction = tape.look(rows[1]["frame"])
    assert np.array_equal(image, record.image)
    assert np.array_equal(truth, (record.classes, record.instances))
    assert np.array_equal(prediction, (record.classes, tracks))


def test_the_mean_is_over_headlines_that_are_defined():
    found = {"kitti_mots": {"sMOTSA": 0.5, "PQ": 0.9}, "coco_panoptic": {"PQ": 0.25}, "kitti_step": {"STQ": None}}
    assert mean_score(found) == 0.375
    assert mean_score({"kitti_step": {"STQ": None}}) is None


def test_a_folder_that_is_no_checkpoint_is_named(tmp_path):
    with pytest.raises(DataError, match=rf"^no usable checkpoint: .*{tmp_path.name}") as caught:
        open_model(tmp_path)
    assert caught.value.hint == "a run's checkpoints are in <run.dir>/<run.name>/checkpoints"


def test_nothing_is_carried_from_one_still_to_the_next(toy_shards):
    """Cityscapes has several stills of one sequence's name."""
    found = read_split(toy_shards, "coco_panoptic", "val")
    names = pa.array(["frankfurt_000000"] * found.index.num_rows)
    one_name = replace(found, index=found.index.set_column(0, "sequence", names))
    (stretch,) = sequences([one_name])
    assert stretch.stop > 1
    given = []

    def step(images, states):
        given.extend(states)
        shape = images[0].shape[:2]
        result = SimpleNamespace(classes=torch.zeros(shape, dtype=int), tracks=torch.zeros(shape, dtype=int))
        return [result], ["state"]

    list(run_sequence(SimpleNamespace(step=step), load_contract("coco_panoptic"), stretch))
    assert given == [None] * stretch.stop
