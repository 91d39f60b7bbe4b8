"""Weights of others: state dictionaries of Detectron2 (Panoptic-DeepLab, POST) and torchvision become ours, by key."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from post_model.backbone import STRIDE
from post_model.network import BRANCHES, Post
from post_model.state import check_fit

# Our names -> Detectron2's, applied in this order, each to what the ones before left.
_RENAMED = (
    (r"^backbone\.conv(\d)", r"backbone.stem.conv\1"),
    (r"^backbone\.bn(\d)", r"backbone.stem.conv\1.norm"),
    (r"\.layer4\.", ".res5."), (r"\.layer3\.", ".res4."), (r"\.layer2\.", ".res3."), (r"\.layer1\.", ".res2."),
    (r"\.bn(\d)\.", r".conv\1.norm."), (r"\.downsample\.0\.", ".shortcut."), (r"\.downsample\.1\.", ".shortcut.norm."),
    (r"^branches\.semantic\.0\.", "sem_seg_head.head."), (r"^branches\.semantic\.1\.", "sem_seg_head.predictor."),
    (r"^branches\.center\.2\.", "ins_embed_head.center_predictor."),
    (r"^branches\.center\.", "ins_embed_head.center_head."),
    (r"^branches\.offset\.0\.", "ins_embed_head.offset_head."),
    (r"^branches\.offset\.1\.", "ins_embed_head.offset_predictor."),
    (r"^branches\.prev_offset\.0\.", "prev_offset_head.prev_offset_head."),
    (r"^branches\.prev_offset\.1\.", "prev_offset_head.prev_offset_predictor."),
    (r"^decoders\.semantic\.", "sem_seg_head.decoder."), (r"^decoders\.instance\.", "ins_embed_head.decoder."),
    (r"^decoders\.motion\.", "prev_offset_head.decoder."),
    (r"\.aspp\.pool\.", ".res5.project_conv.convs.4.1."), (r"\.aspp\.", ".res5.project_conv."),
    (r"\.project([23])\.", r".res\1.project_conv."), (r"\.fuse([23])\.", r".res\1.fuse_conv."),
)  # fmt: skip
# Last, where a convolution and its norm are a pair of ours: `0.weight`, `1.<any>` -> `weight`, `norm.<any>`.
_PAIR = re.compile(r"\.([01])\.(weight|bias|running_mean|running_var|num_batches_tracked)$")
_COUNTER = "num_batches_tracked"
_PIXEL = {"pixel_mean": (123.675, 116.28, 103.53), "pixel_std": (58.395, 57.12, 57.375)}
_CLASSES = "sem_seg_head.predictor.weight"


def from_detectron2(
    state_dict: Mapping[str, Any], train_size: Sequence[int] | None = None, size_divisibility: int = STRIDE
) -> Post:
    """Build the network that a Detectron2 state dictionary belongs to, with its weights, in evaluation mode.

    Classes, backbone, kind of convolution and branches follow from the keys and shapes. What they do not say are the
    last two arguments.

    Args:
        state_dict: tensors or arrays by Detectron2's names. Counters of batches may be left out, all of them.
        train_size: see `Post`; (512, 1024) for the published Cityscapes models.
        size_divisibility: see `Post`; 640 for the published COCO models.

    Raises: ValueError naming the keys that are unknown, missing or of another shape.
    """
    state = _tensors(state_dict)
    for name in _PIXEL.keys() & state.keys():
        if not np.allclose(got := state.pop(name).flatten().tolist(), _PIXEL[name]):
            raise ValueError(f"{name} is {got}, this network's is {_PIXEL[name]}")
    if _CLASSES not in state:
        raise ValueError(f"the state dictionary is not Detectron2's Panoptic-DeepLab; missing: {_CLASSES}")
    motion = any(key.startswith("prev_offset_head.") for key in state)
    depthwise = any(".depthwise." in key for key in state)
    model = Post(
        len(state[_CLASSES]), backbone_of(state), depthwise, BRANCHES if motion else BRANCHES[:3],
        train_size=train_size, size_divisibility=size_divisibility,
    )  # fmt: skip
    _fill(model, state, detectron2_names(model))
    return model


def from_backbone(state_dict: Mapping[str, Any]) -> Post:
    """Build a network without branches from the weights of a bare ResNet, by torchvision's or Detectron2's names.

    The classifier (`fc`, `linear`), which has no place in the network, is left out.

    Raises: ValueError naming the keys that are unknown, missing or of another shape.
    """
    state = {name: value for name, value in _tensors(state_dict).items() if not name.startswith(("fc.", "linear."))}
    model = Post(0, backbone_of(state), branches=())
    _fill(model, state, foreign_names(model, state))
    return model


def foreign_names(model: Post, state: Collection[str]) -> dict[str, str]:
    """Return the name of each entry of the network's state dictionary in the one that it was made from."""
    names = detectron2_names(model)
    if model.arguments["branches"]:
        return names
    theirs = names if any(name.startswith("stem.") for name in state) else {name: name for name in names}
    return {ours: name.removeprefix("backbone.") for ours, name in theirs.items()}


