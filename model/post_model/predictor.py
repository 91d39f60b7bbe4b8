"""Predictor: a video goes in frame by frame, classes and tracks come out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from post_model.backbone import Features
from post_model.fusion import Panoptic, fuse
from post_model.network import Post, maps_of
from post_model.tracker import TrackerState, track

Tracking = Literal["prev_offset", "iou", "none"]
MIN_STUFF = 2048 / (1024 * 2048)  # Panoptic-DeepLab's 2048 pixels of a Cityscapes image, at any resolution
MIN_SCORE = 0.3
_SCORES_AT_ONCE = 1 << 24  # float32 class probabilities held in memory at a time


@dataclass(frozen=True)
class FrameResult:
    """What is seen in one frame.

    Attributes:
        classes: (H, W) int64 index into the predictor's K classes; K = background where it has one; -1 void.
        tracks: (H, W) int32 track id, 0 = no object. Without tracking, the instance within the frame.
        scores: confidence of each track in this frame, by id.
        track_classes: class index of each track, by id.
    """

    classes: Tensor
    tracks: Tensor
    scores: dict[int, float]
    track_classes: dict[int, int]


@dataclass(frozen=True)
class VideoState:
    """What is kept between two frames of a video: the features of the last one, and the tracks."""

    features: Features
    tracker: TrackerState = field(default_factory=TrackerState)


class Predictor:
    """Runs a network over videos, each with its own state; every frame is encoded once.

    The probabilities of the model's classes are added up to those of a dataset's before anything is decided: class k
    gets the sum over `projection[k]`, and the background what is left of 1.

    Args:
        model: the network; put in evaluation mode.
        projection: (K, C) bool, disjoint rows: model classes that make up each of the K classes.
        thing: (K,) bool.
        background: whether there is a further class K, stuff, of all that is none of the K.
        tracking: how identities are kept: "prev_offset", "iou" (the baseline), or "none".
        min_stuff: smallest area of a stuff class, as a fraction of the image; what is smaller is void.
        min_instance: smallest area of an instance, as a fraction of the image.
        min_score: lowest score of an instance. An average precision, which wants every guess, is better off with 0.
        fill_void: whether void gets the likeliest stuff class instead, for scores that count void as a mistake.
        **fusion: further settings of `fuse`, the same for every dataset.

    Raises: ValueError if shapes disagree, or motion tracking is asked of a network without that branch.
    """

    def __init__(
        self,
        model: Post,
        projection: Tensor,
        thing: Tensor,
        background: bool = False,
        tracking: Tracking = "prev_offset",
        min_stuff: float = MIN_STUFF,
        min_instance: float = 0.0,
        min_score: float = MIN_SCORE,
        fill_void: bool = False,
        **fusion: Any,
    ) -> None:
        num_classes, names = model.arguments["num_classes"], model.arguments["branches"]
        if projection.shape != (len(thing), num_classes):
            raise ValueError(f"projection is {tuple(projection.shape)}, expected {(len(thing), num_classes)}")
        if tracking not in get_args(Tracking):
            raise ValueError(f"unknown tracking {tracking!r}; expected one of {', '.join(get_args(Tracking))}")
        needed = {"semantic", "center", "offset"} | ({tracking} & {"prev_offset"})
        if needed - set(names):
            raise ValueError(f"the network lacks the branch {', '.join(sorted(needed - set(names)))}")
        device = next(model.parameters()).device
        self.model = model.eval()
        self.projection = projection.to(device).float()
        self.background = background
        self.thing = torch.cat([thing, thing.new_zeros(int(background))]).to(device).bool()
        self.tracking = tracking
        self.min_stuff, self.min_instance = min_stuff, min_instance
        self.fusion = {"min_score": min_score, "fill_void": fill_void, **fusion}

    @torch.inference_mode()
    def step(self, image: Tensor, state: VideoState | None = None) -> tuple[FrameResult, VideoState]:
        """Segment the next frame of a video; `state` is what the last call returned, None at the start.

        Shape: image (3, H, W) uint8 RGB.
        """
        image = image.to(self.thing.device)
        size = (image.shape[-2], image.shape[-1])
        features = self.model.features(image[None])
        motion = state is not None and self.tracking == "prev_offset"
        predicted = self.model.heads(features, state.features if state and motion else None, size)
        maps = maps_of(predicted)
        scores = self.class_scores(maps["semantic"][0])
        panoptic = fuse(
            scores, maps["center"][0].float(), maps["offset"][0], self.thing,
            stuff_area=self.min_stuff * size[0] * size[1], instance_area=self.min_instance * size[0] * size[1],
            **self.fusion,
        )  # fmt: skip
        tracker = state.tracker if state else TrackerState()
        ids = panoptic.instances
        if self.tracking != "none":
            prev_offset = None if predicted.prev_offset is None else predicted.prev_offset[0]
            ids, tracker = track(panoptic, prev_offset, tracker)
        return _result(panoptic, ids), VideoState(features, tracker)

    def class_scores(self, logits: Tensor) -> Tensor:
        """Return the probability of each class, the background last: (C, H, W) logits -> (K or K + 1, H, W) float32."""
        rows = max(1, _SCORES_AT_ONCE // (logits.shape[0] * logits.shape[2]))
        parts = [
            torch.einsum("kc,chw->khw", self.projection, part.float().softmax(0)) for part in logits.split(rows, 1)
        ]
        scores = torch.cat(parts, dim=1)
        return torch.cat([scores, 1 - scores.sum(0, keepdim=True)]) if self.background else scores


def _result(panoptic: Panoptic, ids: Tensor) -> FrameResult:
    number = len(panoptic.scores)
    id_of = torch.zeros(number + 1, dtype=torch.int32, device=ids.device)
    id_of[panoptic.instances.flatten().long()] = ids.flatten()
    names = id_of[1:].tolist()
    return FrameResult(
        panoptic.classes,
        ids,
        dict(zip(names, panoptic.scores.tolist(), strict=True)),
        dict(zip(names, panoptic.instance_classes.tolist(), strict=True)),
    )
