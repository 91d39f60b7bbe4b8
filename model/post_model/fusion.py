"""Fusion: class scores, centre heat map and offsets become panoptic maps. Stateless, no loop over objects."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_STRIP = 64  # rows
_PAIRS_AT_ONCE = 1 << 18  # pixel-centre distances, or pixel-class scores, held in memory at a time


class Panoptic(NamedTuple):
    """Segmented images. Instances are numbered 1.. in row-major order of their centres; each owns a pixel.

    Shape: classes (B, H, W) int32, -1 = void; instances (B, H, W) int32, 0 = none; number (B,) int64 of instances;
        centers (B, N, 2) int64 (y, x); instance_classes, areas (B, N) int64; boxes (B, N, 4) int64 (y0, x0, y1, x1),
        the ends exclusive; scores (B, N) float32. Rows from `number` on are padding: -1, and 0 for areas and scores.
    """

    classes: Tensor
    instances: Tensor
    number: Tensor
    centers: Tensor
    instance_classes: Tensor
    areas: Tensor
    boxes: Tensor
    scores: Tensor

    def image(self, index: int) -> Panoptic:
        """Return one image of the batch: no batch dimension, and no padding."""
        maps = (self.classes[index], self.instances[index], self.number[index])
        return Panoptic(*maps, *(rows[index, : int(self.number[index])] for rows in self[3:]))


def fuse(
    scores: Tensor,
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
    normalized: bool = False,
    merge_plateaus: bool = False,
) -> Panoptic:
    """Give every pixel a class and every thing pixel an instance.

    A thing pixel belongs to the centre nearest to where its offset points (the first in row-major order of equals), an
    instance has the class of most of its pixels (the smallest of equals), and a stuff class of fewer than `stuff_area`
    pixels is void, as is an instance of fewer than `instance_area` pixels or a score below `min_score` (splinters lie
    far from their centre, where there is no heat), and a thing pixel where there is no centre. With `fill_void` such
    pixels get the likeliest of the stuff classes that stay. An instance scores the mean probability of its class over
    its mask times the heat at the mask's (truncated) mean. Of equal scores the first class wins.

    Shape: scores (B, K, H, W), logits of the classes, or with `normalized` their probabilities (which may sum to less
        than 1); center (B, 1, H, W); offset (B, 2, H, W); thing (K,) bool.
    Units: offset in pixels, (dy, dx); `threshold` is exclusive; areas in pixels (a `stuff_area` of 2048 suits
        1024x2048).
    Raises: ValueError on an even kernel.
    Source: Panoptic-DeepLab's post-processing. Deviations: those of `find_centers`; instances are numbered over all
        classes, and centres without pixels are not counted.
    """
    batch, num_classes, height, width = scores.shape
    centers, number = find_centers(center, threshold, nms_kernel, top_k, merge_plateaus)
    slots = centers.shape[1]
    # A strip of rows fits a CPU's cache.
    strips = scores.split(_STRIP if scores.device.type == "cpu" and not torch.compiler.is_compiling() else height, 2)
    classes = torch.cat([first_argmax(strip) for strip in strips], 1)
    possible = thing.index_select(0, classes.flatten()).view(batch, -1) & (number > 0)[:, None]
    pixel = possible.flatten().nonzero().squeeze(1)
    sample, position = _divide(pixel, height * width)
    y, x = _divide(position, width)
    slot = sample * slots + _owners(sample, y, x, offset, centers, number)

    votes = _count(slot * num_classes + classes.flatten()[pixel], batch * slots * num_classes)
    votes = votes.view(batch, slots, num_classes)
    instance_classes, areas = first_argmax(votes, 2).long(), votes.sum(2)
    rows = _count(slot * height + y, batch * slots * height).view(batch, slots, height)
    columns = _count(slot * width + x, batch * slots * width).view(batch, slots, width)

    own = scores.flatten(2)[sample, instance_classes.flatten()[slot], position].float()
    if not normalized:
        own = (own - _logsumexp(sample, position, scores)).exp()
    certainty = torch.zeros(batch * slots, dtype=torch.float64, device=scores.device)
    certainty = certainty.index_add_(0, slot, own.double()).view(batch, slots) / areas.clamp(min=1)
    middle = (_total(rows) // areas.clamp(min=1)) * width + _total(columns) // areas.clamp(min=1)
    score = (certainty * center.flatten(1).gather(1, middle)).float()

    keep = (areas >= max(1, instance_area)) & (score >= min_score)
    ids = keep.cumsum(1) * keep  # the new number of each slot, 0 if it goes
    own_id = ids.flatten()[slot]
    instances = torch.zeros(batch * height * width, dtype=torch.int32, device=scores.device)
    instances[pixel] = own_id.int()
    result = _stuff(classes, thing, stuff_area)
    if fill_void:
        taken = torch.zeros_like(instances, dtype=torch.bool)
        taken[pixel] = own_id > 0
        result = _fill(result, taken, scores, thing)
    result = result.flatten()
    result[pixel] = torch.where(own_id > 0, instance_classes.flatten()[slot].int(), result[pixel])
    boxes = torch.stack([*_extent(rows), *_extent(columns)], 2)[:, :, [0, 2, 1, 3]]
    tables = [_compact(table, ids, empty) for table, empty in
              ((centers, -1), (instance_classes, -1), (areas, 0), (boxes, -1), (score, 0))]  # fmt: skip
    return Panoptic(result.view_as(classes), instances.view_as(classes), keep.sum(1), *tables)


def find_centers(
    center: Tensor, threshold: float, nms_kernel: int, top_k: int, merge_plateaus: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the peaks of heat maps, in row-major order: equal to the maximum of their window and above `threshold`.

    Every pixel of a plateau is a peak, which cuts one object into as many; with `merge_plateaus` only the first of the
    equal peaks of a window counts. In float32 that hardly ever happens, in bfloat16 at almost every object.

    Shape: (B, 1, H, W) -> (B, N, 2) int64 (y, x), and (B,) int64 how many rows count; the others are 0. N <= top_k.
    Raises: ValueError on an even kernel.
    Source: Panoptic-DeepLab. Deviation: of more than `top_k` peaks we keep exactly the `top_k` highest, first ones
        first; the reference keeps those strictly above the k-th (none if all are equal), and fails on an image of
        fewer than `top_k` pixels.
    """
    if nms_kernel % 2 == 0:
        raise ValueError(f"nms_kernel must be odd, got {nms_kernel}")
    batch, _, height, width = center.shape
    peaks = (center == _window_max(center, nms_kernel)) & (center > threshold)
    if merge_plateaus:
        order = torch.arange(height * width, 0, -1, device=center.device).view(height, width) * peaks
        peaks &= order == _window_max(order, nms_kernel)
    peak = peaks.flatten().nonzero().squeeze(1)
    sample, position = _divide(peak, height * width)
    # The rank of each peak in its image: sorted by image, within it by heat, within that by position.
    order = center.flatten()[peak].argsort(descending=True, stable=True)
    order = order[sample[order].argsort(stable=True)]
    place = torch.arange(peak.shape[0], device=peak.device)
    rank = torch.empty_like(place).scatter_(0, order, place) - _first_of_each(sample, batch)[sample]
    sample, position = sample[rank < top_k], position[rank < top_k]
    number = _count(sample, batch)
    slots = top_k if torch.compiler.is_compiling() else int(number.max())
    row = torch.arange(sample.shape[0], device=peak.device) - _first_of_each(sample, batch)[sample]
    centers = torch.zeros(batch, slots, 2, dtype=torch.int64, device=peak.device)
    centers[sample, row] = torch.stack([*_divide(position, width)], 1)
    return centers, number


