"""COCO instances: the numbers are pycocotools', from a table, or where masks overlap from the masks."""

import contextlib
import io
import json

import numpy as np
import pytest
from evalset import CAR, EXPECTED, FOLDER, FRAMES, PERSON, SEQUENCES, maps
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scored import table_and_scores

from post_platform.errors import DataError
from post_platform.metrics.results import read_results

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
SIZE = (120, 160)


def encode(mask):
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}


def box(y, x, height, width):
    mask = np.zeros(SIZE, bool)
    mask[y : y + height, x : x + width] = True
    return mask


def drawn(seed, disjoint):
    """Six images with up to five objects of two classes each, found a few pixels off, and some found nowhere."""
    rng = np.random.default_rng(seed)
    annotations, results = [], []
    for image in range(6):
        taken = {"truth": np.zeros(SIZE, bool), "pred": np.zeros(SIZE, bool)}
        for _ in range(rng.integers(0, 6)):
            y, x, height, width = rng.integers((0, 0, 4, 4), (80, 110, 60, 60))
            category, crowd = int(rng.choice([3, 9])), bool(rng.random() < 0.1)
            for side, (dy, dx) in (("truth", (0, 0)), ("pred", rng.integers(0, 6, 2))):
                mask = box(y + dy, x + dx, height, width)
                if disjoint:
                    mask &= ~taken[side]
                taken[side] |= mask
                if not mask.any():
                    continue
                known = {"image_id": image, "category_id": category, "segmentation": encode(mask)}
                if side == "truth":
                    area, number = int(mask.sum()), len(annotations) + 1
                    annotations.append(
                        {**known, "id": number, "area": area, "iscrowd": int(crowd), "bbox": [0, 0, 1, 1]}
                    )
                elif rng.random() < 0.9:
                    results.append({**known, "score": float(rng.integers(0, 8)) / 8})
    images = [{"id": n, "file_name": f"{n:012d}.jpg", "height": SIZE[0], "width": SIZE[1]} for n in range(6)]
    categories = [{"id": 3, "name": "car"}, {"id": 9, "name": "boat"}]
    return {"images": images, "annotations": annotations, "categories": categories}, results


def official(truth, results):
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = json.loads(json.dumps(truth))
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(json.loads(json.dumps(results))), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [None if value == -1 else pytest.approx(value, abs=1e-12) for value in evaluation.stats.tolist()]


def written(folder, truth, results):
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "results.json").write_text(json.dumps(results))
    return "coco_instances", folder / "truth.json", folder / "results.json"


def evalset_as_coco():
    """The evaluation set, its images numbered 0 to 19 and 1000 to 1019, as pycocotools was given it."""
    confidences = json.loads((FOLDER / "scores.json").read_text())
    images, annotations, results = [], [], []
    for place, sequence in enumerate(SEQUENCES):
        for frame in FRAMES:
            number = 1000 * place + frame
            classes, instances, pred_classes, pred_tracks = maps(sequence, frame)
            images.append({"id": number, "height": classes.shape[0], "width": classes.shape[1]})
            for native in (CAR, PERSON):
                for one in np.unique(instances[classes == native]).tolist():
                    crowd = one == 65535
                    if native == CAR and crowd:
                        continue
                    mask = (classes == native) & (instances == one)
                    annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": native,
                                        "iscrowd": int(crowd), "area": int(mask.sum()), "bbox": [0, 0, 1, 1],
                                        "segmentation": encode(mask)})  # fmt: skip
            for name, score in confidences[f"{sequence}/{frame:06d}"].items():
                native, track = map(int, name.split("/"))
                mask = (pred_classes == native) & (pred_tracks == track)
                results.append(
                    {"image_id": number, "category_id": native, "score": score, "segmentation": encode(mask)}
                )
    categories = [{"id": CAR, "name": "car"}, {"id": PERSON, "name": "person"}]
    return {"images": images, "annotations": annotations, "categories": categories}, results


