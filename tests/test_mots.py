"""MOTS scores: parity with mots_tools and TrackEval on the evaluation set and on edge cases, and cases by hand."""

import numpy as np
import pyarrow.compute as pc
import pytest
from evalset import CAR, PERSON, table
from official_bytes import compressed
from rectangles import VOID, car, frame, history, video
from track_cases import (
    EDGE_CASES,
    EDGE_FRAMES,
    EVALSET,
    HALF,
    as_mots_tools,
    as_trackeval,
    assert_equals_mots_tools,
    assert_equals_trackeval,
    of_sequence,
)

from post_platform.errors import DataError
from post_platform.metrics.contingency import frame_table, merge
from post_platform.metrics.mots import events, report
from post_platform.metrics.results import read_results
from post_platform.metrics.segments import rows_of
from post_platform.metrics.similarity import objects_of

RULES = ("mots_tools", "trackeval")


@pytest.mark.parametrize(("name", "native"), [("car", CAR), ("pedestrian", PERSON)])
@pytest.mark.parametrize("sequence", ["all", "0002", "0006"])
def test_equals_mots_tools(name, native, sequence):
    rows, frames = (table(), 40) if sequence == "all" else (of_sequence(table(), sequence), 20)
    assert_equals_mots_tools(as_mots_tools(rows, native, frames), EVALSET["mots_tools"][name][sequence])


@pytest.mark.parametrize(("name", "native"), [("car", CAR), ("pedestrian", PERSON)])
@pytest.mark.parametrize("sequence", ["COMBINED", "0002", "0006"])
def test_equals_clear_of_trackeval(name, native, sequence):
    combined = sequence == "COMBINED"
    rows, frames = (table(), 40) if combined else (of_sequence(table(), sequence), 20)
    expected = {"CLEAR": EVALSET["trackeval"][name][sequence]["CLEAR"]}
    assert_equals_trackeval(as_trackeval(rows, native, frames), expected, combined)


def test_every_edge_case_is_here():
    assert EDGE_CASES.keys() == EDGE_FRAMES.keys() | {"overlapping masks in predictions"}


@pytest.mark.parametrize("case", EDGE_FRAMES)
def test_edge_cases_equal_both_tools(case):
    rows, frames = video(EDGE_FRAMES[case]), len(EDGE_FRAMES[case])
    assert_equals_mots_tools(as_mots_tools(rows, 1, frames), EDGE_CASES[case]["mots_tools"])
    found, expected = as_trackeval(rows, 1, frames)["CLEAR"], EDGE_CASES[case]["trackeval"]
    shown = {name: value for name, value in expected.items() if name in found}
    assert_equals_trackeval({"CLEAR": found}, {"CLEAR": shown}, combined=False)


def test_overlapping_masks_are_an_error_of_the_reader(tmp_path):
    """mots_tools scores them, with a false positive; TrackEval refuses them too."""
    for side, objects in (("gt", [car(1)]), ("pred", [car(1), (1, 2, *HALF[2:])])):
        (tmp_path / side).mkdir()
        masks = []
        for native, identity, y, x, height, width in objects:
            mask = np.zeros((100, 100), np.uint8)
            mask[y : y + height, x : x + width] = 1
            masks.append(f"0 {native * 1000 + identity} {native} 100 100 {compressed(mask)}")
        (tmp_path / side / "0000.txt").write_text("\n".join(masks))
    with pytest.raises(DataError, match=r"0000\.txt, line 2, frame 0, id 1002: the mask overlaps that of id 1001"):
        list(read_results("kitti_mots", tmp_path / "gt", tmp_path / "pred").frames)


@pytest.mark.parametrize("rule", RULES)
def test_crowd_of_any_class_is_ignored(rule):
    for instance in (65535, 65536):
        found = report(frame(0, [(2, instance, 10, 10, 40, 40)], [(1, 1, 12, 12, 20, 20)]), 1, rule)
        assert (found["FP"], found["ignored"], found["objects"]) == (0, 1, 0)
    assert report(frame(0, [(1, 65536, 10, 10, 40, 40)], []), 1, rule)["objects"] == 0


def test_a_match_is_kept_in_an_ignore_region_and_a_stray_is_dropped():
    """A predicted car on a true one that lies in void all around it, and another one in the void."""
    around = (VOID, 0, 0, 0, 60, 60)
    found = objects_of(frame(0, [around, car(1)], [car(5), (1, 6, 0, 0, 9, 9)]), 1)
    assert (found.pred.identity.tolist(), found.ignored.identity.tolist()) == ([5], [6])
    assert found.iou.tolist() == [1.0]


def test_a_pixel_without_identity_is_no_object():
    found = report(frame(0, [car(1)], [car(0)]), 1)
    assert (found["FN"], found["FP"], found["ignored"], found["ML"]) == (1, 0, 0, 1)


