"""BDD100K MOTS results: bitmasks `<video>/<video>-%07d.png` or run lengths `<video>.json`, in either role."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from post_platform.datasets import bdd100k_mots
from post_platform.datasets.files import is_junk, subfolders
from post_platform.errors import DataError
from post_platform.labels import UNIDENTIFIED, load_contract, thing_table
from post_platform.metrics.results.pair import (
    FramePair,
    ResultFrame,
    Results,
    choose,
    require_folder,
    require_frames,
    require_plain,
    require_size,
)

Frames = dict[int, bdd100k_mots.Stored]


def read(truth: Path, predictions: Path, sequences: Sequence[str] | None) -> Results:
    """Pairs of two folders, each with a folder of bitmasks or a JSON per video; every true frame needs a result."""
    require_folder(truth, "truth")
    require_folder(predictions, "predictions")
    true_videos, pred_videos = _videos(truth), _videos(predictions)
    work: dict[str, tuple[Frames, Frames]] = {}
    for name in choose(list(true_videos), list(pred_videos), sequences, predictions):
        true, found = (bdd100k_mots.video_labels(name, videos[name]) for videos in (true_videos, pred_videos))
        require_frames(true, found, pred_videos[name])
        work[name] = (true, found)
    counts = {name: len(true) for name, (true, _) in work.items()}

    def pairs(names: Sequence[str]) -> Iterator[FramePair]:
        return (pair for name in names for pair in _pairs(name, *work[name], true_videos[name], pred_videos[name]))

    return Results(load_contract("bdd100k_mots"), counts, pairs)


def write(frames: Iterable[ResultFrame], folder: Path) -> None:
    """Write bitmasks `<video>/<video>-<frame as %07d>.png`.

    Raises: DataError naming the frame for a track that the format cannot express.
    """
    thing = thing_table(load_contract("bdd100k_mots"))
    for frame in frames:
        where = f"bdd100k_mots {frame.sequence}/{frame.frame:06d}"
        require_plain(frame.sequence, where)
        known = thing.take(frame.classes) & (frame.tracks > 0) & (frame.tracks != UNIDENTIFIED)
        tracks = np.where(known, frame.tracks, 0)
        if int(tracks.max()) >= UNIDENTIFIED:
            raise DataError(f"{where}: track {int(tracks.max())}, the format has ids up to {UNIDENTIFIED - 1}")
        classes = np.where(known, frame.classes, 0)
        rgba = np.stack([classes, np.zeros_like(classes), tracks >> 8, tracks & 255], axis=-1).astype(np.uint8)
        target = folder / frame.sequence / f"{frame.sequence}-{frame.frame:07d}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rgba).save(target)


def _videos(folder: Path) -> dict[str, Path]:
    files = (path for path in sorted(folder.glob("*.json")) if not is_junk(path.name))
    return subfolders([folder]) | {path.stem: path for path in files}


def _pairs(video: str, true: Frames, found: Frames, truth: Path, prediction: Path) -> Iterator[FramePair]:
    for frame, true_label in true.items():
        pred_label = found[frame]
        true_where, where = _where(true_label, truth, frame), _where(pred_label, prediction, frame)
        # Run lengths of an empty frame do not tell its size; where both sides are empty, none is scored.
        size = bdd100k_mots.size_of(true_label, true_where) or bdd100k_mots.size_of(pred_label, where) or (1, 1)
        label, said = bdd100k_mots.decode(true_label, size, true_where), bdd100k_mots.decode(pred_label, size, where)
        require_size(said.classes.shape, label.classes.shape, where)
        classes = np.where(said.instances > 0, said.classes, 0)  # a result that says ignored says nothing
        maps = (label.classes, label.instances, classes, said.instances.astype(np.int32))
        yield FramePair(video, frame, *maps, where=where)


def _where(stored: bdd100k_mots.Stored, source: Path, frame: int) -> str:
    return str(stored) if isinstance(stored, Path) else f"{source}, frame {frame}"
