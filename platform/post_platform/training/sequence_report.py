"""Every score of every sequence and class as one long table, for whoever asks where a mean comes from."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from post_platform.labels import Contract, load_contract
from post_platform.metrics.score import Families, flat, score

SCHEMA = pa.schema(
    [
        ("dataset", pa.string()),
        ("sequence", pa.string()),
        ("class", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),
    ]
)
_GROUPS = {"All": "", "Things": "_things", "Stuff": "_stuff"}
_LABELS = {
    "pq": {"pq": "PQ", "sq": "SQ", "rq": "RQ", "n": "PQ_classes", "tp": "PQ_TP", "fp": "PQ_FP", "fn": "PQ_FN"},
    "miou": {"iou": "IoU", "acc": "ACC"},
    "stq": {"SQ": "STQ_SQ"},
    "vpq": {"mean": "VPQ"},
}


def sequence_report(table: pa.Table) -> pa.Table:
    """Every score of the frames in a contingency table, of each dataset and of each of its sequences.

    Columns: dataset, sequence ("": all), class ("": all, or the mean over them), metric, value (null: undefined). The
    names are those that MLflow shows; what it does not show, as the counts behind a ratio, is here too. Stills are no
    sequences, and a sequence has no row of a class that neither its truth nor its prediction contains.
    """
    columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    for dataset, sequence, rows in _parts(table):
        contract = load_contract(dataset)
        shown = _reduced(contract, rows) if sequence else contract
        for native_class, metric, value in scalars(score(rows, shown, partial=True)):
            for name, entry in zip(SCHEMA.names, (dataset, sequence, native_class, metric, value), strict=True):
                columns[name].append(entry)
    return pa.table(columns, schema=SCHEMA)


def write_report(report: pa.Table, folder: Path, name: str) -> tuple[Path, Path]:
    """Write a report as `name`.csv, for people, and `name`.parquet, for programs; returns both paths."""
    folder.mkdir(parents=True, exist_ok=True)
    text, binary = folder / f"{name}.csv", folder / f"{name}.parquet"
    pyarrow.csv.write_csv(report, text)
    pq.write_table(report, binary, compression="zstd")
    return text, binary


def scalars(families: Families) -> Iterator[tuple[str, str, float | None]]:
    """(class, metric, value) of every number in the families, and of the means over classes; each pair once."""
    found = {(name.partition("/")[2], name.partition("/")[0]): value for name, value in flat(families).items()}
    for family, report in families.items():
        labels = _LABELS.get(family, {})
        by_class = report.get("per_class", {}) if family not in ("mots", "hota", "identity") else report
        for native_class, values in by_class.items():
            found |= {(native_class, labels.get(key, key)): v for key, v in values.items() if _is_number(v)}
        if by_class is report:
            continue
        for group, values in [("All", report), *report.items()]:
            if group in _GROUPS:
                for key, value in values.items():
                    label = labels.get(key, f"VPQ_{key}" if family == "vpq" else key)
                    if _is_number(value):
                        found["", label + _GROUPS[group]] = value
    for (native_class, metric), value in found.items():
        yield native_class, metric, None if value is None else float(value)


def _is_number(value: object) -> bool:
    return value is None or isinstance(value, int | float)


def sequences_of(table: pa.Table) -> Iterator[tuple[str, str, pa.Table]]:
    """(dataset, sequence, its rows), sorted; one sort and slices, where a filter each would read all rows each time."""
    table = table.sort_by([("dataset", "ascending"), ("sequence", "ascending"), ("frame", "ascending")])
    names = [table[name].combine_chunks().dictionary_encode().indices.to_numpy() for name in ("dataset", "sequence")]
    changed = np.logical_or.reduce([codes[1:] != codes[:-1] for codes in names])
    edges = [0, *(np.flatnonzero(changed) + 1).tolist(), table.num_rows] if table.num_rows else []
    for start, stop in pairwise(edges):
        yield table["dataset"][start].as_py(), table["sequence"][start].as_py(), table.slice(start, stop - start)


def _parts(table: pa.Table) -> Iterator[tuple[str, str, pa.Table]]:
    """Whole datasets, each followed by its sequences if it has more than stills."""
    parts = list(sequences_of(table))
    for dataset in dict.fromkeys(name for name, _, _ in parts):
        own = [part for part in parts if part[0] == dataset]
        yield dataset, "", pa.concat_tables([rows for _, _, rows in own])
        if load_contract(dataset).video:
            yield from own


def _reduced(contract: Contract, rows: pa.Table) -> Contract:
    """The contract with the classes that occur in the rows: scoring the others takes time and has no result."""
    present = {*pc.unique(rows["truth_class"]).to_pylist(), *pc.unique(rows["pred_class"]).to_pylist()}
    return contract.model_copy(update={"classes": tuple(entry for entry in contract.classes if entry.id in present)})
