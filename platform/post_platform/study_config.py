"""What a study trains: one configuration for all of its runs, how many seeds, and which questions it asks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from post_platform import trials_config
from post_platform.config import RunConfig
from post_platform.config_values import Config, Count, Listed
from post_platform.errors import ConfigError, nearest
from post_platform.study_plan import PARTS

DECIDED = {"data.alpha": "balance", "loss.unlabelled": "labels", "eval.tracking": "tracking"}
"""Keys of a training that the study decides, and the part that varies each."""


def _parts(names: tuple[str, ...]) -> tuple[str, ...]:
    if not names:
        raise ValueError(f"must name at least one of {', '.join(PARTS)}")
    for name in names:
        if name not in PARTS:
            raise ValueError(f"no part {name!r}{nearest(name, PARTS)}")
    return tuple(name for name in PARTS if name in names)


class StudyConfig(Config):
    """The study: what it asks, and how often each answer is repeated."""

    parts: Annotated[tuple[str, ...], Listed, AfterValidator(_parts)] = Field(
        default=tuple(PARTS), description=f"Questions that are asked: {', '.join(PARTS)}."
    )
    seeds: Count = Field(default=2, description="Seeds of every recipe: `seed`, `seed` + 1, ...; one tells no spread.")
    concurrent: Count | None = Field(default=None, description="Runs at a time; default: what Ray has room for.")


def load_study(path: Path | None = None, overrides: Sequence[str] = ()) -> tuple[RunConfig, StudyConfig]:
    """Build the configuration of every run, and that of the study, from one YAML and `key=value` arguments.

    Raises:
        ConfigError: as `load_config`; or a key is set that the study decides, or there is no branch to track with.
    """
    config, study = trials_config.load("study", StudyConfig, "study", path, overrides)
    if "prev_offset" not in config.model.branches:
        raise ConfigError(
            f"model.branches: a study tracks by the branch prev_offset, got {', '.join(config.model.branches)}",
            "leave model.branches out",
        )
    for key, part in DECIDED.items():
        section, leaf = key.split(".")
        if leaf in getattr(config, section).model_fields_set:
            raise ConfigError(f"{key} is set, but the study varies it (part {part})", f"leave {key} out")
    return config, study


def store(file: Path, config: RunConfig, study: StudyConfig) -> dict[str, object]:
    """Write what a study is begun with, for `load_study`, and return it; a kill leaves the old file or the new one."""
    return trials_config.store(file, config, "study", study, DECIDED)


def refuse_changes(stored: Path, config: RunConfig, study: StudyConfig) -> None:
    """Refuse to continue a study with another configuration of its runs. Raises: ConfigError naming each key.

    The study's own keys may differ, all of them: a run that is trained is the same, whatever is asked beside it.
    """
    own = trials_config.keys_of("study", StudyConfig)
    trials_config.refuse_changes(stored, load_study(stored), (config, study), "study", own)
