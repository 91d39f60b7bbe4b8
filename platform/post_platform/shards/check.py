"""Verify a converted split: its index against its manifest, and the bytes of its frames, a sample of them or all."""

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
from post_platform.labels import UNIDENTIFIED, VOID, label_problem, load_contract
from post_platform.runs import distinct
from post_platform.shards import record
from post_platform.shards.index import Split, convert_command, read_split

END_OF_TAR = bytes(1024)
SAMPLED_FRAMES = 256
HASHED_BYTES = 1 << 30


@dataclass(frozen=True)
class Report:
    """What was looked at, and one line for each thing that is wrong.

    `decoded` of the `frames` were read and decoded, `hashed` of the `shards` read to their end.
    """

    dataset: str
    split: str
    frames: int
    decoded: int
    shards: int
    hashed: int
    problems: tuple[str, ...]
    hint: str


def check(
    root: storage.Location,
    dataset: str,
    split: str,
    full: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Look at a split; `progress` is told shards done and in all.

    Always looked at: every row of the index, its order and ranges, and the size of every shard. Read and decoded: 256
    frames, evenly spaced, and the SHA-256 of shards of 1 GB together; under `full`, or where there are no more, all.

    Raises: DataError when the split has no usable manifest and index.
    """
    found = read_split(root, dataset, split)
    rows = found.index.to_pylist()
    problems = _against_manifest(found, rows) + _out_of_order(found, rows)
    chosen = set(range(len(rows))) if full else _evenly(len(rows), SAMPLED_FRAMES)
    shards = found.manifest["shards"]
    hashed = {shard["name"] for shard in (shards if full else _within(shards, HASHED_BYTES))}
    by_shard: dict[str, list[_Row]] = {shard["name"]: [] for shard in shards}
    for number, row in enumerate(rows):
        by_shard.setdefault(row["shard"], []).append(_Row(row, number in chosen))
    classes: Counter[int] = Counter()
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # decoding releases the GIL
        results = pool.map(
            lambda shard: _check_shard(found, shard, by_shard[shard["name"]], shard["name"] in hashed), shards
        )
        for done, (lines, counted) in enumerate(results, start=1):
            problems += lines
            classes.update(counted)
            if progress is not None:
                progress(done, len(shards))
    counted_classes = {str(key): classes[key] for key in sorted(classes)}
    if not problems and len(chosen) == len(rows) and counted_classes != found.manifest["classes"]:
        problems.append(f"{dataset}/{split}/manifest.json: the frames' classes are not those that it counts")
    hint = convert_command(dataset, split, root, found.manifest.get("source", ""))
    return Report(dataset, split, len(rows), len(chosen), len(shards), len(hashed), tuple(problems), hint)


@dataclass(frozen=True)
class _Row:
    """A row of the index, and whether its frame is to be decoded."""

    values: dict[str, Any]
    chosen: bool


def _evenly(total: int, count: int) -> set[int]:
    """`count` places out of `total`, first and last among them; all if there are no more."""
    return set(np.linspace(0, total - 1, min(count, total)).round().astype(int).tolist())


def _within(shards: list[dict[str, Any]], budget: int) -> list[dict[str, Any]]:
    """Evenly spaced shards of `budget` bytes together, about; one at least."""
    share = min(1.0, budget / max(1, sum(shard["size"] for shard in shards)))
    return [shards[place] for place in sorted(_evenly(len(shards), max(1, int(share * len(shards)))))]


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
    return problems


def _out_of_order(found: Split, rows: list[dict[str, Any]]) -> list[str]:
    """Frames of a sequence lie together and in time order; only its first one has no time since the previous."""
    where, video = f"{found.dataset}/{found.split}/index.parquet", load_contract(found.dataset).video
    problems: list[str] = []
    runs = [(name, list(run)) for name, run in itertools.groupby(rows, key=lambda row: row["sequence"])]
    if len({name for name, _ in runs}) != len(runs):
        problems.append(f"{where}: the frames of a sequence are not contiguous")
    for name, run in runs:
        for before, row in itertools.pairwise(run):
            if row["frame"] <= before["frame"]:
                problems.append(f"{where}: {name}/{row['frame']:06d} comes after {before['frame']:06d}")
            elif video and not (row["seconds_since_previous"] or 0) > 0:
                problems.append(
                    f"{where}: {name}/{row['frame']:06d} is {row['seconds_since_previous']} s after its predecessor"
                )
            elif row["source_video"] != before["source_video"] and video:
                problems.append(f"{where}: {name}/{row['frame']:06d} is of another source video than its predecessor")
        if run[0]["seconds_since_previous"] is not None:
            problems.append(
                f"{where}: {name}/{run[0]['frame']:06d} is the first of its sequence, but has a predecessor"
            )
    return problems


def _check_shard(found: Split, shard: dict[str, Any], rows: list[_Row], hashed: bool) -> tuple[list[str], Counter[int]]:
    where = f"{found.dataset}/{found.split}/{shard['name']}"
    path = storage.join(found.folder, shard["name"])
    classes: Counter[int] = Counter()
    try:
        size = storage.size(path)
    except DataError as error:
        return [f"{where}: {error}"], classes
    problems = [] if size == shard["size"] else [f"{where}: is {size} bytes, the manifest says {shard['size']}"]
    digest, end, unread = hashlib.sha256(), 0, False
    for entry in rows:
        row, place = entry.values, f"{entry.values['sequence']}/{entry.values['frame']:06d}"
        if row["offset"] != end:
            problems.append(f"{where}: {place} starts at {row['offset']}, expected {end}")
        end = row["offset"] + row["length"]
        if not (hashed or entry.chosen):
            continue
        try:
            data = storage.read_range(path, row["offset"], row["length"])
        except DataError as error:
            problems.append(f"{where}, sample {place}: {error}")
            unread = True
            continue
        digest.update(data)
        try:
            if entry.chosen:
                classes.update(_check_frame(found.dataset, where, row, data))
        except DataError as error:
            problems.append(str(error))
    if end + len(END_OF_TAR) != shard["size"]:
        problems.append(f"{where}: frames end at byte {end}, the file should end 1024 later, at {shard['size']}")
    elif hashed and not unread and size == shard["size"]:
        digest.update(storage.read_range(path, end, len(END_OF_TAR)))
        if digest.hexdigest() != shard["sha256"]:
            problems.append(f"{where}: SHA-256 differs from the manifest")
    return problems, classes


def _check_frame(dataset: str, where: str, row: dict[str, Any], data: bytes) -> list[int]:
    """The classes in one frame. Raises: DataError saying what is wrong with it."""
    key = f"{row['sequence']}/{row['frame']:06d}"
    place = f"{where}, sample {key}"
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
    codes = distinct(decoded.classes.astype(np.uint32) << 16 | decoded.instances).tolist()
    drawn = {f"{code >> 16}/{code & 0xFFFF}" for code in codes if code & 0xFFFF not in (0, UNIDENTIFIED)}
    unnamed = sorted(drawn - decoded.meta.get("instances", {}).keys())
    if unnamed:
        raise DataError(f"{place}: meta.json does not name the object {unnamed[0]} of the label")
    present = distinct(decoded.classes).tolist()
    if not row["labelled"] and present != [VOID]:
        raise DataError(f"{place}: is unlabelled, but its label is not all void")
    return [value for value in present if value != VOID]
