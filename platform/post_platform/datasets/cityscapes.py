"""Cityscapes, fine annotations: stills, every pixel labelled; 16-bit PNG of class, or class*1000 + number of an object.

Of the annotation only `*_gtFine_instanceIds.png` is read, which says all that the others say.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from post_platform.datasets.files import decode_label_png, is_junk, match_labels, missing, require_folder, subfolders
from post_platform.datasets.frame import FrameRef, Label
from post_platform.errors import DataError
from post_platform.labels import UNIDENTIFIED, VOID, load_contract, thing_table

SPLITS = ("train", "val", "test")
IMAGE, LABEL = "_leftImg8bit.png", "_gtFine_instanceIds.png"
NAME = re.compile(r"(.+_[0-9]{6})_([0-9]{6})")  # <city>_<sequence>, and the number of the frame


def frames(source: Path, split: str) -> list[FrameRef]:
    """Every image of a split; sequence `<city>_<sequence>`, whose images are stills, however many it has.

    `leftImg8bit/` and `gtFine/` lie in `source`, or in folders of it, such as those that the zips are named after. What
    `gtFine/test` holds is a dummy, so images of test are unlabelled.

    Raises: MissingSplit, or DataError when an image has no label file or a label file no image.
    """
    require_folder("cityscapes", source)
    images = stills(_cities(source, "leftImg8bit", split), IMAGE)
    if not images:
        raise missing("cityscapes", split, source, [f"leftImg8bit/{split}/<city>/*{IMAGE}"])
    labels = {} if split == "test" else stills(_cities(source, "gtFine", split), LABEL)
    refs: list[FrameRef] = []
    for sequence in sorted(images.keys() | labels.keys()):
        mine, files = images.get(sequence, {}), labels.get(sequence, {})
        if split != "test":
            match_labels("cityscapes", sequence, mine, files)
        for frame, image in mine.items():
            video = source_video(sequence, frame)
            refs.append(FrameRef(sequence, frame, image, files.get(frame), None, video))
    return refs


def label(ref: FrameRef) -> Label:
    """The label of one image; see `decode`."""
    assert isinstance(ref.label, Path)
    return decode(ref.label, f"cityscapes {ref.key}")


def source_video(sequence: str, frame: int) -> str:
    """The snippet of 30 frames that an image is the 20th of."""
    return f"cityscapes/{sequence}_{frame:06d}"


def stills(folders: Iterable[Path], suffix: str) -> dict[str, dict[int, Path]]:
    """Sequence -> frame number -> the file called `<city>_<sequence>_<frame><suffix>`, frames ascending.

    Raises: DataError when two folders have a file of one name.
    """
    found: dict[str, dict[int, Path]] = {}
    for path in sorted(path for folder in folders for path in folder.iterdir()):
        match = NAME.fullmatch(path.name.removesuffix(suffix))
        if match is None or is_junk(path.name) or not path.name.endswith(suffix):
            continue
        files = found.setdefault(match[1], {})
        other = files.setdefault(int(match[2]), path)
        if other != path:
            raise DataError(f"cityscapes {match[1]}/{match[2]}: {other} and {path} are the same frame")
    return {sequence: dict(sorted(files.items())) for sequence, files in found.items()}


def decode(path: Path, where: str) -> Label:
    """An `instanceIds` PNG; instance = number + 1. A value below 1000 of a thing is a group, without identity.

    Raises: DataError naming `where` for a value that is no class, or an object of a class without objects.
    """
    values = decode_label_png(path, where, "I;16")
    classes, instances, legal = _tables()
    drawn = np.flatnonzero(np.bincount(values.ravel(), minlength=1 << 16))
    wrong = drawn[~legal[drawn]]
    if wrong.size:
        raise DataError(f"{where}: value {int(wrong[0])} is neither a class id nor class*1000 + number of an object")
    objects = drawn[(instances[drawn] > 0) & (instances[drawn] < UNIDENTIFIED)].tolist()
    native_ids = {f"{int(classes[value])}/{int(instances[value])}": value for value in objects}
    return Label(classes[values], instances[values], native_ids)


@cache
def _tables() -> tuple[NDArray[np.uint8], NDArray[np.uint16], NDArray[np.bool_]]:
    """What each of the 65536 values of the PNG means: class, instance, and whether it may occur at all."""
    contract = load_contract("cityscapes")
    values = np.arange(1 << 16)
    native = np.where(values < 1000, values, values // 1000)
    classes, legal = np.full(1 << 16, VOID, np.uint8), np.zeros(1 << 16, bool)
    stored = {entry.id: entry.id for entry in contract.classes}
    counted = {entry.id: entry.has_instances for entry in contract.classes}
    counted |= {entry.id: entry.has_instances for entry in contract.ignored_classes}
    for number, has_instances in counted.items():
        mine = (native == number) & ((values < 1000) | has_instances)
        legal |= mine
        classes[mine] = stored.get(number, VOID)
    instances = np.where(values < 1000, UNIDENTIFIED, values % 1000 + 1)
    return classes, np.where(thing_table(contract)[classes], instances, 0).astype(np.uint16), legal


def _cities(source: Path, tree: str, split: str) -> list[Path]:
    bases = (source, *subfolders([source]).values())
    return list(subfolders(base / tree / split for base in bases).values())
