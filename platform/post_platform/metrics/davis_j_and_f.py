"""DAVIS' scores: region similarity J and boundary accuracy F of objects whose identities the result chose freely.

Source: the DAVIS 2017 benchmark and its unsupervised protocol. An object's true and proposed masks are compared in
every frame of its sequence; proposals are assigned to objects so that the mean of J and F is greatest.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from scipy.optimize import linear_sum_assignment

from post_platform.runs import distinct

TOLERANCE = 0.008  # of the image's diagonal: how far two boundaries may lie apart


@dataclass(frozen=True)
class Frame:
    """Objects of one frame by their ids, 0 = none; pixels of `void` count for nobody. Shape: (H, W) each."""

    sequence: str
    truth: NDArray[np.integer]
    void: NDArray[np.bool_]
    pred: NDArray[np.integer]


@dataclass(frozen=True)
class _Compared:
    """J and F of every pair of a true and a proposed mask that have a pixel in one frame."""

    truth: NDArray[np.integer]
    pred: NDArray[np.integer]
    j: NDArray[np.float64]
    f: NDArray[np.float64]


def j_and_f(frames: Iterable[Frame]) -> dict[str, float | None]:
    """`J&F`, `J` and `F`: means over all true objects; None without any.

    Both masks empty is a perfect frame, one of them empty a worthless one. An object for which no proposal is left is
    compared with one that is never there.
    """
    sequences: dict[str, list[_Compared]] = {}
    for frame in frames:
        sequences.setdefault(frame.sequence, []).append(_compare(frame))
    scores = [score for compared in sequences.values() for score in _objects(compared)]
    if not scores:
        return {"J&F": None, "J": None, "F": None}
    j, f = np.mean(scores, axis=0).tolist()
    return {"J&F": (j + f) / 2, "J": j, "F": f}


def boundary(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels that differ from their neighbour to the right, below, or diagonally below. Shape: (H, W)."""
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    own = padded[:-1, :-1]
    found: NDArray[np.bool_] = (own ^ padded[:-1, 1:]) | (own ^ padded[1:, :-1]) | (own ^ padded[1:, 1:])
    return found


def _compare(frame: Frame) -> _Compared:
    truth, pred = (np.where(frame.void, 0, values) for values in (frame.truth, frame.pred))
    true_ids, pred_ids = (values[values > 0] for values in (distinct(truth), distinct(pred)))
    true_masks, pred_masks = [truth == value for value in true_ids], [pred == value for value in pred_ids]
    j = np.zeros((len(true_ids), len(pred_ids)))
    f = np.zeros_like(j)
    radius = int(np.ceil(TOLERANCE * np.linalg.norm(truth.shape)))
    true_edges, pred_edges = ([_Edge(mask, radius) for mask in masks] for masks in (true_masks, pred_masks))
    for row, (mask, edge) in enumerate(zip(true_masks, true_edges, strict=True)):
        for column, (other, other_edge) in enumerate(zip(pred_masks, pred_edges, strict=True)):
            shared = np.count_nonzero(mask & other)
            j[row, column] = shared / (np.count_nonzero(mask) + np.count_nonzero(other) - shared)
            f[row, column] = _f_measure(edge, other_edge)
    return _Compared(true_ids, pred_ids, j, f)


class _Edge:
    """A mask's boundary pixels, and the pixels within the tolerance of them."""

    def __init__(self, mask: NDArray[np.bool_], radius: int) -> None:
        edge = boundary(mask)
        self.rows, self.columns = np.nonzero(edge)
        self.near = np.zeros(mask.shape, bool)
        if len(self.rows):
            # Beyond the radius nothing is near, so the distances are measured in this window alone.
            y, x = max(0, self.rows.min() - radius), max(0, self.columns.min() - radius)
            window = np.s_[y : self.rows.max() + radius + 1, x : self.columns.max() + radius + 1]
            self.near[window] = distance_transform_edt(~edge[window]) <= radius

    def share_near(self, other: _Edge) -> float:
        """The share of these pixels that lie near the other's."""
        return np.count_nonzero(other.near[self.rows, self.columns]) / len(self.rows)


def _f_measure(truth: _Edge, pred: _Edge) -> float:
    if not len(truth.rows) or not len(pred.rows):
        return float(len(truth.rows) == len(pred.rows))
    precision, recall = pred.share_near(truth), truth.share_near(pred)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _objects(compared: list[_Compared]) -> list[tuple[float, float]]:
    """J and F of each true object of a sequence with the proposal assigned to it, means over its frames."""
    true_ids = np.unique(np.concatenate([frame.truth for frame in compared]))
    pred_ids = np.unique(np.concatenate([frame.pred for frame in compared]))
    shape = (len(true_ids), max(len(pred_ids), len(true_ids)))  # the rest is proposals that are never there
    j, f = np.zeros(shape), np.zeros(shape)
    for frame in compared:
        rows, columns = np.searchsorted(true_ids, frame.truth), np.searchsorted(pred_ids, frame.pred)
        absent_rows, absent_columns = np.ones(shape[0], bool), np.ones(shape[1], bool)
        absent_rows[rows], absent_columns[columns] = False, False
        for total, values in ((j, frame.j), (f, frame.f)):
            total[np.ix_(absent_rows, absent_columns)] += 1
            total[np.ix_(rows, columns)] += values
    j, f = j / len(compared), f / len(compared)
    chosen = linear_sum_assignment(-(j + f) / 2)
    return list(zip(j[chosen].tolist(), f[chosen].tolist(), strict=True))
