"""What a conversion will write, decided before it starts: which frames lie in which shard, how large it will be."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from post_platform import storage
from post_platform.datasets import Reader, reader
from post_platform.datasets.frame import FrameRef, MissingSplit
from post_platform.errors import ConfigError, DataError, nearest
from post_platform.labels import load_contract
from post_platform.shards.frame import encode_frame
from post_platform.shards.index import FORMAT

SHARD_BYTES = 256 << 20
TOLERANCE = 1.1
SAMPLED_FRAMES = 8  # per split, to learn how large a frame becomes


@dataclass(frozen=True)
class ShardPlan:
    """One shard: its frames, its expected size, and what tells whether a shard on disk is made of the same input.

    `digest` covers format, contract, and of every frame what is known without decoding it, sizes of files included;
    `newest` is the last change, in seconds since the epoch, of any file it is made of.
    """

    name: str
    frames: tuple[FrameRef, ...]
    size: int
    digest: str
    newest: float


@dataclass(frozen=True)
class SplitJob:
    """A split that was found whole on disk and is ready to be written."""

    dataset: str
    split: str
    source: str
    folder: str
    lossless: bool
    shards: tuple[ShardPlan, ...]

    @property
    def frames(self) -> int:
        """How many frames the split has."""
        return sum(len(shard.frames) for shard in self.shards)

    @property
    def size(self) -> int:
        """How many bytes it will take, about."""
        return sum(shard.size for shard in self.shards)

    @property
    def digest(self) -> str:
        """SHA-256 of the whole plan."""
        return hashlib.sha256("".join(shard.digest for shard in self.shards).encode()).hexdigest()


def plan_conversion(
    dataset: str,
    source: storage.Location,
    root: storage.Location,
    split: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    lossless: bool = False,
) -> list[SplitJob]:
    """Find the frames of one split, or of every split that is there, and cut them into shards of about `shard_bytes`.

    A sequence lies in one shard unless it is larger than one. Of each split a few frames are converted, to learn the
    size of the rest; so the cut depends on the input alone.

    Raises: DataError when the source lacks the split, or every split; ConfigError for an unknown dataset.
    """
    read = reader(dataset)
    if storage.is_remote(source):
        raise ConfigError(
            f"source {source}: official downloads are read from a folder", "--out may be s3://, --source not"
        )
    folder = Path(source).expanduser().resolve()
    if split is not None and split not in read.SPLITS:
        raise DataError(f"{dataset} has no split {split!r}{nearest(split, read.SPLITS)}")
    jobs: list[SplitJob] = []
    absent: list[MissingSplit] = []
    for name in read.SPLITS if split is None else (split,):
        try:
            shards = _plan_shards(dataset, name, _frames(read, dataset, name, folder), shard_bytes, lossless)
        except MissingSplit as error:
            absent.append(error)
            continue
        except OSError as error:
            raise DataError(f"{dataset} {name}: {error.filename}: {error.strerror}") from error
        target = storage.join(storage.absolute(root), dataset, name)
        jobs.append(SplitJob(dataset, name, str(folder), target, lossless, shards))
    if not jobs:
        raise absent[0]
    return jobs


def _frames(read: Reader, dataset: str, split: str, folder: Path) -> list[FrameRef]:
    """The reader's frames, the dots in sequence names replaced by `_`: a WebDataset key ends at its first dot."""
    frames = read.frames(folder, split)
    if not frames:
        raise MissingSplit(f"{dataset} {split}: no frame found")
    natives: dict[str, str] = {}
    for ref in frames:
        legal = ref.sequence.replace(".", "_")
        if natives.setdefault(legal, ref.sequence) != ref.sequence:
            raise DataError(f"{dataset} {split}: sequences {natives[legal]!r} and {ref.sequence!r} have the same key")
    keys = Counter(ref.key for ref in frames)
    if len(keys) < len(frames):
        raise DataError(f"{dataset} {split}: frame {keys.most_common(1)[0][0]} is there twice")
    return [dataclasses.replace(ref, sequence=ref.sequence.replace(".", "_")) for ref in frames]


