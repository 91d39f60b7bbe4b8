"""The loader on real shards: it returns what was written, and damage is named, replaced, counted, and bounded."""

import pickle
import shutil
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from post_platform import storage
from post_platform.data import load
from post_platform.data.augment import Augmentation
from post_platform.data.load import ClipLoader, read_frame
from post_platform.data.plan import Plan
from post_platform.errors import DataError
from post_platform.shards import record
from post_platform.shards.index import read_split

WHOLE = Augmentation((64, 128), flip=False, photometric=False, still_motion=False)
DATASETS = ("kitti_mots", "kitti_step", "coco_panoptic")


def plan(root, datasets=DATASETS, seed=3):
    return Plan([read_split(root, name, "train") for name in datasets], global_batch=6, seed=seed)


@pytest.fixture
def root(toy_shards, tmp_path):
    """A copy of the shards, to damage."""
    return Path(shutil.copytree(toy_shards, tmp_path / "shards"))


def shard(root, dataset):
    return root / dataset / "train" / "000000.tar"


def flip(path, offset):
    data = bytearray(path.read_bytes())
    data[offset] ^= 255
    path.write_bytes(data)


def first_row(rows, dataset):
    """The first row of a dataset (by number), and its place in the batch."""
    return next((i, row) for i, row in enumerate(rows.to_pylist()) if row["dataset"] == dataset)


def equal(a, b):
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in a.__dataclass_fields__)


def test_the_frames_of_a_clip_are_read_once_and_give_the_same_pairs(toy_shards, monkeypatch):
    mixture = Plan([read_split(toy_shards, "kitti_step", "train")], global_batch=4, clip=5, seed=3)
    rows = mixture.rows(np.arange(4))
    assert len(set(rows["seed"].to_pylist())) == 1
    reads = []
    real = load.read_frame
    monkeypatch.setattr(load, "read_frame", lambda *place: reads.append(place[1]["offset"]) or real(*place))
    together = ClipLoader(mixture, WHOLE).load(rows)
    wanted = [rows[f"{when}_offset"].to_pylist() for when in ("now", "prev")]
    assert sorted(reads) == sorted({offset for offsets in wanted for offset in offsets} - {None})
    alone = [ClipLoader(mixture, WHOLE).load(rows.slice(i, 1)) for i in range(4)]
    for i, one in enumerate(alone):
        assert np.array_equal(together.image[i], one.image[0])
        assert np.array_equal(together.prev_instances[i], one.prev_instances[0])


def test_loader_returns_what_the_shards_hold(toy_shards):
    mixture = plan(toy_shards)
    rows = mixture.rows(np.arange(24))
    found = ClipLoader(mixture, WHOLE).load(rows)
    assert found.image.shape == found.prev_image.shape == (24, 3, 64, 128)
    assert found.dataset.tolist() == rows["dataset"].to_pylist()
    assert found.position.tolist() == list(range(24))
    assert (found.weight == 1).all()
    for i, row in enumerate(rows.to_pylist()):
        folder, name = mixture.folders[row["dataset"]], mixture.datasets[row["dataset"]]
        data = storage.read_range(f"{folder}/{row['now_shard']}", row["now_offset"], row["now_length"])
        frame = record.decode(data)
        assert found.key[i] == f"{name}/{frame.key}"
        height, width = (min(a, b) for a, b in zip(frame.classes.shape, (64, 128), strict=True))
        if frame.classes.shape[0] > 64 or frame.classes.shape[1] > 128:
            continue  # cropped, at a place of its own
        assert np.array_equal(found.image[i, :, :height, :width], frame.image.transpose(2, 0, 1))
        assert np.array_equal(found.classes[i, :height, :width], frame.classes)
        assert np.array_equal(found.instances[i, :height, :width], frame.instances)
        assert (found.classes[i, height:] == 255).all()
        assert (found.classes[i, :, width:] == 255).all()


def test_previous_frames_are_those_of_the_sequence_and_stills_have_none(toy_shards):
    mixture = plan(toy_shards)
    rows = mixture.rows(np.arange(24))
    found = ClipLoader(mixture, WHOLE).load(rows)
    for i, row in enumerate(rows.to_pylist()):
        if row["prev_shard"] is None:
            assert np.array_equal(found.prev_image[i], found.image[i])
            assert not found.prev_instances[i].any()
            continue
        folder = mixture.folders[row["dataset"]]
        data = storage.read_range(f"{folder}/{row['prev_shard']}", row["prev_offset"], row["prev_length"])
        before = record.decode(data)
        sequence, number = row["key"].split("/")
        assert before.key == f"{sequence}/{int(number) - 1:06d}"
        height, width = before.classes.shape
        assert np.array_equal(found.prev_instances[i, :height, :width], before.instances[:64, :128])
    assert {row["prev_shard"] is None for row in rows.to_pylist() if row["dataset"] == 2} == {True}


def test_batches_do_not_depend_on_threads_or_processes(toy_shards):
    mixture = plan(toy_shards)
    rows = mixture.rows(np.arange(12))
    rules = Augmentation((32, 64), scale=(0.5, 2.0))
    used = ClipLoader(mixture, rules, threads=4)
    first = used.load(rows)
    travelled = pickle.loads(pickle.dumps(used))  # after use: with its pool and lock
    assert equal(first, travelled.load(rows))
    assert equal(first, ClipLoader(mixture, rules, threads=1).load(rows))
    assert equal(first, used.load(rows))


