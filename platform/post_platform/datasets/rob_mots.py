"""RobMOTS: sequences of many tracking benchmarks in one text format of seven columns, with 80 classes."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from post_platform.datasets.files import (
    IMAGE_SUFFIXES,
    MAX_PIXELS,
    image_size,
    is_junk,
    missing,
    numbered,
    read_lines,
    require_folder,
    subfolders,
)
from post_platform.datasets.frame import FrameRef, Label, video_frames
from post_platform.datasets.masks import decode_mask
from post_platform.errors import DataError
from post_platform.labels import UNIDENTIFIED, VOID, load_contract

SPLITS = ("train", "val", "test")
IMAGES = ("RobMOTS", "images", "")
TRUTH = ("data/gt/rob_mots", "gt/rob_mots", "gt")
IGNORE_FROM = 100
# Nominal: the files have no rates. Where none is known, that of most videos stands.
SECONDS_PER_FRAME = {
    "kitti_mots": 0.1,
    "bdd_mots": 0.2,
    "youtube_vis": 1 / 6,
    "davis_unsupervised": 1 / 24,
    "mots_challenge": 1 / 30,
}
OTHER_SECONDS_PER_FRAME = 1 / 30
FAR = 1e6  # no box reaches farther out of its image


@dataclass(frozen=True)
class Listed:
    """A sequence of seqmap.txt: its number of frames, their height and width, and the classes that it ignores.

    Of ignored classes spurious objects do not count.
    """

    length: int
    size: tuple[int, int]
    ignored: frozenset[int]


@dataclass(frozen=True)
class Shape:
    """One line of a frame: an object, or a region to ignore; `outline` is run lengths, or a box (x0, y0, x1, y1).

    Height and width are 0 where a box comes without them.
    """

    number: int
    native: int
    category: int
    height: int
    width: int
    outline: str | tuple[float, ...]


def frames(source: Path, split: str) -> list[FrameRef]:
    """Every frame of a split: `RobMOTS/<split>/<benchmark>/<sequence>/<frame>`, as `<benchmark>-<sequence>`.

    Labels are `data/gt/rob_mots/<split>/<benchmark>/data/<sequence>.txt`, beside them `seqmap.txt`, which says which
    sequences there are and how long, and `clsmap.txt`, the classes of the benchmark. Without a truth at all the split
    is unlabelled.

    Raises: MissingSplit, or DataError naming sequence and line: a sequence without truth or one of its images, a line
        that is none, of no frame, or of no class.
    """
    require_folder("rob_mots", source)
    truths = subfolders(source / name / split for name in TRUTH)
    places = [source / name / split for name in IMAGES]
    benchmarks = subfolders(places)
    if not benchmarks:
        raise missing("rob_mots", split, source, [f"RobMOTS/{split}/<benchmark>/<sequence>"])
    unseen = sorted(set(truths) - set(benchmarks))
    if unseen:
        raise DataError(f"rob_mots {split}: benchmark {unseen[0]} has a truth but no images")
    refs: list[FrameRef] = []
    for benchmark, folder in benchmarks.items():
        if benchmark in ("instances_txt", "instances"):
            continue  # KITTI-MOTS' own labels, in trees that were put together by hand
        sequences = subfolders([folder])
        truth = truths.get(benchmark)
        if truth is None:
            if truths:
                raise DataError(f"rob_mots {split}: benchmark {benchmark} has images but no truth")
            listed: dict[str, Listed] | dict[str, None] = dict.fromkeys(sequences)
            classes: frozenset[int] = frozenset()
        else:
            listed, classes = read_seqmap(split, benchmark, truth), read_clsmap(split, benchmark, truth)
        for name, entry in listed.items():
            if name not in sequences:
                raise DataError(
                    f"rob_mots {split}: sequence {benchmark}/{name} of seqmap.txt has no images in {folder}",
                    hint="unpack the official archives completely",
                )
            images = numbered(sequences[name], IMAGE_SUFFIXES)
            if not images:
                raise DataError(f"rob_mots {benchmark}-{name}: no image in {sequences[name]}")
            labels: dict[int, object] | None = None
            if truth is not None and entry is not None:
                labels = _labels(f"{benchmark}-{name}", truth, name, images, entry.length, classes)
            seconds = SECONDS_PER_FRAME.get(benchmark, OTHER_SECONDS_PER_FRAME)
            native: dict[str, int | str] = {"benchmark": benchmark, "sequence": name}
            video = source_video(split, benchmark, name)
            refs += video_frames(f"{benchmark}-{name}", images, labels, seconds, video, native)
    return refs


def label(ref: FrameRef) -> Label:
    """The label of one frame. Ignore regions keep their code, 100 or 100 + class, and lie under every object.

    What is outlined by a box alone is void where no mask lies: an object is there, of unknown shape.

    Raises: DataError for masks that overlap, or sizes that are not the image's.
    """
    where = f"rob_mots {ref.key}"
    assert isinstance(ref.label, tuple)
    height, width = image_size(ref.image, where)
    classes, instances = np.zeros((height, width), np.uint8), np.zeros((height, width), np.uint16)
    native_ids: dict[str, int] = {}
    for shape in sorted(ref.label, key=_layer):
        if shape.height and (shape.height, shape.width) != (height, width):
            raise DataError(f"{where}: label is {shape.height}x{shape.width}, image is {height}x{width}")
        if isinstance(shape.outline, tuple):
            rows, columns = _inside(shape.outline, height, width)
            region = classes[rows, columns]
            region[...] = shape.category if shape.category >= IGNORE_FROM else VOID
            continue
        mask = decode_mask(shape.outline, height, width, f"{where}: track {shape.native}")
        if shape.category >= IGNORE_FROM:
            classes[mask] = shape.category
            continue
        if instances[mask].any():
            raise DataError(f"{where}: the mask of track {shape.native} overlaps another")
        classes[mask], instances[mask] = shape.category, shape.number
        native_ids[f"{shape.category}/{shape.number}"] = shape.native
    return Label(classes, instances, native_ids)


def source_video(split: str, benchmark: str, sequence: str) -> str:
    """The recording, by the name that the benchmark's own dataset gives it."""
    if benchmark == "kitti_mots":
        return f"kitti_tracking/{'testing' if split == 'test' else 'training'}/{sequence}"
    if benchmark == "mots_challenge":
        return f"motchallenge/{sequence[-2:]}"
    known = {"bdd_mots": "bdd100k", "davis_unsupervised": "davis"}
    return f"{known.get(benchmark, benchmark)}/{sequence}"


