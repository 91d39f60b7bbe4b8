"""Cityscapes-VPS in its official layout, written here byte by byte; the expected arrays are typed, not computed."""

import json

import numpy as np
import pytest
from PIL import Image

from post_platform.datasets import cityscapes_vps
from post_platform.datasets.frame import MissingSplit
from post_platform.errors import DataError
from post_platform.shards import record
from post_platform.shards.frame import encode_frame

ROAD, SKY, CAR, PERSON, BUS = (128, 64, 128), (70, 130, 180), (0, 0, 142), (220, 20, 60), (0, 60, 100)
BLACK, GROUND = (0, 0, 0), (81, 0, 81)
# Car 26000 (object 0) covers a pixel of road; the bus has no object, one person has the value of a group; object 26007
# lies on road alone; black and the colour of a class that is not evaluated are void.
COLOURS = [
    [ROAD, ROAD, CAR, CAR, SKY, SKY],
    [ROAD, CAR, CAR, CAR, PERSON, PERSON],
    [BUS, BUS, CAR, PERSON, PERSON, ROAD],
    [BUS, ROAD, ROAD, ROAD, BLACK, GROUND],
]
OBJECTS = [
    [7, 7, 26000, 26000, 23, 23],
    [26000, 26000, 26000, 26000, 24003, 24003],
    [0, 28, 26000, 24003, 24, 7],
    [28, 26007, 26007, 7, 0, 6],
]
CLASSES = [
    [0, 0, 13, 13, 10, 10],
    [13, 13, 13, 13, 11, 11],
    [255, 255, 13, 11, 255, 0],
    [255, 0, 0, 0, 255, 255],
]
INSTANCES = [
    [0, 0, 1, 1, 0, 0],
    [1, 1, 1, 1, 4, 4],
    [0, 0, 1, 4, 0, 0],
    [0, 0, 0, 0, 0, 0],
]
NATIVE_IDS = {"13/1": 13000, "11/4": 11003}
FIRST = ["0005_0026_frankfurt_000000_000284", "0005_0027_frankfurt_000000_000289", "0005_0028_frankfurt_000000_000294"]
SECOND = [f"0010_00{55 + n}_lindau_000003_0000{4 + 5 * n:02d}" for n in range(6)]
FOREIGN = "0011_0061_munster_000007_000004"
ORIGINAL = FIRST[2]


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array)).save(path)


def image(folder, name):
    kind = "leftImg8bit" if name == ORIGINAL else "newImg8bit"
    save(folder / f"img/{name}_{kind}.png", np.full((4, 6, 3), 90, np.uint8))


def annotate(folder, name, colours=COLOURS, objects=OBJECTS):
    """The snippet's original frame keeps the names and the alpha channel that Cityscapes gave its label."""
    colours, objects = np.array(colours, np.uint8), np.array(objects, np.uint16)
    if name == ORIGINAL:
        save(folder / f"cls/{name}_gtFine_color.png", np.dstack([colours, np.full(colours.shape[:2], 255, np.uint8)]))
        save(folder / f"inst/{name}_gtFine_instanceIds.png", objects)
    else:
        save(folder / f"cls/{name}_final_mask.png", colours)
        save(folder / f"inst/{name}_original_image_instance_greyscale.png", objects)


def list_images(source, names, kind="im", split="val"):
    images = [{"id": name, "file_name": f"{name}_newImg8bit.png"} for name in names]
    (source / f"panoptic_{kind}_{split}_city_vps.json").write_text(json.dumps({"images": images}))


def write_source(tmp_path):
    """Val: a snippet with its original image, one without, and a frame that the split's JSON does not list."""
    for name in (*FIRST, *SECOND, FOREIGN):
        image(tmp_path / "val", name)
        annotate(tmp_path / "val", name)
    list_images(tmp_path, [*SECOND, *FIRST])
    image(tmp_path / "test", ORIGINAL)
    save(tmp_path / "val/img_all/frankfurt_000000_000275_leftImg8bit.png", np.zeros((4, 6, 3), np.uint8))
    (tmp_path / f"val/img/._{FIRST[0]}_newImg8bit.png").write_bytes(b"junk")
    return tmp_path


@pytest.fixture
def source(tmp_path):
    return write_source(tmp_path)


def test_label_by_hand(source):
    for ref in cityscapes_vps.frames(source, "val"):
        label = cityscapes_vps.label(ref)
        assert label.classes.tolist() == CLASSES
        assert label.instances.tolist() == INSTANCES
        assert label.native_ids == NATIVE_IDS


def test_the_json_says_which_frames_the_split_has(source, caplog):
    refs = cityscapes_vps.frames(source, "val")
    assert [ref.key for ref in refs] == [
        *("0005/000026", "0005/000027", "0005/000028"),
        *("0010/000055", "0010/000056", "0010/000057", "0010/000058", "0010/000059", "0010/000060"),
    ]
    assert "1 frames in val/img are not of the split" in caplog.text
    assert [ref.seconds_since_previous for ref in refs[:4]] == [None, 0.294118, 0.294118, None]
    assert refs[0].native == {"image_id": "0005_0026_frankfurt_000000_000284"}
    (source / "panoptic_im_val_city_vps.json").rename(source / "panoptic_gt_val_city_vps.json")
    assert cityscapes_vps.frames(source, "val") == refs


