"""What a run that goes on must have in common with its beginning; what differs is named, and refused."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from post_platform import storage
from post_platform.config import MAY_CHANGE_ON_RESUME, RunConfig, differences, load_config
from post_platform.data.plan import Plan
from post_platform.errors import ConfigError
from post_platform.shards.index import Split
from post_platform.training import checkpoint
from post_platform.training.vocabulary import label_tables


def facts_of(
    plan: Plan, train: Sequence[Split], class_names: Sequence[str], unlabelled: Literal["sets", "ignore"]
) -> dict[str, Any]:
    """All that decides which samples a run sees and what their labels mean; a resumed run must have the same."""
    tables = label_tables(train, class_names, unlabelled)
    facts: dict[str, Any] = {**plan.arguments, "classes": list(class_names)}
    facts["shares"] = dict(zip(plan.datasets, plan.shares.tolist(), strict=True))
    for number, name in enumerate(plan.datasets):
        digest = hashlib.sha256()
        for table in (tables.allowed, tables.thing, tables.negative):
            digest.update(table[number].numpy().tobytes())
        facts[f"labels/{name}"] = digest.hexdigest()
    return facts


def refuse_changes(config: RunConfig, stored: Path, place: storage.Location) -> None:
    """Refuse another configuration: it would be another run under the same name.

    Args:
        config: what is asked for.
        stored: what the run was started with.
        place: of its newest checkpoint, for the message.

    Raises: ConfigError naming each key, with both values.
    """
    changed = differences(load_config(stored), config, ignoring=MAY_CHANGE_ON_RESUME)
    if changed:
        raise ConfigError(
            f"run {config.run.name!r} exists ({place}) with another configuration: {'; '.join(changed)}",
            "give it another name: run.name=<new name>",
        )


def refuse_other_data(config: RunConfig, facts: Mapping[str, Any], newest: Path, place: storage.Location) -> None:
    """Refuse other shards, contracts or shares: the plan would have other pairs, or other labels, at its positions.

    Args:
        config: what is asked for.
        facts: of the data as it is now.
        newest: the run's newest checkpoint, on this machine.
        place: where it is, for the message.

    Raises: ConfigError naming each difference.
    """
    stored = checkpoint.read_state(newest).get("facts", {})  # none: of a version that did not keep them
    changed = [_difference(name, stored.get(name), facts.get(name)) for name in {**stored, **facts}
               if stored.get(name) != facts.get(name)]  # fmt: skip
    if changed:
        raise ConfigError(
            f"run {config.run.name!r} exists ({place}) and was trained on other data than {config.data.root} has now: "
            f"{'; '.join(changed)}",
            "give it another name: run.name=<new name>",
        )


def _difference(name: str, old: object, new: object) -> str:
    """One fact that changed, in words."""
    if name.startswith("labels/"):
        return f"the label contract of {name.removeprefix('labels/')} gives its classes another meaning"
    if "/" in name and old and new:
        return f"the shards of {name} are others (index {str(old)[:12]} -> {str(new)[:12]})"
    if isinstance(old, list) and isinstance(new, list):
        gone = [f"without {item}" for item in old if item not in new]
        come = [f"also {item}" for item in new if item not in old]
        return f"{name}: {', '.join(gone + come) or f'{old} -> {new}'}"
    return f"{name}: {old} -> {new}"
