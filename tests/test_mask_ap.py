"""Mask AP from tables; the inputs and numbers of the cases are those of pycocotools, which says -1 for None."""

import numpy as np
import pytest
from evalset import CAR, EXPECTED, PERSON, scored_table, table

from post_platform.metrics.contingency import OVERLOOKED_CROWD, frame_table, merge
from post_platform.metrics.mask_ap import SIZES, report
from post_platform.metrics.track_ap import Track, Video, overlaps
from post_platform.metrics.track_ap import report as report_of_overlaps

ORDER = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
CROWD = 65535
A, B = (10, 10, 40, 40), (55, 55, 30, 30)  # y, x, height, width: a medium and a small object


def stats(found):
    return [found[name] for name in ORDER]


def close(values):
    return [None if value is None else pytest.approx(value, abs=1e-12) for value in values]


def test_equals_pycocotools():
    expected = EXPECTED["pycocotools"]
    found = report(scored_table(), {CAR: "car", PERSON: "person"})
    assert stats(found) == close(expected[name] for name in ORDER)
    assert found["per_class"] == {
        name: {metric: pytest.approx(value, abs=1e-12) for metric, value in values.items()}
        for name, values in expected["per_class"].items()
    }


def frame(number, truth, pred):
    """100x100 of background 0; truth (box, instance), pred (box, score), the tracks of which are numbered from 1."""
    classes, instances, pred_classes, pred_tracks = np.zeros((4, 100, 100), np.int64)
    for (y, x, height, width), instance in truth:
        classes[y : y + height, x : x + width], instances[y : y + height, x : x + width] = 1, instance
    for track, ((y, x, height, width), _) in enumerate(pred, start=1):
        pred_classes[y : y + height, x : x + width], pred_tracks[y : y + height, x : x + width] = 1, track
    scores = {(1, track): score for track, (_, score) in enumerate(pred, start=1)}
    return frame_table("d", "s", number, classes, instances, pred_classes, pred_tracks, scores)


RIGHT = [1, 1, 1, None, 1, None, 1, 1, 1, None, 1, None]
WRONG = [0, 0, 0, None, 0, None, 0, 0, 0, None, 0, None]
HALF = [51 / 101] * 3 + [None, 51 / 101, None] + [0.5] * 3 + [None, 0.5, None]
IN_B, ALSO_IN_B, OUTSIDE = (60, 60, 10, 10), (72, 60, 10, 10), (0, 60, 10, 10)
# (truth, pred) of every frame, and the numbers in the order of COCOeval's stats
CASES = {
    "perfect": ([([(A, 1)], [(A, 0.9)])], RIGHT),
    "no detection, where pycocotools has an IndexError": ([([(A, 1)], [])], WRONG),
    "nothing to find": ([([], [(A, 0.9)])], [None] * 12),
    "only crowd to find": ([([(A, CROWD)], [((12, 12, 10, 10), 0.9)])], [None] * 12),
    "a match, one in crowd, one outside": (
        [([(A, 1), (B, CROWD)], [(A, 0.9), (IN_B, 0.95), (OUTSIDE, 0.99)])],
        [0.5, 0.5, 0.5, None, 1, None, 0, 1, 1, None, 1, None],
    ),
    "two in one crowd": (
        [([(A, 1), (B, CROWD)], [(A, 0.9), (IN_B, 0.95), (ALSO_IN_B, 0.96)])],
        [1, 1, 1, None, 1, None, 0, 1, 1, None, 1, None],
    ),
    "equal scores keep their order": (
        [([(A, 1), (B, 2)], [(A, 0.5), (OUTSIDE, 0.5), (B, 0.5)])],
        [0.8349834983498348] * 3 + [0.5, 1, None, 0.5, 1, 1, 1, 1, None],
    ),
    "IoU of exactly 0.5 matches at 0.5": (
        [([(A, 1)], [((10, 10, 40, 20), 0.9)])],
        [0.1, 1, 0, None, 0.1, None, 0.1, 0.1, 0.1, None, 0.1, None],
    ),
    "two images, one without a detection": ([([(A, 1)], [(A, 0.9)]), ([(A, 1)], [])], HALF),
    "a mask without pixels is no detection, pycocotools calls it wrong": ([([(A, 1)], [((0, 0, 0, 0), 0.9)])], WRONG),
}


