"""HOTA and IDF1: parity with TrackEval on the evaluation set and on its edge cases."""

import pyarrow.compute as pc
import pytest
from evalset import CAR, EXPECTED, PERSON, table
from rectangles import VOID, car, frame, history, video

from post_platform.metrics.contingency import merge
from post_platform.metrics.hota import Hota, hota
from post_platform.metrics.idf1 import idf1
from post_platform.metrics.similarity import sequences


@pytest.mark.parametrize(("name", "native"), [("car", CAR), ("pedestrian", PERSON)])
@pytest.mark.parametrize("sequence", ["all", "0002", "0006"])
def test_equals_trackeval(name, native, sequence):
    rows = table() if sequence == "all" else table().filter(pc.equal(table()["sequence"], sequence))
    expected, found = EXPECTED["trackeval"][name][sequence], hota(rows, native)
    assert [found.hota, found.det_a, found.ass_a, found.loc_a] == pytest.approx(
        [expected[key] for key in ("HOTA", "DetA", "AssA", "LocA")], abs=1e-9
    )
    assert idf1(rows, native) == pytest.approx(expected["IDF1"], abs=1e-9)


IGNORE = (VOID, 0, 10, 10, 40, 40)
# (frames, HOTA, DetA, AssA, LocA, IDF1) as TrackEval; None is 0 there (LocA: 1)
CASES = {
    "perfect": (history([1, 1, 1]), 1, 1, 1, 1, 1),
    "empty predictions": (history([0, 0, 0]), 0, 0, 0, None, 0),
    "empty truth": ([([], [car(1)])] * 3, 0, 0, 0, None, 0),
    "both empty": ([([], [])] * 3, None, None, None, None, None),
    "IoU exactly 0.5 is a match": (
        [([car(1)], [(1, 1, 10, 10, 40, 20)])],
        0.5263157894736842,
        0.5263157894736842,
        0.5263157894736842,
        0.7368421052631579,
        1,
    ),
    "only ignore region, prediction inside": ([([IGNORE], [(1, 1, 12, 12, 20, 20)])], None, None, None, None, None),
    "prediction exactly half in ignore": ([([IGNORE], [(1, 1, 10, 30, 40, 40)])], 0, 0, 0, None, 0),
    "switch to B and back to A": (history([1, 1, 2, 2, 1, 1]), 0.7453559924999297, 1, 0.5555555555555555, 1, 2 / 3),
    "new id after a gap": (history([1, 1, 0, 0, 2, 2]), 0.4714045207910316, 2 / 3, 1 / 3, 1, 0.4),
    "same id after a gap": (history([1, 1, 0, 0, 1, 1]), 2 / 3, 2 / 3, 2 / 3, 1, 0.8),
    "wrong class": ([([car(1)], [car(1, native=2)])], 0, 0, 0, None, 0),
    "tracked in 4 of 5 frames": (history([1, 1, 1, 1, 0]), 0.8, 0.8, 0.8, 1, 0.8888888888888888),
    "tracked in 1 of 5 frames": (history([1, 0, 0, 0, 0]), 0.2, 0.2, 0.2, 1, 1 / 3),
}


@pytest.mark.parametrize("case", CASES)
def test_edge_cases_equal_trackeval(case):
    frames, *expected = CASES[case]
    found = hota(video(frames), 1)
    values = [found.hota, found.det_a, found.ass_a, found.loc_a, idf1(video(frames), 1)]
    assert values == [None if value is None else pytest.approx(value, abs=1e-12) for value in expected]


def test_a_table_without_the_class():
    assert hota(table(), 99) == Hota(None, None, None, None)
    assert idf1(table(), 99) is None


def test_a_match_is_kept_in_an_ignore_region_and_a_stray_is_dropped():
    """A predicted car on a true one that lies in void all around it, and another one in the void."""
    around = (VOID, 0, 0, 0, 60, 60)
    [found] = sequences(frame(0, [around, car(1)], [car(5), (1, 6, 0, 0, 9, 9)]), 1)
    assert (found.true_tracks, found.pred_tracks) == (1, 1)
    assert found.frames[0].iou.tolist() == [[1.0]]


def test_sequences_are_separate():
    """The same id in two sequences is two tracks: a switch between sequences costs nothing."""
    first, second = video(history([1, 1])), video(history([2, 2]))
    names = second.column_names
    renamed = second.set_column(names.index("sequence"), second.schema.field("sequence"), [["b"] * second.num_rows])
    both = merge([first, renamed])
    assert (hota(both, 1).hota, idf1(both, 1)) == (1.0, 1.0)
