"""BDD100K MOTS (seg_track_20): driving videos with eight moving classes; RGBA bitmasks, or run lengths in JSON."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from post_platform.datasets.files import (
    IMAGE_SUFFIXES,
    MAX_PIXELS,
    decode_label_png,
    image_size,
    is_junk,
    missing,
    read_json,
    require_folder,
    subfolders,
)
from post_platform.datasets.frame import FrameRef, Label, video_frames
from post_platform.datasets.masks import decode_mask
from post_platform.errors import DataError
from post_platform.labels import UNIDENTIFIED, VOID, load_contract
from post_platform.runs import distinct

SPLITS = ("train", "val", "test")
SECONDS_PER_FRAME = 0.2
IGNORED, CROWD = 1, 2  # bits of G; 4 is occluded, 8 is truncated
CATEGORIES = {  # names in the JSON files, also older ones; the last three are distractors, which are ignored
    "pedestrian": 1, "person": 1, "rider": 2, "car": 3, "caravan": 3, "van": 3, "truck": 4, "bus": 5, "train": 6,
    "motorcycle": 7, "motor": 7, "bicycle": 8, "bike": 8, "other person": 1, "other vehicle": 3, "trailer": 4,
}  # fmt: skip
DISTRACTORS = ("other person", "other vehicle", "trailer")


@dataclass(frozen=True)
class Drawn:
    """One object of a frame in a JSON file: `native` is its id there, `number` the one that is stored."""

    category: int
    native: int
    number: int
    flags: int
    rle: dict[str, Any]


Stored = Path | tuple[Drawn, ...]  # a bitmask, or the objects of a frame in a JSON file


def frames(source: Path, split: str) -> list[FrameRef]:
    """Every frame of a split: `images/seg_track_20/<split>/<video>/<video>-%07d.jpg`, numbered from 1.

    Labels are the bitmasks of the same name; where there are none, `rles/<split>/<video>.json`.

    Raises: MissingSplit, or DataError when a video lacks labels.
    """
    require_folder("bdd100k_mots", source)
    roots = [source, source / "bdd100k"]
    videos = subfolders(root / "images/seg_track_20" / split for root in roots)
    if not videos:
        raise missing("bdd100k_mots", split, source, [f"images/seg_track_20/{split}/<video>"])
    labels = [root / "labels/seg_track_20" for root in roots]
    bitmasks = subfolders(folder / "bitmasks" / split for folder in labels)
    refs: list[FrameRef] = []
    for video, folder in videos.items():
        images = _numbered(video, folder, IMAGE_SUFFIXES)
        if not images:
            raise DataError(f"bdd100k_mots {video}: no image {video}-%07d.jpg in {folder}")
        known: dict[int, object] | None = None
        if split != "test":
            files = [path for root in labels if (path := root / "rles" / split / f"{video}.json").is_file()]
            place = bitmasks.get(video) or next(iter(files), None)
            if place is None:
                raise DataError(f"bdd100k_mots {video}: no label: neither bitmasks/{split}/{video} nor rles/{split}")
            known = dict(video_labels(video, place))
            alone = [frame for frame in images if frame not in known] or [f for f in known if f not in images]
            if alone:
                lack = "label" if alone[0] in images else "image"
                raise DataError(
                    f"bdd100k_mots {video}/{alone[0]:06d}: has no {lack} ({len(alone)} such frames)",
                    hint="unpack the official archives completely",
                )
        refs += video_frames(video, images, known, SECONDS_PER_FRAME, f"bdd100k/{video}")
    return refs


def label(ref: FrameRef) -> Label:
    """The label of one frame: the class is R, the instance B*256 + A as it is. A JSON file's ids are kept if they fit.

    Ignored objects and crowds are void: the dataset judges nothing there.

    Raises: DataError for an unknown class, an object without id, or an unreadable file.
    """
    where = f"bdd100k_mots {ref.key}"
    assert isinstance(ref.label, Path | tuple)
    return decode(ref.label, image_size(ref.image, where) if isinstance(ref.label, tuple) else None, where)


def video_labels(video: str, path: Path) -> dict[int, Stored]:
    """Frame number -> its label: a folder of bitmasks, or a JSON file. Raises: DataError naming the video."""
    return dict(_numbered(video, path, (".png",))) if path.is_dir() else _read_rles(video, path)


def size_of(stored: Stored, where: str) -> tuple[int, int] | None:
    """Height and width; None for run lengths of an empty frame. Raises: DataError naming `where` for no size."""
    if isinstance(stored, Path):
        return image_size(stored, where)
    if not stored:
        return None
    size = stored[0].rle.get("size")
    if isinstance(size, list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size):
        height, width = size
        if height * width <= MAX_PIXELS:
            return height, width
    raise DataError(f"{where}: the size of a mask is {str(size)[:40]}, must be [height, width]")


def decode(stored: Stored, size: tuple[int, int] | None, where: str) -> Label:
    """See `label`; `size` (height, width) is that of run lengths."""
    if isinstance(stored, Path):
        rgba = decode_label_png(stored, where, "RGBA").astype(np.uint32)
    else:
        assert size is not None
        rgba = _paint(stored, size, where)
    packed = rgba[..., 0] << 24 | rgba[..., 1] << 16 | rgba[..., 2] << 8 | rgba[..., 3]
    found = distinct(packed)
    classes, instances = np.zeros(len(found), np.uint8), np.zeros(len(found), np.uint16)
    known = {entry.id for entry in load_contract("bdd100k_mots").classes}
    natives = {} if isinstance(stored, Path) else {drawn.number: drawn.native for drawn in stored}
    native_ids: dict[str, int] = {}
    for place, value in enumerate(found.tolist()):
        category, flags, number = value >> 24, value >> 16 & 255, value & 0xFFFF
        if value == 0:
            continue
        if category not in known or flags > 15:
            raise DataError(f"{where}: class {category} with flags {flags}, must be 1..8 with flags 0..15")
        if flags & (IGNORED | CROWD):
            classes[place] = VOID
            continue
        if not 0 < number < UNIDENTIFIED:
            raise DataError(
                f"{where}: an object of class {category} has the id {number}, must be 1..{UNIDENTIFIED - 1}"
            )
        classes[place], instances[place] = category, number
        native_ids[f"{category}/{number}"] = natives.get(number, number)
    places = np.searchsorted(found, packed)
    return Label(classes[places], instances[places], native_ids)


def _numbered(video: str, folder: Path, suffixes: tuple[str, ...]) -> dict[int, Path]:
    """Number -> path, ascending, of the files `<video>-<number>`. Raises: DataError when two have one number."""
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        number = path.stem.removeprefix(f"{video}-")
        if is_junk(path.name) or path.suffix.lower() not in suffixes or number == path.stem or not number.isdecimal():
            continue
        if int(number) in found:
            raise DataError(f"{folder}: {found[int(number)].name} and {path.name} are the same frame")
        found[int(number)] = path
    return dict(sorted(found.items()))


def _read_rles(video: str, path: Path) -> dict[int, Stored]:
    """Frame number -> its objects, from a Scalabel file, which counts frames from 0.

    Ids are the annotation tool's: kept where all of the video fit, else counted by ascending id.
    """
    content = read_json(path, f"bdd100k_mots {video}")
    listed = content.get("frames") if isinstance(content, dict) else content
    found: dict[int, list[Drawn]] = {}
    try:
        for entry in listed or []:
            frame = _whole(entry["frameIndex"]) + 1
            if frame in found:
                raise DataError(f"bdd100k_mots {video}/{frame:06d}: is listed twice in {path}")
            where = f"bdd100k_mots {video}/{frame:06d} of {path}"
            found[frame] = [_drawn(shown, where) for shown in entry.get("labels") or []]
            natives = [drawn.native for drawn in found[frame] if not drawn.flags]
            if len(set(natives)) < len(natives):
                twice = next(native for native in natives if natives.count(native) > 1)
                raise DataError(f"{where}: object {twice} is listed twice")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"bdd100k_mots {video}: {path} is malformed: {error!r}") from error
    judged = (drawn.native for objects in found.values() for drawn in objects if not drawn.flags)
    natives = sorted(set(judged))
    fits = all(0 < native < UNIDENTIFIED for native in natives)
    numbers = {native: native if fits else place for place, native in enumerate(natives, start=1)}
    if len(numbers) >= UNIDENTIFIED:
        raise DataError(f"bdd100k_mots {video}: {len(numbers)} objects, at most {UNIDENTIFIED - 1} can be stored")
    return {
        frame: tuple(replace(drawn, number=0 if drawn.flags else numbers[drawn.native]) for drawn in objects)
        for frame, objects in found.items()
    }


def _whole(value: object) -> int:
    """A number, or the digits of one. Raises: ValueError for anything else."""
    if type(value) is int:
        return value
    if isinstance(value, str) and value.isdecimal() and len(value) < 19:
        return int(value)
    raise ValueError(f"{str(value)[:40]!r} is no whole number")


def _drawn(shown: dict[str, Any], where: str) -> Drawn:
    name = str(shown["category"])
    if name not in CATEGORIES:
        raise DataError(f"{where}: unknown category {name[:40]!r}")
    attributes = shown.get("attributes") or {}
    crowd, ignored = bool(attributes.get("crowd")), bool(attributes.get("ignored"))
    flags = CROWD * crowd | IGNORED * (ignored or name in DISTRACTORS)
    return Drawn(CATEGORIES[name], _whole(shown["id"]), 0, flags, dict(shown["rle"]))


def _paint(objects: tuple[Drawn, ...], size: tuple[int, int], where: str) -> NDArray[np.uint32]:
    """The RGBA bitmask that the objects of a JSON file make."""
    height, width = size
    rgba = np.zeros((height, width, 4), np.uint32)
    for drawn in objects:
        mask = decode_mask(drawn.rle, height, width, f"{where}: object {drawn.native}")
        if rgba[mask].any():
            raise DataError(f"{where}: the mask of object {drawn.native} overlaps another")
        rgba[mask] = (drawn.category, drawn.flags, drawn.number >> 8, drawn.number & 255)
    return rgba
