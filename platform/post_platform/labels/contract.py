"""Label contracts: one YAML per dataset says what its native classes mean; no slot for a number to tune exists."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from post_platform.errors import ConfigError, nearest
from post_platform.labels.taxonomy import FOLDER, VOID, first_problem, read_yaml, taxonomy

DATASETS: tuple[str, ...] = (  # official names, reserved also while they have no contract yet
    "kitti_mots",
    "mots20",
    "kitti_step",
    "motchallenge_step",
    "cityscapes",
    "cityscapes_vps",
    "coco_panoptic",
    "vipseg",
    "bdd100k_mots",
    "youtube_vis_2019",
    "youtube_vis_2021",
    "davis_unsup",
    "rob_mots",
)
Headline = Literal["sMOTSA", "MOTSA", "STQ", "PQ", "VPQ", "J&F", "HOTA", "AP"]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class NativeClass(_Strict):
    """One class as its dataset numbers it, and the unified classes that a pixel with this label may be.

    `unified` (primary) sets are disjoint within a dataset and define evaluation; `also` are further classes such a
    pixel may really be, used in training only. The last five are facts that nothing computes with.
    """

    id: int = Field(ge=0, lt=VOID)
    name: str = Field(min_length=1)
    isthing: bool
    has_instances: bool
    unified: tuple[str, ...] = Field(min_length=1)
    also: tuple[str, ...] = ()
    color: tuple[int, int, int] | None = None
    contiguous_id: int | None = None
    cityscapes_id: int | None = None
    train_id: int | None = None
    raw: int | None = None


class Background(_Strict):
    """What value 0 means: `complement` = any class but those in `excludes`; `void` = unknown, every class allowed."""

    value: Literal[0]
    policy: Literal["complement", "void"]
    excludes: tuple[str, ...]
    note: str = ""


class Void(_Strict):
    """The dataset's own code for pixels that say nothing; stored as 255."""

    value: int | str | tuple[int, ...]
    policy: Literal["all"]


class Instances(_Strict):
    """Whether ids persist over a sequence, and whether every object of the labelled classes has one."""

    persistent: bool
    exhaustive: bool | str
    overlap: str = ""
    note: str = ""


class Temporal(_Strict):
    """Video or stills, and the frame rate of the labelled frames."""

    video: bool
    fps: float | str | None = None
    label_stride: int | None = None
    labels_per_video: int | None = None
    dt_seconds: float | str | None = None
    note: str = ""


class Ignored(_Strict):
    """A native class that the dataset itself never evaluates; converted to void."""

    id: int
    name: str
    has_instances: bool
    unified: tuple[str, ...] = Field(max_length=0)
    hint: tuple[str, ...] = ()


class IgnoreRegions(_Strict):
    """Native codes, stored as they are, of regions where objects must not be judged; in training they are void.

    `every`: of every class; `per_class` + c: of class c.
    """

    every: int = Field(gt=0, lt=VOID)
    per_class: int = Field(gt=0, lt=VOID)


