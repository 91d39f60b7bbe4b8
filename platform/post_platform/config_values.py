"""What a value of the configuration may be: the checks that several keys share, and the types made of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from post_platform import storage
from post_platform.config_text import BRANCH_WEIGHTS, BRANCHES, BY_DESIGN
from post_platform.errors import ConfigError, nearest
from post_platform.labels import available


class Config(BaseModel):
    """A frozen part of the configuration, in which an unknown key, an infinite or a non-number is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)


class WorkerRange(Config):
    """An elastic number of training workers."""

    min: int
    max: int


def _number(value: object) -> object:
    """Refuse yes/no, which Python would count as 1 and 0."""
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


def _sequence(value: object) -> object:
    """Read `a,b` and a single value as a list."""
    if isinstance(value, str):
        return [part.strip() for part in value.strip("[]()").split(",") if part.strip()]
    return [value] if isinstance(value, int | float) else value


def _location(value: str) -> str:
    """Make a path absolute, because Ray's workers have another working directory; s3:// stays."""
    try:
        return storage.absolute(value)
    except ConfigError as error:
        raise ValueError(str(error)) from error


def _tracking_uri(value: str) -> str:
    """Make an MLflow address absolute; a bare `*.db` file is sqlite."""
    scheme, colon, rest = value.partition(":///")
    if colon and scheme == "sqlite":
        return f"sqlite:///{_location(rest)}"
    if "://" not in value and value.endswith((".db", ".sqlite")):
        return f"sqlite:///{_location(value)}"
    if "://" not in value or value.startswith("file:"):
        raise ValueError("must be http(s)://, sqlite:/// or a *.db file: MLflow keeps runs in a database")
    return value


def _workers(value: object) -> object:
    """Say in one sentence what a number of workers may be, instead of one complaint per alternative."""
    _number(value)
    if value is None or (isinstance(value, int) and value >= 1) or isinstance(value, WorkerRange):
        return value
    if isinstance(value, Mapping) and set(value) == {"min", "max"}:
        low, high = value["min"], value["max"]
        if type(low) is int and type(high) is int and 1 <= low <= high:
            return WorkerRange(min=low, max=high)
    raise ValueError("must be a number >= 1, or {min: a, max: b} with 1 <= a <= b")


def _ascending(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError("must be (smallest, largest)")
    return pair


def _multiples_of_16(size: tuple[int, int]) -> tuple[int, int]:
    if any(side % 16 for side in size):
        raise ValueError("must be multiples of 16, the stride of the backbone")
    return size


def _datasets(names: tuple[str, ...] | None) -> tuple[str, ...] | None:
    if names == ():
        raise ValueError("must name at least one dataset; leave it out for every converted one")
    for name in names or ():
        if name not in available():
            raise ValueError(f"unknown dataset {name!r}{nearest(name, available())}")
        if names and names.count(name) > 1:
            raise ValueError(f"{name!r} is named twice; {BY_DESIGN}")
    return names


def _branches(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if name not in BRANCH_WEIGHTS:
            raise ValueError(f"no branch {name!r}; valid: {', '.join(BRANCH_WEIGHTS)}")
    if missing := [name for name in BRANCHES[:3] if name not in names]:
        raise ValueError(f"must hold {', '.join(missing)}: a panoptic result needs semantic, center and offset")
    return tuple(name for name in dict.fromkeys((*BRANCHES, *BRANCH_WEIGHTS)) if name in names)


def _run_name(value: str) -> str:
    if not re.fullmatch(r"\w[\w.+-]*", value):
        raise ValueError("must be a folder's name: letters, digits, and . _ + - after the first")
    return value


Integer = Annotated[int, BeforeValidator(_number)]
Number = Annotated[float, BeforeValidator(_number)]
Count = Annotated[Integer, Field(ge=1)]
NotNegative = Annotated[Number, Field(ge=0)]
Positive = Annotated[Number, Field(gt=0)]
Location = Annotated[str, AfterValidator(_location)]
Listed = BeforeValidator(_sequence)
RunName = Annotated[str, AfterValidator(_run_name)]
TrackingUri = Annotated[str, AfterValidator(_tracking_uri)]
Workers = Annotated[int | WorkerRange | None, BeforeValidator(_workers)]
Datasets = Annotated[tuple[str, ...] | None, Listed, AfterValidator(_datasets)]
Branches = Annotated[tuple[str, ...], Listed, AfterValidator(_branches)]
CropSize = Annotated[tuple[Count, Count], Listed, AfterValidator(_multiples_of_16)]
Steps = Annotated[tuple[Count, Count], Listed, AfterValidator(_ascending)]
Factors = Annotated[tuple[Positive, Positive], Listed, AfterValidator(_ascending)]