def first_argmax(values: Tensor, dim: int = 1) -> Tensor:
    """Return `values.argmax(dim)`, the first of equals, as int32; on a CPU several times faster than that."""
    size = values.shape[dim]
    shape = [1] * values.ndim
    shape[dim] = size
    highest = values == values.amax(dim, keepdim=True)
    rank = highest.view(torch.uint8) if size < 256 else highest.short()
    rank *= torch.arange(size, 0, -1, dtype=rank.dtype, device=values.device).view(shape)
    return (size - rank.amax(dim).int()).clamp_(max=size - 1)  # in a row of NaN nothing is highest


def aimed_at(y: Tensor, x: Tensor, offset: Tensor) -> Tensor:
    """Return where the offsets of some pixels point: (2, P) float32 (y, x).

    Shape: y, x (P,) int64, offset (2, H, W).
    """
    return torch.stack([y, x]) + offset[:, y, x].float()


def nearest_center(target: Tensor, centers: Tensor) -> Tensor:
    """Return the index of the centre nearest to each target; the first of equally near ones.

    Memory does not grow with the product of the numbers.

    Shape: target (2, P) float32, centers (N, 2), N >= 1 -> (P,) int64.
    """
    parts = target.split(_chunk(len(centers)), 1)
    return torch.cat([first_argmin_distance(part, centers) for part in parts]).long()


