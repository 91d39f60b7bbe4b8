"""Official layout -> shards, one Ray Data task per shard; converting the same input twice gives the same bytes."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import pickle
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from post_platform import storage
from post_platform.datasets import reader
from post_platform.datasets.frame import FrameRef, MissingSplit
from post_platform.errors import DataError, nearest
from post_platform.labels import label_problem, load_contract
from post_platform.shards import record
from post_platform.shards.index import FORMAT, INDEX_SCHEMA, encode_index

SHARD_BYTES = 64 << 20
END_OF_TAR = bytes(1024)
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class SplitJob:
    """A split that was found whole on disk and is ready to be written: its frames, cut into shards."""

    dataset: str
    split: str
    source: str
    folder: str
    lossless: bool
    shards: tuple[tuple[FrameRef, ...], ...]

    @property
    def frames(self) -> int:
        """How many frames the split has."""
        return sum(map(len, self.shards))


def plan_conversion(
    dataset: str,
    source: storage.Location,
    root: storage.Location,
    split: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    lossless: bool = False,
) -> list[SplitJob]:
    """Find the frames of one split, or of every split that is there, without decoding any.

    Raises: DataError when the source lacks the split, or every split; ConfigError for an unknown dataset.
    """
    read = reader(dataset)
    folder = Path(source).expanduser().resolve()
    if split is not None and split not in read.SPLITS:
        raise DataError(f"{dataset} has no split {split!r}{nearest(split, read.SPLITS)}")
    jobs: list[SplitJob] = []
    absent: list[MissingSplit] = []
    for name in read.SPLITS if split is None else (split,):
        try:
            frames = _with_legal_names(dataset, name, read.frames(folder, name))
        except MissingSplit as error:
            absent.append(error)
            continue
        except OSError as error:
            raise DataError(f"{dataset} {name}: {error.filename}: {error.strerror}") from error
        target = storage.join(storage.absolute(root), dataset, name)
        jobs.append(SplitJob(dataset, name, str(folder), target, lossless, tuple(_cut(frames, shard_bytes))))
    if not jobs:
        raise absent[0]
    return jobs


def write_split(job: SplitJob, progress: Progress | None = None) -> dict[str, Any]:
    """Write one split's shards, index and, last of all, manifest; Ray must be running. Returns the manifest.

    An older version of the split ceases to exist before the first byte is written, so a kill leaves no split at all.
    `progress` is told the split, frames done and frames in all.

    Raises: DataError naming dataset, split and key for the first frame that cannot be converted.
    """
    import ray.data

    _remove_old(job.folder)
    _silence_ray_data()
    # A frame's reference is a dataset's own type, which Arrow has no column for: each shard's travel as one value.
    rows = [{"number": number, "frames": pickle.dumps(frames)} for number, frames in enumerate(job.shards)]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    described = (job.dataset, job.split, job.folder, job.lossless)
    reports: list[dict[str, Any]] = []
    for row in dataset.map(_ShardTask(*described)).iter_rows():
        if row["error"]:
            raise DataError(row["error"], hint=row["hint"])
        reports.append(row)
        if progress is not None:
            progress(job.split, sum(report["frames"] for report in reports), job.frames)
    reports.sort(key=lambda report: report["name"])
    return _finish(job, reports)


def convert(
    dataset: str,
    source: storage.Location,
    root: storage.Location,
    split: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    lossless: bool = False,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Convert one split, or every split found in `source`; Ray must be running. Returns the manifests.

    Raises: DataError, as `plan_conversion` and `write_split` do.
    """
    jobs = plan_conversion(dataset, source, root, split, shard_bytes, lossless)
    return [write_split(job, progress) for job in jobs]


def encode_frame(dataset: str, split: str, ref: FrameRef, lossless: bool) -> tuple[bytes, dict[str, Any], list[int]]:
    """Read one frame in its official form: its slice of a tar, its index row (without place), its classes.

    Raises: DataError naming dataset, split and key: unreadable image or label, sizes that differ, illegal label.
    """
    where = f"{dataset}/{split} {ref.key}"
    image = record.store_image(storage.read_bytes(ref.image), where, lossless)
    label = None if ref.label is None else reader(dataset).label(ref)
    facts = {
        "dataset": dataset,
        "split": split,
        "sequence": ref.sequence,
        "frame": ref.frame,
        "seconds_since_previous": ref.seconds_since_previous,
        "source_video": ref.source_video,
        "source_image": ref.image.name,
        "native": ref.native,
    }
    try:
        data = record.encode(ref.key, image, label, facts)
    except DataError as error:
        raise DataError(f"{dataset}/{split} {error}", error.hint) from error
    present: list[int] = []
    if label is not None:
        problem = label_problem(load_contract(dataset), label.classes, label.instances)
        if problem:
            raise DataError(f"{where}: {problem}")
        present = np.flatnonzero(np.bincount(label.classes.ravel(), minlength=256)[:255]).tolist()
    row = {
        "sequence": ref.sequence,
        "frame": ref.frame,
        "length": len(data),
        "crc32": zlib.crc32(data),
        "height": image.height,
        "width": image.width,
        "labelled": label is not None,
        "seconds_since_previous": ref.seconds_since_previous,
        "source_video": ref.source_video,
    }
    return data, row, present


