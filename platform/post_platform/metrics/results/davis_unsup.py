"""DAVIS results: `<sequence>/<frame as %05d>.png`, a palette PNG of proposal numbers, as the truth."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np
from PIL import Image

from post_platform.datasets.davis_unsup import OBJECT, VOID_FROM
from post_platform.datasets.files import decode_label_png, numbered, subfolders
from post_platform.errors import DataError
from post_platform.labels import UNIDENTIFIED, VOID, load_contract
from post_platform.metrics.davis_j_and_f import Frame, j_and_f
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
from post_platform.metrics.score import Families
from post_platform.runs import distinct

MAX_PROPOSALS = 20  # per sequence; the official tool takes no more

logger = logging.getLogger(__name__)
Work = dict[str, list[tuple[int, Path, Path]]]


def read(truth: Path, predictions: Path, sequences: Sequence[str] | None) -> Results:
    """Pairs of two folders of sequences, the truth that of `Annotations_unsupervised/480p`; every frame needs its PNG.

    Raises: DataError when a frame has no result, or a sequence more than 20 proposals.
    """
    require_folder(truth, "truth")
    require_folder(predictions, "predictions")
    true_folders, pred_folders = subfolders([truth]), subfolders([predictions])
    work: Work = {}
    for name in choose(list(true_folders), list(pred_folders), sequences, predictions):
        true_files, pred_files = (numbered(folders[name], (".png",)) for folders in (true_folders, pred_folders))
        require_frames(true_files, pred_files, pred_folders[name])
        work[name] = [(frame, path, pred_files[frame]) for frame, path in true_files.items()]

    def further(progress: Callable[[int], None]) -> Families:
        return {"jf": j_and_f(_frames(_pairs(work, list(work)), progress))}

    counts = {name: len(frames) for name, frames in work.items()}
    return Results(load_contract("davis_unsup"), counts, partial(_pairs, work), further)


def write(frames: Iterable[ResultFrame], folder: Path) -> None:
    """Write `<sequence>/<frame as %05d>.png`. Of more than 20 tracks those with the most pixels are kept."""
    for sequence, group in groupby(frames, key=lambda frame: frame.sequence):
        require_plain(sequence, "davis_unsup")
        maps = {frame.frame: np.where(frame.tracks == UNIDENTIFIED, 0, frame.tracks) for frame in group}
        pixels: Counter[int] = Counter()
        for tracks in maps.values():
            values, counts = np.unique(tracks, return_counts=True)
            pixels.update(
                {track: count for track, count in zip(values.tolist(), counts.tolist(), strict=True) if track}
            )
        kept = sorted(track for track, _ in pixels.most_common(MAX_PROPOSALS))
        if len(pixels) > len(kept):
            logger.warning("davis_unsup %s: %d of %d tracks written, the largest", sequence, len(kept), len(pixels))
        (folder / sequence).mkdir(parents=True, exist_ok=True)
        for frame, tracks in maps.items():
            indices = np.zeros(tracks.shape, np.uint8)
            for number, track in enumerate(kept, start=1):
                indices[tracks == track] = number
            image = Image.fromarray(indices, "P")
            image.putpalette(_palette())
            image.save(folder / sequence / f"{frame:05d}.png")


def _palette() -> list[int]:
    """The colours of PASCAL VOC, which these files usually have: bits of the index, spread over three channels."""
    return [
        sum((index >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(3))
        for index in range(256)
        for channel in range(3)
    ]


def _pair(true_path: Path, pred_path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    truth, pred = (decode_label_png(path, str(path), "P").astype(np.uint8) for path in (true_path, pred_path))
    require_size(pred.shape, truth.shape, str(pred_path))
    pred = np.where(pred >= VOID_FROM, 0, pred)
    void = truth >= VOID_FROM
    classes = np.where(void, VOID, np.where(truth > 0, OBJECT, 0)).astype(np.uint8)
    instances = np.where(void, 0, truth).astype(np.uint16)
    return classes, instances, np.where(pred > 0, OBJECT, 0).astype(np.uint8), pred.astype(np.int32)


def _frames(pairs: Iterator[FramePair], progress: Callable[[int], None]) -> Iterator[Frame]:
    for done, pair in enumerate(pairs):
        progress(done)
        yield Frame(pair.sequence, pair.truth_instances, pair.truth_classes == VOID, pair.pred_tracks)


def _pairs(work: Work, names: Sequence[str]) -> Iterator[FramePair]:
    for sequence in names:
        proposals: set[int] = {0}
        for frame, true_path, pred_path in work[sequence]:
            pair = FramePair(sequence, frame, *_pair(true_path, pred_path), where=str(pred_path))
            proposals.update(distinct(pair.pred_tracks).tolist())
            if len(proposals) > 1 + MAX_PROPOSALS:
                raise DataError(f"{pred_path.parent}: more than {MAX_PROPOSALS} proposals, the protocol's limit")
            yield pair
