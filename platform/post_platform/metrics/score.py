"""Scores: every metric that a dataset's contract gives meaning to, by family, from its contingency table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from post_platform.errors import DataError
from post_platform.metrics import hota, identity, mask_ap, mots, panoptic_quality, semantic_iou, stq, vpq
from post_platform.metrics.protocols import Protocol as Rules
from post_platform.metrics.protocols import protocol_of
from post_platform.metrics.segments import mean, rows_of
from post_platform.metrics.similarity import objects_of

Families = dict[str, Any]
"""{family: its report}, as `score.py --json` writes it: ratios as float, counts as int, what is undefined None."""
LOWER_IS_BETTER = ("IDS",)
"""Scores that count mistakes."""

_PER_CLASS = ("mots", "hota", "identity")


class ScoredClass(Protocol):
    """What a metric needs to know of a native class."""

    @property
    def id(self) -> int:
        """Its number in label maps."""

    @property
    def name(self) -> str:
        """Its name in reports."""

    @property
    def has_instances(self) -> bool:
        """Whether this dataset tells its objects apart."""


class ScoredContract(Protocol):
    """What a metric needs to know of a dataset: the part of a label contract that decides which scores exist."""

    @property
    def dataset(self) -> str:
        """Name of the dataset, as in the table."""

    @property
    def classes(self) -> Sequence[ScoredClass]:
        """The native classes; they alone are scored."""

    @property
    def background(self) -> object | None:
        """None when every pixel has one of the classes."""

    @property
    def persistent(self) -> bool:
        """Whether ids last over a sequence."""

    @property
    def video(self) -> bool:
        """Whether sequences have more than one frame."""

    @property
    def headline(self) -> str:
        """The dataset's headline score."""


def score(
    table: pa.Table,
    contract: ScoredContract,
    rules: Rules | None = None,
    further: Families | None = None,
    partial: bool = False,
) -> Families:
    """Every family of scores that applies to one dataset; `rules` are the dataset's own unless given.

    pq, miou where every pixel has a class; mots, hota, identity (by class) where ids last over a video; stq, vpq where
    both are so; ap where segments have a confidence. `partial` adds pq and miou of the objects of videos that label
    nothing else: no official tool has them, but one score to compare all datasets of a run by. Rows of other datasets
    in the table are left out. Families in `further`, computed from pixels, take the place of the table's.

    Raises: DataError when there are rows, but none of this dataset, nor anything further. Without any row, as two empty
        result files have it, all scores are undefined.
    """
    own = pc.equal(table["dataset"], contract.dataset)
    rows = rows_of(table if pc.all(own).as_py() else table.filter(own))  # no copy of a whole table
    if not len(rows.pixels):
        if further:
            return dict(further)
        if table.num_rows:
            raise DataError(f"nothing to score: the contingency table has no frame of {contract.dataset}")
    rules = rules or protocol_of(contract.dataset)
    names = {entry.id: entry.name for entry in contract.classes}
    things = {entry.id: entry.name for entry in contract.classes if entry.has_instances}
    tracked, complete = contract.video and contract.persistent, contract.background is None
    found: Families = {}
    if complete or (partial and tracked):
        found["pq"] = panoptic_quality.report(rows, names, things, rules.pq_crowd)
        found["miou"] = semantic_iou.report(rows, names)
    if tracked:
        objects = {name: objects_of(rows, number) for number, name in things.items()}
        found["mots"] = {name: mots.report(objects[name], number, rules.mots) for number, name in things.items()}
        found["hota"] = {name: hota.report(objects[name], number) for number, name in things.items()}
        found["identity"] = {name: identity.report(objects[name], number) for number, name in things.items()}
    if tracked and complete:
        found["stq"] = stq.report(rows, names, things)
        found["vpq"] = vpq.report(rows, names, things, rules.vpq_windows, rules.vpq_crowd)
    if things and (contract.headline == "AP" or not np.isnan(rows.pred_score).all()):
        found["ap"] = mask_ap.report(rows, things)
    return found | (further or {})


def flat(families: Mapping[str, Any]) -> dict[str, float | None]:
    """The scores as one mapping, as MLflow wants them: `PQ`, `PQ/<class>`, `sMOTSA` (mean over classes), ...

    Lists, per-sequence scores and the counts but IDS, which is summed over the classes, stay in the report.
    """
    found: dict[str, float | None] = {}
    if "pq" in families:
        report = families["pq"]
        found |= {"PQ": report["All"]["pq"], "SQ": report["All"]["sq"], "RQ": report["All"]["rq"]}
        found |= {"PQ_things": report["Things"]["pq"], "PQ_stuff": report["Stuff"]["pq"]}
    if "miou" in families:
        found |= {name: families["miou"][name] for name in ("mIoU", "fwIoU", "mACC", "pACC")}
    tracks = [_over_classes(families[family]) for family in _PER_CLASS if family in families]
    for means, _ in tracks:
        found |= means
    found |= {name: value for name, value in families.get("stq", {}).items() if name in ("STQ", "AQ")}
    if "stq" in families:
        found["STQ_SQ"] = families["stq"]["SQ"]
    if "vpq" in families:
        found["VPQ"] = families["vpq"]["mean"]
    found |= {name: value for name, value in families.get("ap", {}).items() if name != "per_class"}
    found |= families.get("jf", {}) | families.get("rob_mots", {}).get("overall", {}).get("final", {})
    for family, metric, label in (("pq", "pq", "PQ"), ("miou", "iou", "IoU"), ("ap", "AP", "AP")):
        per_class = families.get(family, {}).get("per_class", {})
        found |= {f"{label}/{name}": values[metric] for name, values in per_class.items()}
    for _, per_class in tracks:
        found |= per_class
    return found


def _over_classes(reports: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """Means over the classes of every ratio (of IDS the sum), and the values of each class as `<metric>/<class>`."""
    kept = ("sMOTSA", "MOTSA", "MOTSP", "IDS", "HOTA", "DetA", "AssA", "LocA", "IDF1", "IDP", "IDR")
    metrics = [name for name in next(iter(reports.values()), {}) if name in kept]
    means = {name: mean([report[name] for report in reports.values()]) for name in metrics if name != "IDS"}
    if "IDS" in metrics:
        means["IDS"] = float(sum(report["IDS"] for report in reports.values()))
    per_class = {f"{m}/{name}": report[m] for m in metrics for name, report in reports.items()}
    return means, per_class


def headline(scores: Mapping[str, float | None], contract: ScoredContract) -> float | None:
    """The score that the contract names, out of the result of `flat`; None when it is undefined or not computed."""
    return scores.get(contract.headline)
