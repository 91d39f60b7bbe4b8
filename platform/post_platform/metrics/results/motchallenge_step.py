"""MOTChallenge-STEP results; the format, which two datasets share, is `step_maps`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from post_platform.metrics.results import step_maps
from post_platform.metrics.results.pair import ResultFrame, Results


def read(truth: Path, predictions: Path, sequences: Sequence[str] | None) -> Results:
    """Pairs of two folders of sequences; see `step_maps.read`."""
    return step_maps.read("motchallenge_step", truth, predictions, sequences)


def write(frames: Iterable[ResultFrame], folder: Path) -> None:
    """Write `<sequence>/<frame>.png`; see `step_maps.write`."""
    step_maps.write("motchallenge_step", frames, folder)
