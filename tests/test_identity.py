"""Identity scores: parity with TrackEval on the evaluation set and on its edge cases."""

import pytest
from evalset import CAR, PERSON, table
from rectangles import history, video
from track_cases import EDGE_CASES, EDGE_FRAMES, EVALSET, as_trackeval, assert_equals_trackeval, of_sequence

from post_platform.metrics.contingency import merge
from post_platform.metrics.identity import report


@pytest.mark.parametrize(("name", "native"), [("car", CAR), ("pedestrian", PERSON)])
@pytest.mark.parametrize("sequence", ["COMBINED", "0002", "0006"])
def test_equals_trackeval(name, native, sequence):
    combined = sequence == "COMBINED"
    rows = table() if combined else of_sequence(table(), sequence)
    expected = {"Identity": EVALSET["trackeval"][name][sequence]["Identity"]}
    assert_equals_trackeval(as_trackeval(rows, native, 40), expected, combined)


@pytest.mark.parametrize("case", EDGE_FRAMES)
def test_edge_cases_equal_trackeval(case):
    found = report(video(EDGE_FRAMES[case]), 1)["IDF1"]
    nothing = case in ("both empty", "only ignore region, pred inside")
    assert (found is None) == nothing
    assert EDGE_CASES[case]["trackeval"]["IDF1"] == (0.0 if nothing else pytest.approx(found, abs=1e-12))


def test_a_track_has_one_partner():
    """Six frames under ids 1, 1, 2, 2, 2 and nothing: id 2 is the partner, in three of them."""
    assert report(video(history([1, 1, 2, 2, 2, 0])), 1) == {
        "IDF1": 6 / 11, "IDP": 3 / 5, "IDR": 1 / 2, "IDTP": 3, "IDFP": 2, "IDFN": 3,
    }  # fmt: skip


def test_ratios_of_nothing():
    assert report(table(), 99) == {"IDF1": None, "IDP": None, "IDR": None, "IDTP": 0, "IDFP": 0, "IDFN": 0}
    missed = report(video(history([0])), 1)
    assert (missed["IDF1"], missed["IDP"], missed["IDR"]) == (0.0, None, 0.0)


def test_sequences_are_separate():
    """The same id in two sequences is two tracks: a switch between sequences costs nothing."""
    first, second = video(history([1, 1])), video(history([2, 2]))
    names = second.column_names
    renamed = second.set_column(names.index("sequence"), second.schema.field("sequence"), [["b"] * second.num_rows])
    assert report(merge([first, renamed]), 1)["IDF1"] == 1.0
