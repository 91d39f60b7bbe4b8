"""Mask IoU of all true and predicted objects of one class, frame by frame, as TrackEval prepares it for HOTA and IDF1.

Source: TrackEval's KITTI-MOTS preparation, which drops unmatched predictions that lie to more than half in the merged
ignore region. A match (IoU of at least 0.5) has at least half of the prediction on an object, so none needs to be found
for this. Where mots_tools asks for IoU above 0.5, TrackEval includes 0.5.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from post_platform.labels import UNIDENTIFIED
from post_platform.metrics.segments import group, rows_of

EPSILON = float(np.finfo(np.float64).eps)  # TrackEval's slack for "at least"


@dataclass(frozen=True)
class Frame:
    """The objects of one class in one frame: track numbers within the sequence, 0..n-1, and their mask IoU.

    Shape: truth (n,), pred (m,), iou (n, m).
    """

    truth: np.ndarray
    pred: np.ndarray
    iou: np.ndarray


@dataclass(frozen=True)
class Sequence:
    """The frames of one sequence in which there is any object of the class, and how many tracks there are."""

    frames: tuple[Frame, ...]
    true_tracks: int
    pred_tracks: int

    def matrix(self, values: list[np.ndarray]) -> np.ndarray:
        """The sum over frames of per-frame (n, m) values, as (true tracks, predicted tracks)."""
        total = np.zeros((self.true_tracks, self.pred_tracks))
        for frame, value in zip(self.frames, values, strict=True):
            total[np.ix_(frame.truth, frame.pred)] += value
        return total

    def frames_of_truth(self) -> np.ndarray:
        """In how many frames each true track is."""
        return np.bincount(np.concatenate([f.truth for f in self.frames]), minlength=self.true_tracks)

    def frames_of_pred(self) -> np.ndarray:
        """In how many frames each predicted track is."""
        return np.bincount(np.concatenate([f.pred for f in self.frames]), minlength=self.pred_tracks)


def sequences(table: pa.Table, native_class: int) -> list[Sequence]:
    """Every sequence of the table that has an object of the class, true or predicted (and not dropped)."""
    of_class = pc.or_(pc.equal(table["truth_class"], native_class), pc.equal(table["pred_class"], native_class))
    rows = rows_of(table.filter(of_class))
    truth = group(rows.video, rows.moment, rows.truth_class, rows.truth_instance)
    pred = group(rows.video, rows.moment, rows.pred_class, rows.pred_track)
    truth_area, pred_area = truth.total(rows.pixels), pred.total(rows.pixels)
    ignored = 2 * pred.total(rows.pixels * (rows.void | rows.crowd)) > pred_area
    is_truth = (truth.keys[:, 2] == native_class) & (truth.keys[:, 3] != UNIDENTIFIED)
    is_pred = (pred.keys[:, 2] == native_class) & (pred.keys[:, 3] != 0) & ~ignored
    pair = group(truth.of_row, pred.of_row)
    shared, (t, p) = pair.total(rows.pixels), pair.keys.T
    objects = is_truth[t] & is_pred[p]
    t, p, shared = t[objects], p[objects], shared[objects]
    iou = shared / (truth_area[t] + pred_area[p] - shared)

    here, there = np.flatnonzero(is_truth), np.flatnonzero(is_pred)  # both in order of sequence and frame, like t
    moments = np.unique(np.concatenate([truth.keys[here, 1], pred.keys[there, 1]]))
    found: dict[int, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {}
    for true, predicted, pairs in zip(
        _slices(truth.keys[here, 1], moments),
        _slices(pred.keys[there, 1], moments),
        _slices(truth.keys[t, 1], moments),
        strict=True,
    ):
        n, m = here[true], there[predicted]
        values = np.zeros((len(n), len(m)))
        values[np.searchsorted(n, t[pairs]), np.searchsorted(m, p[pairs])] = iou[pairs]
        video = int(truth.keys[n[0], 0] if len(n) else pred.keys[m[0], 0])
        found.setdefault(video, []).append((truth.keys[n, 3], pred.keys[m, 3], values))
    return [_number_tracks(frames) for frames in found.values()]


def _slices(ascending: np.ndarray, values: np.ndarray) -> list[slice]:
    """Where each of `values` lies in an ascending array."""
    edges = np.searchsorted(ascending, values), np.searchsorted(ascending, values, side="right")
    return [slice(start, stop) for start, stop in zip(*edges, strict=True)]


def _number_tracks(frames: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Sequence:
    true_ids = np.unique(np.concatenate([truth for truth, _, _ in frames]))
    pred_ids = np.unique(np.concatenate([pred for _, pred, _ in frames]))
    numbered = (
        Frame(np.searchsorted(true_ids, truth), np.searchsorted(pred_ids, pred), iou) for truth, pred, iou in frames
    )
    return Sequence(tuple(numbered), len(true_ids), len(pred_ids))
