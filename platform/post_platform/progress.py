"""Progress of work that is counted in frames: a bar on a terminal, plain lines elsewhere; on stderr in both cases."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LINE_EVERY = 15  # seconds


@contextmanager
def frames_progress(doing: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show how many of `total` frames are done while the block runs; yields what is told the number.

    Args:
        doing: what is done with them, such as "counting".
        total: frames in all.
    """
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(doing, total=total)
            yield lambda done: bar.update(task, completed=done)
        return
    started = last = time.monotonic()

    def line(done: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done and now - last > LINE_EVERY:
            last = now
            rate = done / (now - started)
            left = (total - done) / rate
            print(
                f"{doing}: {done} of {total} frames, {rate:.1f} frames/s, {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )

    yield line
