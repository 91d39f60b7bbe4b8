"""HOTA: parity with TrackEval on the evaluation set and on its edge cases."""

import numpy as np
import pytest
from evalset import CAR, PERSON, table
from rectangles import history, video
from track_cases import CURVES, EDGE_CASES, EDGE_FRAMES, EVALSET, as_trackeval, assert_equals_trackeval, of_sequence

from post_platform.metrics.contingency import merge
from post_platform.metrics.hota import ALPHAS, report


@pytest.mark.parametrize(("name", "native"), [("car", CAR), ("pedestrian", PERSON)])
@pytest.mark.parametrize("sequence", ["COMBINED", "0002", "0006"])
def test_equals_trackeval_at_every_threshold(name, native, sequence):
    combined = sequence == "COMBINED"
    rows = table() if combined else of_sequence(table(), sequence)
    expected = EVALSET["trackeval"][name][sequence]["HOTA"]
    assert_equals_trackeval(as_trackeval(rows, native, 40), {"HOTA": expected}, combined)
    found = report(rows, native)
    for curve in CURVES:
        assert found[curve] == pytest.approx(np.mean(expected[curve]), abs=1e-9)


@pytest.mark.parametrize("case", EDGE_FRAMES)
def test_edge_cases_equal_trackeval(case):
    """0 there is None here when there are no objects, and so is LocA of 1 when nothing matches."""
    frames, expected = EDGE_FRAMES[case], EDGE_CASES[case]["trackeval"]
    found = report(video(frames), 1)
    for name in ("HOTA", "DetA", "AssA", "LocA"):
        want = {"LocA": 1.0}.get(name, 0.0) if found[name] is None else pytest.approx(found[name], abs=1e-12)
        assert expected[name] == want, name
    undefined = {name for name in ("HOTA", "DetA", "AssA", "LocA") if found[name] is None}
    if case in ("both empty", "only ignore region, pred inside"):
        assert undefined == {"HOTA", "DetA", "AssA", "LocA"}
    elif case in ("empty predictions", "empty gt", "pred exactly 50% in ignore", "wrong class prediction"):
        assert undefined == {"LocA"}
    else:
        assert not undefined


def test_what_is_undefined_is_none_at_every_threshold():
    empty = report(table(), 99)
    assert {empty[name] for name in CURVES} == {None}
    assert empty["per_alpha"]["HOTA"] == [None] * 19
    assert empty["per_alpha"]["TP"] == [0] * 19
    missed = report(video(history([0, 0])), 1)
    assert {name for name in CURVES if missed[name] is None} == {"LocA", "DetPr"}
    invented = report(video([([], [(1, 1, 0, 0, 5, 5)])]), 1)
    assert {name for name in CURVES if invented[name] is None} == {"LocA", "DetRe", "OWTA"}


def test_the_lists_belong_to_their_thresholds():
    """A car found with an IoU of 0.5 counts up to the threshold 0.5, included: ten of nineteen."""
    found = report(video([([(1, 1, 10, 10, 40, 40)], [(1, 1, 10, 10, 40, 20)])]), 1)["per_alpha"]
    assert found["alpha"] == ALPHAS.tolist() == pytest.approx([0.05 * place for place in range(1, 20)])
    assert found["TP"] == [1] * 10 + [0] * 9
    assert found["HOTA"] == [1.0] * 10 + [0.0] * 9
    assert found["LocA"] == [0.5] * 10 + [1.0] * 9


def test_sequences_are_separate():
    """The same id in two sequences is two tracks: a switch between sequences costs nothing."""
    first, second = video(history([1, 1])), video(history([2, 2]))
    names = second.column_names
    renamed = second.set_column(names.index("sequence"), second.schema.field("sequence"), [["b"] * second.num_rows])
    assert report(merge([first, renamed]), 1)["HOTA"] == 1.0
