"""Listing folders and decoding label PNGs as the official archives really are: with junk, and not to be trusted."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from post_platform.datasets.frame import MissingSplit
from post_platform.errors import DataError

MAX_PIXELS = 1 << 26  # 8192 x 8192; the largest official frame is 3840 x 2160
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


def decode_label_png(content: Path | bytes, where: str, mode: str) -> NDArray[np.generic]:
    """The samples of a label PNG, whose stored mode must be the expected one: 16-bit `I;16`, or 8-bit `RGB`.

    Converting between modes would change ids silently, so another mode is an error.

    Shape: (H, W) uint16 for `I;16`, (H, W, 3) uint8 for `RGB`.
    Raises: DataError naming `where`.
    """
    accepted = ("I;16", "I;16B", "I") if mode == "I;16" else (mode,)
    try:
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content, formats=("PNG",)) as image:
            if image.mode not in accepted:
                raise DataError(f"{where}: label is a PNG of mode {image.mode}, must be {mode}")
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"{where}: label is {image.height}x{image.width}, more than {MAX_PIXELS} pixels")
            values = np.asarray(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{where}: label cannot be read: {' '.join(str(error).split())}") from error
    return values.astype(np.uint16) if mode == "I;16" else values
