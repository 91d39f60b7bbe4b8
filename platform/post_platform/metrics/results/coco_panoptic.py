"""COCO panoptic results: a JSON and a folder of PNGs, R + 256*G + 65536*B = segment id, in either role.

Any dataset in this format can be scored: classes and thing flags are those of the truth's JSON, as in panopticapi.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from post_platform.errors import DataError
from post_platform.labels import load_contract
from post_platform.metrics.results import panoptic_json
from post_platform.metrics.results.pair import ResultFrame, Results
from post_platform.metrics.saved import SavedContract


def read(truth: Path, predictions: Path, sequences: Sequence[str] | None) -> Results:
    """Pairs of the images that the truth annotates; each side is `X` or `X.json`: JSON `X.json`, PNGs in folder `X`.

    A folder that holds both is as good.

    Raises: DataError when an image has no prediction, or JSON and PNG of an image disagree on its segments.
    """
    file = panoptic_json.locate(truth)[0]
    listed = panoptic_json.listed_classes(file)
    if listed is None:
        raise DataError(f"{file}: lists no categories, so it does not say what its segments are")
    contract = SavedContract(listed, "coco_panoptic")
    categories = {entry.id for entry in contract.classes}
    true, found = _images(truth, categories), _images(predictions, categories)
    return panoptic_json.results(contract, true, panoptic_json.numbered, found, sequences, predictions)


def write(frames: Iterable[ResultFrame], folder: Path) -> None:
    """Write `predictions.json` and `predictions/<image>.png`; a numeric name of an image is its id, as in COCO."""
    contract = load_contract("coco_panoptic")
    panoptic_json.write_images(frames, folder / "predictions.json", folder / "predictions", contract, _name)


def _name(frame: ResultFrame) -> tuple[int | str, str]:
    return int(frame.sequence) if frame.sequence.isdecimal() else frame.sequence, frame.sequence


def _images(path: Path, categories: set[int]) -> panoptic_json.Listed[panoptic_json.Annotation]:
    file, folder = panoptic_json.locate(path)
    entries = panoptic_json.load(file).get("annotations")
    found = panoptic_json.read_annotations(file, entries, folder, categories)
    return {image: {0: annotation} for image, annotation in found.items()}
