"""Cityscapes panoptic results: a JSON and a folder of PNGs as in COCO; categories are official ids, not trainIds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from post_platform.datasets import cityscapes
from post_platform.datasets.files import subfolders
from post_platform.datasets.frame import Label
from post_platform.errors import DataError
from post_platform.labels import load_contract
from post_platform.metrics.results import panoptic_json
from post_platform.metrics.results.pair import ResultFrame, Results
from post_platform.metrics.score import ScoredContract

CONTRACT = load_contract("cityscapes")


def read(truth: Path, predictions: Path, sequences: Sequence[str] | None) -> Results:
    """Pairs of the images of a split, sequence `<city>_<sequence>`.

    Truth is `gtFine/<split>` as it comes, or what csCreatePanopticImgs makes of it. That, and any result, is `X` or
    `X.json`: JSON `X.json` and PNGs in folder `X`; or a folder that holds both. Classes are those that the truth's JSON
    lists: with `--use-train-id` results have trainIds, too.

    Raises: DataError when an image has no prediction, or JSON and PNG of an image disagree on its segments.
    """
    pngs = cityscapes.stills([truth, *subfolders([truth]).values()], cityscapes.LABEL) if truth.is_dir() else {}
    if pngs:
        found = _images(predictions, CONTRACT)
        return panoptic_json.results(CONTRACT, pngs, panoptic_json.labels(_decode), found, sequences, predictions)
    file = panoptic_json.locate(truth)[0]
    if not file.is_file():
        raise DataError(
            f"--truth {truth}: neither a folder of <city>/*{cityscapes.LABEL} nor a JSON with its folder of PNGs",
            hint="give gtFine/<split>, or gtFine/cityscapes_panoptic_<split>.json as csCreatePanopticImgs writes it",
        )
    contract = panoptic_json.contract_of(CONTRACT, file)
    true, found = _images(truth, contract), _images(predictions, contract)
    return panoptic_json.results(contract, true, panoptic_json.numbered, found, sequences, predictions)


def write(frames: Iterable[ResultFrame], folder: Path) -> None:
    """Write `predictions.json` and `predictions/<city>_<sequence>_<frame>.png`."""
    panoptic_json.write_images(frames, folder / "predictions.json", folder / "predictions", CONTRACT, _name)


def _decode(path: Path) -> Label:
    return cityscapes.decode(path, str(path))


def _name(frame: ResultFrame) -> tuple[str, str]:
    image = f"{frame.sequence}_{frame.frame:06d}"
    return image, image


def _images(path: Path, contract: ScoredContract) -> panoptic_json.Listed[panoptic_json.Annotation]:
    file, folder = panoptic_json.locate(path)
    entries = panoptic_json.load(file).get("annotations")
    found = panoptic_json.read_annotations(file, entries, folder, {entry.id for entry in contract.classes})
    return panoptic_json.by_sequence(file, found, cityscapes.NAME)
