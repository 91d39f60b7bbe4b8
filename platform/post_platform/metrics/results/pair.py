"""A frame's truth and prediction, read from files; and what the readers of all formats check alike."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from post_platform.errors import DataError, nearest
from post_platform.metrics.contingency import frame_table, run_table

if TYPE_CHECKING:
    from post_platform.metrics.score import Families, ScoredContract

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FramePair:
    """A frame's truth and prediction in the convention of `contingency.frame_table`; scores by (class, track).

    Label maps, or with `lengths` runs of pixels that have the same four values; see `contingency.run_table`. `where`
    names the file and the place in it that the frame comes from, where the sequence does not.

    Shape: (H, W) each, or (runs,) each.
    """

    sequence: str
    frame: int
    truth_classes: np.ndarray
    truth_instances: np.ndarray
    pred_classes: np.ndarray
    pred_tracks: np.ndarray
    pred_scores: Mapping[tuple[int, int], float] | None = None
    lengths: np.ndarray | None = None
    where: str = ""

    def table(self, dataset: str) -> pa.Table:
        """Its contingency table."""
        maps = (self.truth_classes, self.truth_instances, self.pred_classes, self.pred_tracks)
        if self.lengths is None:
            return frame_table(dataset, self.sequence, self.frame, *maps, self.pred_scores)
        return run_table(dataset, self.sequence, self.frame, self.lengths, *maps, self.pred_scores)


@dataclass(frozen=True)
class Results:
    """What is to be scored: how many frames each sequence has, and `read`, which decodes those of some, one by one.

    `from_pixels` computes the official scores that no contingency table gives, as further families: those of
    overlapping masks, of borders; it is told whom to tell the frames done. `read` may be called for each sequence in a
    process of its own.
    """

    contract: ScoredContract
    counts: Mapping[str, int]
    read: Callable[[Sequence[str]], Iterator[FramePair]]
    from_pixels: Callable[[Callable[[int], None]], Families] | None = None

    @property
    def count(self) -> int:
        """Frames of all sequences."""
        return sum(self.counts.values())

    def further(self, progress: Callable[[int], None] = lambda done: None) -> Families:
        """The scores that no contingency table gives; `progress` is told the number of frames done."""
        return self.from_pixels(progress) if self.from_pixels else {}

    @property
    def frames(self) -> Iterator[FramePair]:
        """All frames, sequence by sequence."""
        return self.read(list(self.counts))


@dataclass(frozen=True)
class ResultFrame:
    """One frame to be written in a dataset's official result format, out of a shard's label or of a prediction.

    `classes`: native ids, 255 void, 0 background where the contract has one. `tracks`: 0 no object, 65535 a thing
    without identity, which few formats can name. `scores`: confidence by `"class/track"`, 1 where it is missing.
    `meta`: the frame's meta.json, for `source_image`, `native` and, of labels, `instances` and `masks`.

    Shape: (H, W) each.
    """

    sequence: str
    frame: int
    classes: np.ndarray
    tracks: np.ndarray
    meta: Mapping[str, Any]
    scores: Mapping[str, float] = field(default_factory=dict)


def require_folder(folder: Path, role: str) -> None:
    """Raises: DataError when `folder` is not a folder."""
    if not folder.is_dir():
        raise DataError(f"--{role} {folder}: no such folder")


def choose(
    truth: Sequence[str], predicted: Sequence[str], wanted: Sequence[str] | None, predictions: Path
) -> list[str]:
    """The sequences to score: the wanted ones, else all of the truth; each must have its result.

    Raises: DataError naming the sequence that has no truth or no result.
    """
    chosen = sorted(truth if wanted is None else dict.fromkeys(wanted))
    for name in chosen:
        if name not in truth:
            raise DataError(f"no truth for sequence {name!r}{nearest(name, truth)}")
        if name not in predicted:
            raise DataError(
                f"{predictions}: no result for sequence {name!r}, which the truth has",
                hint="score fewer with `--sequences NAME ...`; an empty result file says that nothing was found",
            )
    if not chosen:
        raise DataError(
            "--truth: there is no sequence in it",
            hint="give the folder that docs/scores.md names for this dataset: it holds a folder or a file per sequence",
        )
    unused = sorted(set(predicted) - set(chosen))
    if unused:
        logger.warning("%d results are not scored: %s", len(unused), ", ".join(unused[:5]))
    return chosen


def require_frames(truth: Mapping[int, object], predicted: Mapping[int, object], source: Path) -> None:
    """Check that every true frame has a result in `source`, a folder or a file, and every result a true frame.

    Raises: DataError naming the first file or frame that is missing or too many.
    """
    directions = ((truth, predicted, "missing, the truth has this frame"), (predicted, truth, "the frame has no truth"))
    for frames, others, problem in directions:
        alone = sorted(frames.keys() - others.keys())
        if alone:
            named = frames[alone[0]]
            where = (
                source / named.name if source.is_dir() and isinstance(named, Path) else f"{source}, frame {alone[0]}"
            )
            raise DataError(f"{where}: {problem} ({len(alone)} such frames)")


def require_size(pred: tuple[int, ...], truth: tuple[int, ...], where: str) -> None:
    """Raises: DataError when a prediction has not the size, (height, width, ...), of its truth."""
    if pred[:2] != truth[:2]:
        got, expected = ("x".join(map(str, size[:2])) for size in (pred, truth))
        raise DataError(f"{where}: the prediction is {got}, the truth is {expected}")


def require_plain(name: str, where: str) -> None:
    """Raises: DataError naming `where` when what is to become a file's name has folders in it."""
    if Path(name).name != name or name == "..":
        raise DataError(f"{where}: {name!r} is not a plain file name")