def test_order_of_rows_does_not_matter():
    shuffled = table().take(np.random.default_rng(0).permutation(table().num_rows))
    for rule in RULES:
        assert report(shuffled, CAR, rule) == report(table(), CAR, rule)
        assert events(shuffled, CAR, rule).equals(events(table(), CAR, rule))


def test_prepared_objects_give_the_same_and_know_their_class():
    objects = objects_of(rows_of(table()), CAR)
    assert report(objects, CAR) == report(table(), CAR)
    with pytest.raises(AssertionError, match="objects of class 13, not 11"):
        report(objects, PERSON)


def test_fragments_keep_the_oddities_of_mots_tools():
    """The last frame of an object counts although it is its first match; the same match earlier does not."""
    late, early = report(video(history([0, 0, 5])), 1), report(video(history([0, 5, 5])), 1)
    assert (late["Frag"], early["Frag"]) == (1, 0)


def test_fragments_keep_the_oddity_of_trackeval():
    """A gap of an only object does not count, unless the tracker finds something else meanwhile."""
    elsewhere = [(1, 9, 60, 60, 10, 10)]
    alone, accompanied = history([1, 0, 1]), [([car(1)], [car(1)]), ([car(1)], elsewhere), ([car(1)], [car(1)])]
    assert [report(video(frames), 1, "trackeval")["Frag"] for frames in (alone, accompanied)] == [0, 1]


LEFT, RIGHT = (10, 10, 40, 20), (10, 30, 40, 20)


@pytest.mark.parametrize(("before", "expected"), [(1, 1), (2, 2)])
def test_of_two_halves_the_one_that_goes_on_matches(before, expected):
    """TrackEval's rule: both halves have an IoU of 0.5, and the track of the frame before is preferred."""
    frames = [([car(1)], [car(before)]), ([car(1)], [(1, 1, *LEFT), (1, 2, *RIGHT)])]
    found = events(video(frames), 1, "trackeval").to_pylist()
    assert [(row["kind"], row["pred_track"]) for row in found if row["frame"] == 1] == [
        ("match", expected),
        ("false positive", 3 - expected),
    ]
    assert report(video(frames), 1, "mots_tools")["TP"] == 1


def test_one_prediction_over_two_objects_matches_one():
    """The truth's halves: one is matched and one missed, under TrackEval's rule alone."""
    rows = frame(0, [(1, 1, *LEFT), (1, 2, *RIGHT)], [car(7)])
    found = report(rows, 1, "trackeval")
    assert (found["TP"], found["FN"], found["FP"], found["sMOTSA"]) == (1, 1, 0, 0.25)
    assert (report(rows, 1)["TP"], report(rows, 1)["FP"]) == (0, 1)


def test_events_tell_what_became_of_each_object():
    frames = [
        ([car(1)], [car(5)]),
        ([car(1)], [car(6), (1, 7, 60, 60, 10, 10)]),
        ([car(1), (VOID, 0, 60, 0, 20, 20)], [(1, 8, 62, 2, 9, 9)]),
        ([], []),
    ]
    found = events(video(frames), 1)
    assert [tuple(row.values()) for row in found.to_pylist()] == [
        ("d/0000", 0, "match", 1, 5, 1.0),
        ("d/0000", 1, "switch", 1, 6, 1.0),
        ("d/0000", 1, "false positive", 0, 7, 0.0),
        ("d/0000", 2, "miss", 1, 0, 0.0),
        ("d/0000", 2, "ignored", 0, 8, 0.0),
    ]
    assert events(table(), 99).schema.equals(found.schema)
    assert events(table(), 99).num_rows == 0


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("native", [CAR, PERSON])
def test_events_count_as_the_report(rule, native):
    happened, found = events(table(), native, rule), report(table(), native, rule)
    kinds = {row["values"]: row["counts"] for row in pc.value_counts(happened["kind"]).to_pylist()}
    assert kinds == {
        "match": found["TP"] - found["IDS"], "switch": found["IDS"], "miss": found["FN"],
        "false positive": found["FP"], "ignored": found["ignored"],
    }  # fmt: skip
    assert pc.sum(happened["iou"]).as_py() / found["TP"] == pytest.approx(found["MOTSP"], abs=1e-12)


def test_a_table_without_rows_or_without_objects():
    empty, nothing = merge([]), frame_table("d", "0000", 0, *np.zeros((4, 2, 2), np.int32))
    for rule in RULES:
        found = report(empty, 1, rule)
        assert report(nothing, 1, rule) == found
        assert {name for name, value in found.items() if value is None} == {
            "sMOTSA", "MOTSA", "MOTSP", "MODSA", "MOTSAL", "recall", "precision", "F1",
        }  # fmt: skip
        assert not any(found.values())
    assert events(empty, 1).num_rows == 0
