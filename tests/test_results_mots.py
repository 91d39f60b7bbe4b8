"""What the writers of MOTS and STEP results put into their files; every expected line, id and pixel is typed."""

import shutil

import numpy as np
import pytest
import test_mots20
import trackeval
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from official_bytes import compressed, save, write
from PIL import Image

from post_platform.datasets.masks import encode_mask
from post_platform.errors import DataError
from post_platform.metrics.contingency import frame_table, merge
from post_platform.metrics.results import ResultFrame, count_results, mots_files, read_results, write_results
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
    return score(merge([pair.table(dataset) for pair in results.read(list(results.counts))]), results.contract)


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
    theirs = clear_of_trackeval(tmp_path, 1)
    for name in ("car", "pedestrian"):
        assert (theirs[name]["CLR_TP"], theirs[name]["CLR_FP"], theirs[name]["MOTA"]) == (1, 1119, -1118.0)
        assert ours["mots"][name]["MOTSA"] == -1118.0


def clear_of_trackeval(folder, frames):
    """By class, of the sequence 0002 in `gt` and `ours/data`."""
    official = trackeval.datasets.KittiMOTS({
        "PRINT_CONFIG": False, "TRACKERS_TO_EVAL": ["ours"], "SEQ_INFO": {"0002": frames},
        "GT_FOLDER": str(folder / "gt"), "TRACKERS_FOLDER": str(folder), "GT_LOC_FORMAT": "{gt_folder}/{seq}.txt",
    })  # fmt: skip
    raw = official.get_raw_seq_data("ours", "0002")
    clear = trackeval.metrics.CLEAR({"PRINT_CONFIG": False})
    return {name: clear.eval_sequence(official.get_preprocessed_seq_data(raw, name)) for name in ("car", "pedestrian")}


def test_truth_that_was_not_unpacked_is_not_a_sequence_in_which_nothing_is(tmp_path):
    """Else a result that says nothing would be perfect there."""
    truth = test_mots20.write_source(tmp_path) / "MOTS/train"
    for name in ("MOTS20-02", "MOTS20-05"):
        write(tmp_path / f"pred/{name}.txt", "")
    assert scores("mots20", truth, tmp_path / "pred")["mots"]["pedestrian"]["MOTSA"] == 0.0
    (truth / "MOTS20-02/gt/gt.txt").unlink()
    with pytest.raises(DataError, match=r"MOTS20-02: has neither gt/gt.txt nor a PNG named after its frame"):
        scores("mots20", truth, tmp_path / "pred")


def test_flat_truth_and_what_macos_leaves_beside_it(tmp_path):
    source = test_mots20.write_source(tmp_path)
    for name in ("MOTS20-02", "MOTS20-05"):
        (tmp_path / "flat").mkdir(exist_ok=True)
        shutil.copy(source / f"MOTS/train/{name}/gt/gt.txt", tmp_path / f"flat/{name}.txt")
    (tmp_path / "flat/._MOTS20-02.txt").write_bytes(b"\x00\x05\x16\x07")
    assert scores("mots20", source / "MOTS/train", tmp_path / "flat")["mots"]["pedestrian"]["sMOTSA"] == 1.0
    assert scores("mots20", tmp_path / "flat", tmp_path / "flat")["mots"]["pedestrian"]["sMOTSA"] == 1.0


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


OBJECTS = [(1, 1000), (1, 1999), (2, 2000), (2, 2007), (10, 10000)]  # class and id, by the value of a pixel less one
VALUES = [number for _, number in OBJECTS]
SIDE = arrays.arrays(np.uint8, (4, 6), elements=st.integers(0, len(OBJECTS)))


def text_of(frames):
    return "".join(
        f"{frame} {number} {native} 4 6 {encode_mask(image == value)}\n"
        for frame, image in enumerate(frames)
        for value, (native, number) in enumerate(OBJECTS, start=1)
        if (image == value).any()
    )


def by_pixels(frame, truth, pred):
    """The table of the painted frame; what is listed first: background."""
    classes, numbers = np.array([(0, -1), *OBJECTS]).T
    judged, instances = np.where(classes == 10, 255, classes), np.where(classes % 10 > 0, numbers % 1000 + 1, 0)
    said, tracks = np.where(classes == 10, 0, classes), np.where(classes == 10, 0, numbers + 1)
    return frame_table("kitti_mots", "0002", frame, judged[truth], instances[truth], said[pred], tracks[pred])


@given(st.lists(st.tuples(SIDE, SIDE), min_size=1, max_size=3), st.tuples(st.booleans(), st.booleans()))
@settings(max_examples=150, deadline=None)
def test_the_tables_of_runs_are_those_of_pixels(tmp_path_factory, frames, as_pngs):
    folder = tmp_path_factory.mktemp("runs")
    for name, side, as_png in zip(("gt", "pred"), zip(*frames, strict=True), as_pngs, strict=True):
        if as_png:
            for frame, image in enumerate(side):
                save(folder / name / f"0002/{frame:06d}.png", np.array([0, *VALUES], np.uint16)[image])
        else:
            write(folder / name / "0002.txt", text_of(side))
    results = read_results("kitti_mots", folder / "gt", folder / "pred")
    tables = {pair.frame: pair.table("kitti_mots") for pair in results.read(["0002"])}
    named = [frame for frame, (truth, pred) in enumerate(frames) if any(as_pngs) or truth.any() or pred.any()]
    assert list(tables) == named
    assert results.counts == {"0002": len(named)}
    for frame in named:
        assert tables[frame].equals(by_pixels(frame, *frames[frame]))


