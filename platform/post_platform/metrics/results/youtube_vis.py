"""YouTube-VIS results: `results.json`, a list of tracks, each with a score and a mask or null for every frame."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from post_platform.datasets import youtube_vis
from post_platform.datasets.files import read_json
from post_platform.datasets.masks import decode_mask, encode_mask
from post_platform.errors import DataError
from post_platform.labels import UNIDENTIFIED, VOID, load_contract
from post_platform.metrics.results.pair import FramePair, ResultFrame, Results, choose
from post_platform.metrics.score import Families
from post_platform.metrics.track_ap import Track, Video, overlaps
from post_platform.metrics.track_ap import report as track_ap
from post_platform.runs import distinct

MAX_LENGTH = 1 << 20  # frames of a video
BLOCK = 1 << 20  # pixels whose overlaps are counted at once, in numbers that float32 holds exactly


@dataclass(frozen=True)
class Listed:
    """A true or predicted track of one video: what the JSON says of it; `masks` has an entry per frame.

    `where` names the file and its place there.
    """

    where: str
    category: int
    crowd: bool
    score: float
    masks: tuple[Any, ...]


@dataclass(frozen=True)
class Footage:
    """A video of the truth's JSON with its tracks, by ascending annotation id."""

    video: youtube_vis.Video
    truth: tuple[Listed, ...]


def read(dataset: str, truth: Path, predictions: Path, sequences: Sequence[str] | None) -> Results:
    """Pairs of the truth's JSON and of `results.json`, or the folder it lies in.

    A video that no result names has no track; official results are such lists.

    Raises: DataError naming file and video: a truth of the other year, an unknown video or class, a wrong number of
        masks, a mask that is none.
    """
    footage = {entry.video.name: entry for entry in _read_truth(dataset, truth)}
    found = _read_predictions(dataset, _file(predictions), {entry.video.number: entry for entry in footage.values()})
    chosen = [footage[name] for name in choose(list(footage), list(footage), sequences, predictions)]
    names = {entry.id: entry.name for entry in load_contract(dataset).classes}

    def pairs(wanted: Sequence[str]) -> Iterator[FramePair]:
        return (pair for name in wanted for pair in _pairs(footage[name], found.get(footage[name].video.number, ())))

    def average_precision(progress: Callable[[int], None]) -> Families:
        videos, done = [], 0
        for entry in sorted(chosen, key=lambda entry: entry.video.number):  # equal scores rank in this order
            progress(done)
            videos.append(_overlapping(entry, found.get(entry.video.number, ())))
            done += len(entry.video.stamps)
        return {"ap": track_ap(videos, names)}

    counts = {entry.video.name: len(entry.video.stamps) for entry in chosen}
    return Results(load_contract(dataset), counts, pairs, average_precision)


def write(dataset: str, frames: Iterable[ResultFrame], folder: Path) -> None:
    """Write `results.json`. A track's score is the mean over the frames that it is in; whole masks stay whole.

    Raises: DataError naming the frame when its meta.json does not say which frame of which video it is.
    """
    listed: list[dict[str, Any]] = []
    for _, group in groupby(frames, key=lambda frame: frame.sequence):
        listed += _tracks(dataset, group)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(listed))


def _tracks(dataset: str, frames: Iterable[ResultFrame]) -> Iterator[dict[str, Any]]:
    """The entries of one video, by ascending track: of equally large masks the same one is on top as in the label."""
    found: dict[str, dict[str, Any]] = {}
    scores: dict[str, list[float]] = {}
    first: tuple[int, int] | None = None
    for frame in frames:
        number, length, place = _native(dataset, frame)
        first = first or (number, length)
        if (number, length) != first:
            raise DataError(
                f"{dataset} {frame.sequence}/{frame.frame:06d}: meta.json says video {number} of {length} frames, "
                f"in an earlier frame it is video {first[0]} of {first[1]}"
            )
        height, width = frame.classes.shape
        for name, mask in _masks(frame).items():
            entry = found.setdefault(
                name,
                {
                    "video_id": number,
                    "category_id": int(name.split("/")[0]),
                    "segmentations": [None] * length,
                },
            )
            entry["segmentations"][place] = {"size": [height, width], "counts": mask}
            scores.setdefault(name, []).append(float(frame.scores.get(name, 1.0)))
    for name in sorted(found, key=lambda name: [int(part) for part in reversed(name.split("/"))]):
        yield {**found[name], "score": sum(scores[name]) / len(scores[name])}


def _native(dataset: str, frame: ResultFrame) -> tuple[int, int, int]:
    """The number of a frame's video, that video's length, and the frame's place in it."""
    native = frame.meta.get("native", {})
    number, length, place = (native.get(name) for name in ("video_id", "length", "index"))
    if not (type(number) is type(length) is type(place) is int and 0 <= place < length <= MAX_LENGTH):
        raise DataError(
            f"{dataset} {frame.sequence}/{frame.frame:06d}: meta.json must have a native video_id, length and index, "
            f"which results repeat; it has {str(native)[:60]}",
            hint="convert the dataset again",
        )
    return number, length, place


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
        videos = youtube_vis.listed_videos(dataset, content, path)
        own: dict[int, list[Listed]] = {video.number: [] for video in videos}
        ids = Counter(int(entry["id"]) for entry in content["annotations"])
        if ids and max(ids.values()) > 1:
            raise DataError(f"{path}: annotation {ids.most_common(1)[0][0]} is listed twice")
        for entry in sorted(content["annotations"], key=lambda entry: int(entry["id"])):
            where = f"{path}, annotation {int(entry['id'])}"
            own[int(entry["video_id"])].append(_listed(dataset, entry, 1.0, where))
        for video in videos:
            _require_lengths(video, own[video.number])
            yield Footage(video, tuple(own[video.number]))
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise DataError(f"{path}: malformed ({error!r})") from error


