"""Identity scores: how well whole tracks agree, when each true track may be explained by one predicted track only.

Definition: IDTP = the greatest number of frames in which a true object and its track's one partner overlap with IoU of
at least 0.5; IDFN and IDFP are the other true and predicted objects; IDR = IDTP / (IDTP + IDFN), IDP = IDTP / (IDTP +
IDFP), IDF1 = 2 IDTP / (2 IDTP + IDFN + IDFP).

Source: Ristani et al., "Performance Measures and a Data Set for Multi-Target, Multi-Camera Tracking" (2016), as
TrackEval, predictions in ignore regions dropped as in `similarity`. TrackEval minimises IDFN + IDFP over all ways to
pair tracks or leave them alone, which is the same as to maximise IDTP.
Deviation: ratios of nothing are None (IDR without true objects, IDP without predictions, IDF1 without either), where
TrackEval says 0.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from scipy.optimize import linear_sum_assignment

from post_platform.metrics.segments import Rows, group, ratio
from post_platform.metrics.similarity import Objects, objects_of


def report(table: pa.Table | Rows | Objects, native_class: int) -> dict[str, float | int | None]:
    """IDF1, IDP, IDR and counts of one class; partners are chosen within each sequence, counts add up over them."""
    objects = objects_of(table, native_class)
    true, predicted, agreed = len(objects.truth), len(objects.pred), _agreed_frames(objects)
    return {
        "IDF1": ratio(2 * agreed, true + predicted),
        "IDP": ratio(agreed, predicted),
        "IDR": ratio(agreed, true),
        "IDTP": agreed,
        "IDFP": predicted - agreed,
        "IDFN": true - agreed,
    }


def _agreed_frames(objects: Objects) -> int:
    """Frames in which a true track and its partner overlap, partners being chosen so that these are most."""
    matches = 2 * objects.shared >= objects.union
    t, p = objects.t[matches], objects.p[matches]
    couples = group(objects.truth.video[t], objects.truth.track[t], objects.pred.track[p])
    frames = np.bincount(couples.of_row)
    agreed = 0
    for video in np.unique(couples.keys[:, 0]):
        here = couples.keys[:, 0] == video
        (true, row), (pred, column) = (np.unique(tracks, return_inverse=True) for tracks in couples.keys[here, 1:].T)
        together = np.zeros((len(true), len(pred)), np.int64)
        together[row, column] = frames[here]
        agreed += int(together[linear_sum_assignment(together, maximize=True)].sum())
    return agreed
