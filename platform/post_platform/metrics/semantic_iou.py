"""Semantic IoU: how well the classes of single pixels are told, whatever segment they are in.

Definition: with T pixels of a class in the truth, P in the prediction and B in both, IoU = B / (T + P - B) and accuracy
= B / T. mIoU = mean over the classes that occur, fwIoU = sum of IoU x T / sum of T, mACC = mean of the accuracies of
the classes that the truth has, pACC = sum of B / sum of T.

Source: the confusion matrix of the Cityscapes benchmark for IoU, detectron2's evaluation for the others. Truth void is
left out; a pixel predicted void, or as a class that is not scored, is a miss of its true class and of nothing else.
Differences between tools: detectron2 has no void in a prediction, so a panoptic result must name a class there. With
class 0 each such pixel is a false positive of class 0 as well: 0.850014 on the test data, where mIoU here is 0.850194.
And a class that is predicted and never true has no IoU there; here, as in Cityscapes, it has 0, and counts in mIoU.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from post_platform.labels import VOID
from post_platform.metrics.segments import Rows, mean, ratio, rows_of


def report(table: pa.Table | Rows, names: Mapping[int, str]) -> dict[str, Any]:
    """mIoU, fwIoU, mACC and pACC over the classes in `names`; IoU and accuracy of each (None: not there)."""
    rows = rows_of(table)
    truth, pred, both = class_pixels(rows.where(~rows.void))
    iou = {c: ratio(both[c], truth[c] + pred[c] - both[c]) for c in names}
    accuracy = {c: ratio(both[c], truth[c]) for c in names}
    total = sum(truth[c] for c in names)
    return {
        "mIoU": mean(list(iou.values())),
        "fwIoU": ratio(sum((iou[c] or 0.0) * truth[c] for c in names), total),
        "mACC": mean(list(accuracy.values())),
        "pACC": ratio(sum(both[c] for c in names), total),
        "per_class": {name: {"iou": iou[c], "acc": accuracy[c]} for c, name in names.items()},
    }


def class_pixels(rows: Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels of each class in the truth, in the prediction, and in both at once.

    Shape: (256,) each, by class.
    """
    agree = rows.where(rows.truth_class == rows.pred_class)
    listed = ((rows.truth_class, rows), (rows.pred_class, rows), (agree.truth_class, agree))
    truth, pred, both = (np.bincount(of, weights=r.pixels, minlength=VOID + 1) for of, r in listed)
    return truth, pred, both  # float64 is exact up to 2^53 pixels
