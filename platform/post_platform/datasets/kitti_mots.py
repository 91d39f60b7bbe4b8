"""KITTI-MOTS: KITTI tracking videos with cars and pedestrians; 16-bit PNG or text labels of class*1000 + instance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from post_platform.datasets import kitti_tracking
from post_platform.datasets.files import decode_label_png, missing, numbered, require_folder, subfolders
from post_platform.datasets.frame import FrameRef, Label
from post_platform.errors import DataError
from post_platform.labels import VOID

SPLITS = ("train", "val", "test")
CLASSES = (1, 2)
IGNORE = 10  # 10000, and whatever else has class 10


def frames(source: Path, split: str) -> list[FrameRef]:
    """Every frame of a split. Two layouts are accepted, the official one and `KITTI_MOTS/train/{images,instances}`.

    Labels are taken from the PNGs; from the text files for a sequence without PNGs. `<split>.seqmap` beside the
    labels decides the split; without it the official list does. Every frame of a labelled split must have a label: a
    frame without objects is an all-zero PNG, or a text file without a line for it.

    Raises: MissingSplit, or DataError when a sequence is incomplete.
    """
    require_folder("kitti_mots", source)
    roots = [root for root in (source, source / "KITTI_MOTS") if root.is_dir()]
    if split == "test":
        image_folders, expected = ["testing/image_02", "test/images"], "testing/image_02/<sequence> or test/images"
    else:
        image_folders = ["training/image_02", "train/images", f"{split}/images"]
        expected = "training/image_02/<sequence>, or train/images/<sequence>"
    folders = subfolders(root / name for root in roots for name in image_folders)
    if not folders:
        raise missing("kitti_mots", split, source, [expected])
    parents = [root / name for root in roots for name in ("", "training", "train", split)]
    beside = [parent / name for parent in parents for name in ("", "instances", "instances_txt")]
    seqmap = kitti_tracking.read_seqmap(beside, split)
    pngs = subfolders(parent / "instances" for parent in parents)
    refs: list[FrameRef] = []
    for sequence, folder in kitti_tracking.choose_sequences("kitti_mots", split, folders, seqmap).items():
        images = kitti_tracking.sequence_images(
            "kitti_mots", sequence, folder, seqmap[sequence] if seqmap is not None else None
        )
        labels = None if split == "test" else _labels(sequence, images, pngs.get(sequence), parents)
        refs += kitti_tracking.frame_refs(split, sequence, images, labels)
    return refs


def label(ref: FrameRef) -> Label:
    """The label of one frame; instance = native + 1, because native instances start at 0.

    Raises: DataError for an unknown class or instance, overlapping masks, or an unreadable file.
    """
    where = f"kitti_mots {ref.key}"
    if isinstance(ref.label, Path):
        values = decode_label_png(ref.label, where, "I;16").astype(np.int64)
    else:
        assert isinstance(ref.label, tuple)
        values = _paint(ref.label, ref.image, where)
    classes, instances = np.zeros(1 << 16, np.uint8), np.zeros(1 << 16, np.uint16)
    native_ids: dict[str, int] = {}
    for value in np.flatnonzero(np.bincount(values.ravel(), minlength=1 << 16)).tolist():
        class_id, instance = divmod(value, 1000)
        if class_id == IGNORE:
            classes[value] = VOID
        elif class_id in CLASSES:
            classes[value], instances[value] = class_id, instance + 1
            native_ids[f"{class_id}/{instance + 1}"] = value
        elif value != 0:
            raise DataError(f"{where}: value {value} has class {class_id}, must be 1 car, 2 pedestrian or 10 ignore")
    return Label(classes[values], instances[values], native_ids)


def _labels(sequence: str, images: dict[int, Path], pngs: Path | None, parents: list[Path]) -> dict[int, object]:
    if pngs is not None and (files := numbered(pngs, (".png",))):
        kitti_tracking.match_labels("kitti_mots", sequence, images, files)
        return dict(files)
    text = next((path for parent in parents if (path := parent / "instances_txt" / f"{sequence}.txt").is_file()), None)
    if text is None:
        raise DataError(
            f"kitti_mots {sequence}: no label: neither instances/{sequence}/*.png nor instances_txt/{sequence}.txt"
        )
    lines: dict[int, list[str]] = {frame: [] for frame in images}
    for number, line in enumerate(text.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        if not line.strip():
            continue
        first = line.split(maxsplit=1)[0]
        if not first.isdecimal() or int(first) not in lines:
            raise DataError(f"kitti_mots {sequence}: {text.name}, line {number}: frame {first[:20]!r} has no image")
        lines[int(first)].append(line)
    return {frame: tuple(listed) for frame, listed in lines.items()}


def _paint(lines: tuple[str, ...], image: Path, where: str) -> NDArray[np.int64]:
    """The 16-bit label image that the text lines of one frame describe; its size is the image's."""
    try:
        with Image.open(image) as opened:
            width, height = opened.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{where}: image cannot be read: {' '.join(str(error).split())}") from error
    values = np.zeros((height, width), np.int64)
    for line in lines:
        fields = line.split()
        if len(fields) != 6 or not all(field.isdecimal() for field in fields[:5]):
            raise DataError(f"{where}: {line[:60]!r} is not 'frame id class height width rle'")
        _, value, class_id, lines_height, lines_width = map(int, fields[:5])
        if (lines_height, lines_width) != (height, width):
            raise DataError(f"{where}: label is {lines_height}x{lines_width}, image is {height}x{width}")
        if value // 1000 != class_id or value >= 1 << 16:
            raise DataError(f"{where}: id {value} and class {class_id} disagree")
        try:
            mask = coco_mask.decode({"size": [height, width], "counts": fields[5].encode()}).astype(bool)
        except (ValueError, UnicodeEncodeError) as error:
            raise DataError(f"{where}: run lengths of object {value} cannot be decoded: {error}") from error
        if values[mask].any():
            raise DataError(f"{where}: the mask of object {value} overlaps another")
        values[mask] = value
    return values
