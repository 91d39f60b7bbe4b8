"""What the writers of MOTS and STEP results put into their files; every expected line, id and pixel is typed."""

import shutil

import numpy as np
import pytest
import test_mots20
import trackeval
from official_bytes import compressed, write
from PIL import Image

from post_platform.errors import DataError
from post_platform.metrics.contingency import frame_table, merge
from post_platform.metrics.results import ResultFrame, read_results, write_results
from post_platform.metrics.score import score

# Pedestrian 7 and 65535, a person without identity; void and background. Cars 0 and 3 are for KITTI-MOTS alone.
CLASSES = np.array([[2, 2, 0, 255], [2, 0, 1, 1]], np.uint8)
TRACKS = np.array([[8, 8, 0, 0], [65535, 0, 1, 4]], np.uint16)
NATIVE = {"2/8": 2007, "1/1": 1000, "1/4": 1003}
LINES = [  # runs down the columns, a digit each; 7 has 0, 1, 1, 1, 5: the last two less those two places before
    "5 1000 1 2 4 512",
    "5 1003 1 2 4 71",
    "5 2007 2 2 4 01104",
]


def scores(dataset, truth, predictions):
    results = read_results(dataset, truth, predictions)
    return score(merge([frame_table(dataset, **vars(pair)) for pair in results.frames]), results.contract)


def test_the_lines_of_a_label(tmp_path):
    """Native ids, ascending; nothing for void, background and the pixel without identity."""
    write_results("kitti_mots", [ResultFrame("0002", 5, CLASSES, TRACKS, {"instances": NATIVE})], tmp_path / "new")
    assert (tmp_path / "new/0002.txt").read_text().splitlines() == LINES


def test_predicted_tracks_are_numbered_as_they_appear(tmp_path):
    """By class from class * 1000; a track keeps its number, also after an absence."""
    tracks = [[[70, 70, 0, 0], [70, 0, 9, 4]], [[0, 0, 0, 0], [0, 0, 4, 4]], [[6, 70, 0, 0], [6, 0, 9, 9]]]
    frames = [ResultFrame("0002", frame, CLASSES, np.array(array), {}) for frame, array in enumerate(tracks)]
    write_results("kitti_mots", frames, tmp_path)
    found = [line.split()[:3] for line in (tmp_path / "0002.txt").read_text().splitlines()]
    assert found == [
        ["0", "1000", "1"], ["0", "1001", "1"], ["0", "2000", "2"],
        ["1", "1000", "1"],
        ["2", "1001", "1"], ["2", "2000", "2"], ["2", "2001", "2"],
    ]  # fmt: skip


def test_a_sequence_without_objects_has_its_file(tmp_path):
    nothing = np.zeros((2, 4), np.uint8)
    frames = [ResultFrame(name, 1, nothing, nothing, {}) for name in ("MOTS20-02", "MOTS20-05")]
    write_results("mots20", frames, tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"MOTS20-02.txt": "", "MOTS20-05.txt": ""}


