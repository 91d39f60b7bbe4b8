"""Listing folders and decoding label PNGs as the official archives really are: with junk, and not to be trusted."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from post_platform.datasets.frame import MissingSplit
from post_platform.errors import DataError

MAX_PIXELS = 1 << 26  # 8192 x 8192; the largest official frame is 3840 x 2160
MAX_IMAGE_BYTES = 1 << 28
MAX_JSON_BYTES = 1 << 31  # the largest official annotation file is below 1 GB
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")


def require_folder(dataset: str, folder: Path) -> None:
    """Raises: DataError when `folder` is not a folder."""
    if not folder.is_dir():
        reason = "is not a folder" if folder.exists() else "does not exist"
        raise DataError(f"{dataset}: source {folder} {reason}", hint="give the unpacked official download as --source")


def is_junk(name: str) -> bool:
    """True for what macOS leaves in archives, and for hidden files."""
    return name.startswith(".") or name == "__MACOSX"


def subfolders(folders: Iterable[Path]) -> dict[str, Path]:
    """Name -> path of the folders inside any of `folders`; empty ones are left out, the first of a name wins."""
    found: dict[str, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            continue
        for path in sorted(folder.iterdir()):
            if not is_junk(path.name) and path.is_dir() and any(not is_junk(inner.name) for inner in path.iterdir()):
                found.setdefault(path.name, path)
    return found


def numbered(folder: Path, suffixes: tuple[str, ...]) -> dict[int, Path]:
    """Number -> path, ascending, of the files whose name is a number; anything else is not a frame.

    Raises: DataError when two files have one number.
    """
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        if is_junk(path.name) or path.suffix.lower() not in suffixes or not path.stem.isdecimal():
            continue
        if int(path.stem) in found:
            raise DataError(f"{folder}: {found[int(path.stem)].name} and {path.name} are the same frame")
        found[int(path.stem)] = path
    return dict(sorted(found.items()))


def missing(dataset: str, split: str, folder: Path, expected: Iterable[str]) -> MissingSplit:
    """The error for a split of which nothing was found."""
    return MissingSplit(
        f"{dataset} {split}: nothing found in {folder}; expected {' or '.join(expected)}",
        hint=f"python pipelines/convert.py {dataset} --source <folder of the official download> --out <root>",
    )


def match_labels(dataset: str, sequence: str, images: Mapping[int, Path], labels: Mapping[int, Path]) -> None:
    """Raises: DataError when image and label files of a sequence are not of the same frames."""
    for one, other, lack in ((images, labels, "label"), (labels, images, "image")):
        alone = [frame for frame in one if frame not in other]
        if alone:
            raise DataError(
                f"{dataset} {sequence}/{alone[0]:06d}: has no {lack} file ({len(alone)} such frames, "
                f"{len(images)} images, {len(labels)} labels)",
                hint="unpack the official archives completely",
            )


PngMode = Literal["I;16", "RGB", "RGBA", "P", "L"]
STORED = {  # PIL's modes of a file that is accepted where such a label is due, and its bits per channel
    "I;16": (("I;16", "I;16B", "I"), (16,)),
    "RGB": (("RGB",), (8,)),
    "RGBA": (("RGBA",), (8,)),
    "P": (("P", "L"), (1, 2, 4, 8)),
    "L": (("L",), (8,)),
}


def decode_label_png(content: Path | bytes, where: str, *modes: PngMode) -> NDArray[np.generic]:
    """The samples of a label PNG, whose stored mode must be one of `modes`; of a palette PNG, the indices.

    Converting between modes would change ids silently, so another mode is an error; so are 16 bits where 8 are due,
    which PIL would cut down without a word.

    Shape: (H, W) uint16 for `I;16`, (H, W) uint8 for `P` and `L`, (H, W, 3) or (H, W, 4) uint8 for `RGB` and `RGBA`.
    Raises: DataError naming `where`.
    """
    content = content if isinstance(content, bytes) else read_image_file(content, where, "label")
    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            bits = content[24]  # of the header, known to be whole by now
            if not any(image.mode in STORED[mode][0] and bits in STORED[mode][1] for mode in modes):
                got = f"{image.mode}, {bits} bits per channel" if bits == 16 and image.mode != "I;16" else image.mode
                raise DataError(f"{where}: label is a PNG of mode {got}, must be {' or '.join(modes)}")
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"{where}: label is {image.height}x{image.width}, more than {MAX_PIXELS} pixels")
            values = np.asarray(image)
            if bits < 8 and image.mode == "L":  # PIL scales grey of few bits up to 0..255
                values = values // np.uint8(255 // ((1 << bits) - 1))
    except UnidentifiedImageError as error:
        raise DataError(f"{where}: label cannot be read: it is not a PNG") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{where}: label cannot be read: {' '.join(str(error).split())}") from error
    return values.astype(np.uint16) if bits == 16 else values


def read_image_file(path: Path, where: str, what: str = "image") -> bytes:
    """The bytes of an image file, never more than an image has.

    Decoders get bytes, not files: asked for a chunk that claims gigabytes, a file sets the memory aside at once.

    Raises: DataError naming `where` when it cannot be read or is too large.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_IMAGE_BYTES + 1)
    except OSError as error:
        raise DataError(f"{where}: {what} cannot be read: {error.strerror} ({path})") from error
    if len(content) > MAX_IMAGE_BYTES:
        raise DataError(f"{where}: {what} {path} is larger than {MAX_IMAGE_BYTES} bytes")
    return content


def image_size(path: Path, where: str) -> tuple[int, int]:
    """Height and width of an image, from its header. Raises: DataError naming `where` when it has none."""
    content = read_image_file(path, where)
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as opened:
            return opened.height, opened.width
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{where}: image cannot be read: {' '.join(str(error).split())}") from error


def read_json(path: Path, where: str) -> Any:
    """The content of an annotation file.

    Raises: DataError naming `where` when it is too large, not JSON, or nested beyond reason.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise DataError(f"{where}: {path} is larger than {MAX_JSON_BYTES} bytes")
        return json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{where}: {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{where}: {path} is not JSON: {error}") from error
    except RecursionError as error:
        raise DataError(f"{where}: {path} is not an annotation file: its JSON is nested too deeply") from error


def read_lines(path: Path, where: str) -> list[tuple[int, str]]:
    """The lines of a text file that are not blank, with their numbers from 1. Raises: DataError naming `where`."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise DataError(f"{where}: {path} is larger than {MAX_JSON_BYTES} bytes")
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise DataError(f"{where}: {path} cannot be read: {error.strerror}") from error
    return [(number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
