"""Configuration as text: a YAML file and `key=value` overrides become one flat mapping of known dotted keys."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from reprlib import repr as short

import yaml

from post_platform.errors import ConfigError, nearest
from post_platform.labels import DATASETS, available

BRANCHES = ("semantic", "center", "offset", "prev_offset")
"""The branches a model has unless the configuration says otherwise; the first three make a panoptic result."""


def _branch_weights() -> dict[str, float]:
    """Read each branch's default loss weight from its file, by name; without importing it, for that needs PyTorch."""
    package = find_spec("post_model")
    assert package is not None, "post_model is not importable"
    folder = Path(next(iter(package.submodule_search_locations or ()))) / "branches"
    order = {name: place for place, name in enumerate(BRANCHES)}
    return {
        file.stem: float(ast.literal_eval(node.value))
        for file in sorted(folder.glob("[a-z]*.py"), key=lambda file: (order.get(file.stem, len(order)), file.stem))
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "WEIGHT"
    }


BRANCH_WEIGHTS = _branch_weights()
"""Every branch there is, a file of post_model/branches each, and the default weight of its loss."""

MAX_BYTES = 1 << 20

BY_DESIGN = "by design no dataset has a number of its own; one rule balances them all: data.alpha"

ELSEWHERE = {
    "lr": "optim.lr",
    "learning_rate": "optim.lr",
    "batch_size": "train.global_batch",
    "global_batch_size": "train.global_batch",
    "epochs": "train.steps",
    "max_steps": "train.steps",
    "num_workers": "train.workers",
    "amp": "train.precision",
    "datasets": "data.datasets",
    "out": "run.dir",
}
"""What other trainers call our keys; letters alone would not lead there."""

_FLOAT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+$")


class _Loader(yaml.SafeLoader):
    """The safe loader; a key written twice is refused instead of the first being lost, and `1e-3` is a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        """Build the mapping, or raise ConfigError for a key that occurs twice."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise ConfigError(f"{key.value!r} is written twice, the second time on line {key.start_mark.line + 1}")
            seen.add(str(key.value))
        return super().construct_mapping(node, deep=True)


class _Dumper(yaml.SafeDumper):
    """The safe writer; it puts in quotes whatever some reader would not take for text."""


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("+-.0123456789"))
# Dates stay text: a run may be named 2026-11-23.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if not tag.endswith(":timestamp")]
    for first, rules in _Loader.yaml_implicit_resolvers.items()
}


