"""COCO instance results: a JSON list of masks with scores, beside `instances_<split>.json`; masks may overlap.

Any dataset in this format can be scored; its classes are those of the truth's JSON. Areas are counted from the masks.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from post_platform.datasets.files import MAX_PIXELS
from post_platform.datasets.masks import compressed
from post_platform.errors import DataError
from post_platform.labels import UNIDENTIFIED, VOID
from post_platform.metrics.mask_ap import SIZES
from post_platform.metrics.results import panoptic_json
from post_platform.metrics.results.pair import FramePair, Results, choose
from post_platform.metrics.saved import SavedClass, SavedContract
from post_platform.metrics.score import Families
from post_platform.metrics.track_ap import Track, Video
from post_platform.metrics.track_ap import report as average_precision

DIGITS = 12  # of an image's name, so that names are in the order of ids, in which equal scores rank
Rle = dict[str, Any]


@dataclass(frozen=True)
class Mask:
    """One object as the JSON gives it; `where` names it."""

    where: str
    category: int
    segmentation: Any
    crowd: bool = False
    score: float = 1.0


@dataclass(frozen=True)
class Image:
    """An image of the truth with its objects and its detections, both in the order of their files."""

    name: str
    height: int
    width: int
    truth: tuple[Mask, ...]
    pred: tuple[Mask, ...]


def read(truth: Path, predictions: Path, sequences: Sequence[str] | None) -> Results:
    """Pairs of the images that the truth lists, in the order of their ids; one that no result names has no detection.

    A sequence is an image, called by its id in twelve digits, as COCO calls its files. Where no two masks of a side
    overlap, AP is a function of the contingency table; elsewhere of the masks.

    Raises: DataError naming file, image and object: an unknown image or class, a score that is none, a broken mask.
    """
    content = panoptic_json.load(truth)
    contract = _contract(truth, content)
    images = {image.name: image for image in _images(truth, content, predictions, contract)}
    names = choose(list(images), list(images), sequences, predictions)
    counts = dict.fromkeys(names, 1)
    decoded = {name: _rles(images[name]) for name in names}
    if len(contract.classes) < VOID and all(_partition(images[name], *decoded[name]) for name in names):
        numbers = {entry.name: place for place, entry in enumerate(contract.classes, start=1)}
        ids = {number: numbers[name] for number, name in _names(content).items()}
        return Results(contract, counts, lambda chosen: (_pair(images[n], *decoded[n], ids) for n in chosen))

    def further(progress: Callable[[int], None]) -> Families:
        videos = []
        for done, name in enumerate(names):
            progress(done)
            videos.append(_overlapping(images[name], *decoded[name]))
        return {"ap": average_precision(videos, _names(content), SIZES)}

    return Results(contract, counts, lambda chosen: iter(()), further)


def _names(content: Mapping[str, Any]) -> dict[int, str]:
    return {int(entry["id"]): str(entry["name"]) for entry in content["categories"]}


def _contract(file: Path, content: Mapping[str, Any]) -> SavedContract:
    """Classes numbered from 1 by ascending category id; the rest of an image is background."""
    try:
        names = _names(content)
        if len(names) < len(content["categories"]) or len(set(names.values())) < len(names) or not names:
            raise DataError(f"{file}: ids and names of categories must be different, and there must be one")
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{file}: malformed categories ({error!r})") from error
    classes = tuple(SavedClass(place, names[number], True) for place, number in enumerate(sorted(names), start=1))
    return SavedContract(classes, "coco_instances", background="background", headline="AP")


def _images(file: Path, content: Mapping[str, Any], results: Path, contract: SavedContract) -> Iterator[Image]:
    categories = set(_names(content))
    try:
        sizes = {int(entry["id"]): (int(entry["height"]), int(entry["width"])) for entry in content["images"]}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{file}: malformed images ({error!r})") from error
    if len(sizes) < len(content["images"]):
        raise DataError(f"{file}: ids of images must be different")
    for number, (height, width) in sizes.items():
        if not 0 <= number < 10**DIGITS:
            raise DataError(f"{file}, image {number}: an id must have 1 to {DIGITS} digits")
        if not (height > 0 and width > 0 and height * width <= MAX_PIXELS):
            raise DataError(f"{file}, image {number}: size {height}x{width}, must be 1 to {MAX_PIXELS} pixels")
    true, found = defaultdict[int, list[Mask]](list), defaultdict[int, list[Mask]](list)
    for image, mask in _masks(file, content.get("annotations"), categories, sizes.keys(), scored=False):
        true[image].append(mask)
    for image, mask in _masks(results, _detections(results), categories, sizes.keys(), scored=True):
        found[image].append(mask)
    for number, size in sizes.items():
        yield Image(f"{number:0{DIGITS}d}", *size, tuple(true[number]), tuple(found[number]))


def _detections(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except OSError as error:
        raise DataError(f"--predictions {file}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"--predictions {file}: is not JSON ({error})") from error


def _masks(file: Path, entries: Any, categories: set[int], images: Any, scored: bool) -> Iterator[tuple[int, Mask]]:
    """The objects of a list, with their images. A result without `segmentation` has only a box, which is not scored."""
    if not isinstance(entries, list):
        raise DataError(f"{file}: must be a list of {'results' if scored else 'annotations'}")
    ids: set[int] = set()
    for place, entry in enumerate(entries):
        where = f"{file}, {'result' if scored else 'annotation'} {place}"
        try:
            image, category = int(entry["image_id"]), int(entry["category_id"])
            number, score = (place, float(entry["score"])) if scored else (int(entry["id"]), 1.0)
            where = f"{file}, {'result' if scored else 'annotation'} {number}, image {image}"
            mask = Mask(where, category, entry["segmentation"], not scored and bool(entry.get("iscrowd", 0)), score)
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise DataError(f"{where}: malformed ({error!r})") from error
        if image not in images:
            raise DataError(f"{where}: the truth has no such image")
        if category not in categories:
            raise DataError(f"{where}: category {category} is not in the truth")
        if not math.isfinite(score):
            raise DataError(f"{where}: a score is {score}")
        if number in ids:
            raise DataError(f"{where}: the annotation is listed twice")
        ids.add(number)
        yield image, mask


def _rles(image: Image) -> tuple[list[Rle], list[Rle]]:
    true, found = ([_rle(mask, image) for mask in masks] for masks in (image.truth, image.pred))
    return true, found


def _rle(mask: Mask, image: Image) -> Rle:
    size = (image.height, image.width)
    return {"size": list(size), "counts": compressed(mask.segmentation, *size, mask.where).encode()}


def _partition(image: Image, true: list[Rle], found: list[Rle]) -> bool:
    """Whether the masks of each side are disjoint and not empty, and no class has two crowd regions.

    Only then a table holds all that COCO's evaluation looks at: it takes an empty detection for a wrong one.
    """
    crowd = Counter(mask.category for mask in image.truth if mask.crowd)
    if any(count > 1 for count in crowd.values()) or max(len(true), len(found)) >= UNIDENTIFIED:
        return False
    for rles in filter(None, (true, found)):
        areas = coco_mask.area(rles)
        if not areas.all() or areas.sum(dtype=np.int64) != int(coco_mask.area(coco_mask.merge(rles))):
            return False
    return True


def _pair(image: Image, true: list[Rle], found: list[Rle], ids: Mapping[int, int]) -> FramePair:
    """The maps of disjoint masks. Tracks are numbered in the order of the file: equal scores rank so."""
    truth, pred = (_painted(rles, image) for rles in (true, found))
    classes = [np.array([0, *(ids[mask.category] for mask in side)], np.uint8) for side in (image.truth, image.pred)]
    instances = np.array([0, *(UNIDENTIFIED if m.crowd else n for n, m in enumerate(image.truth, start=1))], np.int32)
    scores = {(ids[mask.category], number): mask.score for number, mask in enumerate(image.pred, start=1)}
    return FramePair(image.name, 0, classes[0][truth], instances[truth], classes[1][pred], pred, scores)


def _painted(rles: list[Rle], image: Image) -> np.ndarray:
    owner = np.zeros((image.height, image.width), np.int32)
    for number, rle in enumerate(rles, start=1):
        owner[coco_mask.decode(rle).astype(bool)] = number
    return owner


def _overlapping(image: Image, true: list[Rle], found: list[Rle]) -> Video:
    crowd = [mask.crowd for mask in image.truth]
    overlap = coco_mask.iou(found, true, crowd) if true and found else np.zeros((len(found), len(true)))
    true_areas, pred_areas = (coco_mask.area(rles).tolist() if rles else [] for rles in (true, found))
    return Video(
        tuple(Track(m.category, area, m.crowd) for m, area in zip(image.truth, true_areas, strict=True)),
        tuple(Track(m.category, area, score=m.score) for m, area in zip(image.pred, pred_areas, strict=True)),
        np.asarray(overlap, np.float64),
    )