def test_the_snippet_is_that_of_cityscapes(source):
    refs = cityscapes_vps.frames(source, "val")
    assert {ref.source_video for ref in refs[:3]} == {"cityscapes/frankfurt_000000_000294"}  # *_leftImg8bit.png
    assert {ref.source_video for ref in refs[3:]} == {"cityscapes/lindau_000003_000019"}  # the fourth of six


def test_without_json_the_folder_is_the_split(source):
    (source / "panoptic_im_val_city_vps.json").unlink()
    with pytest.raises(DataError, match=r"cityscapes_vps 0011: 1 of 6 labelled frames, no image is called"):
        cityscapes_vps.frames(source, "val")
    (source / f"val/img/{FOREIGN}_newImg8bit.png").unlink()
    with pytest.raises(DataError, match="cityscapes_vps 0011/000061: has no image file"):
        cityscapes_vps.frames(source, "val")
    for folder, kind in (("cls", "final_mask"), ("inst", "original_image_instance_greyscale")):
        (source / f"val/{folder}/{FOREIGN}_{kind}.png").unlink()
    assert len(cityscapes_vps.frames(source, "val")) == 9


def test_test_is_unlabelled(source):
    (ref,) = cityscapes_vps.frames(source, "test")
    assert (ref.key, ref.label) == ("0005/000028", None)


def test_from_official_bytes_to_decoded_shard(source):
    for ref in cityscapes_vps.frames(source, "val"):
        data, _, _ = encode_frame("cityscapes_vps", "val", ref, lossless=False)
        decoded = record.decode(data)
        assert decoded.classes.tolist() == CLASSES
        assert decoded.instances.tolist() == INSTANCES
        assert decoded.meta["instances"] == NATIVE_IDS
        assert decoded.meta["native"] == ref.native


def test_of_two_equally_frequent_colours_the_lower_number_counts(source):
    """R + 256 G + 65536 B of person is 3937500, of car 9306112; of bus and road it is road's, so there is no object."""
    colours, objects = np.full((4, 6, 3), SKY, np.uint8), np.full((4, 6), 23, np.uint16)
    colours[0, :4], objects[0, :4] = [CAR, CAR, PERSON, PERSON], 26001
    colours[1, :2], objects[1, :2] = [ROAD, CAR], 27002
    annotate(source / "val", FIRST[0], colours, objects)
    label = cityscapes_vps.label(cityscapes_vps.frames(source, "val")[0])
    assert label.classes[:2].tolist() == [[11, 11, 11, 11, 10, 10], [0, 255, 10, 10, 10, 10]]
    assert label.instances[:2].tolist() == [[2, 2, 2, 2, 0, 0], [0, 0, 0, 0, 0, 0]]


def test_colours_and_sizes_that_cannot_be(source):
    annotate(source / "val", FIRST[0], np.full((4, 6, 3), (1, 2, 3)))
    annotate(source / "val", FIRST[1], objects=np.zeros((4, 7)))
    first, second, _ = cityscapes_vps.frames(source, "val")[:3]
    with pytest.raises(DataError, match=r"cityscapes_vps 0005/000026: .* has colour \(1, 2, 3\), which no class has"):
        cityscapes_vps.label(first)
    with pytest.raises(DataError, match=r"0005/000027: .*_final_mask.png and .*_greyscale.png are 4x6 and 4x7"):
        cityscapes_vps.label(second)
    save(source / f"val/inst/{FIRST[0]}_original_image_instance_greyscale.png", np.zeros((4, 6), np.uint8))
    annotate(source / "val", FIRST[1])
    with pytest.raises(DataError, match="0005/000026: label is a PNG of mode L, must be I;16"):
        cityscapes_vps.label(first)


def test_missing_parts(source):
    (source / f"val/inst/{FIRST[0]}_original_image_instance_greyscale.png").unlink()
    with pytest.raises(DataError, match=r"cityscapes_vps 0005/000026: has no file in .*val/inst"):
        cityscapes_vps.frames(source, "val")
    (source / f"val/cls/{FIRST[0]}_final_mask.png").unlink()
    with pytest.raises(DataError, match="cityscapes_vps 0005/000026: has no label file"):
        cityscapes_vps.frames(source, "val")
    (source / f"val/img/{SECOND[1]}_newImg8bit.png").unlink()
    with pytest.raises(DataError, match=rf"0010/000056: val/img has no image {SECOND[1]}, which the split's JSON"):
        cityscapes_vps.frames(source, "val")
    with pytest.raises(MissingSplit, match=r"cityscapes_vps train: nothing found in .*expected train/img"):
        cityscapes_vps.frames(source, "train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("{}", "is malformed: KeyError"),
        ('{"images": [3]}', "is malformed: TypeError"),
        ('{"images": []}', "must list images, each once"),
        ('{"images": [{"id": "frankfurt_000000_000294"}]}', "must list images, each once"),
    ],
)
def test_broken_json(source, content, message):
    (source / "panoptic_im_val_city_vps.json").write_text(content)
    with pytest.raises(DataError, match=f"cityscapes_vps val: .*{message}"):
        cityscapes_vps.frames(source, "val")


def test_one_frame_twice(source):
    image(source / "val", FIRST[0].replace("frankfurt", "lindau"))
    with pytest.raises(DataError, match=r"cityscapes_vps 0005/000026: .*frankfurt.* and .*lindau"):
        cityscapes_vps.frames(source, "val")