@pytest.mark.parametrize("case", CASES)
def test_edge_cases_equal_pycocotools(case):
    frames, expected = CASES[case]
    found = report(merge([frame(number, *pair) for number, pair in enumerate(frames)]), {1: "a"})
    assert stats(found) == close(expected)
    assert found["per_class"] == {"a": {"AP": found["AP"], "AP50": found["AP50"]}}


def image(truth, pred):
    """Boxes of one image that may overlap, each a mask: (box, crowd) and (box, score)."""
    masks = np.zeros((len(truth) + len(pred), 100, 100))
    for mask, ((y, x, height, width), _) in zip(masks, [*truth, *pred], strict=True):
        mask[y : y + height, x : x + width] = 1
    flat = masks.reshape(len(masks), -1)
    areas, true, found = flat.sum(axis=1), flat[: len(truth)], flat[len(truth) :]
    crowd = [is_crowd for _, is_crowd in truth]
    return Video(
        tuple(Track(1, area, crowd=is_crowd) for area, is_crowd in zip(areas, crowd, strict=False)),
        tuple(Track(1, area, score=score) for area, (_, score) in zip(areas[len(truth) :], pred, strict=True)),
        overlaps(found @ true.T, areas[len(truth) :], areas[: len(truth)], crowd),
    )


@pytest.mark.parametrize(
    ("pred", "expected"),
    [
        ([(A, 0.9), (A, 0.8)], RIGHT),
        ([((10, 10, 40, 24), 0.95), (A, 0.8)], [0.65, 1, 0.5, None, 1, None, 0.3, 1, 1, None, 1, None]),
    ],
    ids=["duplicate of lower score", "duplicate of higher score with IoU 0.6"],
)
def test_edge_cases_of_overlapping_masks_equal_pycocotools(pred, expected):
    """A table cannot hold them; AP from overlaps can."""
    assert stats(report_of_overlaps([image([(A, False)], pred)], {1: "a"}, SIZES)) == close(expected)


NONE, INSIDE = (0, 0, 0, 0), (0, 0, 30, 30)


@pytest.mark.parametrize(
    ("pred", "truth", "crowd", "iou"),
    [(NONE, NONE, 0, 0.0), (NONE, A, 0, 0.0), (A, A, 0, 1.0), (INSIDE, A, 1, 0.4444444444444444)],
    ids=["nothing and nothing", "nothing and a mask", "a mask and itself", "crowd: over the detection's area"],
)
def test_overlap_equals_pycocotools_iou(pred, truth, crowd, iou):
    assert image([(truth, bool(crowd))], [(pred, 0.9)]).overlap.tolist() == [[iou]]


def test_overlap_of_no_detection():
    assert image([(A, False)], []).overlap.shape == (0, 1)  # pycocotools: an empty list, whatever the truth


def test_areas_are_counted_and_all_crowd_of_a_class_is_one_region():
    """A detection of which each crowd has four tenths lies on crowd, in a file of two annotations it would be wrong."""
    halves = [((60, 10, 4, 10), CROWD), ((64, 10, 4, 10), OVERLOOKED_CROWD)]
    found = report(frame(0, [(A, 1), *halves], [((60, 10, 10, 10), 0.95), (A, 0.9)]), {1: "a"})
    assert found["AP50"] == pytest.approx(1.0, abs=1e-12)
    assert (found["AP75"], found["APs"]) == (pytest.approx(1.0, abs=1e-12), None)


def test_segments_without_a_score_and_other_classes_are_no_detections():
    assert report(table(), {PERSON: "person"})["AP"] == 0.0
    assert report(table().slice(0, 0), {PERSON: "person"})["AP"] is None
    assert report(scored_table(), {1: "sidewalk"})["AP"] == 0.0


def test_detections_on_void_are_wrong():
    void = np.full((10, 10), 255, np.uint8)
    thing, first = np.ones((10, 10), np.uint8), np.ones((10, 10), np.int64)
    on_void = frame_table("d", "s", 0, void, 0 * first, thing, first, {(1, 1): 0.9})
    right = frame_table("d", "s", 1, thing, first, thing, first, {(1, 1): 0.8})
    assert report(merge([on_void, right]), {1: "a"})["AP"] == pytest.approx(0.5, abs=1e-12)
    assert report(right, {1: "a"})["AP"] == pytest.approx(1.0, abs=1e-12)
