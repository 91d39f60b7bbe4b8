"""How sure a difference of mean scores is: what seeds alone do to a score, and how far that reaches."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from scipy import stats

CONFIDENCE = 0.95


def pooled(groups: Sequence[Sequence[float]]) -> tuple[float | None, int]:
    """The standard deviation of one run's score over seeds, as far as all groups tell, and its degrees of freedom.

    None where no group has two scores.
    """
    free = sum(len(group) - 1 for group in groups if group)
    squares = sum((len(group) - 1) * statistics.variance(group) for group in groups if len(group) > 1)
    return (math.sqrt(squares / free) if free else None), free


def half_width(noise: float | None, free: int, *counts: int) -> float | None:
    """Half of the 95% confidence interval of a difference of means (or of one mean) over so many runs each."""
    if noise is None or not all(counts):
        return None
    quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, free))
    return quantile * noise * math.sqrt(sum(1 / count for count in counts))
