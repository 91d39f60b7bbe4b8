"""The figure of a run's mixture holds the ledger's shares, the plan's, and the passes."""

import pytest
from test_plan import split

from post_platform.data.plan import Plan
from post_platform.training.mixture import draw_mixture


def panels(lines):
    plan = Plan([split("a", [10]), split("b", [2, 3])], global_batch=4)
    return draw_mixture(lines, plan).axes


def test_shares_are_running_totals_beside_the_planned_ones_and_passes_are_samples_per_frame():
    counts = [{"a": 3, "b": 1}, {"a": 1, "b": 3}, {"a": 2, "b": 2}]
    shares, passes = panels([{"step": n, "counts": found} for n, found in enumerate(counts, 1)])
    realised_a, planned_a, realised_b, planned_b = shares.lines
    assert realised_a.get_xdata().tolist() == [1, 2, 3]
    assert realised_a.get_ydata().tolist() == [75, 50, 50]
    assert realised_b.get_ydata().tolist() == [25, 50, 50]
    assert list(planned_a.get_ydata()) == list(planned_b.get_ydata()) == [50, 50]
    assert [bar.get_width() for bar in passes.patches] == pytest.approx([6 / 10, 6 / 5])
    assert [text.get_text() for text in passes.texts] == [" 0.60 of 10 frames", " 1.20 of 5 frames"]


def test_a_long_run_is_drawn_with_few_points_from_its_first_step_to_its_last():
    shares, _ = panels([{"step": n, "counts": {"a": 2, "b": 2}} for n in range(1, 5001)])
    steps = shares.lines[0].get_xdata()
    assert len(steps) <= 400
    assert (steps[0], steps[-1]) == (1, 5000)


def test_a_run_without_a_step_is_an_empty_figure():
    shares, passes = panels([])
    assert len(shares.lines[0].get_xdata()) == 0
    assert [bar.get_width() for bar in passes.patches] == [0, 0]
