"""POST: one network that predicts classes, object centres, offsets and motion from a pair of frames."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from post_model.backbone import STRIDE, Features, build_backbone
from post_model.batch import Batch
from post_model.branches import LossSettings, load_branch
from post_model.decoder import Decoder
from post_model.layers import Norm
from post_model.taxonomy import LabelTables

BRANCHES = ("semantic", "center", "offset", "prev_offset")


class Predictions(NamedTuple):
    """Raw maps at the size of the input; None where the branch is absent or has no previous frame.

    A network with further branches returns a tuple of the same kind with a field for each of them.

    Shape: semantic (B, C, H, W) logits; center (B, 1, H, W), no sigmoid; offset, prev_offset (B, 2, H, W).
    Units: offsets in pixels, (dy, dx). `prev_offset` belongs to the pixels of frame t-1 and leads to centres of t.
    """

    semantic: Tensor | None
    center: Tensor | None
    offset: Tensor | None
    prev_offset: Tensor | None


def maps_of(predictions: Predictions) -> dict[str, Tensor]:
    """Return what was predicted, by branch name."""
    return {name: map_ for name, map_ in predictions._asdict().items() if map_ is not None}


class Post(nn.Module):
    """Panoptic-DeepLab with a previous-offset branch.

    Args:
        num_classes: classes of the semantic branch.
        backbone: name of a backbone of `backbone.py`.
        depthwise: separable convolutions in decoders and heads.
        branches: names of files of `branches/`; none: a bare backbone.
        norm: normalisation, resolved ("auto" is the trainer's business).
        train_size: (H, W) of the crops that the network was trained on, where its pyramid pools over windows of that
            size instead of the whole image (Detectron2's Cityscapes models: 512x1024); None for the whole image.
        size_divisibility: images are padded to a multiple of it, at least the backbone's stride.

    Raises: ValueError on an unknown name or an impossible number.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        num_classes: int,
        backbone: str = "resnet50",
        depthwise: bool = True,
        branches: Sequence[str] = BRANCHES,
        norm: Norm = "batch",
        train_size: Sequence[int] | None = None,
        size_divisibility: int = STRIDE,
    ) -> None:
        super().__init__()
        if num_classes < ("semantic" in branches):
            raise ValueError(f"num_classes must be positive, got {num_classes}")
        if size_divisibility < STRIDE or size_divisibility % STRIDE:
            raise ValueError(f"size_divisibility must be a multiple of {STRIDE}, got {size_divisibility}")
        self.size_divisibility = size_divisibility
        self._arguments = {
            "num_classes": num_classes, "backbone": backbone, "depthwise": depthwise, "branches": list(branches),
            "norm": norm, "train_size": list(train_size) if train_size else None,
        }  # fmt: skip
        self.register_buffer("mean", torch.tensor([123.675, 116.28, 103.53])[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor([58.395, 57.12, 57.375])[:, None, None], persistent=False)
        self.backbone, widths = build_backbone(backbone, norm)
        channels: Mapping[str, int] = self.backbone.channels  # type: ignore[assignment]
        window = _pooling_window(train_size)
        modules = {name: load_branch(name) for name in branches}
        self._decoder_of = {name: module.DECODER for name, module in modules.items()}
        self._scale_of = {name: module.SCALE for name, module in modules.items()}
        self.decoders = nn.ModuleDict()
        self.branches = nn.ModuleDict()
        for name, module in modules.items():
            kind = module.DECODER
            if kind not in self.decoders:
                inputs = {**channels, "res5": channels["res5"] * (2 if kind == "motion" else 1)}
                self.decoders[kind] = Decoder(inputs, widths.decoder[kind], widths, depthwise, norm, window)
            self.branches[name] = module.Head(widths.decoder[kind], num_classes, widths, depthwise, norm)
        further = [name for name in branches if name not in BRANCHES]
        self._outputs: Any = namedtuple("Predictions", (*BRANCHES, *further)) if further else Predictions

    @property
    def arguments(self) -> dict[str, Any]:
        """What builds this network again: the JSON-able arguments of the constructor."""
        return {**self._arguments, "size_divisibility": self.size_divisibility}

    def forward(self, image: Tensor, prev_image: Tensor | None = None) -> Predictions:
        """Predict all maps of a frame, and the motion since the previous one if that is given.

        Shape: image, prev_image (B, 3, H, W), uint8 or float RGB in 0..255, any size.
        Raises: ValueError on another shape or dtype, or if the two differ in shape.
        """
        _check_image(image)
        size = (image.shape[2], image.shape[3])
        if prev_image is not None and prev_image.shape != image.shape:
            raise ValueError(f"prev_image is {tuple(prev_image.shape)}, image is {tuple(image.shape)}; they must agree")
        if prev_image is None or "motion" not in self.decoders:
            return self.heads(self.features(image), None, size)
        both = self.features(torch.cat([image, prev_image]))
        batch = image.shape[0]  # `len` would fix the size of an exported network
        now = {name: value[:batch] for name, value in both.items()}
        prev = {name: value[batch:] for name, value in both.items()}
        return self.heads(now, prev, size)

    def features(self, image: Tensor) -> Features:
        """Return the backbone's maps of a frame: {"res2", "res3", "res5"} at 1/4, 1/8 and 1/16.

        Zeros are added after normalisation, at the bottom and right, up to a multiple of `size_divisibility`.

        Shape: (B, 3, H, W), uint8 or float RGB in 0..255.
        Raises: ValueError on another shape or dtype.
        """
        _check_image(image)
        image = (image.float() - self.mean) / self.std
        bottom, right = (-image.shape[-2] % self.size_divisibility, -image.shape[-1] % self.size_divisibility)
        features: Features = self.backbone(F.pad(image, (0, right, 0, bottom)))
        return features

    def heads(self, features: Features, prev_features: Features | None, size: tuple[int, int]) -> Predictions:
        """Predict from features of frame t and, for motion, of frame t-1, at `size` = (H, W) of the images."""
        inputs = {"semantic": features, "instance": features}
        if prev_features is not None:
            # The order [current, previous] is POST's.
            inputs["motion"] = {**prev_features, "res5": torch.cat([features["res5"], prev_features["res5"]], dim=1)}
        decoded = {kind: decoder(inputs[kind]) for kind, decoder in self.decoders.items() if kind in inputs}
        maps = dict.fromkeys(self._outputs._fields)
        for name, head in self.branches.items():
            if self._decoder_of[name] in decoded:
                quarter = head(decoded[self._decoder_of[name]]) * self._scale_of[name]
                full = F.interpolate(quarter, scale_factor=4, mode="bilinear", align_corners=False)
                maps[name] = full[..., : size[0], : size[1]]
        predictions: Predictions = self._outputs(**maps)
        return predictions


def _check_image(image: Tensor) -> None:
    if image.ndim != 4 or image.shape[1] != 3 or 0 in image.shape:
        raise ValueError(f"image is {tuple(image.shape)}; expected (B, 3, H, W)")
    if image.dtype != torch.uint8 and not image.is_floating_point():
        raise ValueError(f"image is {image.dtype}; expected uint8 or float, RGB in 0..255")


def _pooling_window(train_size: Sequence[int] | None) -> tuple[int, int] | None:
    """The pyramid's window in features of stride 16. Source: Panoptic-DeepLab in Detectron2."""
    if train_size is None:
        return None
    if len(train_size) != 2 or any(side < STRIDE or side % STRIDE for side in train_size):
        raise ValueError(f"train_size must be (H, W), multiples of {STRIDE}, got {tuple(train_size)}")
    return train_size[0] // STRIDE, train_size[1] // STRIDE


def losses(
    predictions: Predictions, batch: Batch, tables: LabelTables, **settings: float
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return each branch's (total, count), summed over the rows of the batch that count.

    The gradient of sum(total) / sum(count) over any split of a batch equals that of the whole batch.

    Args:
        predictions: what the network said of `batch`.
        batch: the labels.
        tables: what the labels of each dataset mean.
        **settings: fields of `branches.LossSettings`.
    """
    chosen = LossSettings(**settings)
    return {name: load_branch(name).loss(map_, batch, tables, chosen) for name, map_ in maps_of(predictions).items()}
