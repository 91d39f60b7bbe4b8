"""Readers: official layout on disk -> frames, one file per dataset; the file's name is the dataset's name."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Protocol, cast

from post_platform.datasets.frame import FrameRef, Label
from post_platform.errors import ConfigError, nearest
from post_platform.labels import available


class Reader(Protocol):
    """What a file in this folder offers."""

    SPLITS: tuple[str, ...]

    def frames(self, source: Path, split: str) -> list[FrameRef]:
        """Every frame of a split: sequences contiguous, frames in time order; lists files, decodes nothing.

        Raises: MissingSplit when the folder has no such split, DataError when the split is incomplete.
        """

    def label(self, ref: FrameRef) -> Label:
        """The decoded label of a labelled frame. Raises: DataError naming dataset and key."""


def readable() -> list[str]:
    """The datasets that can be converted: those with a label contract and a reader."""
    return [name for name in available() if importlib.util.find_spec(f"{__name__}.{name}")]


def reader(dataset: str) -> Reader:
    """The reader of a dataset. Raises: ConfigError with the nearest names when there is none."""
    if dataset not in readable():
        raise ConfigError(
            f"no dataset {dataset!r}{nearest(dataset, readable())}", hint="python pipelines/convert.py --help"
        )
    return cast(Reader, importlib.import_module(f"{__name__}.{dataset}"))
