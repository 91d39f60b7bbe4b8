"""RobMOTS in its official layout, written here byte by byte; the expected arrays are typed, not computed."""

import numpy as np
import pytest
from official_bytes import compressed, photograph, through_a_shard, write

from post_platform.datasets import rob_mots
from post_platform.datasets.frame import MissingSplit
from post_platform.errors import DataError

TRUTH = "data/gt/rob_mots/train"
PERSON = np.array([[1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]])
CAR = np.array([[0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]])
EVERY = np.array([[0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 1, 0], [0, 0, 0, 0, 0, 0]])  # an ignore region, half under the car
CARS = np.array([[0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 1]])  # where cars are not judged
CLASSES = [[1, 1, 3, 3, 100, 0], [1, 1, 0, 0, 100, 103], [0, 0, 0, 0, 0, 103]]
INSTANCES = [[1001, 1001, 2001, 2001, 0, 0], [1001, 1001, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]]


def line(frame, track, category, mask):
    return f"{frame} {track} {category} 1.0 3 6 {compressed(mask)}\n"


KITTI = "".join(
    line(frame, *shape)
    for frame in (0, 2)
    for shape in ((1001, 1, PERSON), (2001, 3, CAR), (5, 100, EVERY), (6, 103, CARS))
)
TAO = "0 8 1 1.0 3 6 0 0 2 3\n0 9 100 1.0 3 6 4.2 -3 99 1.8\n" + line(1, 8, 1, PERSON)


def write_source(tmp_path):
    """Two benchmarks with a sequence of one name; an empty truth; a seqmap that ignores a class."""
    for benchmark, sequence, frames in (("kitti_mots", "0001", 3), ("kitti_mots", "0002", 2), ("tao", "0001", 2)):
        for frame in range(frames):
            photograph(tmp_path / f"RobMOTS/train/{benchmark}/{sequence}/{frame:06d}.jpg", 3, 6)
    write(tmp_path / TRUTH / "kitti_mots/data/0001.txt", KITTI)
    write(tmp_path / TRUTH / "kitti_mots/data/0002.txt", "")
    write(tmp_path / TRUTH / "kitti_mots/seqmap.txt", "0001 3 3 6\n0002 2 3 6 3\n")
    write(tmp_path / TRUTH / "kitti_mots/clsmap.txt", "1 3\n")
    write(tmp_path / TRUTH / "tao/data/0001.txt", TAO)
    write(tmp_path / TRUTH / "tao/seqmap.txt", "0001 2 3 6\n")
    write(tmp_path / TRUTH / "tao/clsmap.txt", "1\n2\n3\n")
    return tmp_path


@pytest.fixture
def source(tmp_path):
    return write_source(tmp_path)


def test_frames(source):
    refs = rob_mots.frames(source, "train")
    assert [ref.key for ref in refs] == [
        *(f"kitti_mots-0001/00000{frame}" for frame in range(3)),
        *(f"kitti_mots-0002/00000{frame}" for frame in range(2)),
        *(f"tao-0001/00000{frame}" for frame in range(2)),
    ]
    assert [ref.seconds_since_previous for ref in refs] == [None, 0.1, 0.1, None, 0.1, None, 0.033333]
    assert refs[0].source_video == "kitti_tracking/training/0001"  # as KITTI-MOTS and KITTI-STEP call it
    assert refs[5].native == {"benchmark": "tao", "sequence": "0001"}


@pytest.mark.parametrize(
    ("split", "benchmark", "sequence", "video"),
    [
        ("test", "kitti_mots", "0001", "kitti_tracking/testing/0001"),
        ("val", "mots_challenge", "MOTS20-02", "motchallenge/02"),
        ("val", "mots_challenge", "0009", "motchallenge/09"),
        ("train", "bdd_mots", "b1c66a42-6f7d68ca", "bdd100k/b1c66a42-6f7d68ca"),
        ("train", "youtube_vis", "ab12", "youtube_vis/ab12"),
        ("train", "davis_unsupervised", "dog", "davis/dog"),
        ("train", "ovis", "x", "ovis/x"),
    ],
)
def test_recordings_have_the_names_of_their_own_datasets(split, benchmark, sequence, video):
    assert rob_mots.source_video(split, benchmark, sequence) == video


def test_through_a_shard(source):
    frames = through_a_shard("rob_mots", "train", source)
    for key in ("kitti_mots-0001/000000", "kitti_mots-0001/000002"):
        assert frames[key].classes.tolist() == CLASSES
        assert frames[key].instances.tolist() == INSTANCES  # 1001 and 2001 stay two objects
        assert frames[key].meta["instances"] == {"1/1001": 1001, "3/2001": 2001}
    for key in ("kitti_mots-0001/000001", "kitti_mots-0002/000000"):
        assert not frames[key].classes.any()
        assert frames[key].meta["labelled"]


