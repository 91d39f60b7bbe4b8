"""Heat map of object centres."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from post_model.batch import Batch
from post_model.branches import LossSettings
from post_model.decoder import Widths
from post_model.layers import ConvNorm, Norm, predictor
from post_model.objects import Objects
from post_model.taxonomy import LabelTables

DECODER = "instance"
SCALE = 1
WEIGHT = 200.0


class Head(nn.Sequential):
    """Two dense 3x3 convolutions and the predictor; dense also where everything else is separable."""

    def __init__(self, channels: int, num_classes: int, widths: Widths, depthwise: bool, norm: Norm) -> None:
        super().__init__(
            ConvNorm(channels, widths.center, 3, norm), ConvNorm(widths.center, widths.head, 3, norm),
            predictor(widths.head, 1),
        )  # fmt: skip


def loss(predicted: Tensor, batch: Batch, tables: LabelTables, settings: LossSettings) -> tuple[Tensor, Tensor]:
    """Sum the squared error of the heat map where the label is sure of it.

    Shape: predicted (B, 1, H, W) -> total and count (number of such pixels), float32 scalars.
    """
    heat = center_target(batch.objects, settings.sigma)
    weight = center_weight(batch, tables) * batch.weight[:, None, None]
    return ((predicted[:, 0].float() - heat).square() * weight).sum(), weight.sum()


def center_target(objects: Objects, sigma: float) -> Tensor:
    """Draw a Gaussian of height 1 at every object's centre; where they overlap the larger value counts.

    Shape: -> (B, H, W) float32.
    Units: sigma in pixels; cut off at 3 sigma + 1 pixels in y and in x.
    Source: Panoptic-DeepLab's target: the centre is the mask's mean, rounded half to even. Deviation: a crowd, which
        is not one object, makes no centre.
    """
    batch, height, width = objects.shape
    reach = torch.arange(-int(3 * sigma + 1), int(3 * sigma + 1) + 1, device=objects.key.device)
    bell = torch.exp(-(reach[:, None] ** 2 + reach**2) / (2 * sigma**2)).float()
    y = (objects.center[:, 0].round().long()[:, None] + reach)[:, :, None]
    x = (objects.center[:, 1].round().long()[:, None] + reach)[:, None, :]
    index = (objects.sample[:, None, None] * height + y) * width + x
    outside = (y < 0) | (y >= height) | (x < 0) | (x >= width)
    # What falls off the image goes to one extra cell.
    index = index.masked_fill(outside, batch * height * width).flatten()
    heat = torch.zeros(batch * height * width + 1, device=index.device)
    heat.scatter_reduce_(0, index, bell.expand(len(objects.key), -1, -1).flatten(), "amax")
    return heat[:-1].view(objects.shape)


def center_weight(batch: Batch, tables: LabelTables) -> Tensor:
    """Mark where the heat map is known: on objects, and where the label proves that no thing centre lies.

    Unknown: void, crowds, and a background that may hide things, even within a Gaussian that reaches into it.

    Shape: -> (B, H, W) bool.
    """
    objects = batch.objects
    negative = tables.negative[batch.dataset[objects.run_sample], objects.native]
    return objects.paint((negative & ~objects.crowd) | (objects.owner < len(objects.key)))
