"""The record of what entered `forward`: per step its positions and counts, and one running hash over all samples."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

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


def read(path: Path) -> list[dict]:
    """All lines of a ledger, oldest first."""
    return [json.loads(line) for line in _lines(path)]


def _lines(path: Path) -> Iterable[str]:
    """The whole lines of the file; a last line cut by a kill is dropped."""
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")] if path.exists() else []
