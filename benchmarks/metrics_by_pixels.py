"""Scores of panoptic videos the way the official tools compute them: from pixels, with a sort of every frame's pairs.

Written from the definitions for `metrics.py`, which times them and holds ours to their numbers. A frame is the four
label maps of a reader's pair; a segment is class << 16 | identity.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

VOID, CROWD = 255, 65535
Video = Sequence[Any]  # of pairs in time order


def segments(classes: np.ndarray, identities: np.ndarray) -> np.ndarray:
    """One 64-bit number per pixel."""
    return classes.astype(np.int64) << 16 | identities


def pairs(truth: np.ndarray, pred: np.ndarray) -> dict[tuple[int, int], int]:
    """Pixels that each truth and prediction share, by a sort of one 64-bit number per pixel."""
    found, counts = np.unique(truth << 32 | pred, return_counts=True)
    return {(int(pair) >> 32, int(pair) & 0xFFFFFFFF): int(count) for pair, count in zip(found, counts, strict=True)}


def areas(image: np.ndarray) -> dict[int, int]:
    """Pixels of each segment."""
    return dict(zip(*(part.tolist() for part in np.unique(image, return_counts=True)), strict=True))


def video_panoptic_quality(videos: Mapping[str, Video], frames: int) -> float:
    """PQ of the tubes in every window of so many frames; of one frame it is the PQ of images."""
    iou = defaultdict[int, float](float)
    tp, fp, fn = Counter[int](), Counter[int](), Counter[int]()
    for video in videos.values():
        truths = [segments(pair.truth_classes, pair.truth_instances) for pair in video]
        preds = [segments(pair.pred_classes, pair.pred_tracks) for pair in video]
        for first in range(len(video) - frames + 1):
            truth = np.concatenate(truths[first : first + frames])
            pred = np.concatenate(preds[first : first + frames])
            shared, pred_areas, truth_areas = pairs(truth, pred), areas(pred), Counter[int]()
            for (t, _), pixels in shared.items():
                truth_areas[t] += pixels
            matched = set()
            for (t, p), pixels in shared.items():
                if t >> 16 != p >> 16 or t >> 16 == VOID or t & CROWD == CROWD:
                    continue
                union = truth_areas[t] + pred_areas[p] - pixels - shared.get((VOID << 16, p), 0)
                if pixels / union > 0.5:
                    matched |= {("truth", t), ("pred", p)}
                    tp[t >> 16] += 1
                    iou[t >> 16] += pixels / union
            for t in truth_areas:
                if t >> 16 != VOID and t & CROWD != CROWD and ("truth", t) not in matched:
                    fn[t >> 16] += 1
            for p, area in pred_areas.items():
                excused = shared.get((VOID << 16, p), 0) + shared.get((p >> 16 << 16 | CROWD, p), 0)
                if p >> 16 != VOID and ("pred", p) not in matched and excused / area <= 0.5:
                    fp[p >> 16] += 1
    found = [iou[c] / (tp[c] + fp[c] / 2 + fn[c] / 2) for c in tp.keys() | fp.keys() | fn.keys()]
    return float(np.mean(found))


def segmentation_and_tracking_quality(videos: Mapping[str, Video], things: Collection[int]) -> float:
    """STQ over all videos: a sort each for the confusion, the true tubes, the predicted tubes and their pairs."""
    confusion = np.zeros((VOID + 1, VOID + 1), np.int64)
    quality, tubes = 0.0, 0
    for video in videos.values():
        sizes = {side: Counter[int]() for side in ("truth", "pred")}
        shared = defaultdict[int, Counter[int]](Counter)
        for pair in video:
            valid = pair.truth_classes != VOID
            classes = (pair.truth_classes[valid].astype(np.int64), pair.pred_classes[valid].astype(np.int64))
            for (t, p), pixels in pairs(*classes).items():
                confusion[t, p] += pixels
            crowd = pair.truth_instances == CROWD
            true = np.isin(pair.truth_classes, list(things)) & ~crowd
            said = np.isin(pair.pred_classes, list(things)) & ~crowd
            truth = segments(pair.truth_classes, pair.truth_instances)
            pred = segments(pair.pred_classes, pair.pred_tracks)
            sizes["truth"].update(areas(truth[true]))
            sizes["pred"].update(areas(pred[said]))
            for (t, p), pixels in pairs(truth[true & said], pred[true & said]).items():
                shared[t][p] += pixels
        tubes += len(sizes["truth"])
        for t, others in shared.items():
            size = sizes["truth"][t]
            quality += sum(n * n / (size + sizes["pred"][p] - n) for p, n in others.items()) / size
    union = confusion.sum(0) + confusion.sum(1) - np.diag(confusion)
    iou = np.diag(confusion)[union > 0] / union[union > 0]
    return math.sqrt(quality / tubes * iou.mean())


def mean_iou(videos: Mapping[str, Video], classes: int) -> float:
    """mIoU from a confusion matrix, counted by one number per pixel; predicted void is one more class."""
    confusion = np.zeros((classes + 1, classes + 1), np.int64)
    for video in videos.values():
        for pair in video:
            truth, pred = (np.minimum(m, classes).astype(np.int64) for m in (pair.truth_classes, pair.pred_classes))
            counts = np.bincount((truth * (classes + 1) + pred).reshape(-1), minlength=confusion.size)
            confusion += counts.reshape(confusion.shape)
    confusion = confusion[:classes]
    union = confusion.sum(0)[:classes] + confusion.sum(1) - np.diag(confusion)
    return float(np.mean(np.diag(confusion)[union > 0] / union[union > 0]))
