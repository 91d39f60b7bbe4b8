from dataclasses import replace

import numpy as np
import pytest
from evalset import CAR, EXPECTED, PERSON, table
from hypothesis import given, settings
from hypothesis import strategies as st

from post_platform.metrics.contingency import OVERLOOKED_CROWD, frame_table
from post_platform.metrics.panoptic_quality import Counts, Quality, average, class_quality, match_segments, report
from post_platform.metrics.segments import rows_of

THING, STUFF, OTHER, VOID, CROWD = 1, 2, 3, 255, 65535
ALL = {number: f"class {number}" for number in range(19)}
NAMES = {THING: "thing", STUFF: "stuff", OTHER: "other"}


def test_equals_panopticapi():
    expected, found = EXPECTED["panopticapi"], report(table(), ALL, (PERSON, CAR))
    for group in ("All", "Things", "Stuff"):
        assert found[group] == pytest.approx(expected[group], abs=1e-9)
    for native, name in ALL.items():
        want = expected["per_class"].get(str(native + 1), {"tp": 0, "fp": 0, "fn": 0, "iou": 0})
        one = found["per_class"][name]
        assert (one["tp"], one["fp"], one["fn"]) == (want["tp"], want["fp"], want["fn"])
        assert (one["sq"] or 0.0) * one["tp"] == pytest.approx(want["iou"], abs=1e-9)
    assert report(rows_of(table()), ALL, (PERSON, CAR), "last") == found  # no frame has two crowds of a class


def canvas(fill=(VOID, 0), **boxes):
    """100x100 (classes, ids) filled with one segment; a box is name=(class, id, y, x, height, width)."""
    classes, ids = np.full((100, 100), fill[0], np.uint8), np.full((100, 100), fill[1], np.int32)
    for native, identity, y, x, height, width in boxes.values():
        classes[y : y + height, x : x + width], ids[y : y + height, x : x + width] = native, identity
    return classes, ids


def matches(truth, pred, crowd="every"):
    """Counts of the classes that occur, and the report."""
    frame = frame_table("d", "s", 0, *truth, *pred)
    counts = match_segments(rows_of(frame), NAMES, crowd)
    found = {native: one for native, one in counts.items() if one != Counts()}
    return found, report(frame, NAMES, (THING, OTHER), crowd)


def square(native=THING, identity=1):
    return (native, identity, 10, 10, 40, 40)


def half(native=THING, identity=1):
    return (native, identity, 10, 10, 40, 20)


ON_STUFF = (STUFF, 0)
STUFF_AROUND = Counts(1, 0, 0, 8400 / 9200)
# Expected counts are panopticapi's on the same rectangles; a class that is not named has no TP, FP or FN. Of "nothing
# labelled" and "nothing at all" it divides by zero, where PQ is None here. With a wrong area of the truth in the JSON,
# 1 instead of 1600, "perfect, rest void" has an IoU of 1600 there; tables know no area but the counted one.
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
    for crowd in ("every", "last"):
        found, scores = matches(truth, pred, crowd)
        assert found == {
            native: replace(one, iou=pytest.approx(one.iou, abs=1e-12)) for native, one in expected.items()
        }
        assert scores["All"]["pq"] == (None if pq is None else pytest.approx(pq, abs=1e-12))
        assert scores["All"]["n"] == len(expected)


def test_of_two_crowds_of_a_class_panopticapi_knows_the_last():
    """The reader marks the other one. The prediction on it is wrong by `last`, and excused by our own rule."""
    truth = canvas(ON_STUFF, a=(THING, OVERLOOKED_CROWD, 0, 0, 20, 20), b=(THING, CROWD, 40, 40, 20, 20))
    pred = canvas(ON_STUFF, a=(THING, 8, 0, 0, 10, 10), b=(THING, 9, 40, 40, 10, 10))
    found, _ = matches(truth, pred)
    assert found == {STUFF: Counts(1, 0, 0, 9200 / 9800)}
    found, scores = matches(truth, pred, "last")
    assert found == {THING: Counts(0, 1, 0, 0), STUFF: Counts(1, 0, 0, 9200 / 9800)}
    assert scores["All"]["pq"] == pytest.approx(0.46938775510204084, abs=1e-12)


