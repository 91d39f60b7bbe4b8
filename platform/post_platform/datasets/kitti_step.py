"""KITTI-STEP: KITTI tracking videos, every pixel labelled; RGB PNG of Cityscapes trainId and instance."""

from __future__ import annotations

from pathlib import Path

from post_platform.datasets import kitti_tracking, step_labels
from post_platform.datasets.files import match_labels, missing, numbered, require_folder, subfolders
from post_platform.datasets.frame import FrameRef, Label, video_frames
from post_platform.errors import DataError

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
            match_labels("kitti_step", sequence, listed, files)
            labels = dict(files)
        video = kitti_tracking.source_video(split, sequence)
        refs += video_frames(sequence, listed, labels, kitti_tracking.SECONDS_PER_FRAME, video)
    return refs


def label(ref: FrameRef) -> Label:
    """The label of one frame; see `step_labels.label`. Only person and car have instances."""
    return step_labels.label("kitti_step", ref)
