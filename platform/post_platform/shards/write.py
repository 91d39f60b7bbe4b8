"""Plan -> shards, one Ray Data task each; the same input gives the same bytes, whoever writes them and however often.

Beside each shard lies a hidden report until the split is whole, so a conversion that was killed goes on where it was.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import logging
import pickle
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from post_platform import storage
from post_platform.errors import DataError
from post_platform.labels import load_contract
from post_platform.shards.frame import encode_frame
from post_platform.shards.index import FORMAT, INDEX_SCHEMA, encode_index
from post_platform.shards.planning import SHARD_BYTES, ShardPlan, SplitJob, plan_conversion

END_OF_TAR = bytes(1024)
REPORT_EVERY = 0.5  # seconds between looks at the progress of all tasks
FRAMES_PER_NOTE = 8
OURS = re.compile(r"\d{6,}\.tar|index\.parquet|\.(\d{6,}\.tar|index\.parquet|manifest\.json)\..*")
Progress = Callable[[str, int, int], None]
Report = Mapping[str, Any]  # name, frames, size, sha256, classes, index (Parquet, base64), plan


def write_split(job: SplitJob, progress: Progress | None = None) -> dict[str, Any]:
    """Write one split's shards, index and, last of all, manifest; Ray must be running. Returns the manifest.

    What an earlier call left behind of the same input is kept: the whole split, or the shards that were ready. Of any
    other input, the old split ceases to exist before the first byte is written. `progress` is told the split, frames
    done and frames in all.

    Raises: DataError naming dataset, split and key for the first frame that cannot be converted, or saying how much
        disk space is missing.
    """
    done = _whole(job)
    if done is not None:
        _clear(job, keep=[shard.name for shard in job.shards], index=True)
        if progress is not None:
            progress(job.split, job.frames, job.frames)
        return done
    storage.delete(storage.join(job.folder, "manifest.json"))  # first, so that no moment shows it with other shards
    reports = _ready(job)
    _clear(job, keep=list(reports))
    missing = [shard for shard in job.shards if shard.name not in reports]
    _require_space(job, sum(shard.size for shard in missing))
    before = sum(report["frames"] for report in reports.values())
    with _watched(job, before, progress) as counter:
        for report in _write_shards(job, missing, counter):
            reports[report["name"]] = report
    manifest = _finish(job, [reports[shard.name] for shard in job.shards])
    _clear(job, keep=list(reports), index=True)
    return manifest


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


def remaining(job: SplitJob) -> int:
    """How many frames `write_split` would have to convert."""
    if _whole(job) is not None:
        return 0
    return job.frames - sum(report["frames"] for report in _ready(job).values())


def _whole(job: SplitJob) -> dict[str, Any] | None:
    """The manifest on disk, if it is of this very plan and no source file has changed since."""
    path = storage.join(job.folder, "manifest.json")
    manifest = _read_json(path)
    if manifest is None or manifest.get("plan") != job.digest:
        return None
    return manifest if storage.modified(path) > max(shard.newest for shard in job.shards) else None


def _ready(job: SplitJob) -> dict[str, Report]:
    """The reports of shards that lie complete on disk, made of the input that the plan names."""
    names = set(storage.list_names(job.folder))
    found: dict[str, Report] = {}
    for shard in job.shards:
        note = _note(shard.name)
        if shard.name not in names or note not in names:
            continue
        path = storage.join(job.folder, note)
        report = _read_json(path)
        if report is None or report.get("plan") != shard.digest or storage.modified(path) <= shard.newest:
            continue
        if storage.size(storage.join(job.folder, shard.name)) == report["size"]:
            found[shard.name] = report
    return found


def _write_shards(job: SplitJob, shards: list[ShardPlan], counter: Any) -> Iterator[Report]:
    import ray.data

    if not shards:
        return
    _silence_ray_data()
    # A frame's reference is a dataset's own type, which Arrow has no column for: each shard's travel as one value.
    rows = [{"shard": pickle.dumps(shard)} for shard in shards]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    for row in dataset.map(_ShardTask(job.dataset, job.split, job.folder, job.lossless, counter)).iter_rows():
        if row["error"]:
            raise DataError(row["error"], hint=row["hint"])
        yield json.loads(row["report"])


@dataclass(frozen=True)
class _ShardTask:
    """Writes one shard and its report; runs in a Ray task."""

    dataset: str
    split: str
    folder: str
    lossless: bool
    counter: Any

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        # An error is reported, not raised: raised, it would reach the user wrapped in Ray's traceback.
        shard: ShardPlan = pickle.loads(row["shard"])
        try:
            report = self._write(shard)
        except DataError as error:
            return {"report": "", "error": str(error), "hint": error.hint}
        text = json.dumps(report, sort_keys=True)
        storage.write_bytes(storage.join(self.folder, _note(shard.name)), text.encode())
        return {"report": text, "error": "", "hint": ""}

    def _write(self, shard: ShardPlan) -> Report:
        rows: list[dict[str, Any]] = []
        classes: Counter[int] = Counter()
        digest = hashlib.sha256()
        with storage.writing(storage.join(self.folder, shard.name)) as file:
            for ref in shard.frames:
                data, row, present = encode_frame(self.dataset, self.split, ref, self.lossless)
                rows.append({**row, "shard": shard.name, "offset": file.tell()})
                classes.update(present)
                file.write(data)
                digest.update(data)
                self._count(len(rows), last=ref is shard.frames[-1])
            file.write(END_OF_TAR)
            digest.update(END_OF_TAR)
            size = file.tell()
        index = encode_index(pa.Table.from_pylist(rows, schema=INDEX_SCHEMA))
        return {
            "name": shard.name,
            "frames": len(rows),
            "size": size,
            "sha256": digest.hexdigest(),
            "classes": classes,
            "index": base64.b64encode(index).decode(),
            "plan": shard.digest,
        }

    def _count(self, done: int, last: bool) -> None:
        if self.counter is not None and (last or done % FRAMES_PER_NOTE == 0):
            self.counter.add.remote(FRAMES_PER_NOTE if not last else (done - 1) % FRAMES_PER_NOTE + 1)


class _Counter:
    """Frames written so far, by all tasks; lives in an actor."""

    def __init__(self, done: int) -> None:
        self.done = done

    def add(self, frames: int) -> None:
        self.done += frames

    def get(self) -> int:
        return self.done


@contextmanager
def _watched(job: SplitJob, before: int, progress: Progress | None) -> Iterator[Any]:
    """Tell `progress` twice a second how far all tasks are; gives the actor that they report to."""
    if progress is None:
        yield None
        return
    import ray

    counter: Any = ray.remote(num_cpus=0)(_Counter).remote(before)
    stopped = threading.Event()

    def watch() -> None:
        last = before
        while not stopped.wait(REPORT_EVERY):
            done = ray.get(counter.get.remote())
            if done != last:
                progress(job.split, done, job.frames)
            last = done

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield counter
        stopped.set()
        thread.join()
        progress(job.split, job.frames, job.frames)
    finally:
        stopped.set()
        ray.kill(counter)


def _require_space(job: SplitJob, needed: int) -> None:
    free = storage.free_bytes(job.folder)
    if free is not None and needed > free:
        raise DataError(
            f"{job.dataset}/{job.split}: about {needed / 1e6:.0f} MB are needed, {job.folder} has {free / 1e6:.0f} MB",
            hint="free some space, or name another disk with --out",
        )


def _clear(job: SplitJob, keep: list[str], index: bool = False) -> None:
    """Remove what does not belong: shards not in `keep`, half-written files, reports once the `index` has them."""
    kept = set(keep) | ({"index.parquet"} if index else set(map(_note, keep)))
    for name in storage.list_names(job.folder):
        if OURS.fullmatch(name) and name not in kept:
            storage.delete(storage.join(job.folder, name))


def _note(shard: str) -> str:
    return f".{shard}.json"


def _read_json(path: str) -> dict[str, Any] | None:
    """A JSON object of ours; None when it is not there or is damaged."""
    if not storage.exists(path):
        return None
    try:
        content = json.loads(storage.read_bytes(path))
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _silence_ray_data() -> None:
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it announces each execution, and that bars are off


def _finish(job: SplitJob, reports: list[Report]) -> dict[str, Any]:
    index = pa.concat_tables(pq.read_table(io.BytesIO(base64.b64decode(report["index"]))) for report in reports)
    classes: Counter[int] = Counter()
    for report in reports:
        classes.update({int(key): count for key, count in report["classes"].items()})
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
        "plan": job.digest,
        "source": job.source,
    }
    storage.write_bytes(storage.join(job.folder, "index.parquet"), parquet)
    storage.write_bytes(storage.join(job.folder, "manifest.json"), json.dumps(manifest, indent=1).encode() + b"\n")
    return manifest
