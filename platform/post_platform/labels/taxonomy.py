"""The unified taxonomy: 211 class names that every dataset's native classes are mapped to; void is 255."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from post_platform.errors import ConfigError

VOID = 255
FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Taxonomy:
    """The unified classes in id order; `tiers` maps a tier's name to its (first id, number of classes)."""

    names: tuple[str, ...]
    isthing: tuple[bool, ...]
    colors: tuple[tuple[int, int, int], ...]
    tiers: dict[str, tuple[int, int]]

    def prefix(self, tier: str) -> tuple[str, ...]:
        """The names of every tier up to and including `tier`: the class lists that a model may use.

        Raises: ConfigError for an unknown tier.
        """
        if tier not in self.tiers:
            raise ConfigError(f"unknown tier {tier!r}; valid: {', '.join(self.tiers)}")
        first, count = self.tiers[tier]
        return self.names[: first + count]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Class(_Strict):
    id: int
    name: str
    isthing: bool
    color: tuple[int, int, int]
    tier: str


class _Tier(_Strict):
    first: int
    count: int


class _File(_Strict):
    schema_: Literal["post-taxonomy/1"]
    taxonomy: Literal["post-unified"]
    version: Literal[1]
    void: Literal[255]
    num_classes: int
    tiers: dict[str, _Tier]
    thing_rule: str
    became_things: tuple[str, ...]
    classes: tuple[_Class, ...]


def read_yaml(path: Path, kind: str) -> dict[str, object]:
    """The mapping in a YAML file, with its key `schema` renamed `schema_` (pydantic reserves the word).

    Raises: ConfigError naming the file when it cannot be read or is not a mapping.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{kind} {path.name}: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{kind} {path.name}: is a {type(content).__name__}, must be a mapping")
    return {("schema_" if key == "schema" else key): value for key, value in content.items()}


def first_problem(error: ValidationError) -> str:
    """The first field that pydantic refused, as `field.path: reason`."""
    problem = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in problem["loc"])
    return f"{where}: {problem['msg']}" if where else problem["msg"].removeprefix("Value error, ")


def load_taxonomy(path: Path) -> Taxonomy:
    """Read a taxonomy file; ids count from 0 without gaps, names and colours are unique, tiers tile the ids.

    Raises: ConfigError naming the file and what is wrong.
    """
    try:
        file = _File.model_validate(read_yaml(path, "taxonomy"))
    except ValidationError as error:
        raise ConfigError(f"taxonomy {path.name}: {first_problem(error)}") from error
    names = tuple(entry.name for entry in file.classes)
    colors = tuple(entry.color for entry in file.classes)
    tiers = {name: (tier.first, tier.count) for name, tier in file.tiers.items()}
    expected_tiers = [name for name, (_, count) in tiers.items() for _ in range(count)]
    starts = [sum(count for _, count in list(tiers.values())[:i]) for i in range(len(tiers))]
    checks = {
        "ids must count from 0 without gaps": [entry.id for entry in file.classes] == list(range(file.num_classes)),
        "more classes than fit below void 255": file.num_classes <= VOID,
        "a class name appears twice": len(set(names)) == len(names),
        "a colour appears twice": len(set(colors)) == len(colors),
        "tiers must tile the ids in order": [first for first, _ in tiers.values()] == starts
        and [entry.tier for entry in file.classes] == expected_tiers,
        "became_things names an unknown class": set(file.became_things) <= set(names),
    }
    for message, holds in checks.items():
        if not holds:
            raise ConfigError(f"taxonomy {path.name}: {message}")
    return Taxonomy(names, tuple(entry.isthing for entry in file.classes), colors, tiers)


@cache
def taxonomy() -> Taxonomy:
    """The taxonomy that comes with the platform, checked once per process."""
    return load_taxonomy(FOLDER / "unified.yaml")
