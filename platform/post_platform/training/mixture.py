"""The figure of a run's mixture: every dataset's share as it was and as planned, and its passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from post_platform.data.plan import Plan

POINTS = 400  # of a curve; a long run has no more


def draw_mixture(lines: Sequence[dict[str, Any]], plan: Plan) -> Figure:
    """Draw `lines` of a ledger beside the plan that they followed.

    Left: each dataset's share of all samples up to a step, and the planned one dashed. Right: passes over each dataset.
    """
    # Not pyplot, whose figures live until they are closed and which chooses a window system.
    from matplotlib.figure import Figure

    counts = np.array([[line["counts"].get(name, 0) for name in plan.datasets] for line in lines], np.float64)
    counts = counts.reshape(-1, len(plan.datasets))
    steps = np.array([line["step"] for line in lines])
    shown = np.unique(np.linspace(0, max(0, len(lines) - 1), POINTS).astype(int))[: len(lines)]
    running = np.cumsum(counts, axis=0)
    figure = Figure(figsize=(11, 3.2 + 0.16 * len(plan.datasets)), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for number, name in enumerate(plan.datasets):
        color = f"C{number % 10}"
        planned = plan.shares[number] / plan.shares.sum()
        realised = running[shown, number] / running[shown].sum(axis=1)
        left.plot(steps[shown], realised * 100, color=color, label=f"{name} ({planned:.1%} planned)")
        left.axhline(planned * 100, color=color, linestyle="--", linewidth=0.8)
    left.set(xlabel="step", ylabel="share of all samples so far, %", title="shares: realised, and planned (dashed)")
    left.set_ylim(0, left.get_ylim()[1] * 1.1)
    left.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2, frameon=False)
    passes = (running[-1] if len(lines) else np.zeros(len(plan.datasets))) / plan.frames
    bars = right.barh(plan.datasets, passes, color=[f"C{n % 10}" for n in range(len(plan.datasets))])
    right.bar_label(bars, [f" {n:.2f} of {size} frames" for n, size in zip(passes, plan.frames, strict=True)])
    right.invert_yaxis()
    right.set(xlabel="passes", title=f"passes until step {steps[-1] if len(lines) else 0}")
    right.set_xlim(right=max(passes.max() * 1.5, 0.1))
    for side in (left, right):
        side.spines[["top", "right"]].set_visible(False)
    return figure
