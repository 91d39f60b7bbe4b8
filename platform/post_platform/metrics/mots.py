"""MOTS scores of one class: how well its objects are found, masked, and kept under one identity.

Definition, with M = true objects summed over frames: MOTSA = (TP - FP - IDS) / M, sMOTSA = (sum of the IoU of the TP -
FP - IDS) / M, MOTSP = mean IoU of the TP. Accuracies may be negative.

Source: Voigtlaender et al., "MOTS: Multi-Object Tracking and Segmentation" (2019), with the rules of mots_tools:
  - a true and a predicted object of one class and frame match when their IoU is above 0.5 (strict; TrackEval takes 0.5
    too), the IoU being of the whole masks, ignored pixels included;
  - an unmatched prediction is dropped when more than half of it lies in the merged ignore region;
  - an identity switch is a match under another id than the last match of that true object, however long ago;
  - mostly tracked = matched in more than 80 % of its frames, mostly lost = in less than 20 %;
  - fragments count every change between neighbouring frames of an object (see `_fragments`), unlike TrackEval.
Deviations: masks overlap in no table (mots_tools' evaluation accepts it, its loader and TrackEval refuse it); undefined
values are None, where mots_tools says infinity, or 0 for shares of nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from post_platform.labels import UNIDENTIFIED
from post_platform.metrics.segments import group, ratio, rows_of

NO_MATCH = -1


@dataclass(frozen=True)
class MotsCounts:
    """Counts of one class. They add up over sequences; every score is a function of them.

    `ignored` are predictions dropped in ignore regions, `iou` sums over the true positives, the last four are tracks.
    """

    tp: int = 0
    fp: int = 0
    fn: int = 0
    ignored: int = 0
    id_switches: int = 0
    fragments: int = 0
    iou: float = 0.0
    tracks: int = 0
    mostly_tracked: int = 0
    partly_tracked: int = 0
    mostly_lost: int = 0

    @property
    def objects(self) -> int:
        """True objects, summed over frames."""
        return self.tp + self.fn

    @property
    def smotsa(self) -> float | None:
        """Soft MOTS accuracy; None without any true object."""
        return ratio(self.iou - self.fp - self.id_switches, self.objects)

    @property
    def motsa(self) -> float | None:
        """MOTS accuracy; None without any true object."""
        return ratio(self.tp - self.fp - self.id_switches, self.objects)

    @property
    def modsa(self) -> float | None:
        """MOTSA without the identity switches."""
        return ratio(self.tp - self.fp, self.objects)

    @property
    def motsal(self) -> float | None:
        """MOTSA with the logarithm (base 10) of the identity switches; as MOTSA without any switch."""
        return ratio(self.tp - self.fp - (math.log10(self.id_switches) if self.id_switches else 0), self.objects)

    @property
    def motsp(self) -> float | None:
        """Mean IoU of the true positives; None without any."""
        return ratio(self.iou, self.tp)

    @property
    def recall(self) -> float | None:
        """Share of the true objects that are matched."""
        return ratio(self.tp, self.objects)

    @property
    def precision(self) -> float | None:
        """Share of the predictions (the ignored ones left out) that are matched."""
        return ratio(self.tp, self.tp + self.fp)


def count_tracks(table: pa.Table, native_class: int) -> MotsCounts:
    """Counts of one class over all sequences of the table.

    Truth void and crowd of any class form the ignore region. Predicted track 0 is a pixel without identity, not an
    object: the official result formats cannot express it.
    """
    of_class = pc.or_(pc.equal(table["truth_class"], native_class), pc.equal(table["pred_class"], native_class))
    rows = rows_of(table.filter(of_class))  # whole areas of every object of this class, true or predicted
    truth = group(rows.video, rows.moment, rows.truth_class, rows.truth_instance)
    pred = group(rows.video, rows.moment, rows.pred_class, rows.pred_track)
    truth_area, pred_area = truth.total(rows.pixels), pred.total(rows.pixels)
    in_ignore = pred.total(rows.pixels * (rows.void | rows.crowd))
    is_truth = (truth.keys[:, 2] == native_class) & (truth.keys[:, 3] != UNIDENTIFIED)
    is_pred = (pred.keys[:, 2] == native_class) & (pred.keys[:, 3] != 0)

    pair = group(truth.of_row, pred.of_row)
    shared, (t, p) = pair.total(rows.pixels), pair.keys.T
    union = truth_area[t] + pred_area[p] - shared
    matched = is_truth[t] & is_pred[p] & (2 * shared > union)
    match = np.full(len(truth.keys), NO_MATCH, np.int64)
    match[t[matched]] = pred.keys[p[matched], 3]
    unmatched = is_pred.copy()
    unmatched[p[matched]] = False
    dropped = unmatched & (2 * in_ignore > pred_area)

    tp = int(np.count_nonzero(matched))
    return MotsCounts(
        tp=tp,
        fp=int(np.count_nonzero(unmatched & ~dropped)),
        fn=int(np.count_nonzero(is_truth)) - tp,
        ignored=int(np.count_nonzero(dropped)),
        iou=float((shared[matched] / union[matched]).sum()),
        **_over_tracks(truth.keys[is_truth], match[is_truth]),
    )


def _over_tracks(objects: np.ndarray, match: np.ndarray) -> dict[str, int]:
    """Switches, fragments and coverage; `objects` are (video, moment, class, instance) in time order."""
    tracks: dict[tuple[int, int], list[int]] = {}
    for (video, _, _, instance), track in zip(objects.tolist(), match.tolist(), strict=True):
        tracks.setdefault((video, instance), []).append(track)
    covered = [len([track for track in history if track != NO_MATCH]) / len(history) for history in tracks.values()]
    mostly_tracked = len([share for share in covered if share > 0.8])
    mostly_lost = len([share for share in covered if share < 0.2])
    return {
        "id_switches": sum(_switches(history) for history in tracks.values()),
        "fragments": sum(_fragments(history) for history in tracks.values()),
        "tracks": len(tracks),
        "mostly_tracked": mostly_tracked,
        "partly_tracked": len(tracks) - mostly_tracked - mostly_lost,
        "mostly_lost": mostly_lost,
    }


def _switches(history: list[int]) -> int:
    """Changes between successive matches of one true object, gaps skipped."""
    matches = [track for track in history if track != NO_MATCH]
    return sum(before != after for before, after in pairwise(matches))


def _fragments(history: list[int]) -> int:
    """Matched frames that differ from the frame before, after some earlier match, and followed by another match.

    Source: mots_tools, its two oddities included: an object's last frame needs no follower, and counts even when
    it is the object's first match.
    """
    count = 0
    for now in range(1, len(history)):
        if history[now] in (NO_MATCH, history[now - 1]):
            continue
        last = now == len(history) - 1
        earlier = any(track != NO_MATCH for track in history[:now])
        count += last or (earlier and history[now + 1] != NO_MATCH)
    return count
