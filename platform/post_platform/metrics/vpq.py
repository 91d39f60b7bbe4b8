"""Video panoptic quality: PQ of tubes, a tube being one segment over a window of successive frames.

Definition: VPQ_k is PQ with the segments of every window of k successive labelled frames of a sequence (windows slide
by one frame) as tubes; VPQ is the mean of VPQ_k over several k, each an average over classes.

Source: Kim et al., "Video Panoptic Segmentation" (2020), with the rules of its Cityscapes-VPS evaluation: k = 1, 2, 3,
4, which are the paper's 0, 5, 10, 15 at five frames per label. VIPSeg's tool has the same rules and k = 1, 2, 4, 6, 8.
A sequence shorter than k frames has no window, so nothing of it counts in VPQ_k.
Differences between tools: deeplab2's VPQ knows no crowd: it is an object like any other (`crowd="missed"`), which as a
rule nothing matches.
Deviations: as for PQ. The class of a tube is part of its identity; in the evaluation of Cityscapes-VPS an id has, in a
window, the class and the crowd flag of the first frame it is in, so that an id whose class changes is one tube there
and two here. VPQ_k is None when no window is that long, where that tool divides by zero.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from post_platform.metrics.panoptic_quality import Counts, add, average, class_groups, match_segments
from post_platform.metrics.panoptic_quality import Crowd as PanopticCrowd
from post_platform.metrics.segments import Rows, mean, rows_of

Crowd = Literal["ignored", "missed"]


def report(
    table: pa.Table | Rows,
    names: Mapping[int, str],
    things: Collection[int],
    windows: Sequence[int] = (1, 2, 3, 4),
    crowd: Crowd = "ignored",
) -> dict[str, Any]:
    """VPQ_k by k (as text) and their `mean`, over all classes in `names`; the same over things and over stuff.

    A window longer than every sequence is None, and left out of the mean.
    """
    rows = rows_of(table)
    counts = {frames: count_tubes(rows, names, frames, crowd) for frames in windows}
    found = {}
    for label, classes in class_groups(names, things).items():
        values = {str(frames): average(counts[frames], classes).pq for frames in windows}
        found[label] = {**values, "mean": mean(list(values.values()))}
    return {**found.pop("All"), **found}


def count_tubes(
    table: pa.Table | Rows, classes: Collection[int], frames: int, crowd: Crowd = "ignored"
) -> dict[int, Counts]:
    """Matches of every class, summed over all windows of `frames` successive frames of all sequences.

    Sequence by sequence, so that the copies of the rows, one per window, are those of the longest one at most.
    """
    rows = rows_of(table)
    order = np.argsort(rows.video, kind="stable")
    edges = np.searchsorted(rows.video[order], np.arange(len(rows.names) + 1))
    rule: PanopticCrowd = "every" if crowd == "ignored" else "missed"
    parts = (rows.where(order[start:stop]) for start, stop in pairwise(edges.tolist()))
    return add((match_segments(_windows(part, frames), classes, rule) for part in parts), sorted(classes))


def _windows(rows: Rows, frames: int) -> Rows:
    """Every row of a sequence once per window that its frame is in; `moment` becomes the window's first frame."""
    first, last = rows.moment.min(initial=np.iinfo(np.int64).max), rows.moment.max(initial=-1)
    copies = []
    for back in range(frames):  # frames of a sequence have successive numbers
        start = rows.moment - back
        inside = (start >= first) & (start + frames - 1 <= last)
        copies.append(replace(rows.where(inside), moment=start[inside]))
    columns = [name for name in vars(rows) if name != "names"]
    return Rows(rows.names, **{name: np.concatenate([vars(copy)[name] for copy in copies]) for name in columns})
