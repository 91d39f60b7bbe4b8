"""MOTS20: seven crowded videos with pedestrians; text labels as KITTI-MOTS, frames count from 1, two frame rates."""

from __future__ import annotations

from pathlib import Path

from post_platform.datasets import mots_labels
from post_platform.datasets.files import missing, require_folder, subfolders
from post_platform.datasets.frame import FrameRef, Label, video_frames
from post_platform.datasets.motchallenge import by_number, read_seqinfo, sequence_images, source_video, video_number
from post_platform.errors import DataError

SPLITS = ("train", "test")  # no official validation: hold out videos, never frames
PNG_FOLDERS = ("instances_motschallenge", "instances")


def frames(source: Path, split: str) -> list[FrameRef]:
    """Every frame of a split: `<split>/MOTS20-XX/{img1, seqinfo.ini}`, in `source` or in its `MOTS`.

    Labels are `gt/gt.txt`; where it is missing, 16-bit PNGs of the other archive, `instances_motschallenge/00XX`. The
    time between frames is that of `seqinfo.ini`, which also says how many there must be.

    Raises: MissingSplit, or DataError when a sequence is incomplete.
    """
    require_folder("mots20", source)
    roots = [source, source / "MOTS"]
    folders = {
        name: path
        for name, path in subfolders(root / split for root in roots).items()
        if (path / "seqinfo.ini").is_file() or video_number(name)
    }
    if not folders:
        raise missing("mots20", split, source, [f"{split}/MOTS20-XX/img1"])
    pngs = by_number(subfolders(root / name for root in roots for name in PNG_FOLDERS))
    refs: list[FrameRef] = []
    for sequence, folder in folders.items():
        info = read_seqinfo("mots20", folder)
        images = sequence_images("mots20", sequence, folder / info.images, info.length)
        number = video_number(sequence)
        if number is None:
            raise DataError(f"mots20 {sequence}: is no official name, MOTS20-XX")
        labels = None
        if split != "test":
            text = folder / "gt" / "gt.txt"
            expected = f"neither {sequence}/gt/gt.txt nor {PNG_FOLDERS[0]}/00{number}/*.png"
            known = text if text.is_file() else None
            labels = mots_labels.sequence_labels(
                "mots20", sequence, images, None if known else pngs.get(number), known, expected
            )
        seconds = 1 / info.frames_per_second
        refs += video_frames(sequence, images, labels, seconds, source_video(number))
    return refs


def label(ref: FrameRef) -> Label:
    """The label of one frame; see `mots_labels.label`."""
    return mots_labels.label("mots20", ref)