def first_argmin_distance(target: Tensor, centers: Tensor, last: Tensor | None = None) -> Tensor:
    """`nearest_center` of targets that are few enough, also for a batch; only the centres before `last` count.

    Shape: target (..., 2, P), centers (..., N, 2), last (...) -> (..., P) int32.
    """
    y, x = centers.float().unbind(-1)
    distance = (target[..., None, 0, :] - y[..., None]).square_()
    distance += (target[..., None, 1, :] - x[..., None]).square_()
    if last is not None:
        late = torch.arange(centers.shape[-2], device=last.device) >= last[..., None]
        distance.masked_fill_(late[..., None], torch.inf)
    return first_argmax(distance.neg_(), -2)


def _owners(sample: Tensor, y: Tensor, x: Tensor, offset: Tensor, centers: Tensor, number: Tensor) -> Tensor:
    """The centre that each thing pixel belongs to: (P,) int64, an index of its image's centers."""
    batch, _, height, width = offset.shape
    if torch.compiler.is_compiling():
        # A traced graph cannot loop as often as there are pixels: strips of rows instead, of thing and stuff alike.
        place = torch.arange(height * width, device=y.device)
        target = torch.stack([*_divide(place, width)]) + offset.flatten(2).float()
        strips = target.split(_strip(centers.shape[1], width), 2)
        owners = torch.cat([first_argmin_distance(part, centers, number) for part in strips], 1)
        return owners.flatten()[(sample * height + y) * width + x].long()
    sizes = _count(sample, batch).tolist()
    parts = [
        nearest_center(aimed_at(rows, columns, offset[index]), centers[index, : int(number[index])])
        for index, (rows, columns) in enumerate(zip(y.split(sizes), x.split(sizes), strict=True)) if len(rows)
    ]  # fmt: skip
    return torch.cat([y[:0], *parts])


def _logsumexp(sample: Tensor, position: Tensor, scores: Tensor) -> Tensor:
    """The logsumexp of the scores of some pixels over the classes: (P,) float32."""
    batch, num_classes, height, width = scores.shape
    if torch.compiler.is_compiling():
        strips = scores.flatten(2).split(_strip(num_classes, width), 2)
        dense = torch.cat([part.float().logsumexp(1) for part in strips], 1)
        return dense.flatten()[sample * (height * width) + position]
    norms = [scores.new_empty(0, dtype=torch.float32)]
    for own, places in zip(scores.flatten(2).unbind(), position.split(_count(sample, batch).tolist()), strict=True):
        for part in places.split(_chunk(num_classes)):
            chosen = own[:, part].float()
            highest = chosen.amax(0)
            norms.append(chosen.sub_(highest).exp_().sum(0).log_().add_(highest))
    return torch.cat(norms)


