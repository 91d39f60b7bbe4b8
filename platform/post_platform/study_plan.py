"""What a study compares: recipes, each trained once per seed in however many tables it appears."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from post_platform.errors import ConfigError
from post_platform.labels import available, load_contract

if TYPE_CHECKING:
    from post_model.predictor import Tracking

TRACKED = ("AssA", "IDS")
"""What tells trackers apart beside the headline score."""


@dataclass(frozen=True)
class Recipe:
    """What is trained on, and how; all else is the study's configuration. Nothing in it belongs to one dataset."""

    datasets: tuple[str, ...]
    alpha: float = 0.0
    unlabelled: Literal["sets", "ignore"] = "sets"

    def name(self, everything: Sequence[str]) -> str:
        """A name for its runs, given all datasets of the study."""
        missing = [name for name in everything if name not in self.datasets]
        what = "joint" if not missing else f"without_{missing[0]}"
        if len(self.datasets) == 1:  # of two datasets, without one is the other alone
            what = f"only_{self.datasets[0]}"
        return what + "_proportional" * (self.alpha == 1) + "_ignore" * (self.unlabelled == "ignore")


@dataclass(frozen=True)
class Side:
    """One side of a comparison: a recipe's runs, with one way of tracking."""

    recipe: Recipe
    tracking: Tracking = "prev_offset"


@dataclass(frozen=True)
class Row:
    """A score of a dataset, on both sides."""

    dataset: str
    metric: str
    left: Side
    right: Side


@dataclass(frozen=True)
class Part:
    """One question, with its two answers per dataset; `left` is what the platform does."""

    name: str
    question: str
    left: str
    right: str
    rows: tuple[Row, ...]

    @property
    def paired(self) -> bool:
        """Whether both sides are the same trained networks, so that seeds are compared one by one."""
        return all(row.left.recipe == row.right.recipe for row in self.rows)


def leave_one_out(trained: Sequence[str], scored: Sequence[str]) -> Part:
    """Every dataset, tested by a network that never saw it."""
    rows = []
    for name in scored:
        rest = tuple(other for other in trained if other != name)
        rows.append(_row(name, Side(Recipe(tuple(trained))), Side(Recipe(rest))))
    question = "What does a dataset lose that the training never saw?"
    return Part("leave_one_out", question, "trained on all", "without it", tuple(rows))


def joint(trained: Sequence[str], scored: Sequence[str]) -> Part:
    """Every dataset, against a network of its own with as many steps."""
    rows = [_row(name, Side(Recipe(tuple(trained))), Side(Recipe((name,)))) for name in scored]
    return Part("joint", "Is one network for all as good as one for each?", "one for all", "on it alone", tuple(rows))


def balance(trained: Sequence[str], scored: Sequence[str]) -> Part:
    """Equal shares against shares by size."""
    sides = Side(Recipe(tuple(trained))), Side(Recipe(tuple(trained), alpha=1.0))
    question = "Do equal shares of the datasets beat shares by their size?"
    return Part("balance", question, "balanced", "proportional", tuple(_row(name, *sides) for name in scored))


def labels(trained: Sequence[str], scored: Sequence[str]) -> Part:
    """Sets of classes for what a partly labelled dataset does not label, against ignoring it.

    Raises: ConfigError: there is no such dataset.
    """
    if not any(_partly_labelled(name) for name in trained):
        known = ", ".join(name for name in available() if _partly_labelled(name))
        raise ConfigError(
            f"study.parts: labels needs a partly labelled dataset ({known}), got {', '.join(trained)}",
            "leave the part out: study.parts=...",
        )
    sides = Side(Recipe(tuple(trained))), Side(Recipe(tuple(trained), unlabelled="ignore"))
    question = "Does it help to know what unlabelled pixels are not?"
    return Part("labels", question, "sets", "ignored", tuple(_row(name, *sides) for name in scored))


def tracking(trained: Sequence[str], scored: Sequence[str]) -> Part:
    """Identities by the previous-offset branch, against plain overlap of masks, of the same networks.

    Raises: ConfigError: no dataset has tracks.
    """
    videos = [name for name in scored if load_contract(name).video and load_contract(name).persistent]
    if not videos:
        raise ConfigError(
            f"study.parts: tracking needs a dataset of videos with lasting ids, got {', '.join(scored)}",
            "leave the part out: study.parts=...",
        )
    recipe = Recipe(tuple(trained))
    sides = Side(recipe), Side(recipe, "iou")
    rows = [
        Row(name, metric, *sides)
        for name in videos
        for metric in dict.fromkeys((load_contract(name).headline, *TRACKED))
    ]
    question = "Do votes of the previous frame carry identities better than overlap?"
    return Part("tracking", question, "previous offset", "IoU", tuple(rows))


PARTS: dict[str, Callable[[Sequence[str], Sequence[str]], Part]] = {
    part.__name__: part for part in (leave_one_out, joint, balance, labels, tracking)
}
"""Every part, from the datasets that are trained on and those of them that are scored."""


def plan(chosen: Sequence[str], trained: Sequence[str], scored: Sequence[str]) -> list[Part]:
    """The chosen parts over a mixture.

    Raises: ConfigError: a part has nothing to compare in it.
    """
    if len(trained) < 2:
        raise ConfigError(
            f"a study compares mixtures: it needs two datasets or more, got {', '.join(trained)}",
            "convert another: python pipelines/convert.py DATASET --source DIR --out ROOT",
        )
    return [PARTS[name](trained, scored) for name in chosen]


def recipes(parts: Sequence[Part]) -> list[Recipe]:
    """What must be trained, each recipe once."""
    sides = [side for part in parts for row in part.rows for side in (row.left, row.right)]
    return list(dict.fromkeys(side.recipe for side in sides))


def wanted(parts: Sequence[Part], recipe: Recipe) -> dict[Tracking, tuple[str, ...]]:
    """The datasets that a recipe's runs are scored on, by way of tracking: those that some table shows."""
    found: dict[Tracking, dict[str, None]] = {}
    for part in parts:
        for row in part.rows:
            for side in (row.left, row.right):
                if side.recipe == recipe:
                    found.setdefault(side.tracking, {})[row.dataset] = None
    return {way: tuple(names) for way, names in found.items()}


def _row(name: str, left: Side, right: Side) -> Row:
    return Row(name, load_contract(name).headline, left, right)


def _partly_labelled(name: str) -> bool:
    background = load_contract(name).background
    return background is not None and background.policy == "complement"
