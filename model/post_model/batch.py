"""What one training step consumes: integer label maps and images of a batch of frame pairs."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property

import torch
from torch import Tensor

from post_model.objects import Objects, find_objects


@dataclass(frozen=True)
class Batch:
    """A batch of frame pairs (now, prev) with the labels of both frames, as integers.

    Targets are made from these maps on the device that holds them. An object is the pair (class, instance): the
    number in `instances` alone does not identify it.

    Shape: images (B, 3, H, W) uint8 RGB; classes (B, H, W) uint8; instances (B, H, W) int32; dataset (B,) int64;
        weight (B,) float32.
    Units: classes are native ids of the sample's dataset, 255 = void. Instances: 0 none, 65535 a thing pixel without
        identity, else 1..65534. A pair without motion supervision has `prev_instances` all 0. A row of weight 0 is
        padding and contributes to nothing.
    """

    image: Tensor
    prev_image: Tensor
    classes: Tensor
    instances: Tensor
    prev_classes: Tensor
    prev_instances: Tensor
    dataset: Tensor
    weight: Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Return the same batch with every tensor on `device`."""
        return Batch(*(getattr(self, field.name).to(device, non_blocking=non_blocking) for field in fields(self)))

    @cached_property
    def objects(self) -> Objects:
        """Objects of the current frames of rows that count; found once, read by several branches."""
        return find_objects(self.classes, self.instances, self.weight > 0)

    @cached_property
    def prev_objects(self) -> Objects:
        """Objects of the previous frames of rows that count."""
        return find_objects(self.prev_classes, self.prev_instances, self.weight > 0)
