"""Weights on disk: the model's part of a checkpoint, and files of others. No pickle is executed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from post_model.backbone import STRIDE
from post_model.foreign import foreign_names, from_backbone, from_detectron2
from post_model.network import Post
from post_model.pickles import read_arrays
from post_model.state import check_fit, fill
from post_model.taxonomy import Projection

__all__ = [
    "FORMAT", "ModelCard", "best_weights", "from_detectron2", "load_backbone", "load_model", "open_foreign",
    "read_card", "read_foreign", "save_model", "save_weights",
]  # fmt: skip
FORMAT = "post-model/1"


@dataclass(frozen=True)
class ModelCard:
    """What a checkpoint says of its model.

    Attributes:
        class_names: names of its classes.
        thing_flags: which of them have instances.
        arguments: those of `Post`.
        datasets: what its classes are in the terms of datasets, by the name of the dataset.
    """

    class_names: tuple[str, ...]
    thing_flags: tuple[bool, ...]
    arguments: dict[str, Any]
    datasets: dict[str, Projection] = field(default_factory=dict)


def save_model(
    folder: Path,
    model: Post,
    class_names: Sequence[str],
    thing_flags: Sequence[bool],
    datasets: Mapping[str, Projection] | None = None,
) -> None:
    """Write `model.safetensors` and `model.json`: all that `load_model` needs.

    Raises: ValueError if there is not one name and one flag to each class.
    """
    _check_counts(model.arguments, class_names, thing_flags)
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(folder / "model.safetensors", model.state_dict())
    flags = tuple(bool(flag) for flag in thing_flags)
    content = asdict(ModelCard(tuple(class_names), flags, model.arguments, dict(datasets or {})))
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in {"format": FORMAT, **content}.items()]
    (folder / "model.json").write_text("{\n " + ",\n ".join(lines) + "\n}\n", encoding="utf-8")


def save_weights(file: Path, state: Mapping[str, Tensor]) -> None:
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
    fill(model, state, str(file))
    return model.to(device), card


def best_weights(folder: Path) -> str:
    """Name the weights of a checkpoint that do best: the averaged ones ("ema") where it has any, else "model"."""
    return "ema" if (folder / "ema.safetensors").is_file() else "model"


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
        datasets = {name: _projection(facts) for name, facts in content.get("datasets", {}).items()}
        names, flags = tuple(content["class_names"]), tuple(content["thing_flags"])
        card = ModelCard(names, flags, dict(content["arguments"]), datasets)
        _check_counts(card.arguments, card.class_names, card.thing_flags)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file}: field {error} is missing or of the wrong type") from error
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    return card


def read_foreign(file: Path) -> dict[str, Any]:
    """Read tensors or arrays by name from a `.pkl` or `.pth` file of others, without executing anything in it.

    Detectron2 keeps them under "model", beside the state of its optimiser.

    Raises: ValueError naming the file, and what in it was refused.
    """
    try:
        if file.suffix == ".pkl":
            with file.open("rb") as stream:
                content = read_arrays(stream)
        else:
            content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(f"{file}: cannot be read: {error.strerror}") from error
    except Exception as error:
        # torch raises many types for a damaged or unsafe file; all mean the same to the user.
        raise ValueError(f"{file}: cannot be read as plain weights: {_reason(error)}") from error
    state = content.get("model", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not state or not all(isinstance(name, str) for name in state):
        raise ValueError(f"{file}: not a dictionary of tensors by name")
    return dict(state)


def open_foreign(
    file: Path, train_size: Sequence[int] | None = None, size_divisibility: int = STRIDE
) -> tuple[Post, dict[str, str]]:
    """Build the network of a Detectron2 file, or a network without branches of a backbone's (also torchvision's).

    Returns it with the file's name of each of its weights.

    Raises: ValueError naming the file, and what in it was refused, is unknown, missing or of another shape.
    """
    state = read_foreign(file)
    try:
        if any(name.startswith(("backbone.", "sem_seg_head.", "ins_embed_head.")) for name in state):
            model = from_detectron2(state, train_size, size_divisibility)
        else:
            model = from_backbone(state)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    return model, foreign_names(model, state)


def load_backbone(model: Post, file: Path) -> None:
    """Fill the backbone with ImageNet weights of the same ResNet, from a local file of torchvision or Detectron2.

    Raises: ValueError if the file cannot be read safely or its keys and shapes are not the backbone's.
    """
    state = {name: value for name, value in open_foreign(file)[0].state_dict().items() if name.startswith("backbone.")}
    own = {name: value for name, value in model.state_dict().items() if name.startswith("backbone.")}
    check_fit(own, state, str(file))
    model.load_state_dict(state, strict=False)


def _reason(error: Exception) -> str:
    """The part of torch's long explanation that says what was refused."""
    found = re.search(r"GLOBAL (\S+)", str(error))
    return f"it asks for {found[1]}; nothing was executed" if found else (str(error) or repr(error)).splitlines()[0]


def _projection(facts: Mapping[str, Any]) -> Projection:
    """A projection from JSON, where tuples are lists."""
    members = tuple(tuple(indices) for indices in facts["members"])
    return Projection(
        tuple(facts["names"]), tuple(facts["things"]), members, bool(facts["background"]), bool(facts["fill_void"])
    )


def _check_counts(arguments: Mapping[str, Any], class_names: Sequence[str], thing_flags: Sequence[bool]) -> None:
    expected = arguments["num_classes"]
    if not len(class_names) == len(thing_flags) == expected:
        raise ValueError(f"{len(class_names)} class names and {len(thing_flags)} thing flags for {expected} classes")
