"""Offset from every object pixel of the previous frame to the object's centre in the current frame."""

from __future__ import annotations

import torch
from torch import Tensor

from post_model.batch import Batch
from post_model.branches import LossSettings
from post_model.branches.offset import Head, aim
from post_model.objects import Objects
from post_model.taxonomy import LabelTables

__all__ = ["DECODER", "SCALE", "Head", "loss", "motion_target"]

DECODER = "motion"
SCALE = 4
WEIGHT = 0.01


def loss(predicted: Tensor, batch: Batch, tables: LabelTables, settings: LossSettings) -> tuple[Tensor, Tensor]:
    """Sum |error| in y and x over the previous frame's pixels of objects that are in both frames.

    Shape: predicted (B, 2, H, W) -> total and count (number of such pixels), float32 scalars.
    """
    target, weight = motion_target(batch.objects, batch.prev_objects)
    weight = weight * batch.weight[:, None, None]
    return ((predicted.float() - target).abs().sum(1) * weight).sum(), weight.sum()


def motion_target(now: Objects, prev: Objects) -> tuple[Tensor, Tensor]:
    """Aim every pixel of an object in frame t-1 at that object's centre in frame t.

    An object is the same in both frames if its sample, class and instance are.

    Shape: -> offset (B, 2, H, W) float32, weight (B, H, W) bool; both 0 elsewhere.
    Units: pixels of the crop, (dy, dx), added to the pixel's own (y, x).
    Source: POST's previous-offset target. Deviation: the reference lets the *current* mask leak into the weight from
        the second object on; here only pixels of t-1 count.
    """
    partner = torch.searchsorted(now.key, prev.key)
    # One more key, equal to none, so that every place exists.
    stays = torch.cat([now.key, now.key.new_tensor([-1])])[partner] == prev.key
    goal = torch.cat([now.center, now.center.new_zeros(1, 2)])[partner]
    return aim(prev, goal, stays)
