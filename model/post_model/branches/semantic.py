"""Class of every pixel, learned from labels that may only restrict it to a set of classes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from post_model.batch import Batch
from post_model.branches import LossSettings
from post_model.decoder import Widths, fusion_conv
from post_model.layers import Norm, predictor
from post_model.objects import Objects
from post_model.taxonomy import LabelTables

DECODER = "semantic"
SCALE = 1
WEIGHT = 1.0
_SCORES_AT_ONCE = {"cpu": 1 << 20, "cuda": 1 << 25}  # float32 logits copied at a time: a CPU's fit a cache


class Head(nn.Sequential):
    """One fusion convolution and the class predictor."""

    def __init__(self, channels: int, num_classes: int, widths: Widths, depthwise: bool, norm: Norm) -> None:
        super().__init__(fusion_conv(channels, channels, widths, depthwise, norm), predictor(channels, num_classes))


def loss(predicted: Tensor, batch: Batch, tables: LabelTables, settings: LossSettings) -> tuple[Tensor, Tensor]:
    """Sum, over the hardest informative pixels of each sample, minus the log-probability of the label's set.

    A pixel whose set is everything (void) has no loss and is not counted. Pixels of small objects weigh more, also in
    being hard. Mining is per sample, so the result does not depend on which samples share a batch.

    Shape: predicted (B, C, H, W) logits -> total and count (number of pixels kept), float32 scalars.
    Source: Panoptic-DeepLab's weighted bootstrapped cross-entropy. Deviation: it mines over the batch of each rank.
    """
    values = set_loss(predicted, batch.classes, tables.allowed[batch.dataset])
    if settings.small_weight != 1:
        values = values * semantic_weight(batch.objects, settings.small_area, settings.small_weight)
    rows = torch.arange(len(values), device=values.device)[:, None, None]
    informative = tables.informative()[batch.dataset][rows, batch.classes.long()] & (batch.weight > 0)[:, None, None]
    keep = hardest(values.detach(), informative, settings.hard_fraction)
    weight = keep * batch.weight[:, None, None]
    return (values * weight).sum(), weight.sum()


def semantic_weight(objects: Objects, small_area: float, small_weight: float) -> Tensor:
    """Weigh the pixels of small objects, by their area in the crop; crowds of one class count as one.

    Shape: -> (B, H, W) float32.
    Units: an object is small below `small_area` pixels.
    Source: Panoptic-DeepLab (4096 pixels, weight 3).
    """
    small = (objects.segment_area > 0) & (objects.segment_area < small_area)
    return objects.paint(torch.where(small, small_weight, 1.0))


def set_loss(logits: Tensor, classes: Tensor, allowed: Tensor) -> Tensor:
    """Return logsumexp(z) - logsumexp(z[S]) of each pixel, in float32 whatever the logits are.

    S is the row of `allowed` that the pixel's class selects. An empty S gives 0, like a full one.

    Shape: logits (B, C, H, W), classes (B, H, W) uint8, allowed (B, 256, C) bool -> (B, H, W).
    """
    out: Tensor = _SetLoss.apply(logits, classes, allowed)
    return out


def hardest(values: Tensor, among: Tensor, fraction: float) -> Tensor:
    """Mark, in each sample, the ceil(fraction x n) largest of its n values in `among`; equals of the last one too.

    Shape: values (B, H, W) >= 0, among (B, H, W) bool -> (B, H, W) bool.
    """
    if fraction >= 1:
        return among
    candidates = values.masked_fill(~among, -1.0).flatten(1)
    wanted = (among.flatten(1).sum(1) * fraction).ceil().long()
    ranked = candidates.topk(math.ceil(candidates.shape[1] * fraction), dim=1).values
    least = ranked.gather(1, (wanted - 1).clamp(0, ranked.shape[1] - 1)[:, None])
    return among & (values >= least[:, :, None])


class _SetLoss(torch.autograd.Function):
    """Keeps two maps per sample instead of a second copy of the logits, and works through the batch piece by piece.

    The gradient is softmax(z) - softmax(z restricted to S), computed only for pixels that mining kept.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, classes: Tensor, allowed: Tensor) -> Tensor:
        total = torch.empty(classes.shape, dtype=torch.float32, device=logits.device)
        inside = torch.empty_like(total)
        for sample, piece in _pieces(logits):
            rows = _rows(logits[sample])[piece].float()
            outside = ~allowed[sample].index_select(0, classes[sample].view(-1)[piece].int())
            total[sample].view(-1)[piece] = rows.logsumexp(1)
            inside[sample].view(-1)[piece] = rows.masked_fill(outside, -torch.inf).logsumexp(1)
        ctx.save_for_backward(logits, classes, allowed, total, inside)
        return torch.where(inside == -torch.inf, 0.0, (total - inside).clamp_(min=0))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        logits, classes, allowed, total, inside = ctx.saved_tensors
        upstream = torch.where(inside == -torch.inf, 0.0, gradients[0])
        result = torch.zeros_like(logits)
        for sample, piece in _pieces(logits):
            kept = piece.start + upstream[sample].view(-1)[piece].nonzero().squeeze(1)
            rows = _rows(logits[sample]).index_select(0, kept).float()
            outside = ~allowed[sample].index_select(0, classes[sample].view(-1)[kept].int())
            within = (rows - inside[sample].view(-1)[kept, None]).exp_().masked_fill_(outside, 0.0)
            rows = (rows - total[sample].view(-1)[kept, None]).exp_().sub_(within)
            rows *= upstream[sample].view(-1)[kept, None]
            _rows(result[sample])[kept] = rows.to(result.dtype)
        return result, None, None


def _pieces(logits: Tensor) -> Iterator[tuple[int, slice]]:
    """Cut the pixels of each sample so that a float32 copy of a piece's logits stays small."""
    batch, channels, height, width = logits.shape
    size = max(1, _SCORES_AT_ONCE.get(logits.device.type, 1 << 25) // channels)
    for sample in range(batch):
        for start in range(0, height * width, size):
            yield sample, slice(start, min(start + size, height * width))


def _rows(z: Tensor) -> Tensor:
    """(C, H, W) -> (H x W, C), a view whatever the memory format."""
    return z.flatten(1).T
