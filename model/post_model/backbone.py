"""Backbones: an image becomes feature maps at 1/4 (res2), 1/8 (res3) and 1/16 (res5) of its size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torchvision.models.resnet as resnet
from torch import Tensor, nn

from post_model.decoder import Widths
from post_model.layers import ConvNorm, Norm, norm_layer

Features = dict[str, Tensor]


class ResNet(nn.Module):
    """ResNet body with output stride 16: the last stage is dilated instead of strided.

    Parameter names are torchvision's, so its ImageNet weights load without a key map (all but `fc`). Bottlenecks of
    the last stage take dilation 2 x multi-grid (1, 2, 4), basic blocks dilation 2.

    Source: Panoptic-DeepLab's backbone (stride in the 3x3 convolution, res5 dilation 2, multi-grid 1, 2, 4).
    """

    def __init__(self, block: type[resnet.BasicBlock | resnet.Bottleneck], layers: list[int], norm: Norm) -> None:
        super().__init__()
        body = resnet.ResNet(block, layers, norm_layer=norm_layer(norm))
        self.conv1, self.bn1, self.relu, self.maxpool = body.conv1, body.bn1, body.relu, body.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = body.layer1, body.layer2, body.layer3, body.layer4
        bottleneck = block is resnet.Bottleneck
        for index, unit in enumerate(self.layer4):
            _dilate(unit, 2 * (1, 2, 4)[index] if bottleneck else 2)
        self.channels = {"res2": 64 * block.expansion, "res3": 128 * block.expansion, "res5": 512 * block.expansion}

    def forward(self, image: Tensor) -> Features:
        """(B, 3, H, W) normalised, H and W multiples of 16 -> res2, res3, res5."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(image))))
        res2 = self.layer1(x)
        res3 = self.layer2(res2)
        return {"res2": res2, "res3": res3, "res5": self.layer4(self.layer3(res3))}


def _dilate(unit: nn.Module, dilation: int) -> None:
    """Remove the stride of a residual block and dilate its 3x3 convolutions, in place."""
    for module in unit.modules():
        if isinstance(module, nn.Conv2d):
            module.stride = (1, 1)
            if module.kernel_size == (3, 3):
                module.dilation = module.padding = (dilation, dilation)


class SmallNet(nn.Module):
    """A backbone that learns from scratch within minutes on a CPU: plain 3x3 convolutions, few channels."""

    def __init__(self, norm: Norm, widths: tuple[int, int, int, int] = (16, 32, 64, 96)) -> None:
        super().__init__()
        stem, quarter, eighth, sixteenth = widths
        self.stem = ConvNorm(3, stem, 3, norm, stride=2)
        self.res2 = nn.Sequential(ConvNorm(stem, quarter, 3, norm, stride=2), _Residual(quarter, norm))
        self.res3 = nn.Sequential(ConvNorm(quarter, eighth, 3, norm, stride=2), _Residual(eighth, norm))
        self.res5 = nn.Sequential(
            ConvNorm(eighth, sixteenth, 3, norm, stride=2), _Residual(sixteenth, norm), _Residual(sixteenth, norm, 2)
        )
        self.channels = {"res2": quarter, "res3": eighth, "res5": sixteenth}

    def forward(self, image: Tensor) -> Features:
        """(B, 3, H, W) normalised, H and W multiples of 16 -> res2, res3, res5."""
        res2 = self.res2(self.stem(image))
        res3 = self.res3(res2)
        return {"res2": res2, "res3": res3, "res5": self.res5(res3)}


class _Residual(nn.Module):
    def __init__(self, channels: int, norm: Norm, dilation: int = 1) -> None:
        super().__init__()
        self.conv1 = ConvNorm(channels, channels, 3, norm, dilation=dilation)
        self.conv2 = ConvNorm(channels, channels, 3, norm, dilation=dilation, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = (x + self.conv2(self.conv1(x))).relu_()
        return out


_RESNET_WIDTHS = Widths(
    aspp=256, res3=64, res2=32, decoder={"semantic": 256, "instance": 128, "motion": 128}, head=32, center=128
)
_SMALL_WIDTHS = Widths(
    aspp=64, res3=32, res2=16, decoder={"semantic": 64, "instance": 64, "motion": 64}, head=32, center=32,
    rates=(1, 2, 4), kernel=3,
)  # fmt: skip

# How to build each backbone, and the widths of the decoders that go with it.
_BACKBONES: dict[str, tuple[Callable[[Norm], Any], Widths]] = {
    "small": (SmallNet, _SMALL_WIDTHS),
    "resnet18": (lambda norm: ResNet(resnet.BasicBlock, [2, 2, 2, 2], norm), _RESNET_WIDTHS),
    "resnet50": (lambda norm: ResNet(resnet.Bottleneck, [3, 4, 6, 3], norm), _RESNET_WIDTHS),
}
BACKBONES = tuple(_BACKBONES)


def build_backbone(name: str, norm: Norm) -> tuple[nn.Module, Widths]:
    """Build a backbone with random weights; it has `channels`, its map widths by name.

    Raises: ValueError on an unknown name.
    """
    if name not in _BACKBONES:
        raise ValueError(f"unknown backbone {name!r}; expected one of {', '.join(BACKBONES)}")
    build, widths = _BACKBONES[name]
    return build(norm), widths
