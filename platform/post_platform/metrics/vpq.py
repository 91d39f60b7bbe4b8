"""Video panoptic quality: PQ of tubes, a tube being one segment over a window of 1, 2, 3 or 4 successive frames.

Definition: VPQ_k is PQ with the segments of every window of k successive labelled frames of a sequence (windows slide
by one frame) as tubes; VPQ is the mean of VPQ_1 ... VPQ_4, each an average over classes.

Source: Kim et al., "Video Panoptic Segmentation" (2020), whose k = 0, 5, 10, 15 are these windows at five frames per
label, as its Cityscapes-VPS evaluation. Other tools differ: deeplab2's VPQ counts crowd as missed objects.
Deviations: as for PQ; the class of a tube is part of its identity, not that of the first frame.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np
import pyarrow as pa

from post_platform.metrics.panoptic_quality import Counts, average, match_segments
from post_platform.metrics.segments import Rows, mean, rows_of

WINDOWS = (1, 2, 3, 4)


def video_panoptic_quality(table: pa.Table, classes: Collection[int]) -> float | None:
    """VPQ over the given classes; windows longer than every sequence are left out of the mean."""
    return mean([average(count_tubes(table, classes, frames), classes).pq for frames in WINDOWS])


def count_tubes(table: pa.Table, classes: Collection[int], frames: int) -> dict[int, Counts]:
    """Matches of every class, summed over all windows of `frames` successive frames of all sequences."""
    return match_segments(_windows(rows_of(table), frames), classes)


def _windows(rows: Rows, frames: int) -> Rows:
    """Every row once per window that its frame is in; `moment` becomes the window's first frame."""
    last = np.zeros(int(rows.video.max(initial=-1)) + 1, np.int64)  # the last frame of each sequence
    np.maximum.at(last, rows.video, rows.moment)
    first = np.full(len(last), np.iinfo(np.int64).max)
    np.minimum.at(first, rows.video, rows.moment)
    copies = []
    for back in range(frames):  # frames of a sequence have successive numbers
        start = rows.moment - back
        inside = (start >= first[rows.video]) & (start + frames - 1 <= last[rows.video])
        copies.append(replace(rows.where(inside), moment=start[inside]))
    columns = [name for name in vars(rows) if name != "names"]
    return Rows(rows.names, **{name: np.concatenate([vars(copy)[name] for copy in copies]) for name in columns})
