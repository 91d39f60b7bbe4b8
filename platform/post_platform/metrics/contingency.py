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
_SMALL_LOOKUP = 1 << 17  # entries (1 MB) that are always cheap; beyond, a lookup table must not dwarf its input


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
    some 20 times faster than sorting a 64-bit image of pairs, and still faster on noise (benchmarks/contingency.py).

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
    truth_values, truth_codes = _factorise_pair(truth_classes, truth_instances, starts)
    pred_values, pred_codes = _factorise_pair(pred_classes, pred_tracks, starts)
    pairs, pair_codes = factorise(truth_codes * len(pred_values) + pred_codes)
    pixels = np.bincount(pair_codes, weights=lengths, minlength=len(pairs)).astype(np.int64)  # float64: exact to 2^53
    truth, pred = truth_values[pairs // len(pred_values)], pred_values[pairs % len(pred_values)]
    count = len(pairs)
    columns = [
        pa.array([dataset] * count, pa.string()),
        pa.array([sequence] * count, pa.string()),
        np.full(count, frame, np.int32),
        truth[:, 0].astype(np.uint8),
        truth[:, 1].astype(np.int32),
        pred[:, 0].astype(np.uint8),
        pred[:, 1].astype(np.int32),
        pa.array([pred_scores.get((c, t)) for c, t in pred.tolist()] if pred_scores else [None] * count, pa.float64()),
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
        raise DataError(f"{path}: no readable contingency table ({error})") from error
    if not table.schema.equals(SCHEMA):
        raise DataError(f"{path}: not a contingency table; columns are {', '.join(table.column_names)}")
    return table


def factorise(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct values in ascending order and, for each value, its index among them.

    By lookup table; only values too large for one (ids of millions) are sorted.
    """
    largest = int(values.max(initial=0))
    if largest > _SMALL_LOOKUP + 8 * values.size or int(values.min(initial=0)) < 0:
        return np.unique(values, return_inverse=True)
    distinct = np.flatnonzero(np.bincount(values, minlength=largest + 1))
    lookup = np.zeros(largest + 1, np.intp)
    lookup[distinct] = np.arange(len(distinct))
    return distinct, lookup[values]


def _runs(maps: tuple[np.ndarray, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Flat start and length of the longest runs along which no map changes; a run may go on over the end of a row."""
    size = maps[0].size
    changed = np.zeros(size, bool)
    changed[:1] = True
    for array in maps:
        flat = array.reshape(-1)
        changed[1:] |= flat[1:] != flat[:-1]
    starts = np.flatnonzero(changed)
    return starts, np.diff(starts, append=size)


def _factorise_pair(classes: np.ndarray, identities: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct (class, identity) pairs found at the given flat positions, (n, 2), and for each position its row."""
    class_values, class_codes = factorise(classes.reshape(-1)[at])
    identity_values, identity_codes = factorise(identities.reshape(-1)[at])
    pairs, codes = factorise(class_codes * len(identity_values) + identity_codes)
    width = max(len(identity_values), 1)
    values = np.stack([class_values[pairs // width], identity_values[pairs % width]], axis=1, dtype=np.int64)
    return values, codes


def _size(array: np.ndarray) -> str:
    return "x".join(str(length) for length in array.shape)
