"""COCO panoptic results: a JSON and a folder of PNGs, R + 256*G + 65536*B = segment id, in either role.

Any dataset in this format can be scored: classes and thing flags are those of the truth's JSON, as in panopticapi.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from post_platform.datasets.files import decode_label_png
from post_platform.errors import DataError
from post_platform.labels import UNIDENTIFIED, VOID
from post_platform.metrics.results.pair import FramePair, Results, choose, require_size

Segment = tuple[int, int, bool]  # id, category, crowd


@dataclass(frozen=True)
class Category:
    """A class as the truth's JSON describes it."""

    id: int
    name: str
    has_instances: bool


@dataclass(frozen=True)
class JsonContract:
    """The categories of a JSON: single images, every pixel labelled."""

    classes: tuple[Category, ...]
    dataset: str = "coco_panoptic"
    background: None = None
    persistent: bool = False
    video: bool = False
    headline: str = "PQ"


@dataclass(frozen=True)
class Annotation:
    """The PNG of one image and the segments that the JSON lists for it."""

    png: Path
    segments: tuple[Segment, ...]


def read(truth: Path, predictions: Path, sequences: Sequence[str] | None) -> Results:
    """Pairs of the images that the truth annotates; each side is `X` or `X.json`: JSON `X.json`, PNGs in folder `X`.

    Raises: DataError when an image has no prediction, or JSON and PNG of an image disagree on its segments.
    """
    contract, true = _truth(truth)
    found = _annotations(predictions, {entry.id for entry in contract.classes})
    names = choose(list(true), list(found), sequences, predictions)
    return Results(contract, len(names), (_pair(name, true[name], found[name]) for name in names))


def _truth(path: Path) -> tuple[JsonContract, dict[str, Annotation]]:
    file, _ = _split(path)
    try:
        entries = _load(file)["categories"]
        listed = [Category(int(entry["id"]), str(entry["name"]), bool(entry["isthing"])) for entry in entries]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{file}: malformed categories ({error!r})") from error
    ids = [entry.id for entry in listed]
    if len(set(ids)) < len(ids) or not all(0 <= number < VOID for number in ids):
        raise DataError(f"{file}: category ids must be different and in 0..{VOID - 1}")
    return JsonContract(tuple(listed)), _annotations(path, set(ids))


def _split(path: Path) -> tuple[Path, Path]:
    """The JSON and the folder of PNGs that either of them stands for."""
    return (path, path.with_suffix("")) if path.suffix == ".json" else (path.with_name(f"{path.name}.json"), path)


def _annotations(path: Path, categories: set[int]) -> dict[str, Annotation]:
    """Image id (as text) -> its annotation."""
    file, folder = _split(path)
    found: dict[str, Annotation] = {}
    try:
        for entry in _load(file)["annotations"]:
            image, name = str(entry["image_id"]), str(entry["file_name"])
            listed = entry["segments_info"]
            segments = tuple((int(s["id"]), int(s["category_id"]), bool(s.get("iscrowd", 0))) for s in listed)
            if image in found:
                raise DataError(f"{file}: image {image} is annotated twice")
            if Path(name).name != name:
                raise DataError(f"{file}, image {image}: {name!r} is not a plain file name")
            ids = [segment for segment, _, _ in segments]
            if len(set(ids)) < len(ids) or not all(0 < segment < 1 << 24 for segment in ids):
                raise DataError(f"{file}, image {image}: segment ids must be different and in 1..16777215")
            for segment, category, _ in segments:
                if category not in categories:
                    raise DataError(f"{file}, image {image}: segment {segment} has unknown category {category}")
            found[image] = Annotation(folder / name, segments)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{file}: malformed annotations ({error!r})") from error
    return found


def _load(file: Path) -> dict[str, list]:
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise DataError(f"{file}: is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise DataError(f"{file}: is not a JSON object")
    return content


def _pair(name: str, truth: Annotation, pred: Annotation) -> FramePair:
    classes, instances = _maps(truth)
    pred_classes, pred_tracks = _maps(pred)
    require_size(pred_classes, classes, str(pred.png))
    return FramePair(name, 0, classes, instances.astype(np.uint16), pred_classes, pred_tracks)


def _maps(annotation: Annotation) -> tuple[np.ndarray, np.ndarray]:
    """Classes, and segments numbered from 1 by ascending id, crowd 65535; stuff too, so that none is merged."""
    png, segments = annotation.png, sorted(annotation.segments)
    rgb = decode_label_png(png, str(png), "RGB").astype(np.int32)
    values = rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]
    number = np.zeros(1 << 24, np.uint16)  # a table over all ids is mapped lazily: cheaper than sorting pixels
    number[[segment for segment, _, _ in segments]] = np.arange(1, len(segments) + 1)
    place = number[values]
    foreign = values[(place == 0) & (values != 0)]
    if foreign.size:
        raise DataError(f"{png}: segment {foreign[0]} is not in the JSON")
    drawn = np.bincount(place.reshape(-1), minlength=len(segments) + 1)[1:] > 0
    if not drawn.all():
        raise DataError(f"{png}: has no pixel of segment {segments[int(drawn.argmin())][0]}, which the JSON lists")
    classes = np.array([VOID, *(category for _, category, _ in segments)], np.uint8)
    crowd = np.array([False, *(crowd for _, _, crowd in segments)])
    instances = np.where(crowd, UNIDENTIFIED, np.arange(len(segments) + 1)).astype(np.int32)
    return classes[place], instances[place]
