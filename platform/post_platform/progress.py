"""How far counted work is: one moving bar on a terminal, plain lines elsewhere; on stderr in both cases."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
FIRST_LINE = 2  # seconds; a log says soon that something happens
LINE_EVERY = 15


class Progress:
    """Shows done, total, rate and time left of counted work while the block runs.

    The rate counts from the first update on: neither what an earlier call had done nor starting up is in it.

    Args:
        doing: what is done, such as "counting".
        total: how much in all; None where nobody knows yet.
        unit: what is counted.
    """

    def __init__(self, doing: str, total: int | None, unit: str = "frames") -> None:
        """Show nothing yet."""
        self.doing, self.total, self.unit = doing, total, unit
        self.first: tuple[float, int] | None = None
        self.due = time.monotonic() + FIRST_LINE
        self.bar = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self.bar = Bar(*columns, console=Console(stderr=True), transient=True)
            self.task = self.bar.add_task(doing, total=total)

    def __enter__(self) -> Progress:
        """Show the bar."""
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the terminal as it was."""
        if self.bar:
            self.bar.stop()

    def update(self, done: int, note: str = "") -> None:
        """Show that so much is done, with a note such as "loss 2.31"; called as often as one likes."""
        now = time.monotonic()
        began, before = self.first = self.first or (now, done)
        pace = (done - before) / (now - began) if now > began else 0.0
        said = [note, f"{pace:.1f} {self.unit}/s" if pace else ""]
        if self.bar:
            text = ", ".join(filter(None, [self.doing, *said]))
            self.bar.update(self.task, completed=done, total=self.total, description=text)
        elif now >= self.due and done != self.total:
            self.due = now + LINE_EVERY
            known = self.total is not None and done < self.total
            count = f"{done} of {self.total} {self.unit}" if known else f"{done} {self.unit}"
            if self.total is not None and known and pace:
                said.append(f"{clock((self.total - done) / pace)} left")
            print(f"{self.doing}: {', '.join(filter(None, [count, *said]))}", file=sys.stderr, flush=True)

    def over(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, each counted as done when the next one is asked for."""
        for done, item in enumerate(items, start=1):
            yield item
            self.update(done)


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02}:{int(seconds) % 60:02}"
