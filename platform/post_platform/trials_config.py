"""The configuration of several trainings: one YAML holds the keys of a training, and those of what trains many."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import Field, create_model

from post_platform import storage
from post_platform.config import (
    KEYS,
    MAY_CHANGE_ON_RESUME,
    TEXT_KEYS,
    RunConfig,
    build,
    differences,
    flatten,
    run_config,
)
from post_platform.config_text import read_file, read_overrides, write
from post_platform.config_values import Config
from post_platform.errors import ConfigError

Settings = TypeVar("Settings", bound=Config)

RUN_MAY_CHANGE = MAY_CHANGE_ON_RESUME - {"train.steps"}
"""Keys of the trainings that may differ when their parent is resumed; not their length, by which they are compared."""


def load(
    section: str, kind: type[Settings], name: str, path: Path | None, overrides: Sequence[str]
) -> tuple[RunConfig, Settings]:
    """Build the configuration of every training, and what is under `section`, from one YAML and `key=value` arguments.

    Args:
        section: before the dot of its keys.
        kind: its keys.
        name: `run.name`, unless that is given.
        path: the YAML.
        overrides: arguments, which win.

    Raises: ConfigError, as `load_config`; or `run.dir` is no folder.
    """
    keys = (*KEYS, *keys_of(section, kind))
    values = read_file(path, keys) if path else {}
    values.update(read_overrides(overrides, keys, TEXT_KEYS))
    if storage.is_remote(str(values.get("run.dir", ""))):
        raise ConfigError(f"run.dir: a {section} needs a folder that all its machines share, got {values['run.dir']}")
    own = {key: value for key, value in values.items() if key not in KEYS}
    fields: Any = {section: (kind, Field(default_factory=kind))}
    settings = cast(Settings, getattr(build(create_model("Parent", __base__=Config, **fields), own), section))
    return run_config({"run.name": name} | {key: value for key, value in values.items() if key in KEYS}), settings


def keys_of(section: str, kind: type[Config]) -> list[str]:
    """The keys of a section, with its name."""
    return [f"{section}.{name}" for name in kind.model_fields]


def store(file: Path, config: RunConfig, section: str, settings: Config, leaving: Collection[str]) -> dict[str, object]:
    """Write what the parent is begun with, for `load`; a kill leaves the old file or the new one.

    Args:
        file: the YAML.
        config: of every training.
        section: before the dot of the settings' keys.
        settings: the parent's own.
        leaving: keys of the training that the parent decides.

    Returns: the keys and values that were written.
    """
    values = {key: value for key, value in flatten(config).items() if key not in leaving}
    values |= {f"{section}.{name}": value for name, value in settings.model_dump(mode="json").items()}
    storage.write_bytes(file, write(values).encode())
    return values


def refuse_changes(
    stored: Path,
    before: tuple[RunConfig, Settings],
    now: tuple[RunConfig, Settings],
    section: str,
    may_change: Collection[str],
) -> None:
    """Refuse to continue with another configuration: the trainings could not be compared.

    Raises: ConfigError naming each key, with both values.
    """
    old, new = before[1].model_dump(), now[1].model_dump()
    changed = differences(before[0], now[0], ignoring=RUN_MAY_CHANGE) + [
        f"{section}.{name}: {old[name]} -> {new[name]}"
        for name in old
        if old[name] != new[name] and f"{section}.{name}" not in may_change
    ]
    if changed:
        raise ConfigError(
            f"{stored.stem} {now[0].run.name!r} exists ({stored.parent}) with another configuration: "
            f"{'; '.join(changed)}",
            "give it another name: run.name=<new name>",
        )
