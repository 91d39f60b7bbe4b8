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

from post_platform.datasets.files import (
    MAX_PIXELS,
    decode_label_png,
    image_size,
    is_junk,
    numbered,
    read_lines,
    subfolders,
)
from post_platform.datasets.masks import encode_mask, run_lengths
from post_platform.datasets.motchallenge import read_seqinfo
from post_platform.errors import DataError
from post_platform.labels import UNIDENTIFIED, VOID, Contract, load_contract
from post_platform.metrics.results.pair import (
    FramePair,
    ResultFrame,
    Results,
    choose,
    require_folder,
    require_plain,
)
from post_platform.runs import distinct

IGNORE = 10  # void in the truth; a result that says it says nothing
IDS_PER_CLASS = 1000
FURTHER_IDS = 100_000  # of tracks beyond a thousand of one class: no class times 1000 comes near
BLOCK = 256  # frames whose runs are held at once
Size = tuple[int, int]


@dataclass(frozen=True)
class Line:
    """One object of one frame; `where` names file, line, frame and id. In a PNG it has no `rle`."""

    where: str
    identity: int
    native_class: int
    size: Size
    rle: str = ""


Frames = Mapping[int, Path | list[Line]]


@dataclass(frozen=True)
class Drawn:
    """The objects of some frames, and the runs that they fill on one line of all pixels, each frame's down its columns.

    `places` of their frames; `bounds` are start, end, start, end, ... of the runs, ascending; `numbers` say for each
    run whose it is, counted from 1.
    """

    lines: list[Line]
    places: np.ndarray
    bounds: np.ndarray
    numbers: np.ndarray


def read(dataset: str, truth: Path, predictions: Path, sequences: Sequence[str] | None) -> Results:
    """Pairs of text files or PNG folders, mixed as one likes; a text may lie in `<sequence>/gt/gt.txt`.

    Where both sides are texts, the frames are those that either of them names: a frame without any object is in
    neither, and changes no score. Predicted tracks are whatever numbers the result uses, plus 1. A mask without a pixel
    is an object all the same, as the official tools have it: nothing matches it.
    """
    require_folder(truth, "truth")
    require_folder(predictions, "predictions")
    contract = load_contract(dataset)
    true_sources, pred_sources = _sources(truth), _sources(predictions)
    work = {
        name: _frames(contract, true_sources[name], pred_sources[name])
        for name in choose(list(true_sources), list(pred_sources), sequences, predictions)
    }
    counts = {name: len(true.keys() | pred.keys()) for name, (true, pred, _) in work.items()}

    def pairs(names: Sequence[str]) -> Iterator[FramePair]:
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


def _frames(contract: Contract, truth: Path, pred: Path) -> tuple[Frames, Frames, Size | None]:
    """The frames of both sides, and the size of their images: the truth's, of an empty text the prediction's.

    Raises: DataError naming a frame that is outside the sequence, where PNGs or `seqinfo.ini` tell its frames.
    """
    true = _pngs(truth) if truth.is_dir() else parse(contract, truth, ids_tell_class=True)
    size = _size(true)
    found = _pngs(pred) if pred.is_dir() else parse(contract, pred, size)
    missing = sorted(true.keys() - found.keys()) if pred.is_dir() else []
    if missing:
        name = pred / f"{missing[0]:06d}.png"
        raise DataError(f"{name}: missing, the truth has this frame ({len(missing)} such frames)")
    alone = sorted(found.keys() - true.keys()) if truth.is_dir() else []
    if alone:
        raise DataError(f"{_where(found[alone[0]])}: the frame has no truth ({len(alone)} such frames)")
    sequence = truth.parent.parent  # of MOTS20's gt/gt.txt
    if truth.name == "gt.txt" and (sequence / "seqinfo.ini").is_file():
        last = read_seqinfo(contract.dataset, sequence).length
        for frame, source in [*true.items(), *found.items()]:
            if not 1 <= frame <= last:
                raise DataError(f"{_where(source)}: frame {frame} is outside 1..{last}, as seqinfo.ini has it")
    return true, found, size or _size(found)


def _pngs(folder: Path) -> Frames:
    """Frame -> PNG. A folder without any is one that was not unpacked whole, not a sequence in which nothing is."""
    files = numbered(folder, (".png",))
    if not files:
        raise DataError(f"{folder}: has neither gt/gt.txt nor a PNG named after its frame")
    return files