@dataclass(frozen=True)
class _ShardTask:
    """Writes one shard and reports on it; runs in a Ray task."""

    dataset: str
    split: str
    folder: str
    lossless: bool

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        name = f"{row['number']:06d}.tar"
        # An error is reported, not raised: raised, it would reach the user wrapped in Ray's traceback.
        try:
            return {**self._write(name, pickle.loads(row["frames"])), "error": "", "hint": ""}
        except DataError as error:
            failed = {"name": name, "frames": 0, "size": 0, "sha256": "", "index": b"", "classes": "{}"}
            return {**failed, "error": str(error), "hint": error.hint}

    def _write(self, name: str, frames: tuple[FrameRef, ...]) -> dict[str, Any]:
        content = io.BytesIO()
        rows: list[dict[str, Any]] = []
        classes: Counter[int] = Counter()
        for ref in frames:
            data, row, present = encode_frame(self.dataset, self.split, ref, self.lossless)
            rows.append({**row, "shard": name, "offset": content.tell()})
            classes.update(present)
            content.write(data)
        content.write(END_OF_TAR)
        tar = content.getvalue()
        storage.write_bytes(storage.join(self.folder, name), tar)
        return {
            "name": name,
            "frames": len(rows),
            "size": len(tar),
            "sha256": hashlib.sha256(tar).hexdigest(),
            "index": encode_index(pa.Table.from_pylist(rows, schema=INDEX_SCHEMA)),
            "classes": json.dumps(classes),
        }


def _with_legal_names(dataset: str, split: str, frames: list[FrameRef]) -> list[FrameRef]:
    """Replace the dots in sequence names by `_`: a WebDataset key ends at its first dot."""
    if not frames:
        raise MissingSplit(f"{dataset} {split}: no frame found")
    natives: dict[str, str] = {}
    for ref in frames:
        legal = ref.sequence.replace(".", "_")
        if natives.setdefault(legal, ref.sequence) != ref.sequence:
            raise DataError(f"{dataset} {split}: sequences {natives[legal]!r} and {ref.sequence!r} have the same key")
    return [FrameRef(**{**ref.__dict__, "sequence": ref.sequence.replace(".", "_")}) for ref in frames]


def _cut(frames: list[FrameRef], shard_bytes: int) -> Iterator[tuple[FrameRef, ...]]:
    """Fill shards with whole sequences; only a sequence larger than a shard is cut.

    Sizes are those of the source images, known without encoding anything; so the cut depends on the input alone.
    """
    shard: list[FrameRef] = []
    filled = 0
    for _, group in groupby(frames, key=lambda ref: ref.sequence):
        sequence = [(ref, ref.image.stat().st_size) for ref in group]
        if shard and filled + sum(size for _, size in sequence) > shard_bytes:
            yield tuple(shard)
            shard, filled = [], 0
        for ref, size in sequence:
            if shard and filled + size > shard_bytes:
                yield tuple(shard)
                shard, filled = [], 0
            shard.append(ref)
            filled += size
    if shard:
        yield tuple(shard)


def _remove_old(folder: str) -> None:
    """Take back an earlier version: the manifest first, so that no moment shows it with other shards."""
    storage.delete(storage.join(folder, "manifest.json"))
    for name in storage.list_names(folder):
        if name == "index.parquet" or re.fullmatch(
            r"\d{6,}\.tar|\.(\d{6,}\.tar|index\.parquet|manifest\.json)\..*", name
        ):
            storage.delete(storage.join(folder, name))


def _silence_ray_data() -> None:
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it announces each execution, and that bars are off


def _finish(job: SplitJob, reports: list[dict[str, Any]]) -> dict[str, Any]:
    import pyarrow.parquet as pq

    index = pa.concat_tables(pq.read_table(io.BytesIO(report["index"])) for report in reports)
    classes: Counter[int] = Counter()
    for report in reports:
        classes.update({int(key): count for key, count in json.loads(report["classes"]).items()})
    parquet = encode_index(index)
    manifest = {
        "format": FORMAT,
        "dataset": job.dataset,
        "split": job.split,
        "contract": load_contract(job.dataset).native_hash(),
        "frames": index.num_rows,
        "labelled_frames": sum(index["labelled"].to_pylist()),
        "sequences": len(set(index["sequence"].to_pylist())),
        "classes": {str(key): classes[key] for key in sorted(classes)},
        "shards": [{key: report[key] for key in ("name", "frames", "size", "sha256")} for report in reports],
        "index_sha256": hashlib.sha256(parquet).hexdigest(),
        "source": job.source,
    }
    storage.write_bytes(storage.join(job.folder, "index.parquet"), parquet)
    storage.write_bytes(storage.join(job.folder, "manifest.json"), json.dumps(manifest, indent=1).encode() + b"\n")
    return manifest