def read_file(path: Path, keys: Collection[str]) -> dict[str, object]:
    """Read one experiment's YAML: dotted keys, or nested mappings, or both.

    Raises:
        ConfigError: the file is missing, not YAML, too large, or names a key that is not in `keys` or twice.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path}: larger than {MAX_BYTES} bytes; a configuration is a short flat YAML file")
        content = _parse(path.read_text(encoding="utf-8"))
        if content is None:
            return {}
        if not isinstance(content, Mapping):
            raise ConfigError(f"expected a mapping of keys, got {short(content)}")
        flat: dict[str, object] = {}
        for key, value in _flatten(content, keys):
            if key in flat:
                raise ConfigError(f"{key!r} is written twice")
            flat[key] = value
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ConfigError(f"cannot read the config {path}: {reason}") from error
    except ConfigError as error:
        message = str(error)
        raise ConfigError(message if message.startswith(str(path)) else f"{path}: {message}", error.hint) from error
    return flat


def write(values: Mapping[str, object]) -> str:
    """Write a flat mapping as YAML, one line per key, that `read_file` reads back."""
    return yaml.dump(
        values, Dumper=_Dumper, sort_keys=False, default_flow_style=None, allow_unicode=True, width=1 << 20
    )


def read_overrides(overrides: Sequence[str], keys: Collection[str], text_keys: Collection[str]) -> dict[str, object]:
    """Read `key=value` arguments; of a key given twice the last one counts, as in a shell.

    The value is YAML, but a number given to a key of `text_keys` stays as it is written: run.name=007.

    Raises:
        ConfigError: an argument without `=`, a value that is not YAML, or a key that is not in `keys`.
    """
    flat: dict[str, object] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        key = key.strip()
        if not equals:
            raise ConfigError(f"override {override!r} is not key=value")
        try:
            value = _parse(text)
            if key in text_keys and isinstance(value, int | float):
                value = text.strip()
            flat.update(_flatten({key: value}, keys))
        except ConfigError as error:
            message = str(error)
            raise ConfigError(message if key in message else f"{key}: {message}", error.hint) from error
    return flat


def _parse(text: str) -> object:
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"not YAML{where}: {getattr(error, 'problem', None) or error}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"not YAML: {error}") from error


def _flatten(content: Mapping[object, object], keys: Collection[str], prefix: str = "") -> Iterator[tuple[str, object]]:
    sections = {key.split(".")[0] for key in keys if "." in key}
    for name, value in content.items():
        key = f"{prefix}{name}"
        if key in keys:
            _refuse_dataset_numbers(key, value)
            yield key, value
        elif key in sections and isinstance(value, Mapping):
            yield from _flatten(value, keys, f"{key}.")
        elif key in sections and value is None:
            continue  # an emptied section of a file
        else:
            raise _unknown(key, value, keys)


def _names_dataset(name: object) -> bool:
    return str(name).lower().replace("-", "_").replace(" ", "_") in {*DATASETS, *available()}


def _refuse_dataset_numbers(key: str, value: object) -> None:
    """Refuse a value that gives single datasets something of their own, however it is written."""
    items = list(value) if isinstance(value, Mapping | list | tuple) else [value]
    pairs = [item for item in items if isinstance(item, Mapping) or (isinstance(item, str) and ":" in item)]
    keyed = isinstance(value, Mapping) and any(_names_dataset(name) for name in value)
    if key == "data.datasets":
        numbers = [item for item in items if isinstance(item, int | float) and not isinstance(item, bool)]
        keyed = isinstance(value, Mapping) or bool(pairs) or bool(numbers)
    if keyed:
        raise ConfigError(f"{key} got {short(value)}: {BY_DESIGN}")


def _unknown(key: str, value: object, keys: Collection[str]) -> ConfigError:
    """Say what is wrong with a key that does not exist, and which one was probably meant."""
    parts = key.split(".")
    inside = value if isinstance(value, Mapping) else ()
    if any(_names_dataset(name) for name in (*parts, *inside)) or parts[-1] in ("weights", "shares"):
        return ConfigError(f"unknown config key {key!r}: {BY_DESIGN}")
    section, leaf = parts[0], parts[-1]
    siblings = [name for name in keys if name.startswith(f"{section}.")]
    if siblings and len(parts) == 1:
        return ConfigError(f"{key!r} is a section, set by its keys ({siblings[0]}, ...); got {short(value)}")
    parent = ".".join(parts[:-1])
    if parent in keys:
        return ConfigError(f"unknown config key {key!r}; {parent} is set as a whole: {parent}=...")
    same = [name for name in keys if name.split(".")[-1] == leaf] or [ELSEWHERE.get(leaf, "")]
    if same[0]:
        return ConfigError(f"unknown config key {key!r}; did you mean {', '.join(same)}?")
    if section == "loss" and not get_close_matches(key, siblings, cutoff=0.8):
        return ConfigError(f"unknown config key {key!r}: no branch {leaf!r}; valid: {', '.join(BRANCH_WEIGHTS)}")
    if not siblings and not get_close_matches(key, keys, cutoff=0.5):
        sections = dict.fromkeys(name.split(".")[0] for name in keys)
        return ConfigError(f"unknown config key {key!r}; sections: {', '.join(sections)}")
    return ConfigError(f"unknown config key {key!r}{nearest(key, siblings or keys, count=1)}")
