"""MOTChallenge-STEP: four of MOTS20's videos, every pixel labelled with seven classes; PNGs as KITTI-STEP."""

from __future__ import annotations

from pathlib import Path

from post_platform.datasets import step_labels
from post_platform.datasets.files import match_labels, missing, numbered, require_folder, subfolders
from post_platform.datasets.frame import FrameRef, Label, video_frames
from post_platform.datasets.motchallenge import by_number, sequence_images, source_video
from post_platform.errors import DataError

SPLITS = ("train", "val", "test")
SECONDS_PER_FRAME = 1 / 30
MAPS = ("motchallenge-step/panoptic_maps", "panoptic_maps")
VAL = "02"  # of the two labelled videos; the authors train on 09 and validate on 02
TEST = ("01", "07")


def frames(source: Path, split: str) -> list[FrameRef]:
    """Every frame of a split; images as `images/<split>/00XX`, or in the tree of MOTS20.

    The archive has both labelled videos in `panoptic_maps/train`. Train is 09 and val is 02, as the authors use them,
    unless there is a folder `panoptic_maps/val`: then the folders are the splits.

    Raises: MissingSplit, or DataError when a sequence lacks images or labels.
    """
    require_folder("motchallenge_step", source)
    images = by_number(subfolders(source / "images" / name for name in SPLITS))
    for root in (source / "MOTS", source):  # MOTS20, whose images lie one folder deeper
        trees = by_number(subfolders([root / "train", root / "test"]))
        images = {**{number: tree / "img1" for number, tree in trees.items()}, **images}
    maps: dict[str, Path] = {}
    if split == "test":
        chosen = [number for number in TEST if number in images]
    else:
        sorted_maps = {name: by_number(subfolders(source / root / name for root in MAPS)) for name in ("train", "val")}
        maps = sorted_maps[split] if sorted_maps["val"] else sorted_maps["train"]
        if not sorted_maps["val"]:
            maps = {number: folder for number, folder in maps.items() if (number == VAL) == (split == "val")}
        chosen = sorted(maps)
    if not chosen:
        wanted = "images/test/00XX" if split == "test" else f"{MAPS[1]}/train/00{VAL if split == 'val' else '09'}"
        raise missing("motchallenge_step", split, source, [wanted])
    refs: list[FrameRef] = []
    for number in chosen:
        sequence = f"00{number}"
        if number not in images:
            raise DataError(
                f"motchallenge_step {split}: sequence {sequence} has labels but no images",
                hint="images belong in images/<split>/<sequence>, or MOTS/train/MOTS20-XX/img1",
            )
        listed = sequence_images("motchallenge_step", sequence, images[number])
        labels = None
        if number in maps:
            files = numbered(maps[number], (".png",))
            match_labels("motchallenge_step", sequence, listed, files)
            labels = dict(files)
        refs += video_frames(sequence, listed, labels, SECONDS_PER_FRAME, source_video(number))
    return refs


def label(ref: FrameRef) -> Label:
    """The label of one frame; see `step_labels.label`. Only person has instances."""
    return step_labels.label("motchallenge_step", ref)
