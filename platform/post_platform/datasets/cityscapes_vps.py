"""Cityscapes-VPS: video snippets of Cityscapes val; RGB PNG of the class colours beside a 16-bit PNG of the objects.

Only the labelled frames are read, every fifth of a snippet, from `<split>/img`; what lies between them, in `img_all`,
is left alone.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from post_platform.datasets import cityscapes
from post_platform.datasets.files import decode_label_png, is_junk, match_labels, missing, read_json, require_folder
from post_platform.datasets.frame import FrameRef, Label, video_frames
from post_platform.errors import DataError
from post_platform.labels import VOID, load_contract, thing_table

logger = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
SECONDS_PER_LABEL = 5 / 17  # frame numbers count labelled frames, every 5th of 17 a second
NAME = re.compile(r"(([0-9]{4})_([0-9]{4})_(.+_[0-9]{6})_([0-9]{6}))_[A-Za-z].*\.png")
ORIGINAL = "_leftImg8bit.png"  # ends the name of the snippet's image that is in Cityscapes itself, its 20th
# Colours of the classes that Cityscapes does not evaluate; license plate and polegroup look like car and pole.
IGNORED_COLORS = (
    (0, 0, 0), (111, 74, 0), (81, 0, 81), (250, 170, 160), (230, 150, 140), (180, 165, 180), (150, 100, 100),
    (150, 120, 90), (0, 0, 90), (0, 0, 110),
)  # fmt: skip
Files = dict[str, dict[int, Path]]
LabelFiles = tuple[Path, Path]
T = TypeVar("T")


def frames(source: Path, split: str) -> list[FrameRef]:
    """Every labelled frame of a split; sequence = the video's four digits, frame = the number that counts on over all.

    `panoptic_im_<split>_city_vps.json`, or `panoptic_gt_<split>_city_vps.json`, says which frames the split has;
    without either it is the content of `<split>/img`. Test has no labels.

    Raises: MissingSplit, or DataError when a frame has no image, no label, or only one of its two label files.
    """
    require_folder("cityscapes_vps", source)
    images = videos(source / split / "img")
    if not images:
        raise missing("cityscapes_vps", split, source, [f"{split}/img/<video>_<frame>_<Cityscapes name>.png"])
    labels = {} if split == "test" else labels_of(source / split)
    listed = _listed(source, split)
    if listed is not None:
        _require_images(split, listed, images)
        images, labels = _only(listed, images, f"{split}/img"), _only(listed, labels, f"{split}/cls")
    refs: list[FrameRef] = []
    for video in sorted(images.keys() | labels.keys()):
        mine, files = images.get(video, {}), labels.get(video, {})
        if split != "test":
            match_labels("cityscapes_vps", video, mine, {frame: colours for frame, (colours, _) in files.items()})
        found = video_frames(video, mine, dict(files), SECONDS_PER_LABEL, _source_video(video, mine))
        refs += [FrameRef(**{**vars(ref), "native": {"image_id": image_id(ref.image)}}) for ref in found]
    return refs


def label(ref: FrameRef) -> Label:
    """The label of one frame; see `decode`."""
    assert isinstance(ref.label, tuple)
    return decode(ref.label, f"cityscapes_vps {ref.key}")


def videos(folder: Path) -> Files:
    """Video -> frame number -> PNG, both ascending, of the files in `folder` that are named like the dataset's.

    Raises: DataError when two files are of one frame.
    """
    found: Files = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        match = NAME.fullmatch(path.name)
        if match is None or is_junk(path.name):
            continue
        other = found.setdefault(match[2], {}).setdefault(int(match[3]), path)
        if other != path:
            raise DataError(f"cityscapes_vps {match[2]}/{int(match[3]):06d}: {other.name} and {path.name} in {folder}")
    return found


def image_id(path: Path) -> str:
    """What the official JSON files call the frame: the name without its last part, which says what the file is."""
    match = NAME.fullmatch(path.name)
    assert match is not None, path
    return match[1]


def labels_of(folder: Path) -> dict[str, dict[int, LabelFiles]]:
    """Video -> frame number -> its files in `cls` and in `inst`.

    Raises: DataError when a frame has one of the two only.
    """
    colours, objects = videos(folder / "cls"), videos(folder / "inst")
    found: dict[str, dict[int, LabelFiles]] = {}
    for video in sorted(colours.keys() | objects.keys()):
        first, second = colours.get(video, {}), objects.get(video, {})
        for frame in sorted(first.keys() ^ second.keys()):
            lack = "inst" if frame in first else "cls"
            raise DataError(
                f"cityscapes_vps {video}/{frame:06d}: has no file in {folder / lack}",
                hint="unpack the official archives completely",
            )
        found[video] = {frame: (first[frame], second[frame]) for frame in first}
    return found


def decode(files: LabelFiles, where: str) -> Label:
    """The label in a frame's two files; instance = value of the object % 1000 + 1.

    A value from 1000 on is an object if the most frequent colour under it is that of a thing, whatever other colours
    are under it. Pixels outside objects have the class of their colour, but a thing outside is void.

    Source: the dataset's own conversion, `sem_inst2pan`. Deviation: a colour that is no Cityscapes class is an error,
        and not void.
    Raises: DataError naming `where` for such a colour, files of two sizes, or an unreadable one.
    """
    rgb = decode_label_png(files[0], where, "RGB", "RGBA")[..., :3].astype(np.int32)
    values = decode_label_png(files[1], where, "I;16").astype(np.int64)
    if rgb.shape[:2] != values.shape:
        sizes = ("x".join(map(str, array.shape[:2])) for array in (rgb, values))
        raise DataError(f"{where}: {files[0].name} and {files[1].name} are {' and '.join(sizes)}")
    codes, meaning = _colours()
    pixels = _code(rgb)
    place = np.searchsorted(codes, pixels).clip(max=len(codes) - 1)
    foreign = rgb[codes[place] != pixels]
    if foreign.size:
        raise DataError(f"{where}: {files[0].name} has colour {tuple(foreign[0].tolist())}, which no class has")
    thing = thing_table(load_contract("cityscapes_vps"))
    under = np.bincount((values * len(codes) + place).ravel(), minlength=len(codes) << 16).reshape(1 << 16, len(codes))
    major = meaning[under.argmax(axis=1)]
    is_object = under.any(axis=1) & thing[major] & (np.arange(1 << 16) >= 1000)
    classes = np.where(is_object[values], major[values], meaning[place])
    classes[thing[classes] & ~is_object[values]] = VOID
    instances = np.where(is_object[values], values % 1000 + 1, 0).astype(np.uint16)
    objects = [(int(major[value]), value % 1000) for value in np.flatnonzero(is_object).tolist()]
    return Label(classes, instances, {f"{c}/{number + 1}": c * 1000 + number for c, number in objects})


@cache
def _colours() -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """All colours of Cityscapes as numbers, ascending, and the class that each stands for."""
    listed = [(entry.color, entry.id) for entry in load_contract("cityscapes_vps").classes]
    listed += [(color, VOID) for color in IGNORED_COLORS]
    codes = _code(np.array([color for color, _ in listed], np.int32))
    order = np.argsort(codes)
    return codes[order], np.array([class_id for _, class_id in listed], np.uint8)[order]


def _code(rgb: NDArray[np.int32]) -> NDArray[np.int32]:
    """R + 256*G + 65536*B: of two equally frequent colours, the dataset's own conversion takes the lower number."""
    return rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]


