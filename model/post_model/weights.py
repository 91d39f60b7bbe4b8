"""Weights on disk: the model's part of a checkpoint, and ImageNet weights for backbones. No pickle is executed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from post_model.network import Post

FORMAT = "post-model/1"


@dataclass(frozen=True)
class ModelCard:
    """What a checkpoint says of its model: names and thing flags of its classes, and the arguments of `Post`."""

    class_names: tuple[str, ...]
    thing_flags: tuple[bool, ...]
    arguments: dict[str, Any]


def save_model(folder: Path, model: Post, class_names: Sequence[str], thing_flags: Sequence[bool]) -> None:
    """Write `model.safetensors` and `model.json`: all that `load_model` needs.

    Raises: ValueError if there is not one name and one flag to each class.
    """
    _check_counts(model.arguments, class_names, thing_flags)
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(folder / "model.safetensors", model.state_dict())
    card = ModelCard(tuple(class_names), tuple(bool(flag) for flag in thing_flags), model.arguments)
    text = json.dumps({"format": FORMAT, **asdict(card)}, indent=1)
    (folder / "model.json").write_text(text + "\n", encoding="utf-8")


def save_weights(file: Path, state: dict[str, Tensor]) -> None:
    """Write tensors to a safetensors file, whatever their device and memory layout."""
    save_file({name: value.detach().cpu().contiguous().clone() for name, value in state.items()}, file)


def load_model(folder: Path, weights: str = "model", device: str = "cpu") -> tuple[Post, ModelCard]:
    """Build the network of a checkpoint and fill it, from `<weights>.safetensors` ("ema" for the averaged weights).

    Raises: ValueError if a file is absent, of another format, or does not fit the network.
    """
    card = read_card(folder)
    try:
        model = Post(**card.arguments)
    except TypeError as error:
        raise ValueError(f"{folder / 'model.json'}: {error}") from error
    file = folder / f"{weights}.safetensors"
    try:
        state = load_file(file)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file}: cannot be read: {error}") from error
    _fill(model, state, str(file))
    return model.to(device), card


def read_card(folder: Path) -> ModelCard:
    """Read `model.json` alone.

    Raises: ValueError if it is absent or not of our format.
    """
    file = folder / "model.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: cannot be read: {error}") from error
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise ValueError(f"{file}: not of the format {FORMAT}")
    try:
        card = ModelCard(tuple(content["class_names"]), tuple(content["thing_flags"]), dict(content["arguments"]))
        _check_counts(card.arguments, card.class_names, card.thing_flags)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file}: field {error} is missing or of the wrong type") from error
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    return card


def load_backbone(model: Post, file: Path) -> None:
    """Fill the backbone with torchvision's ImageNet weights of the same ResNet (a local .pth file).

    Raises: ValueError if the file cannot be read safely or its keys and shapes are not the backbone's.
    """
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch raises many types for a damaged or unsafe file; all mean the same to the user.
        raise ValueError(f"{file}: cannot be read as plain weights: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{file}: not a dictionary of tensors")
    _fill(model.backbone, {name: value for name, value in state.items() if not name.startswith("fc.")}, str(file))


def _check_counts(arguments: dict[str, Any], class_names: Sequence[str], thing_flags: Sequence[bool]) -> None:
    expected = arguments["num_classes"]
    if not len(class_names) == len(thing_flags) == expected:
        raise ValueError(f"{len(class_names)} class names and {len(thing_flags)} thing flags for {expected} classes")


def _fill(module: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load weights, or say by name which are unknown, missing or of another shape."""
    own = module.state_dict()
    problems = {
        "unknown": sorted(set(state) - set(own)),
        "missing": sorted(set(own) - set(state)),
        "shape differs": sorted(name for name in set(own) & set(state) if own[name].shape != state[name].shape),
    }
    found = [f"{kind}: {', '.join(names[:5])}" + f" and {len(names) - 5} more" * (len(names) > 5)
             for kind, names in problems.items() if names]  # fmt: skip
    if found:
        raise ValueError(f"{source} does not fit the network; {'; '.join(found)}")
    module.load_state_dict(state)
