"""Networks for deployment: graphs for images of one size in batches of any, by torch.export or as ONNX."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from post_model.fusion import fuse
from post_model.network import Post, maps_of


class Network(nn.Module):
    """A network whose maps come by the name of the branch, so that a graph of it needs nothing of this package."""

    def __init__(self, model: Post) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor, prev_image: Tensor | None = None) -> dict[str, Tensor]:
        """Two (B, 3, H, W), uint8 or float RGB in 0..255 -> maps, see `Predictions`."""
        return maps_of(self.model(image, prev_image))


class Segmenter(nn.Module):
    """Network and fusion in one: images in, panoptic maps out.

    Args:
        model: the network.
        things: whether each of its classes has instances.
        **fusion: settings of `fuse`.
    """

    thing: Tensor

    def __init__(self, model: Post, things: Sequence[bool], **fusion: Any) -> None:
        super().__init__()
        self.model, self.fusion = model, fusion
        self.register_buffer("thing", torch.tensor(list(things), device=model.mean.device))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) uint8 or float RGB in 0..255 -> the fields of `Panoptic`, by name."""
        maps = maps_of(self.model(image))
        return fuse(maps["semantic"], maps["center"], maps["offset"], self.thing, **self.fusion)._asdict()


def export_network(model: Post, size: tuple[int, int], pairs: bool | None = None) -> ExportedProgram:
    """Trace a network for uint8 images of `size` = (H, W) in batches of any size; see `Network`.

    Args:
        model: the network; put in evaluation mode.
        size: of the images.
        pairs: whether the graph takes (image, prev_image) or the image alone; None: what the network is made for.
    """
    example, shapes = _inputs(model, size, pairs)
    return torch.export.export(Network(model).eval(), example, dynamic_shapes=shapes)


def export_segmenter(model: Post, things: Sequence[bool], size: tuple[int, int], **fusion: Any) -> ExportedProgram:
    """Trace network and fusion for uint8 images of `size` in batches of any size; see `Segmenter`.

    The tables of objects that come out have `top_k` rows, whatever their number.
    """
    example, shapes = _inputs(model, size, False)
    return torch.export.export(Segmenter(model, things, **fusion).eval(), example, dynamic_shapes=shapes)


def export_onnx(model: Post, size: tuple[int, int], file: Path, pairs: bool | None = None) -> None:
    """Write a network as ONNX, for uint8 images of `size` in batches of any size; needs the package onnxscript.

    The outputs have the names of the branches.
    """
    example, shapes = _inputs(model, size, pairs)
    network = Network(model).eval()
    with torch.inference_mode():
        names = list(network(*example))
    torch.onnx.export(
        network, example, str(file), dynamic_shapes=shapes, dynamo=True, verbose=False,
        input_names=list(shapes), output_names=names,
    )  # fmt: skip


def _inputs(
    model: Post, size: tuple[int, int], pairs: bool | None
) -> tuple[tuple[Tensor, ...], dict[str, dict[int, Dim]]]:
    """An example batch, and which dimensions of each argument are free."""
    pairs = "motion" in model.decoders if pairs is None else pairs
    names = ["image", "prev_image"] if pairs else ["image"]
    example = torch.zeros(2, 3, *size, dtype=torch.uint8, device=model.mean.device)
    batch = Dim("batch", min=1)
    return tuple(example.clone() for _ in names), {name: {0: batch} for name in names}
