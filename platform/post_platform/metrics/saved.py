"""Contingency tables on disk with all that scoring them again needs: classes, protocol, and what no table can tell."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from post_platform.errors import DataError
from post_platform.labels import available, load_contract
from post_platform.metrics import contingency
from post_platform.metrics.score import Families, ScoredContract

KEY = b"post.scoring"


@dataclass(frozen=True)
class SavedClass:
    """A class as a contract, or the JSON of somebody's truth, describes it."""

    id: int
    name: str
    has_instances: bool


@dataclass(frozen=True)
class SavedContract:
    """What scoring needs of a contract; by default that of single images in which every pixel has a class."""

    classes: tuple[SavedClass, ...]
    dataset: str
    background: str | None = None
    persistent: bool = False
    video: bool = False
    headline: str = "PQ"


@dataclass(frozen=True)
class Scoring:
    """How the rows of one dataset are to be scored.

    `frames`: also those without any object, which some formats leave out. `further`: families of scores that were
    computed from pixels and cannot be computed again.
    """

    contract: ScoredContract
    frames: int
    sequences: int
    protocol: str | None = None
    further: Families = dataclasses.field(default_factory=dict)


def save(path: Path, table: pa.Table, scoring: Scoring) -> None:
    """Write the table of one dataset as Parquet, and how it is scored into the file's metadata."""
    contract = scoring.contract
    classes = tuple(SavedClass(entry.id, entry.name, entry.has_instances) for entry in contract.classes)
    background = None if contract.background is None else "background"
    saved = SavedContract(classes, contract.dataset, background, contract.persistent, contract.video, contract.headline)
    text = json.dumps(dataclasses.asdict(dataclasses.replace(scoring, contract=saved)))
    contingency.save(table.replace_schema_metadata({**(table.schema.metadata or {}), KEY: text.encode()}), path)


def load(path: Path) -> tuple[pa.Table, list[Scoring]]:
    """A saved table, and how each dataset in it is scored; of a table that training or evaluation saved, as usual.

    Raises: DataError when the file is no contingency table, or holds a dataset that has no contract.
    """
    table = contingency.load(path)
    text = (table.schema.metadata or {}).get(KEY)
    if text is None:
        return table, [_usual(path, table, name) for name in pc.unique(table["dataset"]).to_pylist()]
    try:
        values = json.loads(text)
        contract = values.pop("contract")
        classes = tuple(SavedClass(**entry) for entry in contract.pop("classes"))
        return table, [Scoring(SavedContract(classes, **contract), **values)]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: its metadata does not say how to score it ({error!r})") from error


def _usual(path: Path, table: pa.Table, dataset: str) -> Scoring:
    if dataset not in available():
        raise DataError(f"{path}: holds the unknown dataset {dataset!r}")
    frames = table.filter(pc.equal(table["dataset"], dataset)).group_by(["sequence", "frame"]).aggregate([])
    return Scoring(load_contract(dataset), frames.num_rows, len(pc.unique(frames["sequence"])))
