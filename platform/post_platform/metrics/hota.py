"""HOTA: higher order tracking accuracy of one class, the geometric mean of detection and association accuracy.

Definition: at a threshold alpha, TP are one-to-one matches of IoU >= alpha, DetA = TP / (TP + FN + FP), and AssA =
mean over the TP of the Jaccard index of the two tracks that the match joins. HOTA = sqrt(DetA x AssA), then
everything is averaged over alpha = 0.05, 0.10 ... 0.95.

Source: Luiten et al., "HOTA" (2020), as TrackEval: one assignment per frame serves all thresholds; it maximises IoU
times the tracks' overall alignment. Over sequences TP, FN and FP add up and AssA is weighted by TP. LocA (mean IoU of
the TP) counts as 1 at a threshold without TP.
Deviation: without any true or predicted object the scores are None, where TrackEval says 0; so is LocA when nothing
matches at any threshold, where TrackEval says 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from scipy.optimize import linear_sum_assignment

from post_platform.metrics.similarity import EPSILON, Sequence, sequences

ALPHAS = np.arange(0.05, 0.99, 0.05)


@dataclass(frozen=True)
class Hota:
    """HOTA, DetA, AssA and LocA, each a mean over the thresholds."""

    hota: float | None
    det_a: float | None
    ass_a: float | None
    loc_a: float | None


def hota(table: pa.Table, native_class: int) -> Hota:
    """HOTA of one class over all sequences of the table."""
    found = [_count(sequence) for sequence in sequences(table, native_class)]
    if not found:
        return Hota(None, None, None, None)
    tp, missed, spurious, joined, iou = np.sum(found, axis=0)
    det_a = tp / np.maximum(tp + missed + spurious, 1)
    ass_a = joined / np.maximum(tp, 1)
    loc_a = np.divide(iou, tp, out=np.ones_like(iou), where=tp > 0)
    return Hota(
        float(np.sqrt(det_a * ass_a).mean()),
        float(det_a.mean()),
        float(ass_a.mean()),
        float(loc_a.mean()) if tp.any() else None,
    )


def _count(sequence: Sequence) -> np.ndarray:
    """Rows TP, FN, FP, sum over the TP of the tracks' Jaccard index, sum of the IoU; (5, thresholds)."""
    true_frames, pred_frames = sequence.frames_of_truth()[:, None], sequence.frames_of_pred()[None]
    soft = sequence.matrix([_soft_match(frame.iou) for frame in sequence.frames])
    alignment = soft / np.maximum(true_frames + pred_frames - soft, EPSILON)
    together = np.zeros((len(ALPHAS), sequence.true_tracks, sequence.pred_tracks))
    iou_sum = np.zeros(len(ALPHAS))
    for frame in sequence.frames:
        score = frame.iou * alignment[np.ix_(frame.truth, frame.pred)]
        rows, columns = linear_sum_assignment(score, maximize=True)
        iou = frame.iou[rows, columns]
        reached = iou >= ALPHAS[:, None] - EPSILON
        together[:, frame.truth[rows], frame.pred[columns]] += reached
        iou_sum += (iou * reached).sum(axis=1)
    tp = together.sum(axis=(1, 2))
    joined = (together * together / np.maximum(true_frames + pred_frames - together, 1)).sum(axis=(1, 2))
    return np.stack([tp, true_frames.sum() - tp, pred_frames.sum() - tp, joined, iou_sum])


def _soft_match(iou: np.ndarray) -> np.ndarray:
    """How much of a frame a pair of tracks may claim: its IoU over that of all pairs it competes with."""
    rivals = iou.sum(axis=0, keepdims=True) + iou.sum(axis=1, keepdims=True) - iou
    return np.divide(iou, rivals, out=np.zeros_like(iou), where=rivals > EPSILON)
