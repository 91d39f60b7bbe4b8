"""Predictor: videos go in frame by frame, panoptic maps and tracks come out."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from torch import Tensor

from post_model import tracker
from post_model.backbone import Features
from post_model.fusion import Panoptic, fuse
from post_model.network import Post, maps_of
from post_model.taxonomy import Projection, identity
from post_model.tracker import TrackerState
from post_model.weights import best_weights, load_model

Tracking = Literal["prev_offset", "iou", "none"]
MIN_STUFF = 2048 / (1024 * 2048)  # Panoptic-DeepLab's 2048 pixels of a Cityscapes image, at any resolution
MIN_SCORE = 0.3
_SCORES_AT_ONCE = 1 << 24  # float32 class probabilities held in memory at a time


@dataclass(frozen=True)
class Segment:
    """An object, or all of one stuff class, in one frame.

    Attributes:
        id: its value in `FrameResult.panoptic`.
        index: its class, an index of the predictor's classes.
        name: that of the class.
        thing: whether it is an object.
        track: id of the object over the video, 0 for stuff. Without tracking, the number of the object in the frame.
        score: confidence, 0..1; of objects only.
        area: pixels.
        box: (y0, x0, y1, x1), the ends exclusive; of objects only.
    """

    id: int
    index: int
    name: str
    thing: bool
    track: int
    score: float | None
    area: int
    box: tuple[int, int, int, int] | None


@dataclass(frozen=True)
class FrameResult:
    """What is seen in one frame.

    Attributes:
        panoptic: (H, W) int32 segment ids, 0 = void.
        segments: the segments, in the order of their ids, which are 1, 2, ...
        tracks: (H, W) int32 track ids, 0 = no object.
        classes: (H, W) int32 index of the predictor's classes, -1 = void.
    """

    panoptic: Tensor
    segments: tuple[Segment, ...]
    tracks: Tensor
    classes: Tensor


@dataclass(frozen=True)
class VideoState:
    """What is kept between two frames of a video: the features of the last one, and the tracks."""

    features: Features
    tracker: TrackerState


class Predictor:
    """Runs a network over videos, each with its own state; every frame is encoded once.

    Where the classes to answer in are not the model's own, probabilities are added up before anything is decided:
    class k gets the sum over its members, and the background what is left of 1.

    Args:
        model: the network; put in evaluation mode.
        projection: the classes to answer in.
        tracking: how identities are kept: "prev_offset", "iou" (the baseline), or "none"; None: the first that the
            network can.
        min_stuff: smallest area of a stuff class, as a fraction of the image; what is smaller is void.
        min_instance: smallest area of an instance, as a fraction of the image.
        min_score: lowest score of an instance. An average precision, which wants every guess, is better off with 0.
        **fusion: further settings of `fuse`, the same for every dataset.

    Raises: ValueError if the classes are not the model's, or the network lacks a branch that is needed.
    """

    def __init__(
        self,
        model: Post,
        projection: Projection,
        tracking: Tracking | None = None,
        min_stuff: float = MIN_STUFF,
        min_instance: float = 0.0,
        min_score: float = MIN_SCORE,
        **fusion: Any,
    ) -> None:
        num_classes, branches = model.arguments["num_classes"], model.arguments["branches"]
        tracking = tracking or ("prev_offset" if "prev_offset" in branches else "iou")
        if tracking not in get_args(Tracking):
            raise ValueError(f"unknown tracking {tracking!r}; expected one of {', '.join(get_args(Tracking))}")
        needed = ["semantic", "center", "offset"] + ["prev_offset"] * (tracking == "prev_offset")
        if missing := [name for name in needed if name not in branches]:
            raise ValueError(f"the network lacks the branch {', '.join(missing)}")
        matrix = projection.matrix(num_classes)
        self.device = next(model.parameters()).device
        self.model = model.eval()
        self.names = (*projection.names, *["background"] * projection.background)
        self.things = (*projection.things, *[False] * projection.background)
        self.tracking = tracking
        self.min_stuff, self.min_instance = min_stuff, min_instance
        own = projection.members == tuple((index,) for index in range(num_classes)) and not projection.background
        self._sums = None if own else matrix.float().to(self.device)
        self._background = projection.background
        self._thing = torch.tensor(self.things, device=self.device)
        self._fusion = {
            "min_score": min_score, "fill_void": projection.fill_void, "merge_plateaus": True, **fusion
        }  # fmt: skip
        self._videos: dict[Hashable, VideoState] = {}

    @classmethod
    def from_checkpoint(
        cls,
        folder: str | Path,
        dataset: str | None = None,
        device: str = "cpu",
        weights: str | None = None,
        **settings: Any,
    ) -> Self:
        """Open a checkpoint folder, to answer in its own classes or in those of a dataset that it knows.

        Args:
            folder: the checkpoint.
            dataset: name of a dataset; None for the model's own, unified classes.
            device: where to run.
            weights: "model", or "ema" for the averaged weights; by default the latter where there are any.
            **settings: further arguments of `Predictor`.

        Raises: ValueError if the folder is no checkpoint, or knows no such dataset.
        """
        model, card = load_model(Path(folder), weights or best_weights(Path(folder)), device)
        if dataset is None:
            return cls(model, identity(card.class_names, card.thing_flags), **settings)
        if dataset not in card.datasets:
            known = ", ".join(sorted(card.datasets)) or "none"
            raise ValueError(f"{folder} has no classes of a dataset {dataset!r}; it knows: {known}")
        return cls(model, card.datasets[dataset], **settings)

    def __call__(self, frame: Tensor | np.ndarray, video: Hashable = 0) -> FrameResult:
        """Segment the next frame of a video, whose state is kept here under the name `video` until `forget`.

        Shape: (H, W, 3) uint8 RGB array, or (3, H, W) uint8 RGB tensor.
        Raises: ValueError on another shape or dtype, or if the size differs from that of the video's other frames.
        """
        (result,), (self._videos[video],) = self.step([frame], [self._videos.get(video)])
        return result

    def forget(self, video: Hashable = 0) -> None:
        """Drop the state of a video; its next frame will be a first one."""
        self._videos.pop(video, None)

    @torch.inference_mode()
    def step(
        self, frames: Sequence[Tensor | np.ndarray], states: Sequence[VideoState | None]
    ) -> tuple[list[FrameResult], list[VideoState]]:
        """Segment the next frames of several videos in one batch; all state is in the arguments and what is returned.

        Args:
            frames: one of each video, all of one size; see `__call__`.
            states: what the last call returned for each video, None at its start.

        Raises: ValueError as `__call__`.
        """
        images = torch.stack([_image(frame) for frame in frames]).to(self.device)
        size = (images.shape[2], images.shape[3])
        for state in states:
            if state and (known := tuple(state.tracker.size.tolist())) != size:
                raise ValueError(f"frame {int(state.tracker.frame)} is {size}, the video's frames are {known}")
        features = self.model.features(images)
        moves = self.tracking == "prev_offset" and any(states)
        maps = self.model.heads(features, self._previous(features, states) if moves else None, size)
        found = maps_of(maps)
        scores = found["semantic"] if self._sums is None else self.class_probabilities(found["semantic"])
        pixels = size[0] * size[1]
        panoptic = fuse(
            scores, found["center"].float(), found["offset"], self._thing, normalized=self._sums is not None,
            stuff_area=self.min_stuff * pixels, instance_area=self.min_instance * pixels, **self._fusion,
        )  # fmt: skip
        results, following = [], []
        for index, state in enumerate(states):
            image, tracks = panoptic.image(index), state.tracker if state else tracker.start(self.device)
            ids = image.instances
            offset = maps.prev_offset[index] if state and maps.prev_offset is not None else None
            if self.tracking == "none":
                tracks = tracks._replace(frame=tracks.frame + 1, size=tracks.size.new_tensor(size))
            else:
                ids, tracks = tracker.step(image, offset, tracks)
            results.append(self._result(image, ids))
            own = {name: value[index : index + 1] for name, value in features.items()} if len(states) > 1 else features
            following.append(VideoState(own, tracks))
        return results, following

    @torch.inference_mode()
    def recall(self, frame: Tensor | np.ndarray, tracks: TrackerState) -> VideoState:
        """Make a video's state again from its last frame and its tracks, by far the smallest part of it.

        Raises: ValueError on a frame that is none, or of another size than the tracks.
        """
        image = _image(frame).to(self.device)
        if (known := tuple(tracks.size.tolist())) != image.shape[1:]:
            raise ValueError(f"the frame is {tuple(image.shape[1:])}, the video's frames are {known}")
        return VideoState(self.model.features(image[None]), TrackerState(*(value.to(self.device) for value in tracks)))

    def class_probabilities(self, logits: Tensor) -> Tensor:
        """Add up the probabilities of the model's classes: (B, C, H, W) logits -> (B, K or K + 1, H, W) float32."""
        rows = max(1, _SCORES_AT_ONCE // (logits.shape[0] * logits.shape[1] * logits.shape[3]))
        sums = [torch.einsum("kc,bchw->bkhw", self._sums, part.float().softmax(1)) for part in logits.split(rows, 2)]
        found = torch.cat(sums, 2)
        return torch.cat([found, 1 - found.sum(1, keepdim=True)], 1) if self._background else found

    @staticmethod
    def _previous(features: Features, states: Sequence[VideoState | None]) -> Features:
        """The features of t-1; a video at its start lends its own, and what comes of them is not used."""
        return {
            name: torch.cat([state.features[name] if state else value[index : index + 1]
                             for index, state in enumerate(states)])
            for name, value in features.items()
        }  # fmt: skip

    def _result(self, panoptic: Panoptic, ids: Tensor) -> FrameResult:
        """List the segments: stuff in the order of the classes, then objects in that of their centres."""
        stuff = torch.where(panoptic.instances > 0, -1, panoptic.classes).flatten()
        areas = torch.bincount(stuff + 1, minlength=len(self.names) + 1)[1:].tolist()
        present = [index for index, area in enumerate(areas) if area]
        segments = [
            Segment(place, index, self.names[index], False, 0, None, areas[index], None)
            for place, index in enumerate(present, start=1)
        ]
        number = len(panoptic.scores)
        tracks = torch.zeros(number + 1, dtype=torch.int32, device=ids.device)
        tracks[panoptic.instances.flatten().long()] = ids.flatten()
        rows = (panoptic.instance_classes, tracks[1:], panoptic.scores, panoptic.areas, panoptic.boxes)
        for index, track, score, area, box in zip(*(row.tolist() for row in rows), strict=True):
            segments.append(Segment(len(segments) + 1, index, self.names[index], True, track, score, area, tuple(box)))
        place_of = torch.zeros(len(self.names) + 1, dtype=torch.int32, device=ids.device)
        place_of[[index + 1 for index in present]] = torch.arange(1, len(present) + 1, device=ids.device).int()
        objects = torch.where(panoptic.instances > 0, panoptic.instances + len(present), 0)
        places = objects + place_of.index_select(0, stuff + 1).view_as(objects)
        return FrameResult(places, tuple(segments), ids, panoptic.classes)


def _image(frame: Tensor | np.ndarray) -> Tensor:
    """Return a frame as a (3, H, W) uint8 tensor."""
    if isinstance(frame, np.ndarray):
        image, channels = torch.from_numpy(np.ascontiguousarray(frame)), -1
        expected = "(H, W, 3), as an array; (3, H, W) as a tensor"
    else:
        image, channels, expected = frame, 0, "(3, H, W), as a tensor; (H, W, 3) as an array"
    if image.dtype != torch.uint8:
        raise ValueError(f"the frame is {frame.dtype}; expected uint8 RGB")
    if image.ndim != 3 or image.shape[channels] != 3 or 0 in image.shape:
        raise ValueError(f"the frame is {tuple(image.shape)}; expected {expected}")
    return image.movedim(channels, 0)
