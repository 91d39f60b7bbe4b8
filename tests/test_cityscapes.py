"""Cityscapes in its official layout, written here byte by byte; the expected arrays are typed, not computed."""

import json

import numpy as np
import pytest
from cityscapesscripts.preparation.createPanopticImgs import convert2panoptic
from PIL import Image

from post_platform.datasets import cityscapes
from post_platform.datasets.frame import MissingSplit
from post_platform.errors import DataError
from post_platform.shards import record
from post_platform.shards.frame import encode_frame

# Car 26000 (number 0) and 26001, a group of persons (24) beside person 24000, an ignored caravan 29001 and trailer 30,
# and what is never evaluated: unlabeled 0, ego vehicle 1, parking 9.
VALUES = [
    [7, 7, 23, 23, 11, 11],
    [26000, 26000, 26001, 26001, 24, 24],
    [26000, 26000, 26001, 29001, 24, 24000],
    [0, 1, 9, 21, 33005, 30],
]
CLASSES = [
    [7, 7, 23, 23, 11, 11],
    [26, 26, 26, 26, 24, 24],
    [26, 26, 26, 255, 24, 24],
    [255, 255, 255, 21, 33, 255],
]
INSTANCES = [
    [0, 0, 0, 0, 0, 0],
    [1, 1, 2, 2, 65535, 65535],
    [1, 1, 2, 0, 65535, 1],
    [0, 0, 0, 0, 6, 0],
]
NATIVE_IDS = {"24/1": 24000, "26/1": 26000, "26/2": 26001, "33/6": 33005}
OTHER = [[8, 8, 32999, 17], [5, 28000, 28000, 4]]
OTHER_CLASSES = [[8, 8, 32, 17], [255, 28, 28, 255]]
OTHER_INSTANCES = [[0, 0, 1000, 0], [0, 1, 1, 0]]


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def still(root, split, name, values):
    """An image and its annotation; of the files of an annotation nobody here reads, one is there."""
    city, values = name.split("_")[0], np.array(values, np.uint16)
    save(root / f"leftImg8bit/{split}/{city}/{name}_leftImg8bit.png", np.full((*values.shape, 3), 90, np.uint8))
    save(root / f"gtFine/{split}/{city}/{name}_gtFine_instanceIds.png", values)
    save(root / f"gtFine/{split}/{city}/{name}_gtFine_labelIds.png", np.zeros(values.shape, np.uint8))


def write_source(tmp_path):
    """Two cities in train, one of them with two stills of one sequence and odd frame numbers; a test with dummies."""
    still(tmp_path, "train", "hamburg_000000_104857", VALUES)
    still(tmp_path, "train", "hamburg_000000_000042", OTHER)
    still(tmp_path, "train", "aachen_000000_000019", VALUES)
    still(tmp_path, "test", "berlin_000000_000019", np.zeros((2, 4)))
    (tmp_path / "leftImg8bit/train/__MACOSX").mkdir()
    for junk in ("leftImg8bit/train/aachen/._aachen_000000_000019_leftImg8bit.png", "gtFine/train/aachen/.DS_Store"):
        (tmp_path / junk).write_bytes(b"junk")
    return tmp_path


@pytest.fixture
def source(tmp_path):
    return write_source(tmp_path)


def test_label_by_hand(source):
    label = cityscapes.label(cityscapes.frames(source, "train")[0])
    assert label.classes.tolist() == CLASSES
    assert label.instances.tolist() == INSTANCES
    assert label.native_ids == NATIVE_IDS


def test_each_image_is_a_still_of_its_sequence(source):
    refs = cityscapes.frames(source, "train")
    assert [ref.key for ref in refs] == ["aachen_000000/000019", "hamburg_000000/000042", "hamburg_000000/104857"]
    assert [ref.seconds_since_previous for ref in refs] == [None, None, None]
    assert refs[2].source_video == "cityscapes/hamburg_000000_104857"


def test_labels_of_test_are_dummies(source):
    (ref,) = cityscapes.frames(source, "test")
    assert (ref.key, ref.label) == ("berlin_000000/000019", None)