def test_equal_scores_rank_in_the_order_of_image_ids(tmp_path):
    """As text, 1000 is before 2; of the 619 detections many have equal scores."""
    truth, results = evalset_as_coco()
    table, found = table_and_scores(*written(tmp_path, truth, results))
    expected = {name: EXPECTED["pycocotools"][name] for name in NAMES}
    assert {name: found[name] for name in NAMES} == pytest.approx(expected, abs=1e-9)
    assert table.num_rows > 0
    results.append({**results[0], "score": 0.001})  # two masks that overlap: no table
    table, found = table_and_scores(*written(tmp_path, truth, results))
    assert [found[name] for name in NAMES] == official(truth, results)
    assert table.num_rows == 0


@pytest.mark.parametrize("disjoint", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_equals_pycocotools(tmp_path, seed, disjoint):
    truth, results = drawn(seed, disjoint)
    table, found = table_and_scores(*written(tmp_path, truth, results))
    assert [found[name] for name in NAMES] == official(truth, results)
    assert (table.num_rows > 0) == disjoint


def test_disjoint_masks_are_counted_in_a_table_and_overlapping_ones_are_not(tmp_path):
    truth, results = drawn(0, disjoint=True)
    table, _ = table_and_scores(*written(tmp_path, truth, results))
    assert len(set(table["sequence"].to_pylist())) == 6
    results.append({**results[0], "score": 0.01})
    table, found = table_and_scores(*written(tmp_path, truth, results))
    assert table.num_rows == 0
    assert [found[name] for name in NAMES] == official(truth, results)


def test_polygons_and_uncompressed_run_lengths(tmp_path):
    truth, results = drawn(1, disjoint=True)
    polygon = {"image_id": 5, "category_id": 3, "id": 99, "area": 1.0, "iscrowd": 0, "bbox": [0, 0, 1, 1],
               "segmentation": [[100.0, 100.0, 140.0, 100.0, 140.0, 118.0, 100.0, 118.0]]}  # fmt: skip
    counts = [100 * 120 + 100, 18, 59 * 120 + 2]  # one column of the polygon
    truth["annotations"] = [a for a in truth["annotations"] if a["image_id"] != 5] + [polygon]
    results = [r for r in results if r["image_id"] != 5]
    results.append({"image_id": 5, "category_id": 3, "score": 0.9,
                    "segmentation": {"size": list(SIZE), "counts": counts}})  # fmt: skip
    _, found = table_and_scores(*written(tmp_path, truth, results))
    assert found["AP"] is not None


BROKEN = {
    "an unknown image": ({"image_id": 77}, r"results\.json, result 0, image 77: the truth has no such image"),
    "an unknown class": ({"category_id": 4}, r"results\.json, result 0, image \d: category 4 is not in the truth"),
    "no score": ({"score": None}, r"results\.json, result 0: malformed"),
    "a score that is none": ({"score": float("nan")}, r"results\.json, result 0, image \d: a score is nan"),
    "another size": (
        {"segmentation": {"size": [5, 5], "counts": [25]}},
        r"results\.json, result 0, image \d: the mask is \[5, 5\]",
    ),
    "broken run lengths": (
        {"segmentation": {"size": list(SIZE), "counts": "P"}},
        r"results\.json, result 0, image \d: .*break off",
    ),
}


@pytest.mark.parametrize("mistake", BROKEN)
def test_a_mistake_is_named(tmp_path, mistake):
    change, message = BROKEN[mistake]
    truth, results = drawn(2, disjoint=True)
    results[0].update(change)
    with pytest.raises(DataError, match=message):
        read_results(*written(tmp_path, truth, results))


def test_nothing_found_is_a_score_of_zero(tmp_path):
    """pycocotools' loadRes of an empty list is an IndexError."""
    truth, _ = drawn(3, disjoint=True)
    _, found = table_and_scores(*written(tmp_path, truth, []))
    assert found["AP"] == 0.0


def test_an_annotation_that_is_listed_twice(tmp_path):
    truth, results = drawn(2, disjoint=True)
    truth["annotations"].append(truth["annotations"][0])
    with pytest.raises(DataError, match=r"truth\.json, annotation 1, image \d: the annotation is listed twice"):
        read_results(*written(tmp_path, truth, results))
