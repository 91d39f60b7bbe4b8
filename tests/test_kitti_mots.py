"""KITTI-MOTS in its official layouts, written here byte by byte; the expected arrays are typed, not computed."""

import numpy as np
import pytest
from official_bytes import through_a_shard
from PIL import Image
from pycocotools import mask as coco_mask

from post_platform.datasets import kitti_mots
from post_platform.datasets.frame import MissingSplit
from post_platform.errors import DataError

# Sequence 0002, 4 x 6 pixels: a car with instance 0, car 1 and pedestrian 1 (same number, two objects), an ignore blob.
FRAME_0 = np.array(
    [
        [0, 1000, 1000, 0, 10000, 10000],
        [0, 1000, 1000, 0, 10000, 10000],
        [1001, 1001, 0, 2001, 0, 0],
        [0, 0, 0, 2001, 0, 0],
    ],
    np.uint16,
)
FRAME_1 = np.zeros((4, 6), np.uint16)  # nobody there
FRAME_2 = np.where(FRAME_0 == 2001, 2001, 0).astype(np.uint16)  # the pedestrian returns
CLASSES_0 = [[0, 1, 1, 0, 255, 255], [0, 1, 1, 0, 255, 255], [1, 1, 0, 2, 0, 0], [0, 0, 0, 2, 0, 0]]
INSTANCES_0 = [[0, 1, 1, 0, 0, 0], [0, 1, 1, 0, 0, 0], [2, 2, 0, 2, 0, 0], [0, 0, 0, 2, 0, 0]]
OTHER = np.full((3, 5), 1007, np.uint16)  # sequence 0006 has another size
LABELS = {"0002": [FRAME_0, FRAME_1, FRAME_2], "0006": [OTHER, OTHER, OTHER]}


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def save_image(path, height, width):
    save(path, np.full((height, width, 3), 90, np.uint8))


def text_lines(frame, label):
    """The official text: one line per object, run lengths compressed."""
    for value in (1000, 1001, 1007, 2001, 10000):
        if (label == value).any():
            rle = coco_mask.encode(np.asfortranarray((label == value).astype(np.uint8)))
            yield f"{frame} {value} {value // 1000} {label.shape[0]} {label.shape[1]} {rle['counts'].decode()}"


def write_source(tmp_path):
    """The official layout with PNG labels, val only, and a test sequence that shares its number with a val one."""
    for sequence, labels in LABELS.items():
        for frame, label in enumerate(labels):
            save_image(tmp_path / f"training/image_02/{sequence}/{frame:06d}.png", *label.shape)
            save(tmp_path / f"instances/{sequence}/{frame:06d}.png", label)
    save_image(tmp_path / "testing/image_02/0002/000000.png", 7, 9)
    (tmp_path / "training/image_02/0007").mkdir()  # an empty folder
    for junk in (
        "instances/__MACOSX/0002/000000.png",
        "instances/0002/._000000.png",
        "training/image_02/0002/._000001.png",
    ):
        (tmp_path / junk).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / junk).write_bytes(b"junk")
    return tmp_path


@pytest.fixture
def source(tmp_path):
    return write_source(tmp_path)


def write_text_labels(source):
    for sequence, labels in LABELS.items():
        lines = [line for frame, label in enumerate(labels) for line in text_lines(frame, label)]
        (source / "instances_txt").mkdir(exist_ok=True)
        (source / f"instances_txt/{sequence}.txt").write_text("\n".join(lines) + "\n")


def remove_pngs(source):
    for path in (source / "instances").glob("0*/*.png"):
        path.unlink()


def test_frames_are_in_time_order_with_the_official_rate(source):
    refs = kitti_mots.frames(source, "val")
    assert [ref.key for ref in refs] == [f"{s}/{f:06d}" for s in ("0002", "0006") for f in range(3)]
    assert [ref.seconds_since_previous for ref in refs] == [None, 0.1, 0.1, None, 0.1, 0.1]
    assert {ref.source_video for ref in refs} == {"kitti_tracking/training/0002", "kitti_tracking/training/0006"}


def test_png_label_by_hand(source):
    label = kitti_mots.label(kitti_mots.frames(source, "val")[0])
    assert label.classes.tolist() == CLASSES_0
    assert label.instances.tolist() == INSTANCES_0
    assert label.native_ids == {"1/1": 1000, "1/2": 1001, "2/2": 2001}
    assert (label.classes.dtype, label.instances.dtype) == (np.uint8, np.uint16)


def test_through_a_shard(source):
    frames = through_a_shard("kitti_mots", "val", source)
    assert frames["0002/000000"].classes.tolist() == CLASSES_0
    assert frames["0002/000000"].instances.tolist() == INSTANCES_0
    assert frames["0002/000002"].meta["instances"] == {"2/2": 2001}
    assert frames["0006/000001"].classes.tolist() == [[1] * 5] * 3
    assert frames["0006/000001"].instances.tolist() == [[8] * 5] * 3


def test_frame_without_objects_is_labelled(source):
    label = kitti_mots.label(kitti_mots.frames(source, "val")[1])
    assert not label.classes.any()
    assert not label.instances.any()


