"""Average precision of tracks: a detection is a track, and its overlap with a true one is that of both videos' pixels.

Definition: by falling score, a detection is right when its overlap with a true track of its class that no better one
took reaches the threshold. AP = mean over the thresholds 0.50:0.05:0.95 and the classes of the precision at 101 levels
of recall; AP50, AP75 at one threshold; APs, APm, APl over true tracks of one size; ARn = the recall reached with the n
best detections of a video.

Source: the YouTube-VIS benchmark. Matching and accumulation are those of pycocotools' COCOeval, fed with overlaps. (Our
own matching took 0.8 ms per frame of the test data against 2.4, and was not worth being another source of the number.)
Detections of equal score rank as they are listed, those of earlier videos first.
Deviations: what is undefined is None, where COCOeval says -1; without any detection AP is 0, where loading such a list
is an IndexError.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

Sizes = tuple[float, float]
"""Areas up to which a track is small, and medium."""
NO_BOX = [0, 0, 0, 0]
MAX_TRACKS = [1, 10, 100]  # per video, the best ones


@dataclass(frozen=True, slots=True)
class Track:
    """A true or predicted track of one video; `area`: its mean over the frames where it has pixels."""

    category: int
    area: float
    crowd: bool = False
    score: float = 1.0


@dataclass(frozen=True, slots=True)
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


def report(videos: Sequence[Video], names: Mapping[int, str], sizes: Sizes = (128.0**2, 256.0**2)) -> dict[str, Any]:
    """AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm, ARl, and AP and AP50 per class; None: undefined.

    `names`: number and name of each class.
    """
    classes = sorted(names)
    curves = [_curves(videos, number, sizes) for number in classes]  # one by one, so that one at a time is in memory
    precision, recall = (np.stack(found, axis) for axis, found in zip((2, 1), zip(*curves, strict=True), strict=True))
    best = precision[..., -1]
    return {
        "AP": _mean(best[:, :, :, 0]),
        "AP50": _mean(best[0, :, :, 0]),
        "AP75": _mean(best[5, :, :, 0]),
        **{f"AP{size}": _mean(best[..., place]) for place, size in enumerate("sml", start=1)},
        **{f"AR{count}": _mean(recall[:, :, 0, place]) for place, count in enumerate(MAX_TRACKS)},
        **{f"AR{size}": _mean(recall[:, :, place, -1]) for place, size in enumerate("sml", start=1)},
        "per_class": {
            names[number]: {"AP": _mean(best[:, :, place, 0]), "AP50": _mean(best[0, :, place, 0])}
            for place, number in enumerate(classes)
        },
    }


def _curves(videos: Sequence[Video], number: int, sizes: Sizes) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Precision and recall of one class.

    Shape: (thresholds, levels of recall, sizes, counts) and (thresholds, sizes, counts).
    """
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = _Evaluation(videos, number, sizes)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][:, :, 0], evaluation.eval["recall"][:, 0]


def _mean(values: NDArray[np.float64]) -> float | None:
    """Mean of what is defined; pycocotools writes -1 where there is no true track."""
    known = values[values > -1]
    return float(known.mean()) if known.size else None


class _Evaluation(COCOeval):
    """pycocotools' evaluation of one class, in which an image is a video and the overlaps are known."""

    def __init__(self, videos: Sequence[Video], number: int, sizes: Sizes) -> None:
        truth, pred = ([getattr(video, side) for video in videos] for side in ("truth", "pred"))
        super().__init__(_dataset(truth, number), _dataset(pred, number), "bbox")
        self.videos = videos
        self.params.areaRng = [(0, 1e10), (0, sizes[0]), sizes, (sizes[1], 1e10)]
        self.params.maxDets = MAX_TRACKS

    def computeIoU(self, imgId: int, catId: int) -> Any:
        video = self.videos[imgId - 1]
        rows = [place for place, track in enumerate(video.pred) if track.category == catId]
        columns = [place for place, track in enumerate(video.truth) if track.category == catId]
        if not rows or not columns:
            return []
        # As pycocotools: detections by falling score, a stable order, no more than may count.
        order = np.argsort([-video.pred[place].score for place in rows], kind="mergesort")[: MAX_TRACKS[-1]]
        return video.overlap[np.ix_(np.array(rows)[order], np.array(columns))]


def _dataset(listed: Sequence[Sequence[Track]], number: int) -> COCO:
    """A COCO object of the tracks of one class, whose images are videos, numbered from 1."""
    found = COCO()
    own = [
        (video, track) for video, tracks in enumerate(listed, start=1) for track in tracks if track.category == number
    ]
    found.dataset = {
        "images": [{"id": video} for video in range(1, len(listed) + 1)],
        "annotations": [
            {"id": place, "image_id": video, "category_id": number, "area": track.area,
             "iscrowd": int(track.crowd), "score": track.score, "bbox": NO_BOX}
            for place, (video, track) in enumerate(own, start=1)
        ],
        "categories": [{"id": number}],
    }  # fmt: skip
    found.createIndex()
    return found
