"""No run is tested on a recording that it was trained on, under whatever dataset's name the recording comes."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow.compute as pc

from post_platform.errors import DataError
from post_platform.shards.index import Split

NAMED_VIDEOS = 3


def refuse_shared_videos(train: Sequence[Split], scored: Sequence[Split], override: str) -> None:
    """Compare the source videos of two sets of splits; of `scored` only frames with a label count.

    Datasets share recordings: KITTI-MOTS, KITTI-STEP and RobMOTS; MOTS20 and MOTChallenge-STEP; Cityscapes and
    Cityscapes-VPS; both years of YouTube-VIS.

    Args:
        train: the splits that a run is trained on.
        scored: the splits that it is scored on.
        override: how the user says that this is meant, for the message.

    Raises:
        DataError: naming every pair of splits that share videos, and some of the videos.
    """
    trained = [(split, set(pc.unique(split.index["source_video"]).to_pylist())) for split in train]
    problems: list[str] = []
    for split in scored:
        labelled = split.index.filter(split.index["labelled"])
        videos = pc.unique(labelled["source_video"]).to_pylist()
        for other, known in trained:
            shared = [video for video in videos if video in known]
            if shared:
                more = ", ..." if len(shared) > NAMED_VIDEOS else ""
                problems.append(
                    f"{split.dataset}/{split.split} shares {len(shared)} of {len(videos)} videos with "
                    f"{other.dataset}/{other.split}: {', '.join(shared[:NAMED_VIDEOS])}{more}"
                )
    if problems:
        raise DataError(
            f"scored on videos that are trained on: {'; '.join(problems)}",
            f"train or score on other datasets or splits; if this is meant: {override}",
        )
