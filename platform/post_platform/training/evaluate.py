"""Whole sequences through the network, fusion and tracker, scored in each dataset's own classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from post_model.network import Post
from post_model.predictor import Predictor, Tracking
from post_model.weights import ModelCard, best_weights, load_model
from post_platform import storage
from post_platform.data.load import read_frame
from post_platform.errors import DataError
from post_platform.labels import Contract, judged, load_contract
from post_platform.metrics.contingency import frame_table, merge
from post_platform.metrics.score import flat, headline, score
from post_platform.training import checkpoint
from post_platform.training.timelines import Tape, Timelines
from post_platform.training.vocabulary import projection_of

if TYPE_CHECKING:
    from post_platform.shards.index import Split

VOID = 255
Scores = dict[str, dict[str, float | None]]
"""{dataset: {metric: value}}; ratios, None where a metric is undefined."""


@dataclass(frozen=True)
class Picture:
    """A frame to look at: image, truth and prediction, in native classes; ids are tracks.

    Shape: image (H, W, 3) uint8; all maps (H, W).
    """

    dataset: str
    key: str
    image: np.ndarray
    truth: tuple[np.ndarray, np.ndarray]
    prediction: tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Stretch:
    """One sequence of a split, its `place`-th: rows [start, stop) of its index."""

    split: Split
    start: int
    stop: int
    place: int = 0

    def rows(self) -> list[dict[str, Any]]:
        """Its rows of the index."""
        found: list[dict[str, Any]] = self.split.index.slice(self.start, self.stop - self.start).to_pylist()
        return found


def sequences(splits: Sequence[Split], max_frames: int | None = None) -> list[Stretch]:
    """Every sequence with a labelled frame, in the order of the indexes, cut to its first `max_frames` frames."""
    found = []
    for split in splits:
        place = 0
        codes = split.index["sequence"].combine_chunks().dictionary_encode().indices.to_numpy()
        labelled = split.index["labelled"].to_numpy(zero_copy_only=False)
        edges = np.flatnonzero(np.r_[True, codes[1:] != codes[:-1], True])
        for start, end in pairwise(edges.tolist()):
            stop = min(end, start + max_frames) if max_frames else end
            if labelled[start:stop].any():
                found.append(Stretch(split, start, stop, place))
                place += 1
    return found


def share_of(work: Sequence[Stretch], rank: int, world_size: int) -> list[Stretch]:
    """Rank `rank`'s sequences: the longest first, each to the rank with the fewest frames so far."""
    frames = [0] * world_size
    mine = []
    for item in sorted(work, key=lambda item: item.start - item.stop):
        target = frames.index(min(frames))
        frames[target] += item.stop - item.start
        if target == rank:
            mine.append(item)
    return mine


def native_ids(contract: Contract) -> np.ndarray:
    """Native id of each class index that the predictor returns: the classes, then background (0), then void (255).

    The last entry also answers index -1.
    """
    return np.array([entry.id for entry in contract.classes] + [0, VOID], np.uint8)


def run_sequence(predictor: Predictor, contract: Contract, sequence: Stretch) -> Iterator[tuple[pa.Table, Picture]]:
    """Predict a sequence frame by frame; yields the contingency table and the picture of each labelled frame."""
    split = sequence.split
    natives, state = native_ids(contract), None
    for row in sequence.rows():
        truth = read_frame(split.folder, row, f"{row['sequence']}/{row['frame']:06d}")
        if row["seconds_since_previous"] is None:
            state = None  # a still, though one of several of its name
        (result,), (state,) = predictor.step([truth.image], [state])
        if not row["labelled"]:
            continue
        classes, tracks = natives[result.classes.cpu().numpy()], result.tracks.cpu().numpy()
        truth_classes = judged(contract, truth.classes, classes)
        table = frame_table(
            split.dataset, row["sequence"], row["frame"], truth_classes, truth.instances, classes, tracks
        )
        picture = Picture(split.dataset, f"{row['sequence']}/{row['frame']:06d}", truth.image,
                          (truth.classes, truth.instances), (classes, tracks))  # fmt: skip
        yield table, picture


class Share(NamedTuple):
    """What an evaluation of some sequences gives; the timelines are drawn already."""

    tables: list[pa.Table]
    pictures: list[Picture]
    timelines: Timelines


class Left(Exception):
    """An evaluation was left before its end."""


def evaluate_share(
    model: Post,
    names: Sequence[str],
    work: Sequence[Stretch],
    tracking: Tracking,
    pictures: int = 0,
    timelines: int = 0,
    left: Callable[[], bool] = lambda: False,
) -> Share:
    """Contingency tables of all frames of `work`, and of each sequence `pictures` frames from its middle on.

    The first `timelines` sequences of each dataset get a timeline, where ids last over a video.

    Raises: Left: `left`, asked after each frame, says that something else comes first.
    """
    was_training = model.training
    model.eval()
    found = Share([], [], {})
    try:
        for sequence in work:
            contract = load_contract(sequence.split.dataset)
            predictor = Predictor(model, projection_of(contract, names), tracking)
            middle, first = (sequence.stop - sequence.start) // 2, len(found.tables)
            drawn = contract.video and contract.persistent and sequence.place < timelines
            tape = Tape(sequence.split, sequence.rows()) if drawn else None
            for number, (table, picture) in enumerate(run_sequence(predictor, contract, sequence)):
                found.tables.append(table)
                if middle <= number < middle + pictures:
                    found.pictures.append(picture)
                if tape:
                    tape.keep(table["frame"][0].as_py(), picture.prediction)
                if left():
                    raise Left
            if tape:
                own = merge(found.tables[first:])
                found.timelines[contract.dataset, own["sequence"][0].as_py()] = tape.draw(own, contract)
    finally:
        model.train(was_training)
    return found


def joined(shares: Sequence[Share]) -> Share:
    """The shares of all ranks as one."""
    return Share(
        [table for share in shares for table in share.tables],
        [picture for share in shares for picture in share.pictures],
        {name: content for share in shares for name, content in share.timelines.items()},
    )


def scores_of(tables: Sequence[pa.Table]) -> Scores:
    """All scores of every dataset in the frames' contingency tables, undefined ones None."""
    table = merge(tables)
    names = pc.unique(table["dataset"]).to_pylist()
    return {name: flat(score(table, load_contract(name), partial=True)) for name in sorted(names)}


def mean_score(scores: Scores) -> float | None:
    """The plain mean over datasets of each one's headline score, the only number that a search may maximise."""
    values = [headline(found, load_contract(name)) for name, found in scores.items()]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def open_model(location: storage.Location, device: str = "cpu") -> tuple[Post, ModelCard]:
    """The network of a checkpoint on disk or S3, with its card: the averaged weights, where there are such.

    Raises:
        DataError: the folder is no checkpoint of ours, is damaged, or does not fit the network it describes.
    """
    folder = checkpoint.fetch(location)
    if (folder / checkpoint.MANIFEST).exists():
        checkpoint.verify(folder)
    try:
        return load_model(folder, best_weights(folder), device)
    except ValueError as error:
        if found := checkpoint.whole(folder / "checkpoints"):
            raise DataError(f"{folder} is a run, not a checkpoint", f"its newest: --checkpoint {found[-1]}") from error
        raise DataError(
            f"no usable checkpoint: {error}", "a run's checkpoints are in <run.dir>/<run.name>/checkpoints"
        ) from error
