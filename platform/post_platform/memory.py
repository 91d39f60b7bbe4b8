"""Peak memory of this process and everything it started, as proportional set size: shared pages are counted once."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType


class PeakMemory:
    """Watches the process tree every five seconds while the block runs; `gigabytes` is 0 where /proc is missing."""

    def __init__(self) -> None:
        """Start with nothing seen."""
        self.gigabytes = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        """Begin to watch."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop watching."""
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.gigabytes = max(self.gigabytes, proportional_bytes() / 1e9)
            if self._done.wait(5.0):
                return


def proportional_bytes(root: Path = Path("/proc")) -> int:
    """Proportional set size of this process and its descendants, in bytes.

    Source: proc(5), smaps_rollup. Processes that end meanwhile, or belong to somebody else, count 0.
    """
    children: dict[str, list[str]] = {}
    for stat in root.glob("[0-9]*/stat"):
        try:
            parent = stat.read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
        children.setdefault(parent, []).append(stat.parent.name)
    total, waiting = 0, [(root / "self").resolve().name] if root.exists() else []
    while waiting:
        process = waiting.pop()
        waiting += children.get(process, [])
        try:
            rollup = (root / process / "smaps_rollup").read_text()
        except OSError:
            continue
        total += sum(int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Pss:"))
    return total