def test_more_than_a_thousand_tracks_of_a_class(tmp_path):
    """Ids stay different, also between classes; TrackEval takes them too, and counts the same objects as we do."""
    tracks = np.arange(1, 2241).reshape(40, 56)
    classes = np.where(tracks <= 1120, 1, 2).astype(np.uint8)
    write_results("kitti_mots", [ResultFrame("0002", 0, classes, tracks, {})], tmp_path / "ours/data")
    lines = [line.split() for line in (tmp_path / "ours/data/0002.txt").read_text().splitlines()]
    assert [line[1:3] for line in lines[:1001:1000]] == [["1000", "1"], ["2000", "2"]]
    assert len({line[1] for line in lines}) == 2240
    cars, people = ([int(line[1]) for line in lines if line[2] == name] for name in "12")
    assert (cars[:1000], people[:1000]) == (list(range(1000, 2000)), list(range(2000, 3000)))
    assert min(cars[1000:] + people[1000:]) >= 100_000

    one, two = np.zeros((40, 56), int), np.zeros((40, 56), int)
    one[0, 0], two[39, 55] = 1, 1  # the first car, and the last pedestrian, whose id is beyond the thousands
    truth = f"0 1000 1 40 56 {compressed(one)}\n0 2000 2 40 56 {compressed(two)}\n"
    write(tmp_path / "gt/0002.txt", truth)
    ours = scores("kitti_mots", tmp_path / "gt", tmp_path / "ours/data")
    official = trackeval.datasets.KittiMOTS({
        "PRINT_CONFIG": False, "TRACKERS_TO_EVAL": ["ours"], "SEQ_INFO": {"0002": 1},
        "GT_FOLDER": str(tmp_path / "gt"), "TRACKERS_FOLDER": str(tmp_path), "GT_LOC_FORMAT": "{gt_folder}/{seq}.txt",
    })  # fmt: skip
    raw = official.get_raw_seq_data("ours", "0002")
    for name in ("car", "pedestrian"):
        data = official.get_preprocessed_seq_data(raw, name)
        theirs = trackeval.metrics.CLEAR({"PRINT_CONFIG": False}).eval_sequence(data)
        assert (theirs["CLR_TP"], theirs["CLR_FP"], theirs["MOTA"]) == (1, 1119, -1118.0)
        assert ours[f"MOTSA/{name}"] == -1118.0


def test_truth_that_was_not_unpacked_is_not_a_sequence_in_which_nothing_is(tmp_path):
    """Else a result that says nothing would be perfect there."""
    truth = test_mots20.write_source(tmp_path) / "MOTS/train"
    for name in ("MOTS20-02", "MOTS20-05"):
        write(tmp_path / f"pred/{name}.txt", "")
    assert scores("mots20", truth, tmp_path / "pred")["MOTSA"] == 0.0
    (truth / "MOTS20-02/gt/gt.txt").unlink()
    with pytest.raises(DataError, match=r"MOTS20-02: has neither gt/gt.txt nor a PNG named after its frame"):
        scores("mots20", truth, tmp_path / "pred")


def test_flat_truth_and_what_macos_leaves_beside_it(tmp_path):
    source = test_mots20.write_source(tmp_path)
    for name in ("MOTS20-02", "MOTS20-05"):
        (tmp_path / "flat").mkdir(exist_ok=True)
        shutil.copy(source / f"MOTS/train/{name}/gt/gt.txt", tmp_path / f"flat/{name}.txt")
    (tmp_path / "flat/._MOTS20-02.txt").write_bytes(b"\x00\x05\x16\x07")
    assert scores("mots20", source / "MOTS/train", tmp_path / "flat")["sMOTSA"] == 1.0
    assert scores("mots20", tmp_path / "flat", tmp_path / "flat")["sMOTSA"] == 1.0


def test_the_pixels_of_a_step_result(tmp_path):
    """Track 300 needs two bytes; a person without identity has id 0, as in the truth; stuff has none."""
    classes = np.array([[4, 4, 4], [0, 5, 255]], np.uint8)
    tracks = np.array([[300, 2, 65535], [0, 9, 0]], np.uint16)
    write_results("motchallenge_step", [ResultFrame("0002", 1, classes, tracks, {})], tmp_path)
    with Image.open(tmp_path / "0002/000001.png") as image:
        assert (image.mode, np.asarray(image).tolist()) == (
            "RGB", [[[4, 1, 44], [4, 0, 2], [4, 0, 0]], [[0, 0, 0], [5, 0, 0], [255, 0, 0]]],
        )  # fmt: skip


@pytest.mark.parametrize(
    ("classes", "tracks", "message"),
    [
        ([[4, 7]], [[1, 0]], "motchallenge_step 0002/000001: class 7 is not in the contract of motchallenge_step"),
        ([[4, 4]], [[1, 65536]], "motchallenge_step 0002/000001: track 65536, the format has ids up to 65534"),
    ],
)
def test_what_a_step_result_cannot_say(tmp_path, classes, tracks, message):
    frame = ResultFrame("0002", 1, np.array(classes, np.uint8), np.array(tracks), {})
    with pytest.raises(DataError, match=message):
        write_results("motchallenge_step", [frame], tmp_path)
