"""Branches of the network. One file each; its name is the branch's name, and there is no list of them anywhere.

A branch file defines
    DECODER     the decoder that feeds it: "semantic" and "instance" read the current frame; "motion" reads res2, res3
                of the previous frame and res5 of both
    SCALE       what one unit of the head's output at 1/4 of the size is worth at full size (4 for pixels, 1 else)
    WEIGHT      the default of the loss's weight, `loss.<name>` in a run's configuration
    Head        nn.Module(channels, num_classes, widths, depthwise, norm): decoder map -> output at 1/4 of the size
    loss        (predicted, batch, tables, settings) -> (total, count), both summed over the batch
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast

from torch import Tensor, nn

from post_model.batch import Batch
from post_model.taxonomy import LabelTables


@dataclass(frozen=True)
class LossSettings:
    """Global settings of the losses: the same for every dataset.

    Attributes:
        hard_fraction: share of a sample's informative pixels, the hardest, that the semantic loss keeps; 1 = all.
        sigma: standard deviation in pixels of the Gaussian that marks a centre.
        small_area: area in pixels below which an object is small.
        small_weight: weight of the pixels of small objects in the semantic loss; 1 = that of any other.
    """

    hard_fraction: float = 0.2
    sigma: float = 8.0
    small_area: float = 4096
    small_weight: float = 3.0

    def __post_init__(self) -> None:
        """Refuse values that would make a loss silently empty.

        Raises: ValueError naming the field, its limits and the value.
        """
        if not 0 < self.hard_fraction <= 1:
            raise ValueError(f"hard_fraction must be in (0, 1], got {self.hard_fraction}")
        if self.sigma <= 0:
            raise ValueError(f"sigma must be positive, got {self.sigma}")
        if self.small_area < 0 or self.small_weight <= 0:
            raise ValueError(
                f"small_area must not be negative and small_weight positive, got {self.small_area}, {self.small_weight}"
            )


class Branch(Protocol):
    """What a branch file provides."""

    DECODER: str
    SCALE: int
    WEIGHT: float
    Head: Callable[..., nn.Module]

    def loss(
        self, predicted: Tensor, batch: Batch, tables: LabelTables, settings: LossSettings
    ) -> tuple[Tensor, Tensor]:
        """Return (total, count) summed over the batch's rows of weight > 0."""
        ...


def load_branch(name: str) -> Branch:
    """Import the branch of this name.

    Raises: ValueError if there is no such file.
    """
    module = f"{__name__}.{name}"
    try:
        return cast(Branch, importlib.import_module(module))
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise ValueError(f"unknown branch {name!r}; a branch is a file of post_model/branches") from error