def detectron2_names(model: Post) -> dict[str, str]:
    """Return Detectron2's name of each entry of a network's state dictionary."""
    return {name: _detectron2_name(name) for name in model.state_dict()}


def backbone_of(state: Mapping[str, Tensor]) -> str:
    """Name a ResNet by its blocks and its stem, in Detectron2's or torchvision's keys.

    Raises: ValueError if it is none of ours.
    """
    blocks = [0, 0, 0, 0]
    bottleneck = deep = False
    for key in state:
        if found := re.match(r"(?:backbone\.)?(?:res([2-5])|layer([1-4]))\.(\d+)\.(.*)", key):
            stage = int(found[1]) - 2 if found[1] else int(found[2]) - 1
            blocks[stage] = max(blocks[stage], int(found[3]) + 1)
            bottleneck |= found[4] == "conv3.weight"
        deep |= key.removeprefix("backbone.") == "stem.conv2.weight"
    known = {"resnet18": ([2, 2, 2, 2], False, False), "resnet50": ([3, 4, 6, 3], True, False),
             "resnet52": ([3, 4, 6, 3], True, True)}  # fmt: skip
    for name, kind in known.items():
        if kind == (blocks, bottleneck, deep):
            return name
    if not any(blocks):
        raise ValueError(f"no ResNet: it has {', '.join(list(state)[:3])}")
    raise ValueError(
        f"its backbone has {blocks} {'bottlenecks' if bottleneck else 'basic blocks'} and a stem of "
        f"{'three convolutions' if deep else 'one convolution'}; expected that of {', '.join(known)}"
    )


def _fill(model: Post, state: Mapping[str, Tensor], names: Mapping[str, str]) -> None:
    """Load weights that are called `names[<our name>]`, and put the network in evaluation mode."""
    own = model.state_dict()
    if not any(name.endswith(_COUNTER) for name in state):
        names = {ours: theirs for ours, theirs in names.items() if not ours.endswith(_COUNTER)}
    check_fit({theirs: own[ours] for ours, theirs in names.items()}, state, "the state dictionary")
    model.load_state_dict({**own, **{ours: state[theirs] for ours, theirs in names.items()}})
    model.eval()


def _detectron2_name(ours: str) -> str:
    name = ours
    for pattern, replacement in _RENAMED:
        name = re.sub(pattern, replacement, name)
    # Predictors and the pooled branch are lone convolutions; the backbone's names are settled.
    if name.startswith("backbone.") or "predictor." in name or ".convs.4.1." in name:
        return name
    return _PAIR.sub(lambda match: f".{match[2]}" if match[1] == "0" else f".norm.{match[2]}", name)


def _tensors(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    state = {}
    for name, value in state_dict.items():
        try:
            state[name] = torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{name} is {type(value).__name__}, not an array of numbers") from error
    return state