def _layer(shape: Shape) -> int:
    """Drawn first: regions of one class, then those of every class, which spare more, then boxes of objects, masks."""
    if shape.category > IGNORE_FROM:
        return 0
    if shape.category == IGNORE_FROM:
        return 1
    return 2 if isinstance(shape.outline, tuple) else 3


def _labels(
    sequence: str, truth: Path, name: str, images: dict[int, Path], length: int, classes: frozenset[int]
) -> dict[int, object]:
    """The lines of each frame. Timesteps are the numbers that image files are called by, from 0."""
    last = max(images)
    if last >= length:
        raise DataError(f"rob_mots {sequence}: image {last} is beyond the {length} frames of seqmap.txt")
    absent = next((frame for frame in range(length) if frame not in images), None)
    if absent is not None:
        raise DataError(
            f"rob_mots {sequence}/{absent:06d}: has no image ({len(images)} of the {length} frames of seqmap.txt have)",
            hint="unpack the official archives completely",
        )
    path = truth / "data" / f"{name}.txt"
    if not path.is_file():
        raise DataError(f"rob_mots {sequence}: no truth {path}; an empty file says that nothing is there")
    return dict(_read_truth(sequence, path, images, classes))


def read_seqmap(split: str, benchmark: str, truth: Path) -> dict[str, Listed]:
    """The sequences of a benchmark, from lines `<sequence> <frames> <height> <width> [ignored classes...]`.

    Raises: DataError for a line that is none, a sequence that is there twice, or a file without any.
    """
    where = f"rob_mots {split}/{benchmark}"
    listed: dict[str, Listed] = {}
    for number, line in read_lines(truth / "seqmap.txt", where):
        fields = line.split()
        legal = len(fields) >= 4 and all(field.isdecimal() and len(field) < 7 for field in fields[1:])
        if not legal or "/" in fields[0] or is_junk(fields[0]) or fields[0] in listed:
            raise DataError(f"{where}: seqmap.txt, line {number}: {line[:60]!r} is not '<sequence> <frames> <h> <w>'")
        length, height, width, *ignored = map(int, fields[1:])
        listed[fields[0]] = Listed(length, (height, width), frozenset(ignored))
    if not listed:
        raise DataError(f"{where}: seqmap.txt lists no sequence")
    return listed


def read_clsmap(split: str, benchmark: str, truth: Path) -> frozenset[int]:
    """The classes of a benchmark, from the numbers in `clsmap.txt`; all 80 where it is missing."""
    known = frozenset(entry.id for entry in load_contract("rob_mots").classes)
    if not (truth / "clsmap.txt").is_file():
        return known
    where = f"rob_mots {split}/{benchmark}"
    fields = [field for _, line in read_lines(truth / "clsmap.txt", where) for field in line.split()]
    wrong = [field for field in fields if not field.isdecimal() or int(field[:9]) not in known]
    if wrong:
        raise DataError(f"{where}: clsmap.txt lists {wrong[0][:20]!r}, classes are 1..80")
    return frozenset(map(int, fields))


