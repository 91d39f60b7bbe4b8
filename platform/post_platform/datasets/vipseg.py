"""VIPSeg: short videos of anything, every pixel labelled with 124 classes; PNG of class, or class*100 + instance."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np

from post_platform.datasets.files import (
    decode_label_png,
    is_junk,
    match_labels,
    missing,
    numbered,
    read_lines,
    require_folder,
)
from post_platform.datasets.frame import FrameRef, Label, video_frames
from post_platform.errors import DataError
from post_platform.labels import UNIDENTIFIED, VOID, load_contract
from post_platform.runs import distinct

SPLITS = ("train", "val", "test")
SECONDS_PER_FRAME = 0.2 / 3  # file names count the 15 frames per second of the video, of which every third is there
THINGS_FROM = 125
WRONG_VALUE, WRONG_VIDEO = 200, "353_-5sqmCF8OFU"  # an annotation error of the release: void
LAYOUTS = (("imgs", "panomasks"), ("images", "panomasks"))  # as released, and as its 720p script writes it
ROOTS = ("", "VIPSeg", "VIPSeg_720P", "VIPSeg-Dataset/VIPSeg")


def frames(source: Path, split: str) -> list[FrameRef]:
    """Every frame of a split, whose videos `<split>.txt` lists: `imgs/<video>/*.jpg` and `panomasks/<video>/*.png`.

    The 720p version (`images` instead of `imgs`) is read as well. A test video without masks is unlabelled.

    Raises: MissingSplit, or DataError when a listed video lacks images or masks.
    """
    require_folder("vipseg", source)
    roots = [source / name for name in ROOTS if (source / name / f"{split}.txt").is_file()]
    if not roots:
        raise missing("vipseg", split, source, [f"{split}.txt, imgs/<video> and panomasks/<video>"])
    found_layouts = [(root / one, root / other) for root in roots for one, other in LAYOUTS if (root / one).is_dir()]
    if not found_layouts:
        raise missing("vipseg", split, source, ["imgs/<video> beside the list"])
    images, masks = found_layouts[0]
    refs: list[FrameRef] = []
    for video in _videos(roots[0] / f"{split}.txt", split):
        folder = images / video
        found = numbered(folder, (".jpg", ".jpeg", ".png")) if folder.is_dir() else {}
        if not found:
            raise DataError(
                f"vipseg {video}: {split}.txt lists it, but there is no image in {folder}",
                hint="unpack the official archives completely",
            )
        labels: dict[int, object] | None = None
        if (masks / video).is_dir() and (files := numbered(masks / video, (".png",))):
            match_labels("vipseg", video, found, files)
            labels = dict(files)
        elif split != "test":
            raise DataError(f"vipseg {video}: no mask in {masks / video}")
        refs += video_frames(video, found, labels, SECONDS_PER_FRAME, f"vipseg/{video}")
    return refs


def label(ref: FrameRef) -> Label:
    """The label of one frame; the contract's ids are the PNG's classes - 1, instance = native + 1.

    Raises: DataError for a value that is no class, or a stuff class with an instance.
    """
    where = f"vipseg {ref.key}"
    assert isinstance(ref.label, Path)
    values = decode_label_png(ref.label, where, "I;16", "L").astype(np.uint16, copy=False)
    known = distinct(values).tolist()
    classes, instances = np.full(1 << 16, VOID, np.uint8), np.zeros(1 << 16, np.uint16)
    native_ids: dict[str, int] = {}
    for value in known:
        if value == 0 or (value == WRONG_VALUE and ref.label.parent.name == WRONG_VIDEO):
            continue
        raw, instance = (value, None) if value < THINGS_FROM else divmod(value, 100)
        if raw not in _things():
            raise DataError(f"{where}: value {value} has class {raw}, must be 1..124")
        if instance is not None and not _things()[raw]:
            raise DataError(f"{where}: value {value} is an instance of class {raw}, which is stuff")
        classes[value] = raw - 1
        if instance is not None:
            instances[value] = instance + 1
            native_ids[f"{raw - 1}/{instance + 1}"] = value
        elif _things()[raw]:
            instances[value] = UNIDENTIFIED
    return Label(classes.take(values), instances.take(values), native_ids)


@cache
def _things() -> dict[int, bool]:
    """The PNG's class -> whether it is a thing."""
    return {entry.raw: entry.isthing for entry in load_contract("vipseg").classes if entry.raw is not None}


def _videos(path: Path, split: str) -> list[str]:
    """The names in a split's list. Raises: DataError for one that is no folder's name, or is there twice."""
    names = [line.strip() for _, line in read_lines(path, f"vipseg {split}")]
    for name in names:
        if "/" in name or is_junk(name):
            raise DataError(f"vipseg {split}: {path.name} lists {name[:60]!r}, which is no video's name")
    if len(set(names)) < len(names):
        raise DataError(f"vipseg {split}: {path.name} lists {Counter(names).most_common(1)[0][0]!r} twice")
    return names
