"""POST: one network that predicts classes, object centres, offsets and motion from a pair of frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from post_model.backbone import Features, build_backbone
from post_model.batch import Batch
from post_model.branches import LossSettings, load_branch
from post_model.decoder import Decoder
from post_model.layers import Norm
from post_model.taxonomy import LabelTables

BRANCHES = ("semantic", "center", "offset", "prev_offset")


class Predictions(NamedTuple):
    """Raw maps at the size of the input; None where the branch is absent or has no previous frame.

    Shape: semantic (B, C, H, W) logits; center (B, 1, H, W), no sigmoid; offset, prev_offset (B, 2, H, W). Further
        branches are in `extra`.
    Units: offsets in pixels, (dy, dx). `prev_offset` belongs to the pixels of frame t-1 and leads to centres of t.
    """

    semantic: Tensor | None
    center: Tensor | None
    offset: Tensor | None
    prev_offset: Tensor | None
    extra: dict[str, Tensor]

    def maps(self) -> dict[str, Tensor]:
        """Return what is there, by branch name."""
        named = {name: getattr(self, name) for name in BRANCHES}
        return {**{name: value for name, value in named.items() if value is not None}, **self.extra}


class Post(nn.Module):
    """Panoptic-DeepLab with a previous-offset branch.

    Args:
        num_classes: classes of the semantic branch.
        backbone: name of a backbone of `backbone.py`.
        depthwise: separable convolutions in decoders and heads.
        branches: names of files of `branches/`.
        norm: normalisation, resolved ("auto" is the trainer's business).

    Raises: ValueError on an unknown name.
    """

    size_divisibility = 16
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        num_classes: int,
        backbone: str = "resnet50",
        depthwise: bool = True,
        branches: Sequence[str] = BRANCHES,
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        self._arguments = {
            "num_classes": num_classes, "backbone": backbone, "depthwise": depthwise, "branches": list(branches),
            "norm": norm,
        }  # fmt: skip
        if num_classes < 1:
            raise ValueError(f"num_classes must be positive, got {num_classes}")
        self.register_buffer("mean", torch.tensor([123.675, 116.28, 103.53])[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor([58.395, 57.12, 57.375])[:, None, None], persistent=False)
        self.backbone, widths = build_backbone(backbone, norm)
        channels: Mapping[str, int] = self.backbone.channels  # type: ignore[assignment]
        modules = {name: load_branch(name) for name in branches}
        self._decoder_of = {name: module.DECODER for name, module in modules.items()}
        self._scale_of = {name: module.SCALE for name, module in modules.items()}
        self.decoders = nn.ModuleDict()
        self.branches = nn.ModuleDict()
        for name, module in modules.items():
            kind = module.DECODER
            if kind not in self.decoders:
                inputs = {**channels, "res5": channels["res5"] * (2 if kind == "motion" else 1)}
                self.decoders[kind] = Decoder(inputs, widths.decoder[kind], widths, depthwise, norm)
            self.branches[name] = module.Head(widths.decoder[kind], num_classes, widths, depthwise, norm)

    @property
    def arguments(self) -> dict[str, Any]:
        """What builds this network again: the JSON-able arguments of the constructor."""
        return dict(self._arguments)

    def forward(self, image: Tensor, prev_image: Tensor | None = None) -> Predictions:
        """Predict all maps of a frame, and the motion since the previous one if that is given.

        Shape: image, prev_image (B, 3, H, W), uint8 or float RGB in 0..255, any size.
        """
        size = (image.shape[-2], image.shape[-1])
        if prev_image is None or "motion" not in self.decoders:
            return self.heads(self.features(image), None, size)
        both = self.features(torch.cat([image, prev_image]))
        now = {name: value[: len(image)] for name, value in both.items()}
        prev = {name: value[len(image) :] for name, value in both.items()}
        return self.heads(now, prev, size)

    def features(self, image: Tensor) -> Features:
        """Return the backbone's maps of a frame: {"res2", "res3", "res5"} at 1/4, 1/8 and 1/16.

        Zeros are added after normalisation, at the bottom and right, up to a multiple of `size_divisibility`.
        """
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
        maps = {}
        for name, head in self.branches.items():
            if self._decoder_of[name] in decoded:
                quarter = head(decoded[self._decoder_of[name]]) * self._scale_of[name]
                full = F.interpolate(quarter, scale_factor=4, mode="bilinear", align_corners=False)
                maps[name] = full[..., : size[0], : size[1]]
        known = {name: maps.pop(name, None) for name in BRANCHES}
        return Predictions(**known, extra=maps)  # type: ignore[arg-type]


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
    return {name: load_branch(name).loss(map_, batch, tables, chosen) for name, map_ in predictions.maps().items()}
