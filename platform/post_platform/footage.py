"""Frames in, one at a time: from a video file, a folder of images, or a converted split."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from post_platform import storage, video
from post_platform.data.load import read_frame
from post_platform.datasets.files import is_junk, read_image_file
from post_platform.errors import ConfigError, DataError, StorageError
from post_platform.images import DAMAGE, FORMATS, ORIENTATION, decode_image
from post_platform.shards.index import Split, locate, read_split
from post_platform.video import InputFrame, Size, resized

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
REPLACE = "replace it, or take it away"
FOLDER_FPS, STILLS_FPS = 10.0, 1.0  # of what has no rate of its own


@dataclass(frozen=True)
class Source:
    """What is read: `frames`, once, one at a time.

    `count` is their number as far as it is known before; `fps` that of the source, of which every `every`-th frame is
    read; `dataset` names that of a converted split, whose videos follow one another.
    """

    name: str
    fps: float
    every: int
    count: int | None
    frames: Iterator[InputFrame]
    dataset: str | None = None


def open_source(path: str, every: int = 1, size: Size | None = None, fps: float | None = None) -> Source:
    """Open a video file, a folder of frames or a converted split, to read every `every`-th frame of each video.

    `size` is what frames are brought to; `fps` the frames per second of a folder, 10 where none are given.

    Raises: DataError naming the file that is no image or video, or the two images of a folder that differ in size.
    """
    split = _split_at(path)
    if split is not None:
        return _shards(split, every, size)
    if storage.is_remote(path):
        raise ConfigError(f"{path} is no converted split", "copy the video to this machine first")
    place = Path(path).expanduser()
    if place.is_dir():
        return _folder(place, every, size, fps or FOLDER_FPS)
    if not place.exists():
        raise DataError(f"{path}: not found", "INPUT is a video file, a folder of frames, or ROOT/DATASET/SPLIT")
    file = video.VideoFile(place, every, size)
    return Source(place.stem, file.fps, every, file.count, file.frames())


def _folder(folder: Path, every: int, size: Size | None, fps: float) -> Source:
    listed = sorted(path for path in folder.iterdir() if not is_junk(path.name))
    files = natural_order([path for path in listed if path.suffix.lower() in IMAGES])
    if not files:
        inner = [path.name for path in listed if path.is_dir()]
        found = f"; folders in it: {', '.join(inner[:5])}" if inner else ""
        raise DataError(f"{folder}: no image in it ({', '.join(IMAGES)}){found}", "give the folder of the frames")
    stems: dict[str, Path] = {}
    for path in files:
        if (other := stems.setdefault(path.stem, path)) is not path:
            raise DataError(f"{folder}: {other.name} and {path.name} are the same frame", "remove one kind of file")
    chosen, name = files[::every], folder.resolve().name
    if size is None:
        _require_one_size(chosen)

    def frames() -> Iterator[InputFrame]:
        for place, path in enumerate(chosen):
            image = resized(read_image(path), size)
            yield InputFrame(name, place * every, image, place * every / fps, path.name, first=place == 0)

    return Source(name, fps, every, len(chosen), frames())


def natural_order(paths: list[Path]) -> list[Path]:
    """Paths by name, numbers in it by value: a2.jpg before a10.jpg."""

    def key(path: Path) -> list[tuple[str, int]]:
        return [(text, int(number or 0)) for text, number in re.findall(r"(\D*)(\d*)", path.stem)]

    return sorted(paths, key=key)


def _require_one_size(files: list[Path]) -> None:
    """Raises: DataError naming two images that differ in size, from their headers alone."""
    first = None
    for path in files:
        try:
            with Image.open(path, formats=FORMATS) as image:
                turned = "exif" in image.info and image.getexif().get(ORIENTATION, 1) >= 5  # a camera held upright
                found = (image.width, image.height) if turned else (image.height, image.width)
        except DAMAGE as error:
            raise _unreadable(path, error) from error
        first = first or found
        if found != first:
            (height, width), (high, wide) = first, found
            raise DataError(
                f"{files[0]} is {height}x{width}, {path} is {high}x{wide}",
                f"a folder is one video; bring all to one size: --size {height}x{width}",
            )


def read_image(path: Path) -> np.ndarray:
    """RGB pixels, upright as the camera's tag says; of 16 bits the upper 8; alpha is dropped.

    Raises: DataError naming the file that is no image, is damaged, or too large.
    """
    try:
        return decode_image(read_image_file(path, str(path)), str(path))
    except DataError as error:
        raise DataError(str(error), REPLACE) from error


def _unreadable(path: Path, error: BaseException) -> DataError:
    return DataError(f"{path}: image cannot be read: {' '.join(str(error).split())}", REPLACE)


def _split_at(path: str) -> Split | None:
    """The converted split at ROOT/DATASET/SPLIT, or ROOT/DATASET where it has one, or `val`; else None."""
    try:
        root, dataset, splits = locate(path)
    except StorageError:
        raise
    except (ConfigError, DataError):
        return None
    if len(splits) > 1 and "val" not in splits:
        raise ConfigError(f"{path} has the splits {', '.join(splits)}", f"name one: {path.rstrip('/')}/{splits[0]}")
    return read_split(root, dataset, splits[0] if len(splits) == 1 else "val")


def _shards(split: Split, every: int, size: Size | None) -> Source:
    chosen: list[dict[str, Any]] = []
    steps: list[float] = []
    place = 0
    for row in split.index.to_pylist():
        since = row["seconds_since_previous"]
        place = 0 if since is None else place + 1
        steps += [] if since is None else [since]
        if place % every == 0:
            chosen.append({**row, "first": place == 0})
    fps = 1 / float(np.median(steps)) if steps and np.median(steps) > 0 else STILLS_FPS

    def frames() -> Iterator[InputFrame]:
        for place, row in enumerate(chosen):
            key = f"{row['sequence']}/{row['frame']:06d}"
            found = read_frame(split.folder, row, key)
            yield InputFrame(
                row["sequence"], row["frame"], resized(found.image, size), place * every / fps, key, row["first"],
                {name: value for name, value in found.meta.items() if name not in ("instances", "masks")},
            )  # fmt: skip

    name = f"{split.dataset}/{split.split}"
    return Source(name, fps, every, len(chosen), frames(), split.dataset)
