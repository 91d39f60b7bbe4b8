"""YouTube-VIS results: `results.json`, a list of tracks, each with a score and a mask or null for every frame."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from post_platform.datasets.files import read_json
from post_platform.datasets.masks import decode_mask, encode_mask
from post_platform.errors import DataError
from post_platform.labels import UNIDENTIFIED, VOID, load_contract
from post_platform.metrics.results.pair import FramePair, ResultFrame, Results, choose
from post_platform.metrics.track_ap import Track, Video, overlaps, track_ap
from post_platform.runs import distinct


@dataclass(frozen=True)
class Listed:
    """A true or predicted track of one video: what the JSON says of it; `masks` has an entry per frame."""

    category: int
    crowd: bool
    score: float
    masks: tuple[Any, ...]


@dataclass(frozen=True)
class Footage:
    """A video of the truth's JSON with its tracks."""

    name: str
    number: int
    height: int
    width: int
    frames: tuple[int, ...]
    truth: tuple[Listed, ...]


def read(dataset: str, truth: Path, predictions: Path, sequences: Sequence[str] | None) -> Results:
    """Pairs of the truth's JSON and of `results.json`, or the folder it lies in.

    A video that no result names has no track; official results are such lists.

    Raises: DataError naming file and video: an unknown video or class, a wrong number of masks, a mask that is none.
    """
    videos = {video.name: video for video in _read_truth(dataset, truth)}
    found = _read_predictions(dataset, _file(predictions), {video.number: video for video in videos.values()})
    chosen = [videos[name] for name in choose(list(videos), list(videos), sequences, predictions)]
    pairs = (pair for video in chosen for pair in _pairs(video, found.get(video.number, ())))
    names = {entry.id: entry.name for entry in load_contract(dataset).classes}

    def average_precision() -> dict[str, float | None]:
        return track_ap([_overlapping(video, found.get(video.number, ())) for video in chosen], names)

    count = sum(len(video.frames) for video in chosen)
    return Results(load_contract(dataset), count, pairs, average_precision)


def write(dataset: str, frames: Iterable[ResultFrame], folder: Path) -> None:
    """Write `results.json`. A track's score is the mean over the frames that it is in; whole masks stay whole.

    Raises: DataError naming the frame when its meta.json lacks the number of its video.
    """
    listed: list[dict[str, Any]] = []
    for _, group in groupby(frames, key=lambda frame: frame.sequence):
        listed += _tracks(dataset, group)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(listed))


def _tracks(dataset: str, frames: Iterable[ResultFrame]) -> Iterator[dict[str, Any]]:
    """The entries of one video, in the order in which its tracks appear."""
    found: dict[str, dict[str, Any]] = {}
    scores: dict[str, list[float]] = {}
    for frame in frames:
        where = f"{dataset} {frame.sequence}/{frame.frame:06d}"
        native = frame.meta.get("native", {})
        if not {"video_id", "length", "index"} <= native.keys():
            raise DataError(f"{where}: meta.json has no video_id, which results must name", "convert the dataset again")
        height, width = frame.classes.shape
        for name, mask in _masks(frame).items():
            entry = found.setdefault(
                name,
                {
                    "video_id": native["video_id"],
                    "category_id": int(name.split("/")[0]),
                    "segmentations": [None] * int(native["length"]),
                },
            )
            entry["segmentations"][int(native["index"])] = {"size": [height, width], "counts": mask}
            scores.setdefault(name, []).append(float(frame.scores.get(name, 1.0)))
    for name, entry in found.items():
        yield {**entry, "score": sum(scores[name]) / len(scores[name])}


def _masks(frame: ResultFrame) -> dict[str, str]:
    """`"class/track"` -> compressed run lengths of a frame's objects."""
    if "masks" in frame.meta:
        return {name: mask["counts"] for name, mask in frame.meta["masks"].items()}
    known = (frame.tracks > 0) & (frame.tracks != UNIDENTIFIED) & (frame.classes != VOID)
    codes = np.where(known, frame.classes.astype(np.int64) << 32 | frame.tracks, 0)
    return {
        f"{code >> 32}/{code & 0xFFFFFFFF}": encode_mask(codes == code) for code in distinct(codes).tolist() if code
    }


def _file(path: Path) -> Path:
    return path / "results.json" if path.is_dir() else path


def _read_truth(dataset: str, path: Path) -> Iterator[Footage]:
    content = read_json(path, f"--truth {dataset}")
    try:
        if content.get("annotations") is None:
            raise DataError(f"{path}: has no annotations, so there is nothing to score against")
        own: dict[int, list[Listed]] = {int(video["id"]): [] for video in content["videos"]}
        for entry in content["annotations"]:
            own[int(entry["video_id"])].append(_listed(dataset, entry, str(path)))
        for video in content["videos"]:
            files = [PurePosixPath(str(name)) for name in video["file_names"]]
            footage = Footage(
                files[0].parent.name, int(video["id"]), int(video["height"]), int(video["width"]),
                tuple(int(file.stem) for file in files), tuple(own[int(video["id"])]),
            )  # fmt: skip
            _require_lengths(footage, footage.truth, str(path))
            yield footage
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise DataError(f"{path}: malformed ({error!r})") from error


