"""A checkpoint over a video, a folder of frames or a split: one frame in memory, every result on disk as it comes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Generator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from post_model.network import Post
from post_model.predictor import FrameResult, Predictor
from post_model.taxonomy import identity
from post_model.weights import ModelCard
from post_platform import render
from post_platform.atomic import file_errors
from post_platform.errors import ConfigError, DataError, nearest
from post_platform.footage import Source
from post_platform.labels import VOID, load_contract, taxonomy, thing_table
from post_platform.metrics.results import ResultFrame, write_results
from post_platform.prediction_files import (
    Category,
    FrameSegments,
    PanopticFiles,
    Segment,
    TrackCount,
    TrackFiles,
    shown_id,
)
from post_platform.training.vocabulary import projection_of, projections
from post_platform.video import InputFrame, VideoWriter

LEAST_HEIGHT = 360  # pixels of the overlay video; smaller frames are enlarged, so that labels can be read
LEGEND_SHARE = 0.01  # of the picture, from which on a stuff class is named
OF_ANY_VIDEO = ("kitti_mots", "mots20", "kitti_step", "motchallenge_step")
"""Formats that a video of no dataset can be written in, frame by frame: they need its name and frame numbers alone."""

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Vocabulary:
    """The classes to answer in. `ids`: category id of each index of the predictor, the last one void.

    Shape: ids (K + 1,) uint8; palette (256, 3) uint8 and thing (256,) bool by category id.
    """

    name: str
    categories: tuple[Category, ...]
    ids: np.ndarray
    palette: np.ndarray
    thing: np.ndarray
    dataset: str | None = None


def answering(model: Post, card: ModelCard, dataset: str | None = None) -> tuple[Predictor, Vocabulary]:
    """A predictor in the model's own classes, numbered from 1, or in a dataset's, with that one's native ids.

    Raises: ConfigError for a dataset whose classes the model does not know.
    """
    if dataset is None:
        names, things = card.class_names, card.thing_flags
        categories = tuple(Category(i, n, t) for i, (n, t) in enumerate(zip(names, things, strict=True), start=1))
        unified = dict(zip(taxonomy().names, taxonomy().colors, strict=True))
        palette, thing = np.zeros((256, 3), np.uint8), np.zeros(256, bool)
        for one in categories:
            palette[one.id], thing[one.id] = unified.get(one.name, render.track_color(one.id, 0)), one.thing
        ids = np.array([one.id for one in categories] + [VOID], np.uint8)
        return Predictor(model, identity(names, things)), Vocabulary("the model's own", categories, ids, palette, thing)
    known = projections(card.class_names)
    if dataset not in known:
        raise ConfigError(f"--classes {dataset}: not classes that this checkpoint knows{nearest(dataset, known)}")
    contract = load_contract(dataset)
    categories = tuple(Category(entry.id, entry.name, entry.has_instances) for entry in contract.classes)
    ids = np.array([one.id for one in categories] + [0] * (contract.background is not None) + [VOID], np.uint8)
    predictor = Predictor(model, projection_of(contract, card.class_names))
    return predictor, Vocabulary(dataset, categories, ids, render.palette(contract), thing_table(contract), dataset)


def official_format(vocabulary: Vocabulary, source: Source) -> str | None:
    """The dataset in whose result format a source can be written: its own, or one that any video fits in; else None."""
    dataset = vocabulary.dataset
    return dataset if dataset and (dataset in OF_ANY_VIDEO or dataset == source.dataset) else None


def predict(
    source: Source,
    predictor: Predictor,
    vocabulary: Vocabulary,
    out: Path,
    show: Collection[str] = ("ids", "classes"),
    progress: Progress | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Write everything about a source into an empty folder; returns the summary, which is written last.

    When the input turns out damaged, or `stopped()`, all files are ended properly first, and hold what came before.

    Raises: DataError naming the file or frame that cannot be read, or what cannot be written.
    """
    run = _Run(source, predictor, vocabulary, out, show, progress, stopped)
    problem: DataError | None = None
    with file_errors(out), ExitStack() as stack:
        run.open(stack)
        frames = stack.enter_context(closing(run.frames()))
        try:
            if run.official:
                write_results(run.official, frames, out / run.official)
            else:
                for _ in frames:
                    pass
        except DataError as error:
            problem = error
    summary = run.summary(problem)
    if run.done:
        (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    if problem is not None:
        done = f"; what came before, {run.done} frames, is in {out}" if run.done else ""
        raise DataError(f"{problem}{done}", problem.hint) from problem
    return summary


class _Run:
    """One prediction: its open files and what was counted."""

    def __init__(
        self,
        source: Source,
        predictor: Predictor,
        vocabulary: Vocabulary,
        out: Path,
        show: Collection[str],
        progress: Progress | None,
        stopped: Callable[[], bool],
    ) -> None:
        self.source, self.predictor, self.vocabulary, self.out = source, predictor, vocabulary, out
        self.show, self.progress, self.stopped = show, progress, stopped
        self.official = official_format(vocabulary, source)
        self.several = source.dataset is not None
        self.count = TrackCount()
        self.done, self.finished, self.seconds, self.size = 0, False, 0.0, (0, 0)
        self.started = time.monotonic()

    def open(self, stack: ExitStack) -> None:
        """Begin all files; the stack ends them."""
        categories = self.vocabulary.categories
        self.video = stack.enter_context(VideoWriter(self.out / "overlay.mp4", self.source.fps / self.source.every))
        self.tracks = stack.enter_context(closing(TrackFiles(self.out, categories, self.several)))
        self.panoptic: PanopticFiles | None = None
        if not self.official:
            self.panoptic = stack.enter_context(closing(PanopticFiles(self.out, categories, self.several)))

    def frames(self) -> Generator[ResultFrame, None, None]:
        """Read, predict and write frame by frame; yields what an official format needs."""
        state = None
        for frame in self.source.frames:
            if self.stopped():
                return
            try:
                (result,), (state,) = self.predictor.step([frame.image], [None if frame.first else state])
            except ValueError as error:
                raise DataError(f"{self.source.name} {frame.sequence}/{frame.number:06d}: {error}") from error
            classes, tracks = self._write(frame, result)
            self.done, self.size = self.done + 1, frame.image.shape[:2]
            self.seconds = frame.seconds + self.source.every / self.source.fps
            if self.progress:
                self.progress(self.done)
            scores = {
                f"{self.vocabulary.ids[segment.index]}/{segment.track}": segment.score
                for segment in result.segments
                if segment.thing and segment.score is not None
            }
            yield ResultFrame(frame.sequence, frame.number, classes, tracks, frame.meta or {}, scores)
        self.finished = True

    def _write(self, frame: InputFrame, result: FrameResult) -> tuple[np.ndarray, np.ndarray]:
        """Write a frame's results; returns category ids and tracks of its pixels."""
        segments = segments_of(result, self.vocabulary)
        places = result.panoptic.cpu().numpy()
        found = FrameSegments(frame.sequence, frame.number, frame.file, frame.seconds, places, segments)
        classes, tracks = self.vocabulary.ids[result.classes.cpu().numpy()], result.tracks.cpu().numpy()
        self.video.write(draw(frame.image, classes, tracks, segments, self.vocabulary, self.show), frame.seconds)
        self.tracks.write(found)
        if self.panoptic:
            self.panoptic.write(found)
        self.count.add(found)
        return classes, tracks

    def summary(self, problem: DataError | None) -> dict[str, Any]:
        """What `summary.json` says."""
        took = time.monotonic() - self.started
        return {
            "input": self.source.name,
            "finished": self.finished,
            **({"problem": str(problem)} if problem else {}),
            "frames": self.done,
            "size": list(self.size),
            "every": self.source.every,
            "fps": round(self.source.fps / self.source.every, 3),
            "seconds": round(self.seconds, 3),
            "model": self.predictor.model.arguments,
            "tracking": self.predictor.tracking,
            "classes": self.vocabulary.name,
            "categories": [one.name for one in self.vocabulary.categories],
            "tracks": dict(sorted(self.count.tracks.items())),
            "longest_tracks": self.count.longest(),
            "format": self.official or "panoptic",
            "run_seconds": round(took, 3),
            "frames_per_s": round(self.done / took, 3),
        }


def segments_of(result: FrameResult, vocabulary: Vocabulary) -> list[Segment]:
    """The segments of a frame in the categories; background is none."""
    return [
        Segment(s.id, vocabulary.categories[s.index], s.track, s.area, s.score, s.box)
        for s in result.segments
        if s.index < len(vocabulary.categories)
    ]


def draw(
    image: np.ndarray,
    classes: np.ndarray,
    tracks: np.ndarray,
    segments: list[Segment],
    vocabulary: Vocabulary,
    show: Collection[str],
) -> np.ndarray:
    """The overlay of a frame: a colour per track, outlines, tags, and a legend of the stuff classes.

    Shape: image (H, W, 3) uint8; classes (category ids), tracks (H, W).
    """
    factor = max(1, min(4, round(LEAST_HEIGHT / image.shape[0])))
    shown = shown_id(tracks)
    large, classes, shown = (render.enlarge(array, factor) for array in (image, classes, shown))
    outline = max(1, min(large.shape[:2]) // 360)
    picture = render.overlay(large, classes, shown, vocabulary.palette, vocabulary.thing, outline=outline)
    tags, legend = [], []
    for segment in segments:
        one = segment.category
        if segment.track and segment.box:
            words = [one.name] * ("classes" in show) + [str(segment.track)] * ("ids" in show)
            y0, x0, y1, x1 = (side * factor for side in segment.box)
            color = render.track_color(one.id, shown_id(segment.track))
            tags.append(render.Tag(" ".join(words), color, (y0, x0, y1, x1)))
        elif "classes" in show and not segment.track and segment.area >= LEGEND_SHARE * image.shape[0] * image.shape[1]:
            legend.append((one.name, tuple(vocabulary.palette[one.id].tolist())))
    return render.annotate(picture, tags, "boxes" in show, legend)
