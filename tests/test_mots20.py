"""MOTS20 in its official layout, written here byte by byte; the expected arrays are typed, not computed."""

import numpy as np
import pytest
from official_bytes import compressed, photograph, save, through_a_shard, write

from post_platform.datasets import mots20
from post_platform.datasets.frame import MissingSplit
from post_platform.errors import DataError

INI = "[Sequence]\nname={name}\nimDir=img1\nframeRate={rate}\nseqLength={length}\nimWidth=5\nimHeight=3\nimExt=.jpg\n"
# Pedestrian with instance 0 and pedestrian 7; an ignore region on the right.
VALUES = [[2000, 2000, 0, 10000, 10000], [0, 2007, 2007, 0, 0], [0, 2007, 0, 0, 0]]
CLASSES = [[2, 2, 0, 255, 255], [0, 2, 2, 0, 0], [0, 2, 0, 0, 0]]
INSTANCES = [[1, 1, 0, 0, 0], [0, 8, 8, 0, 0], [0, 8, 0, 0, 0]]


def lines(frame):
    for value in (2000, 2007, 10000):
        yield f"{frame} {value} {value // 1000} 3 5 {compressed(np.array(VALUES) == value)}\n"


def write_source(tmp_path):
    """Two frame rates; the second frame is empty; a test sequence without `gt`."""
    for name, split, rate in (("MOTS20-02", "train", 30), ("MOTS20-05", "train", 14), ("MOTS20-01", "test", 30)):
        folder = tmp_path / "MOTS" / split / name
        for frame in (1, 2, 3):
            photograph(folder / f"img1/{frame:06d}.jpg", 3, 5)
        write(folder / "seqinfo.ini", INI.format(name=name, rate=rate, length=3))
        if split == "train":
            write(folder / "gt/gt.txt", "".join([*lines(1), *lines(3)]))
    (tmp_path / "MOTS/train/__MACOSX").mkdir()
    (tmp_path / "MOTS/train/MOTS20-02/img1/._000001.jpg").write_bytes(b"junk")
    return tmp_path


@pytest.fixture
def source(tmp_path):
    return write_source(tmp_path)


def test_frames_count_from_one_at_two_rates(source):
    refs = mots20.frames(source, "train")
    assert [ref.key for ref in refs] == [f"{s}/00000{f}" for s in ("MOTS20-02", "MOTS20-05") for f in (1, 2, 3)]
    assert [ref.seconds_since_previous for ref in refs] == [None, 0.033333, 0.033333, None, 0.071429, 0.071429]
    assert [ref.source_video for ref in refs[::3]] == ["motchallenge/02", "motchallenge/05"]
    assert mots20.frames(source / "MOTS", "train")[0].image == refs[0].image


def test_through_a_shard(source):
    frames = through_a_shard("mots20", "train", source)
    assert frames["MOTS20-05/000003"].classes.tolist() == CLASSES
    assert frames["MOTS20-05/000003"].instances.tolist() == INSTANCES
    assert frames["MOTS20-05/000003"].meta["instances"] == {"2/1": 2000, "2/8": 2007}
    assert not frames["MOTS20-02/000002"].classes.any()
    assert frames["MOTS20-02/000002"].meta["labelled"]


def test_the_other_archive_of_labels(source):
    for name, number in (("MOTS20-02", "0002"), ("MOTS20-05", "0005")):
        (source / f"MOTS/train/{name}/gt/gt.txt").unlink()
        for frame in (1, 2, 3):
            label = np.array(VALUES, np.uint16) if frame != 2 else np.zeros((3, 5), np.uint16)
            save(source / f"instances_motschallenge/{number}/{frame:06d}.png", label)
    frames = through_a_shard("mots20", "train", source)
    assert frames["MOTS20-02/000001"].classes.tolist() == CLASSES
    assert frames["MOTS20-02/000001"].instances.tolist() == INSTANCES
    (source / "instances_motschallenge/0005/000002.png").unlink()
    with pytest.raises(DataError, match="mots20 MOTS20-05/000002: has no label file"):
        mots20.frames(source, "train")


def test_test_is_unlabelled(source):
    assert {ref.label for ref in mots20.frames(source, "test")} == {None}
    assert (through_a_shard("mots20", "test", source)["MOTS20-01/000001"].classes == 255).all()


@pytest.mark.parametrize(
    ("ini", "message"),
    [
        ("", "seqinfo.ini is malformed"),
        ("[Sequence]\nframeRate=30\n", "seqinfo.ini is malformed: 'seqLength'"),
        ("[Sequence]\nframeRate=fast\nseqLength=3\n", "seqinfo.ini is malformed: could not convert"),
        ("[Sequence]\nframeRate=0\nseqLength=3\n", "says 3 frames at 0.0 per second"),
        ("[Sequence]\nframeRate=30\nseqLength=4\n", r"3 images \(000001 to 000003\) in .*expected 4"),
        ("[Sequence]\nframeRate=30\nseqLength=3\nimDir=../img1\n", "names the image folder '../img1'"),
    ],
)
def test_wrong_seqinfo(source, ini, message):
    write(source / "MOTS/train/MOTS20-02/seqinfo.ini", ini)
    with pytest.raises(DataError, match=f"^mots20 MOTS20-02: .*{message}"):
        mots20.frames(source, "train")


def test_missing_parts(source):
    (source / "MOTS/train/MOTS20-05/gt/gt.txt").unlink()
    with pytest.raises(DataError, match=r"MOTS20-05: no label: neither MOTS20-05/gt/gt.txt nor instances_mots.*/0005/"):
        mots20.frames(source, "train")
    with pytest.raises(MissingSplit, match="mots20 test: nothing found"):
        mots20.frames(source / "MOTS/train", "test")
    write(source / "MOTS/train/MOTS20-02/gt/gt.txt", "4 2000 2 3 5 `0\n")
    with pytest.raises(DataError, match=r"mots20 MOTS20-02: gt.txt, line 1: frame '4' has no image"):
        mots20.frames(source, "train")
