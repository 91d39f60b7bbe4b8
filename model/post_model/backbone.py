"""Backbones: an image becomes feature maps at 1/4 (res2), 1/8 (res3) and 1/16 (res5) of its size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torchvision.models.resnet as resnet
from torch import Tensor, nn

from post_model.decoder import Widths
from post_model.layers import ConvNorm, Norm, norm_layer

STRIDE = 16  # of res5, the coarsest map
Features = dict[str, Tensor]
Block = type[resnet.BasicBlock] | type[resnet.Bottleneck]


class ResNet(nn.Module):
    """ResNet body with output stride 16: the last stage is dilated instead of strided.

    Parameter names are torchvision's, so its ImageNet weights load without a key map (all but `fc`). The deep stem
    (`resnet52`) has three 3x3 convolutions of 64, 64 and 128 channels instead of one 7x7 of 64: conv1 to conv3 and
    bn1 to bn3. Bottlenecks of the last stage take dilation 2 x multi-grid (1, 2, 4), basic blocks dilation 2.

    Source: Panoptic-DeepLab's backbone (stride in the 3x3 convolution, res5 dilation 2, multi-grid 1, 2, 4).
    """

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(self, block: Block, numbers: Sequence[int], norm: Norm, deep_stem: bool = False) -> None:
        super().__init__()
        make_norm = norm_layer(norm)
        stem = [(3, 64, 3, 2), (64, 64, 3, 1), (64, 128, 3, 1)] if deep_stem else [(3, 64, 7, 2)]
        self._stem = len(stem)
        for index, (inputs, outputs, kernel, stride) in enumerate(stem, start=1):
            conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
            self.add_module(f"conv{index}", conv)
            self.add_module(f"bn{index}", make_norm(outputs))
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        inputs = stem[-1][1]
        for index, (planes, number, stride) in enumerate(zip((64, 128, 256, 512), numbers, (1, 2, 2, 1), strict=True)):
            stage = _stage(block, inputs, planes, number, stride, make_norm)
            self.add_module(f"layer{index + 1}", stage)
            inputs = planes * block.expansion
        for index, unit in enumerate(self.layer4):
            _dilate(unit, 2 * (1, 2, 4)[index] if block is resnet.Bottleneck else 2)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.channels = {"res2": 64 * block.expansion, "res3": 128 * block.expansion, "res5": 512 * block.expansion}

    def forward(self, image: Tensor) -> Features:
        """(B, 3, H, W) normalised, H and W multiples of 16 -> res2, res3, res5."""
        x = image
        for index in range(1, self._stem + 1):
            x = self.get_submodule(f"bn{index}")(self.get_submodule(f"conv{index}")(x)).relu_()
        res2 = self.layer1(self.maxpool(x))
        res3 = self.layer2(res2)
        return {"res2": res2, "res3": res3, "res5": self.layer4(self.layer3(res3))}


def _stage(
    block: Block, inputs: int, planes: int, number: int, stride: int, make_norm: Callable[[int], nn.Module]
) -> nn.Sequential:
    """Residual blocks of one resolution; the first one changes stride and width."""
    outputs = planes * block.expansion
    shortcut = None
    if stride != 1 or inputs != outputs:
        shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), make_norm(outputs))
    first = block(inputs, planes, stride, shortcut, norm_layer=make_norm)
    return nn.Sequential(first, *(block(outputs, planes, norm_layer=make_norm) for _ in range(number - 1)))


def _dilate(unit: nn.Module, dilation: int) -> None:
    """Dilate the 3x3 convolutions of a residual block, in place (torchvision's basic block takes no dilation)."""
    for module in unit.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
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
    "resnet52": (lambda norm: ResNet(resnet.Bottleneck, [3, 4, 6, 3], norm, deep_stem=True), _RESNET_WIDTHS),
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
