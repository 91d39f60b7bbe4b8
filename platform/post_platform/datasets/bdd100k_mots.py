"""BDD100K MOTS (seg_track_20): driving videos with eight moving classes; RGBA bitmasks, or run lengths in JSON."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from post_platform.datasets.files import (
    IMAGE_SUFFIXES,
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
    """One object of a frame in a JSON file."""

    category: int
    number: int
    flags: int
    rle: dict[str, Any]


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
            if video in bitmasks:
                known = dict(_numbered(video, bitmasks[video], (".png",)))
            elif files:
                known = _read_rles(video, files[0])
            else:
                raise DataError(f"bdd100k_mots {video}: no label: neither bitmasks/{split}/{video} nor rles/{split}")
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
    """The label of one frame: the class is R, the instance B*256 + A as it is.

    Ignored objects are void; a crowd is a thing without identity.

    Raises: DataError for an unknown class, an object without id, or an unreadable file.
    """
    where = f"bdd100k_mots {ref.key}"
    if isinstance(ref.label, Path):
        rgba = decode_label_png(ref.label, where, "RGBA").astype(np.uint32)
    else:
        assert isinstance(ref.label, tuple)
        rgba = _paint(ref.label, ref.image, where)
    packed = rgba[..., 0] << 24 | rgba[..., 1] << 16 | rgba[..., 2] << 8 | rgba[..., 3]
    found = distinct(packed)
    classes, instances = np.zeros(len(found), np.uint8), np.zeros(len(found), np.uint16)
    known = {entry.id for entry in load_contract("bdd100k_mots").classes}
    native_ids: dict[str, int] = {}
    for place, value in enumerate(found.tolist()):
        category, flags, number = value >> 24, value >> 16 & 255, value & 0xFFFF
        if value == 0:
            continue
        if category not in known or flags > 15:
            raise DataError(f"{where}: class {category} with flags {flags}, must be 1..8 with flags 0..15")
        if flags & IGNORED:
            classes[place] = VOID
            continue
        classes[place] = category
        if flags & CROWD:
            instances[place] = UNIDENTIFIED
        elif 0 < number < UNIDENTIFIED:
            instances[place] = number
            native_ids[f"{category}/{number}"] = number
        else:
            raise DataError(
                f"{where}: an object of class {category} has the id {number}, must be 1..{UNIDENTIFIED - 1}"
            )
    places = np.searchsorted(found, packed)
    return Label(classes[places], instances[places], native_ids)


def _numbered(video: str, folder: Path, suffixes: tuple[str, ...]) -> dict[int, Path]:
    """Number -> path, ascending, of the files `<video>-<number>`."""
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        number = path.stem.removeprefix(f"{video}-")
        if not is_junk(path.name) and path.suffix.lower() in suffixes and number.isdecimal() and number != path.stem:
            found[int(number)] = path
    return dict(sorted(found.items()))


def _read_rles(video: str, path: Path) -> dict[int, object]:
    """Frame number -> its objects, from a Scalabel file, which counts frames from 0."""
    content = read_json(path, f"bdd100k_mots {video}")
    listed = content.get("frames") if isinstance(content, dict) else content
    found: dict[int, object] = {}
    try:
        for entry in listed or []:
            frame = int(entry["frameIndex"]) + 1
            found[frame] = tuple(_drawn(video, frame, shown) for shown in entry.get("labels") or [])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"bdd100k_mots {video}: {path} is malformed: {error!r}") from error
    return found


def _drawn(video: str, frame: int, shown: dict[str, Any]) -> Drawn:
    where, name = f"bdd100k_mots {video}/{frame:06d}", str(shown["category"])
    if name not in CATEGORIES:
        raise DataError(f"{where}: unknown category {name[:40]!r}")
    attributes = shown.get("attributes") or {}
    crowd, ignored = bool(attributes.get("crowd")), bool(attributes.get("ignored"))
    flags = CROWD * crowd | IGNORED * (ignored or name in DISTRACTORS)
    return Drawn(CATEGORIES[name], int(shown["id"]), flags, dict(shown["rle"]))


def _paint(objects: tuple[Drawn, ...], image: Path, where: str) -> NDArray[np.uint32]:
    """The RGBA bitmask that the objects of a JSON file make."""
    height, width = image_size(image, where)
    rgba = np.zeros((height, width, 4), np.uint32)
    for drawn in objects:
        mask = decode_mask(drawn.rle, height, width, f"{where}: object {drawn.number}")
        if rgba[mask].any():
            raise DataError(f"{where}: the mask of object {drawn.number} overlaps another")
        if not 0 <= drawn.number < 1 << 16:
            raise DataError(f"{where}: object {drawn.number} cannot be stored, ids go to {UNIDENTIFIED - 1}")
        rgba[mask] = (drawn.category, drawn.flags, drawn.number >> 8, drawn.number & 255)
    return rgba
