"""KITTI-MOTS: KITTI tracking videos with cars and pedestrians; 16-bit PNG or text labels of class*1000 + instance."""

from __future__ import annotations

from pathlib import Path

from post_platform.datasets import kitti_tracking, mots_labels
from post_platform.datasets.files import missing, require_folder, subfolders
from post_platform.datasets.frame import FrameRef, Label, video_frames

SPLITS = ("train", "val", "test")


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
        texts = (parent / "instances_txt" / f"{sequence}.txt" for parent in parents)
        text = next(filter(Path.is_file, texts), None)
        labels = None
        if split != "test":
            expected = f"neither instances/{sequence}/*.png nor instances_txt/{sequence}.txt"
            labels = mots_labels.sequence_labels("kitti_mots", sequence, images, pngs.get(sequence), text, expected)
        video = kitti_tracking.source_video(split, sequence)
        refs += video_frames(sequence, images, labels, kitti_tracking.SECONDS_PER_FRAME, video)
    return refs


def label(ref: FrameRef) -> Label:
    """The label of one frame; see `mots_labels.label`."""
    return mots_labels.label("kitti_mots", ref)
