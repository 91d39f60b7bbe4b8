"""Results of the STEP datasets: `<sequence>/<frame>.png` like the truth, R = class (255 void), G*256 + B = track."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from post_platform.datasets.files import decode_label_png, numbered, subfolders
from post_platform.errors import DataError
from post_platform.labels import UNIDENTIFIED, VOID, Contract, legal_classes, load_contract, thing_table
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
from post_platform.runs import distinct


def read(dataset: str, truth: Path, predictions: Path, sequences: Sequence[str] | None) -> Results:
    """Pairs of two folders of sequences; every true frame needs its PNG.

    A true thing without id is crowd; a predicted one has id 0, which is an ordinary id here. Ids of stuff are dropped.
    """
    require_folder(truth, "truth")
    require_folder(predictions, "predictions")
    true_folders, pred_folders = subfolders([truth]), subfolders([predictions])
    work: dict[str, list[tuple[int, Path, Path]]] = {}
    for name in choose(list(true_folders), list(pred_folders), sequences, predictions):
        true_files, pred_files = (numbered(folders[name], (".png",)) for folders in (true_folders, pred_folders))
        require_frames(true_files, pred_files, pred_folders[name])
        work[name] = [(frame, path, pred_files[frame]) for frame, path in true_files.items()]
    contract = load_contract(dataset)
    counts = {name: len(frames) for name, frames in work.items()}
    return Results(
        contract, counts, lambda names: (pair for name in names for pair in _pairs(contract, name, work[name]))
    )


def write(dataset: str, frames: Iterable[ResultFrame], folder: Path) -> None:
    """Write `<sequence>/<frame as %06d>.png`. A thing without identity gets id 0.

    Raises: DataError naming the frame for a class or a track that the format cannot express.
    """
    contract = load_contract(dataset)
    thing, legal = thing_table(contract), legal_classes(contract)
    for frame in frames:
        where = f"{dataset} {frame.sequence}/{frame.frame:06d}"
        require_plain(frame.sequence, where)
        unknown = [value for value in distinct(frame.classes).tolist() if not legal[value]]
        if unknown:
            raise DataError(f"{where}: class {unknown[0]} is not in the contract of {dataset}")
        tracks = np.where(thing[frame.classes] & (frame.tracks != UNIDENTIFIED), frame.tracks, 0)
        if int(tracks.max()) >= UNIDENTIFIED:
            raise DataError(f"{where}: track {int(tracks.max())}, the format has ids up to {UNIDENTIFIED - 1}")
        rgb = np.stack([frame.classes, tracks >> 8, tracks & 255], axis=-1).astype(np.uint8)
        target = folder / frame.sequence / f"{frame.frame:06d}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rgb).save(target)


def _pairs(contract: Contract, sequence: str, frames: list[tuple[int, Path, Path]]) -> Iterator[FramePair]:
    for frame, true_path, pred_path in frames:
        truth, pred = (decode_label_png(path, str(path), "RGB") for path in (true_path, pred_path))
        require_size(pred.shape, truth.shape, str(pred_path))
        starts = _starts(truth, pred)
        classes, instances = _values(contract, truth, starts, true_path)
        pred_classes, pred_tracks = _values(contract, pred, starts, pred_path)
        instances[thing_table(contract)[classes] & (instances == 0)] = UNIDENTIFIED
        lengths = np.diff(starts, append=truth.shape[0] * truth.shape[1])
        maps = (classes, instances, pred_classes, pred_tracks)
        yield FramePair(sequence, frame, *maps, lengths=lengths, where=str(pred_path))


def _starts(truth: np.ndarray, pred: np.ndarray) -> np.ndarray:
    """The flat positions of pixels in which one of two images of three channels is not what it was a pixel before."""
    one, other = truth.reshape(-1), pred.reshape(-1)
    changed = one[3:] != one[:-3]
    changed |= other[3:] != other[:-3]
    pixels = np.flatnonzero(changed) // 3 + 1  # up to three times each
    return np.append(0, pixels[np.diff(pixels, prepend=0) > 0])


def _values(contract: Contract, image: np.ndarray, starts: np.ndarray, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Class and id of the pixels at `starts`."""
    classes, high, low = image.reshape(-1, 3)[starts].T
    unknown = distinct(classes[~legal_classes(contract)[classes]])
    if unknown.size:
        raise DataError(f"{path}: has class {unknown[0]}, must be 0..{contract.classes[-1].id} or {VOID}")
    return classes, (high.astype(np.int32) << 8 | low) * thing_table(contract)[classes]
