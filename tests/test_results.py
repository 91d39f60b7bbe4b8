"""Result files: what the readers accept, and the one line that names file and line or frame when they do not."""

import json
import shutil

import numpy as np
import pytest
from evalset import CAR, EXPECTED, FOLDER, FRAMES, PERSON, SEQUENCES, maps, step_maps, table
from PIL import Image
from pycocotools import mask as coco_mask
from scored import scores

from post_platform.errors import ConfigError, DataError
from post_platform.labels import DATASETS, load_contract
from post_platform.metrics.contingency import frame_table
from post_platform.metrics.results import read_results, readable
from post_platform.metrics.score import flat, score


def test_each_file_is_a_dataset():
    assert {*DATASETS, "coco_instances"} <= set(readable())
    with pytest.raises(ConfigError, match=r"no reader of 'kitti_mot' results; did you mean kitti_mots"):
        read_results("kitti_mot", FOLDER, FOLDER)


def assert_mots_numbers(found):
    for name, expected in EXPECTED["mots_tools"].items():
        for metric in ("sMOTSA", "MOTSA", "MOTSP"):
            assert found[f"{metric}/{name}"] == pytest.approx(expected["all"][metric], abs=1e-9)


def test_kitti_mots_texts():
    assert_mots_numbers(scores("kitti_mots", FOLDER / "mots_gt_txt", FOLDER / "mots_pred_txt"))


def mots_values(side, sequence, frame):
    classes, ids = step_maps(side, sequence, frame)
    native = np.select([classes == CAR, classes == PERSON], [1000, 2000], 0)
    ignored = (classes == 255) | ((native > 0) & (ids == 0))
    return np.where(ignored & (side == "gt"), 10000, np.where(ids > 0, native + ids, 0)).astype(np.uint16)


def test_kitti_mots_folders_of_pngs(tmp_path):
    for side in ("gt", "pred"):
        for sequence in SEQUENCES:
            (tmp_path / side / sequence).mkdir(parents=True)
            for frame in FRAMES:
                image = Image.fromarray(mots_values(side, sequence, frame))
                image.save(tmp_path / side / sequence / f"{frame:06d}.png", compress_level=1)
    assert_mots_numbers(scores("kitti_mots", tmp_path / "gt", tmp_path / "pred"))
    assert_mots_numbers(scores("kitti_mots", tmp_path / "gt", FOLDER / "mots_pred_txt"))


def test_kitti_step_folders():
    expected = flat(score(table(), load_contract("kitti_step")))
    assert scores("kitti_step", FOLDER / "step_gt", FOLDER / "step_pred") == expected
    assert expected["STQ"] == pytest.approx(EXPECTED["deeplab2"]["STQ"], abs=1e-6)


@pytest.mark.parametrize(("dataset", "folder"), [("kitti_mots", "mots_gt_txt"), ("kitti_step", "step_gt")])
def test_the_truth_scored_against_itself_is_perfect(dataset, folder):
    for name, value in scores(dataset, FOLDER / folder, FOLDER / folder, ["0006"]).items():
        assert value in ((0.0,) if name.startswith("IDS") else (1.0, None)), name


def test_a_truth_without_any_sequence(tmp_path):
    with pytest.raises(DataError, match=r"^--truth: there is no sequence in it$") as error:
        read_results("kitti_mots", tmp_path, FOLDER / "mots_pred_txt")
    assert "docs/scores.md" in error.value.hint


def test_some_sequences_only(caplog):
    found = scores("kitti_mots", FOLDER / "mots_gt_txt", FOLDER / "mots_pred_txt", ["0006"])
    assert found["sMOTSA/car"] == pytest.approx(EXPECTED["mots_tools"]["car"]["0006"]["sMOTSA"], abs=1e-9)
    assert "1 results are not scored: 0002" in caplog.text


