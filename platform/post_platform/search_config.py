"""What a search for loss weights may vary, and how long it tries: three global ratios, and nothing per dataset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from post_platform import trials_config
from post_platform.config import RunConfig
from post_platform.config_text import BRANCH_WEIGHTS
from post_platform.config_values import Config, Count, Integer, Listed, Number, Positive
from post_platform.errors import ConfigError

SEARCHED = ("center", "offset", "prev_offset")
"""Branches whose loss weight is searched, as a ratio to the semantic branch's, which is 1."""

REFERENCE = {name: BRANCH_WEIGHTS[name] for name in SEARCHED}
"""The reference's recipe, which is always trial 0."""

MAY_CHANGE = frozenset({"search.trials", "search.repeats", "search.concurrent"})
"""Keys of the search that may differ when a sweep is resumed."""


def _ascending(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] >= pair[1]:
        raise ValueError("must be [smallest, largest]")
    return pair


Range = Annotated[tuple[Positive, Positive], Listed, AfterValidator(_ascending)]


class SearchConfig(Config):
    """The search: ranges of the three ratios, drawn log-uniformly, and how many trials get how far."""

    center: Range = Field(default=(20.0, 2000.0), description="Smallest and largest loss.center.")
    offset: Range = Field(default=(0.001, 0.1), description="Smallest and largest loss.offset.")
    prev_offset: Range = Field(default=(0.001, 0.1), description="Smallest and largest loss.prev_offset.")
    trials: Count = Field(default=24, description="Recipes that are tried, the reference's among them.")
    random: Count = Field(default=8, description="Trials before Optuna's model of the scores has a say.")
    reduction: Annotated[Number, Field(gt=1)] = Field(
        default=3.0, description="ASHA lets the best 1 / reduction go on from eval.every x reduction^k steps."
    )
    repeats: Annotated[Integer, Field(ge=0)] = Field(
        default=2, description="Further seeds of the best recipe and of trial 0, for the noise."
    )
    concurrent: Count | None = Field(default=None, description="Trials at a time; default: what Ray has room for.")


SEARCH_KEYS = tuple(trials_config.keys_of("search", SearchConfig))


def load_search(path: Path | None = None, overrides: Sequence[str] = ()) -> tuple[RunConfig, SearchConfig]:
    """Build the configuration of every trial, and that of the search, from one YAML and `key=value` arguments.

    Raises:
        ConfigError: as `load_config`; or a key is set that the search decides, or a range is without the reference.
    """
    config, search = trials_config.load("search", SearchConfig, "sweep", path, overrides)
    for name in config.loss.model_fields_set & {*SEARCHED, "semantic", "weighting"}:
        what = f"the search varies it; its range: search.{name}=[low, high]"
        if name not in SEARCHED:
            what = "the search pins it" if name == "semantic" else "the search is for fixed weights"
        raise ConfigError(f"loss.{name} is set, but {what}", f"leave loss.{name} out")
    for name, reference in REFERENCE.items():
        low, high = getattr(search, name)
        if not low <= reference <= high:
            raise ConfigError(f"search.{name}: must hold {reference:g}, the reference's, got [{low:g}, {high:g}]")
    if not 0 < config.eval.every < config.train.steps:
        raise ConfigError(
            f"eval.every: must be below train.steps ({config.train.steps}) and not 0, got {config.eval.every}: "
            "without validations on the way no trial can be stopped early",
            f"validate three times: eval.every={max(1, config.train.steps // 3)}",
        )
    return config, search


def searched(config: RunConfig) -> tuple[str, ...]:
    """The branches whose weights are searched, of those that the model has."""
    return tuple(name for name in SEARCHED if name in config.model.branches)


def with_weights(config: RunConfig, weights: dict[str, float]) -> RunConfig:
    """The configuration with these loss weights, and the semantic branch's at 1."""
    return config.model_copy(update={"loss": config.loss.model_copy(update={"semantic": 1.0, **weights})})


def store(file: Path, config: RunConfig, search: SearchConfig) -> dict[str, object]:
    """Write what a sweep is begun with, for `load_search`, and return it; a kill leaves the old file or the new one."""
    pinned = {f"loss.{name}" for name in (*SEARCHED, "semantic", "weighting")}
    return trials_config.store(file, config, "search", search, pinned)


def refuse_changes(stored: Path, config: RunConfig, search: SearchConfig) -> None:
    """Refuse to continue a sweep with another configuration. Raises: ConfigError naming each key."""
    trials_config.refuse_changes(stored, load_search(stored), (config, search), "search", MAY_CHANGE)
