"""Segmentation and tracking quality: STQ = sqrt(AQ x IoU) of a video in which every pixel has a class.

Definition: IoU = mean over classes of the class IoU of all pixels. AQ (association) = mean over the true tubes g (one
object over its sequence) of 1/|g| x sum over the predicted tubes p that touch g of |p and g| x IoU(p, g).

Source: Weber et al., "STEP: Segmenting and Tracking Every Pixel" (2021), with the rules of deeplab2's evaluation:
  - void truth is left out of the class IoU, yet predicted things on it still count in the size of a predicted tube;
  - void *predicted* on valid truth is one more class in the mean, with IoU 0;
  - crowd (a thing without identity) is left out of AQ on both sides, and counts for the class IoU;
  - predicted id 0 of a thing class is an ordinary id; a tube is a (class, id), but tubes of different thing classes may
    overlap, so "right identity, wrong thing class" costs IoU and not AQ;
  - without any true tube AQ and STQ are 0.
Deviation: sizes are exact integers (deeplab2's TensorFlow version counts in float32). Nothing labelled: IoU and STQ are
None, where deeplab2 says nan.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa

from post_platform.labels import VOID
from post_platform.metrics.segments import Rows, group, mean, ratio, rows_of
from post_platform.metrics.semantic_iou import class_pixels


def report(table: pa.Table | Rows, names: Collection[int], things: Collection[int]) -> dict[str, Any]:
    """STQ, AQ and SQ (the class IoU) over all sequences together, and of each sequence alone by `dataset/sequence`.

    Together means that tubes are averaged over all sequences and their confusion is summed. `names`: the classes.
    """
    rows = rows_of(table)
    order = np.argsort(rows.video, kind="stable")  # a mask per sequence would look at every row as often
    parts = np.split(order, np.searchsorted(rows.video[order], np.arange(1, len(rows.names))))
    counted = {name: _count(rows.where(part), names, things) for name, part in zip(rows.names, parts, strict=False)}
    per_sequence = {name: _quality(found, names) for name, found in counted.items()}
    return {**_quality(_together(counted.values()), names), "per_sequence": per_sequence}


@dataclass(frozen=True)
class _Counts:
    """What sequences add to the scores: true tubes and the sum over them, and pixels by class, of three kinds."""

    tubes: int
    association: float
    pixels: np.ndarray


def _count(rows: Rows, classes: Collection[int], things: Collection[int]) -> _Counts:
    pixels = np.stack(class_pixels(rows.where(np.isin(rows.truth_class, list(classes)))))
    thing = np.isin(np.arange(VOID + 1), list(things))
    rows = rows.where(~(rows.crowd & thing[rows.truth_class]))
    truth = group(rows.video, rows.truth_class, rows.truth_instance)
    pred = group(rows.video, rows.pred_class, rows.pred_track)
    truth_size, pred_size = truth.total(rows.pixels), pred.total(rows.pixels)
    pair = group(truth.of_row, pred.of_row)
    shared, (t, p) = pair.total(rows.pixels), pair.keys.T
    tubes = thing[truth.keys[:, 1]]
    both = tubes[t] & thing[pred.keys[p, 1]]
    shared, t, p = shared[both], t[both], p[both]
    terms = shared * (shared / (truth_size[t] + pred_size[p] - shared)) / truth_size[t]
    return _Counts(int(np.count_nonzero(tubes)), float(terms.sum()), pixels)


def _together(parts: Iterable[_Counts]) -> _Counts:
    nothing = _Counts(0, 0.0, np.zeros((3, VOID + 1)))
    return reduce(
        lambda a, b: _Counts(a.tubes + b.tubes, a.association + b.association, a.pixels + b.pixels), parts, nothing
    )


def _quality(found: _Counts, classes: Collection[int]) -> dict[str, float | None]:
    aq = ratio(found.association, found.tubes) or 0.0
    truth, pred, both = found.pixels
    union = truth + pred - both
    iou = mean([ratio(both[c], union[c]) for c in [*classes, VOID]])
    return {"STQ": None if iou is None else math.sqrt(aq * iou), "AQ": aq, "SQ": iou}