def test_arrays_are_contiguous_and_of_the_types_that_are_promised(toy_shards):
    mixture = plan(toy_shards)
    found = ClipLoader(mixture, Augmentation((32, 64), scale=(0.5, 2.0))).load(mixture.rows(np.arange(7)))
    for name in ("image", "classes", "instances"):
        for array in (getattr(found, name), getattr(found, f"prev_{name}")):
            assert array.flags.c_contiguous
            assert array.shape == ((7, 3, 32, 64) if name == "image" else (7, 32, 64))
            assert array.dtype == (np.int32 if name == "instances" else np.uint8)


def test_ids_that_do_not_persist_teach_no_motion(toy_shards, monkeypatch):
    mixture = plan(toy_shards, ("kitti_step",))
    rows = mixture.rows(np.arange(12))
    assert ClipLoader(mixture, WHOLE).load(rows).prev_instances.any()
    monkeypatch.setattr(load, "load_contract", lambda name: SimpleNamespace(persistent=False))
    found = ClipLoader(mixture, Augmentation((64, 128), scale=(0.5, 2.0))).load(rows)
    assert found.instances.any()
    paired = [i for i, row in enumerate(rows.to_pylist()) if row["prev_shard"] is not None]
    assert paired
    assert not found.prev_instances[paired].any()


def test_a_flipped_byte_is_named_and_replaced_by_position_and_attempt(root):
    mixture = plan(root)
    rows = mixture.rows(np.arange(6))
    i, row = first_row(rows, 1)
    flip(shard(root, "kitti_step"), row["now_offset"] + row["now_length"] // 2)
    found = ClipLoader(mixture, WHOLE, max_bad_samples=3).load(rows)
    ((line, hint),) = found.replaced
    assert line.startswith(f"kitti_step/train/000000.tar, sample {row['key']}: cannot be read: ")
    assert hint == f"see what is damaged: python pipelines/check.py {root}/kitti_step"
    data = shard(root, "kitti_step").read_bytes()[row["now_offset"] :][: row["now_length"]]
    assert line.endswith(f"have CRC-32 {zlib.crc32(data):08x}, expected {row['now_crc32']:08x}")
    chosen = mixture.replacement(row["position"], 1, 1)
    assert found.key[i] == f"kitti_step/{chosen['key']}" != f"kitti_step/{row['key']}"
    assert found.dataset[i] == 1
    assert found.position[i] == row["position"]
    assert equal(found, ClipLoader(mixture, WHOLE).load(rows)), "another rank would draw another clip"
    one = ClipLoader(mixture, WHOLE).load(rows.slice(i, 1))
    assert one.key[0] == found.key[i]


def test_damage_in_the_previous_frame_is_named_so(root):
    mixture = plan(root)
    rows = mixture.rows(np.arange(60))
    row = next(row for row in rows.to_pylist() if row["dataset"] == 0 and row["prev_shard"] is not None)
    flip(shard(root, "kitti_mots"), row["prev_offset"] + 600)
    ((line, _),) = ClipLoader(mixture, WHOLE).load(rows.slice(row["position"], 1)).replaced
    assert line.startswith(f"kitti_mots/train/000000.tar, sample {row['key']}, its previous frame: cannot be read")


def test_a_truncated_shard_is_bounded_and_then_fatal_with_the_next_command(root):
    mixture = plan(root, ("kitti_step", "coco_panoptic"))
    tar = shard(root, "kitti_step")
    tar.write_bytes(tar.read_bytes()[:1000])
    loader = ClipLoader(mixture, WHOLE, max_bad_samples=2)
    with pytest.raises(DataError) as caught:
        loader.load(mixture.rows(np.arange(6)))
    message = str(caught.value)
    assert message.startswith("more than 2 samples could not be read; the last: kitti_step/train/000000.tar, sample 00")
    assert message.endswith(": the file is truncated")
    assert "\n" not in message
    assert caught.value.hint == f"see what is damaged: python pipelines/check.py {root}/kitti_step"


def test_a_missing_shard_is_fatal_at_once_where_nothing_is_tolerated(root):
    mixture = plan(root, ("coco_panoptic",))
    shard(root, "coco_panoptic").unlink()
    with pytest.raises(DataError, match=r"^more than 0 samples .* coco_panoptic/train/000000.tar, .*: not found$"):
        ClipLoader(mixture, WHOLE, max_bad_samples=0).load(mixture.rows(np.arange(1)))


def test_replacements_of_replacements_differ(toy_shards):
    mixture = plan(toy_shards, ("kitti_step",))
    drawn = [mixture.replacement(5, 0, attempt)["key"] for attempt in range(1, 12)]
    assert len(set(drawn)) > 4
    assert drawn == [mixture.replacement(5, 0, attempt)["key"] for attempt in range(1, 12)]
    assert drawn != [mixture.replacement(6, 0, attempt)["key"] for attempt in range(1, 12)]


def test_bytes_that_pass_the_checksum_but_are_no_sample_are_named(tmp_path):
    (tmp_path / "kitti_mots/train").mkdir(parents=True)
    (tmp_path / "kitti_mots/train/000000.tar").write_bytes(bytes(1024))
    place = {"shard": "000000.tar", "offset": 0, "length": 1024, "crc32": 0xEFB5AF2E}
    with pytest.raises(
        DataError, match=r"^kitti_mots/train/000000.tar, sample 0001/000002: cannot be read: slice holds"
    ):
        read_frame(str(tmp_path / "kitti_mots/train"), place, "0001/000002")
