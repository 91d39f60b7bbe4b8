"""Which unified classes a model has, and the label tables that tie each dataset of the mixture to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from post_model.taxonomy import LabelTables, Projection
from post_platform.errors import DataError
from post_platform.labels import (
    Contract,
    allowed_sets,
    available,
    load_contract,
    negative_centers,
    taxonomy,
    thing_table,
)  # fmt: skip

if TYPE_CHECKING:
    from post_platform.shards.index import Split

LAST_TIER = {"coco": "coco", "core": "driving"}


def class_names(splits: Sequence[Split], rule: str) -> tuple[str, ...]:
    """The model's classes, in the taxonomy's order.

    Args:
        splits: the training splits.
        rule: `observed` = the primary classes of every native class that occurs in `splits`, and COCO's where a
            partly labelled dataset would have none left for its background; `coco`, `core`, `all` = the taxonomy's
            first tier, its first two, or everything.
    """
    unified = taxonomy()
    if rule == "all":
        return unified.names
    if rule in LAST_TIER:
        return unified.prefix(LAST_TIER[rule])
    found = {name for split in splits for entry in _observed(split) for name in entry.unified}
    if not found:
        raise DataError(f"no labelled class occurs in {', '.join(s.dataset for s in splits)}")
    if any(found <= _taken(load_contract(split.dataset)) for split in splits):
        found |= set(unified.prefix(LAST_TIER["coco"]))
    return tuple(name for name in unified.names if name in found)


def thing_flags(splits: Sequence[Split], names: Sequence[str]) -> tuple[bool, ...]:
    """For each of the model's classes, whether some dataset of the mixture labels its objects one by one."""
    things = _labelled_things(splits)
    return tuple(name in things for name in names)


def label_tables(
    splits: Sequence[Split], names: Sequence[str], unlabelled: Literal["sets", "ignore"] = "sets"
) -> LabelTables:
    """The tables that the losses index by (dataset, native class); the order of datasets is that of `splits`.

    The background of a partly labelled dataset is none of its classes (`sets`) or nothing at all (`ignore`, the
    baseline). A class that no dataset of the mixture labels with instances can never be an object here, so a label
    that allows it still proves that no centre is there.
    """
    contracts = [load_contract(split.dataset) for split in splits]
    things = _labelled_things(splits)
    allowed = np.stack([allowed_sets(contract, names) for contract in contracts])
    if unlabelled == "ignore":
        allowed[[contract.background is not None for contract in contracts], 0] = True
    return LabelTables(
        allowed=torch.from_numpy(allowed),
        thing=torch.from_numpy(np.stack([thing_table(contract) for contract in contracts])),
        negative=torch.from_numpy(np.stack([negative_centers(contract, things) for contract in contracts])),
    )


def projection_of(contract: Contract, names: Sequence[str]) -> Projection:
    """What a model's classes are in a dataset: a native class collects the probability of its primary set.

    Where the dataset's headline score is STQ no pixel stays void: STQ counts predicted void as a class of IoU 0.
    """
    place = {name: index for index, name in enumerate(names)}
    return Projection(
        names=tuple(entry.name for entry in contract.classes),
        things=tuple(entry.has_instances for entry in contract.classes),
        members=tuple(tuple(place[name] for name in entry.unified if name in place) for entry in contract.classes),
        background=contract.background is not None,
        fill_void=contract.headline == "STQ",
    )


def projections(names: Sequence[str]) -> dict[str, Projection]:
    """`projection_of` every dataset with a contract, some class of which the model knows."""
    found = {name: projection_of(load_contract(name), names) for name in available()}
    return {name: projection for name, projection in found.items() if any(projection.members)}


def _observed(split: Split) -> list:
    """The native classes that occur in a split, by its manifest."""
    present = set(split.manifest["classes"])
    return [entry for entry in load_contract(split.dataset).classes if str(entry.id) in present]


def _taken(contract: Contract) -> set[str]:
    """The unified classes that the background of a partly labelled dataset cannot be; of any other: none."""
    if contract.background is None or contract.background.policy != "complement":
        return set()
    return {*contract.background.excludes, *(name for entry in contract.classes for name in entry.unified)}


def _labelled_things(splits: Sequence[Split]) -> set[str]:
    return {name for split in splits for entry in _observed(split) if entry.has_instances for name in entry.unified}