def test_more_frames_than_are_held_at_once(tmp_path, monkeypatch):
    texts = [text_of(np.full((7, 4, 6), value)) for value in (1, 2)]
    write(tmp_path / "gt/0002.txt", texts[0])
    write(tmp_path / "pred/0002.txt", texts[1])
    results = read_results("kitti_mots", tmp_path / "gt", tmp_path / "pred")
    whole = count_results(results)
    monkeypatch.setattr(mots_files, "BLOCK", 3)
    assert count_results(results).equals(whole)
    assert whole["frame"].to_pylist() == list(range(7))


@pytest.mark.parametrize(
    ("texts", "pngs", "message"),
    [
        ("pred", "gt", r"pred/0002\.txt, line 2, frame 1, id 1000: the frame has no truth \(1 such frames\)"),
        ("gt", "pred", r"pred/0002/000001\.png: missing, the truth has this frame \(1 such frames\)"),
    ],
)
def test_a_frame_that_a_folder_of_pngs_lacks(tmp_path, texts, pngs, message):
    write(tmp_path / texts / "0002.txt", "0 1000 1 2 4 512\n1 1000 1 2 4 512\n")
    save(tmp_path / pngs / "0002/000000.png", np.zeros((2, 4), np.uint16))
    with pytest.raises(DataError, match=message):
        read_results("kitti_mots", tmp_path / "gt", tmp_path / "pred")


def test_frames_that_seqinfo_does_not_have(tmp_path):
    truth = test_mots20.write_source(tmp_path) / "MOTS/train"
    text = "".join(f"{frame} 2000 2 2 4 512\n" for frame in (1, 9999))
    for name in ("MOTS20-02", "MOTS20-05"):
        write(tmp_path / f"pred/{name}.txt", "")
        write(truth / f"{name}/gt/gt.txt", "")
    write(tmp_path / "pred/MOTS20-05.txt", text)
    message = r"MOTS20-05\.txt, line 2, frame 9999, id 2000: frame 9999 is outside 1\.\.\d+, as seqinfo\.ini has it"
    with pytest.raises(DataError, match=message):
        read_results("mots20", truth, tmp_path / "pred")


def test_frames_that_one_side_lacks(tmp_path):
    """Object 1000 fills frame 0, 2x3, and the first column of frame 4; the result has frame 4 alone, all of it."""
    write(tmp_path / "gt/0002.txt", "0 1000 1 2 3 06\n4 1000 1 2 3 024\n")
    write(tmp_path / "pred/0002.txt", "4 7 1 2 3 06\n")
    pairs = list(read_results("kitti_mots", tmp_path / "gt", tmp_path / "pred").read(["0002"]))
    assert [rows(pair) for pair in pairs] == [[(1, 1, 0, 0, 6)], [(0, 0, 1, 8, 4), (1, 1, 1, 8, 2)]]


def rows(pair):
    names = ("truth_class", "truth_instance", "pred_class", "pred_track", "pixels")
    return list(zip(*(pair.table("kitti_mots")[name].to_pylist() for name in names), strict=True))


def test_a_mask_without_a_pixel_is_missed_or_spurious(tmp_path):
    """TrackEval counts such lines; of four objects in two frames one is found."""
    truth = "0 1000 1 2 3 06\n1 1000 1 2 3 6\n1 1001 1 2 3 6\n"
    write(tmp_path / "gt/0002.txt", truth)
    write(tmp_path / "ours/data/0002.txt", "0 7 1 2 3 06\n1 8 1 2 3 6\n")
    found = scores("kitti_mots", tmp_path / "gt", tmp_path / "ours/data")["mots"]["car"]
    theirs = clear_of_trackeval(tmp_path, 2)["car"]
    assert (found["TP"], found["FP"], found["FN"]) == (1, 1, 2)
    assert (theirs["CLR_TP"], theirs["CLR_FP"], theirs["CLR_FN"]) == (1, 1, 2)
    assert theirs["sMOTA"] == found["sMOTSA"]


@pytest.mark.parametrize(
    ("side", "message"),
    [
        ("gt", r"gt/0002\.txt, line 3, frame 1, id 2000: the mask overlaps that of id 1001"),
        ("pred", r"pred/0002\.txt, line 3, frame 1, id 2000: the mask overlaps that of id 1001"),
    ],
)
def test_masks_that_share_one_pixel(tmp_path, side, message):
    """Pixels 1-3 of object 1001 and 3-5 of 2000; 1000, at 5, is of the frame before."""
    write(tmp_path / "gt/0002.txt", "")
    write(tmp_path / "pred/0002.txt", "")
    write(tmp_path / side / "0002.txt", "0 1000 1 2 4 512\n1 1001 1 2 4 134\n1 2000 2 2 4 332\n")
    with pytest.raises(DataError, match=message):
        list(read_results("kitti_mots", tmp_path / "gt", tmp_path / "pred").read(["0002"]))


def test_texts_without_any_object(tmp_path):
    for side in ("gt", "pred"):
        write(tmp_path / side / "0002.txt", "")
    results = read_results("kitti_mots", tmp_path / "gt", tmp_path / "pred")
    assert (results.counts, list(results.read(["0002"]))) == ({"0002": 0}, [])


def test_an_image_of_no_pixel_is_named(tmp_path):
    write(tmp_path / "gt/0002.txt", "")
    write(tmp_path / "pred/0002.txt", "3 1000 1 0 4 0\n")
    with pytest.raises(
        DataError, match=r"pred/0002\.txt, line 1, frame 3, id 1000: size 0x4, must be 1 to 67108864 pixels"
    ):
        list(read_results("kitti_mots", tmp_path / "gt", tmp_path / "pred").read(["0002"]))