def _chunk(values: int) -> int:
    """How many pixels to treat at once, with so many values for each."""
    return max(1, _PAIRS_AT_ONCE // max(1, values))


def _strip(values: int, width: int) -> int:
    """How many pixels of whole rows to treat at once in a traced graph; there, few operations count."""
    return max(1, _chunk(values) * 16 // width) * width


def _divide(index: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Quotient and remainder, by one division."""
    quotient = index // size
    return quotient, index - quotient * size


def _window_max(values: Tensor, kernel: int) -> Tensor:
    """The maximum of the kernel x kernel window around each pixel, like max_pool2d for a fraction of its cost.

    Windows of 1, 2, 4, ... are joined until they span the kernel, first along rows, then along columns.
    """
    for dim in (-1, -2):
        pad = [kernel // 2, kernel // 2] if dim == -1 else [0, 0, kernel // 2, kernel // 2]
        values = F.pad(values, pad, value=-torch.inf if values.is_floating_point() else -1)
        span = 1
        while span < kernel:
            step = min(span, kernel - span)
            length = values.shape[dim] - step
            values = torch.maximum(values.narrow(dim, 0, length), values.narrow(dim, step, length))
            span += step
    return values


def _count(index: Tensor, size: int) -> Tensor:
    """How often each of 0..size-1 occurs (a bincount whose size does not depend on the data)."""
    return torch.zeros(size, dtype=torch.int64, device=index.device).scatter_add_(0, index, torch.ones_like(index))


def _first_of_each(sample: Tensor, batch: int) -> Tensor:
    """Where each image's entries begin in a list ordered by image: (batch,)."""
    count = _count(sample, batch)
    return count.cumsum(0) - count


def _total(counts: Tensor) -> Tensor:
    """The sum of the places of all that was counted: (..., S) -> (...)."""
    return (counts * torch.arange(counts.shape[-1], device=counts.device)).sum(-1)


def _extent(counts: Tensor) -> tuple[Tensor, Tensor]:
    """The first place where something was counted and the one after the last: (..., S) -> two (...)."""
    seen = counts > 0
    size = counts.shape[-1]
    return first_argmax(seen.byte(), -1).long(), size - first_argmax(seen.flip(-1).byte(), -1).long()


def _compact(table: Tensor, ids: Tensor, empty: int) -> Tensor:
    """Move row j of each image to place ids[j] - 1 and drop those of id 0: (B, N, ...) -> the same shape."""
    batch, slots = ids.shape
    out = table.new_full((batch, slots + 1, *table.shape[2:]), empty)
    place = torch.where(ids > 0, ids - 1, slots)
    index = place.view(batch, slots, *[1] * (table.ndim - 2)).expand_as(table)
    return out.scatter_(1, index, table)[:, :slots]


def _stuff(classes: Tensor, thing: Tensor, stuff_area: float) -> Tensor:
    """Make things and stuff of a small area void (-1): (B, H, W) int32."""
    batch, num_classes = classes.shape[0], len(thing)
    key = classes.flatten(1) + torch.arange(batch, device=classes.device, dtype=torch.int32)[:, None] * num_classes
    areas = _count(key.flatten().long(), batch * num_classes).view(batch, num_classes)
    names = torch.arange(num_classes, dtype=torch.int32, device=classes.device)
    stays = torch.where(~thing & (areas >= stuff_area), names, -1)
    return stays.flatten().index_select(0, key.flatten()).view_as(classes)


def _fill(classes: Tensor, taken: Tensor, scores: Tensor, thing: Tensor) -> Tensor:
    """Give void pixels the likeliest stuff class of those in the image (of all stuff, if none is)."""
    batch, num_classes, height, width = scores.shape
    flat = classes.flatten()
    void = ((flat < 0) & ~taken).nonzero().squeeze(1)
    sample = torch.arange(batch, device=flat.device).repeat_interleave(height * width)
    present = _count(sample * (num_classes + 1) + flat + 1, batch * (num_classes + 1))
    present = present.view(batch, num_classes + 1)[:, 1:] > 0
    usable = torch.where(present.any(1, keepdim=True), present, ~thing)
    allowed = usable[sample[void]]
    candidates = scores.flatten(2)[sample[void], :, void % (height * width)].masked_fill(~allowed, -torch.inf)
    filled = torch.where(allowed.any(1), first_argmax(candidates, 1), -1)
    return flat.scatter(0, void, filled).view_as(classes)