def test_an_overlooked_crowd_is_neither_matched_nor_missed():
    both = canvas(ON_STUFF, a=square(identity=OVERLOOKED_CROWD))
    found, _ = matches(both, canvas(ON_STUFF, a=square()), "last")
    assert found == {THING: Counts(0, 1, 0, 0), STUFF: Counts(1, 0, 0, 1.0)}


def test_groups_of_classes():
    _, scores = matches(canvas(ON_STUFF), canvas(ON_STUFF))
    assert scores["Stuff"] == {"pq": 1.0, "sq": 1.0, "rq": 1.0, "n": 1}
    assert scores["Things"] == {"pq": None, "sq": None, "rq": None, "n": 0}
    assert scores["per_class"]["stuff"] == {"pq": 1.0, "sq": 1.0, "rq": 1.0, "tp": 1, "fp": 0, "fn": 0}
    assert scores["per_class"]["thing"] == {"pq": None, "sq": None, "rq": None, "tp": 0, "fp": 0, "fn": 0}


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


def by_pixels(truth, pred, classes):
    """Kirillov's definition, a segment being the set of its pixels."""
    void, crowds, true, found = set(), {}, {}, {}
    for place in np.ndindex(truth[0].shape):
        native, identity = int(truth[0][place]), int(truth[1][place])
        if native == VOID:
            void.add(place)
        elif identity == CROWD:
            crowds.setdefault(native, set()).add(place)
        else:
            true.setdefault((native, identity), set()).add(place)
        if pred[0][place] != VOID:
            found.setdefault((int(pred[0][place]), int(pred[1][place])), set()).add(place)
    counts = {}
    for native in classes:
        mine = {segment: pixels for segment, pixels in true.items() if segment[0] == native}
        theirs = {segment: pixels for segment, pixels in found.items() if segment[0] == native}
        ious = {
            (g, p): len(mine[g] & theirs[p]) / len(mine[g] | (theirs[p] - void))
            for g in mine
            for p in theirs
            if mine[g] | (theirs[p] - void)
        }
        pairs = {pair: iou for pair, iou in ious.items() if iou > 0.5}
        left = [pixels for segment, pixels in theirs.items() if segment not in {p for _, p in pairs}]
        excused = void | crowds.get(native, set())
        wrong = [pixels for pixels in left if len(pixels & excused) / len(pixels) <= 0.5]
        counts[native] = Counts(len(pairs), len(wrong), len(mine) - len(pairs), pytest.approx(sum(pairs.values())))
    return counts


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.integers(0, 100_000), st.integers(1, 6), st.integers(1, 8))
def test_equals_the_definition_by_pixels(seed, height, width):
    """Scenes of three classes with two objects each, crowd and void; the prediction copies most of the truth."""
    rng = np.random.default_rng(seed)
    classes = rng.choice([THING, STUFF, OTHER, VOID], (height, width)).astype(np.uint8)
    instances = rng.choice([1, 2, CROWD], (height, width))
    copied = rng.random((height, width)) < 0.8
    pred_classes = np.where(copied, classes, rng.choice([THING, STUFF, OTHER, VOID], (height, width))).astype(np.uint8)
    pred_tracks = np.where(copied, instances % 7, rng.integers(0, 3, (height, width)))
    instances[classes == VOID] = 0
    frame = frame_table("d", "s", 0, classes, instances, pred_classes, pred_tracks)
    expected = by_pixels((classes, instances), (pred_classes, pred_tracks), NAMES)
    assert match_segments(rows_of(frame), NAMES) == expected
