"""Offset from every object pixel to its object's centre."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from post_model.batch import Batch
from post_model.branches import LossSettings
from post_model.decoder import Widths, fusion_conv
from post_model.layers import Norm, predictor
from post_model.objects import Objects
from post_model.taxonomy import LabelTables

DECODER = "instance"
SCALE = 4
WEIGHT = 0.01


class Head(nn.Sequential):
    """One separable or two dense convolutions, and the predictor of (dy, dx)."""

    def __init__(self, channels: int, num_classes: int, widths: Widths, depthwise: bool, norm: Norm) -> None:
        hidden = fusion_conv(channels, widths.head, widths, depthwise, norm, between=widths.center)
        super().__init__(hidden, predictor(widths.head, 2))


def loss(predicted: Tensor, batch: Batch, tables: LabelTables, settings: LossSettings) -> tuple[Tensor, Tensor]:
    """Sum |error| in y and x over the pixels that belong to an object.

    Shape: predicted (B, 2, H, W) -> total and count (number of such pixels), float32 scalars.
    """
    target, weight = offset_target(batch.objects)
    weight = weight * batch.weight[:, None, None]
    return ((predicted.float() - target).abs().sum(1) * weight).sum(), weight.sum()


def offset_target(objects: Objects) -> tuple[Tensor, Tensor]:
    """Aim every object pixel at the centre of its object.

    Shape: -> offset (B, 2, H, W) float32, weight (B, H, W) bool; both 0 outside objects.
    Units: pixels of the crop, (dy, dx), added to the pixel's own (y, x).
    """
    return aim(objects, objects.center, torch.ones_like(objects.key, dtype=torch.bool))


def aim(objects: Objects, goal: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Paint, on the objects where `known`, each pixel's offset to the `goal` of its object.

    Shape: goal (N, 2) float64, known (N,) bool -> offset (B, 2, H, W) float32, weight (B, H, W) bool.
    """
    batch, height, width = objects.shape
    offset = torch.empty(2, batch * height, width, device=goal.device)
    weight = torch.empty(batch * height, width, dtype=torch.bool, device=goal.device)
    # Differences are taken in float64, as the reference takes them. A run lies in one row.
    chosen = objects.of_runs(known, False)
    vertical = ((objects.of_runs(goal[:, 0], 0) - objects.y) * chosen).float()
    columns = torch.arange(width, dtype=torch.float64, device=goal.device)
    for rows, (down, center, inside) in objects.strips(vertical, objects.of_runs(goal[:, 1], 0), chosen):
        offset[0, rows], weight[rows] = down, inside
        torch.sub(center, columns, out=offset[1, rows])
        offset[1, rows].masked_fill_(~inside, 0)
    return offset.view(2, batch, height, width).transpose(0, 1), weight.view(batch, height, width)
