"""Deal batches to datasets so that each batch, and the run so far, is within one sample of the shares."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

PERIOD = 1024  # shares are multiples of 1/1024, so the deal repeats after 1024 batches


def rounded_shares(frames: Sequence[int], alpha: float) -> np.ndarray:
    """Shares in units of 1/1024, proportional to frames^alpha; they sum to 1024 and none is 0.

    Shape: (D,) int64. Source: largest-remainder rounding.
    """
    weights = np.asarray(frames, np.float64) ** alpha
    exact = weights / weights.sum() * PERIOD
    shares = np.maximum(1, np.floor(exact).astype(np.int64))
    while shares.sum() != PERIOD:
        surplus = shares.sum() > PERIOD
        error = np.where(shares > 1, shares - exact, -np.inf) if surplus else exact - shares
        shares[np.argmax(error)] += -1 if surplus else 1
    return shares


def deal(shares: np.ndarray, global_batch: int) -> np.ndarray:
    """Samples of each dataset in each of 1024 batches; each batch and each running total is within one of exact.

    Every dataset gets floor(global_batch x share) in each batch; what is left is a schedule of unit jobs with
    fractional rates on identical processors, which proportionate fair scheduling solves exactly. A greedy
    "largest deficit first" does not: it breaks the bound from three datasets on.

    Shape: (D,) -> (1024, D) int64.
    Source: Anderson and Srinivasan, "Mixed Pfair/ERfair scheduling of asynchronous periodic tasks" (PD2 priorities).
    """
    quota = shares * global_batch
    counts = np.tile(quota // PERIOD, (PERIOD, 1))
    rates = [int(rate) for rate in quota % PERIOD]
    done = [0] * len(rates)
    for batch in range(PERIOD):
        ready = [d for d, rate in enumerate(rates) if rate and done[d] * PERIOD // rate <= batch]
        ready.sort(key=lambda d: (*_priority(rates[d], done[d] + 1), d))
        for d in ready[: sum(rates) // PERIOD]:
            counts[batch, d] += 1
            done[d] += 1
    return counts


def _priority(rate: int, job: int) -> tuple[int, int, int]:
    """Sort key of a dataset's `job`-th extra sample: deadline, overlap with the next window, group deadline."""
    deadline = math.ceil(job * PERIOD / rate)
    overlaps = job * PERIOD % rate != 0
    group = 0
    if 2 * rate >= PERIOD:  # only rates above one half form chains of windows that must be served back to back
        k = job
        while True:
            end, overlap = math.ceil(k * PERIOD / rate), k * PERIOD % rate != 0
            if not overlap:
                group = end
                break
            if math.ceil((k + 1) * PERIOD / rate) - k * PERIOD // rate == 3:
                group = end + 1
                break
            k += 1
    return deadline, -int(overlaps), -group
