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
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from post_platform.labels import VOID
from post_platform.metrics.segments import Rows, group, mean, ratio, rows_of


@dataclass(frozen=True)
class TrackingQuality:
    """STQ, AQ and IoU as ratios; None where undefined."""

    stq: float | None
    aq: float
    iou: float | None


def tracking_quality(table: pa.Table, classes: Collection[int], things: Collection[int]) -> TrackingQuality:
    """STQ over all sequences of the table together: tubes are averaged over all, the confusion is summed."""
    rows = rows_of(table)
    return _quality(rows, classes, things)


def tracking_quality_per_sequence(
    table: pa.Table, classes: Collection[int], things: Collection[int]
) -> dict[str, TrackingQuality]:
    """STQ of each sequence alone, by name (`dataset/sequence`), in alphabetical order."""
    rows = rows_of(table)
    names = sorted(
        {f"{d}/{s}" for d, s in zip(table["dataset"].to_pylist(), table["sequence"].to_pylist(), strict=True)}
    )
    return {name: _quality(rows.where(rows.video == k), classes, things) for k, name in enumerate(names)}


def _quality(rows: Rows, classes: Collection[int], things: Collection[int]) -> TrackingQuality:
    aq, iou = _association(rows, things), _segmentation(rows, classes)
    return TrackingQuality(None if iou is None else math.sqrt(aq * iou), aq, iou)


def _association(rows: Rows, things: Collection[int]) -> float:
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
    return ratio(terms.sum(), np.count_nonzero(tubes)) or 0.0


def _segmentation(rows: Rows, classes: Collection[int]) -> float | None:
    rows = rows.where(np.isin(rows.truth_class, list(classes)))
    confusion = np.zeros((VOID + 1, VOID + 1), np.int64)
    np.add.at(confusion, (rows.truth_class, rows.pred_class), rows.pixels)
    both = confusion.diagonal()
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - both
    return mean([ratio(both[c], union[c]) for c in [*classes, VOID]])
