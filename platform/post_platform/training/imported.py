"""Networks as checkpoints that hold nothing else: those of others, and what our own training has made."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from post_model.network import Post
from post_model.weights import best_weights, load_model, open_foreign, save_model
from post_platform import storage
from post_platform.errors import DataError, PostError
from post_platform.labels import taxonomy
from post_platform.training import checkpoint
from post_platform.training.vocabulary import projections

MAPPING = "mapping.json"
# The unified class that each of Cityscapes' 19 training classes is, where it covers several the least specific one.
_CITYSCAPES = (
    "road", "pavement-merged", "building-other-merged", "wall-other-merged", "fence-merged", "pole", "traffic light",
    "traffic-sign", "tree-merged", "grass-merged", "sky-other-merged", "person", "rider", "car", "truck", "bus",
    "train", "motorcycle", "bicycle",
)  # fmt: skip
_CITYSCAPES_THINGS = range(11, 19)
_COCO_THINGS = 80


@dataclass(frozen=True)
class Classes:
    """Names and thing flags of a network's classes, in the order of its outputs."""

    names: tuple[str, ...]
    things: tuple[bool, ...]


def published_classes(number: int) -> Classes:
    """The classes of the published models: 19 are Cityscapes', 133 COCO panoptic's (also POST's), 0 a bare backbone's.

    Raises:
        DataError: any other number; the weights alone do not say what it stands for.
    """
    if number == 0:
        return Classes((), ())
    if number == len(_CITYSCAPES):
        return Classes(_CITYSCAPES, tuple(index in _CITYSCAPES_THINGS for index in range(number)))
    coco = taxonomy().prefix("coco")
    if number == len(coco):
        return Classes(coco, tuple(index < _COCO_THINGS for index in range(number)))
    raise DataError(
        f"the network has {number} classes; only 19 (Cityscapes) and {len(coco)} (COCO) have known names",
        "list them in a text file, a line `NAME thing` or `NAME stuff` for each: --classes FILE",
    )


def read_classes(file: Path, number: int) -> Classes:
    """Read the names of a network's classes from a text file: a line `NAME thing` or `NAME stuff` for each.

    Raises:
        DataError: a line of another form, or another number of lines, by file and line.
    """
    try:
        lines = [line.rsplit(maxsplit=1) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--classes {file}: cannot be read: {error}") from error
    for index, words in enumerate(lines, start=1):
        if len(words) != 2 or words[1] not in ("thing", "stuff"):
            raise DataError(
                f"--classes {file}, line {index}: got {' '.join(words)!r}, expected NAME thing or NAME stuff"
            )
    if len(lines) != number:
        raise DataError(f"--classes {file} lists {len(lines)} classes; the network has {number}")
    return Classes(tuple(name for name, _ in lines), tuple(kind == "thing" for _, kind in lines))


def open_network(file: Path, train_size: Sequence[int] | None, size_divisibility: int) -> tuple[Post, dict[str, str]]:
    """Read the network of a Detectron2 or torchvision file, with the file's name of each of its weights.

    Raises:
        DataError: the file cannot be read safely, or does not fit, by key.
    """
    try:
        return open_foreign(file, train_size, size_divisibility)
    except ValueError as error:
        raise DataError(str(error), "expected: Detectron2's .pkl or .pth, or a ResNet of torchvision") from error


def save_imported(
    target: storage.Location, file: Path, model: Post, names: Mapping[str, str], classes: Classes
) -> dict[str, str]:
    """Write a network as a checkpoint, with a report of which key became which; returns every file's sha256.

    Raises:
        PostError: the folder holds something that is not an imported checkpoint.
    """
    if Path(target).is_file() or (storage.list_names(target) and not storage.exists(storage.join(target, MAPPING))):
        raise PostError(f"--out {target} holds other files", "name another folder: --out DIR")
    source = {"file": file.name, "sha256": checkpoint.sha256(file)}
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    keys = [{"theirs": names[ours], "ours": ours, "shape": shape} for ours, shape in shapes.items()]

    def write(path: Path) -> None:
        save_model(path, model, classes.names, classes.things, projections(classes.names))
        (path / MAPPING).write_text(json.dumps({"source": source, "keys": keys}, indent=1) + "\n", encoding="utf-8")

    return _write(target, write, {"imported": source})


def save_weights_alone(target: storage.Location, source: storage.Location) -> dict[str, Mapping[str, str]]:
    """Take the network out of a checkpoint of ours, the averaged weights where it has any, without the optimiser.

    Of the run's state only what it was trained on stays, so that no score is given on training videos. Returns the
    manifest: where the weights are from, and every file's sha256.

    Raises:
        DataError: `source` is no checkpoint of ours, or is damaged.
        PostError: the folder holds something else.
    """
    place = checkpoint.resolve(source)
    folder = checkpoint.fetch(place)
    checkpoint.verify(folder)
    if any(name not in ("model.json", "model.safetensors", checkpoint.STATE, checkpoint.MANIFEST)
           for name in storage.list_names(target)) or Path(target).is_file():  # fmt: skip
        raise PostError(f"--out {target} holds other files", "name another folder: --out DIR")
    weights = best_weights(folder)
    try:
        model, card = load_model(folder, weights)
    except ValueError as error:
        raise DataError(f"no usable checkpoint: {error}") from error
    facts: dict[str, Mapping[str, str]] = {"taken_from": {"checkpoint": place, "weights": f"{weights}.safetensors"}}

    def write(path: Path) -> None:
        save_model(path, model, card.class_names, card.thing_flags, card.datasets)
        if (folder / checkpoint.STATE).is_file():
            state = checkpoint.read_state(folder)
            config = {key: value for key, value in yaml.safe_load(state["config"]).items() if key.startswith("data.")}
            kept = {"step": state["step"], "score": state.get("score"), "config": yaml.safe_dump(config)}
            (path / checkpoint.STATE).write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")

    return {**facts, "files": _write(target, write, facts)}


def _write(target: storage.Location, write: Callable[[Path], None], facts: Mapping[str, object]) -> dict[str, str]:
    """A whole checkpoint here or on S3; returns every file's sha256."""
    if not storage.is_remote(target):
        return checkpoint.write_whole(Path(target), write, facts)
    with tempfile.TemporaryDirectory() as folder:
        files = checkpoint.write_whole(Path(folder) / "whole", write, facts)
        checkpoint.publish(Path(folder) / "whole", target)
    return files
