"""Results of KITTI-MOTS and MOTS20: a text of run lengths per sequence, or folders of 16-bit PNGs, in either role.

A text line is `frame id class height width rle`, with compressed COCO run lengths; a PNG value is class*1000 + number.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from post_platform.datasets.files import MAX_PIXELS, decode_label_png, is_junk, numbered, read_lines, subfolders
from post_platform.datasets.masks import encode_mask, run_lengths
from post_platform.errors import DataError
from post_platform.labels import UNIDENTIFIED, VOID, Contract, load_contract
from post_platform.metrics.results.pair import (
    FramePair,
    Pair,
    ResultFrame,
    Results,
    RunPair,
    choose,
    require_folder,
    require_frames,
    require_plain,
    require_size,
)
from post_platform.runs import distinct

IGNORE = 10  # void in the truth; a result that says it says nothing
IDS_PER_CLASS = 1000
FURTHER_IDS = 100_000  # of tracks beyond a thousand of one class: no class times 1000 comes near


@dataclass(frozen=True)
class Line:
    """One object of one frame in a text file; `where` names file and line."""

    where: str
    identity: int
    native_class: int
    height: int
    width: int
    rle: str

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.height, self.width


Frames = Mapping[int, Path] | Mapping[int, list[Line]]


def read(dataset: str, truth: Path, predictions: Path, sequences: Sequence[str] | None) -> Results:
    """Pairs of text files or PNG folders, mixed as one likes; a text may lie in `<sequence>/gt/gt.txt`.

    Where both sides are texts, the frames are those that either of them names: a frame without any object is in
    neither, and changes no score. Predicted tracks are whatever numbers the result uses, plus 1.
    """
    require_folder(truth, "truth")
    require_folder(predictions, "predictions")
    contract = load_contract(dataset)
    true_sources, pred_sources = _sources(truth), _sources(predictions)
    work = {
        name: _frames(contract, true_sources[name], pred_sources[name])
        for name in choose(list(true_sources), list(pred_sources), sequences, predictions)
    }
    counts = {name: len(true.keys() | pred.keys()) for name, (true, pred) in work.items()}

    def pairs(names: Sequence[str]) -> Iterator[Pair]:
        return (pair for name in names for pair in _pairs(contract, name, *work[name]))

    return Results(contract, counts, pairs)


def write(dataset: str, frames: Iterable[ResultFrame], folder: Path) -> None:
    """Write `<sequence>.txt` for each sequence, also where nothing is in it.

    A label's objects keep their native ids. Predicted tracks are numbered as the official tools number truth, class *
    1000 + n in the order of their appearance; beyond a thousand of one class they go on above 100000, which TrackEval
    takes as well.
    """
    folder.mkdir(parents=True, exist_ok=True)
    things = [entry.id for entry in load_contract(dataset).classes]
    for sequence, group in groupby(frames, key=lambda frame: frame.sequence):
        require_plain(sequence, dataset)
        numbers = _Numbers()
        with open(folder / f"{sequence}.txt", "w") as file:
            for frame in group:
                file.writelines(sorted(_lines(frame, things, numbers), key=lambda line: int(line.split()[1])))


def _lines(frame: ResultFrame, things: Sequence[int], numbers: _Numbers) -> Iterator[str]:
    natives = frame.meta.get("instances", {})
    height, width = frame.classes.shape
    for native_class in things:
        tracks = np.where(frame.classes == native_class, frame.tracks, 0)
        for track in distinct(tracks).tolist():
            if track in (0, UNIDENTIFIED):
                continue
            number = natives.get(f"{native_class}/{track}")
            if number is None:
                number = numbers.of(native_class, track)
            yield f"{frame.frame} {number} {native_class} {height} {width} {encode_mask(tracks == track)}\n"


class _Numbers:
    """Ids of predicted tracks, given in the order of their appearance."""

    def __init__(self) -> None:
        self.given: dict[tuple[int, int], int] = {}
        self.of_class: Counter[int] = Counter()

    def of(self, native_class: int, track: int) -> int:
        """The id of a track, the same whenever it is asked for."""
        key = (native_class, track)
        if key not in self.given:
            place = self.of_class[native_class]
            further = FURTHER_IDS + len(self.given)
            self.given[key] = native_class * IDS_PER_CLASS + place if place < IDS_PER_CLASS else further
            self.of_class[native_class] += 1
        return self.given[key]


def _sources(folder: Path) -> dict[str, Path]:
    """Sequence -> its text file, or else its folder of PNGs."""
    folders = {
        name: text if (text := path / "gt" / "gt.txt").is_file() else path
        for name, path in subfolders([folder]).items()
    }
    return folders | {path.stem: path for path in sorted(folder.glob("*.txt")) if not is_junk(path.name)}


def _frames(contract: Contract, truth: Path, pred: Path) -> tuple[Frames, Frames]:
    true: Frames = _pngs(truth) if truth.is_dir() else parse(contract, truth, ids_tell_class=True)
    found: Frames = _pngs(pred) if pred.is_dir() else parse(contract, pred)
    if truth.is_dir() and pred.is_dir():
        require_frames(list(true), list(found), pred)
    elif truth.is_dir():
        alone = sorted(found.keys() - true.keys())
        if alone:
            raise DataError(f"{pred}: frame {alone[0]} has no truth")
    return true, found


def _pngs(folder: Path) -> dict[int, Path]:
    """Frame -> PNG. A folder without any is one that was not unpacked whole, not a sequence in which nothing is."""
    files = numbered(folder, (".png",))
    if not files:
        raise DataError(f"{folder}: has neither gt/gt.txt nor a PNG named after its frame")
    return files


def parse(contract: Contract, path: Path, ids_tell_class: bool = False) -> dict[int, list[Line]]:
    """The lines of a text file by frame; `ids_tell_class`: an id must be class*1000 + number, as in the truth.

    Raises: DataError naming file and line: a line that is no object, or an id that its frame already has.
    """
    frames: dict[int, list[Line]] = {}
    names = {entry.id: entry.name for entry in contract.classes} | {IGNORE: "ignore"}
    *known, last = (f"{number} {name}" for number, name in names.items())
    for number, text in read_lines(path, str(path)):
        where, fields = f"{path}, line {number}", text.split()
        if len(fields) != 6 or not all(field.isdecimal() and len(field) < 10 for field in fields[:5]):
            raise DataError(f"{where}: {text[:60]!r} is not 'frame id class height width rle'")
        frame, identity, native_class, height, width = map(int, fields[:5])
        if native_class not in names:
            raise DataError(f"{where}: class {native_class}, must be {', '.join(known)} or {last}")
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


def _pairs(contract: Contract, sequence: str, truth: Frames, pred: Frames) -> Iterator[Pair]:
    true_lines, pred_lines = _texts(truth), _texts(pred)
    if true_lines is not None and pred_lines is not None:
        yield from _run_pairs(sequence, true_lines, pred_lines)
        return
    for frame in sorted(truth.keys() | pred.keys()):
        source = pred.get(frame)
        true_maps, pred_maps = _maps(contract, truth.get(frame)), _maps(contract, source)
        if true_maps is None:
            assert pred_maps is not None
            true_maps = (np.zeros_like(pred_maps[0]), np.zeros_like(pred_maps[1]))
        if pred_maps is None:
            pred_maps = (np.zeros_like(true_maps[0]), np.zeros_like(true_maps[1]))
        require_size(pred_maps[0], true_maps[0], source[0].where if isinstance(source, list) else str(source))
        yield FramePair(sequence, frame, *_judged(*true_maps), *_said(*pred_maps))


def _texts(frames: Frames) -> dict[int, list[Line]] | None:
    """The lines by frame; None for PNGs."""
    lines = {frame: source for frame, source in frames.items() if isinstance(source, list)}
    return lines if len(lines) == len(frames) else None


def _run_pairs(sequence: str, truth: dict[int, list[Line]], pred: dict[int, list[Line]]) -> Iterator[RunPair]:
    """Pairs of two texts. All frames lie on one line of pixels, column by column; only bounds on it are looked at."""
    frames = sorted(truth.keys() | pred.keys())
    sides = [[lines.get(frame, []) for frame in frames] for lines in (truth, pred)]
    for true, found in zip(*sides, strict=True):
        if true and found:
            require_size(np.empty(found[0].size, bool), np.empty(true[0].size, bool), found[0].where)
    ends = np.cumsum([0, *(math.prod((true or found)[0].size) for true, found in zip(*sides, strict=True))])
    edges, owners, values = [ends], [], []
    for side, meaning in zip(sides, (_judged, _said), strict=True):
        lines = [line for listed in side for line in listed]
        bounds, numbers = _spans(lines, np.repeat(ends[:-1], list(map(len, side))))
        edges.append(bounds)
        owners.append(np.append(numbers, 0))
        values.append(meaning(*_values(lines)))
    positions, origins = np.concatenate(edges), np.repeat(np.arange(3), list(map(len, edges)))
    order = np.argsort(positions, kind="stable")
    positions, origins = positions[order], origins[order]
    lengths = np.diff(positions)
    runs = np.flatnonzero(lengths)  # of bounds in one place, only the last has a run behind it
    columns = [lengths[runs]]
    for side_number, (numbers, of_line) in enumerate(zip(owners, values, strict=True), start=1):
        passed = np.cumsum(origins == side_number)[runs]  # bounds of this side up to the run: odd inside a mask
        owner = np.where(passed & 1, numbers[passed >> 1], 0)
        columns += [value[owner] for value in of_line]
    cuts = np.searchsorted(positions[runs], ends)
    for frame, first, last in zip(frames, cuts[:-1].tolist(), cuts[1:].tolist(), strict=True):
        length, true_class, instance, pred_class, track = (column[first:last] for column in columns)
        yield RunPair(sequence, frame, length, true_class, instance, pred_class, track)


def _spans(lines: Sequence[Line], offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Start, end, start, end, ... of the masks' runs in ascending order, and for each run its line's number from 1.

    `offsets`: where on the line of pixels each mask's image begins.

    Raises: DataError for two masks that share a pixel.
    """
    texts, heights, widths, where = (
        [getattr(line, name) for line in lines] for name in ("rle", "height", "width", "where")
    )
    runs, edges = run_lengths(texts, heights, widths, where)
    numbers = np.repeat(np.arange(1, len(lines) + 1), np.diff(edges))
    sizes = np.multiply(heights, widths)
    stops = np.cumsum(runs)[1::2] + (offsets + sizes - np.cumsum(sizes))[numbers - 1]
    inside = runs[:, 1] > 0
    stops, numbers, lengths = stops[inside], numbers[inside], runs[inside, 1]
    order = np.argsort(stops, kind="stable")
    stops, numbers = stops[order], numbers[order]
    starts = stops - lengths[order]
    for place in np.flatnonzero(starts[1:] < stops[:-1])[:1]:
        other, line = (lines[number - 1] for number in sorted(numbers[place : place + 2]))
        raise DataError(f"{line.where}: the mask of object {line.identity} overlaps object {other.identity}")
    return np.stack([starts, stops], axis=1).reshape(-1), numbers