def test_text_labels_give_the_same_arrays(source):
    from_png = [kitti_mots.label(ref) for ref in kitti_mots.frames(source, "val")]
    write_text_labels(source)
    remove_pngs(source)
    refs = kitti_mots.frames(source, "val")
    assert all(isinstance(ref.label, tuple) for ref in refs)
    for ref, expected in zip(refs, from_png, strict=True):
        label = kitti_mots.label(ref)
        assert label.classes.tolist() == expected.classes.tolist()
        assert label.instances.tolist() == expected.instances.tolist()
        assert label.native_ids == expected.native_ids


def test_testing_is_unlabelled_and_another_video(source):
    (ref,) = kitti_mots.frames(source, "test")
    assert ref.label is None
    assert ref.source_video == "kitti_tracking/testing/0002"


def test_rearranged_tree(source):
    (source / "KITTI_MOTS/train").mkdir(parents=True)
    (source / "training/image_02").rename(source / "KITTI_MOTS/train/images")
    (source / "instances").rename(source / "KITTI_MOTS/train/instances")
    for folder in (source, source / "KITTI_MOTS"):
        assert len(kitti_mots.frames(folder, "val")) == 6


def test_seqmap_decides_the_split_and_its_last_frame_counts(source):
    (source / "train.seqmap").write_text("0006 empty 000000 000002\n")
    assert [ref.key for ref in kitti_mots.frames(source, "train")] == ["0006/000000", "0006/000001", "0006/000002"]
    (source / "train.seqmap").write_text("0006 empty 000000 000003\n")
    with pytest.raises(DataError, match=r"0006: 3 images \(000000 to 000002\).*seqmap says 4 \(000000 to 000003\)"):
        kitti_mots.frames(source, "train")
    (source / "train.seqmap").write_text("0011 empty 000000 000003\n")
    with pytest.raises(DataError, match=r"sequences 0011 of train.seqmap have no images"):
        kitti_mots.frames(source, "train")
    (source / "train.seqmap").write_text("0006 empty 0..3\n")
    with pytest.raises(DataError, match=r"train.seqmap, line 1"):
        kitti_mots.frames(source, "train")


def test_sequences_that_no_list_knows(source):
    with pytest.raises(
        MissingSplit, match=r"none of the official sequences 0000, 0001, 0003... is there; found 0002"
    ) as e:
        kitti_mots.frames(source, "train")
    assert "train.seqmap beside the labels" in e.value.hint


def test_missing_and_wrong_folders(tmp_path):
    with pytest.raises(DataError, match=r"source .*nowhere does not exist"):
        kitti_mots.frames(tmp_path / "nowhere", "val")
    with pytest.raises(MissingSplit, match=r"kitti_mots val: nothing found in .*expected training/image_02"):
        kitti_mots.frames(tmp_path, "val")


def test_incomplete_labels_are_refused(source):
    (source / "instances/0006/000001.png").unlink()
    with pytest.raises(DataError, match=r"0006/000001: has no label file \(1 such frames, 3 images, 2 labels\)"):
        kitti_mots.frames(source, "val")
    (source / "training/image_02/0002/000002.png").unlink()
    with pytest.raises(DataError, match="0002/000002: has no image file"):
        kitti_mots.frames(source, "val")
    remove_pngs(source)
    with pytest.raises(DataError, match="kitti_mots 0002: no label: neither instances/0002/"):
        kitti_mots.frames(source, "val")


def relabel(source, array):
    save(source / "instances/0002/000000.png", array)
    return kitti_mots.frames(source, "val")[0]


def test_unknown_class_names_the_value(source):
    with pytest.raises(DataError, match="kitti_mots 0002/000000: value 3005 has class 3, must be 1 car"):
        kitti_mots.label(relabel(source, np.where(FRAME_0 == 1000, 3005, FRAME_0).astype(np.uint16)))


def test_eight_bit_label_is_refused(source):
    with pytest.raises(DataError, match="0002/000000: label is a PNG of mode L, must be I;16"):
        kitti_mots.label(relabel(source, np.zeros((4, 6), np.uint8)))


def test_empty_label_file_is_not_an_empty_frame(source):
    (source / "instances/0002/000000.png").write_bytes(b"")
    with pytest.raises(DataError, match="0002/000000: label cannot be read"):
        kitti_mots.label(kitti_mots.frames(source, "val")[0])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 1000 1 4 6", "is not 'frame id class height width rle'"),
        ("0 1000 1 5 6 `0", "label is 5x6, image is 4x6"),
        ("0 1000 2 4 6 `0", "id 1000 and class 2 disagree"),
        ("0 1000 1 4 6 zzzzzz", "object 1000: 'zzzzzz' is not compressed run lengths"),
    ],
)
def test_broken_text_lines(source, line, message):
    write_text_labels(source)
    remove_pngs(source)
    path = source / "instances_txt/0002.txt"
    path.write_text(line + "\n")
    with pytest.raises(DataError, match=message):
        kitti_mots.label(kitti_mots.frames(source, "val")[0])


def test_overlapping_masks_and_foreign_frames(source):
    write_text_labels(source)
    remove_pngs(source)
    path = source / "instances_txt/0002.txt"
    (first, *_) = text_lines(0, FRAME_0)
    path.write_text(f"{first}\n{first.replace('1000', '1003', 1)}\n")
    with pytest.raises(DataError, match="the mask of object 1003 overlaps another"):
        kitti_mots.label(kitti_mots.frames(source, "val")[0])
    path.write_text(first.replace("0", "9", 1))
    with pytest.raises(DataError, match=r"0002.txt, line 1: frame '9' has no image"):
        kitti_mots.frames(source, "val")
