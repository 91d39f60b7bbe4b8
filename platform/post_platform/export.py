"""Frames of a converted split, with their labels or with what a checkpoint predicts, ready for an official format."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch

from post_model.predictor import Predictor, Tracking
from post_platform import storage
from post_platform.data.load import read_frame
from post_platform.errors import DataError, nearest
from post_platform.labels import load_contract
from post_platform.metrics.results import ResultFrame
from post_platform.shards.index import Split
from post_platform.shards.record import Record
from post_platform.training.evaluate import native_ids, open_model
from post_platform.training.vocabulary import projection_of

Progress = Callable[[int], None]


def label_frames(split: Split, sequences: Collection[str] | None = None) -> Iterator[ResultFrame]:
    """The labelled frames of a split (of the named sequences), as if somebody had predicted exactly their labels."""
    for row, frame in _frames(split, sequences):
        if row["labelled"]:
            yield ResultFrame(row["sequence"], row["frame"], frame.classes, frame.instances, frame.meta)


def predicted_frames(
    checkpoint: storage.Location,
    split: Split,
    tracking: Tracking | None = None,
    sequences: Collection[str] | None = None,
) -> Iterator[ResultFrame]:
    """What a checkpoint predicts for every frame of a split, labelled or not, in the dataset's own classes.

    Raises: DataError when the folder is no checkpoint, or names a sequence that the split has not.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, card = open_model(checkpoint, device)
    contract = load_contract(split.dataset)
    predictor = Predictor(model, projection_of(contract, card.class_names), tracking)
    natives, state = native_ids(contract), None
    for row, frame in _frames(split, sequences):
        if row["seconds_since_previous"] is None:
            state = None  # the first frame of a sequence, or a still
        (result,), (state,) = predictor.step([frame.image], [state])
        classes, tracks = natives[result.classes.cpu().numpy()], result.tracks.cpu().numpy()
        scores = {
            f"{natives[segment.index]}/{segment.track}": segment.score
            for segment in result.segments
            if segment.thing and segment.score is not None
        }
        meta = {key: value for key, value in frame.meta.items() if key not in ("instances", "masks")}
        yield ResultFrame(row["sequence"], row["frame"], classes, tracks, meta, scores)


def count_frames(split: Split, sequences: Collection[str] | None = None, labelled: bool = False) -> int:
    """How many frames the functions above yield. Raises: DataError for a sequence that the split has not."""
    rows = _rows(split, sequences)
    return sum(row["labelled"] for row in rows) if labelled else len(rows)


def _frames(split: Split, sequences: Collection[str] | None) -> Iterator[tuple[dict[str, Any], Record]]:
    for row in _rows(split, sequences):
        yield row, read_frame(split.folder, row, f"{row['sequence']}/{row['frame']:06d}")


def _rows(split: Split, sequences: Collection[str] | None) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = split.index.to_pylist()
    if sequences is None:
        return rows
    present = dict.fromkeys(row["sequence"] for row in rows)
    for name in sequences:
        if name not in present:
            raise DataError(f"{split.dataset}/{split.split} has no sequence {name!r}{nearest(name, list(present))}")
    return [row for row in rows if row["sequence"] in sequences]