def _size(frames: Frames) -> Size | None:
    """Height and width of the first frame; None without any."""
    first = next(iter(frames.values()), None)
    return image_size(first, str(first)) if isinstance(first, Path) else first[0].size if first else None


def _where(source: Path | list[Line]) -> str:
    return str(source) if isinstance(source, Path) else source[0].where


def _require_size(got: tuple[int, ...], size: Size, where: str) -> None:
    if got != size:
        raise DataError(f"{where}: size {got[0]}x{got[1]}, its sequence has {size[0]}x{size[1]}")


def parse(contract: Contract, path: Path, size: Size | None = None, ids_tell_class: bool = False) -> Frames:
    """The lines of a text file by frame; all of one size.

    `ids_tell_class`: an id must be class*1000 + number, as in the truth.

    Raises: DataError naming file and line, frame and id: a line that is no object, or an id that its frame already has.
    """
    frames: dict[int, list[Line]] = {}
    names = {entry.id: entry.name for entry in contract.classes} | {IGNORE: "ignore"}
    *known, last = (f"{number} {name}" for number, name in names.items())
    for number, text in read_lines(path, str(path)):
        fields = text.split()
        if len(fields) != 6 or not all(field.isdecimal() and len(field) < 10 for field in fields[:5]):
            raise DataError(f"{path}, line {number}: {text[:60]!r} is not 'frame id class height width rle'")
        frame, identity, native_class, height, width = map(int, fields[:5])
        where = f"{path}, line {number}, frame {frame}, id {identity}"
        if native_class not in names:
            raise DataError(f"{where}: class {native_class}, must be {', '.join(known)} or {last}")
        if ids_tell_class and identity // IDS_PER_CLASS != native_class:
            raise DataError(f"{where}: class {native_class}, which the id contradicts")
        if height * width > MAX_PIXELS:
            raise DataError(f"{where}: size {height}x{width}, more than {MAX_PIXELS} pixels")
        size = size or (height, width)
        _require_size((height, width), size, where)
        others = frames.setdefault(frame, [])
        if any(other.identity == identity for other in others):
            raise DataError(f"{where}: the frame has this id twice")
        others.append(Line(where, identity, native_class, size, fields[5]))
    return frames


def _pairs(contract: Contract, sequence: str, truth: Frames, pred: Frames, size: Size | None) -> Iterator[FramePair]:
    frames = sorted(truth.keys() | pred.keys())
    for start in range(0, len(frames), BLOCK):
        assert size is not None
        yield from _block(contract, sequence, frames[start : start + BLOCK], (truth, pred), size)


def _block(
    contract: Contract, sequence: str, frames: Sequence[int], sides: tuple[Frames, Frames], size: Size
) -> Iterator[FramePair]:
    """Pairs of some frames, which lie on one line of pixels, column by column; only bounds on it are looked at."""
    ends = np.arange(len(frames) + 1) * math.prod(size)
    drawn = [_drawn(contract, frames, side, size) for side in sides]
    edges = [ends, *(side.bounds for side in drawn)]
    positions, origins = np.concatenate(edges), np.repeat(np.arange(3), list(map(len, edges)))
    order = np.argsort(positions, kind="stable")
    positions, origins = positions[order], origins[order]
    lengths = np.diff(positions)
    runs = np.flatnonzero(lengths)  # of bounds in one place, only the last has a run behind it
    owner = []
    for side_number, side in enumerate(drawn, start=1):
        passed = np.cumsum(origins == side_number)[runs]  # bounds of this side up to the run: odd inside a mask
        owner.append(np.where(passed & 1, np.append(side.numbers, 0)[passed >> 1], 0))
    place, lengths = np.searchsorted(ends, positions[runs], side="right") - 1, lengths[runs]
    for side_number, side in enumerate(drawn):
        unseen = np.flatnonzero(np.bincount(side.numbers, minlength=len(side.lines) + 1)[1:] == 0)
        if unseen.size:  # masks without a pixel: runs of length 0
            at = np.searchsorted(place, side.places[unseen])
            place, lengths = np.insert(place, at, side.places[unseen]), np.insert(lengths, at, 0)
            owner = [np.insert(numbers, at, (unseen + 1) * (n == side_number)) for n, numbers in enumerate(owner)]
    values = [meaning(*_values(side.lines)) for side, meaning in zip(drawn, (_judged, _said), strict=True)]
    columns = [value[numbers] for numbers, of_line in zip(owner, values, strict=True) for value in of_line]
    cuts = np.searchsorted(place, np.arange(len(frames) + 1)).tolist()
    for frame, first, last in zip(frames, cuts[:-1], cuts[1:], strict=True):
        true_class, instance, pred_class, track = (column[first:last] for column in columns)
        where = _where(sides[1].get(frame) or sides[0][frame])
        runs = lengths[first:last]
        yield FramePair(sequence, frame, true_class, instance, pred_class, track, lengths=runs, where=where)


