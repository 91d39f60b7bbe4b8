"""What KITTI-MOTS and KITTI-STEP share: the videos of KITTI tracking, 10 frames per second, and their split."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from post_platform.datasets.files import IMAGE_SUFFIXES, numbered
from post_platform.datasets.frame import MissingSplit
from post_platform.errors import DataError

SECONDS_PER_FRAME = 0.1
TRAIN = ("0000", "0001", "0003", "0004", "0005", "0009", "0011", "0012", "0015", "0017", "0019", "0020")
VAL = ("0002", "0006", "0007", "0008", "0010", "0013", "0014", "0016", "0018")
TEST = tuple(f"{number:04d}" for number in range(29))  # of `testing`: other videos than training's 0000...0020
OFFICIAL = {"train": TRAIN, "val": VAL, "test": TEST}
FOLDER = {"train": "training", "val": "training", "test": "testing"}

logger = logging.getLogger(__name__)


def read_seqmap(folders: Iterable[Path], split: str) -> dict[str, range] | None:
    """Sequence -> its frame numbers, from the first `<split>.seqmap` found; None when there is none.

    A line is `0002 empty 000000 000232`; the last number is the last frame, inclusive.

    Raises: DataError naming file and line.
    """
    path = next((folder / f"{split}.seqmap" for folder in folders if (folder / f"{split}.seqmap").is_file()), None)
    if path is None:
        return None
    frames: dict[str, range] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        fields = line.split()
        if not fields:
            continue
        legal = len(fields) == 4 and all(field.isdecimal() and len(field) < 10 for field in fields[2:])
        if not legal or fields[0] in frames:
            raise DataError(
                f"{path}, line {number}: {line[:80]!r} is not '<sequence> empty <first frame> <last frame>'"
            )
        frames[fields[0]] = range(int(fields[2]), int(fields[3]) + 1)
    return frames


def choose_sequences(
    dataset: str, split: str, folders: dict[str, Path], seqmap: dict[str, range] | None
) -> dict[str, Path]:
    """The folders of a split's sequences, in name order: the seqmap decides, else the official list.

    Of the official list, sequences that are not on disk are left out with a warning; a seqmap must be complete.

    Raises: DataError when a sequence of the seqmap is missing; MissingSplit when no official one is there.
    """
    if seqmap is not None:
        absent = [name for name in seqmap if name not in folders]
        if absent:
            raise DataError(f"{dataset} {split}: sequences {', '.join(absent[:5])} of {split}.seqmap have no images")
        return {name: folders[name] for name in sorted(seqmap)}
    chosen = {name: folders[name] for name in OFFICIAL[split] if name in folders}
    if not chosen:
        raise MissingSplit(
            f"{dataset} {split}: none of the official sequences {', '.join(OFFICIAL[split][:3])}... is there; "
            f"found {', '.join(sorted(folders)[:5]) or 'no sequence'}",
            hint=f"for sequences of your own, write {split}.seqmap beside the labels: <name> empty <first> <last>",
        )
    if len(chosen) < len(OFFICIAL[split]):
        logger.warning(
            "%s %s: %d of the %d official sequences found", dataset, split, len(chosen), len(OFFICIAL[split])
        )
    return chosen


def sequence_images(dataset: str, sequence: str, folder: Path, expected: range | None = None) -> dict[int, Path]:
    """Frame number -> image file of one sequence; exactly the `expected` frames where these are known.

    Raises: DataError naming the sequence when there is no image, or when one is missing or too many.
    """
    images = numbered(folder, IMAGE_SUFFIXES)
    if not images:
        raise DataError(f"{dataset} {sequence}: no image in {folder}")
    if expected is not None and (len(images) != len(expected) or list(images) != list(expected)):
        raise DataError(
            f"{dataset} {sequence}: {len(images)} images ({min(images):06d} to {max(images):06d}) in {folder}, "
            f"the seqmap says {len(expected)} ({expected[0]:06d} to {expected[-1]:06d})"
        )
    return images


def source_video(split: str, sequence: str) -> str:
    """The recording, by the folder that KITTI tracking keeps it in."""
    return f"kitti_tracking/{FOLDER[split]}/{sequence}"
