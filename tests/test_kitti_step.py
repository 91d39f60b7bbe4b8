"""KITTI-STEP in its official layouts, written here byte by byte; the expected arrays are typed, not computed."""

import numpy as np
import pytest
from official_bytes import through_a_shard
from PIL import Image

from post_platform.datasets import kitti_step
from post_platform.datasets.frame import MissingSplit
from post_platform.errors import DataError

# R = trainId, G*256 + B = instance. Car 300 needs G (1, 44); person 2, a person without identity, rider and bus with
# instance 0, and the void ring.
PIXELS = [
    [(13, 1, 44), (13, 1, 44), (255, 0, 0), (10, 0, 0)],
    [(11, 0, 2), (11, 0, 0), (12, 0, 0), (15, 0, 0)],
    [(0, 0, 0), (0, 0, 0), (13, 0, 2), (255, 0, 0)],
]
CLASSES = [[13, 13, 255, 10], [11, 11, 12, 15], [0, 0, 13, 255]]
INSTANCES = [[300, 300, 0, 0], [2, 65535, 0, 0], [0, 0, 2, 0]]


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def write_source(tmp_path):
    """The layout of the official instructions; two sequences, one per split, and an unlabelled test sequence."""
    for split, sequence, count in (("train", "0000", 2), ("val", "0002", 3)):
        for frame in range(count):
            save(tmp_path / f"images/{split}/{sequence}/{frame:06d}.png", np.zeros((3, 4, 3), np.uint8))
            label = tmp_path / f"kitti-step/panoptic_maps/{split}/{sequence}/{frame:06d}.png"
            save(label, np.array(PIXELS, np.uint8))
    save(tmp_path / "images/test/0000/000000.png", np.zeros((3, 4, 3), np.uint8))
    (tmp_path / "images/val/__MACOSX").mkdir()
    (tmp_path / "images/val/0002/._000000.png").write_bytes(b"junk")
    return tmp_path


@pytest.fixture
def source(tmp_path):
    return write_source(tmp_path)


def test_label_by_hand(source):
    label = kitti_step.label(kitti_step.frames(source, "val")[0])
    assert label.classes.tolist() == CLASSES
    assert label.instances.tolist() == INSTANCES
    assert label.native_ids == {"11/2": 2, "13/2": 2, "13/300": 300}


def test_through_a_shard(source):
    frame = through_a_shard("kitti_step", "val", source)["0002/000001"]
    assert frame.classes.tolist() == CLASSES
    assert frame.instances.tolist() == INSTANCES
    assert frame.meta["instances"] == {"11/2": 2, "13/2": 2, "13/300": 300}
    assert (through_a_shard("kitti_step", "test", source)["0000/000000"].classes == 255).all()


def test_frames(source):
    refs = kitti_step.frames(source, "val")
    assert [ref.key for ref in refs] == ["0002/000000", "0002/000001", "0002/000002"]
    assert [ref.seconds_since_previous for ref in refs] == [None, 0.1, 0.1]
    assert refs[0].source_video == "kitti_tracking/training/0002"  # the same video as KITTI-MOTS 0002
    (test,) = kitti_step.frames(source, "test")
    assert (test.label, test.source_video) == (None, "kitti_tracking/testing/0000")


def test_raw_image_tree_and_bare_label_folder(source):
    (source / "training/image_02").mkdir(parents=True)
    for split, sequence in (("train", "0000"), ("val", "0002")):
        (source / f"images/{split}/{sequence}").rename(source / f"training/image_02/{sequence}")
    (source / "kitti-step/panoptic_maps").rename(source / "panoptic_maps")
    assert [ref.key for ref in kitti_step.frames(source, "train")] == ["0000/000000", "0000/000001"]
    assert len(kitti_step.frames(source, "val")) == 3


def test_missing_parts(source):
    (source / "images/val/0002/000001.png").unlink()
    with pytest.raises(DataError, match="kitti_step 0002/000001: has no image file"):
        kitti_step.frames(source, "val")
    (source / "images/val/0002").rename(source / "images/val/0006")
    with pytest.raises(DataError, match="sequences 0006 have images but no labels"):
        kitti_step.frames(source, "val")
    (source / "images/val/0006").rename(source / "elsewhere")
    with pytest.raises(DataError, match="sequences 0002 have labels but no images"):
        kitti_step.frames(source, "val")
    with pytest.raises(
        MissingSplit, match=r"kitti_step train: nothing found in .*expected kitti-step/panoptic_maps/train"
    ):
        kitti_step.frames(source / "images", "train")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((3, 4, 3), (33, 0, 0), np.uint8), "0002/000000: label has class 33, must be 0..18 or 255"),
        (np.full((3, 4, 3), 255, np.uint8), "instance 65535 cannot be stored"),
        (np.zeros((3, 4), np.uint8), "label is a PNG of mode L, must be RGB"),
    ],
)
def test_broken_labels(source, array, message):
    save(source / "kitti-step/panoptic_maps/val/0002/000000.png", array)
    with pytest.raises(DataError, match=message):
        kitti_step.label(kitti_step.frames(source, "val")[0])
