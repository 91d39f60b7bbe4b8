"""DAVIS, unsupervised: short videos in which objects of any kind are outlined; palette PNG of object numbers."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from post_platform.datasets.files import (
    IMAGE_SUFFIXES,
    decode_label_png,
    is_junk,
    missing,
    numbered,
    read_lines,
    require_folder,
)
from post_platform.datasets.frame import FrameRef, Label, video_frames
from post_platform.errors import DataError
from post_platform.labels import VOID
from post_platform.runs import distinct

SPLITS = ("train", "val", "test_dev", "test_challenge")
LISTS = {
    "train": "2017/train.txt",
    "val": "2017/val.txt",
    "test_dev": "2019/test-dev.txt",
    "test_challenge": "2019/test-challenge.txt",
}
LABELLED = ("train", "val")
SECONDS_PER_FRAME = 1 / 24  # nominal; the files do not say
RESOLUTIONS = ("480p", "Full-Resolution")
VOID_FROM = 254  # the evaluation code says 255, another 254
OBJECT = 1  # the contract's only class

logger = logging.getLogger(__name__)


def frames(source: Path, split: str) -> list[FrameRef]:
    """Every frame of a split, whose sequences `ImageSets/<year>/<split>.txt` lists, in `source` or in its `DAVIS`.

    Images at 480p, else at full resolution; labels from `Annotations_unsupervised` alone, since `Annotations` outlines
    other objects. A frame without a label file is unlabelled. Listed sequences that are not there are left out. There
    is a warning of either.

    Raises: MissingSplit when the list, or every sequence of it, is missing.
    """
    require_folder("davis_unsup", source)
    roots = [root for root in (source, source / "DAVIS") if (root / "ImageSets" / LISTS[split]).is_file()]
    trees = [root / "JPEGImages" / name for root in roots for name in RESOLUTIONS]
    present = [tree for tree in trees if tree.is_dir()]
    if not present:
        raise missing("davis_unsup", split, source, [f"ImageSets/{LISTS[split]} and JPEGImages/480p/<sequence>"])
    images = present[0]
    root = images.parent.parent
    names = [line.strip() for _, line in read_lines(root / "ImageSets" / LISTS[split], f"davis_unsup {split}")]
    refs: list[FrameRef] = []
    absent: list[str] = []
    for name in dict.fromkeys(names):
        if "/" in name or is_junk(name):
            raise DataError(f"davis_unsup {split}: {LISTS[split]} lists {name[:60]!r}, which is no sequence's name")
        found = numbered(images / name, IMAGE_SUFFIXES) if (images / name).is_dir() else {}
        if not found:
            absent.append(name)
            continue
        labels: dict[int, object] = {}
        folder = root / "Annotations_unsupervised" / images.name / name
        if split in LABELLED and folder.is_dir():
            labels = dict(numbered(folder, (".png",)))
            alone = [frame for frame in labels if frame not in found]
            if alone:
                raise DataError(f"davis_unsup {name}/{alone[0]:06d}: has a label but no image")
        refs += video_frames(name, found, labels, SECONDS_PER_FRAME, f"davis/{name}")
    if not refs:
        raise missing("davis_unsup", split, source, [f"a sequence of ImageSets/{LISTS[split]} in {images}"])
    if absent:
        logger.warning("davis_unsup %s: %d of the %d listed sequences are not there", split, len(absent), len(names))
    bare = sum(ref.label is None for ref in refs)
    if split in LABELLED and bare:
        logger.warning(
            "davis_unsup %s: %d of %d frames have no label in Annotations_unsupervised/%s",
            split, bare, len(refs), images.name,
        )  # fmt: skip
    return refs


def label(ref: FrameRef) -> Label:
    """The label of one frame: index k of the palette is object k, all of one class.

    Raises: DataError for an unreadable file, or one that has colours instead of a palette.
    """
    assert isinstance(ref.label, Path)
    values = decode_label_png(ref.label, f"davis_unsup {ref.key}", "P").astype(np.uint8, copy=False)
    objects = [value for value in distinct(values).tolist() if 0 < value < VOID_FROM]
    classes = np.full(256, VOID, np.uint8)
    classes[0], classes[objects] = 0, OBJECT
    instances = np.zeros(256, np.uint16)
    instances[objects] = objects
    return Label(classes.take(values), instances.take(values), {f"{OBJECT}/{value}": value for value in objects})
