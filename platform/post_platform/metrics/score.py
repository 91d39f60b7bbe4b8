"""Scores: every metric that a dataset's contract gives meaning to, as one flat mapping from its contingency table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc

from post_platform.errors import DataError
from post_platform.metrics.hota import hota
from post_platform.metrics.idf1 import idf1
from post_platform.metrics.mots import count_tracks
from post_platform.metrics.panoptic_quality import average, class_iou, class_quality, count_matches
from post_platform.metrics.segments import mean
from post_platform.metrics.stq import tracking_quality
from post_platform.metrics.vpq import video_panoptic_quality


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


def score(table: pa.Table, contract: ScoredContract) -> dict[str, float | None]:
    """All scores of one dataset, as ratios (IDS: a count); None where the official definition has no value.

    Keys: PQ SQ RQ, PQ_things PQ_stuff, mIoU, PQ/<class>, IoU/<class>; for videos with lasting identities sMOTSA MOTSA
    MOTSP HOTA DetA AssA IDF1 (means over the classes with instances), each also as <metric>/<class>, and IDS/<class>;
    for those of them where every pixel has a class, STQ AQ IoU VPQ. Rows of other datasets in the table are left out.

    Raises: DataError when the table has no row of this dataset.
    """
    table = table.filter(pc.equal(table["dataset"], contract.dataset))
    if not table.num_rows:
        raise DataError(f"nothing to score: the contingency table has no frame of {contract.dataset}")
    scores = _frame_scores(table, contract)
    if contract.video and contract.persistent:
        scores |= _track_scores(table, contract)
        if contract.background is None:
            ids = [entry.id for entry in contract.classes]
            quality = tracking_quality(table, ids, [entry.id for entry in contract.classes if entry.has_instances])
            scores |= {"STQ": quality.stq, "AQ": quality.aq, "IoU": quality.iou}
            scores["VPQ"] = video_panoptic_quality(table, ids)
    return scores


def headline(scores: dict[str, float | None], contract: ScoredContract) -> float | None:
    """The score that the contract names, out of the result of `score`; None when it is undefined or not computed."""
    return scores.get(contract.headline)


def _frame_scores(table: pa.Table, contract: ScoredContract) -> dict[str, float | None]:
    ids = [entry.id for entry in contract.classes]
    things = [entry.id for entry in contract.classes if entry.has_instances]
    counts, ious = count_matches(table, ids), class_iou(table, ids)
    total = average(counts, ids)
    return {
        "PQ": total.pq,
        "SQ": total.sq,
        "RQ": total.rq,
        "PQ_things": average(counts, things).pq,
        "PQ_stuff": average(counts, sorted(set(ids) - set(things))).pq,
        "mIoU": mean(list(ious.values())),
        **{f"PQ/{entry.name}": class_quality(counts[entry.id]).pq for entry in contract.classes},
        **{f"IoU/{entry.name}": ious[entry.id] for entry in contract.classes},
    }


def _track_scores(table: pa.Table, contract: ScoredContract) -> dict[str, float | None]:
    per_class = {entry.name: _class_scores(table, entry.id) for entry in contract.classes if entry.has_instances}
    metrics = list(dict.fromkeys(metric for values in per_class.values() for metric in values))
    means = {metric: mean([values[metric] for values in per_class.values()]) for metric in metrics if metric != "IDS"}
    return means | {f"{metric}/{name}": per_class[name][metric] for metric in metrics for name in per_class}


def _class_scores(table: pa.Table, native_class: int) -> dict[str, float | None]:
    counts, tracking = count_tracks(table, native_class), hota(table, native_class)
    return {
        "sMOTSA": counts.smotsa,
        "MOTSA": counts.motsa,
        "MOTSP": counts.motsp,
        "IDS": float(counts.id_switches),
        "HOTA": tracking.hota,
        "DetA": tracking.det_a,
        "AssA": tracking.ass_a,
        "IDF1": idf1(table, native_class),
    }
