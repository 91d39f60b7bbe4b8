"""MOTS scores of one class: how well its objects are found, masked, and kept under one identity.

Definition, with M = true objects summed over frames: MOTSA = (TP - FP - IDS) / M, sMOTSA = (sum of the IoU of the TP -
FP - IDS) / M, MODSA = (TP - FP) / M, MOTSAL = (TP - FP - log10 IDS) / M, MOTSP = mean IoU of the TP. Accuracies may be
negative.

Source: Voigtlaender et al., "MOTS: Multi-Object Tracking and Segmentation" (2019), with the rules of two tools.
Both:
  - a true and a predicted object of one class and frame match by their IoU, that of the whole masks, ignored pixels
    included; an unmatched prediction is dropped when more than half of it lies in the ignore region (`similarity`);
  - an identity switch is a match under another id than the last match of that true object, however long ago;
  - mostly tracked = matched in more than 80 % of its frames, mostly lost = in less than 20 %, partly = the others.
`mots_tools`:
  - a match has IoU above 0.5, so nothing has two;
  - fragments count changes between neighbouring frames of an object, changes of id included (see `_id_changes`).
`trackeval`, its CLEAR metrics, which name the scores MOTA, sMOTA, MOTP, MODA, MOTAL:
  - a match has IoU of at least 0.5; the halves of an object compete for it, and one that goes on with the track matched
    in the frame before is preferred;
  - fragments count the times an object is found again (see `_found_again`).
Deviations: masks overlap in no table (mots_tools' evaluation accepts it, its loader and TrackEval refuse it); undefined
values are None:
  - the accuracies and recall without any true object, where mots_tools says minus infinity and 0; TrackEval says 0, but
    for the accuracies over several sequences -FP, as if M were 1;
  - MOTSP without any TP, where mots_tools says infinity and TrackEval 0;
  - precision without any prediction that is not ignored, and F1 without any object at all, where both say 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from post_platform.metrics.segments import Rows, ratio
from post_platform.metrics.similarity import Objects, objects_of

Rule = Literal["mots_tools", "trackeval"]
NO_MATCH = -1
EVENTS = pa.schema(
    [
        ("sequence", pa.string()),
        ("frame", pa.int32()),
        ("kind", pa.string()),
        ("truth_instance", pa.int32()),
        ("pred_track", pa.int32()),
        ("iou", pa.float64()),
    ]
)


@dataclass(frozen=True)
class _Verdict:
    """What became of every object.

    Shape: by true object `match`, the place of its prediction or NO_MATCH, `iou` (0 without one), and `switch`, whether
    its match is an identity switch; by prediction `spurious`, whether it has no match.
    """

    match: np.ndarray
    iou: np.ndarray
    switch: np.ndarray
    spurious: np.ndarray


def report(
    table: pa.Table | Rows | Objects, native_class: int, rule: Rule = "mots_tools"
) -> dict[str, float | int | None]:
    """Scores and counts of one class over all sequences.

    MT, PT and ML are numbers of true tracks, of which there are `tracks`; `objects` are the true objects over all
    frames, `ignored` the predictions dropped in ignore regions.
    """
    objects = objects_of(table, native_class)
    verdict = _judge(objects, rule)
    found = verdict.match != NO_MATCH
    true, tp, fp = len(found), int(np.count_nonzero(found)), int(np.count_nonzero(verdict.spurious))
    switches, iou = int(np.count_nonzero(verdict.switch)), float(verdict.iou.sum())
    frames = objects.truth.frames_of_tracks()
    covered = np.bincount(objects.truth.track, found) / frames
    mostly, lost = int(np.count_nonzero(covered > 0.8)), int(np.count_nonzero(covered < 0.2))
    fragments = _id_changes if rule == "mots_tools" else _found_again
    return {
        "sMOTSA": ratio(iou - fp - switches, true),
        "MOTSA": ratio(tp - fp - switches, true),
        "MOTSP": ratio(iou, tp),
        "MODSA": ratio(tp - fp, true),
        "MOTSAL": ratio(tp - fp - (math.log10(switches) if switches else 0), true),
        "TP": tp,
        "FP": fp,
        "FN": true - tp,
        "IDS": switches,
        "MT": mostly,
        "PT": len(frames) - mostly - lost,
        "ML": lost,
        "Frag": fragments(objects, verdict.match),
        "recall": ratio(tp, true),
        "precision": ratio(tp, tp + fp),
        "F1": ratio(2 * tp, true + tp + fp),
        "ignored": len(objects.ignored),
        "objects": true,
        "tracks": len(frames),
    }


def events(table: pa.Table | Rows | Objects, native_class: int, rule: Rule = "mots_tools") -> pa.Table:
    """What became of every object, in order of time: one row per true object and per unmatched prediction of a frame.

    `sequence` is `dataset/sequence`. `kind` is "match", "switch" (a match that is an identity switch) or "miss" for a
    true object, "false positive" or "ignored" for a prediction; counted, they are the numbers of `report`: TP = match +
    switch, IDS = switch, FN = miss, and so on. `truth_instance` is 0 without a truth, `pred_track` 0 without a
    prediction, `iou` 0 without a match.
    """
    objects = objects_of(table, native_class)
    verdict = _judge(objects, rule)
    found = verdict.match != NO_MATCH
    partner = np.zeros(len(found), np.int64)
    partner[found] = objects.pred.identity[verdict.match[found]]
    spurious = objects.pred.where(verdict.spurious)
    parts = (objects.truth, spurious, objects.ignored)
    predicted = np.zeros(len(spurious) + len(objects.ignored))
    order = np.argsort(np.concatenate([part.moment for part in parts]), kind="stable")
    kinds = np.repeat(["miss", "false positive", "ignored"], [len(part) for part in parts])
    kinds[: len(found)][found] = np.where(verdict.switch[found], "switch", "match")
    columns = [
        np.array(objects.names, object)[np.concatenate([part.video for part in parts])],
        np.concatenate([part.frame for part in parts]),
        kinds.astype(object),
        np.concatenate([objects.truth.identity, predicted]),
        np.concatenate([partner, spurious.identity, objects.ignored.identity]),
        np.concatenate([verdict.iou, predicted]),
    ]
    arrays = [pa.array(column[order]).cast(field.type) for column, field in zip(columns, EVENTS, strict=True)]
    return pa.Table.from_arrays(arrays, schema=EVENTS)


def _judge(objects: Objects, rule: Rule) -> _Verdict:
    matched = 2 * objects.shared > objects.union if rule == "mots_tools" else _matches_from_half_on(objects)
    t, p = objects.t[matched], objects.p[matched]
    match, iou = np.full(len(objects.truth), NO_MATCH, np.int64), np.zeros(len(objects.truth))
    match[t], iou[t] = p, objects.iou[matched]
    spurious = np.ones(len(objects.pred), bool)
    spurious[p] = False

    found, same_track = _matches_by_track(objects, match)
    track = objects.pred.track[match[found]]
    switch = np.zeros(len(match), bool)
    switch[found[1:][same_track & (track[1:] != track[:-1])]] = True
    return _Verdict(match, iou, switch, spurious)


def _matches_from_half_on(objects: Objects) -> np.ndarray:
    """Which pairs TrackEval matches: IoU of at least 0.5, one to one.

    Masks of one side do not overlap, so an object has two such pairs only when both IoUs are 0.5. Only frames with
    such halves are assigned; to go on with the last matched track counts for more than any IoU.
    """
    matched = 2 * objects.shared >= objects.union
    contested = objects.contested(matched).tolist()
    if not contested:
        return matched
    couple = objects.truth.track[objects.t] * len(objects.pred) + objects.pred.track[objects.p]
    counted = _counted_moments(objects)
    for moment in contested:
        pairs = objects.pairs_of(moment)
        place = np.searchsorted(counted, moment)
        before = objects.pairs_of(int(counted[place - 1])) if place else slice(0)
        goes_on = np.isin(couple[pairs], couple[before][matched[before]])
        score = np.where(matched[pairs], 1000 * goes_on + objects.iou[pairs], 0)
        matched[pairs] &= objects.assign(moment, score)
    return matched


def _counted_moments(objects: Objects) -> np.ndarray:
    """The moments that TrackEval's CLEAR sees: one without true or without predicted objects leaves its state alone."""
    return np.intersect1d(objects.truth.moment, objects.pred.moment)