def _plan_shards(
    dataset: str, split: str, frames: Sequence[FrameRef], shard_bytes: int, lossless: bool
) -> tuple[ShardPlan, ...]:
    seen: dict[Path, tuple[int, float]] = {}
    sources = [_Source(ref, seen) for ref in frames]
    growth = _growth(dataset, split, sources, lossless)
    facts = [FORMAT, load_contract(dataset).native_hash(), dataset, split, lossless]
    plans: list[ShardPlan] = []
    for number, shard in enumerate(_cut(sources, shard_bytes / growth)):
        digest = hashlib.sha256(json.dumps([number, *facts]).encode())
        for frame in shard:
            digest.update(frame.described)
        name, size = f"{number:06d}.tar", round(growth * sum(frame.size for frame in shard))
        refs, newest = tuple(frame.ref for frame in shard), max(frame.newest for frame in shard)
        plans.append(ShardPlan(name, refs, size, digest.hexdigest(), newest))
    return tuple(plans)


def _cut(frames: Iterable[_Source], shard_bytes: float) -> Iterable[list[_Source]]:
    """Fill shards with whole sequences; one that is larger than a shard is cut into equal parts, each its own shard.

    A tenth too much is no reason to cut. Sizes are those of the images.
    """
    shard: list[_Source] = []
    filled = 0
    for _, group in groupby(frames, key=lambda frame: frame.ref.sequence):
        sequence = list(group)
        size = sum(frame.size for frame in sequence)
        if shard and filled + size > shard_bytes:
            yield shard
            shard, filled = [], 0
        parts = math.ceil(size / (TOLERANCE * shard_bytes))
        if parts > 1:
            yield from _equal_parts(sequence, size / parts)
        else:
            shard += sequence
            filled += size
    if shard:
        yield shard


def _equal_parts(sequence: list[_Source], part_bytes: float) -> Iterable[list[_Source]]:
    """A frame belongs to the part that its middle byte falls into."""
    before = 0
    placed: list[tuple[int, _Source]] = []
    for frame in sequence:
        placed.append((int((before + frame.size / 2) / part_bytes), frame))
        before += frame.size
    for _, part in groupby(placed, key=lambda pair: pair[0]):
        yield [frame for _, frame in part]


def _growth(dataset: str, split: str, sources: Sequence[_Source], lossless: bool) -> float:
    """Bytes in a shard per byte of source image, from evenly spaced frames; those that are faulty fail later, named."""
    count = min(SAMPLED_FRAMES, len(sources))
    written = read = 0
    for place in {(2 * number + 1) * len(sources) // (2 * count) for number in range(count)}:
        try:
            data, _, _ = encode_frame(dataset, split, sources[place].ref, lossless)
        except DataError:
            continue
        written, read = written + len(data), read + sources[place].size
    return written / read if read else 1.0


class _Source:
    """A frame and what its files say of themselves: the image's size, all sizes as bytes to hash, the last change."""

    __slots__ = ("described", "newest", "ref", "size")

    def __init__(self, ref: FrameRef, seen: dict[Path, tuple[int, float]]) -> None:
        """Look at the files of `ref`; `seen` remembers them, since many frames may share an archive."""
        files = [ref.image]
        label = _described(ref.label, files)
        for path in files:
            if path not in seen:
                seen[path] = _size_and_change(path)
        self.ref = ref
        self.size = seen[ref.image][0]
        self.newest = max(seen[path][1] for path in files)
        facts = [ref.key, ref.image.name, ref.seconds_since_previous, ref.source_video, ref.native]
        self.described = json.dumps([facts, label, [seen[path][0] for path in files]]).encode()


def _described(value: object, files: list[Path]) -> object:
    """A label reference as plain values, paths by their names; the files among them are collected."""
    if isinstance(value, Path):
        files.append(value)
        return value.name
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [_described(getattr(value, entry.name), files) for entry in dataclasses.fields(value)]
    if isinstance(value, Mapping):
        return [[str(key), _described(inner, files)] for key, inner in value.items()]
    if isinstance(value, list | tuple):
        return [_described(inner, files) for inner in value]
    assert value is None or isinstance(value, str | int | float), value
    return value


def _size_and_change(path: Path) -> tuple[int, float]:
    """Bytes, and the later of the changes of content and of place: unpacking sets the first one back."""
    found = path.stat()
    return found.st_size, max(found.st_mtime, found.st_ctime)
