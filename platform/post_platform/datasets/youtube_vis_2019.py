"""YouTube-VIS 2019; what both years share is in `youtube_vis`."""

from __future__ import annotations

from pathlib import Path

from post_platform.datasets import youtube_vis
from post_platform.datasets.frame import FrameRef, Label

SPLITS = youtube_vis.SPLITS


def frames(source: Path, split: str) -> list[FrameRef]:
    """Every frame of a split; see `youtube_vis.frames`."""
    return youtube_vis.frames("youtube_vis_2019", source, split, (f"{split}.json", f"annotations/{split}.json"))


def label(ref: FrameRef) -> Label:
    """The label of one frame; see `youtube_vis.label`."""
    return youtube_vis.label("youtube_vis_2019", ref)