def _read_predictions(dataset: str, path: Path, footage: Mapping[int, Footage]) -> dict[int, tuple[Listed, ...]]:
    content = read_json(path, f"--predictions {dataset}")
    if not isinstance(content, list):
        raise DataError(f"{path}: is not a list of tracks")
    found: dict[int, list[Listed]] = {}
    for place, entry in enumerate(content):
        where = f"{path}, result {place}"
        try:
            number, score = int(entry["video_id"]), float(entry["score"])
            if number not in footage:
                raise DataError(f"{where}: video {number} is not in the truth")
            found.setdefault(number, []).append(_listed(dataset, entry, score, where))
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise DataError(f"{where}: malformed ({error!r})") from error
    for number, tracks in found.items():
        _require_lengths(footage[number].video, tracks)
    return {number: tuple(tracks) for number, tracks in found.items()}


def _listed(dataset: str, entry: Mapping[str, Any], score: float, where: str) -> Listed:
    category = int(entry["category_id"])
    if category not in {known.id for known in load_contract(dataset).classes}:
        raise DataError(f"{where}: unknown category {category}")
    if not np.isfinite(score):
        raise DataError(f"{where}: a score is {score}")
    return Listed(where, category, bool(entry.get("iscrowd", 0)), score, tuple(entry["segmentations"]))


def _require_lengths(video: youtube_vis.Video, tracks: Iterable[Listed]) -> None:
    for track in tracks:
        if len(track.masks) != len(video.files):
            raise DataError(
                f"{track.where}: video {video.number} ({video.name}) has {len(video.files)} frames, "
                f"the track {len(track.masks)} masks"
            )


def _decoded(video: youtube_vis.Video, tracks: Sequence[Listed], frame: int) -> NDArray[np.bool_]:
    """The masks of one frame. Shape: (tracks, H, W)."""
    masks = np.zeros((len(tracks), video.height, video.width), bool)
    for place, track in enumerate(tracks):
        if track.masks[frame] not in (None, []):
            where = f"{track.where}, video {video.number}, {video.files[frame]}"
            masks[place] = decode_mask(track.masks[frame], video.height, video.width, where)
    return masks


def _pairs(footage: Footage, pred: Sequence[Listed]) -> Iterator[FramePair]:
    """Frames in which the smallest mask is on top, as in shards; numbers count the tracks of a video from 1."""
    video = footage.video
    for place, frame in enumerate(video.stamps):
        classes, instances = _flat(_decoded(video, footage.truth, place), footage.truth)
        pred_classes, tracks = _flat(_decoded(video, pred, place), pred)
        yield FramePair(video.name, frame, classes, instances.astype(np.uint16), pred_classes, tracks)


def _flat(masks: NDArray[np.bool_], tracks: Sequence[Listed]) -> tuple[np.ndarray, np.ndarray]:
    """Classes and numbers of one frame; of equally large masks the later track's is on top."""
    classes, numbers = np.zeros(masks.shape[1:], np.uint8), np.zeros(masks.shape[1:], np.int32)
    areas = masks.sum((1, 2))
    for place in sorted(range(len(masks)), key=lambda place: (not tracks[place].crowd, -areas[place])):
        crowd = tracks[place].crowd
        classes[masks[place]] = VOID if crowd else tracks[place].category
        numbers[masks[place]] = 0 if crowd else place + 1
    return classes, numbers


def _overlapping(footage: Footage, pred: Sequence[Listed]) -> Video:
    """Pixel counts over all frames, of whole masks; a track's mean area is that of the frames where it has a pixel."""
    video, true = footage.video, footage.truth
    pixels = video.height * video.width
    shared = np.zeros((len(pred), len(true)))
    true_sums, true_frames = np.zeros(len(true)), np.zeros(len(true))
    pred_sums, pred_frames = np.zeros(len(pred)), np.zeros(len(pred))
    for place in range(len(video.stamps)):
        truth = _decoded(video, true, place).reshape(len(true), pixels)
        found = _decoded(video, pred, place).reshape(len(pred), pixels)
        for start in range(0, pixels, BLOCK):
            block = np.s_[:, start : start + BLOCK]
            shared += found[block].astype(np.float32) @ truth[block].astype(np.float32).T
        for masks, sums, frames in ((truth, true_sums, true_frames), (found, pred_sums, pred_frames)):
            sums += masks.sum(1)
            frames += masks.any(1)
    true_areas = (true_sums / np.maximum(true_frames, 1)).tolist()
    pred_areas = (pred_sums / np.maximum(pred_frames, 1)).tolist()
    return Video(
        tuple(Track(track.category, area, track.crowd) for track, area in zip(true, true_areas, strict=True)),
        tuple(Track(track.category, area, score=track.score) for track, area in zip(pred, pred_areas, strict=True)),
        overlaps(shared, pred_sums, true_sums, [track.crowd for track in true]),
    )
