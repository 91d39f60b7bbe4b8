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
from post_platform.metrics.score import ScoredContract

CONTRACT = load_contract("cityscapes_vps")
IMAGE_ID = re.compile(r"([0-9]{4})_([0-9]{4,9})(?:_.+)?")  # video and frame
TRUTH_JSON = re.compile(r"panoptic_gt_(.+)_city_vps")


def read(truth: Path, predictions: Path, sequences: Sequence[str] | None) -> Results:
    """Pairs of the labelled frames of a split, sequence = the video's four digits.

    Truth is the folder of a split with `cls` and `inst`, or `panoptic_gt_<split>_city_vps.json` beside
    `<split>/panoptic_video`. Predictions are the folder of `pred.json` and `pan_pred`. Either may also be any JSON with
    its folder of PNGs, as for COCO; classes are those that the truth's JSON lists.

    Raises: DataError when a frame has no prediction, or JSON and PNG of a frame disagree on its segments.
    """
    if (truth / "cls").is_dir():
        files, found = cityscapes_vps.labels_of(truth), _images(predictions, CONTRACT)
        return panoptic_json.results(CONTRACT, files, panoptic_json.labels(_decode), found, sequences, predictions)
    file = panoptic_json.locate(truth)[0]
    if not file.is_file():
        raise DataError(
            f"--truth {truth}: neither a folder with cls and inst nor a JSON",
            hint="give the folder of the split, or panoptic_gt_<split>_city_vps.json beside it",
        )
    contract = panoptic_json.contract_of(CONTRACT, file)
    true, found = _images(truth, contract), _images(predictions, contract)
    return panoptic_json.results(contract, true, panoptic_json.numbered, found, sequences, predictions)


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


def _images(path: Path, contract: ScoredContract) -> panoptic_json.Listed[panoptic_json.Annotation]:
    """What a truth's JSON lists, or a folder of results; of `pred.json` each PNG has its image's id for a name."""
    file, pngs = panoptic_json.locate(path)
    submitted = panoptic_json.submission(path)
    if submitted:
        file, pngs = submitted / "pred.json", submitted / "pan_pred"
    elif match := TRUTH_JSON.fullmatch(file.stem):
        official = (file.parent / match[1] / "panoptic_video", file.parent / "panoptic_video")
        pngs = next(filter(Path.is_dir, official), pngs)
    entries = panoptic_json.load(file).get("annotations")
    if submitted:
        entries = panoptic_json.with_image_ids(file, entries, pngs)
    known = {entry.id for entry in contract.classes}
    found = panoptic_json.read_annotations(file, entries, pngs, known, named_by_id=submitted is not None)
    return panoptic_json.by_sequence(file, found, IMAGE_ID)
