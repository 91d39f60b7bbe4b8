"""What MOTS20 and MOTChallenge-STEP share: videos of MOT16/17 under several names, with frames that count from 1."""

from __future__ import annotations

import configparser
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from post_platform.datasets.files import IMAGE_SUFFIXES, numbered
from post_platform.errors import DataError

MAX_FRAMES = 1 << 20


@dataclass(frozen=True)
class SequenceInfo:
    """What a sequence's `seqinfo.ini` says."""

    images: str
    frames_per_second: float
    length: int


def read_seqinfo(dataset: str, folder: Path) -> SequenceInfo:
    """The `seqinfo.ini` of a sequence. Raises: DataError naming dataset, sequence and key."""
    path = folder / "seqinfo.ini"
    parser = configparser.ConfigParser(interpolation=None)
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            parser.read_string(file.read(1 << 16))
        section = parser["Sequence"]
        rate, length = float(section["frameRate"]), int(section["seqLength"][:20])
    except OSError as error:
        raise DataError(f"{dataset} {folder.name}: {path} cannot be read: {error.strerror}") from error
    except (configparser.Error, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise DataError(f"{dataset} {folder.name}: seqinfo.ini is malformed: {reason}") from error
    if not (0 < rate <= 1000 and 0 < length <= MAX_FRAMES):
        raise DataError(f"{dataset} {folder.name}: seqinfo.ini says {length} frames at {rate} per second")
    images = section.get("imDir", "img1")
    if not re.fullmatch(r"\w[\w.-]*", images):
        raise DataError(f"{dataset} {folder.name}: seqinfo.ini names the image folder {images[:40]!r}")
    return SequenceInfo(images, rate, length)


def sequence_images(dataset: str, sequence: str, folder: Path, length: int | None = None) -> dict[int, Path]:
    """Frame number -> image of one sequence: 1, 2, ... without a gap, `length` of them where that is known.

    Raises: DataError naming the sequence.
    """
    images = numbered(folder, IMAGE_SUFFIXES) if folder.is_dir() else {}
    if not images:
        raise DataError(f"{dataset} {sequence}: no image in {folder}")
    expected = length or len(images)
    if list(images) != list(range(1, expected + 1)):
        raise DataError(
            f"{dataset} {sequence}: {len(images)} images ({min(images):06d} to {max(images):06d}) in {folder}, "
            f"expected {expected} (000001 to {expected:06d})",
            hint="unpack the official archives completely",
        )
    return images


def video_number(name: str) -> str | None:
    """`02` for `MOTS20-02`, `MOT17-02-FRCNN`, `STEP-ICCV21-02` and `0002`; None for what is no such name."""
    match = re.fullmatch(r"(?:MOTS20|MOT1[67]|STEP-ICCV21)-(\d\d)(?:-\w+)?|00(\d\d)", name)
    return (match[1] or match[2]) if match else None


def source_video(number: str) -> str:
    """The recording, by its two digits."""
    return f"motchallenge/{number}"


def by_number(folders: Mapping[str, Path]) -> dict[str, Path]:
    """Two digits -> folder, of the folders whose names tell a video; of two names for one video the first."""
    found: dict[str, Path] = {}
    for name, path in folders.items():
        number = video_number(name)
        if number is not None:
            found.setdefault(number, path)
    return found
