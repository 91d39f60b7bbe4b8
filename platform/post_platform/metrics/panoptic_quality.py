"""Panoptic quality: PQ = SQ x RQ per class, averaged over classes.

Definition: a predicted and a true segment of one class match when their IoU is above 0.5. TP = matches, FP and FN =
segments without a match, SQ = mean IoU of the matches, RQ = TP / (TP + FP/2 + FN/2), PQ = SQ x RQ.

Source: Kirillov et al., "Panoptic Segmentation" (2019), with the rules of panopticapi's evaluation:
  - IoU > 0.5 is strict, and the union leaves out the prediction's pixels on void truth (crowd stays in);
  - an unmatched prediction is dropped when more than half of it lies on void or on crowd of its own class;
  - a class enters the averages when it has a TP, FP or FN.
Deviations:
  - all crowd of a class in a frame excuses predictions, where panopticapi knows only the last crowd segment that an
    image's JSON lists for the class; `crowd="last"` is panopticapi's rule;
  - truth areas are counted, not read from the JSON (where a wrong one gives IoU above 1, say 1600);
  - where nothing is to be averaged we say None, where panopticapi divides by zero.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import astuple, dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from post_platform.labels import UNIDENTIFIED, VOID
from post_platform.metrics.segments import Rows, blocks, group, mean, ratio, rows_of

Crowd = Literal["every", "last", "missed"]


@dataclass(frozen=True)
class Counts:
    """Matches of one class over all frames; `iou` is the sum over the true positives."""

    tp: int = 0
    fp: int = 0
    fn: int = 0
    iou: float = 0.0


@dataclass(frozen=True)
class Quality:
    """PQ, SQ and RQ as ratios over `num_classes` classes; None when there is no class to average."""

    pq: float | None
    sq: float | None
    rq: float | None
    num_classes: int


def report(
    table: pa.Table | Rows, names: Mapping[int, str], things: Collection[int], crowd: Literal["every", "last"] = "every"
) -> dict[str, Any]:
    """PQ, SQ and RQ over all classes, things and stuff (`n`: classes averaged), and with TP, FP and FN of every class.

    `names`: the classes that are scored; segments of others (a background) are neither matched nor missed. Every
    (class, instance) of a frame is a segment of the truth, every (class, track) one of the prediction.
    """
    counts = add((match_segments(part, names, crowd) for part in blocks(rows_of(table))), names)
    per_class = {}
    for number, name in names.items():
        quality, count = class_quality(counts[number]), counts[number]
        per_class[name] = {**_ratios(quality), "tp": count.tp, "fp": count.fp, "fn": count.fn}
    found: dict[str, Any] = {"per_class": per_class}
    for label, classes in class_groups(names, things).items():
        quality = average(counts, classes)
        found[label] = {**_ratios(quality), "n": quality.num_classes}
    return found


def class_groups(classes: Collection[int], things: Collection[int]) -> dict[str, list[int]]:
    """The three groups of classes that PQ and VPQ are averaged over."""
    return {
        "All": list(classes),
        "Things": [native for native in classes if native in things],
        "Stuff": [native for native in classes if native not in things],
    }


def match_segments(rows: Rows, classes: Collection[int], crowd: Crowd = "every") -> dict[int, Counts]:
    """Matches of every class in `classes`; a segment is the rows of one `moment`, which video metrics let span frames.

    `crowd`: which of it excuses predictions, every one or the last of its class; or none, and it is an object like any
    other, that is missed when nothing matches it.
    """
    counted = np.isin(np.arange(VOID + 1), list(classes))
    counted[VOID] = False

    truth = group(rows.moment, rows.truth_class, rows.truth_instance)
    pred = group(rows.moment, rows.pred_class, rows.pred_track)
    truth_area, pred_area = truth.total(rows.pixels), pred.total(rows.pixels)
    on_void = pred.total(rows.pixels * rows.void)
    excuse = {"every": rows.crowd, "last": rows.truth_instance == UNIDENTIFIED, "missed": np.zeros(1, bool)}[crowd]
    excused = on_void + pred.total(rows.pixels * (excuse & (rows.truth_class == rows.pred_class)))

    # A row is a pair of segments of one frame, but the same pair may come from several tables: sum it first.
    pair = group(truth.of_row, pred.of_row)
    t, p = pair.keys.T
    shared = pair.total(rows.pixels)
    union = truth_area[t] + pred_area[p] - shared - on_void[p]
    same_class = truth.keys[t, 1] == pred.keys[p, 1]
    is_truth = counted[truth.keys[:, 1]]
    if crowd != "missed":
        is_truth &= truth.keys[:, 2] < UNIDENTIFIED
    matched = is_truth[t] & same_class & (2 * shared > union)
    is_pred = counted[pred.keys[:, 1]]
    missed, spurious = is_truth.copy(), is_pred & (2 * excused <= pred_area)
    missed[t[matched]] = False
    spurious[p[matched]] = False

    tp = np.bincount(truth.keys[t[matched], 1], minlength=VOID + 1)
    iou = np.bincount(truth.keys[t[matched], 1], weights=shared[matched] / union[matched], minlength=VOID + 1)
    fn = np.bincount(truth.keys[missed, 1], minlength=VOID + 1)
    fp = np.bincount(pred.keys[spurious, 1], minlength=VOID + 1)
    return {c: Counts(int(tp[c]), int(fp[c]), int(fn[c]), float(iou[c])) for c in sorted(classes)}


def add(parts: Iterable[Mapping[int, Counts]], classes: Collection[int]) -> dict[int, Counts]:
    """The sums, by class, of what was counted in parts."""
    listed = list(parts)
    return {
        c: Counts(*(sum(column) for column in zip(*(astuple(part[c]) for part in listed), strict=True)))
        for c in classes
    }


def class_quality(counts: Counts) -> Quality:
    """PQ, SQ and RQ of one class; all None when it occurs neither in the truth nor in the prediction.

    Source: as panopticapi, SQ is 0 when the class occurs but nothing of it matches.
    """
    weight = counts.tp + counts.fp / 2 + counts.fn / 2
    if not weight:
        return Quality(None, None, None, 0)
    return Quality(ratio(counts.iou, weight), ratio(counts.iou, counts.tp) or 0.0, ratio(counts.tp, weight), 1)


def average(counts: Mapping[int, Counts], classes: Collection[int]) -> Quality:
    """Plain mean of PQ, of SQ and of RQ over those of `classes` that occur."""
    present = [quality for c in classes if (quality := class_quality(counts[c])).num_classes]
    return Quality(
        mean([q.pq for q in present]), mean([q.sq for q in present]), mean([q.rq for q in present]), len(present)
    )


def _ratios(quality: Quality) -> dict[str, Any]:
    return {"pq": quality.pq, "sq": quality.sq, "rq": quality.rq}