def _matches_by_track(objects: Objects, match: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places of the matched true objects, track by track in time; whether each but the first has the track before's."""
    order = np.argsort(objects.truth.track, kind="stable")
    found = order[match[order] != NO_MATCH]
    track = objects.truth.track[found]
    return found, track[1:] == track[:-1]


def _found_again(objects: Objects, match: np.ndarray) -> int:
    """Fragments of TrackEval: matches after a gap since the object's match before.

    Its oddity included: frames in which the class has no true or no predicted object do not make a gap, frames in which
    the object itself is absent do.
    """
    found, same_track = _matches_by_track(objects, match)
    place = np.searchsorted(_counted_moments(objects), objects.truth.moment[found])
    return int(np.count_nonzero(same_track & (np.diff(place) > 1)))


def _id_changes(objects: Objects, match: np.ndarray) -> int:
    """Fragments of mots_tools: matched frames that differ from the object's frame before, after and before a match.

    Its two oddities included: an object's last frame needs no match after it, and counts even when it is the object's
    first match.
    """
    order = np.argsort(objects.truth.track, kind="stable")
    true_track, place = objects.truth.track[order], match[order]
    found = place != NO_MATCH
    track = np.append(objects.pred.track, NO_MATCH)[place]  # NO_MATCH is the last place
    first = np.diff(true_track, prepend=-1) != 0
    last = np.diff(true_track, append=-1) != 0
    before = np.cumsum(found) - found  # matches before this frame, those of earlier tracks included
    earlier = before > before[first][true_track]
    changed = found & ~first & (track != np.roll(track, 1))
    return int(np.count_nonzero(changed & (last | (earlier & np.roll(found, -1)))))
