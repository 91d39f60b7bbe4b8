"""VIPSeg results: `pred.json`, a list of images per video, and `pan_pred/<video>/<frame>.png`, coded as in COCO."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from post_platform.datasets import vipseg
from post_platform.datasets.files import numbered, read_lines, subfolders
from post_platform.datasets.frame import FrameRef
from post_platform.errors import DataError
from post_platform.labels import load_contract
from post_platform.metrics.results import panoptic_json
from post_platform.metrics.results.pair import ResultFrame, Results, require_plain
from post_platform.metrics.score import ScoredContract

CONTRACT = load_contract("vipseg")
NUMBER = re.compile(r"[0-9]{1,9}")


def read(truth: Path, predictions: Path, sequences: Sequence[str] | None) -> Results:
    """Pairs of the frames of a split, sequence = the video.

    Truth is `panoptic_gt_VIPSeg_<split>.json` beside `panomasksRGB`, or the list `<split>.txt` beside `panomasks`, or
    the folder `panomasks` itself. Predictions are the folder of `pred.json` and `pan_pred`; the truth's JSON will do,
    too. Official numbers are those of the 720p version of the data.

    Raises: DataError when a frame has no prediction, or JSON and PNG of a frame disagree on its segments.
    """
    file = panoptic_json.locate(truth)[0]
    if file.is_file():
        contract = panoptic_json.contract_of(CONTRACT, file)
        true, found = _images(truth, contract), _images(predictions, contract)
        return panoptic_json.results(contract, true, panoptic_json.numbered, found, sequences, predictions)
    masks, found = _masks(truth), _images(predictions, CONTRACT)
    return panoptic_json.results(CONTRACT, masks, panoptic_json.labels(vipseg.label), found, sequences, predictions)


def write(frames: Iterable[ResultFrame], folder: Path) -> None:
    """Write `pred.json` and `pan_pred/<video>/<frame>.png`, frames called as the images are."""
    videos: list[dict[str, Any]] = []
    for video, group in groupby(frames, key=lambda frame: frame.sequence):
        require_plain(video, "vipseg")
        pngs = folder / "pan_pred" / video
        pngs.mkdir(parents=True, exist_ok=True)
        entries = [panoptic_json.write_image(frame, _stem(frame), pngs, _stem(frame), CONTRACT) for frame in group]
        videos.append({"video_id": video, "annotations": entries})
    panoptic_json.save(folder / "pred.json", videos)


def _stem(frame: ResultFrame) -> str:
    return Path(str(frame.meta.get("source_image", f"{frame.frame:08d}"))).stem


def _masks(path: Path) -> panoptic_json.Listed[FrameRef]:
    """Video -> frame -> its 16-bit PNG, as the reader of the dataset takes it."""
    folder = path.parent / "panomasks" if path.suffix == ".txt" else path
    videos = subfolders([folder])
    if not videos:
        raise DataError(
            f"--truth {path}: no <video>/<frame>.png in {folder}",
            hint="give <split>.txt beside panomasks, or panoptic_gt_VIPSeg_<split>.json beside panomasksRGB",
        )
    names = [line.strip() for _, line in read_lines(path, "vipseg")] if path.suffix == ".txt" else sorted(videos)
    absent = [name for name in names if name not in videos]
    if absent:
        raise DataError(f"{path}: {folder} has no video {absent[0]!r} ({len(absent)} such videos)")
    pngs = {name: numbered(videos[name], (".png",)) for name in names}
    return {
        name: {frame: FrameRef(name, frame, png, png, None, "") for frame, png in files.items()}
        for name, files in pngs.items()
    }


def _images(path: Path, contract: ScoredContract) -> panoptic_json.Listed[panoptic_json.Annotation]:
    """What a JSON lists, by video; PNGs lie in folders of the videos."""
    file, folder = panoptic_json.locate(path)
    submitted = panoptic_json.submission(path)
    if submitted:
        file, folder = submitted / "pred.json", submitted / "pan_pred"
    elif (file.parent / "panomasksRGB").is_dir():
        folder = file.parent / "panomasksRGB"
    known = {entry.id for entry in contract.classes}
    listed: panoptic_json.Listed[panoptic_json.Annotation] = {}
    for video, entries in _videos(file):
        require_plain(video, f"{file}, video {video!r}")
        entries = panoptic_json.with_image_ids(file, entries, folder / video) if submitted else entries
        found = panoptic_json.read_annotations(file, entries, folder / video, known)
        stems = {annotation.png.stem: annotation for annotation in found.values()}
        if video in listed or len(stems) < len(found) or not all(map(NUMBER.fullmatch, stems)):
            raise DataError(f"{file}, video {video!r}: must be listed once, its PNGs numbered and each listed once")
        listed[video] = {int(stem): annotation for stem, annotation in stems.items()}
    return listed


def _videos(file: Path) -> list[tuple[str, Any]]:
    try:
        return [(str(entry["video_id"]), entry["annotations"]) for entry in panoptic_json.load(file)["annotations"]]
    except (KeyError, TypeError) as error:
        raise DataError(f"{file}: malformed list of videos ({error!r})") from error
