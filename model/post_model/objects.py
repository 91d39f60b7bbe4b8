"""Objects of a whole batch of label maps, found at once: no loop over samples or objects."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

VOID = 255
CROWD = 65535


@dataclass(frozen=True)
class Objects:
    """The N objects of B label maps, in ascending order of `key`, and the pixels that belong to them.

    Shape: key, sample (N,) int64; center (N, 2) float64; pixel, owner (P,) int64.
    Units: `key` = (sample x 256 + class) x 65536 + instance, so equal keys of two frames are the same object. `center`
        is the mean (y, x) of the mask. `pixel` indexes the flattened (B, H, W) maps, `owner` indexes the objects.
    """

    key: Tensor
    sample: Tensor
    center: Tensor
    pixel: Tensor
    owner: Tensor
    shape: tuple[int, int, int]

    def position(self) -> Tensor:
        """Return the (y, x) of each object pixel: (P, 2) int64."""
        _, height, width = self.shape
        return torch.stack([self.pixel // width % height, self.pixel % width], dim=1)


def find_objects(classes: Tensor, instances: Tensor, use: Tensor) -> Objects:
    """Find every (class, instance) with an identity in the samples where `use` is true.

    Void pixels and pixels without identity (0 or 65535) belong to no object.

    Shape: classes (B, H, W) uint8, instances (B, H, W) int32, use (B,) bool.
    """
    batch, height, width = classes.shape
    mask = (instances > 0) & (instances < CROWD) & (classes != VOID) & use[:, None, None]
    pixel = mask.flatten().nonzero().squeeze(1)
    sample = pixel // (height * width)
    keys = (sample * 256 + classes.flatten()[pixel]) * 65536 + instances.flatten()[pixel]
    # Neighbouring pixels mostly share their object: sorting runs instead of pixels is an order of magnitude cheaper.
    runs, run_of_pixel = torch.unique_consecutive(keys, return_inverse=True)
    key, object_of_run = torch.unique(runs, return_inverse=True)
    owner = object_of_run[run_of_pixel]
    # Integer sums are exact and independent of the order in which a GPU adds.
    sums = torch.zeros(3, len(key), dtype=torch.int64, device=classes.device)
    sums.index_add_(1, owner, torch.stack([pixel // width % height, pixel % width, torch.ones_like(pixel)]))
    center = (sums[:2].double() / sums[2].double()).T
    return Objects(key, key // (256 * 65536), center, pixel, owner, (batch, height, width))
