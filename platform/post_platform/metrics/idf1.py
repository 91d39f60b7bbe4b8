"""IDF1: how well whole tracks agree, when each true track may be explained by one predicted track only.

Definition: IDTP = the greatest number of frames in which a true object and its track's one partner overlap with IoU
of at least 0.5; IDF1 = 2 IDTP / (true objects + predicted objects).

Source: Ristani et al., "Performance Measures and a Data Set for Multi-Target, Multi-Camera Tracking" (2016), as
TrackEval (predictions in ignore regions dropped as in `similarity`). Without any object IDF1 is None, where TrackEval
says 0.
"""

from __future__ import annotations

import pyarrow as pa
from scipy.optimize import linear_sum_assignment

from post_platform.metrics.segments import ratio
from post_platform.metrics.similarity import EPSILON, sequences


def idf1(table: pa.Table, native_class: int) -> float | None:
    """IDF1 of one class; partners are chosen within each sequence, counts add up over them."""
    agreed = objects = 0
    for sequence in sequences(table, native_class):
        together = sequence.matrix([frame.iou >= 0.5 - EPSILON for frame in sequence.frames])
        agreed += int(together[linear_sum_assignment(together, maximize=True)].sum())
        objects += int(sequence.frames_of_truth().sum() + sequence.frames_of_pred().sum())
    return ratio(2 * agreed, objects)
