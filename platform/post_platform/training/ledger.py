"""The record of what entered `forward`: per step its positions and counts, and one running hash over all samples."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from post_platform import storage
from post_platform.errors import DataError, nearest
from post_platform.training import checkpoint

if TYPE_CHECKING:
    from post_platform.data.load import Samples

NAME = "ledger.jsonl"
EMPTY = hashlib.sha256(b"").hexdigest()

Seen = tuple[int, str]  # (position, sample key `<dataset>/<sequence>/<frame>`)


class Ledger:
    """Two runs saw the same data if and only if their ledgers agree.

    Each line holds a step, its positions, its samples per dataset, and the hash chained from the line before:
    sha256(previous hash + every (position, key) in position order). The file is cut back to the committed step
    when a run resumes.
    """

    def __init__(self, path: Path, step: int, digest: str) -> None:
        """Continue the ledger at `path` after `step` steps, whose running hash was `digest`."""
        self.path, self.digest = path, digest
        kept = [line for line in _lines(path) if json.loads(line)["step"] <= step]
        path.write_text("".join(kept))

    def append(self, step: int, seen: Sequence[Seen]) -> None:
        """Add the samples that step `step` (1-based, as optimiser steps are counted) trained on, from all ranks."""
        ordered = sorted(seen)
        text = "".join(f"{position} {key}\n" for position, key in ordered)
        self.digest = hashlib.sha256((self.digest + text).encode()).hexdigest()
        names = [key.split("/", 1)[0] for _, key in ordered]
        line = {
            "step": step,
            "positions": [position for position, _ in ordered],
            "counts": {name: names.count(name) for name in sorted(set(names))},
            "sha256": self.digest,
        }
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def seen(samples: Samples) -> list[Seen]:
    """What a local batch shows the network: keys as they were read from the shards, without rows that only pad."""
    rows = zip(samples.position.tolist(), samples.key, samples.weight.tolist(), strict=True)
    return [(position, key) for position, key, weight in rows if weight > 0]


def read(path: Path) -> list[dict]:
    """All lines of a ledger, oldest first."""
    return [json.loads(line) for line in _lines(path)]


def find(run: str, folder: storage.Location) -> Path:
    """The ledger of a run, given as a file, as the run's folder, or by its name in `folder`.

    On S3 it is that of the run's newest checkpoint, of which there is a copy here then.

    Raises: DataError naming what was looked for.
    """
    if storage.is_remote(run):
        return checkpoint.fetch_file(run if run.endswith(NAME) else storage.join(checkpoint.resolve(run), NAME))
    if storage.is_remote(folder) and not Path(run).exists():
        return find(storage.join(folder, run), folder)
    folder = Path(folder)
    places = [Path(run), Path(run) / NAME, folder / run / NAME]
    for place in places:
        if place.is_file():
            return place
    known = sorted(path.parent.name for path in folder.glob(f"*/{NAME}"))
    raise DataError(
        f"no ledger of run {run!r}: neither {places[1]} nor {places[2]}{nearest(run, known)}",
        f"runs with a ledger in {folder}: {', '.join(known) or 'none'}",
    )


@dataclass(frozen=True)
class Comparison:
    """How far two ledgers agree: `steps` of each, the first step at which they part (None: nowhere), and how."""

    steps: tuple[int, int]
    parting: int | None
    reason: str = ""


def compare(one: Path, other: Path) -> Comparison:
    """Compare two ledgers step by step, as far as both go.

    Raises: DataError naming file and line when one is damaged.
    """
    a, b = _checked(one), _checked(other)
    for mine, theirs in zip(a, b, strict=False):
        if mine["sha256"] == theirs["sha256"]:
            continue
        if mine["positions"] != theirs["positions"]:
            reason = f"positions {_span(mine['positions'])} against {_span(theirs['positions'])}"
        elif mine["counts"] != theirs["counts"]:
            reason = f"samples per dataset {_counts(mine['counts'])} against {_counts(theirs['counts'])}"
        else:
            reason = "the same positions and counts, other samples: another plan, or a bad sample was replaced"
        return Comparison((len(a), len(b)), mine["step"], reason)
    return Comparison((len(a), len(b)), None)


def _checked(path: Path) -> list[dict]:
    """All lines, whose steps must be 1, 2, 3, ..."""
    found: list[dict] = []
    for number, text in enumerate(_lines(path), start=1):
        try:
            line = json.loads(text)
            if line["step"] != number or not isinstance(line["sha256"], str):
                raise ValueError(f"step {line['step']}")
            found.append({**line, "positions": list(line["positions"]), "counts": dict(line["counts"])})
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number}: is not the record of step {number}: {error}") from error
    return found


def _span(positions: list[int]) -> str:
    return f"{min(positions)} to {max(positions)} ({len(positions)})" if positions else "none"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"


def _lines(path: Path) -> Iterable[str]:
    """The whole lines of the file; a last line cut by a kill is dropped."""
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")] if path.exists() else []
