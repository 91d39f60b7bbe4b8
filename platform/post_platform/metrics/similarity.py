"""The objects of one class and how much they overlap: what MOTS, HOTA and identity scores are computed from.

Source: TrackEval's and mots_tools' preparation of KITTI-MOTS, which drop an unmatched prediction when more than half of
it lies in the merged ignore region (void, and crowd of any class). A matched one has at least half of its pixels on a
true object, so it never lies there: what is dropped does not depend on the matching, nor on whether an IoU of exactly
0.5 is a match.
Deviation: objects are taken in ascending order of their ids, where TrackEval takes them in the order of its files. Only
assignments of exactly equal value (two predictions that are the halves of one object) can depend on it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from scipy.optimize import linear_sum_assignment

from post_platform.labels import UNIDENTIFIED
from post_platform.metrics.segments import Rows, group, rows_of

EPSILON = float(np.finfo(np.float64).eps)  # TrackEval's slack for "at least"


@dataclass(frozen=True)
class Detections:
    """Objects of single frames, ascending in (moment, identity); `track` numbers (video, identity) from 0.

    Shape: all (n,).
    """

    video: np.ndarray
    moment: np.ndarray
    frame: np.ndarray
    identity: np.ndarray
    track: np.ndarray

    def __len__(self) -> int:
        return len(self.track)

    def frames_of_tracks(self) -> np.ndarray:
        """In how many frames each track is."""
        return np.bincount(self.track)

    def where(self, keep: np.ndarray) -> Detections:
        """The objects for which `keep` is true; their tracks are numbered anew."""
        video, identity = self.video[keep], self.identity[keep]
        return Detections(video, self.moment[keep], self.frame[keep], identity, group(video, identity).of_row)


@dataclass(frozen=True)
class Objects:
    """All objects of one class, and every pair of a true and a predicted one of a frame that shares a pixel.

    `ignored` are the predictions dropped in ignore regions; they are not in `pred`. Pairs are ascending in (true,
    predicted), thus in time: `t` and `p` are places in `truth` and `pred`, `shared` and `union` exact pixel counts.
    """

    native_class: int
    names: tuple[str, ...]
    truth: Detections
    pred: Detections
    ignored: Detections
    t: np.ndarray
    p: np.ndarray
    shared: np.ndarray
    union: np.ndarray

    @property
    def iou(self) -> np.ndarray:
        """Mask IoU of each pair."""
        return self.shared / self.union

    def contested(self, candidates: np.ndarray) -> np.ndarray:
        """The moments, ascending, in which an object has several of the candidate pairs."""
        t, p = self.t[candidates], self.p[candidates]
        several = (np.bincount(t)[t] > 1) | (np.bincount(p)[p] > 1)
        return np.unique(self.truth.moment[t[several]])

    def pairs_of(self, moment: int) -> slice:
        """Where the pairs of a moment lie."""
        return slice(*np.searchsorted(self.t, _span(self.truth.moment, moment)).tolist())

    def assign(self, moment: int, score: np.ndarray) -> np.ndarray:
        """Which pairs of a moment the one-to-one assignment of the greatest total score holds.

        The matrix is TrackEval's, objects without any pair included: equally good assignments are settled alike.
        """
        (top, bottom), (left, right) = _span(self.truth.moment, moment), _span(self.pred.moment, moment)
        pairs = self.pairs_of(moment)
        at = self.t[pairs] - top, self.p[pairs] - left
        scores = np.zeros((bottom - top, right - left))
        scores[at] = score
        chosen = np.zeros(scores.shape, bool)
        chosen[linear_sum_assignment(scores, maximize=True)] = True
        return chosen[at]


def objects_of(table: pa.Table | Rows | Objects, native_class: int) -> Objects:
    """The objects of one class over all sequences; objects that are prepared already come back as they are.

    MOTS, HOTA and identity scores begin with this, so whoever computes several of them prepares the objects once. A
    predicted track 0 is a pixel without identity, not an object: the official result formats cannot express it.
    """
    if isinstance(table, Objects):
        assert table.native_class == native_class, f"objects of class {table.native_class}, not {native_class}"
        return table
    rows = rows_of(table)
    rows = rows.where((rows.truth_class == native_class) | (rows.pred_class == native_class))
    is_truth = (rows.truth_class == native_class) & (rows.truth_instance < UNIDENTIFIED)
    is_pred = (rows.pred_class == native_class) & (rows.pred_track != 0)
    truth, t_of_row, truth_area = _detections(rows, is_truth, rows.truth_instance)
    pred, p_of_row, pred_area = _detections(rows, is_pred, rows.pred_track)

    unknown = is_pred & (rows.void | rows.crowd)
    in_ignore = np.bincount(p_of_row[unknown], rows.pixels[unknown], len(pred))  # float64: exact to 2^53
    ignored = 2 * in_ignore > pred_area
    both = is_truth & is_pred
    both[both] = ~ignored[p_of_row[both]]
    pairs = group(t_of_row[both], p_of_row[both])
    t, p = pairs.keys.T
    shared = pairs.total(rows.pixels[both])
    return Objects(
        native_class=native_class,
        names=rows.names,
        truth=truth,
        pred=pred.where(~ignored),
        ignored=pred.where(ignored),
        t=t,
        p=(np.cumsum(~ignored) - 1)[p],
        shared=shared,
        union=truth_area[t] + pred_area[p] - shared,
    )


def _detections(rows: Rows, keep: np.ndarray, identities: np.ndarray) -> tuple[Detections, np.ndarray, np.ndarray]:
    """The objects that the kept rows are of; for every row the place of its object (-1: not kept); their areas."""
    groups = group(rows.moment[keep], identities[keep])
    of_row = np.full(len(keep), -1, np.intp)
    of_row[keep] = groups.of_row
    video, frame = np.zeros((2, len(groups.keys)), np.int64)
    video[groups.of_row], frame[groups.of_row] = rows.video[keep], rows.frame[keep]
    moment, identity = groups.keys.T
    found = Detections(video, moment, frame, identity, group(video, identity).of_row)
    return found, of_row, groups.total(rows.pixels[keep])


def _span(ascending: np.ndarray, value: int) -> tuple[int, int]:
    """Where `value` lies in an ascending array."""
    start, stop = np.searchsorted(ascending, (value, value + 1)).tolist()
    return start, stop
