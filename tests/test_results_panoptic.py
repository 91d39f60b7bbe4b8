"""Results in the panoptic format: what is written, what is read in its place, and what the official tools make of both.

One scene serves all datasets: three stuff regions, two cars and a person that move, a group, and a strip of void.
"""

import json
import shutil

import numpy as np
import pytest
from cityscapesscripts.evaluation.evalPanopticSemanticLabeling import (
    average_pq,
    evaluatePanoptic,
    pq_compute_single_core,
)
from cityscapesscripts.preparation.createPanopticImgs import convert2panoptic
from official_bytes import save, write
from PIL import Image
from scored import table_and_scores

from post_platform.errors import DataError
from post_platform.labels import load_contract
from post_platform.metrics.panoptic_quality import average
from post_platform.metrics.results import ResultFrame, write_results
from post_platform.metrics.vpq import count_tubes

VOID, NONE, GROUP = -1, -1, -2
FRAMES = range(6)


def scene(t, group=False):
    """Classes 0 to 4 (stuff, stuff, stuff, car, person; -1 void) and numbers of objects, -1 none, -2 a group.

    Car 0 is gone in frame 5, so that numbers by rank within a frame would not be those of the video.
    """
    classes, numbers = np.zeros((24, 40), int), np.full((24, 40), NONE)
    classes[8:], classes[16:] = 1, 2
    classes[:, 38:] = VOID
    things = [(3, 0, 10, 2 + 2 * t, 8), (3, 7, 14, 30 - 3 * t, 6), (4, 3, 4, 12 + t, 5)]
    for class_id, number, y, x, size in things[t == 5 :] + [(4, GROUP, 1, 28, 8)] * group:
        classes[y : y + size, x : x + size], numbers[y : y + size, x : x + size] = class_id, number
    return classes, numbers


def prediction(dataset, sequence, number, t, meta, ids, group=False, moved=2):
    """The scene two pixels to the right, a car lost in frame 2, and from frame 3 on the cars' tracks exchanged."""
    classes, numbers = (np.roll(array, moved, axis=1) for array in scene(t, group))
    numbers[numbers == GROUP] = 50
    if moved and t >= 3:
        numbers = np.select([numbers == 0, numbers == 7], [7, 0], numbers)
    if moved and t == 2:
        classes[numbers == 0], numbers[numbers == 0] = 0, NONE
    classes = np.where(classes == VOID, 1 if moved else VOID, classes)
    native = np.where(classes == VOID, 255, np.array(ids)[classes]).astype(np.uint8)
    return ResultFrame(sequence, number, native, np.where(numbers == NONE, 0, numbers + 1), meta)


def pixels(path):
    return np.array(Image.open(path)).astype(np.int64) @ [1, 256, 65536]


