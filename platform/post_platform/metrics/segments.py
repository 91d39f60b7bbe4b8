"""Segments of a contingency table: compact numbers for them, their areas, and what pairs of them share.

The step between the table and a metric: no class rules here, only exact sums over rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from post_platform.labels import UNIDENTIFIED, VOID
from post_platform.metrics.contingency import factorise


@dataclass(frozen=True)
class Rows:
    """The rows of a table as arrays of one length; `video` and `moment` number the sequences and the frames.

    Both are ascending in (dataset, sequence) and (dataset, sequence, frame), whatever the order of the rows. `names`
    are the sequences, `dataset/sequence`, by `video`. `pred_score` is NaN where a segment has no confidence.
    """

    names: tuple[str, ...]
    video: np.ndarray
    moment: np.ndarray
    frame: np.ndarray
    truth_class: np.ndarray
    truth_instance: np.ndarray
    pred_class: np.ndarray
    pred_track: np.ndarray
    pred_score: np.ndarray
    pixels: np.ndarray

    @property
    def void(self) -> np.ndarray:
        """Rows whose truth says nothing."""
        return self.truth_class == VOID

    @property
    def crowd(self) -> np.ndarray:
        """Rows whose truth is a thing without identity."""
        return self.truth_instance >= UNIDENTIFIED

    def where(self, keep: np.ndarray | slice) -> Rows:
        """The rows for which `keep` is true, with the same numbers of sequences and frames; or those of a slice."""
        columns = {name: column[keep] for name, column in vars(self).items() if name != "names"}
        return Rows(self.names, **columns)


def rows_of(table: pa.Table | Rows) -> Rows:
    """A contingency table as int64 arrays; rows that are arrays already come back as they are.

    Every metric begins with this, so it takes a table, and whoever computes several metrics makes the arrays once.
    """
    if isinstance(table, Rows):
        return table
    names = pc.binary_join_element_wise(table["dataset"], table["sequence"], "/").combine_chunks().dictionary_encode()
    found = names.dictionary.to_numpy(zero_copy_only=False).astype(str)
    rank = np.argsort(np.argsort(found))
    video = rank[names.indices.to_numpy()] if len(rank) else np.zeros(0, np.int64)
    frame = table["frame"].to_numpy().astype(np.int64)
    counted = ("truth_class", "truth_instance", "pred_class", "pred_track", "pixels")
    columns = {name: table[name].to_numpy().astype(np.int64) for name in counted}
    return Rows(
        names=tuple(sorted(found.tolist())),
        video=video,
        moment=group(video, frame).of_row,
        frame=frame,
        pred_score=table["pred_score"].to_numpy(),
        **columns,
    )


def blocks(rows: Rows, frames: int = 256) -> Iterator[Rows]:
    """The rows of so many frames at a time, for sums over frames whose arrays would otherwise grow with all of them."""
    if (np.diff(rows.moment) < 0).any():
        rows = rows.where(np.argsort(rows.moment, kind="stable"))
    last = int(rows.moment[-1]) if len(rows.moment) else -1
    edges = np.searchsorted(rows.moment, np.arange(0, last + 1 + frames, frames)).tolist()
    for start, stop in pairwise(edges):
        yield rows.where(slice(start, stop))


@dataclass(frozen=True)
class Groups:
    """Distinct key tuples in ascending order (`keys`, (n, k)), and for each row the index of its own (`of_row`)."""

    keys: np.ndarray
    of_row: np.ndarray

    def total(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels per group: exact integers."""
        sums = np.zeros(len(self.keys), np.int64)
        np.add.at(sums, self.of_row, pixels)
        return sums


def group(*columns: np.ndarray) -> Groups:
    """Group rows by the tuple of their values in `columns`.

    Columns are combined one by one into compact codes: an order of magnitude faster than `np.unique(axis=1)`, which
    sorts tuples.
    """
    keys = np.zeros((1, 0), np.int64)
    codes = np.zeros(len(columns[0]), np.int64)
    for column in columns:
        values, inverse = factorise(column)
        if not len(values):
            return Groups(np.zeros((0, len(columns)), np.int64), codes)
        combined, codes = factorise(codes * len(values) + inverse)
        keys = np.column_stack([keys[combined // len(values)], values[combined % len(values)]])
    return Groups(keys, codes)


def ratio(numerator: Any, denominator: Any) -> float | None:
    """`numerator / denominator` as a float; None, not infinity, when the denominator is 0."""
    return float(numerator) / float(denominator) if denominator else None


def mean(values: list[float | None]) -> float | None:
    """Mean of the defined values; None when there is none."""
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None
