"""From plan rows to arrays: range reads, decoding, augmentation; a sample that cannot be read is named and replaced."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from post_platform import storage
from post_platform.data.augment import Augmentation, Frame, augment
from post_platform.data.plan import Plan
from post_platform.errors import DataError, StorageError
from post_platform.labels import load_contract
from post_platform.shards import record

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Samples:
    """A local batch as it leaves the loader; B rows.

    Shape: image, prev_image (B, 3, H, W) uint8; classes, prev_classes (B, H, W) uint8; instances, prev_instances
    (B, H, W) int32; dataset (B,) int64; weight (B,) float32; position (B,) int64; key: B strings.
    """

    image: np.ndarray
    prev_image: np.ndarray
    classes: np.ndarray
    instances: np.ndarray
    prev_classes: np.ndarray
    prev_instances: np.ndarray
    dataset: np.ndarray
    weight: np.ndarray
    position: np.ndarray
    key: tuple[str, ...]


class ClipLoader:
    """Reads clips by byte range and augments them; rows of one batch are read by a pool of threads."""

    def __init__(self, plan: Plan, rules: Augmentation, max_bad_samples: int = 16, threads: int = 4) -> None:
        """Prepare to read the rows of `plan`.

        Args:
            plan: names the shards and supplies replacements.
            rules: the augmentation, the same for all datasets.
            max_bad_samples: how many unreadable samples this loader replaces before it gives up.
            threads: decoding threads.
        """
        self.plan, self.rules, self.max_bad_samples, self.threads = plan, rules, max_bad_samples, threads
        self.bad = 0
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Travel to another process without threads and locks."""
        return {**self.__dict__, "_lock": None, "_pool": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make new threads and locks where it arrives."""
        self.__dict__.update(state, _lock=threading.Lock())

    def load(self, rows: pa.Table) -> Samples:
        """Read, decode and augment the rows of a local batch, in their order.

        Raises:
            DataError: more than `max_bad_samples` samples could not be read.
            StorageError: the store of the shards does not answer, or refuses; no replacement would help.
        """
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="decode")
        clips = list(self._pool.map(self._clip, rows.to_pylist()))
        now, prev, keys = zip(*clips, strict=True)
        return Samples(
            image=_images(now),
            prev_image=_images(prev),
            classes=np.stack([frame.classes for frame in now]),
            instances=np.stack([frame.instances for frame in now]).astype(np.int32),
            prev_classes=np.stack([frame.classes for frame in prev]),
            prev_instances=np.stack([frame.instances for frame in prev]).astype(np.int32),
            dataset=rows["dataset"].to_numpy().astype(np.int64),
            weight=rows["weight"].to_numpy().astype(np.float32),
            position=rows["position"].to_numpy().astype(np.int64),
            key=keys,
        )

    def _clip(self, row: dict[str, Any]) -> tuple[Frame, Frame, str]:
        """The row's clip, or, where it cannot be read, a replacement that depends on (position, attempt) alone."""
        attempt = 0
        while True:
            try:
                name = self.plan.datasets[row["dataset"]]
                now = self._read(row, "now")
                prev = self._read(row, "prev") if row["prev_shard"] is not None else None
                if prev is not None and not load_contract(name).persistent:
                    prev = prev._replace(instances=np.zeros_like(prev.instances))
                if prev is not None and prev.classes.shape != now.classes.shape:
                    raise DataError(f"{name}, sample {row['key']}: {now.classes.shape} after {prev.classes.shape}")
                return *augment(now, prev, self.rules, row["seed"]), f"{name}/{row['key']}"
            except StorageError:
                raise
            except DataError as error:
                with self._lock:
                    self.bad += 1
                    if self.bad > self.max_bad_samples:
                        raise DataError(
                            f"more than {self.max_bad_samples} samples could not be read; the last: {error}", error.hint
                        ) from error
                logger.warning("bad sample %d of at most %d: %s", self.bad, self.max_bad_samples, error)
                attempt += 1
                row = self.plan.replacement(row["position"], row["dataset"], attempt)

    def _read(self, row: Mapping[str, Any], when: str) -> Frame:
        """One frame of the clip."""
        place = {field: row[f"{when}_{field}"] for field in ("shard", "offset", "length", "crc32")}
        sample = row["key"] if when == "now" else f"{row['key']}, its previous frame"
        found = read_frame(self.plan.folders[row["dataset"]], place, sample)
        return Frame(found.image, found.classes, found.instances)


def read_frame(folder: str, place: Mapping[str, Any], sample: str) -> record.Record:
    """One frame by its byte range in a shard of `folder`, verified against the index's checksum.

    Args:
        folder: of a converted split.
        place: an index row's shard, offset, length and crc32.
        sample: how a message names the frame.

    Raises:
        DataError: naming dataset, shard and sample, when the bytes are not those that were written.
        StorageError: the store they are in does not answer, or refuses.
    """
    dataset = folder.rsplit("/", 1)[0]
    shard = "/".join([*folder.rsplit("/", 2)[1:], place["shard"]])
    hint = f"see what is damaged: python pipelines/check.py {dataset}"
    try:
        path = storage.join(folder, place["shard"])
        return record.decode(storage.read_range(path, place["offset"], place["length"], place["crc32"]))
    except StorageError:  # the store is away: no fault of this sample
        raise
    except (OSError, DataError) as error:
        raise DataError(f"{shard}, sample {sample}: cannot be read: {error}", hint) from error


def _images(frames: Sequence[Frame]) -> np.ndarray:
    """Stack images channels first. Shape: B x (H, W, 3) -> (B, 3, H, W)."""
    return np.ascontiguousarray(np.stack([frame.image for frame in frames]).transpose(0, 3, 1, 2))
