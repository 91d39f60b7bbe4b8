"""VIPSeg in its official layout, written here byte by byte; the expected arrays are typed, not computed."""

import numpy as np
import pytest
from official_bytes import photograph, save, through_a_shard, write

from post_platform.datasets import vipseg
from post_platform.datasets.frame import MissingSplit
from post_platform.errors import DataError

# Void; class 124 below the values of things: a thing without identity; person 0 (6100) and 99, door 0 (300), 124's
# instance 0 (12400); stuff 1 and 2.
VALUES = [[0, 124, 6100, 6100], [300, 12400, 6199, 2], [300, 1, 1, 2]]
CLASSES = [[255, 123, 60, 60], [2, 123, 60, 1], [2, 0, 0, 1]]
INSTANCES = [[0, 65535, 1, 1], [1, 1, 100, 0], [1, 0, 0, 0]]
WRONG = "353_-5sqmCF8OFU"


def write_source(tmp_path):
    """Names in steps of 3; the video with the known error; a test video without masks."""
    for split, video in (("val", "12_abc"), ("val", WRONG), ("test", "99_x")):
        for frame in (1255, 1258, 1261):
            photograph(tmp_path / f"VIPSeg/imgs/{video}/{frame:08d}.jpg", 3, 4)
            if split != "test":
                save(tmp_path / f"VIPSeg/panomasks/{video}/{frame:08d}.png", np.array(VALUES, np.uint16))
    wrong = np.array(VALUES, np.uint16)
    wrong[0, 0] = 200
    save(tmp_path / f"VIPSeg/panomasks/{WRONG}/00001258.png", wrong)
    write(tmp_path / "VIPSeg/val.txt", f"12_abc\n{WRONG}\n")
    write(tmp_path / "VIPSeg/test.txt", "99_x\n")
    (tmp_path / "VIPSeg/imgs/12_abc/.DS_Store").write_bytes(b"junk")
    return tmp_path


@pytest.fixture
def source(tmp_path):
    return write_source(tmp_path)


def test_steps_of_three_are_no_gaps(source):
    refs = vipseg.frames(source, "val")
    assert [ref.key for ref in refs[:3]] == ["12_abc/001255", "12_abc/001258", "12_abc/001261"]
    assert [ref.seconds_since_previous for ref in refs] == [None, 0.2, 0.2, None, 0.2, 0.2]
    assert refs[0].source_video == "vipseg/12_abc"
    assert {ref.label for ref in vipseg.frames(source / "VIPSeg", "test")} == {None}


def test_through_a_shard(source):
    frames = through_a_shard("vipseg", "val", source)
    for key in ("12_abc/001255", f"{WRONG}/001258"):  # 200 is void in that video, as 0 is
        assert frames[key].classes.tolist() == CLASSES
        assert frames[key].instances.tolist() == INSTANCES
        assert frames[key].meta["instances"] == {"60/1": 6100, "60/100": 6199, "2/1": 300, "123/1": 12400}
    assert (through_a_shard("vipseg", "test", source)["99_x/001255"].classes == 255).all()


def test_eight_bit_mask_and_thing_without_instance(source):
    save(source / "VIPSeg/panomasks/12_abc/00001255.png", np.array([[0, 61, 1, 1]] * 3, np.uint8))
    frame = through_a_shard("vipseg", "val", source)["12_abc/001255"]
    assert frame.classes[0].tolist() == [255, 60, 0, 0]
    assert frame.instances[0].tolist() == [0, 65535, 0, 0]


def test_version_of_720_lines(source):
    (source / "VIPSeg/imgs").rename(source / "VIPSeg/images")
    (source / "VIPSeg").rename(source / "VIPSeg_720P")
    assert len(vipseg.frames(source, "val")) == 6


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (200, "value 200 is an instance of class 2, which is stuff"),
        (12500, r"value 12500 has class 125, must be 1..124"),
        (65535, "value 65535 has class 655"),
    ],
)
def test_illegal_values(source, value, message):
    save(source / "VIPSeg/panomasks/12_abc/00001255.png", np.full((3, 4), value, np.uint16))
    with pytest.raises(DataError, match=f"^vipseg 12_abc/001255: {message}"):
        vipseg.label(vipseg.frames(source, "val")[0])


def test_missing_parts(source):
    (source / "VIPSeg/panomasks/12_abc/00001258.png").unlink()
    with pytest.raises(DataError, match="vipseg 12_abc/001258: has no label file"):
        vipseg.frames(source, "val")
    write(source / "VIPSeg/val.txt", "12_abc\n12_abc\n")
    with pytest.raises(DataError, match=r"val.txt lists '12_abc' twice"):
        vipseg.frames(source, "val")
    write(source / "VIPSeg/val.txt", "../secret\n")
    with pytest.raises(DataError, match=r"lists '../secret', which is no video's name"):
        vipseg.frames(source, "val")
    write(source / "VIPSeg/val.txt", "13_gone\n")
    with pytest.raises(DataError, match=r"vipseg 13_gone: val.txt lists it, but there is no image"):
        vipseg.frames(source, "val")
    with pytest.raises(MissingSplit, match="vipseg train: nothing found"):
        vipseg.frames(source, "train")
