"""YouTube-VIS of both years: objects of 40 classes outlined in every fifth frame; one JSON, masks may overlap."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from post_platform.datasets.files import image_size, is_junk, missing, read_json, require_folder
from post_platform.datasets.frame import FrameRef, Label
from post_platform.datasets.masks import decode_mask, encode_mask
from post_platform.errors import DataError
from post_platform.labels import UNIDENTIFIED, VOID, load_contract

SPLITS = ("train", "valid", "test")
SECONDS_PER_LABELLED_FRAME = 1 / 6


@dataclass(frozen=True)
class Outlined:
    """One object of a frame; `number` is its id over the video, `native` the annotation's."""

    category: int
    number: int
    native: int
    crowd: bool
    mask: Any  # run lengths or polygons, as the JSON has them


@dataclass(frozen=True)
class Outlines:
    """The objects of one frame, and the size that the JSON gives the video."""

    height: int
    width: int
    objects: tuple[Outlined, ...]


def frames(dataset: str, source: Path, split: str, names: tuple[str, ...]) -> list[FrameRef]:
    """Every frame of a split; the JSON, whose possible `names` below `source` are given, lists videos and files.

    A split whose JSON has no annotations is unlabelled.

    Raises: MissingSplit, or DataError when the JSON is malformed, of the other year, or names a missing image.
    """
    require_folder(dataset, source)
    path = next((source / name for name in names if (source / name).is_file()), None)
    if path is None:
        raise missing(dataset, split, source, [f"{names[0]} and {split}/JPEGImages/<video>"])
    content = read_json(path, f"{dataset} {split}")
    try:
        _require_categories(dataset, content, path)
        tracks: dict[int, list[dict[str, Any]]] | None = None
        if content.get("annotations") is not None:
            tracks = defaultdict(list)
            for entry in content["annotations"]:
                tracks[int(entry["video_id"])].append(entry)
        images = source / split / "JPEGImages"
        refs: list[FrameRef] = []
        for video in content["videos"]:
            own = None if tracks is None else sorted(tracks.pop(int(video["id"]), []), key=lambda entry: entry["id"])
            refs += _video(dataset, images, video, own)
    except (AttributeError, KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise DataError(f"{dataset} {split}: {path} is malformed: {error!r}") from error
    if tracks:
        raise DataError(f"{dataset} {split}: {path} annotates the unlisted video {next(iter(tracks))}")
    return refs


def label(dataset: str, ref: FrameRef) -> Label:
    """The label of one frame: where masks overlap the smallest is on top, and all are kept whole in `masks`.

    Crowds are void, under every object.

    Raises: DataError for a mask that does not fill its size, or a size that is not the image's.
    """
    where = f"{dataset} {ref.key}"
    assert isinstance(ref.label, Outlines)
    height, width = ref.label.height, ref.label.width
    if (height, width) != (size := image_size(ref.image, where)):
        raise DataError(f"{where}: label is {height}x{width}, image is {size[0]}x{size[1]}")
    drawn = [(decode_mask(o.mask, height, width, f"{where}: annotation {o.native}"), o) for o in ref.label.objects]
    classes, instances = np.zeros((height, width), np.uint8), np.zeros((height, width), np.uint16)
    native_ids: dict[str, int] = {}
    masks: dict[str, str] = {}
    for mask, outlined in drawn_in_order(drawn):
        if outlined.crowd:
            classes[mask] = VOID
            continue
        if not mask.any():
            continue
        classes[mask], instances[mask] = outlined.category, outlined.number
        name = f"{outlined.category}/{outlined.number}"
        native_ids[name], masks[name] = outlined.native, encode_mask(mask)
    return Label(classes, instances, native_ids, masks)


def drawn_in_order(drawn: list[tuple[NDArray[np.bool_], Outlined]]) -> list[tuple[NDArray[np.bool_], Outlined]]:
    """Crowds first, then objects from the largest to the smallest; of equal ones, the later annotation on top."""
    return sorted(drawn, key=lambda pair: (not pair[1].crowd, -int(pair[0].sum()), pair[1].native))


def _require_categories(dataset: str, content: Any, path: Path) -> None:
    """The two years number their classes differently, so a file of the other one would be read without complaint."""
    listed = {int(entry["id"]): str(entry["name"]) for entry in content.get("categories") or []}
    known = {entry.id: entry.name for entry in load_contract(dataset).classes}
    for number, name in listed.items():
        if known.get(number) != name:
            other = dataset[:-4] + ("2021" if dataset.endswith("2019") else "2019")
            raise DataError(
                f"{dataset}: {path.name} calls category {number} {name[:40]!r}, expected {known.get(number)!r}",
                hint=f"of the other year? python pipelines/convert.py {other} --source <folder> --out <root>",
            )


def _video(dataset: str, images: Path, video: dict[str, Any], tracks: list[dict[str, Any]] | None) -> list[FrameRef]:
    """The frames of one video in time order; `tracks` None = unlabelled."""
    number, height, width = int(video["id"]), int(video["height"]), int(video["width"])
    files = [PurePosixPath(str(name)) for name in video["file_names"]]
    name = files[0].parent.name
    where = f"{dataset} {name or number}"
    if any(file.parent.name != name or len(file.parts) != 2 or is_junk(name) or ".." in file.parts for file in files):
        raise DataError(f"{where}: file_names must be <video>/<frame>.jpg, of one video")
    stamps = [int(file.stem) for file in files]
    if any(two <= one for one, two in pairwise(stamps)):
        raise DataError(f"{where}: file_names are not in time order")
    folder = images / name
    present = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    absent = [file.name for file in files if file.name not in present]
    if absent:
        raise DataError(f"{where}: {len(absent)} of {len(files)} images are not in {folder}, first {absent[0]!r}")
    step = min((two - one for one, two in pairwise(stamps)), default=1)
    objects = None if tracks is None else _objects(where, dataset, tracks, len(files))
    refs: list[FrameRef] = []
    for place, (file, stamp) in enumerate(zip(files, stamps, strict=True)):
        seconds = round(SECONDS_PER_LABELLED_FRAME * (stamp - stamps[place - 1]) / step, 6) if place else None
        outlines = None if objects is None else Outlines(height, width, tuple(objects[place]))
        native: dict[str, int | str] = {"video_id": number, "length": len(files), "index": place}
        refs.append(FrameRef(name, stamp, folder / file.name, outlines, seconds, f"youtube_vis/{name}", native))
    return refs


def _objects(where: str, dataset: str, tracks: list[dict[str, Any]], length: int) -> list[list[Outlined]]:
    """The objects of each frame. An annotation is a track; its id is kept where it can be stored, else counted."""
    natives = [int(track["id"]) for track in tracks]
    if len(set(natives)) < len(natives):
        raise DataError(f"{where}: two annotations have one id")
    fits = all(0 < native < UNIDENTIFIED for native in natives)
    known = {entry.id for entry in load_contract(dataset).classes}
    found: list[list[Outlined]] = [[] for _ in range(length)]
    for place, (native, track) in enumerate(zip(natives, tracks, strict=True), start=1):
        category, shown = int(track["category_id"]), track["segmentations"]
        if category not in known:
            raise DataError(f"{where}: annotation {native} has unknown category {category}")
        if len(shown) != length:
            raise DataError(f"{where}: annotation {native} has {len(shown)} segmentations, the video {length} frames")
        for frame, mask in enumerate(shown):
            if mask is not None and mask != []:
                crowd = bool(track.get("iscrowd", 0))
                found[frame].append(Outlined(category, native if fits else place, native, crowd, mask))
    return found
