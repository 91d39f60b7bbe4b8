"""RobMOTS' final scores: HOTA and its parts of a benchmark by class and without classes, and over benchmarks.

Definition: of a benchmark, `cls_av` is the mean over its classes, `det_av` the score of all its objects as if they were
of one class, `final` the geometric mean of the two; `overall` is the arithmetic mean over benchmarks of each.

Source: TrackEval's run_rob_mots. What is undefined counts as it does there: 0, LocA 1; so a class of the benchmark that
is neither true nor predicted lowers its class average.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

NAMES = ("HOTA", "DetA", "AssA", "DetRe", "DetPr", "AssRe", "AssPr", "LocA")
Kinds = dict[str, dict[str, float]]
"""{"final", "cls_av" or "det_av": {metric: value}}."""


def report(benchmarks: Mapping[str, tuple[Sequence[Mapping[str, Any]], Mapping[str, Any]]]) -> dict[str, Kinds]:
    """The three kinds of each benchmark, and `overall`; out of HOTA reports, one per class, and one without classes."""
    found = {name: _combined(by_class, of_all) for name, (by_class, of_all) in benchmarks.items()}
    overall = {
        kind: {name: _mean([kinds[kind][name] for kinds in found.values()]) for name in NAMES}
        for kind in ("final", "cls_av", "det_av")
    }
    return {"overall": overall, **found}


def _combined(by_class: Sequence[Mapping[str, Any]], of_all: Mapping[str, Any]) -> Kinds:
    cls_av = {name: _mean([_defined(found, name) for found in by_class]) for name in NAMES}
    det_av = {name: _defined(of_all, name) for name in NAMES}
    return {
        "final": {name: math.sqrt(cls_av[name] * det_av[name]) for name in NAMES}, "cls_av": cls_av, "det_av": det_av
    }  # fmt: skip


def _defined(found: Mapping[str, Any], name: str) -> float:
    value = found[name]
    return float(name == "LocA") if value is None else float(value)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
