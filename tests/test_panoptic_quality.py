import numpy as np
import pytest
from evalset import CAR, EXPECTED, PERSON, table

from post_platform.metrics.contingency import frame_table
from post_platform.metrics.panoptic_quality import Counts, Quality, average, class_iou, class_quality, count_matches

THING, STUFF, OTHER, VOID, CROWD = 1, 2, 3, 255, 65535


def test_equals_panopticapi_per_class():
    counts = count_matches(table(), range(19))
    for native in range(19):
        expected = EXPECTED["panopticapi"]["per_class"].get(str(native + 1), {"tp": 0, "fp": 0, "fn": 0, "iou": 0})
        found = counts[native]
        assert (found.tp, found.fp, found.fn) == (expected["tp"], expected["fp"], expected["fn"])
        assert found.iou == pytest.approx(expected["iou"], abs=1e-9)


@pytest.mark.parametrize(
    ("group", "classes"),
    [("All", set(range(19))), ("Things", {PERSON, CAR}), ("Stuff", set(range(19)) - {PERSON, CAR})],
)
def test_equals_panopticapi_averages(group, classes):
    expected, found = EXPECTED["panopticapi"][group], average(count_matches(table(), range(19)), classes)
    assert found.num_classes == expected["n"]
    assert (found.pq, found.sq, found.rq) == pytest.approx((expected["pq"], expected["sq"], expected["rq"]), abs=1e-9)


def canvas(fill=(VOID, 0), **boxes):
    """100x100 (classes, ids) filled with one segment; a box is name=(class, id, y, x, height, width)."""
    classes, ids = np.full((100, 100), fill[0], np.uint8), np.full((100, 100), fill[1], np.int32)
    for native, identity, y, x, height, width in boxes.values():
        classes[y : y + height, x : x + width], ids[y : y + height, x : x + width] = native, identity
    return classes, ids


def matches(truth, pred):
    found = count_matches(frame_table("d", "s", 0, *truth, *pred), (THING, STUFF, OTHER))
    return {native: counts for native, counts in found.items() if counts != Counts()}, found


def square(native=THING, identity=1):
    return (native, identity, 10, 10, 40, 40)


def half(native=THING, identity=1):
    return (native, identity, 10, 10, 40, 20)


ON_STUFF = (STUFF, 0)
STUFF_AROUND = Counts(1, 0, 0, 8400 / 9200)
# Expected counts are panopticapi's on the same rectangles; a class that is not named has no TP, FP or FN.
CASES = {
    "perfect, rest void": (canvas(a=square()), canvas(a=square()), {THING: Counts(1, 0, 0, 1.0)}, 1.0),
    "IoU of exactly 0.5 is no match": (
        canvas(ON_STUFF, a=square()),
        canvas(ON_STUFF, a=half()),
        {THING: Counts(0, 1, 1, 0), STUFF: STUFF_AROUND},
        0.45652173913043476,
    ),
    "spilling over void is free": (
        canvas(a=square()),
        canvas(a=(THING, 1, 0, 10, 50, 40)),
        {THING: Counts(1, 0, 0, 1.0)},
        1.0,
    ),
    "nothing predicted": (canvas(a=square()), canvas(), {THING: Counts(0, 0, 1, 0)}, 0.0),
    "nothing labelled": (canvas(), canvas(a=square()), {}, None),
    "nothing at all": (canvas(), canvas(), {}, None),
    "thing predicted on stuff": (
        canvas(ON_STUFF),
        canvas(ON_STUFF, a=square()),
        {THING: Counts(0, 1, 0, 0), STUFF: Counts(1, 0, 0, 0.84)},
        0.42,
    ),
    "prediction in crowd of its class is dropped": (
        canvas(ON_STUFF, a=square(identity=CROWD)),
        canvas(ON_STUFF, a=half(identity=7)),
        {STUFF: STUFF_AROUND},
        0.9130434782608695,
    ),
    "prediction in crowd of another class is wrong": (
        canvas(ON_STUFF, a=square(identity=CROWD)),
        canvas(ON_STUFF, a=half(OTHER, 7)),
        {OTHER: Counts(0, 1, 0, 0), STUFF: STUFF_AROUND},
        0.45652173913043476,
    ),
    "half of a prediction on void is not enough to drop it": (
        canvas(a=(STUFF, 0, 10, 10, 40, 40)),
        canvas(a=(THING, 7, 10, 0, 40, 20)),
        {THING: Counts(0, 1, 0, 0), STUFF: Counts(0, 0, 1, 0)},
        0.0,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_edge_cases_equal_panopticapi(case):
    truth, pred, expected, pq = CASES[case]
    found, counts = matches(truth, pred)
    assert found.keys() == expected.keys()
    for native, want in expected.items():
        got = found[native]
        assert (got.tp, got.fp, got.fn) == (want.tp, want.fp, want.fn)
        assert got.iou == pytest.approx(want.iou, abs=1e-12)
    quality = average(counts, (THING, STUFF, OTHER))
    assert quality.pq == (None if pq is None else pytest.approx(pq, abs=1e-12))
    assert quality.num_classes == len(expected)


def test_deviation_two_crowds_of_a_class_both_count():
    """Panopticapi knows only the last crowd segment of a class, and calls the prediction in the first one wrong."""
    truth = canvas(ON_STUFF, a=(THING, CROWD, 0, 0, 20, 20), b=(THING, CROWD, 40, 40, 20, 20))
    pred = canvas(ON_STUFF, a=(THING, 8, 0, 0, 10, 10), b=(THING, 9, 40, 40, 10, 10))
    found, _ = matches(truth, pred)
    assert found == {STUFF: Counts(1, 0, 0, 9200 / 9800)}


def test_segments_of_a_background_are_neither_matched_nor_missed():
    truth, pred = canvas((0, 0), a=square()), canvas((0, 0), a=square(), b=(OTHER, 5, 60, 60, 10, 10))
    found, _ = matches(truth, pred)
    assert found == {THING: Counts(1, 0, 0, 1.0), OTHER: Counts(0, 1, 0, 0)}


def test_quality_of_counts_by_hand():
    assert class_quality(Counts(2, 1, 1, 1.5)) == Quality(0.5, 0.75, 2 / 3, 1)
    assert class_quality(Counts(0, 3, 0, 0)) == Quality(0.0, 0.0, 0.0, 1)
    assert class_quality(Counts()) == Quality(None, None, None, 0)
    assert average({1: Counts(1, 0, 0, 1.0), 2: Counts(), 3: Counts(0, 1, 0, 0)}, (1, 2, 3)) == Quality(
        0.5, 0.5, 0.5, 2
    )


def test_class_iou_by_hand():
    truth, pred = canvas(ON_STUFF, a=square()), canvas(ON_STUFF, a=half(), b=(VOID, 0, 0, 0, 1, 100))
    frame = frame_table("d", "s", 0, *truth, *pred)
    assert class_iou(frame, (THING, STUFF, OTHER)) == {THING: 0.5, STUFF: 8300 / 9200, OTHER: None}


def test_class_iou_equals_detectron2():
    """It has no void: what is predicted void counts as class 0 there."""
    names = table().column_names
    classes = table()["pred_class"].to_numpy().copy()
    classes[classes == VOID] = 0
    changed = table().set_column(names.index("pred_class"), table().schema.field("pred_class"), [classes])
    ious = [iou for iou in class_iou(changed, range(19)).values() if iou is not None]
    assert np.mean(ious) == pytest.approx(EXPECTED["detectron2"]["mIoU"], abs=1e-6)