def _drawn(contract: Contract, frames: Sequence[int], side: Frames, size: Size) -> Drawn:
    """The objects of some frames, whose pixels lie on one line, and the runs that they fill."""
    sources, pixels = [side.get(frame, []) for frame in frames], math.prod(size)
    texts = [source for source in sources if isinstance(source, list)]
    if len(texts) == len(sources):
        lines, places = _flat(texts)
        return Drawn(lines, places, *_spans(lines, places * pixels))
    pngs = [_png(contract, source, size) for source in sources if isinstance(source, Path)]
    lines, places = _flat([png.lines for png in pngs])
    bounds = [png.bounds + place * pixels for place, png in enumerate(pngs)]
    before = np.cumsum([0, *(len(png.lines) for png in pngs)]).tolist()
    numbers = [png.numbers + count for count, png in zip(before, pngs, strict=False)]
    return Drawn(lines, places, np.concatenate(bounds), np.concatenate(numbers))


def _flat(listed: Sequence[list[Line]]) -> tuple[list[Line], np.ndarray]:
    """The lines of all frames, and for each the place of its frame."""
    places = np.repeat(np.arange(len(listed)), list(map(len, listed)))
    return [line for lines in listed for line in lines], places


def _png(contract: Contract, path: Path, size: Size) -> Drawn:
    """The objects of a PNG, ascending in their ids."""
    image = decode_label_png(path, str(path), "I;16")
    _require_size(image.shape, size, str(path))
    column = image.T.reshape(-1).astype(np.int32)
    starts = np.append(0, np.flatnonzero(column[1:] != column[:-1]) + 1)
    values, stops = column[starts], np.append(starts[1:], column.size)
    starts, stops, values = starts[values > 0], stops[values > 0], values[values > 0]
    known = [entry.id for entry in contract.classes]
    wrong = values[~np.isin(values // IDS_PER_CLASS, [*known, IGNORE])]
    if wrong.size:
        first, last = min(known) * IDS_PER_CLASS, max(known) * IDS_PER_CLASS + IDS_PER_CLASS - 1
        raise DataError(f"{path}: value {wrong[0]}, must be 0, {first}..{last} or 10000")
    ids = distinct(values)
    lines = [Line(str(path), number, number // IDS_PER_CLASS, size) for number in ids.tolist()]
    bounds, numbers = np.stack([starts, stops], axis=1).reshape(-1), np.searchsorted(ids, values) + 1
    return Drawn(lines, np.zeros(len(lines), np.intp), bounds, numbers)


def _spans(lines: Sequence[Line], offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bounds and numbers of the masks in a text, as `Drawn` has them.

    `offsets`: where on the line of pixels each mask's image begins.

    Raises: DataError for two masks that share a pixel.
    """
    texts, where = ([getattr(line, name) for line in lines] for name in ("rle", "where"))
    heights, widths = np.array([line.size for line in lines], np.int64).reshape(-1, 2).T
    runs, edges = run_lengths(texts, heights.tolist(), widths.tolist(), where)
    numbers = np.repeat(np.arange(1, len(lines) + 1), np.diff(edges))
    sizes = heights * widths
    stops = np.cumsum(runs)[1::2] + (offsets + sizes - np.cumsum(sizes))[numbers - 1]
    inside = runs[:, 1] > 0
    stops, numbers, lengths = stops[inside], numbers[inside], runs[inside, 1]
    order = np.argsort(stops, kind="stable")
    stops, numbers = stops[order], numbers[order]
    starts = stops - lengths[order]
    for place in np.flatnonzero(starts[1:] < stops[:-1])[:1]:
        other, line = (lines[number - 1] for number in sorted(numbers[place : place + 2]))
        raise DataError(f"{line.where}: the mask overlaps that of id {other.identity}")
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