def _listed(source: Path, split: str) -> dict[tuple[str, int], str] | None:
    """Video and number of the frames that the split's JSON lists, and their image ids; None if there is no JSON."""
    names = (source / f"panoptic_{kind}_{split}_city_vps.json" for kind in ("im", "gt"))
    path = next(filter(Path.is_file, names), None)
    if path is None:
        return None
    try:
        ids = [str(entry["id"]) for entry in read_json(path, f"cityscapes_vps {split}")["images"]]
    except (KeyError, TypeError) as error:
        raise DataError(f"cityscapes_vps {split}: {path} is malformed: {error!r}") from error
    matches = [NAME.fullmatch(f"{name}_x.png") for name in ids]
    listed = {(match[2], int(match[3])): name for name, match in zip(ids, matches, strict=True) if match}
    if len(listed) < len(ids) or not ids:
        raise DataError(
            f"cityscapes_vps {split}: {path} must list images, each once, as <video>_<frame>_<Cityscapes name>"
        )
    return listed


def _require_images(split: str, listed: Mapping[tuple[str, int], str], images: Files) -> None:
    for (video, frame), name in sorted(listed.items()):
        image = images.get(video, {}).get(frame)
        if image is None or image_id(image) != name:
            raise DataError(
                f"cityscapes_vps {video}/{frame:06d}: {split}/img has no image {name}, which the split's JSON lists",
                hint="copy the images of the split out of leftImg8bit_sequence, as the dataset's own scripts do",
            )


def _only(
    listed: Mapping[tuple[str, int], str], files: Mapping[str, dict[int, T]], folder: str
) -> dict[str, dict[int, T]]:
    """The files of listed frames; how many others there are is logged."""
    kept = {v: {f: file for f, file in found.items() if (v, f) in listed} for v, found in files.items()}
    others = sum(map(len, files.values())) - sum(map(len, kept.values()))
    if others:
        logger.warning("cityscapes_vps: %d frames in %s are not of the split, by its JSON", others, folder)
    return {video: found for video, found in kept.items() if found}


def _source_video(video: str, images: Mapping[int, Path]) -> str:
    """The snippet by its image in Cityscapes: that which kept its name, or else the fourth of the six.

    Raises: DataError when neither is there, for nobody would then notice that a run is tested on what it has seen.
    """
    named = [path for path in images.values() if path.name.endswith(ORIGINAL)]
    listed = list(images.values())
    if len(named) != 1 and len(listed) < 4:
        raise DataError(f"cityscapes_vps {video}: {len(listed)} of 6 labelled frames, no image is called *{ORIGINAL}")
    match = NAME.fullmatch(named[0].name if len(named) == 1 else listed[3].name)
    assert match is not None
    return cityscapes.source_video(match[4], int(match[5]))
