"""Average precision of tracks: a detection is a track, and its overlap with a true one is that of both videos' pixels.

Source: the YouTube-VIS benchmark; matching and accumulation are those of pycocotools, fed with overlaps of tracks.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

AREAS = [[0, 1e10], [0, 128**2], [128**2, 256**2], [256**2, 1e10]]
AREA_NAMES = ["all", "small", "medium", "large"]
MAX_TRACKS = [1, 10, 100]  # per video, the best ones


@dataclass(frozen=True)
class Track:
    """A true or predicted track of one video; `area`: its mean over the frames where it has pixels."""

    category: int
    area: float
    crowd: bool = False
    score: float = 1.0


@dataclass(frozen=True)
class Video:
    """The tracks of a video and how much they overlap.

    `overlap`: pixels that they share in all frames over those of their union; with a crowd, over the detection's own.

    Shape: overlap (predicted, true).
    """

    truth: tuple[Track, ...]
    pred: tuple[Track, ...]
    overlap: NDArray[np.float64]


def overlaps(
    shared: NDArray[np.float64], pred: NDArray[np.float64], truth: NDArray[np.float64], crowd: Sequence[bool]
) -> NDArray[np.float64]:
    """Overlaps (P, T) out of pixel counts over all frames: shared (P, T), of predicted (P,) and of true tracks (T,)."""
    union = pred[:, None] + truth[None, :] - shared
    below = np.where(np.array(crowd, bool)[None, :], pred[:, None], union)
    return np.divide(shared, below, out=np.zeros_like(shared), where=below > 0)


def track_ap(videos: Sequence[Video], categories: dict[int, str]) -> dict[str, float | None]:
    """AP over overlaps 0.50:0.05:0.95, AP50, AP75, AP by size, AR1, AR10, AR100, and AP/<class>; None: undefined.

    `categories`: number and name of each class.
    """
    evaluation = _Evaluation(videos, sorted(categories))
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]  # (T, R, K, A, M) and (T, K, A, M)
    scores = {
        "AP": _mean(precision[:, :, :, 0, -1]),
        "AP50": _mean(precision[0, :, :, 0, -1]),
        "AP75": _mean(precision[5, :, :, 0, -1]),
        **{f"AP_{name}": _mean(precision[:, :, :, place, -1]) for place, name in enumerate(AREA_NAMES) if place},
        **{f"AR{count}": _mean(recall[:, :, 0, place]) for place, count in enumerate(MAX_TRACKS)},
    }
    per_class = {
        f"AP/{categories[number]}": _mean(precision[:, :, place, 0, -1])
        for place, number in enumerate(sorted(categories))
    }
    return scores | per_class


def _mean(values: NDArray[np.float64]) -> float | None:
    """Mean of what is defined; pycocotools writes -1 where there is no true track."""
    known = values[values > -1]
    return float(known.mean()) if known.size else None


class _Evaluation(COCOeval):
    """pycocotools' evaluation, in which an image is a video and the overlaps are known."""

    def __init__(self, videos: Sequence[Video], categories: Sequence[int]) -> None:
        truth = _dataset([video.truth for video in videos], categories)
        super().__init__(truth, _dataset([video.pred for video in videos], categories), "bbox")
        self.videos = videos
        self.params.areaRng, self.params.areaRngLbl, self.params.maxDets = AREAS, AREA_NAMES, MAX_TRACKS

    def computeIoU(self, imgId: int, catId: int) -> Any:
        video = self.videos[imgId - 1]
        rows = [place for place, track in enumerate(video.pred) if track.category == catId]
        columns = [place for place, track in enumerate(video.truth) if track.category == catId]
        if not rows or not columns:
            return []
        # As pycocotools: detections by falling score, a stable order, no more than may count.
        order = np.argsort([-video.pred[place].score for place in rows], kind="mergesort")[: MAX_TRACKS[-1]]
        return video.overlap[np.ix_(np.array(rows)[order], np.array(columns))]


def _dataset(listed: Sequence[Sequence[Track]], categories: Sequence[int]) -> COCO:
    """A COCO object whose images are videos, numbered from 1."""
    found = COCO()
    numbered = [(video, track) for video, tracks in enumerate(listed, start=1) for track in tracks]
    found.dataset = {
        "images": [{"id": video} for video in range(1, len(listed) + 1)],
        "annotations": [
            {"id": number, "image_id": video, "category_id": track.category, "area": track.area,
             "iscrowd": int(track.crowd), "score": track.score, "bbox": [0, 0, 0, 0]}
            for number, (video, track) in enumerate(numbered, start=1)
        ],
        "categories": [{"id": number} for number in categories],
    }  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        found.createIndex()
    return found