def write_coco(folder, side):
    """The evaluation set in COCO's panoptic format: category = class + 1, segment id = category * 1000 + id + 1."""
    (folder / side).mkdir(parents=True)
    annotations = []
    for sequence in SEQUENCES:
        for frame in FRAMES:
            classes, ids = step_maps(side, sequence, frame)
            things = np.isin(classes, (CAR, PERSON))
            segments = np.where(classes == 255, 0, (classes + 1) * 1000 + np.where(things, ids + 1, 0))
            rgb = np.stack([segments % 256, segments // 256 % 256, segments // 65536], -1).astype(np.uint8)
            name = f"{sequence}_{frame:06d}"
            Image.fromarray(rgb).save(folder / side / f"{name}.png", compress_level=1)
            listed = [int(value) for value in np.unique(segments) if value]
            crowd = [int(side == "gt" and value % 1000 == 1) for value in listed]
            rows = [
                {"id": v, "category_id": v // 1000, "iscrowd": c, "area": 0} for v, c in zip(listed, crowd, strict=True)
            ]
            annotations.append({"image_id": name, "file_name": f"{name}.png", "segments_info": rows})
    categories = [{"id": c + 1, "name": str(c), "isthing": int(c in (CAR, PERSON))} for c in range(19)]
    content = {"annotations": annotations} | ({"categories": categories} if side == "gt" else {})
    (folder / f"{side}.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    folder = tmp_path_factory.mktemp("coco")
    for side in ("gt", "pred"):
        write_coco(folder, side)
    return folder


def test_coco_panoptic_json_and_folder(coco):
    found, expected = scores("coco_panoptic", coco / "gt", coco / "pred.json"), EXPECTED["panopticapi"]
    assert [found[name] for name in ("PQ", "SQ", "RQ", "PQ_things", "PQ_stuff")] == pytest.approx(
        [expected["All"][name] for name in ("pq", "sq", "rq")] + [expected[name]["pq"] for name in ("Things", "Stuff")],
        abs=1e-9,
    )


def change_json(coco, folder, change):
    shutil.copytree(coco / "pred", folder / "pred")
    content = json.loads((coco / "pred.json").read_text())
    change(content["annotations"])
    (folder / "pred.json").write_text(json.dumps(content))
    return folder / "pred"


COCO_MISTAKES = {
    "an image without prediction": (lambda a: a.pop(3), r"pred: no result for sequence '0002_000003'"),
    "an image twice": (lambda a: a.append(a[0]), r"pred\.json: image 0002_000000 is annotated twice"),
    "segment only in the JSON": (
        lambda a: a[1]["segments_info"].append({"id": 77, "category_id": 1}),
        r"0002_000001\.png: has no pixel of segment 77, which the JSON lists",
    ),
    "segment only in the PNG": (
        lambda a: a[1]["segments_info"].pop(0),
        r"0002_000001\.png: segment 1000 is not in the JSON",
    ),
    "unknown category": (
        lambda a: a[2]["segments_info"][0].update(category_id=90),
        r"pred\.json, image 0002_000002: segment 1000 has unknown category 90",
    ),
    "a path out of the folder": (
        lambda a: a[2].update(file_name="../gt/0002_000002.png"),
        r"pred\.json, image 0002_000002: .* is not a plain file name",
    ),
    "malformed": (lambda a: a[2].pop("segments_info"), r"pred\.json: malformed annotations"),
    "a PNG that is not there": (
        lambda a: a[0].update(file_name="none.png"),
        r"none\.png: label cannot be read",
    ),
}


@pytest.mark.parametrize("mistake", COCO_MISTAKES)
def test_mistakes_in_coco_results(coco, tmp_path, mistake):
    change, message = COCO_MISTAKES[mistake]
    with pytest.raises(DataError, match=message):
        scores("coco_panoptic", coco / "gt", change_json(coco, tmp_path, change))


def test_coco_results_without_json(coco, tmp_path):
    (tmp_path / "pred").mkdir()
    with pytest.raises(DataError, match=r"pred\.json: cannot be read"):
        scores("coco_panoptic", coco / "gt", tmp_path / "pred")


def test_stuff_in_two_segments_stays_two(tmp_path):
    """As panopticapi: each segment of the JSON counts, so the smaller of two halves of a stuff region is wrong."""
    for side, ids in (("gt", [5, 5]), ("pred", [5, 6])):
        (tmp_path / side).mkdir()
        rgb = np.zeros((10, 10, 3), np.uint8)
        rgb[:7, :, 0], rgb[7:, :, 0] = ids
        Image.fromarray(rgb).save(tmp_path / side / "a.png")
        rows = [{"id": value, "category_id": 1, "iscrowd": 0} for value in dict.fromkeys(ids)]
        content = {
            "annotations": [{"image_id": 1, "file_name": "a.png", "segments_info": rows}],
            "categories": [{"id": 1, "name": "sky", "isthing": 0}],
        }
        (tmp_path / f"{side}.json").write_text(json.dumps(content))
    found = scores("coco_panoptic", tmp_path / "gt", tmp_path / "pred")
    assert (found["SQ"], found["RQ"]) == (0.7, 1 / 1.5)


def rle(y, x, height, width, size=(20, 30)):
    mask = np.zeros(size, np.uint8, order="F")
    mask[y : y + height, x : x + width] = 1
    return coco_mask.encode(mask)["counts"].decode()


CAR_LINE = f"0 1001 1 20 30 {rle(2, 2, 8, 8)}"
MOTS_MISTAKES = {
    "overlap": (
        [f"0 7 1 20 30 {rle(2, 2, 8, 8)}", f"0 8 2 20 30 {rle(9, 9, 5, 5)}"],
        r"0001\.txt, line 2, frame 0, id 8: the mask overlaps that of id 7",
    ),
    "duplicate id": (
        [f"0 7 1 20 30 {rle(2, 2, 3, 3)}", "", f"0 7 2 20 30 {rle(9, 9, 5, 5)}"],
        r"0001\.txt, line 3, frame 0, id 7: the frame has this id twice",
    ),
    "wrong size": (
        [f"0 7 1 20 31 {rle(2, 2, 8, 8, (20, 31))}"],
        r"0001\.txt, line 1, frame 0, id 7: size 20x31, its sequence has 20x30",
    ),
    "wrong size where the truth has nothing": (
        [f"0 7 1 20 30 {rle(2, 2, 8, 8)}", f"3 8 1 20 31 {rle(15, 20, 2, 2, (20, 31))}"],
        r"0001\.txt, line 2, frame 3, id 8: size 20x31, its sequence has 20x30",
    ),
    "five columns": (["0 7 1 20 30"], r"0001\.txt, line 1: '0 7 1 20 30' is not 'frame id class height width rle'"),
    "unknown class": ([f"0 7 3 20 30 {rle(2, 2, 8, 8)}"], r"0001\.txt, line 1, frame 0, id 7: class 3, must be 1 car"),
    "broken run lengths": (
        ["0 7 1 20 30 `h9"],
        r"line 1, frame 0, id 7: the run lengths fill 10000 pixels, 20x30 has 600",
    ),
    "a size that would fill the memory": (
        ["0 7 1 99999999 99999999 `h9"],
        r"0001\.txt, line 1, frame 0, id 7: size 99999999x99999999, more than",
    ),
}


def mots_folders(folder, truth, predictions):
    for side, lines in (("gt", truth), ("pred", predictions)):
        (folder / side).mkdir()
        (folder / side / "0001.txt").write_text("\n".join(lines))
    return folder / "gt", folder / "pred"


@pytest.mark.parametrize("mistake", MOTS_MISTAKES)
def test_mistakes_in_mots_texts(tmp_path, mistake):
    lines, message = MOTS_MISTAKES[mistake]
    with pytest.raises(DataError, match=message):
        scores("kitti_mots", *mots_folders(tmp_path, [CAR_LINE], lines))


def test_true_ids_must_tell_their_class(tmp_path):
    with pytest.raises(DataError, match=r"0001\.txt, line 1, frame 0, id 7: class 1, which the id contradicts"):
        scores("kitti_mots", *mots_folders(tmp_path, [f"0 7 1 20 30 {rle(2, 2, 8, 8)}"], []))


def test_an_empty_text_says_that_nothing_was_found(tmp_path):
    found = scores("kitti_mots", *mots_folders(tmp_path, [CAR_LINE], []))
    assert (found["MOTSA/car"], found["HOTA/car"], found["MOTSP/car"]) == (0.0, 0.0, None)


def test_a_frame_without_truth_is_a_false_positive(tmp_path):
    found = scores("kitti_mots", *mots_folders(tmp_path, [CAR_LINE], [CAR_LINE, f"1 1001 1 20 30 {rle(2, 2, 8, 8)}"]))
    assert (found["MOTSA/car"], found["MOTSP/car"], found["IDF1/car"]) == (0.0, 1.0, 1 / 1.5)


def test_a_result_may_number_its_tracks_freely(tmp_path):
    found = scores("kitti_mots", *mots_folders(tmp_path, [CAR_LINE], [f"0 98765432 1 20 30 {rle(2, 2, 8, 8)}"]))
    assert found["sMOTSA/car"] == 1.0


def png_folders(folder, mode):
    for side in ("gt", "pred"):
        (folder / side / "0001").mkdir(parents=True)
        for frame in range(2):
            shape = (6, 8, 3) if mode == "RGB" else (6, 8)
            values = np.zeros(shape, np.uint8 if mode == "RGB" else np.uint16)
            Image.fromarray(values).save(folder / side / "0001" / f"{frame:06d}.png")
    return folder / "gt", folder / "pred"


@pytest.mark.parametrize(("dataset", "mode"), [("kitti_step", "RGB"), ("kitti_mots", "I;16")])
def test_a_missing_or_foreign_frame_is_named(tmp_path, dataset, mode):
    truth, predictions = png_folders(tmp_path, mode)
    (predictions / "0001" / "000001.png").rename(predictions / "0001" / "000002.png")
    with pytest.raises(DataError, match=r"000001\.png: missing, the truth has this frame \(1 such frames\)"):
        scores(dataset, truth, predictions)
    shutil.copy(predictions / "0001" / "000002.png", predictions / "0001" / "000001.png")
    with pytest.raises(DataError, match=r"000002\.png: the frame has no truth \(1 such frames\)"):
        scores(dataset, truth, predictions)


@pytest.mark.parametrize(
    ("dataset", "mode", "pixels", "message"),
    [
        ("kitti_step", "RGB", np.zeros((6, 9, 3), np.uint8), r"000001\.png: the prediction is 6x9, the truth is 6x8"),
        ("kitti_step", "RGB", np.full((6, 8, 3), 19, np.uint8), r"000001\.png: has class 19, must be 0\.\.18 or 255"),
        ("kitti_step", "RGB", np.zeros((6, 8), np.uint8), r"000001\.png: label is a PNG of mode L, must be RGB"),
        ("kitti_mots", "I;16", np.zeros((6, 9), np.uint16), r"000001\.png: size 6x9, its sequence has 6x8"),
        ("kitti_mots", "I;16", np.full((6, 8), 999, np.uint16), r"000001\.png: value 999, must be 0, 1000\.\.2999"),
        ("kitti_mots", "I;16", np.zeros((6, 8, 3), np.uint8), r"000001\.png: label is a PNG of mode RGB, must be I;16"),
    ],
)
def test_mistakes_in_pngs(tmp_path, dataset, mode, pixels, message):
    truth, predictions = png_folders(tmp_path, mode)
    Image.fromarray(pixels).save(predictions / "0001" / "000001.png")
    with pytest.raises(DataError, match=message):
        scores(dataset, truth, predictions)


def test_missing_folders_and_sequences(tmp_path):
    truth, predictions = png_folders(tmp_path, "RGB")
    with pytest.raises(DataError, match=r"--truth .*nothing: no such folder"):
        scores("kitti_step", tmp_path / "nothing", predictions)
    with pytest.raises(DataError, match=r"no truth for sequence '0002'"):
        scores("kitti_step", truth, predictions, ["0002"])
    shutil.rmtree(predictions / "0001")
    with pytest.raises(DataError, match=r"no result for sequence '0001', which the truth has"):
        scores("kitti_step", truth, predictions)


def test_the_reader_and_the_reference_decode_alike():
    pair = next(read_results("kitti_step", FOLDER / "step_gt", FOLDER / "step_pred").frames)
    assert pair.table("kitti_step").equals(frame_table("kitti_step", "0002", 0, *maps("0002", 0)))
