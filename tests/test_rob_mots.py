"""RobMOTS in its official layout, written here byte by byte; the expected arrays are typed, not computed."""

import numpy as np
import pytest
import trackeval
from official_bytes import compressed, photograph, through_a_shard, write
from scored import scores

from post_platform.datasets import rob_mots
from post_platform.datasets.frame import MissingSplit
from post_platform.errors import DataError
from post_platform.metrics.results import read_results

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
# Boxes come without the image's size; with it they are read as well.
TAO = "0 8 1 1.0 0 0 2 3\n0 9 100 1.0 3 6 4.2 -3 99 1.8\n" + line(1, 8, 1, PERSON)


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


def official(truth, trackers, benchmark):
    """TrackEval's own reader of a benchmark."""
    return trackeval.datasets.RobMOTS({
        "PRINT_CONFIG": False, "TRACKERS_TO_EVAL": ["ours"], "GT_FOLDER": str(truth),
        "TRACKERS_FOLDER": str(trackers), "SPLIT_TO_EVAL": "train", "SUB_BENCHMARK": benchmark,
    })  # fmt: skip


def test_boxes_as_trackeval_reads_them(source):
    write(source / TRUTH / "tao/data/0001.txt", "0 8 1 1.0 0 0 2 3\n0 9 100 1.0 4 0 6 2\n")
    write(source / "trackers/train/ours/data/tao/0001.txt", "")
    raw = official(source / "data/gt/rob_mots", source / "trackers", "tao").get_raw_seq_data("ours", "0001")
    expected = np.zeros((3, 6), int)
    for (x0, y0, x1, y1), category in zip(raw["gt_dets"][0].astype(int), raw["gt_classes"][0], strict=True):
        expected[y0:y1, x0:x1] = category if category >= 100 else 255
    assert expected[0].tolist() == [255, 255, 0, 0, 100, 100]
    frame = through_a_shard("rob_mots", "train", source)["tao-0001/000000"]
    assert frame.classes.tolist() == expected.tolist()


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
        ("0 1 1 1.0 3 6 0 0 nan 3\n", "'0 0 nan 3' is no box 'x0 y0 x1 y1'"),
        ("0 1 1 1.0 0 0 x 3\n", "'0 0 x 3' is no box"),
        ("0 1 1 1.0 3 0 2 3\n", "'3 0 2 3' is no box"),
        ("0 1 1 1.0 0 0 1e30 3\n", "'0 0 1e30 3' is no box"),
        ("0 1 1 high 3 6 b0\n", "line 1: the confidence is 'high'"),
        ("0 1 1 nan 3 6 b0\n", "line 1: the confidence is 'nan'"),
        ("0 1 1 1.0 -3 6 b0\n", "line 1: size -3x6, must be 1 to 67108864 pixels"),
        ("0 1 1 1.0 9999999999 9999999999 b0\n", "line 1: size 9999999999x9999999999"),
    ],
)
def test_wrong_lines(source, text, message):
    write(source / TRUTH / "kitti_mots/data/0001.txt", text)
    with pytest.raises(DataError, match=f"^rob_mots kitti_mots-0001.*{message}") as error:
        [rob_mots.label(ref) for ref in rob_mots.frames(source, "train")]
    assert ("convert.py kitti_mots" in error.value.hint) == ("six columns" in message)


def test_an_image_that_the_seqmap_counts_is_missing(source):
    (source / "RobMOTS/train/kitti_mots/0001/000001.jpg").unlink()
    with pytest.raises(
        DataError, match=r"^rob_mots kitti_mots-0001/000001: has no image \(2 of the 3 frames of seqmap"
    ):
        rob_mots.frames(source, "train")


@pytest.mark.parametrize("text", ["", "0001 1000000 3 6\n", "0001 3 3 6 car\n"])
def test_wrong_seqmap(source, text):
    write(source / TRUTH / "kitti_mots/seqmap.txt", text)
    with pytest.raises(DataError, match=r"^rob_mots train/kitti_mots: seqmap.txt"):
        rob_mots.frames(source, "train")


