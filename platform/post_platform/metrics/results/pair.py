"""A frame's truth and prediction, read from files; and what the readers of all formats check alike."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from post_platform.errors import DataError, nearest
from post_platform.metrics.contingency import frame_table, run_table
from post_platform.metrics.score import Families, ScoredContract

logger = logging.getLogger(__name__)


class Pair(Protocol):
    """A frame's truth and prediction, in whatever form they are counted fastest."""

    @property
    def sequence(self) -> str:
        """Its sequence."""

    @property
    def frame(self) -> int:
        """Its number in the sequence."""

    def table(self, dataset: str) -> pa.Table:
        """Its contingency table."""


@dataclass(frozen=True)
class FramePair:
    """The four label maps of one frame, in the convention of `contingency.frame_table`; scores by (class, track).

    Shape: (H, W) each.
    """

    sequence: str
    frame: int
    truth_classes: np.ndarray
    truth_instances: np.ndarray
    pred_classes: np.ndarray
    pred_tracks: np.ndarray
    pred_scores: Mapping[tuple[int, int], float] | None = None

    def table(self, dataset: str) -> pa.Table:
        """Its contingency table."""
        return frame_table(dataset, **vars(self))


@dataclass(frozen=True)
class RunPair:
    """One frame as runs of pixels that have the same truth and the same prediction; see `contingency.run_table`.

    Shape: (runs,) each; scores by (class, track).
    """

    sequence: str
    frame: int
    lengths: np.ndarray
    truth_classes: np.ndarray
    truth_instances: np.ndarray
    pred_classes: np.ndarray
    pred_tracks: np.ndarray
    pred_scores: Mapping[tuple[int, int], float] | None = None

    def table(self, dataset: str) -> pa.Table:
        """Its contingency table."""
        return run_table(dataset, **vars(self))


@dataclass(frozen=True)
class Results:
    """What is to be scored: how many frames each sequence has, and `read`, which decodes those of some, one by one.

    `further` computes the official scores that no contingency table gives, as further families: those of overlapping
    masks, of borders. `read` may be called for each sequence in a process of its own.
    """

    contract: ScoredContract
    counts: Mapping[str, int]
    read: Callable[[Sequence[str]], Iterator[Pair]]
    further: Callable[[], Families] | None = None

    @property
    def count(self) -> int:
        """Frames of all sequences."""
        return sum(self.counts.values())

    @property
    def frames(self) -> Iterator[Pair]:
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
        raise DataError("the truth has no sequence")
    unused = sorted(set(predicted) - set(chosen))
    if unused:
        logger.warning("%d results are not scored: %s", len(unused), ", ".join(unused[:5]))
    return chosen


def require_frames(truth: Sequence[int], predicted: Sequence[int], folder: Path) -> None:
    """Check that every true frame has a result, and every result a true frame.

    Raises: DataError naming the first file that is missing or too many.
    """
    directions = ((truth, predicted, "missing, the truth has it"), (predicted, truth, "has no truth"))
    for frames, others, problem in directions:
        alone = sorted(set(frames) - set(others))
        if alone:
            raise DataError(f"{folder / f'{alone[0]:06d}.png'}: {problem} ({len(alone)} such frames)")


def require_size(pred: np.ndarray, truth: np.ndarray, where: str) -> None:
    """Raises: DataError when a prediction has not the size of its truth."""
    if pred.shape[:2] != truth.shape[:2]:
        got, expected = ("x".join(map(str, array.shape[:2])) for array in (pred, truth))
        raise DataError(f"{where}: the prediction is {got}, the truth is {expected}")


def require_plain(name: str, where: str) -> None:
    """Raises: DataError naming `where` when what is to become a file's name has folders in it."""
    if Path(name).name != name or name == "..":
        raise DataError(f"{where}: {name!r} is not a plain file name")