def _read_truth(
    sequence: str, path: Path, images: dict[int, Path], classes: frozenset[int]
) -> dict[int, tuple[Shape, ...]]:
    """Frame -> its lines, for every frame that has an image; none is an empty tuple.

    Track ids are kept where all of the sequence fit, else counted by ascending id.
    """
    found: dict[int, list[tuple[int, int, int, int, str | tuple[float, ...]]]] = defaultdict(list)
    for number, line in read_lines(path, f"rob_mots {sequence}"):
        frame, *shape = parse_line(line, f"rob_mots {sequence}: {path.name}, line {number}", classes)
        if frame not in images:
            raise DataError(f"rob_mots {sequence}: {path.name}, line {number}: frame {frame} has no image")
        found[frame].append(tuple(shape))  # type: ignore[arg-type]
    natives = sorted({native for lines in found.values() for native, category, *_ in lines if category < IGNORE_FROM})
    fits = all(0 < native < UNIDENTIFIED for native in natives)
    numbers = {native: native if fits else place for place, native in enumerate(natives, start=1)}
    if len(numbers) >= UNIDENTIFIED:
        raise DataError(f"rob_mots {sequence}: {len(numbers)} tracks, at most {UNIDENTIFIED - 1} can be stored")
    labels: dict[int, tuple[Shape, ...]] = {}
    for frame in images:
        shapes = tuple(Shape(numbers.get(line[0], 0), *line) for line in found.get(frame, []))
        tracks = [shape.native for shape in shapes if shape.category < IGNORE_FROM]
        if len(set(tracks)) < len(tracks):
            raise DataError(f"rob_mots {sequence}/{frame:06d}: a track has two lines")
        labels[frame] = shapes
    return labels


def parse_line(
    line: str, where: str, classes: frozenset[int]
) -> tuple[int, int, int, int, int, str | tuple[float, ...]]:
    """Frame, track, class, height, width, outline of `timestep track class confidence height width rle`.

    A box `x0 y0 x1 y1` stands in the place of the last three columns, as the official tool reads it; after height and
    width it is taken as well.
    """
    fields = line.split()
    if len(fields) == 6:
        raise DataError(
            f"{where}: six columns, the format of KITTI-MOTS; RobMOTS has seven",
            hint="python pipelines/convert.py kitti_mots --source <folder> --out <root>",
        )
    size = fields[4:6] if len(fields) in (7, 10) else ["0", "0"]
    whole = [*fields[:3], *size]
    legal = all(field.removeprefix("-").isdecimal() and len(field) < 19 for field in whole)
    if len(fields) not in (7, 8, 10) or not legal:
        raise DataError(f"{where}: {line[:60]!r} is not 'timestep track class confidence height width rle'")
    frame, track, category, height, width = map(int, whole)
    if len(fields) != 8 and not (height > 0 and width > 0 and height * width <= MAX_PIXELS):
        raise DataError(f"{where}: size {height}x{width}, must be 1 to {MAX_PIXELS} pixels")
    if _finite(fields[3:4]) is None:
        raise DataError(f"{where}: the confidence is {fields[3][:20]!r}")
    if category not in classes and not IGNORE_FROM <= category <= IGNORE_FROM + 80:
        where = f"{where}, frame {frame}, track {track}"
        raise DataError(f"{where}: class {category} is not one of its benchmark's, nor an ignore region (100..180)")
    if len(fields) == 7:
        return frame, track, category, height, width, fields[6]
    box = _finite(fields[-4:])
    if box is None or max(map(abs, box)) > FAR or box[0] > box[2] or box[1] > box[3]:
        raise DataError(f"{where}: {' '.join(fields[-4:])[:60]!r} is no box 'x0 y0 x1 y1'")
    return frame, track, category, height, width, box


def _finite(fields: list[str]) -> tuple[float, ...] | None:
    """The numbers that the fields are; None when one is not."""
    try:
        numbers = tuple(map(float, fields))
    except ValueError:
        return None
    return numbers if all(map(math.isfinite, numbers)) else None


def _inside(box: tuple[float, ...], height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns of a box (x0, y0, x1, y1), cut to the image."""
    x0, y0, x1, y1 = map(round, box)
    return slice(max(0, y0), min(height, max(0, y1))), slice(max(0, x0), min(width, max(0, x1)))
