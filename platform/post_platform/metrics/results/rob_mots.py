"""RobMOTS results: `data/<benchmark>/<sequence>.txt`, seven columns as the truth, with a confidence.

In an ignore region of the truth nothing counts of the classes that it spares. Nor do spurious objects of a class that
seqmap.txt ignores in their sequence. Benchmarks whose truth is boxes (TAO, Waymo) are not scored.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from post_platform.datasets import rob_mots
from post_platform.datasets.files import is_junk, read_lines, subfolders
from post_platform.datasets.masks import decode_mask, encode_mask
from post_platform.errors import DataError
from post_platform.labels import UNIDENTIFIED, judged, load_contract
from post_platform.metrics.results.pair import (
    FramePair,
    ResultFrame,
    Results,
    choose,
    require_folder,
    require_plain,
    require_size,
)
from post_platform.runs import distinct

CONTRACT = load_contract("rob_mots")
ALL_CLASSES = frozenset(entry.id for entry in CONTRACT.classes)


@dataclass(frozen=True)
class Line:
    """One mask of one frame; `where` names file and line."""

    where: str
    track: int
    category: int
    height: int
    width: int
    rle: str


def read(truth: Path, predictions: Path, sequences: Sequence[str] | None) -> Results:
    """Pairs of a truth, `<benchmark>/{data, seqmap.txt, clsmap.txt}`, and results, `[data/]<benchmark>/<sequence>.txt`.

    A sequence is called `<benchmark>-<sequence>`. Every frame of its seqmap is scored.

    Raises: DataError naming file and line, or the sequence that has no result or a truth of boxes.
    """
    require_folder(truth, "truth")
    require_folder(predictions, "predictions")
    found = predictions / "data" if (predictions / "data").is_dir() else predictions
    true_files: dict[str, tuple[Path, rob_mots.Listed, frozenset[int]]] = {}
    for benchmark, folder in subfolders([truth]).items():
        classes = rob_mots.read_clsmap("truth", benchmark, folder)
        for name, listed in rob_mots.read_seqmap("truth", benchmark, folder).items():
            true_files[f"{benchmark}-{name}"] = (folder / "data" / f"{name}.txt", listed, classes)
    pred_files = {
        f"{benchmark}-{path.stem}": path
        for benchmark, folder in subfolders([found]).items()
        for path in sorted(folder.glob("*.txt"))
        if not is_junk(path.name)
    }
    chosen = choose(list(true_files), list(pred_files), sequences, predictions)
    counts = {name: true_files[name][1].length for name in chosen}

    def pairs(names: Sequence[str]) -> Iterator[FramePair]:
        return (pair for name in names for pair in _pairs(name, *true_files[name], pred_files[name]))

    return Results(CONTRACT, counts, pairs)


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


def _read(path: Path, classes: frozenset[int], length: int) -> dict[int, list[Line]]:
    """The lines of each frame."""
    if not path.is_file():
        raise DataError(f"{path}: not found; an empty file says that nothing is there")
    frames: dict[int, list[Line]] = defaultdict(list)
    for number, text in read_lines(path, str(path)):
        where = f"{path}, line {number}"
        frame, track, category, height, width, outline = rob_mots.parse_line(text, where, classes)
        if not 0 <= frame < length:
            raise DataError(f"{where}: frame {frame} is not one of the {length} of the truth's seqmap.txt")
        if isinstance(outline, tuple):
            raise DataError(f"{where}: a box; truth and results of boxes are not scored, masks are")
        if any(line.track == track for line in frames[frame] if line.category < rob_mots.IGNORE_FROM):
            raise DataError(f"{where}: frame {frame} already has a track {track}")
        frames[frame].append(Line(where, track, category, height, width, outline))
    return frames


def _pairs(name: str, truth: Path, listed: rob_mots.Listed, classes: frozenset[int], pred: Path) -> Iterator[FramePair]:
    true_lines, pred_lines = _read(truth, classes, listed.length), _read(pred, ALL_CLASSES, listed.length)
    tracks = [{line.track for lines in found.values() for line in lines} for found in (true_lines, pred_lines)]
    true_numbers, pred_numbers = ({track: n for n, track in enumerate(sorted(found), 1)} for found in tracks)
    for frame in range(listed.length):
        both = [*true_lines.get(frame, []), *pred_lines.get(frame, [])]
        size = (both[0].height, both[0].width) if both else (1, 1)
        shown = _paint(true_lines.get(frame, []), true_numbers, size)
        found = _paint([line for line in pred_lines.get(frame, []) if line.category in classes], pred_numbers, size)
        _forgive(listed.ignored, shown, found)
        true_classes = judged(CONTRACT, shown[0], found[0])
        yield FramePair(name, frame, true_classes, shown[1].astype(np.uint16), *found)


def _forgive(ignored: frozenset[int], truth: tuple[np.ndarray, ...], pred: tuple[np.ndarray, ...]) -> None:
    """Take out of `pred` the objects of ignored classes that no true one of their class meets with an IoU of 0.5.

    Source: TrackEval. Masks do not overlap, so which objects match is no matter of assignment.
    """
    for category in ignored.intersection(distinct(pred[0]).tolist()):
        true_tracks, pred_tracks = (np.where(maps[0] == category, maps[1], 0) for maps in (truth, pred))
        areas = np.bincount(true_tracks.ravel())
        for track in distinct(pred_tracks).tolist():
            mask = pred_tracks == track
            shared = np.bincount(true_tracks[mask], minlength=len(areas))
            iou = shared / (areas + np.count_nonzero(mask) - shared)
            if track and not (iou[1:] >= 0.5).any():
                pred[0][mask] = pred[1][mask] = 0


def _paint(lines: list[Line], numbers: dict[int, int], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Classes, ignore regions by their codes, and numbers of tracks; regions lie under objects."""
    classes, tracks = np.zeros(size, np.uint8), np.zeros(size, np.int32)
    for line in sorted(
        lines, key=lambda line: (line.category < rob_mots.IGNORE_FROM, line.category == rob_mots.IGNORE_FROM)
    ):
        require_size(np.empty((line.height, line.width)), classes, line.where)
        mask = decode_mask(line.rle, *size, line.where)
        if line.category >= rob_mots.IGNORE_FROM:
            classes[mask] = line.category
            continue
        if tracks[mask].any():
            raise DataError(f"{line.where}: the mask of track {line.track} overlaps another")
        classes[mask], tracks[mask] = line.category, numbers[line.track]
    return classes, tracks
