"""KITTI-MOTS results; the format, which two datasets share, is `mots_files`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from post_platform.metrics.results import mots_files
from post_platform.metrics.results.pair import ResultFrame, Results


def read(truth: Path, predictions: Path, sequences: Sequence[str] | None) -> Results:
    """Pairs of text files or PNG folders; see `mots_files.read`."""
    return mots_files.read("kitti_mots", truth, predictions, sequences)


def write(frames: Iterable[ResultFrame], folder: Path) -> None:
    """Write `<sequence>.txt`; see `mots_files.write`."""
    mots_files.write("kitti_mots", frames, folder)
