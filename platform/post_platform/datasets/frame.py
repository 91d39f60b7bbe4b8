"""A frame on disk in its official layout, and its decoded label."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from post_platform.errors import DataError


class MissingSplit(DataError):
    """The folder holds nothing of this split; another split may well be there."""


@dataclass(frozen=True)
class FrameRef:
    """Where a frame lies; cheap to list and to send to another process.

    `label` is whatever the dataset's reader needs to decode the label, None where the frame is unlabelled.
    `source_video` names the original recording across datasets, so that a run can refuse to be tested on what it saw.
    `native` holds numbers of the official files that a result in their format must repeat, a video's id for instance.
    """

    sequence: str
    frame: int
    image: Path
    label: object | None
    seconds_since_previous: float | None
    source_video: str
    native: dict[str, int | str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """`<sequence>/<frame as %06d>`."""
        return f"{self.sequence}/{self.frame:06d}"


@dataclass(frozen=True)
class Label:
    """A decoded label, in the conventions of label.png.

    `classes`: the contract's native ids, 255 void, 0 background where the contract has one.
    `instances`: 0 no object, 65535 thing pixel without identity, else an id; an object is a pair (class, instance).
    `native_ids` maps `"class/instance"` back to the dataset's own number. `masks` holds every object's whole mask, by
    the same names and as compressed COCO run lengths, where the dataset's masks may overlap; else it is empty.

    Shape: (H, W) uint8 and (H, W) uint16.
    """

    classes: NDArray[np.uint8]
    instances: NDArray[np.uint16]
    native_ids: dict[str, int] = field(default_factory=dict)
    masks: dict[str, str] = field(default_factory=dict)


def video_frames(
    sequence: str,
    images: Mapping[int, Path],
    labels: Mapping[int, object] | None,
    seconds_per_frame: float,
    source_video: str,
    native: dict[str, int | str] | None = None,
) -> list[FrameRef]:
    """The frames of one video in the order of `images`, which is that of time; `labels` None = unlabelled.

    `seconds_per_frame`: between two consecutive frame numbers; a frame without an entry in `labels` is unlabelled.
    """
    refs: list[FrameRef] = []
    for frame, image in images.items():
        seconds = round(seconds_per_frame * (frame - refs[-1].frame), 6) if refs else None
        refs.append(
            FrameRef(sequence, frame, image, labels.get(frame) if labels else None, seconds, source_video, native or {})
        )
    return refs
