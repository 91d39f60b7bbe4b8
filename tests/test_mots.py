import numpy as np
import pytest
from evalset import CAR, EXPECTED, PERSON, table
from rectangles import VOID, car, frame, history, video

from post_platform.metrics.mots import MotsCounts, count_tracks


@pytest.mark.parametrize(("name", "native"), [("car", CAR), ("pedestrian", PERSON)])
@pytest.mark.parametrize("sequence", ["all", "0002", "0006"])
def test_equals_mots_tools(name, native, sequence):
    rows = (
        table()
        if sequence == "all"
        else table().filter(np.equal(table()["sequence"].to_numpy(zero_copy_only=False), sequence))
    )
    expected, found = EXPECTED["mots_tools"][name][sequence], count_tracks(rows, native)
    assert_equal_to_mots_tools(found, expected)


def assert_equal_to_mots_tools(found: MotsCounts, expected: dict):
    keys = ("tp", "fp", "fn", "n_itr", "id_switches", "fragments", "n_gt", "n_gt_trajectories")
    ours = (
        found.tp,
        found.fp,
        found.fn,
        found.ignored,
        found.id_switches,
        found.fragments,
        found.objects,
        found.tracks,
    )
    assert dict(zip(keys, ours, strict=True)) == {key: expected[key] for key in keys}
    scores = {
        "sMOTSA": found.smotsa,
        "MOTSA": found.motsa,
        "MOTSP": found.motsp,
        "MOTSAL": found.motsal,
        "recall": found.recall if found.tp else 0.0,
        "precision": found.precision if found.tp else 0.0,
        "MT": found.mostly_tracked / max(found.tracks, 1),
        "PT": found.partly_tracked / max(found.tracks, 1),
        "ML": found.mostly_lost / max(found.tracks, 1),
    }
    for key, value in scores.items():  # infinity there is None here
        want = None if expected[key] in ("inf", "-inf") else pytest.approx(expected[key], abs=1e-9)
        assert value == want, key
    if "MODSA" in expected:
        assert found.modsa == pytest.approx(expected["MODSA"], abs=1e-9)
        assert found.iou == pytest.approx(expected["total_cost"], abs=1e-9)


IGNORE = (VOID, 0, 10, 10, 40, 40)
# (frames of (truth, prediction), what mots_tools says of class 1)
DEFAULTS = {
    "tp": 0, "fp": 0, "fn": 0, "id_switches": 0, "fragments": 0, "n_gt": 0, "n_itr": 0, "n_gt_trajectories": 0,
    "MOTSA": "-inf", "sMOTSA": "-inf", "MOTSP": "inf", "MOTSAL": "-inf", "MT": 0, "PT": 0, "ML": 0,
    "recall": 0, "precision": 0,
}  # fmt: skip
NOTHING_FOUND = {"n_gt_trajectories": 1, "MOTSA": 0, "sMOTSA": 0, "MOTSAL": 0, "ML": 1}
ALL_FOUND = {"n_gt_trajectories": 1, "MOTSP": 1, "MT": 1, "recall": 1, "precision": 1}
CASES = {
    "perfect 3 frames": (
        history([1, 1, 1]),
        ALL_FOUND | {"tp": 3, "n_gt": 3, "MOTSA": 1, "sMOTSA": 1, "MOTSAL": 1},
    ),
    "empty predictions": (history([0, 0, 0]), NOTHING_FOUND | {"fn": 3, "n_gt": 3}),
    "empty truth": ([([], [car(1)])] * 3, {"fp": 3}),
    "both empty": ([([], [])] * 3, {}),
    "IoU exactly 0.5": (
        [([car(1)], [(1, 1, 10, 10, 40, 20)])],
        {"fp": 1, "fn": 1, "n_gt": 1, "n_gt_trajectories": 1, "MOTSA": -1, "sMOTSA": -1, "MOTSAL": -1, "ML": 1},
    ),
    "only ignore region, prediction inside": ([([IGNORE], [(1, 1, 12, 12, 20, 20)])], {"n_itr": 1}),
    "prediction exactly half in ignore": ([([IGNORE], [(1, 1, 10, 30, 40, 40)])], {"fp": 1}),
    "switch to B and back to A": (
        history([1, 1, 2, 2, 1, 1]),
        ALL_FOUND | {
            "tp": 6, "id_switches": 2, "fragments": 2, "n_gt": 6, "MOTSA": 2 / 3, "sMOTSA": 2 / 3,
            "MOTSAL": 0.9498283340560031,
        },
    ),
    "new id after a gap": (
        history([1, 1, 0, 0, 2, 2]),
        ALL_FOUND | {
            "tp": 4, "fn": 2, "id_switches": 1, "fragments": 1, "n_gt": 6, "MOTSA": 0.5, "sMOTSA": 0.5,
            "MOTSAL": 2 / 3, "MT": 0, "PT": 1, "recall": 2 / 3,
        },
    ),
    "same id after a gap": (
        history([1, 1, 0, 0, 1, 1]),
        ALL_FOUND | {
            "tp": 4, "fn": 2, "fragments": 1, "n_gt": 6, "MOTSA": 2 / 3, "sMOTSA": 2 / 3,
            "MOTSAL": 2 / 3, "MT": 0, "PT": 1, "recall": 2 / 3,
        },
    ),
    "wrong class": ([([car(1)], [car(1, native=2)])], NOTHING_FOUND | {"fn": 1, "n_gt": 1}),
    "tracked in exactly 80 %": (
        history([1, 1, 1, 1, 0]),
        ALL_FOUND | {
            "tp": 4, "fn": 1, "n_gt": 5, "MOTSA": 0.8, "sMOTSA": 0.8,
            "MOTSAL": 0.8, "MT": 0, "PT": 1, "recall": 0.8,
        },
    ),
    "tracked in exactly 20 %": (
        history([1, 0, 0, 0, 0]),
        ALL_FOUND | {
            "tp": 1, "fn": 4, "n_gt": 5, "MOTSA": 0.2, "sMOTSA": 0.2,
            "MOTSAL": 0.2, "MT": 0, "PT": 1, "recall": 0.2,
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_edge_cases_equal_mots_tools(case):
    frames, expected = CASES[case]
    found = count_tracks(video(frames), 1)
    assert_equal_to_mots_tools(found, DEFAULTS | expected)


def test_crowd_of_any_class_is_ignored():
    found = count_tracks(frame(0, [(2, 65535, 10, 10, 40, 40)], [(1, 1, 12, 12, 20, 20)]), 1)
    assert (found.fp, found.ignored) == (0, 1)


def test_a_pixel_without_identity_is_no_object():
    assert count_tracks(frame(0, [car(1)], [car(0)]), 1) == MotsCounts(fn=1, tracks=1, mostly_lost=1)


def test_order_of_rows_does_not_matter():
    shuffled = table().take(np.random.default_rng(0).permutation(table().num_rows))
    assert count_tracks(shuffled, CAR) == count_tracks(table(), CAR)


def test_fragments_keep_the_oddities_of_mots_tools():
    """The last frame of an object counts although it is its first match; the same match earlier does not."""
    late = count_tracks(video(history([0, 0, 5])), 1)
    early = count_tracks(video(history([0, 5, 5])), 1)
    assert (late.fragments, early.fragments) == (1, 0)
