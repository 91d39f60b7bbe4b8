"""Verify a converted split: every byte against manifest and index, every frame decoded and legal."""

from __future__ import annotations

import hashlib
import itertools
import os
import zlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from post_platform import storage
from post_platform.errors import DataError
from post_platform.labels import VOID, label_problem, load_contract
from post_platform.shards import record
from post_platform.shards.index import Split, convert_command, read_split

END_OF_TAR = 1024  # bytes


@dataclass(frozen=True)
class Report:
    """What was looked at, and one line for each thing that is wrong."""

    dataset: str
    split: str
    frames: int
    shards: int
    problems: tuple[str, ...]
    hint: str


def check(
    root: storage.Location, dataset: str, split: str, progress: Callable[[int, int], None] | None = None
) -> Report:
    """Look at every frame of a split; `progress` is told shards done and in all.

    Raises: DataError when the split has no usable manifest and index.
    """
    found = read_split(root, dataset, split)
    rows = found.index.to_pylist()
    problems = _against_manifest(found, rows)
    classes: Counter[int] = Counter()
    shards = found.manifest["shards"]
    by_shard: dict[str, list[dict[str, Any]]] = {shard["name"]: [] for shard in shards}
    for row in rows:
        by_shard.setdefault(row["shard"], []).append(row)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # decoding releases the GIL
        results = pool.map(lambda shard: _check_shard(found, shard, by_shard[shard["name"]]), shards)
        for done, (lines, counted) in enumerate(results, start=1):
            problems += lines
            classes.update(counted)
            if progress is not None:
                progress(done, len(shards))
    counted_classes = {str(key): classes[key] for key in sorted(classes)}
    if not problems and counted_classes != found.manifest["classes"]:
        problems.append(f"{dataset}/{split}/manifest.json: the frames' classes are not those that it counts")
    hint = convert_command(dataset, split, root, found.manifest.get("source", ""))
    return Report(dataset, split, len(rows), len(shards), tuple(problems), hint)


def _against_manifest(found: Split, rows: list[dict[str, Any]]) -> list[str]:
    where, manifest = f"{found.dataset}/{found.split}", found.manifest
    expected = {
        "frames": len(rows),
        "labelled_frames": sum(row["labelled"] for row in rows),
        "sequences": len({row["sequence"] for row in rows}),
    }
    problems = [
        f"{where}/manifest.json: {name} is {manifest[name]}, the index has {count}"
        for name, count in expected.items()
        if manifest[name] != count
    ]
    per_shard = Counter(row["shard"] for row in rows)
    if per_shard != {shard["name"]: shard["frames"] for shard in manifest["shards"]}:
        problems.append(f"{where}/index.parquet: its shards or their frames are not the manifest's")
    keys = Counter((row["sequence"], row["frame"]) for row in rows)
    problems += [f"{where}/index.parquet: {s}/{f:06d} appears {n} times" for (s, f), n in keys.items() if n > 1]
    order = [row["sequence"] for row in rows]
    changes = sum(1 for one, two in itertools.pairwise(order) if one != two) + bool(order)
    if changes != len(set(order)):
        problems.append(f"{where}/index.parquet: the frames of a sequence are not contiguous")
    return problems


def _check_shard(found: Split, shard: dict[str, Any], rows: list[dict[str, Any]]) -> tuple[list[str], Counter[int]]:
    where = f"{found.dataset}/{found.split}/{shard['name']}"
    problems: list[str] = []
    classes: Counter[int] = Counter()
    try:
        tar = storage.read_bytes(storage.join(found.folder, shard["name"]))
    except DataError as error:
        return [f"{where}: {error}"], classes
    if len(tar) != shard["size"]:
        problems.append(f"{where}: is {len(tar)} bytes, the manifest says {shard['size']}")
    elif hashlib.sha256(tar).hexdigest() != shard["sha256"]:
        problems.append(f"{where}: SHA-256 differs from the manifest")
    end = 0
    for row in rows:
        if row["offset"] != end:
            problems.append(f"{where}: {row['sequence']}/{row['frame']:06d} starts at {row['offset']}, expected {end}")
        end = row["offset"] + row["length"]
        try:
            classes.update(_check_frame(found.dataset, where, row, tar[row["offset"] : end]))
        except DataError as error:
            problems.append(str(error))
    if end + END_OF_TAR != shard["size"]:
        problems.append(
            f"{where}: frames end at byte {end}, the file should end {END_OF_TAR} later, at {shard['size']}"
        )
    return problems, classes


def _check_frame(dataset: str, where: str, row: dict[str, Any], data: bytes) -> list[int]:
    """The classes in one frame. Raises: DataError saying what is wrong with it."""
    key = f"{row['sequence']}/{row['frame']:06d}"
    place = f"{where}, sample {key}"
    if len(data) != row["length"]:
        raise DataError(f"{place}: {len(data)} of {row['length']} bytes: the shard is truncated")
    if zlib.crc32(data) != row["crc32"]:
        raise DataError(f"{place}: checksum differs from the index")
    decoded = record.decode(data, where)
    if decoded.key != key:
        raise DataError(f"{place}: the slice holds {decoded.key}")
    if decoded.classes.shape != (row["height"], row["width"]):
        raise DataError(f"{place}: is {decoded.classes.shape}, the index says {(row['height'], row['width'])}")
    agreed = ("sequence", "frame", "labelled", "seconds_since_previous", "source_video", "height", "width")
    for name in agreed:
        if decoded.meta.get(name) != row[name]:
            raise DataError(f"{place}: meta.json says {name} = {decoded.meta.get(name)!r}, the index {row[name]!r}")
    problem = label_problem(load_contract(dataset), decoded.classes, decoded.instances)
    if problem:
        raise DataError(f"{place}: {problem}")
    present = np.flatnonzero(np.bincount(decoded.classes.ravel(), minlength=256)).tolist()
    if not row["labelled"] and present != [VOID]:
        raise DataError(f"{place}: is unlabelled, but its label is not all void")
    return [value for value in present if value != VOID]
