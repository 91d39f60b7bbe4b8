"""Mask AP: average precision of the thing segments of single frames, ranked by their confidence.

Definition: that of `track_ap`, an image being a video of one frame. A detection is a predicted thing segment that has a
score, its overlap with a true one their IoU. Sizes: small up to 32^2 pixels, medium up to 96^2.

Source: COCO, as pycocotools' COCOeval has it. Masks of a contingency table are disjoint, so that IoU, which is shared /
(T + P - shared), and with crowd shared / P, needs no mask. Of equal scores, earlier ones of (dataset, sequence, frame),
then of (class, track), rank first. Void is unknown to COCO: a detection there is wrong.
Deviations: all crowd of a class in a frame is one region, where a COCO file may list several; areas are counted, not
read from a file; a detection without a pixel does not exist, where COCOeval calls it wrong; what is undefined is None,
where COCOeval says -1; without any detection AP is 0, where loading such a file is an IndexError.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from post_platform.labels import UNIDENTIFIED, VOID
from post_platform.metrics.segments import Rows, group, rows_of
from post_platform.metrics.track_ap import Sizes, Track, Video, overlaps
from post_platform.metrics.track_ap import report as average_precision

SIZES: Sizes = (32.0**2, 96.0**2)


def report(table: pa.Table | Rows, things: Mapping[int, str]) -> dict[str, Any]:
    """AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm, ARl, and AP and AP50 per class; None: undefined.

    `things`: number and name of each class that has objects.
    """
    return average_precision(_images(rows_of(table), things), things, SIZES)


def _images(rows: Rows, things: Mapping[int, str]) -> list[Video]:
    """Every frame with its true and its detected objects, and how much they overlap."""
    thing = np.isin(np.arange(VOID + 1), list(things))
    truth = group(rows.moment, rows.truth_class, np.minimum(rows.truth_instance, UNIDENTIFIED))
    pred = group(rows.moment, rows.pred_class, rows.pred_track)
    truth_area, pred_area = truth.total(rows.pixels), pred.total(rows.pixels)
    score = np.empty(len(pred.keys))
    score[pred.of_row] = rows.pred_score  # all rows of a segment have the same
    is_truth, is_pred = thing[truth.keys[:, 1]], thing[pred.keys[:, 1]] & ~np.isnan(score)
    crowd = truth.keys[:, 2] == UNIDENTIFIED
    pair = group(truth.of_row, pred.of_row)
    pixels = pair.total(rows.pixels)

    frames = int(rows.moment.max(initial=-1)) + 1
    true_objects = _by_frame(is_truth, truth.keys[:, 0], frames)
    detections = _by_frame(is_pred, pred.keys[:, 0], frames)
    in_both = is_truth[pair.keys[:, 0]] & is_pred[pair.keys[:, 1]]
    pairs = _by_frame(in_both, truth.keys[pair.keys[:, 0], 0], frames)
    images = []
    for t, p, both in zip(true_objects, detections, pairs, strict=True):
        shared = np.zeros((len(p), len(t)))
        shared[np.searchsorted(p, pair.keys[both, 1]), np.searchsorted(t, pair.keys[both, 0])] = pixels[both]
        truths = zip(truth.keys[t, 1].tolist(), truth_area[t].tolist(), crowd[t].tolist(), strict=True)
        preds = zip(pred.keys[p, 1].tolist(), pred_area[p].tolist(), score[p].tolist(), strict=True)
        images.append(
            Video(
                tuple(Track(c, area, crowd=is_crowd) for c, area, is_crowd in truths),
                tuple(Track(c, area, score=confidence) for c, area, confidence in preds),
                overlaps(shared, pred_area[p], truth_area[t], crowd[t]),
            )
        )
    return images


def _by_frame(keep: np.ndarray, moment: np.ndarray, frames: int) -> list[np.ndarray]:
    """Where `keep` is true, for each frame; `moment` ascends."""
    found = np.flatnonzero(keep)
    return np.split(found, np.searchsorted(moment[found], np.arange(1, frames)))