def _read_predictions(dataset: str, path: Path, videos: Mapping[int, Footage]) -> dict[int, tuple[Listed, ...]]:
    content = read_json(path, f"--predictions {dataset}")
    if not isinstance(content, list):
        raise DataError(f"{path}: is not a list of tracks")
    found: dict[int, list[Listed]] = {}
    try:
        for entry in content:
            number = int(entry["video_id"])
            if number not in videos:
                raise DataError(f"{path}: video {number} is not in the truth")
            found.setdefault(number, []).append(_listed(dataset, entry, str(path)))
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise DataError(f"{path}: malformed ({error!r})") from error
    for number, tracks in found.items():
        _require_lengths(videos[number], tracks, str(path))
    return {number: tuple(tracks) for number, tracks in found.items()}


def _listed(dataset: str, entry: Mapping[str, Any], where: str) -> Listed:
    category, score = int(entry["category_id"]), float(entry.get("score", 1.0))
    if category not in {known.id for known in load_contract(dataset).classes}:
        raise DataError(f"{where}: unknown category {category}")
    if not np.isfinite(score):
        raise DataError(f"{where}: a score is {score}")
    return Listed(category, bool(entry.get("iscrowd", 0)), score, tuple(entry["segmentations"]))


def _require_lengths(video: Footage, tracks: Iterable[Listed], where: str) -> None:
    for track in tracks:
        if len(track.masks) != len(video.frames):
            raise DataError(
                f"{where}: video {video.number} ({video.name}) has {len(video.frames)} frames, "
                f"one of its tracks {len(track.masks)} masks"
            )


def _decoded(video: Footage, tracks: Sequence[Listed], frame: int, what: str) -> NDArray[np.bool_]:
    """The masks of one frame. Shape: (tracks, H, W)."""
    where = f"{what} of {video.name}/{video.frames[frame]:06d}"
    masks = np.zeros((len(tracks), video.height, video.width), bool)
    for place, track in enumerate(tracks):
        if track.masks[frame] not in (None, []):
            masks[place] = decode_mask(track.masks[frame], video.height, video.width, f"{where}, track {place + 1}")
    return masks


def _pairs(video: Footage, pred: Sequence[Listed]) -> Iterator[FramePair]:
    """Frames in which the smallest mask is on top, as in shards; numbers count the tracks of a video from 1."""
    for place, frame in enumerate(video.frames):
        classes, instances = _flat(_decoded(video, video.truth, place, "truth"), video.truth)
        pred_classes, tracks = _flat(_decoded(video, pred, place, "prediction"), pred)
        yield FramePair(video.name, frame, classes, instances.astype(np.uint16), pred_classes, tracks)


def _flat(masks: NDArray[np.bool_], tracks: Sequence[Listed]) -> tuple[np.ndarray, np.ndarray]:
    classes, numbers = np.zeros(masks.shape[1:], np.uint8), np.zeros(masks.shape[1:], np.int32)
    areas = masks.sum((1, 2))
    for place in sorted(range(len(masks)), key=lambda place: (not tracks[place].crowd, -areas[place])):
        crowd = tracks[place].crowd
        classes[masks[place]] = VOID if crowd else tracks[place].category
        numbers[masks[place]] = 0 if crowd else place + 1
    return classes, numbers


def _overlapping(video: Footage, pred: Sequence[Listed]) -> Video:
    """Pixel counts over all frames, of whole masks."""
    shared = np.zeros((len(pred), len(video.truth)))
    sums, frames = {}, {}
    for name, tracks in (("truth", video.truth), ("pred", pred)):
        sums[name] = np.zeros(len(tracks))
        frames[name] = np.array([sum(mask not in (None, []) for mask in track.masks) for track in tracks])
    for place in range(len(video.frames)):
        pixels = video.height * video.width
        truth = _decoded(video, video.truth, place, "truth").reshape(len(video.truth), pixels)
        found = _decoded(video, pred, place, "prediction").reshape(len(pred), pixels)
        shared += found.astype(np.float32) @ truth.astype(np.float32).T  # exact: a frame has fewer than 2**24 pixels
        sums["truth"] += truth.sum(1)
        sums["pred"] += found.sum(1)
    areas = {name: sums[name] / np.maximum(frames[name], 1) for name in sums}
    return Video(
        tuple(Track(t.category, area, t.crowd) for t, area in zip(video.truth, areas["truth"].tolist(), strict=True)),
        tuple(Track(t.category, area, score=t.score) for t, area in zip(pred, areas["pred"].tolist(), strict=True)),
        overlaps(shared, sums["pred"], sums["truth"], [track.crowd for track in video.truth]),
    )
