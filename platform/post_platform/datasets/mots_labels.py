"""The labels of KITTI-MOTS and MOTS20: 16-bit PNG of class*1000 + instance, or text lines of run lengths."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from post_platform.datasets.files import decode_label_png, image_size, match_labels, numbered, read_lines
from post_platform.datasets.frame import FrameRef, Label
from post_platform.datasets.masks import decode_mask
from post_platform.errors import DataError
from post_platform.labels import VOID, load_contract
from post_platform.runs import distinct

IGNORE = 10  # 10000, and whatever else has class 10


def label(dataset: str, ref: FrameRef) -> Label:
    """The label of one frame; instance = native + 1, because native instances start at 0.

    Raises: DataError for an unknown class or instance, overlapping masks, or an unreadable file.
    """
    where = f"{dataset} {ref.key}"
    if isinstance(ref.label, Path):
        values = decode_label_png(ref.label, where, "I;16").astype(np.uint16, copy=False)
    else:
        assert isinstance(ref.label, tuple)
        values = _paint(ref.label, ref.image, where)
    names = {entry.id: entry.name for entry in load_contract(dataset).classes}
    classes, instances = np.zeros(1 << 16, np.uint8), np.zeros(1 << 16, np.uint16)
    native_ids: dict[str, int] = {}
    for value in distinct(values).tolist():
        class_id, instance = divmod(value, 1000)
        if class_id == IGNORE:
            classes[value] = VOID
        elif class_id in names:
            classes[value], instances[value] = class_id, instance + 1
            native_ids[f"{class_id}/{instance + 1}"] = value
        elif value != 0:
            known = ", ".join(f"{number} {name}" for number, name in names.items())
            raise DataError(f"{where}: value {value} has class {class_id}, must be {known} or {IGNORE} ignore")
    return Label(classes.take(values), instances.take(values), native_ids)


def sequence_labels(
    dataset: str, sequence: str, images: Mapping[int, Path], pngs: Path | None, text: Path | None, expected: str
) -> dict[int, object]:
    """What `label` needs for each frame of a sequence: its PNG from the folder `pngs`, else its lines of `text`.

    Raises: DataError naming the sequence: neither is there (`expected` says what is missing), a frame lacks its PNG, or
        a line is of no frame.
    """
    if pngs is not None and (files := numbered(pngs, (".png",))):
        match_labels(dataset, sequence, images, files)
        return dict(files)
    if text is None:
        raise DataError(f"{dataset} {sequence}: no label: {expected}")
    lines: dict[int, list[str]] = {frame: [] for frame in images}
    for number, line in read_lines(text, f"{dataset} {sequence}"):
        first = line.split(maxsplit=1)[0]
        if not first.isdecimal() or len(first) > 9 or int(first) not in lines:
            raise DataError(f"{dataset} {sequence}: {text.name}, line {number}: frame {first[:20]!r} has no image")
        lines[int(first)].append(line)
    return {frame: tuple(listed) for frame, listed in lines.items()}


def _paint(lines: tuple[str, ...], image: Path, where: str) -> NDArray[np.uint16]:
    """The 16-bit label image that the text lines of one frame describe; its size is the image's."""
    height, width = image_size(image, where)
    values = np.zeros((height, width), np.uint16)
    for line in lines:
        fields = line.split()
        if len(fields) != 6 or not all(field.isdecimal() and len(field) < 10 for field in fields[:5]):
            raise DataError(f"{where}: {line[:60]!r} is not 'frame id class height width rle'")
        _, value, class_id, lines_height, lines_width = map(int, fields[:5])
        if (lines_height, lines_width) != (height, width):
            raise DataError(f"{where}: label is {lines_height}x{lines_width}, image is {height}x{width}")
        if value // 1000 != class_id or value >= 1 << 16:
            raise DataError(f"{where}: id {value} and class {class_id} disagree")
        mask = decode_mask(fields[5], height, width, f"{where}: object {value}")
        if values[mask].any():
            raise DataError(f"{where}: the mask of object {value} overlaps another")
        values[mask] = value
    return values