def _values(lines: Sequence[Line]) -> tuple[np.ndarray, np.ndarray]:
    """Native classes and native ids + 1 of the background, 0, and of each line."""
    classes = np.array([0, *(line.native_class for line in lines)], np.int32)
    return classes, np.array([0, *(line.identity + 1 for line in lines)], np.int32)


def _judged(classes: np.ndarray, identities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Truth in the shared convention, out of native classes and native ids + 1."""
    instances = np.where((classes > 0) & (classes != IGNORE), (identities - 1) % IDS_PER_CLASS + 1, 0)
    return np.where(classes == IGNORE, VOID, classes).astype(np.uint8), instances.astype(np.uint16)


def _said(classes: np.ndarray, identities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A result in the shared convention: what it would have ignored, it does not say."""
    said = classes != IGNORE
    return np.where(said, classes, 0).astype(np.uint8), np.where(said, identities, 0)


def _maps(contract: Contract, source: Path | list[Line] | None) -> tuple[np.ndarray, np.ndarray] | None:
    """Native classes and native ids + 1 of one frame, 0 = background; None for a text without this frame."""
    if isinstance(source, Path):
        known = [entry.id for entry in contract.classes]
        values = decode_label_png(source, str(source), "I;16").astype(np.int32)
        classes = values // IDS_PER_CLASS
        wrong = values[~np.isin(classes, (0, *known, IGNORE)) | ((classes == 0) & (values > 0))]
        if wrong.size:
            first, last = min(known) * IDS_PER_CLASS, max(known) * IDS_PER_CLASS + IDS_PER_CLASS - 1
            raise DataError(f"{source}: value {wrong[0]}, must be 0, {first}..{last} or 10000")
        return classes, values + (values > 0)
    if source is None:
        return None
    height, width = source[0].size
    bounds, numbers = _spans(source, np.zeros(len(source), np.int64))
    owners = np.append(np.stack([np.zeros_like(numbers), numbers], axis=1), 0)  # of what lies before each bound
    owner = np.repeat(owners, np.diff(bounds, prepend=0, append=height * width)).reshape(width, height).T
    classes, identities = _values(source)
    return classes[owner], identities[owner]
