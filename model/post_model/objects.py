"""Objects of a whole batch of label maps, found at once: no loop over samples or objects."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

VOID = 255
CROWD = 65535
_STRIP = 64  # rows


@dataclass(frozen=True)
class Objects:
    """The N objects of B label maps, in ascending order of `key`, and the R runs that the maps consist of.

    A run is a stretch of a row whose pixels have one class and one instance. There are hundreds of times fewer runs
    than pixels: what holds for all pixels of a run is computed once and then painted.

    Shape: key, sample, area (N,) int64; center (N, 2) float64; owner (R,) int64, N where the run belongs to no object;
        run_sample, y, native, segment_area, length (R,) int64; crowd (R,) bool.
    Units: `key` = (sample x 256 + class) x 65536 + instance, so equal keys of two frames are the same object. `center`
        is the mean (y, x) of the mask. `native` is the class of a run, `segment_area` the area of its object, or of all
        crowd of its class, 0 elsewhere.
    """

    key: Tensor
    sample: Tensor
    area: Tensor
    center: Tensor
    owner: Tensor
    run_sample: Tensor
    y: Tensor
    native: Tensor
    segment_area: Tensor
    crowd: Tensor
    length: Tensor
    shape: tuple[int, int, int]

    def paint(self, values: Tensor) -> Tensor:
        """Give every pixel the value of its run: (R,) -> (B, H, W)."""
        return _repeat(values, self.length, math.prod(self.shape)).view(self.shape)

    def strips(self, *values: Tensor) -> Iterator[tuple[slice, list[Tensor]]]:
        """`paint` some rows at a time: yields which of the B x H rows, and for each of `values` their (rows, W).

        On a CPU a strip fits a cache; what is computed from it costs no memory of the map's size.
        """
        batch, height, width = self.shape
        size = _STRIP if self.length.device.type == "cpu" else batch * height
        bounds = [*range(0, batch * height, size), batch * height]
        row = self.run_sample * height + self.y
        edges = torch.searchsorted(row, torch.tensor(bounds, device=row.device)).tolist()
        for (top, bottom), (first, last) in zip(pairwise(bounds), pairwise(edges), strict=True):
            part = [_repeat(v[first:last], self.length[first:last], (bottom - top) * width) for v in values]
            yield slice(top, bottom), [painted.view(-1, width) for painted in part]

    def of_runs(self, values: Tensor, other: float) -> Tensor:
        """Give every run the value of its object, or `other`: (N,) -> (R,)."""
        return torch.cat([values, values.new_tensor([other])])[self.owner]


def _repeat(values: Tensor, length: Tensor, total: int) -> Tensor:
    """`values.repeat_interleave(length)`, whose size is `total`."""
    if values.device.type == "cpu":
        # numpy fills a run as memset would, several times faster than any way of torch.
        return torch.from_numpy(np.repeat(values.numpy(), length.numpy()))
    return values.repeat_interleave(length, output_size=total)


def find_objects(classes: Tensor, instances: Tensor, use: Tensor) -> Objects:
    """Find every (class, instance) with an identity in the samples where `use` is true.

    Void pixels and pixels without identity (0 or 65535) belong to no object.

    Shape: classes (B, H, W) uint8, instances (B, H, W) int32, use (B,) bool.
    """
    batch, height, width = classes.shape
    flat_classes, flat_instances = classes.flatten(), instances.flatten()
    starts = torch.zeros(len(flat_classes), dtype=torch.bool, device=classes.device)
    torch.ne(flat_instances[1:], flat_instances[:-1], out=starts[1:])
    starts[1:] |= flat_classes[1:] != flat_classes[:-1]
    starts.view(-1, width)[:, 0] = True
    first = starts.nonzero().squeeze(1)
    length = torch.diff(first, append=first.new_tensor([len(starts)]))
    row = first // width
    sample, y, x = row // height, row % height, first - row * width

    native, instance = flat_classes[first].long(), flat_instances[first].long()
    segment = (instance > 0) & (native != VOID) & use[sample]
    # Runs of no segment share the largest key, so they come last.
    keys = torch.where(segment, (sample * 256 + native) * (CROWD + 1) + instance, batch * 256 * (CROWD + 1))
    key, segment_of = torch.unique(keys, return_inverse=True)
    # Integer sums are exact and independent of the order in which a GPU adds.
    sums = torch.zeros(3, len(key), dtype=torch.int64, device=classes.device)
    twice_x = length * (2 * x + length - 1)  # twice the sum of a run's columns
    sums.index_add_(1, segment_of, torch.stack([length, length * y, twice_x]))
    crowd = key % (CROWD + 1) == CROWD
    real = (key < batch * 256 * (CROWD + 1)) & ~crowd
    number = torch.where(real, real.cumsum(0) - 1, real.sum())
    area = sums[0, real]
    center = torch.stack([sums[1, real] / area.double(), sums[2, real] / (2 * area.double())], 1)
    return Objects(
        key=key[real], sample=key[real] // (256 * (CROWD + 1)), area=area, center=center, owner=number[segment_of],
        run_sample=sample, y=y, native=native, segment_area=sums[0, segment_of] * segment, crowd=crowd[segment_of],
        length=length, shape=(batch, height, width),
    )  # fmt: skip
