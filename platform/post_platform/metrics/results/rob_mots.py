"""RobMOTS results: `data/<benchmark>/<sequence>.txt`, seven columns as the truth, with a confidence.

Which predictions count is TrackEval's rule. A prediction that is matched by no true object of its class with an IoU of
0.5 or more does not count when it is small (its longer side at most an eighth of the image's shorter one), when more
than half of it lies in ignore regions of its class or of every class, and when seqmap.txt ignores its class in the
sequence. For the scores without classes all objects and regions are of one class, and what is predicted of a class that
the benchmark does not have counts only when it is matched.

Benchmarks whose truth is boxes (TAO, Waymo) are not scored. An object without a pixel does not exist.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.optimize import linear_sum_assignment

from post_platform.datasets import rob_mots
from post_platform.datasets.files import is_junk, read_lines, subfolders
from post_platform.datasets.masks import decode_mask, encode_mask
from post_platform.errors import DataError
from post_platform.labels import UNIDENTIFIED, load_contract
from post_platform.metrics import hota
from post_platform.metrics.contingency import merge
from post_platform.metrics.results.pair import (
    FramePair,
    ResultFrame,
    Results,
    choose,
    require_folder,
    require_plain,
)
from post_platform.metrics.rob_mots import report
from post_platform.metrics.score import Families
from post_platform.metrics.segments import rows_of
from post_platform.metrics.similarity import EPSILON
from post_platform.runs import distinct

logger = logging.getLogger(__name__)
CONTRACT = load_contract("rob_mots")
ALL_CLASSES = frozenset(entry.id for entry in CONTRACT.classes)
OF_BOXES = ("tao", "waymo")
Report = dict[str, Any]
ANY = 1  # the one class of scores without classes
NO_CLASSES = (np.arange(256) > 0) * ANY


@dataclass(frozen=True)
class Line:
    """One mask of one frame; `where` names file, line, frame and track."""

    where: str
    track: int
    category: int
    rle: str


@dataclass(frozen=True)
class Video:
    """A sequence: what seqmap.txt and clsmap.txt say of it, and the file of its truth."""

    name: str
    benchmark: str
    listed: rob_mots.Listed
    classes: frozenset[int]
    truth: Path


@dataclass(frozen=True)
class Drawn:
    """The objects of one side of a frame, numbered from 1 in the order of their file.

    By number, which begins with that of no object, 0: their classes, their tracks and their longer sides. `regions`
    are the pixels to ignore, by code.

    Shape: places (H, W), the others (objects + 1,).
    """

    places: np.ndarray
    categories: np.ndarray
    tracks: np.ndarray
    sides: np.ndarray
    regions: dict[int, np.ndarray]


def read(truth: Path, predictions: Path, sequences: Sequence[str] | None) -> Results:
    """Pairs of a truth, `<benchmark>/{data, seqmap.txt, clsmap.txt}`, and results, `[data/]<benchmark>/<sequence>.txt`.

    A sequence is called `<benchmark>-<sequence>`. Every frame of its seqmap is scored.

    Raises: DataError naming file and line, or the sequence that has no result.
    """
    require_folder(truth, "truth")
    require_folder(predictions, "predictions")
    found = predictions / "data" if (predictions / "data").is_dir() else predictions
    pred_files = {
        f"{benchmark}-{path.stem}": path
        for benchmark, folder in subfolders([found]).items()
        for path in sorted(folder.glob("*.txt"))
        if not is_junk(path.name)
    }
    videos: dict[str, Video] = {}
    for benchmark, folder in subfolders([truth]).items():
        if benchmark in OF_BOXES:
            logger.warning("benchmark %s is not scored: its truth is boxes", benchmark)
            continue
        classes = rob_mots.read_clsmap("truth", benchmark, folder)
        for name, listed in rob_mots.read_seqmap("truth", benchmark, folder).items():
            path = folder / "data" / f"{name}.txt"
            videos[f"{benchmark}-{name}"] = Video(f"{benchmark}-{name}", benchmark, listed, classes, path)
    chosen = choose(list(videos), list(pred_files), sequences, predictions)

    def pairs(names: Sequence[str]) -> Iterator[FramePair]:
        return (by_class for name in names for by_class, _ in _pairs(videos[name], pred_files[name]))

    def final(progress: Callable[[int], None]) -> Families:
        tables: dict[str, tuple[list[pa.Table], list[pa.Table]]] = defaultdict(lambda: ([], []))
        done = 0
        for name in chosen:
            progress(done)
            frames = [[pair.table("rob_mots") for pair in both] for both in _pairs(videos[name], pred_files[name])]
            for merged, listed in zip(tables[videos[name].benchmark], zip(*frames, strict=True), strict=True):
                merged.append(merge(listed))
            done += len(frames)
        classes = {videos[name].benchmark: videos[name].classes for name in chosen}
        return {"rob_mots": report({name: _hota(classes[name], *merged) for name, merged in tables.items()})}

    return Results(CONTRACT, {name: videos[name].listed.length for name in chosen}, pairs, final)


def write(frames: Iterable[ResultFrame], folder: Path) -> None:
    """Write `data/<benchmark>/<sequence>.txt`, also where nothing is in it; a label's tracks keep their native ids.

    Raises: DataError naming the frame when its meta.json lacks benchmark and sequence.
    """
    for name, group in groupby(frames, key=lambda frame: frame.sequence):
        listed = list(group)
        native = listed[0].meta.get("native", {})
        if not {"benchmark", "sequence"} <= native.keys():
            raise DataError(f"rob_mots {name}: meta.json has no benchmark and sequence", "convert the dataset again")
        benchmark, sequence = str(native["benchmark"]), str(native["sequence"])
        for part in (benchmark, sequence):
            require_plain(part, f"rob_mots {name}")
        target = folder / "data" / benchmark / f"{sequence}.txt"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("".join(line for frame in listed for line in _lines(frame)))


def _lines(frame: ResultFrame) -> Iterator[str]:
    natives = frame.meta.get("instances", {})
    height, width = frame.classes.shape
    known = (frame.tracks > 0) & (frame.tracks != UNIDENTIFIED) & np.isin(frame.classes, list(ALL_CLASSES))
    codes = np.where(known, frame.classes.astype(np.int64) << 32 | frame.tracks, 0)
    for code in distinct(codes).tolist():
        if code:
            category, track = code >> 32, code & 0xFFFFFFFF
            name = f"{category}/{track}"
            fields = [frame.frame, natives.get(name, track), category, f"{frame.scores.get(name, 1.0):.6g}"]
            yield " ".join(map(str, [*fields, height, width, encode_mask(codes == code)])) + "\n"


def _hota(
    classes: frozenset[int], by_class: Sequence[pa.Table], of_all: Sequence[pa.Table]
) -> tuple[list[Report], Report]:
    """HOTA of a benchmark: of each class, and without classes."""
    rows = rows_of(merge(by_class))
    return [hota.report(rows, number) for number in sorted(classes)], hota.report(merge(of_all), ANY)


def _read(path: Path, classes: frozenset[int], listed: rob_mots.Listed) -> dict[int, list[Line]]:
    """The lines of each frame."""
    if not path.is_file():
        raise DataError(f"{path}: not found; an empty file says that nothing is there")
    frames: dict[int, list[Line]] = defaultdict(list)
    for number, text in read_lines(path, str(path)):
        where = f"{path}, line {number}"
        frame, track, category, height, width, outline = rob_mots.parse_line(text, where, classes)
        where = f"{where}, frame {frame}, track {track}"
        if not 0 <= frame < listed.length:
            raise DataError(f"{where}: the truth's seqmap.txt has frames 0..{listed.length - 1}")
        if isinstance(outline, tuple):
            raise DataError(f"{where}: a box; truth and results of boxes are not scored, masks are")
        if (height, width) != listed.size:
            expected = "x".join(map(str, listed.size))
            raise DataError(f"{where}: size {height}x{width}, the truth's seqmap.txt has {expected}")
        if any(line.track == track for line in frames[frame] if line.category < rob_mots.IGNORE_FROM):
            raise DataError(f"{where}: the frame has this track twice")
        frames[frame].append(Line(where, track, category, outline))
    return frames


def _pairs(video: Video, pred: Path) -> Iterator[tuple[FramePair, FramePair]]:
    """Each frame by class, and as if all objects were of one class."""
    true_lines, pred_lines = _read(video.truth, video.classes, video.listed), _read(pred, ALL_CLASSES, video.listed)
    true_numbers, pred_numbers = (
        {track: n for n, track in enumerate(sorted({line.track for lines in listed.values() for line in lines}), 1)}
        for listed in (true_lines, pred_lines)
    )
    for frame in range(video.listed.length):
        true = _drawn(true_lines.get(frame, []), true_numbers, video.listed.size)
        found = _drawn(pred_lines.get(frame, []), pred_numbers, video.listed.size)
        classes, instances = true.categories[true.places], true.tracks[true.places]
        pairs = []
        for counted, names in zip(_counted(video, true, found), (np.arange(256), NO_CLASSES), strict=True):
            category, track = (np.where(counted, of, 0)[found.places] for of in (found.categories, found.tracks))
            pairs.append(FramePair(video.name, frame, names[classes], instances, names[category], track))
        yield pairs[0], pairs[1]


def _drawn(lines: list[Line], numbers: dict[int, int], size: tuple[int, int]) -> Drawn:
    places, regions = np.zeros(size, np.int32), dict[int, np.ndarray]()
    objects: list[Line] = []
    sides = [0]
    for line in lines:
        mask = decode_mask(line.rle, *size, line.where)
        if line.category >= rob_mots.IGNORE_FROM:
            regions[line.category] = regions.get(line.category, False) | mask
            continue
        if places[mask].any():
            raise DataError(f"{line.where}: the mask overlaps that of track {objects[places[mask].max() - 1].track}")
        objects.append(line)
        places[mask] = len(objects)
        sides.append(max(int(np.ptp(np.flatnonzero(mask.any(axis)))) + 1 for axis in (0, 1)) if mask.any() else 0)
    categories = np.array([0, *(line.category for line in objects)], np.int32)
    tracks = np.array([0, *(numbers[line.track] for line in objects)], np.int32)
    return Drawn(places, categories, tracks, np.array(sides), regions)


def _counted(video: Video, true: Drawn, found: Drawn) -> tuple[np.ndarray, np.ndarray]:
    """Which predicted objects of a frame count by class, and without classes. Shape: (objects + 1,) each."""
    count = len(found.categories)
    shared = np.bincount((true.places * count + found.places).reshape(-1), minlength=len(true.categories) * count)
    shared = shared.reshape(-1, count)
    union = shared.sum(1, keepdims=True) + shared.sum(0) - shared
    iou = shared / np.maximum(union, 1)
    small = 8 * found.sides <= min(video.listed.size)
    spared = np.isin(found.categories, list(video.listed.ignored))
    foreign = ~np.isin(found.categories, list(video.classes))

    by_class = np.zeros(count, bool)
    for category in video.classes.intersection(found.categories[1:].tolist()):
        rows, columns = np.flatnonzero(true.categories == category), np.flatnonzero(found.categories == category)
        excused = small | spared | _inside(true, found, (rob_mots.IGNORE_FROM, rob_mots.IGNORE_FROM + category))
        by_class[columns] = _without_excuse(iou[np.ix_(rows, columns)], excused[columns])
    of_all = np.zeros(count, bool)
    of_all[1:] = _without_excuse(iou[1:, 1:], (small | spared | foreign | _inside(true, found, true.regions))[1:])
    return by_class, of_all


def _inside(true: Drawn, found: Drawn, codes: Iterable[int]) -> np.ndarray:
    """Which predicted objects have more than half of their pixels in the regions of these codes."""
    count = len(found.categories)
    ignored = np.zeros(found.places.shape, bool)
    for code in codes:
        ignored |= true.regions.get(code, False)
    inside, area = (
        np.bincount(places, minlength=count) for places in (found.places[ignored], found.places.reshape(-1))
    )
    return 2 * inside > area


def _without_excuse(iou: np.ndarray, excused: np.ndarray) -> np.ndarray:
    """Which predictions count: those that are matched, one to one, and of the others those that nothing excuses."""
    scores = np.where(iou >= 0.5 - EPSILON, iou, 0)
    rows, columns = linear_sum_assignment(scores, maximize=True)
    counted = ~excused
    counted[columns[scores[rows, columns] > 0]] = True
    return counted
