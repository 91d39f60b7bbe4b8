"""Writes configuration.md: every key of a training's configuration, from the schema itself."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

ROOT = Path(__file__).resolve().parent.parent
sys.path[0:1] = [str(ROOT / "platform"), str(ROOT / "model")]

from post_platform.config import KEYS, MAY_CHANGE_ON_RESUME, RunConfig
from post_platform.config_values import Config

NAMES = {int: "whole number", float: "number", bool: "true or false", str: "text", NoneType: "null"}
SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}

HEAD = """\
# Configuration

Every key of a training, written by `python docs/configuration.py` from the schema that checks it. A key is set in one
flat YAML (`--config F.yaml`, one `key: value` per line) or on the command line (`key=value`, which wins). There is no
slot for a value of a single dataset: all keys hold for all datasets. Relative paths count from the working directory.
`python pipelines/train.py --print-config` prints all of them as they stand.

A run that exists is continued only with the same configuration; keys marked **↻** may differ.
"""


def kind(annotation: Any, limits: Sequence[Any] = ()) -> str:
    """What a value may be, in words."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return kind(inner[0], [*inner[1:], *limits])
    if origin in (Union, UnionType):
        return " or ".join(kind(one) for one in inner)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin is tuple:
        return f"list of {kind(inner[0])}" if inner[1:] == (...,) else f"[a, b], each a {kind(inner[0])}"
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return "{" + ", ".join(f"{name}: a" for name in annotation.model_fields) + "}"
    bounds = [f"{sign} {value}" for limit in limits for sign, value in bounds_of(limit)]
    return " ".join([NAMES[annotation], ", ".join(bounds)]).strip()


def bounds_of(limit: Any) -> list[tuple[str, Any]]:
    """The bounds that an annotation sets, with their signs."""
    parts = [limit, *getattr(limit, "metadata", ())]
    return [(sign, getattr(part, name)) for part in parts for name, sign in SIGNS.items() if hasattr(part, name)]


def page() -> str:
    """The whole page."""
    lines, section = [HEAD], None
    for key in KEYS:
        name, dot, leaf = key.partition(".")
        part: Any = RunConfig.model_fields[name].annotation if dot else RunConfig
        field = part.model_fields[leaf or name]
        if name != section:
            section = name
            lines += [f"## {name}", "", part.__doc__.strip() if dot else "Of the whole run.", ""]
            lines += ["| key | value | default | meaning |", "| --- | --- | --- | --- |"]
        shown = "" if field.default is None else f"`{json.dumps(field.default)}`"
        mark = " **↻**" if key in MAY_CHANGE_ON_RESUME else ""
        lines.append(f"| `{key}`{mark} | {kind(field.annotation, field.metadata)} | {shown} | {field.description} |")
        if key == KEYS[-1] or KEYS[KEYS.index(key) + 1].partition(".")[0] != section:
            lines.append("")
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    Path(__file__).with_suffix(".md").write_text(page(), encoding="utf-8")
