"""YouTube-VIS 2021 results; the format, which both years share, is `youtube_vis`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from post_platform.metrics.results import youtube_vis
from post_platform.metrics.results.pair import ResultFrame, Results


def read(truth: Path, predictions: Path, sequences: Sequence[str] | None) -> Results:
    """Pairs of the truth's JSON and `results.json`; see `youtube_vis.read`."""
    return youtube_vis.read("youtube_vis_2021", truth, predictions, sequences)


def write(frames: Iterable[ResultFrame], folder: Path) -> None:
    """Write `results.json`; see `youtube_vis.write`."""
    youtube_vis.write("youtube_vis_2021", frames, folder)
