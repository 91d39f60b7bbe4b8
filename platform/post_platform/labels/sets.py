"""Contracts as boolean tables: which unified classes a native label allows, and what it proves about objects."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from post_platform.labels.contract import Contract
from post_platform.labels.taxonomy import VOID, taxonomy
from post_platform.runs import distinct

UNIDENTIFIED = 65535  # a thing pixel without identity: crowd, group, untracked


def allowed_sets(contract: Contract, names: Sequence[str]) -> NDArray[np.bool_]:
    """Which of the model's classes a pixel may be, given its stored native class; void allows every class.

    A class of the contract whose whole set is missing from `names` says nothing about these classes: its row is void.

    Shape: (256, len(names)); row = R value of label.png, column = position in `names`.
    """
    table = np.ones((256, len(names)), dtype=bool)
    for entry in contract.classes:
        table[entry.id] = _members(entry.unified + entry.also, names)
    if contract.background is not None and contract.background.policy == "complement":
        table[0] = ~_members(contract.background.excludes, names)
    table[~table.any(axis=1)] = True
    return table


def thing_table(contract: Contract) -> NDArray[np.bool_]:
    """True where the native class is a thing whose objects are labelled one by one in this dataset. Shape: (256,)."""
    table = np.zeros(256, dtype=bool)
    for entry in contract.classes:
        table[entry.id] = entry.isthing and entry.has_instances
    return table


def negative_centers(contract: Contract, things: Collection[str] | None = None) -> NDArray[np.bool_]:
    """True where the label proves that no object's centre lies there, outside the instances drawn.

    Proof: a thing class labelled one by one (the pixel belongs to the instance drawn there), or a stuff class none of
    whose allowed classes (`unified` and `also`) is a thing. KITTI-STEP's bus is stuff there and a thing in the
    taxonomy, so it proves nothing; neither do void and background. Pixels of a crowd are the caller's to leave out.

    Args:
        contract: the dataset's label contract.
        things: the unified classes that can be objects; by default those that the taxonomy calls things.

    Shape: (256,).
    """
    if things is None:
        things = {name for name, isthing in zip(taxonomy().names, taxonomy().isthing, strict=True) if isthing}
    table = thing_table(contract)
    for entry in contract.classes:
        if not entry.isthing:
            table[entry.id] = set(things).isdisjoint(entry.unified + entry.also)
    return table


def legal_classes(contract: Contract) -> NDArray[np.bool_]:
    """True for every value that R of label.png may take: native ids, void, background and ignore regions if any.

    Shape: (256,).
    """
    table = np.zeros(256, dtype=bool)
    table[[entry.id for entry in contract.classes]] = True
    table[[VOID, *contract.ignore_codes()]] = True
    if contract.background is not None:
        table[0] = True
    return table


def judged(contract: Contract, truth: NDArray[np.uint8], pred: NDArray[np.integer]) -> NDArray[np.uint8]:
    """True classes as they judge a prediction: an ignore region is void for what it spares, background for the rest.

    Shape: two (H, W) -> (H, W).
    """
    found = truth.copy()
    for code, spared in contract.ignore_codes().items():
        region = truth == code
        if region.any():
            found[region] = np.where(np.isin(pred[region], spared), VOID, 0)
    return found


def label_problem(contract: Contract, classes: NDArray[np.uint8], instances: NDArray[np.uint16]) -> str | None:
    """Say what is illegal in a pair of label maps under this contract, or None when nothing is."""
    present = distinct(classes)
    unknown = present[~legal_classes(contract)[present]]
    if unknown.size:
        return f"class id {', '.join(map(str, unknown[:5].tolist()))} is not in the contract of {contract.dataset}"
    stray = (~thing_table(contract)).take(classes) & (instances > 0)
    if stray.any():
        first, count = int(classes[stray][0]), int(stray.sum())
        return f"class id {first} has no instances in {contract.dataset}, but {count} of its pixels carry one"
    return None


def _members(listed: Sequence[str], names: Sequence[str]) -> NDArray[np.bool_]:
    wanted = set(listed)
    return np.array([name in wanted for name in names], dtype=bool)
