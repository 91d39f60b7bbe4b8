"""From plan rows to arrays: range reads, decoding, augmentation; a sample that cannot be read is named and replaced."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from post_platform import storage
from post_platform.data.augment import Augmentation, Frame, augment
from post_platform.data.plan import Plan
from post_platform.errors import DataError, StorageError
from post_platform.labels import load_contract
from post_platform.shards import record

PIXELS: dict[str, type[np.generic]] = {
    f"{prefix}{name}": kind
    for prefix in ("", "prev_")
    for name, kind in (("image", np.uint8), ("classes", np.uint8), ("instances", np.int32))
}
"""The fields of `Samples` that hold pixels, and their types."""


@dataclass(frozen=True)
class Samples:
    """A local batch as it leaves the loader; B rows.

    Shape: image, prev_image (B, 3, H, W) uint8; classes, prev_classes (B, H, W) uint8; instances, prev_instances
    (B, H, W) int32; dataset (B,) int64; weight (B,) float32; position (B,) int64; key: B strings, as they are written
    in the shards; replaced: what is wrong with each sample that could not be read, and the next command.
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
    replaced: tuple[tuple[str, str], ...] = ()


class ClipLoader:
    """Reads clips by byte range and augments them; the clips of one batch are read by a pool of threads."""

    def __init__(self, plan: Plan, rules: Augmentation, max_bad_samples: int = 16, threads: int = 4) -> None:
        """Prepare to read the rows of `plan`.

        Args:
            plan: names the shards and supplies replacements.
            rules: the augmentation, the same for all datasets.
            max_bad_samples: how many unreadable samples are replaced before the reader gives up.
            threads: decoding threads.
        """
        self.plan, self.rules, self.max_bad_samples, self.threads = plan, rules, max_bad_samples, threads
        self._pool: ThreadPoolExecutor | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Travel to another process without threads."""
        return {**self.__dict__, "_pool": None}

    def load(self, rows: pa.Table) -> Samples:
        """Read, decode and augment the rows of a local batch, in their order.

        Raises:
            DataError: more than `max_bad_samples` samples in a row could not be read.
            StorageError: the store of the shards does not answer, or refuses; no replacement would help.
        """
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="decode")
        size = rows.num_rows, self.rules.crop
        pixels = {name: np.empty(pixel_shape(name, *size), kind) for name, kind in PIXELS.items()}  # a row per pair
        pairs = [pair for clip in self._pool.map(partial(self._clip, pixels), _clips(rows)) for pair in clip]
        return Samples(
            **pixels,
            dataset=rows["dataset"].to_numpy().astype(np.int64),
            weight=rows["weight"].to_numpy().astype(np.float32),
            position=rows["position"].to_numpy().astype(np.int64),
            key=tuple(pair.key for pair in pairs),
            replaced=tuple(dict.fromkeys(problem for pair in pairs for problem in pair.replaced)),
        )

    def _clip(self, pixels: Mapping[str, np.ndarray], rows: Sequence[tuple[int, dict[str, Any]]]) -> list[_Pair]:
        """Read the pairs of one clip, each of its frames once, into their places in `pixels`."""
        decoded: dict[tuple[str, int], record.Record] = {}
        return [self._pair(pixels, place, row, decoded) for place, row in rows]

    def _pair(
        self,
        pixels: Mapping[str, np.ndarray],
        place: int,
        row: dict[str, Any],
        decoded: dict[tuple[str, int], record.Record],
    ) -> _Pair:
        """Read the row's pair, or, where it cannot be read, a replacement that depends on (position, attempt) alone."""
        replaced: list[tuple[str, str]] = []
        while True:
            try:
                name = self.plan.datasets[row["dataset"]]
                found = self._read(row, "now", decoded)
                now = Frame(found.image, found.classes, found.instances)
                prev = None
                if row["prev_shard"] is not None:
                    before = self._read(row, "prev", decoded)
                    prev = Frame(before.image, before.classes, before.instances)
                if prev is not None and not load_contract(name).persistent:
                    prev = prev._replace(instances=np.broadcast_to(np.uint16(0), prev.instances.shape))
                if prev is not None and prev.classes.shape != now.classes.shape:
                    raise DataError(f"{name}, sample {row['key']}: {now.classes.shape} after {prev.classes.shape}")
                _put(pixels, place, *augment(now, prev, self.rules, row["seed"]))
                return _Pair(f"{name}/{found.key}", tuple(replaced))
            except StorageError:
                raise
            except DataError as error:
                replaced.append((str(error), error.hint))
                if len(replaced) > self.max_bad_samples:
                    raise too_many(self.max_bad_samples, *replaced[-1]) from error
                row = self.plan.replacement(row["position"], row["dataset"], len(replaced))

    def _read(self, row: Mapping[str, Any], when: str, decoded: dict[tuple[str, int], record.Record]) -> record.Record:
        """One frame of the pair, from `decoded` where another pair of its clip has read it."""
        place = {field: row[f"{when}_{field}"] for field in ("shard", "offset", "length", "crc32")}
        known = place["shard"], place["offset"]
        if known not in decoded:
            sample = row["key"] if when == "now" else f"{row['key']}, its previous frame"
            decoded[known] = read_frame(self.plan.folders[row["dataset"]], place, sample, record.view)
        return decoded[known]