def test_boxes_are_void_or_ignored_where_no_mask_lies(source):
    frames = through_a_shard("rob_mots", "train", source)
    assert frames["tao-0001/000000"].classes.tolist() == [
        [255, 255, 0, 0, 100, 100],
        [255, 255, 0, 0, 100, 100],
        [255, 255, 0, 0, 0, 0],
    ]
    assert not frames["tao-0001/000000"].instances.any()
    assert frames["tao-0001/000001"].instances.tolist() == [[8, 8, 0, 0, 0, 0], [8, 8, 0, 0, 0, 0], [0] * 6]


def test_track_ids_that_do_not_fit_are_counted_over_the_sequence(source):
    write(source / TRUTH / "kitti_mots/data/0001.txt", line(0, 70000, 1, PERSON) + line(2, 0, 3, CAR))
    frames = through_a_shard("rob_mots", "train", source)
    assert frames["kitti_mots-0001/000000"].meta["instances"] == {"1/2": 70000}
    assert frames["kitti_mots-0001/000002"].meta["instances"] == {"3/1": 0}


def test_truth_beside_the_images_and_unlabelled_split(source):
    (source / "gt").mkdir()
    (source / TRUTH).rename(source / "gt/train")
    (source / "RobMOTS/train").rename(source / "train")
    assert through_a_shard("rob_mots", "train", source)["kitti_mots-0001/000000"].classes.tolist() == CLASSES
    photograph(source / "test/kitti_mots/0000/000000.png", 3, 6)
    assert [ref.label for ref in rob_mots.frames(source, "test")] == [None]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 1001 1 3 6 `0\n", "line 1: six columns, the format of KITTI-MOTS; RobMOTS has seven"),
        ("0 1 1 1.0 3\n", "is not 'timestep track class confidence height width rle'"),
        ("0 1 2 1.0 3 6 b0\n", "class 2 is not one of its benchmark's"),
        ("0 1 181 1.0 3 6 b0\n", "class 181 is not one of its benchmark's, nor an ignore region"),
        ("3 1 1 1.0 3 6 b0\n", "frame 3 has no image"),
        ("0 1 1 1.0 4 6 h0\n", "label is 4x6, image is 3x6"),
        ("0 1 1 1.0 3 6 a0\n", "track 1: the run lengths fill"),
        (line(0, 1, 1, PERSON) + line(0, 1, 3, CAR), "a track has two lines"),
        (line(0, 1, 1, PERSON) + line(0, 2, 1, PERSON), "the mask of track 2 overlaps another"),
        ("0 1 1 1.0 3 6 0 0 nan 3\n", "the box is not finite"),
        ("0 1 1 1.0 3 6 0 0 x 3\n", "is no box"),
    ],
)
def test_wrong_lines(source, text, message):
    write(source / TRUTH / "kitti_mots/data/0001.txt", text)
    with pytest.raises(DataError, match=f"^rob_mots kitti_mots-0001.*{message}") as error:
        [rob_mots.label(ref) for ref in rob_mots.frames(source, "train")]
    assert ("convert.py kitti_mots" in error.value.hint) == ("six columns" in message)


def test_missing_parts(source):
    write(source / TRUTH / "kitti_mots/seqmap.txt", "0001 2 3 6\n")
    with pytest.raises(DataError, match=r"kitti_mots-0001: image 2 is beyond the 2 frames of seqmap.txt"):
        rob_mots.frames(source, "train")
    write(source / TRUTH / "kitti_mots/seqmap.txt", "0003 2 3 6\n")
    with pytest.raises(DataError, match=r"sequence kitti_mots/0003 of seqmap.txt has no images"):
        rob_mots.frames(source, "train")
    write(source / TRUTH / "kitti_mots/seqmap.txt", "../x 2 3 6\n")
    with pytest.raises(DataError, match=r"seqmap.txt, line 1: '../x 2 3 6' is not"):
        rob_mots.frames(source, "train")
    write(source / TRUTH / "kitti_mots/seqmap.txt", "0001 3 3 6\n")
    write(source / TRUTH / "kitti_mots/clsmap.txt", "1 81\n")
    with pytest.raises(DataError, match=r"clsmap.txt lists '81', classes are 1..80"):
        rob_mots.frames(source, "train")
    (source / TRUTH / "kitti_mots/clsmap.txt").unlink()
    (source / TRUTH / "kitti_mots/data/0001.txt").unlink()
    with pytest.raises(DataError, match=r"kitti_mots-0001: no truth .*an empty file says that nothing is there"):
        rob_mots.frames(source, "train")
    photograph(source / "RobMOTS/train/ovis/a/000000.jpg", 3, 6)
    write(source / TRUTH / "kitti_mots/data/0001.txt", "")
    with pytest.raises(DataError, match="benchmark ovis has images but no truth"):
        rob_mots.frames(source, "train")
    with pytest.raises(MissingSplit, match="rob_mots val: nothing found"):
        rob_mots.frames(source, "val")