def square(y, x):
    mask = np.zeros((40, 60), int)
    mask[y : y + 10, x : x + 10] = 1
    return mask


def shown(frame, track, category, mask):
    return f"{frame} {track} {category} 1.0 40 60 {compressed(mask)}\n"


@pytest.mark.parametrize("region", [100, 101, 103])  # of every class, of persons, of cars
@pytest.mark.parametrize("ignored", ["", " 1", " 3", " 1 3"])
def test_ignored_classes_and_regions_score_as_in_trackeval(tmp_path, ignored, region):
    """A found person, a spurious one, a missed car, a spurious one, and one in an ignore region."""
    truth, pred = tmp_path / "gt/train/kitti_mots", tmp_path / "trackers/train/ours/data"
    for name in ("0001", "0002"):
        lines = [(shown(t, 1, 1, square(2, t)), shown(t, 2, 3, square(2, 30)), shown(t, 9, region, square(28, 0)))
                 for t in range(3)]  # fmt: skip
        write(truth / f"data/{name}.txt", "".join(map("".join, lines)))
        found = [(1, 1, lambda t: square(2, t)), (2, 1, lambda t: square(20, 45)), (3, 3, lambda t: square(2, 38)),
                 (4, 3, lambda t: square(28, 1))]  # fmt: skip
        write(pred / f"kitti_mots/{name}.txt", "".join(shown(t, n, c, at(t)) for t in range(3) for n, c, at in found))
    write(truth / "seqmap.txt", f"0001 3 40 60{ignored}\n0002 3 40 60\n")
    write(truth / "clsmap.txt", "1 3\n")
    evaluator = trackeval.Evaluator({
        "PRINT_RESULTS": False, "PRINT_CONFIG": False, "TIME_PROGRESS": False, "OUTPUT_SUMMARY": False,
        "OUTPUT_DETAILED": False, "PLOT_CURVES": False, "LOG_ON_ERROR": None,
    })  # fmt: skip
    dataset = official(tmp_path / "gt", tmp_path / "trackers", "kitti_mots")
    theirs, _ = evaluator.evaluate([dataset], [trackeval.metrics.HOTA()])
    ours = scores("rob_mots", tmp_path / "gt/train", pred.parent)
    for name in ("person", "car"):
        expected = theirs["RobMOTS.kitti_mots"]["ours"]["COMBINED_SEQ"][name]["HOTA"]
        assert ours[f"HOTA/{name}"] == pytest.approx(expected["HOTA"].mean(), abs=1e-9)
        assert ours[f"DetA/{name}"] == pytest.approx(expected["DetA"].mean(), abs=1e-9)
    # Of 12 objects and results, 6 are one, without the spurious ones of the sequence where they are ignored.
    assert ours["DetA/person"] == pytest.approx(6 / 9 if "1" in ignored else 6 / 12, abs=1e-9)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 1 1 1.0 9999999999 9999999999 b0\n", "size 9999999999x9999999999"),
        ("0 1 1 1.0 -3 6 b0\n", "size -3x6"),
        ("0 1 1 x 3 6 b0\n", "the confidence is 'x'"),
        ("0 1 1 1.0 0 0 2 2\n", "a box; truth and results of boxes are not scored"),
        ("-1 1 1 1.0 3 6 b0\n", "line 1, frame -1, track 1: the truth's seqmap.txt has frames 0..2"),
        (line(0, 1, 1, PERSON) + line(0, 1, 3, CAR), "line 2, frame 0, track 1: the frame has this track twice"),
    ],
)
def test_wrong_results(source, text, message):
    write(source / "results/data/kitti_mots/0001.txt", text)
    write(source / "results/data/kitti_mots/._0001.txt", "junk")
    with pytest.raises(DataError, match=message):
        list(read_results("rob_mots", source / TRUTH, source / "results", ["kitti_mots-0001"]).frames)


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
