"""KITTI-STEP: KITTI tracking videos, every pixel labelled; RGB PNG of Cityscapes trainId and instance."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from post_platform.datasets import kitti_tracking
from post_platform.datasets.files import decode_label_png, missing, numbered, require_folder, subfolders
from post_platform.datasets.frame import FrameRef, Label
from post_platform.errors import DataError
from post_platform.labels import UNIDENTIFIED, VOID, legal_classes, load_contract, thing_table

SPLITS = ("train", "val", "test")
MAPS = ("kitti-step/panoptic_maps", "panoptic_maps")


def frames(source: Path, split: str) -> list[FrameRef]:
    """Every frame of a split; images as `images/<split>/<sequence>`, or in the raw tree of KITTI tracking.

    The folders of `panoptic_maps/<split>` are the split, since the archive is sorted that way.

    Raises: MissingSplit, or DataError when a sequence lacks images or labels.
    """
    require_folder("kitti_step", source)
    sorted_images = subfolders([source / "images" / split])
    images = sorted_images or subfolders([source / kitti_tracking.FOLDER[split] / "image_02"])
    if split == "test":
        if not images:
            raise missing("kitti_step", split, source, ["images/test/<sequence>", "testing/image_02/<sequence>"])
        chosen, maps = images, {}
    else:
        maps = subfolders(source / name / split for name in MAPS)
        if not maps:
            raise missing("kitti_step", split, source, [f"{name}/{split}/<sequence>" for name in MAPS])
        unlabelled = sorted(set(sorted_images) - set(maps))
        if unlabelled:
            raise DataError(f"kitti_step {split}: sequences {', '.join(unlabelled[:5])} have images but no labels")
        absent = sorted(set(maps) - set(images))
        if absent:
            raise DataError(
                f"kitti_step {split}: sequences {', '.join(absent[:5])} have labels but no images",
                hint=f"images belong in images/{split}/<sequence>, or training/image_02/<sequence>",
            )
        chosen = {name: images[name] for name in sorted(maps)}
    refs: list[FrameRef] = []
    for sequence, folder in chosen.items():
        listed = kitti_tracking.sequence_images("kitti_step", sequence, folder)
        labels: dict[int, object] | None = None
        if sequence in maps:
            files = numbered(maps[sequence], (".png",))
            kitti_tracking.match_labels("kitti_step", sequence, listed, files)
            labels = dict(files)
        refs += kitti_tracking.frame_refs(split, sequence, listed, labels)
    return refs


def label(ref: FrameRef) -> Label:
    """The label of one frame: R is the class, G*256 + B the instance as it is.

    Person and car with instance 0 are crowds. All other classes are stuff in this dataset and stay without instance.

    Raises: DataError for an unknown class or an unreadable file.
    """
    where = f"kitti_step {ref.key}"
    assert isinstance(ref.label, Path)
    values = decode_label_png(ref.label, where, "RGB")
    contract = load_contract("kitti_step")
    classes = np.ascontiguousarray(values[..., 0], dtype=np.uint8)
    unknown = np.unique(classes)[~legal_classes(contract)[np.unique(classes)]]
    if unknown.size:
        raise DataError(f"{where}: label has class {int(unknown[0])}, must be 0..18 or {VOID}")
    instances = values[..., 1].astype(np.uint16) * 256 + values[..., 2].astype(np.uint16)
    if int(instances.max()) == UNIDENTIFIED:
        raise DataError(f"{where}: instance {UNIDENTIFIED} cannot be stored, ids go to {UNIDENTIFIED - 1}")
    thing = thing_table(contract)[classes]
    instances[thing & (instances == 0)] = UNIDENTIFIED
    instances[~thing] = 0
    objects = np.unique(classes[thing].astype(np.int64) << 16 | instances[thing]).tolist()
    ids = ((value >> 16, value & 0xFFFF) for value in objects)
    return Label(classes, instances, {f"{c}/{i}": i for c, i in ids if i != UNIDENTIFIED})
