"""Result files in the official formats beside their truth, read frame by frame; one file per dataset, by its name.

Each `<dataset>.py` has `read(truth, predictions, sequences) -> Results`. Truth is read from label files alone: whoever
scores results needs no images.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

from post_platform.errors import ConfigError, nearest
from post_platform.metrics.results.pair import FramePair, Results

__all__ = ["FramePair", "Results", "read_results", "readable"]


def readable() -> list[str]:
    """Names of the datasets whose result files can be read."""
    own = {"__init__", "pair"}
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in own)


def read_results(dataset: str, truth: Path, predictions: Path, sequences: Sequence[str] | None = None) -> Results:
    """The frames of `truth` with their predictions; of the named sequences only, if any are named.

    Raises: ConfigError for a dataset that has no reader; DataError naming the file, and the line or frame in it.
    """
    if dataset not in readable():
        raise ConfigError(f"no reader of {dataset!r} results{nearest(dataset, readable())}")
    module = importlib.import_module(f"{__name__}.{dataset}")
    results: Results = module.read(Path(truth), Path(predictions), sequences)
    return results
