"""The plan: position in the run -> pair of frames, a pure function of its arguments, in memory that never grows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from post_platform.data.shares import PERIOD, deal, rounded_shares
from post_platform.errors import DataError

if TYPE_CHECKING:
    from post_platform.shards.index import Split


ROW_SCHEMA = pa.schema(
    [
        ("position", pa.int64()),  # step x global_batch + slot
        ("dataset", pa.int32()),  # index into Plan.datasets
        ("key", pa.string()),  # <sequence>/<frame> of the later frame
        ("seed", pa.int64()),  # all randomness of the augmentation, one per clip
        ("weight", pa.float32()),  # 0 marks a row that only pads a batch
        *[(f"{when}_{name}", kind) for when in ("now", "prev") for name, kind in
          (("shard", pa.string()), ("offset", pa.int64()), ("length", pa.int64()), ("crc32", pa.uint32()))],
    ]
)  # fmt: skip


class _Frames(NamedTuple):
    """One split's index as compact arrays; row order is the index's (sequences contiguous, frames in time order).

    Arrays, and names as codes, because a plan travels to every task: Ray shares large buffers without a copy.
    """

    names: dict[str, np.ndarray]  # of sequences and shards
    columns: dict[str, np.ndarray]  # per frame: sequence and shard as codes, frame, offset, length, crc32
    start: np.ndarray  # first row of each row's sequence, or of its still
    targets: np.ndarray  # rows a pass draws: the labelled frames

    @classmethod
    def of(cls, split: Split) -> _Frames:
        names, columns = {}, {}
        for name in ("sequence", "shard"):
            coded = split.index[name].combine_chunks().dictionary_encode()
            names[name] = np.array(coded.dictionary.to_pylist())
            columns[name] = coded.indices.to_numpy(zero_copy_only=False).astype(np.int32)
        for name, kind in (("frame", np.int32), ("offset", np.int64), ("length", np.int32), ("crc32", np.uint32)):
            columns[name] = split.index[name].to_numpy().astype(kind)
        codes = columns["sequence"]
        # Cityscapes has several stills of one name: a frame without a time since the previous one begins anew.
        alone = split.index["seconds_since_previous"].is_null().to_numpy()
        first = np.r_[True, codes[1:] != codes[:-1]] | alone
        start = np.maximum.accumulate(np.where(first, np.arange(len(codes)), 0)).astype(np.int32)
        targets = np.flatnonzero(split.index["labelled"].to_numpy()).astype(np.int32)
        if not len(targets):
            raise DataError(f"{split.dataset}/{split.split} has no labelled frame to train on")
        return cls(names, columns, start, targets)


class Plan:
    """Which pair of frames stands at which position of a run, for ever, without computing the positions before it.

    Guarantees: every global batch, and the run so far, holds each dataset's share to within one sample; within a
    pass over a dataset every labelled frame is drawn exactly once, and each pass has another order; a pair depends
    on nothing but the arguments here and its position.

    A pair is a labelled frame and the frame `stride` earlier in its sequence (as early as there is; none for the
    first frame and for stills). The `clip - 1` pairs of a clip are consecutive labelled frames, drawn one after the
    other with one stride and one augmentation seed, so a reader that gets them together decodes each frame once.
    """

    def __init__(
        self,
        splits: Sequence[Split],
        global_batch: int,
        clip: int = 2,
        stride: tuple[int, int] = (1, 1),
        alpha: float = 0.0,
        seed: int = 0,
    ) -> None:
        """Plan over `splits`.

        Args:
            splits: one training split per dataset; their order is the order of `dataset` in the rows.
            global_batch: samples per optimiser step, over all ranks.
            clip: frames of a clip; it yields clip - 1 pairs.
            stride: smallest and largest distance (frames) between the two frames of a pair.
            alpha: a dataset's share ~ (its labelled frames)^alpha; 0 gives equal shares.
            seed: of the shuffles and of every sample's augmentation.
        """
        self.datasets = tuple(split.dataset for split in splits)
        self.folders = tuple(split.folder for split in splits)
        self.global_batch, self.pairs, self.stride, self.seed = global_batch, clip - 1, stride, seed
        self._frames = [_Frames.of(split) for split in splits]
        self.frames = tuple(len(frames.targets) for frames in self._frames)  # labelled ones: what a pass draws
        self.shares = rounded_shares(self.frames, alpha)
        self._counts = deal(self.shares, global_batch)
        self._before = np.cumsum(self._counts, axis=0) - self._counts
        self.arguments: dict[str, object] = {f"{s.dataset}/{s.split}": s.manifest["index_sha256"] for s in splits}
        self.arguments |= {"datasets": [s.dataset for s in splits], "global_batch": global_batch, "clip": clip}
        self.arguments |= {"stride": list(stride), "alpha": alpha, "seed": seed}

    @property
    def digest(self) -> str:
        """SHA-256 of all arguments: two plans with the same digest draw the same pairs for ever."""
        return hashlib.sha256(json.dumps(self.arguments, sort_keys=True).encode()).hexdigest()

    def draws(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Dataset of each position, and how many samples of that dataset the run has drawn before it.

        Shape: (N,) int64 -> two (N,) int64.
        """
        batches, slots = np.divmod(np.asarray(positions, np.int64), self.global_batch)
        dataset, nth = np.empty_like(batches), np.empty_like(batches)
        for batch in np.unique(batches):
            row = batch % PERIOD
            counts = self._counts[row]
            here = batches == batch
            order, within = _interleaved(counts, self.pairs)
            dataset[here] = order[slots[here]]
            total = self.global_batch * self.shares  # samples of each dataset in one period, an integer
            nth[here] = (batch // PERIOD * total + self._before[row])[dataset[here]] + within[slots[here]]
        return dataset, nth

    def rows(self, positions: np.ndarray) -> pa.Table:
        """The pairs at `positions`, in their order, as rows of ROW_SCHEMA with weight 1."""
        positions = np.asarray(positions, np.int64)
        dataset, nth = self.draws(positions)
        parts = [self._pairs(d, positions[dataset == d], nth[dataset == d]) for d in range(len(self._frames))]
        order = np.argsort(np.concatenate([np.flatnonzero(dataset == d) for d in range(len(self._frames))]))
        return pa.concat_tables(parts).take(order)

    def replacement(self, position: int, dataset: int, attempt: int) -> dict[str, Any]:
        """Another pair of `dataset` for a position whose own cannot be read; depends on (position, attempt) alone."""
        nth = mix(self.seed, (1 << 21) + attempt, np.array([position])) % np.uint64(2**40)
        return self._pairs(dataset, np.array([position]), nth.astype(np.int64)).to_pylist()[0]

    def _pairs(self, d: int, positions: np.ndarray, nth: np.ndarray) -> pa.Table:
        """Rows of dataset `d` for its `nth` draws."""
        frames = self._frames[d]
        now, clips = self._targets(d, nth)
        seeds = mix(self.seed, (1 << 20) + d, clips)
        low, high = self.stride
        distance = low + (seeds >> np.uint64(32)).astype(np.int64) % (high - low + 1)
        prev = np.maximum(now - distance, frames.start[now])
        single = prev == now
        sequences = frames.names["sequence"][frames.columns["sequence"][now]].tolist()
        numbers = frames.columns["frame"][now].tolist()
        data: dict[str, pa.Array] = {
            "position": pa.array(positions),
            "dataset": pa.array(np.full(len(now), d, np.int32)),
            "key": pa.array([f"{name}/{n:06d}" for name, n in zip(sequences, numbers, strict=True)], pa.string()),
            "seed": pa.array((seeds & np.uint64(2**63 - 1)).astype(np.int64)),
            "weight": pa.array(np.ones(len(now), np.float32)),
        }
        for when, rows, absent in (("now", now, None), ("prev", prev, single)):
            shards = frames.names["shard"][frames.columns["shard"][rows]]
            data[f"{when}_shard"] = pa.array(shards, pa.string(), mask=absent)
            for name in ("offset", "length", "crc32"):
                data[f"{when}_{name}"] = pa.array(frames.columns[name][rows], mask=absent)
        return pa.table({field.name: data[field.name].cast(field.type) for field in ROW_SCHEMA}, schema=ROW_SCHEMA)

    def _targets(self, d: int, nth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Labelled frames of dataset `d` that its `nth` draws show, and the number of each one's clip over the run.

        Each pass shuffles groups of `pairs` consecutive labelled frames, counted from a random one, so that clips
        are cut elsewhere each time; the few that fill no group end the pass.
        """
        targets = self._frames[d].targets
        size, pairs = len(targets), self.pairs
        groups = size // pairs
        passes, rank = np.divmod(nth, size)
        clip, within = np.divmod(rank, pairs)
        drawn = np.empty_like(rank)
        for number in np.unique(passes):
            key = mix(self.seed, d, int(number))
            here = passes == number
            group = clip[here]
            whole = group < groups
            group[whole] = shuffled(group[whole], groups, key)
            drawn[here] = (group * pairs + within[here] + int(key % np.uint64(size)) * (pairs > 1)) % size
        return targets[drawn].astype(np.int64), passes * (groups + 1) + clip


def _interleaved(counts: np.ndarray, pairs: int) -> tuple[np.ndarray, np.ndarray]:
    """Spread a batch's samples so that any run of slots (a rank's part) holds about its share of each dataset.

    Runs of `pairs` samples, which are mostly of one clip, stay together.

    Shape: (D,) -> dataset of each slot (B,), and which of that dataset's samples in the batch it is (B,).
    """
    dataset = np.repeat(np.arange(len(counts)), counts)
    within = np.concatenate([np.arange(count) for count in counts])
    order = np.argsort((within // pairs * pairs + 0.5 * pairs) / counts[dataset], kind="stable")
    return dataset[order], within[order]


def mix(seed: int, stream: int, value: np.ndarray | int) -> np.ndarray:
    """Hash (seed, stream, value) to 64 well-mixed bits; element-wise over `value`.

    Source: the finaliser of SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators").
    """
    with np.errstate(over="ignore"):
        x = np.asarray(value, np.uint64) + np.uint64(0x9E3779B97F4A7C15) * np.uint64((seed * 0x10001 + stream) % 2**64)
        for _ in range(2):
            x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            x = (x ^ (x >> np.uint64(31))) + np.uint64(0x9E3779B97F4A7C15)
        return x


def shuffled(rank: np.ndarray, size: int, key: np.ndarray) -> np.ndarray:
    """Element `rank` of a pseudo-random permutation of range(size), without building the permutation.

    A Feistel network permutes the smallest square of a power of two that holds `size`; values that fall outside
    are sent through again, which keeps it a permutation (cycle walking) and needs fewer than 4 rounds on average.

    Shape: (N,) int64 below `size`; key a 64-bit scalar -> (N,) int64.
    Source: Black and Rogaway, "Ciphers with arbitrary finite domains".
    """
    half = np.uint64(max(1, (int(size - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    value, outside = np.asarray(rank).astype(np.uint64), np.ones(len(rank), bool)
    while outside.any():
        left, right = value[outside] >> half, value[outside] & mask
        for turn in range(4):
            left, right = right, left ^ (mix(int(key), turn, right) & mask)
        value[outside] = (left << half) | right
        outside = value >= np.uint64(size)
    return value.astype(np.int64)
