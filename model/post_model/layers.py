"""Convolution blocks that backbones, decoders and heads are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Self, get_args

from torch import Tensor, nn

Norm = Literal["batch", "sync", "frozen", "group"]


def norm_layer(norm: Norm) -> Callable[[int], nn.Module]:
    """Return the constructor channels -> normalisation layer.

    Group normalisation has 16 channels to a group where they divide; batch, sync and frozen have the same parameter
    names, so weights move freely between them.

    Raises: ValueError on an unknown name ("auto" is resolved by the trainer, which knows the ranks).
    """
    if norm not in get_args(Norm):
        raise ValueError(f"unknown norm {norm!r}; expected one of {', '.join(get_args(Norm))}")
    if norm == "batch":
        return nn.BatchNorm2d
    if norm == "sync":
        return nn.SyncBatchNorm
    if norm == "frozen":
        return FrozenBatchNorm
    return lambda channels: nn.GroupNorm(channels // 16 if channels % 16 == 0 else 1, channels)


class FrozenBatchNorm(nn.BatchNorm2d):
    """Batch normalisation that nothing changes: neither its statistics nor its scale and shift, also in training."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode."""
        return super().train(False)


class ConvNorm(nn.Sequential):
    """Convolution without bias, normalisation and (unless told otherwise) ReLU; keeps the size at stride 1."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        norm: Norm,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        relu: bool = True,
    ) -> None:
        padding = dilation * (kernel // 2)
        conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out" if groups == 1 else "fan_in", nonlinearity="relu")
        layers: list[nn.Module] = [conv, norm_layer(norm)(outputs)]
        if relu:
            layers.append(nn.ReLU(inplace=True))
        super().__init__(*layers)


class SeparableConv(nn.Module):
    """Depthwise then pointwise convolution, each with normalisation and ReLU.

    Source: Panoptic-DeepLab's depthwise separable convolution (norm and activation after both parts).
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, norm: Norm, *, dilation: int = 1) -> None:
        super().__init__()
        self.depthwise = ConvNorm(inputs, inputs, kernel, norm, dilation=dilation, groups=inputs)
        self.pointwise = ConvNorm(inputs, outputs, 1, norm)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H, W)."""
        out: Tensor = self.pointwise(self.depthwise(x))
        return out


def predictor(inputs: int, outputs: int) -> nn.Conv2d:
    """Return the 1x1 convolution with bias that ends a head; it starts near zero, as in Panoptic-DeepLab."""
    conv = nn.Conv2d(inputs, outputs, 1)
    nn.init.normal_(conv.weight, std=0.001)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv
