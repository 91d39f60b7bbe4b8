"""COCO panoptic in its official layouts, written here byte by byte; the expected arrays are typed, not computed."""

import io
import json
import zipfile

import numpy as np
import pytest
from official_bytes import through_a_shard
from PIL import Image

from post_platform.datasets import coco_panoptic
from post_platform.datasets.frame import MissingSplit
from post_platform.errors import DataError

# Segment ids R + 256 G + 65536 B: rug (category 200) 7, person 65538 (needs B), person 300 (needs G), crowd 9, void 0.
RUG, LATE, EARLY, CROWD, VOID = (7, 0, 0), (2, 0, 1), (44, 1, 0), (9, 0, 0), (0, 0, 0)
PIXELS = [[RUG, RUG, LATE, LATE], [EARLY, RUG, LATE, VOID], [EARLY, CROWD, CROWD, VOID]]
SEGMENTS = [
    {"id": 65538, "category_id": 1, "iscrowd": 0, "area": 3, "bbox": [2, 0, 2, 2]},
    {"id": 7, "category_id": 200, "iscrowd": 0, "area": 3, "bbox": [0, 0, 2, 2]},
    {"id": 300, "category_id": 1, "iscrowd": 0, "area": 2, "bbox": [0, 1, 1, 2]},
    {"id": 9, "category_id": 44, "iscrowd": 1, "area": 2, "bbox": [1, 2, 2, 1]},
]
CLASSES = [[200, 200, 1, 1], [1, 200, 1, 255], [1, 44, 44, 255]]
INSTANCES = [[0, 0, 2, 2], [1, 0, 2, 0], [1, 65535, 65535, 0]]
FIRST, GREY = "000000000139", "000000000285"


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(np.array(pixels, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def annotations(segments=SEGMENTS):
    both = (139, FIRST), (285, GREY)
    return {
        "images": [{"id": number, "file_name": f"{name}.jpg", "height": 3, "width": 4} for number, name in both],
        "annotations": [
            {"image_id": number, "file_name": f"{name}.png", "segments_info": segments} for number, name in both[::-1]
        ],
        "categories": [],
    }


def write_source(tmp_path):
    """The folders of the usual training tools; the second image is a grey JPEG."""
    for folder in ("val2017", "annotations", "panoptic_val2017"):
        (tmp_path / folder).mkdir()
    Image.fromarray(np.full((3, 4, 3), 80, np.uint8)).save(tmp_path / f"val2017/{FIRST}.jpg")
    Image.fromarray(np.full((3, 4), 80, np.uint8)).save(tmp_path / f"val2017/{GREY}.jpg")
    (tmp_path / "val2017/._000000000139.jpg").write_bytes(b"junk")
    (tmp_path / "annotations/panoptic_val2017.json").write_text(json.dumps(annotations()))
    for name in (FIRST, GREY):
        (tmp_path / f"panoptic_val2017/{name}.png").write_bytes(png(PIXELS))
    return tmp_path


@pytest.fixture
def source(tmp_path):
    return write_source(tmp_path)


def rewrite(source, content):
    (source / "annotations/panoptic_val2017.json").write_text(json.dumps(content))


def zip_labels(source):
    """The nested zip as it comes, junk and a name that would climb out of the folder included."""
    with zipfile.ZipFile(source / "annotations/panoptic_val2017.zip", "w") as archive:
        for name in (FIRST, GREY):
            archive.writestr(f"panoptic_val2017/{name}.png", png(PIXELS))
            archive.writestr(f"__MACOSX/panoptic_val2017/._{name}.png", b"junk")
            archive.writestr(f"__MACOSX/panoptic_val2017/{name}.png", b"junk")
        archive.writestr("../../escaped.png", b"junk")
    for path in (source / "panoptic_val2017").iterdir():
        path.unlink()
    (source / "panoptic_val2017").rmdir()


def test_label_by_hand(source):
    label = coco_panoptic.label(coco_panoptic.frames(source, "val")[0])
    assert label.classes.tolist() == CLASSES
    assert label.instances.tolist() == INSTANCES
    assert label.native_ids == {"1/1": 300, "1/2": 65538}


def test_through_a_shard(source):
    zip_labels(source)
    for frame in through_a_shard("coco_panoptic", "val", source).values():  # the grey photograph, too
        assert frame.image.shape == (3, 4, 3)
        assert frame.classes.tolist() == CLASSES
        assert frame.instances.tolist() == INSTANCES
        assert frame.meta["instances"] == {"1/1": 300, "1/2": 65538}


def test_every_image_is_a_sequence_of_one_frame(source):
    refs = coco_panoptic.frames(source, "val")
    assert [ref.key for ref in refs] == [f"{FIRST}/000000", f"{GREY}/000000"]
    assert {ref.seconds_since_previous for ref in refs} == {None}
    assert [ref.source_video for ref in refs] == [f"coco/{FIRST}", f"coco/{GREY}"]


def test_labels_beside_the_json(source):
    (source / "panoptic_val2017").rename(source / "annotations/panoptic_val2017")
    assert coco_panoptic.label(coco_panoptic.frames(source, "val")[0]).classes.tolist() == CLASSES


def test_nested_zip_is_read_in_place(source):
    zip_labels(source)
    before = sorted(source.rglob("*"))
    for ref in coco_panoptic.frames(source, "val"):
        assert coco_panoptic.label(ref).classes.tolist() == CLASSES
    assert sorted(source.rglob("*")) == before
    assert not (source.parent.parent / "escaped.png").exists()


def test_test_images_are_unlabelled(source):
    (source / "val2017").rename(source / "test2017")
    assert [(ref.key, ref.label) for ref in coco_panoptic.frames(source, "test")] == [
        (f"{FIRST}/000000", None),
        (f"{GREY}/000000", None),
    ]


def test_segment_missing_from_the_json(source):
    rewrite(source, annotations(SEGMENTS[1:]))
    with pytest.raises(
        DataError, match=f"coco_panoptic {FIRST}/000000: segment 65538 of the label PNG is not in the JSON"
    ):
        coco_panoptic.label(coco_panoptic.frames(source, "val")[0])


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        ([{**SEGMENTS[0], "category_id": 12}], "segment 65538 has unknown category 12"),
        ([SEGMENTS[0], SEGMENTS[0]], "segment ids must be unique"),
        ([{**SEGMENTS[0], "id": 0}], "segment ids must be unique and in 1..16777215"),
        ([{"id": 4}], "malformed: KeyError"),
        ("none", "malformed: TypeError"),
    ],
)
def test_broken_segments(source, segments, message):
    rewrite(source, annotations(segments))
    with pytest.raises(DataError, match=message):
        coco_panoptic.frames(source, "val")


