"""YouTube-VIS of both years: objects of 40 classes outlined in every fifth frame; one JSON, masks may overlap."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from post_platform.datasets.files import MAX_PIXELS, image_size, is_junk, missing, read_json, require_folder
from post_platform.datasets.frame import FrameRef, Label
from post_platform.datasets.masks import decode_mask, encode_mask
from post_platform.errors import DataError
from post_platform.labels import UNIDENTIFIED, VOID, load_contract

SPLITS = ("train", "valid", "test")
SECONDS_PER_LABELLED_FRAME = 1 / 6


@dataclass(frozen=True)
class Video:
    """A video that a JSON lists: its images lie in the folder `name`, and `stamps` are their numbers, ascending."""

    number: int
    name: str
    height: int
    width: int
    files: tuple[str, ...]
    stamps: tuple[int, ...]


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
        videos = listed_videos(dataset, content, path)
        tracks: dict[int, list[dict[str, Any]]] | None = None
        if content.get("annotations") is not None:
            tracks = defaultdict(list)
            for entry in content["annotations"]:
                tracks[int(entry["video_id"])].append(entry)
        images = source / split / "JPEGImages"
        refs: list[FrameRef] = []
        for video in videos:
            own = None if tracks is None else sorted(tracks.pop(video.number, []), key=lambda entry: int(entry["id"]))
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


def listed_videos(dataset: str, content: Any, path: Path) -> list[Video]:
    """The videos of a JSON that was read from `path`, in its order; each has an id and a folder of its own.

    Raises: DataError when the JSON is of the other year, or lists a video twice or one that cannot be; whatever Python
        raises where it is malformed.
    """
    _require_categories(dataset, content, path)
    videos = [_listed(dataset, entry) for entry in content["videos"]]
    for what, values in (("id", [video.number for video in videos]), ("folder", [video.name for video in videos])):
        twice = [value for value, count in Counter(values).items() if count > 1]
        if twice:
            raise DataError(f"{dataset}: {path.name} lists two videos of {what} {twice[0]}")
    return videos


def _listed(dataset: str, entry: dict[str, Any]) -> Video:
    number, height, width = int(entry["id"]), int(entry["height"]), int(entry["width"])
    files = [PurePosixPath(str(name)) for name in entry["file_names"]]
    name = files[0].parent.name
    legal = name != "" and not is_junk(name) and name.isprintable()
    for file in files:
        numbered = file.stem.isdecimal() and len(file.stem) < 10
        if not (legal and numbered and file.parent.name == name and len(file.parts) == 2):
            raise DataError(
                f"{dataset} video {number}: file_names must be <video>/<number>.jpg, of one video, "
                f"got {str(file)[:60]!r}"
            )
    where = f"{dataset} {name}"
    if not (height > 0 and width > 0 and height * width <= MAX_PIXELS):
        raise DataError(f"{where}: size {height}x{width}, must be 1 to {MAX_PIXELS} pixels")
    stamps = [int(file.stem) for file in files]
    if any(two <= one for one, two in pairwise(stamps)):
        raise DataError(f"{where}: file_names are not in time order")
    return Video(number, name, height, width, tuple(file.name for file in files), tuple(stamps))


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


def _video(dataset: str, images: Path, video: Video, tracks: list[dict[str, Any]] | None) -> list[FrameRef]:
    """The frames of one video in time order; `tracks` None = unlabelled."""
    name, length, stamps = video.name, len(video.files), video.stamps
    where, folder = f"{dataset} {name}", images / name
    present = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    absent = [file for file in video.files if file not in present]
    if absent:
        raise DataError(f"{where}: {len(absent)} of {length} images are not in {folder}, first {absent[0]!r}")
    step = min((two - one for one, two in pairwise(stamps)), default=1)
    objects = None if tracks is None else _objects(where, dataset, tracks, length)
    refs: list[FrameRef] = []
    for place, (file, stamp) in enumerate(zip(video.files, stamps, strict=True)):
        seconds = round(SECONDS_PER_LABELLED_FRAME * (stamp - stamps[place - 1]) / step, 6) if place else None
        outlines = None if objects is None else Outlines(video.height, video.width, tuple(objects[place]))
        native: dict[str, int | str] = {"video_id": video.number, "length": length, "index": place}
        refs.append(FrameRef(name, stamp, folder / file, outlines, seconds, f"youtube_vis/{name}", native))
    return refs


def _objects(where: str, dataset: str, tracks: list[dict[str, Any]], length: int) -> list[list[Outlined]]:
    """The objects of each frame. An annotation is a track; its id is kept where it can be stored, else counted."""
    natives = [int(track["id"]) for track in tracks]
    if len(set(natives)) < len(natives):
        raise DataError(f"{where}: two annotations have one id")
    if len(natives) >= UNIDENTIFIED:
        raise DataError(f"{where}: {len(natives)} annotations, no more than {UNIDENTIFIED - 1} can be stored")
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
