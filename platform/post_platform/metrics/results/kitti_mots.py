"""KITTI-MOTS results: `<sequence>.txt` of run lengths, or folders of 16-bit PNGs, in either role.

A text line is `frame id class height width rle`, with compressed COCO run lengths; a PNG value is class*1000 + number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask

from post_platform.datasets.files import MAX_PIXELS, decode_label_png, numbered, subfolders
from post_platform.errors import DataError
from post_platform.labels import VOID, load_contract
from post_platform.metrics.results.pair import FramePair, Results, choose, require_folder, require_frames, require_size

CLASSES = (1, 2)
IGNORE = 10  # void in the truth; a result that says it says nothing
IDS_PER_CLASS = 1000


@dataclass(frozen=True)
class Line:
    """One object of one frame in a text file; `where` names file and line."""

    where: str
    identity: int
    native_class: int
    height: int
    width: int
    rle: str


Frames = Mapping[int, Path] | Mapping[int, list[Line]]


def read(truth: Path, predictions: Path, sequences: Sequence[str] | None) -> Results:
    """Pairs of text files or PNG folders, mixed as one likes.

    Where both sides are texts, the frames are those that either of them names: a frame without any object is in
    neither, and changes no score. Predicted tracks are whatever numbers the result uses, plus 1.
    """
    require_folder(truth, "truth")
    require_folder(predictions, "predictions")
    true_sources, pred_sources = _sources(truth), _sources(predictions)
    work = {
        name: _frames(true_sources[name], pred_sources[name])
        for name in choose(list(true_sources), list(pred_sources), sequences, predictions)
    }
    pairs = (pair for name, (true, pred) in work.items() for pair in _pairs(name, true, pred))
    count = sum(len(true.keys() | pred.keys()) for true, pred in work.values())
    return Results(load_contract("kitti_mots"), count, pairs)


def _sources(folder: Path) -> dict[str, Path]:
    """Sequence -> its text file, or else its folder of PNGs."""
    return subfolders([folder]) | {path.stem: path for path in sorted(folder.glob("*.txt"))}


def _frames(truth: Path, pred: Path) -> tuple[Frames, Frames]:
    true: Frames = numbered(truth, (".png",)) if truth.is_dir() else parse(truth, ids_tell_class=True)
    found: Frames = numbered(pred, (".png",)) if pred.is_dir() else parse(pred)
    if truth.is_dir() and pred.is_dir():
        require_frames(list(true), list(found), pred)
    elif truth.is_dir():
        alone = sorted(found.keys() - true.keys())
        if alone:
            raise DataError(f"{pred}: frame {alone[0]} has no truth")
    return true, found


def parse(path: Path, ids_tell_class: bool = False) -> dict[int, list[Line]]:
    """The lines of a text file by frame; `ids_tell_class`: an id must be class*1000 + number, as in the truth.

    Raises: DataError naming file and line: a line that is no object, or an id that its frame already has.
    """
    frames: dict[int, list[Line]] = {}
    for number, text in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        if not text.strip():
            continue
        where, fields = f"{path}, line {number}", text.split()
        if len(fields) != 6 or not all(field.isdecimal() and len(field) < 10 for field in fields[:5]):
            raise DataError(f"{where}: {text[:60]!r} is not 'frame id class height width rle'")
        frame, identity, native_class, height, width = map(int, fields[:5])
        if native_class not in (*CLASSES, IGNORE):
            raise DataError(f"{where}: class {native_class}, must be 1 car, 2 pedestrian or 10 ignore")
        if ids_tell_class and identity // IDS_PER_CLASS != native_class:
            raise DataError(f"{where}: id {identity} and class {native_class} disagree")
        if height * width > MAX_PIXELS:
            raise DataError(f"{where}: size {height}x{width}, more than {MAX_PIXELS} pixels")
        others = frames.setdefault(frame, [])
        if any(other.identity == identity for other in others):
            raise DataError(f"{where}: frame {frame} already has an object {identity}")
        if others and (others[0].height, others[0].width) != (height, width):
            raise DataError(f"{where}: size {height}x{width}, elsewhere {others[0].height}x{others[0].width}")
        others.append(Line(where, identity, native_class, height, width, fields[5]))
    return frames


def _pairs(sequence: str, truth: Frames, pred: Frames) -> Iterator[FramePair]:
    for frame in sorted(truth.keys() | pred.keys()):
        source = pred.get(frame)
        true_maps, pred_maps = _maps(truth.get(frame)), _maps(source)
        if true_maps is None:
            assert pred_maps is not None
            true_maps = (np.zeros_like(pred_maps[0]), np.zeros_like(pred_maps[1]))
        if pred_maps is None:
            pred_maps = (np.zeros_like(true_maps[0]), np.zeros_like(true_maps[1]))
        (classes, instances), (pred_classes, pred_tracks) = true_maps, pred_maps
        require_size(pred_classes, classes, source[0].where if isinstance(source, list) else str(source))
        pred_tracks = np.where(pred_classes == IGNORE, 0, pred_tracks)
        pred_classes = np.where(pred_classes == IGNORE, 0, pred_classes).astype(np.uint8)
        instances = np.where(np.isin(classes, CLASSES), (instances - 1) % IDS_PER_CLASS + 1, 0).astype(np.uint16)
        classes = np.where(classes == IGNORE, VOID, classes).astype(np.uint8)
        yield FramePair(sequence, frame, classes, instances, pred_classes, pred_tracks)


def _maps(source: Path | list[Line] | None) -> tuple[np.ndarray, np.ndarray] | None:
    """Native classes and native ids + 1 of one frame, 0 = background; None for a text without this frame."""
    if isinstance(source, Path):
        values = decode_label_png(source, str(source), "I;16").astype(np.int32)
        classes = values // IDS_PER_CLASS
        wrong = values[~np.isin(classes, (0, *CLASSES, IGNORE)) | ((classes == 0) & (values > 0))]
        if wrong.size:
            raise DataError(f"{source}: value {wrong[0]}, must be 0, 1000..2999 or 10000")
        return classes, values + (values > 0)
    return None if source is None else _paint(source)


def _paint(lines: list[Line]) -> tuple[np.ndarray, np.ndarray]:
    owner = np.zeros((lines[0].height, lines[0].width), np.int32)
    for number, line in enumerate(lines, start=1):
        try:
            mask = coco_mask.decode({"size": [line.height, line.width], "counts": line.rle.encode()}).astype(bool)
        except (ValueError, UnicodeEncodeError) as error:
            raise DataError(f"{line.where}: the run lengths do not fill {line.height}x{line.width}") from error
        below = owner[mask]
        if below.any():
            other = lines[below.max() - 1]
            raise DataError(f"{line.where}: the mask of object {line.identity} overlaps object {other.identity}")
        owner[mask] = number
    classes = np.array([0, *(line.native_class for line in lines)], np.int32)
    identities = np.array([0, *(line.identity + 1 for line in lines)], np.int32)
    return classes[owner], identities[owner]
