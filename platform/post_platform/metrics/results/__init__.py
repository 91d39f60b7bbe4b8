"""Result files in the official formats beside their truth, read frame by frame; one file per dataset, by its name.

Each `<dataset>.py` has `read(truth, predictions, sequences) -> Results`, and `write(frames, folder)` for results that
`read` takes. Truth is read from label files alone: whoever scores results needs no images.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable, Sequence
from pathlib import Path

from post_platform.errors import ConfigError, nearest
from post_platform.labels import available
from post_platform.metrics.results.count import count_results
from post_platform.metrics.results.pair import FramePair, ResultFrame, Results
from post_platform.metrics.results.seqmap import read_seqmap, within

__all__ = [
    "FramePair",
    "ResultFrame",
    "Results",
    "count_results",
    "read_results",
    "read_seqmap",
    "readable",
    "within",
    "write_results",
]


def readable() -> list[str]:
    """Names of the datasets, and formats, whose result files can be read."""
    return [name for name in (*available(), "coco_instances") if importlib.util.find_spec(f"{__name__}.{name}")]


def read_results(dataset: str, truth: Path, predictions: Path, sequences: Sequence[str] | None = None) -> Results:
    """The frames of `truth` with their predictions; of the named sequences only, if any are named.

    Raises: ConfigError for a dataset that has no reader; DataError naming the file, and the line or frame in it.
    """
    if dataset not in readable():
        raise ConfigError(f"no reader of {dataset!r} results{nearest(dataset, readable())}")
    module = importlib.import_module(f"{__name__}.{dataset}")
    results: Results = module.read(Path(truth), Path(predictions), sequences)
    return results


def write_results(dataset: str, frames: Iterable[ResultFrame], folder: Path) -> None:
    """Write results in the dataset's official format into an empty or new folder.

    `frames`: those of a sequence lie together and in time order. One frame is held at a time, where the format allows.

    Raises: ConfigError for a dataset that has no writer; DataError naming the frame that the format cannot express.
    """
    if dataset not in (writable := [name for name in readable() if name in available()]):
        raise ConfigError(f"no writer of {dataset!r} results{nearest(dataset, writable)}")
    importlib.import_module(f"{__name__}.{dataset}").write(frames, Path(folder))