class Contract(_Strict):
    """A validated label contract; see `load_contract`."""

    schema_: Literal["post-taxonomy/1"]
    dataset: str
    source: str
    native: str
    labelled: str
    void: Void
    crowd: str
    background: Background | None = None
    instances: Instances
    temporal: Temporal
    headline: Headline
    num_classes: int
    classes: tuple[NativeClass, ...] = Field(min_length=1)
    ignored_classes: tuple[Ignored, ...] = ()
    ignore_regions: IgnoreRegions | None = None
    benchmarks: dict[str, dict[str, tuple[int, ...] | dict[str, tuple[str, ...]]]] = {}
    note: str = ""

    @property
    def persistent(self) -> bool:
        """True when an instance keeps its id over the whole sequence."""
        return self.instances.persistent

    @property
    def exhaustive(self) -> bool:
        """True when every object of the thing classes is labelled (a text that names exceptions counts as False)."""
        return self.instances.exhaustive is True

    @property
    def video(self) -> bool:
        """True when sequences have more than one frame."""
        return self.temporal.video

    def ignore_codes(self) -> dict[int, tuple[int, ...]]:
        """The stored codes of ignore regions, and the native classes that each of them spares."""
        if self.ignore_regions is None:
            return {}
        ids = tuple(entry.id for entry in self.classes)
        return {self.ignore_regions.every: ids} | {self.ignore_regions.per_class + id: (id,) for id in ids}

    def native_hash(self) -> str:
        """SHA-256 of what shards depend on: ids, names and flags of the native classes, background, persistence.

        The mapping to unified classes is left out on purpose: the taxonomy may change without rewriting shards.
        """
        rows = [[entry.id, entry.name, entry.isthing, entry.has_instances] for entry in self.classes]
        facts = [self.dataset, self.background is not None, self.persistent, self.video, rows]
        return hashlib.sha256(json.dumps(facts, separators=(",", ":")).encode()).hexdigest()

    @model_validator(mode="after")
    def _check_native_classes(self) -> Contract:
        ids = [entry.id for entry in self.classes]
        names = [entry.name for entry in self.classes]
        if self.num_classes != len(ids):
            raise ValueError(f"num_classes is {self.num_classes}, but {len(ids)} classes are listed")
        for label, values in (("id", list(map(str, ids))), ("name", names)):
            twice = sorted({value for value in values if values.count(value) > 1})
            if twice:
                raise ValueError(f"class {label} {', '.join(twice)} appears twice")
        if self.background is not None and 0 in ids:
            raise ValueError("class id 0 is taken by the background")
        taken = sorted(set(ids) & self.ignore_codes().keys()) or [c for c in self.ignore_codes() if c >= VOID]
        if taken:
            raise ValueError(f"ignore region {taken[0]} is also a class, or not below {VOID}")
        for entry in self.classes:
            if entry.has_instances and not entry.isthing:
                raise ValueError(f"class {entry.name!r} has instances but is not a thing")
        return self

    @model_validator(mode="after")
    def _check_sets(self) -> Contract:
        owner: dict[str, str] = {}
        for entry in self.classes:
            for name in entry.unified:
                if name in owner:
                    raise ValueError(
                        f"unified class {name!r} is primary in {owner[name]!r} and in {entry.name!r}; "
                        "primary sets must be disjoint"
                    )
                owner[name] = entry.name
            repeated = sorted(set(entry.also) & set(entry.unified))
            if repeated or len(set(entry.also)) < len(entry.also):
                raise ValueError(f"class {entry.name!r}: `also` repeats {', '.join(repeated) or 'a name'}")
        known = taxonomy().names
        excludes = self.background.excludes if self.background else ()
        sets = [(entry.name, entry.unified + entry.also) for entry in self.classes]
        for where, listed in [*sets, ("background", excludes)]:
            for name in listed:
                if name not in known:
                    raise ValueError(f"{where!r} names the unknown unified class {name!r}{nearest(name, known)}")
        return self


def load_contract_file(path: Path) -> Contract:
    """Read and validate one contract file, whose name must be that of its dataset.

    Raises: ConfigError naming the file, the field and the reason. An unlisted key, a weight above all, is refused.
    """
    try:
        contract = Contract.model_validate(read_yaml(path, "label contract"))
    except ValidationError as error:
        raise ConfigError(f"label contract {path.name}: {first_problem(error)}") from error
    if contract.dataset != path.stem:
        raise ConfigError(f"label contract {path.name}: describes dataset {contract.dataset!r}")
    return contract


def available() -> list[str]:
    """The datasets that have a label contract: those of `DATASETS` in its order, then any other by name."""
    found = sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem != "unified")
    return sorted(found, key=lambda name: DATASETS.index(name) if name in DATASETS else len(DATASETS))


@cache
def load_contract(name: str) -> Contract:
    """The label contract of a dataset, validated once per process.

    Raises: ConfigError listing the nearest names when there is no such contract.
    """
    if name not in available():
        raise ConfigError(f"no dataset {name!r}{nearest(name, available())}", hint="python pipelines/labels.py --help")
    return load_contract_file(FOLDER / f"{name}.yaml")
