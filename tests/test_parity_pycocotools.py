"""AP of random small images equals that of pycocotools, which is run on the same masks."""

import contextlib
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from post_platform.metrics import mask_ap, track_ap
from post_platform.metrics.contingency import frame_table, merge

ORDER = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
NAMES = {1: "car", 2: "person"}
CROWD = 65535


def encode(mask):
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))


def official(images):
    """COCOeval's 12 numbers and AP, AP50 per class; `images`: truth (class, crowd, mask), pred (class, score, mask)."""
    truth, results = [], []
    for number, (true, found) in enumerate(images, start=1):
        for native, crowd, mask in true:
            truth.append({"id": len(truth) + 1, "image_id": number, "category_id": native, "iscrowd": int(crowd),
                          "area": int(mask.sum()), "segmentation": encode(mask), "bbox": [0, 0, 1, 1]})  # fmt: skip
        for native, score, mask in found:
            results.append({"image_id": number, "category_id": native, "score": score, "segmentation": encode(mask)})
    with contextlib.redirect_stdout(io.StringIO()):
        coco, detected = COCO(), COCO()
        coco.dataset = {
            "images": [
                {"id": n, "height": h, "width": w}
                for n, (h, w) in enumerate([sizes(image) for image in images], start=1)
            ],
            "annotations": truth,
            "categories": [{"id": native} for native in NAMES],
        }
        coco.createIndex()
        if results:
            detected = coco.loadRes(results)
        else:  # loadRes has an IndexError
            detected.dataset = {**coco.dataset, "annotations": []}
            detected.createIndex()
        evaluation = COCOeval(coco, detected, "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    per_class = {
        name: {"AP": precision[:, :, place].mean(), "AP50": precision[0, :, place].mean()}
        for place, name in enumerate(NAMES.values())
    }
    return dict(zip(ORDER, evaluation.stats.tolist(), strict=True)), per_class


def sizes(image):
    return next(iter([mask.shape for entries in image for _, _, mask in entries]), (1, 1))


def same(found, images):
    averages, per_class = official(images)
    assert {name: found[name] for name in ORDER} == {name: close(value) for name, value in averages.items()}
    assert found["per_class"] == {
        name: {metric: close(value) for metric, value in values.items()} for name, values in per_class.items()
    }


def close(value):
    return None if value == -1 else pytest.approx(value, abs=1e-12)


def drawn(rng, scale):
    """One frame: maps of classes (0: none) and numbers, blocks of `scale` pixels; predictions copy a part of it."""
    shape = tuple(rng.integers(1, 7, 2))
    classes, instances = rng.integers(0, 3, shape), rng.choice([1, 2, 3, CROWD], shape, p=[0.4, 0.3, 0.2, 0.1])
    copied = rng.random(shape) < rng.choice([0.0, 0.7, 0.95])
    pred_classes = np.where(copied, classes, rng.integers(0, 3, shape))
    pred_tracks = np.where(copied, instances % 11, rng.integers(0, 4, shape))
    if rng.random() < 0.1:
        classes[:] = 0
    if rng.random() < 0.1:
        pred_classes[:] = 0
    maps = (classes, instances, pred_classes, pred_tracks)
    return tuple(np.repeat(np.repeat(array, scale, axis=0), scale, axis=1) for array in maps)


def listed(classes, numbers):
    """The masks of a frame by ascending (class, number)."""
    codes = classes * 100_000 + numbers
    found = np.flatnonzero(np.bincount(codes.reshape(-1))).tolist()
    return [(code // 100_000, code % 100_000, codes == code) for code in found if code >= 100_000]


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.integers(0, 100_000), st.integers(1, 4), st.sampled_from([1] * 7 + [12, 32, 32]))
def test_tables_give_the_numbers_of_coco_eval(seed, frames, scale):
    """Ties of scores are frequent; blocks of 12 and 32 pixels reach over both limits of size, 32 exactly to them."""
    rng = np.random.default_rng(seed)
    tables, images = [], []
    for number in range(frames):
        classes, instances, pred_classes, pred_tracks = drawn(rng, scale)
        truth = [(native, instance == CROWD, mask) for native, instance, mask in listed(classes, instances)]
        pred = listed(pred_classes, pred_tracks)
        scores = {(native, track): int(rng.integers(0, 4)) / 4 for native, track, _ in pred if rng.random() < 0.9}
        tables.append(frame_table("d", "s", number, classes, instances, pred_classes, pred_tracks, scores))
        images.append((truth, [(c, scores[c, track], mask) for c, track, mask in pred if (c, track) in scores]))
    same(mask_ap.report(merge(tables), NAMES), images)


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(st.integers(0, 100_000), st.integers(1, 4))
def test_overlapping_masks_give_the_numbers_of_coco_eval(seed, frames):
    """Boxes that lie on each other, several crowds of a class, more detections than the best hundred."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(frames):
        boxes = np.zeros((int(rng.choice([3, 6, 12, 120], p=[0.3, 0.4, 0.28, 0.02])), 8, 8), bool)
        for mask in boxes:
            y, x = rng.integers(0, 4, 2)
            mask[y : y + rng.integers(1, 6), x : x + rng.integers(1, 6)] = True
        natives = rng.integers(1, 3, len(boxes)).tolist()
        scores, split = (rng.integers(0, 4, len(boxes)) / 4).tolist(), int(rng.integers(0, min(len(boxes), 7)))
        crowd = (rng.random(len(boxes)) < 0.2).tolist()
        truth = list(zip(natives, crowd, boxes, strict=True))[:split]
        images.append((truth, list(zip(natives, scores, boxes, strict=True))[split:]))
    same(track_ap.report([with_overlaps(*image) for image in images], NAMES, mask_ap.SIZES), images)


def with_overlaps(truth, pred):
    true, found = (np.array([mask for _, _, mask in side], float).reshape(len(side), 64) for side in (truth, pred))
    crowd = [is_crowd for _, is_crowd, _ in truth]
    return track_ap.Video(
        tuple(track_ap.Track(native, mask.sum(), crowd=is_crowd) for native, is_crowd, mask in truth),
        tuple(track_ap.Track(native, mask.sum(), score=score) for native, score, mask in pred),
        track_ap.overlaps(found @ true.T, found.sum(axis=1), true.sum(axis=1), crowd),
    )