def test_unpacked_zips_side_by_side(source):
    for tree, archive in (("leftImg8bit", "leftImg8bit_trainvaltest"), ("gtFine", "gtFine_trainvaltest")):
        (source / archive).mkdir()
        (source / tree).rename(source / archive / tree)
    assert [cityscapes.label(ref).classes.shape for ref in cityscapes.frames(source, "train")] == [
        (4, 6),
        (2, 4),
        (4, 6),
    ]


def test_from_official_bytes_to_decoded_shard(source):
    found = []
    for ref in cityscapes.frames(source, "train"):
        data, row, _ = encode_frame("cityscapes", "train", ref, lossless=False)
        decoded = record.decode(data)
        assert (decoded.key, decoded.meta["labelled"], row["seconds_since_previous"]) == (ref.key, True, None)
        found.append((decoded.classes.tolist(), decoded.instances.tolist()))
    assert found == [(CLASSES, INSTANCES), (OTHER_CLASSES, OTHER_INSTANCES), (CLASSES, INSTANCES)]
    assert decoded.meta["instances"] == NATIVE_IDS


def test_the_official_conversion_agrees(source, tmp_path):
    """csCreatePanopticImgs: segment id = value of the PNG, category = class, void 0, a group is crowd."""
    convert2panoptic(str(source / "gtFine"), str(tmp_path), setNames=["train"])
    content = json.loads((tmp_path / "cityscapes_panoptic_train.json").read_text())
    for ref, entry in zip(cityscapes.frames(source, "train"), content["annotations"], strict=True):
        assert entry["image_id"] == f"{ref.sequence}_{ref.frame:06d}"
        rgb = np.array(Image.open(tmp_path / "cityscapes_panoptic_train" / entry["file_name"])).astype(int)
        official = rgb[..., 0] + 256 * rgb[..., 1]
        label = cityscapes.label(ref)
        for (y, x), segment in np.ndenumerate(official):
            class_id, instance = int(label.classes[y, x]), int(label.instances[y, x])
            ours = label.native_ids.get(f"{class_id}/{instance}", class_id)
            assert segment == (0 if class_id == 255 else ours)
        crowds = {row["category_id"] for row in entry["segments_info"] if row["iscrowd"]}
        assert crowds == set(label.classes[label.instances == 65535].tolist())
        assert {row["category_id"] for row in entry["segments_info"]} == set(label.classes.ravel().tolist()) - {255}


@pytest.mark.parametrize("value", [34, 999, 7001, 4001, 34000, 65535])
def test_values_that_mean_nothing(source, value):
    save(
        source / "gtFine/train/aachen/aachen_000000_000019_gtFine_instanceIds.png",
        np.full((4, 6), value, np.uint16),
    )
    with pytest.raises(DataError, match=f"cityscapes aachen_000000/000019: value {value} is neither a class id nor"):
        cityscapes.label(cityscapes.frames(source, "train")[0])


def test_labels_of_another_kind(source):
    save(source / "gtFine/train/aachen/aachen_000000_000019_gtFine_instanceIds.png", np.zeros((4, 6), np.uint8))
    with pytest.raises(DataError, match="aachen_000000/000019: label is a PNG of mode L, must be I;16"):
        cityscapes.label(cityscapes.frames(source, "train")[0])


def test_missing_parts(source):
    (source / "gtFine/train/hamburg/hamburg_000000_000042_gtFine_instanceIds.png").unlink()
    with pytest.raises(DataError, match=r"cityscapes hamburg_000000/000042: has no label file \(1 such frames"):
        cityscapes.frames(source, "train")
    (source / "leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png").unlink()
    with pytest.raises(DataError, match="cityscapes aachen_000000/000019: has no image file"):
        cityscapes.frames(source, "train")
    with pytest.raises(MissingSplit, match=r"cityscapes val: nothing found in .*expected leftImg8bit/val/<city>"):
        cityscapes.frames(source, "val")


def test_one_image_in_two_folders(source):
    still(source, "train", "hamburg_000000_000042", OTHER)
    (source / "leftImg8bit/train/copy").mkdir()
    copy = source / "leftImg8bit/train/copy/hamburg_000000_000042_leftImg8bit.png"
    copy.write_bytes((source / "leftImg8bit/train/hamburg/hamburg_000000_000042_leftImg8bit.png").read_bytes())
    with pytest.raises(DataError, match=r"cityscapes hamburg_000000/000042: .* and .* are the same frame"):
        cityscapes.frames(source, "train")