def test_missing_parts(source):
    (source / f"panoptic_val2017/{GREY}.png").unlink()
    with pytest.raises(DataError, match=f"label '{GREY}.png' is not in"):
        coco_panoptic.frames(source, "val")
    (source / f"panoptic_val2017/{GREY}.png").write_bytes(png(PIXELS))
    (source / f"val2017/{FIRST}.jpg").unlink()
    with pytest.raises(DataError, match=f"1 of 2 images are not in .*first '{FIRST}.jpg'"):
        coco_panoptic.frames(source, "val")
    with pytest.raises(MissingSplit, match="coco_panoptic train: nothing found"):
        coco_panoptic.frames(source, "train")
    (source / "annotations/panoptic_val2017.json").write_text("{")
    with pytest.raises(DataError, match="is not JSON"):
        coco_panoptic.frames(source, "val")
    rewrite(source, {"annotations": []})
    with pytest.raises(DataError, match="is it the panoptic file"):
        coco_panoptic.frames(source, "val")


def test_paths_in_the_json_cannot_leave_the_folders(source):
    content = annotations()
    content["annotations"][0]["file_name"] = "../annotations/panoptic_val2017.json"
    rewrite(source, content)
    with pytest.raises(DataError, match=r"label '\.\./annotations/panoptic_val2017.json' is not in"):
        coco_panoptic.frames(source, "val")


def test_zip_that_is_none(source):
    zip_labels(source)
    (source / "annotations/panoptic_val2017.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match="cannot be opened"):
        coco_panoptic.frames(source, "val")