class _Pair(NamedTuple):
    """The key of the pair that was read, and what could not be read before."""

    key: str
    replaced: tuple[tuple[str, str], ...]


def _put(pixels: Mapping[str, np.ndarray], place: int, now: Frame, prev: Frame) -> None:
    """Copy a pair to its row of a batch's arrays, the images channels first."""
    for prefix, frame in (("", now), ("prev_", prev)):
        pixels[f"{prefix}image"][place] = frame.image.transpose(2, 0, 1)
        pixels[f"{prefix}classes"][place] = frame.classes
        pixels[f"{prefix}instances"][place] = frame.instances


def pixel_shape(name: str, pairs: int, crop: tuple[int, int]) -> tuple[int, ...]:
    """Shape of a field of PIXELS in a batch."""
    return (pairs, 3, *crop) if name.endswith("image") else (pairs, *crop)


def too_many(most: int, last: str, hint: str) -> DataError:
    """The error that ends a run with more unreadable samples than it replaces."""
    return DataError(f"more than {most} samples could not be read; the last: {last}", hint)


def _clips(rows: pa.Table) -> list[list[tuple[int, dict[str, Any]]]]:
    """Neighbouring rows of one clip together, each with its place; a clip's rows have its seed in common."""
    numbered = enumerate(rows.to_pylist())
    return [list(clip) for _, clip in groupby(numbered, key=lambda item: (item[1]["dataset"], item[1]["seed"]))]


def read_frame(
    folder: str,
    place: Mapping[str, Any],
    sample: str,
    decode: Callable[[bytes], record.Record] = record.decode,
) -> record.Record:
    """One frame by its byte range in a shard of `folder`, verified against the index's checksum.

    Args:
        folder: of a converted split.
        place: an index row's shard, offset, length and crc32.
        sample: how a message names the frame.
        decode: `record.decode`, or `record.view`.

    Raises:
        DataError: naming dataset, shard and sample, when the bytes are not those that were written.
        StorageError: the store they are in does not answer, or refuses.
    """
    dataset = folder.rsplit("/", 1)[0]
    shard = "/".join([*folder.rsplit("/", 2)[1:], place["shard"]])
    hint = f"see what is damaged: python pipelines/check.py {dataset}"
    try:
        path = storage.join(folder, place["shard"])
        return decode(storage.read_range(path, place["offset"], place["length"], place["crc32"]))
    except StorageError:  # the store is away: no fault of this sample
        raise
    except (OSError, DataError) as error:
        raise DataError(f"{shard}, sample {sample}: cannot be read: {error}", hint) from error
