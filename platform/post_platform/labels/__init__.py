"""Label contracts: what a dataset's own classes mean, in terms of one unified taxonomy."""

from post_platform.labels.contract import DATASETS, Contract, NativeClass, available, load_contract
from post_platform.labels.sets import (
    UNIDENTIFIED,
    allowed_sets,
    judged,
    label_problem,
    legal_classes,
    negative_centers,
    thing_table,
)
from post_platform.labels.taxonomy import VOID, Taxonomy, taxonomy

__all__ = [
    "DATASETS",
    "UNIDENTIFIED",
    "VOID",
    "Contract",
    "NativeClass",
    "Taxonomy",
    "allowed_sets",
    "available",
    "judged",
    "label_problem",
    "legal_classes",
    "load_contract",
    "negative_centers",
    "taxonomy",
    "thing_table",
]
