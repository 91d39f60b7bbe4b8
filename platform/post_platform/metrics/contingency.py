"""Contingency tables: the exact number of pixels that each pair (truth segment, predicted segment) shares, per frame.

One row per pair that occurs, pairs with void and crowd included, so every area is a sum of rows and nothing else of a
frame needs to be kept. Tables merge by concatenation, in any order and from any number of ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from post_platform.errors import DataError

SCHEMA = pa.schema(
    [
        ("dataset", pa.string()),
        ("sequence", pa.string()),
        ("frame", pa.int32()),
        ("truth_class", pa.uint8()),
        ("truth_instance", pa.int32()),
        ("pred_class", pa.uint8()),
        ("pred_track", pa.int32()),
        ("pred_score", pa.float64()),
        ("pixels", pa.int64()),
    ],
    metadata={"format": "post-contingency/2"},
)
OVERLOOKED_CROWD = 65536  # truth instance: a crowd segment that a later one of its class hides from panopticapi
_BITS = (8, 17, 8, 31)  # of truth class and instance, predicted class and track: 64 together


def frame_table(
    dataset: str,
    sequence: str,
    frame: int,
    truth_classes: np.ndarray,
    truth_instances: np.ndarray,
    pred_classes: np.ndarray,
    pred_tracks: np.ndarray,
    pred_scores: Mapping[tuple[int, int], float] | None = None,
) -> pa.Table:
    """Count one frame: the pixel counts sum to its size, and equal a count over single pixels.

    The maps follow the shared label convention: native class ids, 255 void on either side, 0 background where the
    dataset has one; truth instance 65535 = thing pixel without identity (crowd). A predicted track is unique only
    together with its class; give stuff and background track 0, else parts of a stuff class count as several segments.
    Thing pixels of track 0 are one segment of their class for PQ, STQ and VPQ, and no object for MOTS, HOTA and IDF1.
    `pred_scores` are confidences by (class, track), the ranking that AP needs; a segment without one has null.

    Only the pixels where one of the four maps changes are looked at one by one. Label maps have long runs, so this is
    several times faster than sorting a 64-bit image of pairs; on pure noise it is not (benchmarks/metrics.py).

    Shape: four (H, W) integer maps.
    Raises: DataError naming dataset, sequence and frame when the maps differ in size.
    """
    maps = (truth_classes, truth_instances, pred_classes, pred_tracks)
    if len({array.shape for array in maps}) != 1:
        raise DataError(
            f"{dataset}/{sequence}/{frame:06d}: the prediction is {_size(pred_classes)} (tracks {_size(pred_tracks)}), "
            f"the truth is {_size(truth_classes)} (instances {_size(truth_instances)})"
        )
    starts, lengths = _runs(maps)
    true, instance, found, track = (array.reshape(-1)[starts] for array in maps)
    return run_table(dataset, sequence, frame, lengths, true, instance, found, track, pred_scores)


def run_table(
    dataset: str,
    sequence: str,
    frame: int,
    lengths: np.ndarray,
    truth_classes: np.ndarray,
    truth_instances: np.ndarray,
    pred_classes: np.ndarray,
    pred_tracks: np.ndarray,
    pred_scores: Mapping[tuple[int, int], float] | None = None,
) -> pa.Table:
    """The table of `frame_table`, from runs of pixels with the same four values, in any order and cut as one likes.

    For formats that come as run lengths, whose pixels nobody needs to see.

    Shape: five (runs,) integer arrays; `lengths` sum to the frame's size.
    """
    fields = (truth_classes, truth_instances, pred_classes, pred_tracks)
    packed = np.zeros(len(lengths), np.uint64)
    for values, bits in zip(fields, _BITS, strict=True):
        assert values.min(initial=0) >= 0, (dataset, sequence, frame)
        assert values.max(initial=0) < 1 << bits, (dataset, sequence, frame)
        packed = packed << np.uint64(bits) | values.astype(np.uint64)
    pairs, of_run = factorise(packed)
    pixels = np.bincount(of_run, weights=lengths, minlength=len(pairs)).astype(np.int64)  # float64: exact to 2^53
    unpacked = []
    for bits in reversed(_BITS):
        unpacked.append((pairs & ((1 << bits) - 1)).astype(np.int32))
        pairs = pairs >> bits
    pred_track, pred_class, truth_instance, truth_class = unpacked
    count = len(pairs)
    keys = zip(pred_class.tolist(), pred_track.tolist(), strict=True)
    scores = [pred_scores.get(key) for key in keys] if pred_scores else [None] * count
    columns = [
        pa.array([dataset] * count, pa.string()),
        pa.array([sequence] * count, pa.string()),
        np.full(count, frame, np.int32),
        truth_class.astype(np.uint8),
        truth_instance,
        pred_class.astype(np.uint8),
        pred_track,
        pa.array(scores, pa.float64()),
        pixels,
    ]
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def merge(tables: Sequence[pa.Table]) -> pa.Table:
    """One table with the rows of all; of none, a table without rows."""
    return pa.concat_tables(tables).combine_chunks() if tables else SCHEMA.empty_table()


def save(table: pa.Table, path: Path) -> None:
    """Write a table as Parquet; a run can be scored again from this file without its pixels."""
    pq.write_table(table, path, compression="zstd")


def load(path: Path) -> pa.Table:
    """Read what `save` wrote.

    Raises: DataError when the file is missing, is not Parquet, or holds other columns.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        reason = str(error) if path.exists() else "no such file"
        raise DataError(f"{path}: no readable contingency table ({reason})") from error
    if not table.schema.equals(SCHEMA):
        raise DataError(f"{path}: not a contingency table; columns are {', '.join(table.column_names)}")
    return table


def factorise(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct values in ascending order and, for each value, its index among them.

    By Arrow's hashing, and a sort of the few distinct values: faster than lookup tables, which ids of millions dwarf.
    """
    encoded = pa.array(values).dictionary_encode()
    distinct = encoded.dictionary.to_numpy(zero_copy_only=False)
    order = np.argsort(distinct)
    rank = np.empty(len(order), np.intp)
    rank[order] = np.arange(len(order))
    return distinct[order], rank[encoded.indices.to_numpy()]


def _runs(maps: tuple[np.ndarray, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Flat start and length of the longest runs along which no map changes; a run may go on over the end of a row."""
    size = maps[0].size
    changed, by_this = np.empty(size, bool), np.empty(size, bool)
    changed[:1] = True
    for place, array in enumerate(maps):
        flat = array.reshape(-1)
        np.not_equal(flat[1:], flat[:-1], out=(by_this if place else changed)[1:])
        if place:
            np.logical_or(changed[1:], by_this[1:], out=changed[1:])
    starts = np.flatnonzero(changed)
    return starts, np.diff(starts, append=size)


def _size(array: np.ndarray) -> str:
    return "x".join(str(length) for length in array.shape)
