"""Cityscapes-VPS results: `pred.json` and `pan_pred/<image id>.png` as in COCO; an object keeps its segment id."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from post_platform.datasets import cityscapes_vps
from post_platform.datasets.frame import Label
from post_platform.errors import DataError
from post_platform.labels import load_contract
from post_platform.metrics.results import panoptic_json
from post_platform.metrics.results.pair import ResultFrame, Results

CONTRACT = load_contract("cityscapes_vps")
IMAGE_ID = re.compile(r"([0-9]{4})_([0-9]{4})_.+")  # video and frame
TRUTH_JSON = re.compile(r"panoptic_gt_(.+)_city_vps")


def read(truth: Path, predictions: Path, sequences: Sequence[str] | None) -> Results:
    """Pairs of the labelled frames of a split, sequence = the video's four digits.

    Truth is the folder of a split with `cls` and `inst`, or `panoptic_gt_<split>_city_vps.json` beside
    `<split>/panoptic_video`. Predictions are the folder of `pred.json` and `pan_pred`; the truth's JSON will do, too.

    Raises: DataError when a frame has no prediction, or JSON and PNG of a frame disagree on its segments.
    """
    found = _images(predictions)
    if (truth / "cls").is_dir():
        files = cityscapes_vps.labels_of(truth)
        return panoptic_json.results(CONTRACT, files, panoptic_json.labels(_decode), found, sequences, predictions)
    if truth.suffix != ".json":
        raise DataError(
            f"--truth {truth}: neither a folder with cls and inst nor a JSON",
            hint="give the folder of the split, or panoptic_gt_<split>_city_vps.json beside it",
        )
    return panoptic_json.results(CONTRACT, _images(truth), panoptic_json.numbered, found, sequences, predictions)


def write(frames: Iterable[ResultFrame], folder: Path) -> None:
    """Write `pred.json`, its list in the order of the official tool's, and `pan_pred/<image id>.png`.

    Raises: DataError when a frame's meta.json does not say its image id.
    """
    panoptic_json.write_images(frames, folder / "pred.json", folder / "pan_pred", CONTRACT, _name)


def _decode(files: cityscapes_vps.LabelFiles) -> Label:
    return cityscapes_vps.decode(files, str(files[0]))


def _name(frame: ResultFrame) -> tuple[str, str]:
    image = frame.meta.get("native", {}).get("image_id")
    if not isinstance(image, str):
        raise DataError(f"cityscapes_vps {frame.sequence}/{frame.frame:06d}: meta.json has no native image_id")
    return image, image


def _images(path: Path) -> panoptic_json.Listed[panoptic_json.Annotation]:
    """What a truth's JSON lists, or a folder of results; of a result each PNG has its image's id for a name."""
    is_truth = path.suffix == ".json" and path.name != "pred.json"
    if is_truth:
        match = TRUTH_JSON.fullmatch(path.stem)
        folders = [path.parent / (match[1] if match else "") / "panoptic_video", path.parent / "panoptic_video"]
        file, folder = path, next(filter(Path.is_dir, folders), folders[0])
        entries = panoptic_json.load(file).get("annotations")
    else:
        parent = path.parent if path.name == "pred.json" else path
        file, folder = parent / "pred.json", parent / "pan_pred"
        entries = panoptic_json.with_image_ids(file, panoptic_json.load(file).get("annotations"), folder)
    known = {entry.id for entry in CONTRACT.classes}
    found = panoptic_json.read_annotations(file, entries, folder, known, named_by_id=not is_truth)
    return panoptic_json.by_sequence(file, found, IMAGE_ID)
