"""J and F of whole sequences: scenes of squares far apart, and boundaries compared pixel by pixel."""

import numpy as np
import pytest

from post_platform.metrics.davis_j_and_f import Frame, j_and_f

LEFT, RIGHT = np.s_[2:6, 2:6], np.s_[2:6, 20:24]


def squares(**numbers):
    """A map with these objects on the left and on the right."""
    values = np.zeros((12, 30), int)
    values[LEFT], values[RIGHT] = numbers.get("left", 0), numbers.get("right", 0)
    return values


def frame(truth, pred, sequence="s", void=None):
    return Frame(sequence, truth, np.zeros(truth.shape, bool) if void is None else void, pred)


def all_three(value):
    return {"J&F": value, "J": value, "F": value}


def test_perfect_whatever_the_numbers():
    assert j_and_f([frame(squares(left=1, right=2), squares(left=9, right=4))] * 2) == all_three(1.0)


def test_proposals_are_assigned_once_for_a_whole_sequence():
    """In one of four frames the two proposals have changed places, and nothing is right there."""
    truth = squares(left=1, right=2)
    frames = [frame(truth, squares(left=5, right=7))] * 3 + [frame(truth, squares(left=7, right=5))]
    assert j_and_f(frames) == all_three(0.75)


def test_object_without_a_proposal():
    """Object 2 is there in one of two frames: a worthless one and, as nothing is proposed for it, a perfect one."""
    frames = [frame(squares(left=1, right=2), squares(left=3)), frame(squares(left=1), squares(left=3))]
    assert j_and_f(frames) == all_three((1 + 0.5) / 2)


def test_more_proposals_than_objects_cost_nothing():
    assert j_and_f([frame(squares(left=1), squares(left=3, right=8))]) == all_three(1.0)


def test_mean_over_objects_not_over_sequences():
    frames = [frame(squares(left=1, right=2), squares(left=1, right=2), "a"), frame(squares(left=1), squares(), "b")]
    assert j_and_f(frames) == all_three(2 / 3)


def test_void_counts_for_nobody():
    void = squares(right=1) > 0
    wide = squares(left=3)
    wide[RIGHT] = 3
    assert j_and_f([frame(squares(left=1), wide, void=void)]) == all_three(1.0)
    assert j_and_f([frame(squares(left=1), wide)])["J"] == 0.5


def edge(mask):
    """Pixels with another value to the right, below, or right below: (row, column) pairs."""
    height, width = mask.shape
    return [
        (y, x)
        for y in range(height)
        for x in range(width)
        if any(
            mask[y, x] != mask[min(y + dy, height - 1), min(x + dx, width - 1)] for dy, dx in ((0, 1), (1, 0), (1, 1))
        )
    ]


def share_near(ones, others, radius):
    gaps = np.array(ones)[:, None] - np.array(others)[None]
    return float(((gaps**2).sum(-1) <= radius**2).any(1).mean())


@pytest.mark.parametrize("seed", range(4))
def test_f_pixel_by_pixel(seed):
    """160 x 120 pixels have a diagonal of 200, so boundaries match up to 1.6 pixels, rounded up: 2."""
    rng = np.random.default_rng(seed)
    truth, pred = np.zeros((120, 160), int), np.zeros((120, 160), int)
    y, x = rng.integers(0, 60, 2)
    truth[y : y + 40, x : x + 50] = 1
    for _ in range(3):
        top, left = y + rng.integers(-4, 5), x + rng.integers(-4, 5)
        pred[max(top, 0) : top + 38, max(left, 0) : left + 48] = 1
    precision, recall = share_near(edge(pred), edge(truth), 2), share_near(edge(truth), edge(pred), 2)
    assert 0 < precision < 1
    assert j_and_f([frame(truth, pred)])["F"] == pytest.approx(2 * precision * recall / (precision + recall), abs=1e-12)
