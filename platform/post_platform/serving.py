"""What a served model answers: a frame goes in; its segments, their tracks, and the state for the next frame come out.

All that a video needs is in that state, so any worker on any machine answers any frame. The worker that made a state
also keeps what it would have to compute again from it: who answers decides only how long it takes.
"""

from __future__ import annotations

import hashlib
from base64 import b64decode
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from post_model.predictor import FrameResult, Predictor, VideoState
from post_model.weights import best_weights
from post_platform.datasets.masks import encode_segments
from post_platform.errors import DataError
from post_platform.images import FORMATS, decode_image
from post_platform.serving_state import AGAIN, pack, unpack

MOST_PIXELS = 1 << 23  # of a frame: 3840x2160 fits
KEPT_BYTES = 1 << 29  # of features between requests: eight videos of 375x1242 with a ResNet-50


class Service:
    """A predictor that speaks text: base64 in, what JSON can hold out. Requests may come from many threads at once.

    Whatever computes with tensors does so on one thread, the predictor's own, which uses every core. Else each of the
    server's threads would get a team of OpenMP's, which no longer spin when they are more than the cores but sleep: a
    small frame took 1.6 times as long.
    """

    def __init__(self, predictor: Predictor, model: str, worker: ThreadPoolExecutor | None = None) -> None:
        """Serve a predictor. `model` names it: the state of another one is refused. `worker` is its thread."""
        self.predictor, self.model = predictor, model
        self._worker = worker or ThreadPoolExecutor(1, "predictor")
        self._kept: dict[str, VideoState] = {}  # by the text of the state, the oldest first

    @classmethod
    def open(cls, checkpoint: Path, classes: str | None = None, device: str | None = None) -> Self:
        """Serve a checkpoint, in its own classes or in those of a dataset; on the GPU where there is one, unless told.

        Raises: ValueError if the folder is no checkpoint, or knows no such dataset.
        """
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        worker = ThreadPoolExecutor(1, "predictor")
        predictor = worker.submit(Predictor.from_checkpoint, checkpoint, classes, device).result()
        with (checkpoint / f"{best_weights(checkpoint)}.safetensors").open("rb") as file:
            weights = hashlib.file_digest(file, "sha256").hexdigest()
        facts = f"{weights} {predictor.tracking} {predictor.names}"
        return cls(predictor, hashlib.sha256(facts.encode()).hexdigest(), worker)

    def answer(self, image: object, state: object = None) -> dict[str, Any]:
        """Segment a frame and continue its video's tracks.

        Args:
            image: the file of the frame (JPEG, PNG, WebP or BMP) in base64.
            state: what the answer to the video's last frame holds; None where a video begins.

        Raises: DataError saying what is wrong with the request.
        """
        content = _decoded(image)
        frame = decode_image(content, "frame", MOST_PIXELS)
        result, text = self._worker.submit(self._step, content, frame, state).result()
        height, width = frame.shape[:2]
        return {"height": height, "width": width, "segments": described(result), "state": text}

    def _step(self, content: bytes, frame: np.ndarray, state: object) -> tuple[FrameResult, str]:
        (result,), (after,) = self.predictor.step([frame], [self._before(state, frame.shape[:2])])
        text = pack(self.model, content, after.tracker)
        self._keep(text, after)
        return result, text

    def _before(self, text: object, size: tuple[int, ...]) -> VideoState | None:
        """The state that a request brings. Raises: DataError for one that is damaged, or not of such a video."""
        if text is None or text != text:  # NaN is what pandas puts where only other rows have a state
            return None
        if not isinstance(text, str):
            raise DataError(f"state: is of type {type(text).__name__}, must be a text or null", AGAIN)
        kept = self._kept.pop(text, None)
        content, tracks = (b"", kept.tracker) if kept else unpack(text, self.model, len(self.predictor.names))
        height, width = tracks.size.tolist()
        if (height, width) != size:
            raise DataError(
                f"frame: is {size[0]}x{size[1]}, the frames of this video are {height}x{width}",
                "send all frames of a video in one size, or begin another with null as the state",
            )
        if kept:
            return kept
        try:
            return self.predictor.recall(decode_image(content, "state: its frame", MOST_PIXELS), tracks)
        except ValueError as error:
            raise DataError(f"state: {error}", AGAIN) from error

    def _keep(self, text: str, state: VideoState) -> None:
        """Keep a state as it is; the oldest ones go when there is no room."""
        self._kept[text] = state
        sizes = [sum(map_.nbytes for map_ in kept.features.values()) for kept in self._kept.values()]
        while sum(sizes) > KEPT_BYTES and len(sizes) > 1:
            del self._kept[next(iter(self._kept))], sizes[0]


def described(result: FrameResult) -> list[dict[str, Any]]:
    """The segments of a frame, stuff first, with masks as COCO's compressed run lengths and boxes as COCO has them."""
    size = list(result.panoptic.shape)
    masks = encode_segments(result.panoptic.cpu().numpy(), len(result.segments))
    found = []
    for segment, counts in zip(result.segments, masks, strict=True):
        y0, x0, y1, x1 = segment.box or (0, 0, 0, 0)
        found.append({
            "class": segment.name, "thing": segment.thing, "track": segment.track, "score": segment.score,
            "area": segment.area, "bbox": [x0, y0, x1 - x0, y1 - y0] if segment.box else None,
            "segmentation": {"size": size, "counts": counts},
        })  # fmt: skip
    return found


def _decoded(image: object) -> bytes:
    """The bytes of an image. Raises: DataError for what is no base64."""
    if not isinstance(image, str) or not image:
        raise DataError("image: is missing", f"send the file's bytes ({', '.join(FORMATS)}) as a text in base64")
    try:
        return b64decode(image, validate=True)
    except ValueError as error:
        raise DataError(f"image: is not base64, or not all of it: {error}") from error
