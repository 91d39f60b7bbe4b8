"""Fusion: class scores, centre heat map and offsets become one panoptic map. Stateless, no loop over objects."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_PAIRS_AT_ONCE = 1 << 22  # pixel-centre distances held in memory at a time


class Panoptic(NamedTuple):
    """One segmented frame. Instances are numbered 1..N in row-major order of their centres; each owns a pixel.

    Shape: classes (H, W) int64, -1 = void; instances (H, W) int32, 0 = none; centers (N, 2) int64 (y, x);
        scores (N,) float32; instance_classes (N,) int64.
    """

    classes: Tensor
    instances: Tensor
    centers: Tensor
    scores: Tensor
    instance_classes: Tensor


def fuse(
    class_scores: Tensor,
    center: Tensor,
    offset: Tensor,
    thing: Tensor,
    *,
    threshold: float = 0.1,
    nms_kernel: int = 7,
    top_k: int = 200,
    stuff_area: float = 0,
    instance_area: float = 0,
    min_score: float = 0,
    fill_void: bool = False,
) -> Panoptic:
    """Give every pixel a class and every thing pixel an instance.

    A thing pixel belongs to the centre nearest to where its offset points (the first in row-major order of equals), an
    instance has the class of most of its pixels (the smallest of equals), and a stuff class of fewer than `stuff_area`
    pixels is void, as is an instance of fewer than `instance_area` pixels or a score below `min_score` (splinters lie
    far from their centre, where there is no heat), and a thing pixel when there is no centre. With `fill_void` such
    pixels get the likeliest of the stuff classes that stay. An instance scores the mean of its class
    over its mask times the heat at the mask's (truncated) mean.

    Shape: class_scores (K, H, W), center (1, H, W), offset (2, H, W), thing (K,) bool.
    Units: offset in pixels, (dy, dx); `threshold` is exclusive; areas in pixels (a `stuff_area` of 2048 suits
        1024x2048).
    Source: Panoptic-DeepLab's post-processing. Deviations: `find_centers`; instances are numbered over all classes, and
        centres without pixels are not counted.
    """
    centers = find_centers(center, threshold, nms_kernel, top_k)
    classes = class_scores.argmax(0)
    pixel = thing[classes].flatten().nonzero().squeeze(1)
    if len(centers) == 0:
        pixel, owner = pixel[:0], pixel[:0]
    else:
        owner = nearest_center(aimed_at(pixel, offset), centers)
    votes = torch.bincount(
        owner * len(thing) + classes.flatten()[pixel], minlength=len(centers) * len(thing)
    ).view(len(centers), len(thing))  # fmt: skip
    centers, votes, pixel, owner = _keep(votes.sum(1) >= max(1, instance_area), centers, votes, pixel, owner)
    scores = _scores(class_scores, center, pixel, owner, votes.argmax(1))
    sure = scores >= min_score
    centers, votes, pixel, owner = _keep(sure, centers, votes, pixel, owner)
    scores, instance_classes = scores[sure], votes.argmax(1)
    instances = torch.zeros(classes.numel(), dtype=torch.int32, device=classes.device)
    instances[pixel] = (owner + 1).int()
    result = _drop_small_stuff(classes, thing, stuff_area)
    if fill_void:
        result = _fill(result, class_scores, thing)
    result = result.flatten()
    result[pixel] = instance_classes[owner]
    return Panoptic(result.view_as(classes), instances.view_as(classes), centers, scores, instance_classes)


def find_centers(center: Tensor, threshold: float, nms_kernel: int, top_k: int) -> Tensor:
    """Return the peaks of a heat map, in row-major order: equal to the maximum of their window and above `threshold`.

    Shape: (1, H, W) -> (N, 2) int64 (y, x), N <= top_k.
    Raises: ValueError on an even kernel.
    Source: Panoptic-DeepLab; a plateau yields all its pixels. Deviation: of more than `top_k` peaks we keep exactly the
        `top_k` highest, first ones first; the reference keeps those strictly above the k-th (none if all are equal).
    """
    if nms_kernel % 2 == 0:
        raise ValueError(f"nms_kernel must be odd, got {nms_kernel}")
    highest = F.max_pool2d(center[None], nms_kernel, stride=1, padding=nms_kernel // 2)[0]
    heat = center.flatten()
    peak = ((center == highest) & (center > threshold)).flatten().nonzero().squeeze(1)
    if len(peak) > top_k:
        peak = peak[heat[peak].argsort(descending=True, stable=True)[:top_k].sort().values]
    return torch.stack([peak // center.shape[-1], peak % center.shape[-1]], dim=1)


def aimed_at(pixel: Tensor, offset: Tensor) -> Tensor:
    """Return where the offsets of some pixels point: (P, 2) float32 (y, x).

    Shape: pixel (P,) int64 into the flattened map, offset (2, H, W).
    """
    position = torch.stack([pixel // offset.shape[-1], pixel % offset.shape[-1]])
    return (position + offset.flatten(1)[:, pixel].float()).T


def nearest_center(target: Tensor, centers: Tensor) -> Tensor:
    """Return the index of the centre nearest to each target; the first of equally near ones.

    Memory does not grow with the product of the numbers.

    Shape: target (P, 2) float32, centers (N, 2), N >= 1 -> (P,) int64.
    """
    y, x = centers[:, 0].float(), centers[:, 1].float()
    return torch.cat(
        [
            ((part[:, :1] - y).square_() + (part[:, 1:] - x).square_()).argmin(1)
            for part in target.split(max(1, _PAIRS_AT_ONCE // len(centers)))
        ]
    )


def _drop_small_stuff(classes: Tensor, thing: Tensor, stuff_area: float) -> Tensor:
    """Make things and small stuff void (-1)."""
    areas = torch.bincount(classes.flatten(), minlength=len(thing))
    return torch.where((~thing & (areas >= stuff_area))[classes], classes, -1)


def _keep(
    keep: Tensor, centers: Tensor, votes: Tensor, pixel: Tensor, owner: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Drop centres with the pixels that they own, and number the others anew."""
    stays = keep[owner]
    return centers[keep], votes[keep], pixel[stays], (keep.cumsum(0) - 1)[owner[stays]]


def _fill(classes: Tensor, class_scores: Tensor, thing: Tensor) -> Tensor:
    """Give void pixels the likeliest stuff class of those that are in the map (of all stuff, if none is)."""
    stuff = ~thing
    present = torch.bincount(classes.flatten() + 1, minlength=len(thing) + 1)[1:] > 0
    usable = present if present.any() else stuff
    if not usable.any():
        return classes
    names = usable.nonzero().squeeze(1)
    return torch.where(classes < 0, names[class_scores[names].argmax(0)], classes)


def _scores(class_scores: Tensor, center: Tensor, pixel: Tensor, owner: Tensor, instance_classes: Tensor) -> Tensor:
    number, width = len(instance_classes), center.shape[-1]
    own_score = class_scores.flatten(1)[instance_classes[owner], pixel]
    ones = torch.ones_like(pixel)
    sums = torch.zeros(3, number, dtype=torch.int64, device=pixel.device)
    sums.index_add_(1, owner, torch.stack([pixel // width, pixel % width, ones]))
    middle = sums[:2] // sums[2]
    total = torch.zeros(number, dtype=torch.float64, device=pixel.device).index_add_(0, owner, own_score.double())
    return (total / sums[2] * center[0, middle[0], middle[1]]).float()
