"""AP of tracks, on overlaps so few that precision and recall can be written down."""

import numpy as np
import pytest

from post_platform.metrics.track_ap import Track, Video, overlaps, report

NAMES = {1: "person", 8: "dog"}
PERSON = Track(1, area=100)


def found(score, area=100):
    return Track(1, area=area, score=score)


def video(truth, pred, overlap):
    return Video(tuple(truth), tuple(pred), np.array(overlap, float).reshape(len(pred), len(truth)))


def test_overlaps():
    """8 pixels of one detection: 6 of them on an object of 10, 2 on a crowd of 40; the other detection is empty."""
    shared = np.array([[6.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
    values = overlaps(shared, np.array([8.0, 0.0]), np.array([10.0, 40.0, 0.0]), [False, True, False])
    assert values.tolist() == [[6 / 12, 2 / 8, 0.0], [0.0, 0.0, 0.0]]


def test_one_false_track_between_two_right_ones():
    """By falling score right, wrong, right: precision 1 up to recall 0.5 (51 of 101 points), 2/3 beyond."""
    videos = [
        video([PERSON], [found(0.9), found(0.7)], [0.82, 0.1]),
        video([PERSON], [found(0.5)], [0.62]),
    ]
    both, first = (51 + 50 * 2 / 3) / 101, 51 / 101
    scores = report(videos, NAMES)
    assert scores["AP50"] == pytest.approx(both, abs=1e-12)
    assert scores["AP75"] == pytest.approx(first, abs=1e-12)
    assert scores["AP"] == pytest.approx((3 * both + 4 * first) / 10, abs=1e-12)  # of 0.50 to 0.60, and 0.65 to 0.80
    assert scores["AR100"] == pytest.approx((3 * 1 + 4 * 0.5) / 10, abs=1e-12)
    assert scores["per_class"]["person"] == {"AP": scores["AP"], "AP50": scores["AP50"]}
    assert scores["per_class"]["dog"] == {"AP": None, "AP50": None}


def test_only_the_best_tracks_of_a_video_count():
    two = video([PERSON, PERSON], [found(0.9), found(0.8)], [[1, 0], [0, 1]])
    scores = report([two], NAMES)
    assert scores["AP"] == pytest.approx(1.0, abs=1e-12)
    assert (scores["AR1"], scores["AR10"], scores["AR100"]) == (0.5, 1.0, 1.0)
    late = video([PERSON], [found(0.1), *[found(0.9)] * 100], [1.0] + [0.0] * 100)
    assert report([late], NAMES)["AP"] == 0.0


def test_track_on_a_crowd_is_neither_right_nor_wrong():
    crowd = Track(1, area=100, crowd=True)
    pred, on_crowd = [found(0.9), found(0.8), found(0.5)], [[0, 1], [0, 1], [1, 0]]
    assert report([video([PERSON, crowd], pred, on_crowd)], NAMES)["AP"] == pytest.approx(1.0, abs=1e-12)
    not_crowd = [video([PERSON, PERSON], pred, on_crowd)]
    assert report(not_crowd, NAMES)["AP"] == pytest.approx((51 + 50 * 2 / 3) / 101, abs=1e-12)


def test_size_is_that_of_the_true_track():
    large = Track(1, area=300.0**2)
    scores = report([video([PERSON, large], [found(0.9), found(0.8, area=300.0**2)], [[0, 0], [0, 1]])], NAMES)
    assert (scores["APs"], scores["APm"]) == (0.0, None)
    assert scores["APl"] == pytest.approx(1.0, abs=1e-12)


def test_tracks_of_another_class_do_not_match():
    dog = Track(8, area=100, score=0.9)
    scores = report([video([PERSON], [dog], [1.0])], NAMES)
    assert [scores["per_class"][name]["AP"] for name in NAMES.values()] == [0.0, None]


@pytest.mark.parametrize("videos", [[], [video([], [], [])], [video([], [found(0.9)], [])]])
def test_nothing_to_find(videos):
    scores = report(videos, NAMES)
    assert {*scores.pop("per_class")["person"].values(), *scores.values()} == {None}