def rgb(values):
    return np.stack([values % 256, values // 256 % 256, values // 65536], axis=-1).astype(np.uint8)


# The scene's classes in each dataset: road, building (VIPSeg: wall), sky, car, person.
CITY, TRAIN_ID, VIPSEG = (7, 11, 23, 26, 24), (0, 2, 10, 13, 11), (18, 0, 28, 48, 60)


@pytest.fixture
def city(tmp_path):
    """gtFine of two stills, and what csCreatePanopticImgs makes of it."""
    for t, name in enumerate(("lindau_000000_000019", "munster_000003_000019")):
        classes, numbers = scene(t, group=True)
        native = np.where(classes == VOID, 0, np.array(CITY)[classes])
        values = np.where(numbers >= 0, native * 1000 + numbers, native).astype(np.uint16)
        save(tmp_path / f"gtFine/val/{name.split('_')[0]}/{name}_gtFine_instanceIds.png", values)
    convert2panoptic(str(tmp_path / "gtFine"), str(tmp_path / "gtFine"), setNames=["val"])
    return tmp_path


def write_city(folder, **how):
    names = ("lindau_000000", "munster_000003")
    frames = [prediction("cityscapes", name, 19, t, {}, CITY, group=True, **how) for t, name in enumerate(names)]
    write_results("cityscapes", frames, folder)


@pytest.mark.parametrize("moved", [0, 2, 5])
def test_cityscapes_numbers_are_those_of_the_official_tool(city, moved):
    write_city(city / "results", moved=moved)
    official = evaluatePanoptic(
        str(city / "gtFine/cityscapes_panoptic_val.json"),
        str(city / "gtFine/cityscapes_panoptic_val"),
        str(city / "results/predictions.json"),
        str(city / "results/predictions"),
        str(city / "scores.json"),
    )
    _, found = table_and_scores("cityscapes", city / "gtFine/val", city / "results")
    assert [found[name] for name in ("PQ", "SQ", "RQ", "PQ_things", "PQ_stuff")] == pytest.approx(
        [official["All"][name] for name in ("pq", "sq", "rq")] + [official["Things"]["pq"], official["Stuff"]["pq"]],
        abs=1e-9,
    )
    assert (found["PQ"] == 1.0) == (moved == 0)
    for truth in ("gtFine/cityscapes_panoptic_val.json", "gtFine/cityscapes_panoptic_val", "gtFine"):
        assert table_and_scores("cityscapes", city / truth, city / "results/predictions.json")[1] == found


def list_segments(values, category_of):
    return [
        {"id": value, "category_id": category_of(value), "iscrowd": 0, "area": int((values == value).sum())}
        for value in np.unique(values).tolist()
        if value
    ]


def truth_ids(t):
    """Ids of a truth's JSON, whatever they are: here 900000 + 1000 * class of the scene + number, stuff 999."""
    classes, numbers = scene(t)
    return np.where(classes == VOID, 0, 900_000 + 1000 * classes + np.where(numbers == NONE, 999, numbers))


def category(ids):
    return lambda value: ids[(value - 900_000) // 1000]


@pytest.fixture
def vps(tmp_path):
    """Two videos of Cityscapes-VPS as released (cls, inst), as converted for its tool, and results of ours."""
    colours = {entry.id: entry.color for entry in load_contract("cityscapes_vps").classes}
    images, annotations, frames = [], [], []
    for video in (5, 10):
        for t in FRAMES:
            frame = (video - 1) * 6 + 1 + t
            name = f"{video:04d}_{frame:04d}_frankfurt_000000_{video:03d}{5 * t + 4:03d}"
            classes, numbers = scene(t)
            colour = np.array([*(colours[TRAIN_ID[c]] for c in range(5)), (0, 0, 0)], np.uint8)[classes]
            save(tmp_path / f"val/cls/{name}_final_mask.png", colour)
            objects = np.where(numbers >= 0, 26000 + numbers, 7).astype(np.uint16)
            save(tmp_path / f"val/inst/{name}_original_image_instance_greyscale.png", objects)
            values = truth_ids(t)
            save(tmp_path / f"val/panoptic_video/{name}_final_mask.png", rgb(values))
            images.append({"id": name, "file_name": f"{name}_newImg8bit.png"})
            listed = list_segments(values, category(TRAIN_ID))
            annotations.append({"image_id": name, "file_name": f"{name}_final_mask.png", "segments_info": listed})
            meta = {"native": {"image_id": name}}
            frames.append(prediction("cityscapes_vps", f"{video:04d}", frame, t, meta, TRAIN_ID))
    content = {"images": images, "annotations": annotations}
    write(tmp_path / "panoptic_gt_val_city_vps.json", json.dumps(content))
    write_results("cityscapes_vps", frames[6:] + frames[:6], tmp_path / "results")
    return tmp_path, content


def official_tubes(folder, dataset, true, found, window):
    """PQ of tubes by the official code: frames one below the other are one image, and segments of one id one segment.

    `true` and `found`: for each video the list of (segments, ids of the pixels) of its frames.
    """
    pairs = []
    for video, (gt, pred) in enumerate(zip(true, found, strict=True)):
        for start in range(len(gt) - window + 1):
            entries = []
            for side, frames in (("gt", gt), ("pred", pred)):
                part = frames[start : start + window]
                name = f"{video}_{start}_{window}.png"
                stacked = np.concatenate([values for _, values in part])
                save(folder / side / name, rgb(stacked))
                merged = {row["id"]: {"iscrowd": 0, **row} for rows, _ in part for row in rows}
                for segment, row in merged.items():
                    row["area"] = int((stacked == segment).sum())
                entries.append({"image_id": name, "file_name": name, "segments_info": list(merged.values())})
            pairs.append(tuple(entries))
    categories = {entry.id: {"isthing": int(entry.isthing)} for entry in load_contract(dataset).classes}
    counted = pq_compute_single_core(0, pairs, str(folder / "gt"), str(folder / "pred"), categories)
    return average_pq(counted, categories)["All"]["pq"]


def test_cityscapes_vps_tubes_are_those_of_the_official_code(vps, tmp_path):
    source, content = vps
    submitted = json.loads((source / "results/pred.json").read_text())["annotations"]
    # The official tool joins the two lists by position, and finds PNGs by the ids of the truth's images.
    assert [entry["image_id"] for entry in submitted] == [image["id"] for image in content["images"]]
    true = [
        (e["segments_info"], pixels(source / "val/panoptic_video" / e["file_name"])) for e in content["annotations"]
    ]
    found = [
        (entry["segments_info"], pixels(source / "results/pan_pred" / f"{image['id']}.png"))
        for entry, image in zip(submitted, content["images"], strict=True)
    ]
    table, scores = table_and_scores("cityscapes_vps", source / "val", source / "results")
    ids = [entry.id for entry in load_contract("cityscapes_vps").classes]
    official = []
    for window in (1, 2, 3, 4):
        sides = ([side[:6], side[6:]] for side in (true, found))
        official.append(official_tubes(tmp_path / "tubes", "cityscapes_vps", *sides, window))
        assert average(count_tubes(table, ids, window), ids).pq == pytest.approx(official[-1], abs=1e-9)
    assert scores["VPQ"] == pytest.approx(np.mean(official), abs=1e-9)
    assert official[3] < official[0] < 1  # the exchange of tracks costs tubes, and no frame


def test_an_object_keeps_its_segment_id(vps):
    source, _ = vps
    entries = json.loads((source / "results/pred.json").read_text())["annotations"][:6]
    cars = [{row["id"] for row in entry["segments_info"] if row["category_id"] == TRAIN_ID[3]} for entry in entries]
    first, second = 14 << 16 | 1, 14 << 16 | 8
    assert cars == [{first, second}, {first, second}, {second}, {first, second}, {first, second}, {first}]


def test_truths_of_cityscapes_vps_are_one(vps):
    source, _ = vps
    _, released = table_and_scores("cityscapes_vps", source / "val", source / "results")
    _, converted = table_and_scores(
        "cityscapes_vps", source / "panoptic_gt_val_city_vps.json", source / "results/pred.json"
    )
    assert converted == pytest.approx(released, abs=1e-12)
    _, itself = table_and_scores("cityscapes_vps", source / "val", source / "panoptic_gt_val_city_vps.json", ["0010"])
    assert {value for name, value in itself.items() if not name.startswith("IDS")} == {1.0, None}


def test_lists_without_image_ids_follow_the_order_of_the_pngs(vps):
    """So the authors' own code writes them."""
    source, _ = vps
    _, expected = table_and_scores("cityscapes_vps", source / "val", source / "results")
    file = source / "results/pred.json"
    entries = json.loads(file.read_text())["annotations"]
    bare = [{"segments_info": entry["segments_info"]} for entry in entries]
    file.write_text(json.dumps({"annotations": bare}))
    assert table_and_scores("cityscapes_vps", source / "val", source / "results")[1] == expected
    file.write_text(json.dumps({"annotations": bare[1:]}))
    with pytest.raises(DataError, match=r"pred.json: lists 11 images without image_id, .*pan_pred has 12 PNGs"):
        table_and_scores("cityscapes_vps", source / "val", source / "results")


@pytest.fixture
def vipseg(tmp_path):
    """Two videos of VIPSeg in both official forms, one video of another split, and results of ours."""
    raw, videos, annotations, frames = [number + 1 for number in VIPSEG], [], [], []
    for video in ("12_abc", "7_-x"):
        listed = []
        for t in FRAMES:
            stem = f"{1255 + 3 * t:08d}"
            classes, numbers = scene(t)
            native = np.array([*raw, 0])[classes]
            values = np.where(numbers == NONE, native, 100 * native + numbers)
            save(tmp_path / f"panomasks/{video}/{stem}.png", values.astype(np.uint16))
            save(tmp_path / f"panomasksRGB/{video}/{stem}.png", rgb(truth_ids(t)))
            segments = list_segments(truth_ids(t), category(VIPSEG))
            listed.append({"image_id": stem, "file_name": f"{stem}.png", "segments_info": segments})
            frames.append(prediction("vipseg", video, int(stem), t, {"source_image": f"{stem}.jpg"}, VIPSEG))
        videos.append({"video_id": video, "images": [{"file_name": entry["file_name"]} for entry in listed]})
        annotations.append({"video_id": video, "annotations": listed})
    save(tmp_path / "panomasks/99_train/00000001.png", np.zeros((24, 40), np.uint16))
    write(tmp_path / "val.txt", "7_-x\n12_abc\n")
    write(tmp_path / "panoptic_gt_VIPSeg_val.json", json.dumps({"videos": videos, "annotations": annotations}))
    write_results("vipseg", frames, tmp_path / "results")
    return tmp_path


def test_vipseg_tubes_are_those_of_the_official_code(vipseg, tmp_path):
    def sides(file, folder):
        return [
            [(e["segments_info"], pixels(folder / video["video_id"] / e["file_name"])) for e in video["annotations"]]
            for video in json.loads(file.read_text())["annotations"]
        ]

    true = sides(vipseg / "panoptic_gt_VIPSeg_val.json", vipseg / "panomasksRGB")
    found = sides(vipseg / "results/pred.json", vipseg / "results/pan_pred")
    table, released = table_and_scores("vipseg", vipseg / "val.txt", vipseg / "results")
    ids = [entry.id for entry in load_contract("vipseg").classes]
    for window in (1, 2, 4, 6):
        official = official_tubes(tmp_path / "tubes", "vipseg", true, found, window)
        assert average(count_tubes(table, ids, window), ids).pq == pytest.approx(official, abs=1e-9)
        assert official < 1
    _, converted = table_and_scores("vipseg", vipseg / "panoptic_gt_VIPSeg_val.json", vipseg / "results")
    assert converted == pytest.approx(released, abs=1e-12)
    _, itself = table_and_scores("vipseg", vipseg / "panomasks", vipseg / "panoptic_gt_VIPSeg_val.json", ["7_-x"])
    assert {value for name, value in itself.items() if not name.startswith("IDS")} == {1.0, None}


def test_coco_results_by_hand(tmp_path):
    """R + 256 G = track, B = class + 1; a crowd is a segment of its own, void has none, and stuff no track."""
    classes = np.array([[1, 1, 200], [1, 255, 200]], np.uint8)
    tracks = np.array([[300, 7, 0], [65535, 0, 9]])
    write_results("coco_panoptic", [ResultFrame("000000000139", 0, classes, tracks, {})], tmp_path)
    segments = [(131079, 1), (131372, 1), (196607, 1), (13172736, 200)]
    assert json.loads((tmp_path / "predictions.json").read_text()) == {
        "annotations": [
            {
                "image_id": 139,
                "file_name": "000000000139.png",
                "segments_info": [{"id": value, "category_id": category} for value, category in segments],
            }
        ]
    }
    image = np.array(Image.open(tmp_path / "predictions/000000000139.png"))
    assert image.tolist() == [[[44, 1, 2], [7, 0, 2], [0, 0, 201]], [[255, 255, 2], [0, 0, 0], [0, 0, 201]]]


@pytest.mark.parametrize(
    ("dataset", "class_id", "track", "message"),
    [
        ("coco_panoptic", 12, 0, "coco_panoptic a/000003: class 12 is not in the contract"),
        ("coco_panoptic", 1, 65536, r"coco_panoptic a/000003: track 65536, must be 0..65535"),
        ("cityscapes_vps", 0, 0, "cityscapes_vps a/000003: meta.json has no native image_id"),
    ],
)
def test_frames_that_cannot_be_written(tmp_path, dataset, class_id, track, message):
    frame = ResultFrame("a", 3, np.full((2, 3), class_id, np.uint8), np.full((2, 3), track), {})
    with pytest.raises(DataError, match=message):
        write_results(dataset, [frame], tmp_path)


def change(file, edit):
    content = json.loads(file.read_text())
    edit(content["annotations"])
    file.write_text(json.dumps(content))


def test_mistakes_in_cityscapes_results(city):
    write_city(city / "results")
    file, truth = city / "results/predictions.json", city / "gtFine/val"
    with pytest.raises(DataError, match=r"--truth .*/nothing: neither a folder of <city>"):
        table_and_scores("cityscapes", city / "nothing", city / "results")
    (truth / "lindau/lindau_000000_000019_gtFine_instanceIds.png").rename(
        truth / "lindau/lindau_000000_000020_gtFine_instanceIds.png"
    )
    with pytest.raises(DataError, match=r"results: no result for lindau_000000/000020 \(1 such frames\)"):
        table_and_scores("cityscapes", truth, city / "results")
    change(file, lambda entries: entries[1].update(image_id="munster.png"))
    with pytest.raises(DataError, match=r"predictions.json: image id 'munster.png' does not tell sequence and frame"):
        table_and_scores("cityscapes", truth, city / "results")
    change(file, lambda entries: entries[0]["segments_info"][0].update(category_id=0))  # a trainId
    with pytest.raises(DataError, match=r"image lindau_000000_000019: .* has unknown category 0; known are 7\.\.33"):
        table_and_scores("cityscapes", truth, city / "results")


def test_mistakes_in_cityscapes_vps_results(vps):
    source, _ = vps
    with pytest.raises(DataError, match=r"--truth .*: neither a folder with cls and inst nor a JSON"):
        table_and_scores("cityscapes_vps", source / "val/inst", source / "results")
    change(source / "results/pred.json", lambda entries: entries.pop(3))
    with pytest.raises(DataError, match=r"results: no result for 0005/000028 \(1 such frames\)"):
        table_and_scores("cityscapes_vps", source / "val", source / "results")
    change(source / "results/pred.json", lambda entries: entries[0].update(image_id="../0005_0025_frankfurt"))
    with pytest.raises(DataError, match=r"'../0005_0025_frankfurt.png' is not a plain file name"):
        table_and_scores("cityscapes_vps", source / "val", source / "results")


def test_mistakes_in_vipseg_results(vipseg):
    with pytest.raises(DataError, match="no result for sequence '99_train', which the truth has"):
        table_and_scores("vipseg", vipseg / "panomasks", vipseg / "results")
    with pytest.raises(DataError, match=r"--truth .*: no <video>/<frame>.png in"):
        table_and_scores("vipseg", vipseg / "panomasks/7_-x", vipseg / "results")
    write(vipseg / "test.txt", "13_gone\n")
    with pytest.raises(DataError, match=r"test.txt: .*panomasks has no video '13_gone' \(1 such videos\)"):
        table_and_scores("vipseg", vipseg / "test.txt", vipseg / "results")
    file = vipseg / "results/pred.json"
    edits = {
        r"video '7_-x': must be listed once": lambda videos: videos[0].update(video_id="7_-x"),
        r"video '12_abc': must be listed once, its PNGs numbered": lambda videos: videos[0]["annotations"][0].update(
            file_name="first.png"
        ),
        r"'\.\./7_-x' is not a plain file name": lambda videos: videos[1].update(video_id="../7_-x"),
        r"malformed list of videos \(KeyError\('video_id'\)\)": lambda videos: videos[1].pop("video_id"),
    }
    shutil.copy(file, vipseg / "whole.json")
    for message, edit in edits.items():
        shutil.copy(vipseg / "whole.json", file)
        change(file, edit)
        with pytest.raises(DataError, match=message):
            table_and_scores("vipseg", vipseg / "val.txt", vipseg / "results")
