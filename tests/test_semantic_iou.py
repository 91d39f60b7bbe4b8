from dataclasses import replace

import numpy as np
import pytest
from evalset import EXPECTED, table

from post_platform.metrics.contingency import frame_table
from post_platform.metrics.segments import rows_of
from post_platform.metrics.semantic_iou import report

NAMES = {0: "road", 1: "car", 2: "person"}
VOID = 255


def scores(truth, pred):
    """Of one frame, a row of classes."""
    truth, pred = np.array([truth], np.uint8), np.array([pred], np.uint8)
    return report(frame_table("d", "s", 0, truth, np.zeros_like(truth), pred, np.zeros_like(pred)), NAMES)


def test_by_hand():
    """Six pixels of road, two of car; one of each is taken for the other."""
    found = scores([0] * 6 + [1] * 2, [0] * 5 + [1] + [1, 0])
    assert found == {
        "mIoU": pytest.approx((5 / 7 + 1 / 3) / 2),
        "fwIoU": pytest.approx(6 / 8 * 5 / 7 + 2 / 8 * 1 / 3),
        "mACC": pytest.approx((5 / 6 + 1 / 2) / 2),
        "pACC": 6 / 8,
        "per_class": {
            "road": {"iou": 5 / 7, "acc": 5 / 6},
            "car": {"iou": 1 / 3, "acc": 1 / 2},
            "person": {"iou": None, "acc": None},
        },
    }


def test_true_void_counts_nowhere_and_predicted_void_is_a_miss():
    found = scores([VOID, VOID, 0, 0, 1, 1], [0, 1, 0, VOID, 1, 1])
    assert found["per_class"]["road"] == {"iou": 0.5, "acc": 0.5}
    assert found["per_class"]["car"] == {"iou": 1.0, "acc": 1.0}
    assert (found["mIoU"], found["fwIoU"], found["mACC"], found["pACC"]) == (0.75, 0.75, 0.75, 0.75)


def test_a_class_that_is_only_predicted_has_iou_0_and_no_accuracy():
    found = scores([0, 0, 0, 0], [0, 0, 0, 2])
    assert found["per_class"]["person"] == {"iou": 0.0, "acc": None}
    assert (found["mIoU"], found["fwIoU"], found["mACC"], found["pACC"]) == (0.375, 0.75, 0.75, 0.75)


def test_a_class_that_is_not_scored_is_a_miss():
    assert scores([0, 0, 1], [0, 9, 1])["per_class"]["road"] == {"iou": 0.5, "acc": 0.5}


def test_nothing_labelled():
    found = scores([VOID] * 3, [0, 1, 2])
    assert [found[name] for name in ("mIoU", "fwIoU", "mACC", "pACC")] == [None] * 4


def test_equals_detectron2():
    """It has no void in a prediction; its numbers are those with class 0 there, known to the digits given."""
    rows = rows_of(table())
    found = report(
        replace(rows, pred_class=np.where(rows.pred_class == VOID, 0, rows.pred_class)), {n: str(n) for n in range(19)}
    )
    expected = EXPECTED["detectron2"]
    assert found["mIoU"] == pytest.approx(expected["mIoU"], abs=1e-6)
    assert [found[name] for name in ("fwIoU", "mACC", "pACC")] == pytest.approx(
        [expected[name] for name in ("fwIoU", "mACC", "pACC")], abs=5e-6
    )
