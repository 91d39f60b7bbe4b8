"""Panoptic-DeepLab's decoder: atrous pyramid at 1/16, then fusion with finer maps up to 1/4."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from post_model.layers import ConvNorm, Norm, SeparableConv

Window = tuple[int, int] | None


@dataclass(frozen=True)
class Widths:
    """Channel numbers of decoders and heads that suit a backbone.

    Attributes:
        aspp: channels of each pyramid branch and of its projection.
        res3: channels that res3 is projected to before fusion.
        res2: channels that res2 is projected to before fusion.
        decoder: output channels of each decoder, by name.
        head: hidden channels of the center and offset heads (the semantic head keeps its decoder's).
        center: channels of the first convolution of the center head, and of the offset heads if they are dense.
        rates: dilations of the pyramid.
        kernel: kernel of separable fusion and head convolutions (dense ones are 3x3).
    """

    aspp: int
    res3: int
    res2: int
    decoder: Mapping[str, int]
    head: int
    center: int
    rates: tuple[int, ...] = (6, 12, 18)
    kernel: int = 5


def fusion_conv(
    inputs: int, outputs: int, widths: Widths, depthwise: bool, norm: Norm, between: int | None = None
) -> nn.Module:
    """Return the convolution that decoders and heads use: one separable, or two dense 3x3.

    `between` is the width between the two dense ones, by default that of the output.
    """
    if depthwise:
        return SeparableConv(inputs, outputs, widths.kernel, norm)
    between = between or outputs
    return nn.Sequential(ConvNorm(inputs, between, 3, norm), ConvNorm(between, outputs, 3, norm))


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: 1x1, three dilated 3x3 and a mean, concatenated.

    The mean is that of the whole map or, with a `window`, of the window around each place (of all windows inside the
    map, resized to it): a network trained on crops and run on larger images sees means over the area it learned from.
    A window larger than the map is cut to it.

    Source: DeepLab v3+; the pooled branch has a bias and no normalisation, so one sample of any size is enough.
        Deviation: Detectron2 refuses maps that the window does not divide; nothing depends on that.
    """

    def __init__(
        self, inputs: int, channels: int, rates: tuple[int, ...], depthwise: bool, norm: Norm, window: Window = None
    ) -> None:
        super().__init__()
        self.window = window
        self.convs = nn.ModuleList([ConvNorm(inputs, channels, 1, norm)])
        for rate in rates:
            if depthwise:
                self.convs.append(SeparableConv(inputs, channels, 3, norm, dilation=rate))
            else:
                self.convs.append(ConvNorm(inputs, channels, 3, norm, dilation=rate))
        self.pool = nn.Conv2d(inputs, channels, 1)
        self.project = ConvNorm((len(rates) + 2) * channels, channels, 1, norm)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, channels, H, W)."""
        if self.window is None:
            # A mean map is constant: resizing it to (H, W) is an expansion.
            pooled = self.pool(x.mean((2, 3), keepdim=True)).relu().expand(-1, -1, *x.shape[2:])
        else:
            height, width = min(self.window[0], x.shape[2]), min(self.window[1], x.shape[3])
            # Rows, then columns: the sum of a window costs its height + width, not their product.
            means = F.avg_pool2d(F.avg_pool2d(x, (height, 1), stride=1), (1, width), stride=1)
            pooled = _resize(self.pool(means).relu(), x)
        out: Tensor = self.project(torch.cat([*(conv(x) for conv in self.convs), pooled], dim=1))
        return out


class Decoder(nn.Module):
    """Maps res2, res3, res5 to one map at 1/4 of the image.

    Source: Panoptic-DeepLab; bilinear resizing with align_corners=False.
    """

    def __init__(
        self,
        inputs: Mapping[str, int],
        channels: int,
        widths: Widths,
        depthwise: bool,
        norm: Norm,
        window: Window = None,
    ) -> None:
        super().__init__()
        self.aspp = ASPP(inputs["res5"], widths.aspp, widths.rates, depthwise, norm, window)
        self.project3 = ConvNorm(inputs["res3"], widths.res3, 1, norm)
        self.fuse3 = fusion_conv(widths.aspp + widths.res3, channels, widths, depthwise, norm)
        self.project2 = ConvNorm(inputs["res2"], widths.res2, 1, norm)
        self.fuse2 = fusion_conv(channels + widths.res2, channels, widths, depthwise, norm)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Features of one image -> (B, channels, H/4, W/4)."""
        res3, res2 = self.project3(features["res3"]), self.project2(features["res2"])
        x = self.aspp(features["res5"])
        x = self.fuse3(torch.cat([res3, _resize(x, res3)], dim=1))
        out: Tensor = self.fuse2(torch.cat([res2, _resize(x, res2)], dim=1))
        return out


def _resize(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)
