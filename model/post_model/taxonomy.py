"""What the labels of each dataset of a run allow, as tables indexed by (dataset, native class)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LabelTables:
    """Label facts of D datasets over the C classes of a model; the losses know nothing else of any dataset.

    Attributes:
        allowed: (D, 256, C) bool. Row (d, n): the set of model classes that a pixel of native class n may be. All true
            for void and for what the label does not restrict.
        thing: (D, 256) bool. Native class n of dataset d has instances.
        negative: (D, 256) bool. A pixel of native class n outside instances proves that no thing centre is there.
    """

    allowed: Tensor
    thing: Tensor
    negative: Tensor

    def to(self, device: torch.device | str) -> LabelTables:
        """Return the same tables on `device`."""
        return LabelTables(self.allowed.to(device), self.thing.to(device), self.negative.to(device))

    def informative(self) -> Tensor:
        """Return where a label restricts the class at all: (D, 256) bool. An empty set, a mistake, teaches nothing."""
        return self.allowed.any(-1) & ~self.allowed.all(-1)
