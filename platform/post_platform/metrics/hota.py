"""HOTA: higher order tracking accuracy of one class, the geometric mean of detection and association accuracy.

Definition, at a threshold alpha, TP being one-to-one matches of IoU >= alpha, FN and FP the other true and predicted
objects, and each match joining a true track of n frames and a predicted track of m frames in k frames altogether:
  DetA = TP / (TP + FN + FP), DetRe = TP / (TP + FN), DetPr = TP / (TP + FP);
  AssA, AssRe, AssPr = means over the TP of k / (n + m - k), k / n and k / m; LocA = mean IoU of the TP;
  HOTA = sqrt(DetA x AssA), OWTA = sqrt(DetRe x AssA).
Every score is then averaged over alpha = 0.05, 0.10 ... 0.95.

Source: Luiten et al., "HOTA" (2020), as TrackEval: one assignment per frame serves all thresholds; it maximises IoU
times the tracks' overall alignment. Over sequences TP, FN and FP add up and the association scores are weighted by TP.
At a threshold without TP the association scores count as 0 and LocA as 1.
Deviation: what is undefined at every threshold is None. TrackEval says 0 for DetRe and OWTA without any true object,
for DetPr without any prediction, and for HOTA, DetA and the association scores without either; and 1 for LocA when
nothing matches at any threshold.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from post_platform.metrics.segments import Rows, group
from post_platform.metrics.similarity import EPSILON, Objects, objects_of

ALPHAS = np.arange(0.05, 0.99, 0.05)


def report(table: pa.Table | Rows | Objects, native_class: int) -> dict[str, Any]:
    """HOTA and its parts, means over the thresholds; under `per_alpha` the 19 values of each, and TP, FN, FP.

    A score that is None has a list of None there.
    """
    objects = objects_of(table, native_class)
    true, predicted = len(objects.truth), len(objects.pred)
    tp, iou, (jaccard, recall, precision) = _count(objects)
    ass_a = jaccard / np.maximum(tp, 1)
    det_re = tp / max(true, 1)
    curves = {
        "HOTA": np.sqrt(tp / np.maximum(true + predicted - tp, 1) * ass_a),
        "DetA": tp / np.maximum(true + predicted - tp, 1),
        "AssA": ass_a,
        "LocA": np.divide(iou, tp, out=np.ones(len(ALPHAS)), where=tp > 0),
        "DetRe": det_re,
        "DetPr": tp / max(predicted, 1),
        "AssRe": recall / np.maximum(tp, 1),
        "AssPr": precision / np.maximum(tp, 1),
        "OWTA": np.sqrt(det_re * ass_a),
    }
    counts = {"TP": tp, "FN": true - tp, "FP": predicted - tp}
    needed = {"LocA": int(tp.sum()), "DetRe": true, "OWTA": true, "DetPr": predicted}  # of this there must be some
    defined = {name: needed.get(name, true + predicted) > 0 for name in curves}
    means = {name: float(curve.mean()) if defined[name] else None for name, curve in curves.items()}
    per_alpha = {name: curve.tolist() if defined[name] else [None] * len(ALPHAS) for name, curve in curves.items()}
    alphas = {"alpha": ALPHAS.tolist()} | {name: count.tolist() for name, count in counts.items()}
    return means | {"per_alpha": alphas | per_alpha}


def _count(objects: Objects) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """TP, their summed IoU, and sums over the TP of how far the two tracks agree (Jaccard, recall, precision).

    Shape: (thresholds,), (thresholds,), (3, thresholds).
    """
    t, p, iou = objects.t, objects.p, objects.iou
    couples = group(objects.truth.track[t], objects.pred.track[p])
    of_true, of_pred = couples.keys.T
    true_frames = objects.truth.frames_of_tracks()[of_true]
    pred_frames = objects.pred.frames_of_tracks()[of_pred]
    rivals = np.bincount(p, iou)[p] + np.bincount(t, iou)[t] - iou  # the IoU of all pairs that a pair competes with
    soft = np.bincount(couples.of_row, iou / rivals)
    alignment = soft / (true_frames + pred_frames - soft)

    score = alignment[couples.of_row] * iou
    chosen = np.ones(len(t), bool)
    for moment in objects.contested(chosen).tolist():
        pairs = objects.pairs_of(moment)
        chosen[pairs] = objects.assign(moment, score[pairs])

    levels = len(ALPHAS) + 1
    reached = np.searchsorted(ALPHAS - EPSILON, iou[chosen], side="right")  # how many thresholds
    cells = np.bincount(couples.of_row[chosen] * levels + reached, minlength=levels * len(of_true))
    together = _at_least(cells.reshape(-1, levels))
    iou_sum = _at_least(np.bincount(reached, iou[chosen], levels))
    n, m = true_frames[:, None], pred_frames[:, None]
    agreement = [(together * together / whole).sum(axis=0) for whole in (n + m - together, n, m)]
    return together.sum(axis=0), iou_sum, np.stack(agreement)


def _at_least(amounts: np.ndarray) -> np.ndarray:
    """Of amounts by how many thresholds were reached, 0..19, those that reached each of the thresholds."""
    return amounts[..., ::-1].cumsum(axis=-1)[..., ::-1][..., 1:]
