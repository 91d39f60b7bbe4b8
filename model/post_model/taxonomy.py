"""What the labels of each dataset of a run allow, and what a model's classes are called in a dataset."""

from __future__ import annotations

from collections.abc import Sequence
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


@dataclass(frozen=True)
class Projection:
    """The K classes to answer in, each the sum of some of the model's C classes; disjoint.

    Attributes:
        names: of the classes.
        things: whether each has instances.
        members: the model's classes that make up each one, possibly none.
        background: whether there is one more class, stuff, of all that is none of the K.
        fill_void: whether the dataset's score counts void in a prediction as a mistake.
    """

    names: tuple[str, ...]
    things: tuple[bool, ...]
    members: tuple[tuple[int, ...], ...]
    background: bool = False
    fill_void: bool = False

    def __post_init__(self) -> None:
        """Check that the classes are disjoint.

        Raises: ValueError if not, or if there is not one flag and one set to each name.
        """
        if not len(self.names) == len(self.things) == len(self.members):
            counts = f"{len(self.names)} names, {len(self.things)} thing flags and {len(self.members)} sets"
            raise ValueError(f"a projection needs one of each: got {counts}")
        used = [index for row in self.members for index in row]
        if len(used) != len(set(used)):
            raise ValueError("a projection names a class of the model twice")

    def matrix(self, num_classes: int) -> Tensor:
        """Return the sets as a table: (K, num_classes) bool.

        Raises: ValueError if a class is none of the model's.
        """
        table = torch.zeros(len(self.members), num_classes, dtype=torch.bool)
        for row, indices in zip(table, self.members, strict=True):
            if any(not 0 <= index < num_classes for index in indices):
                raise ValueError(f"a projection names class {max(indices)} of a model with {num_classes} classes")
            row[list(indices)] = True
        return table


def identity(names: Sequence[str], things: Sequence[bool]) -> Projection:
    """The model's own classes."""
    return Projection(tuple(names), tuple(things), tuple((index,) for index in range(len(names))))
