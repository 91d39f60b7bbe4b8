"""What a person sees of a run in the terminal: one moving line while it trains, one table when it is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.table import Table

from post_platform.labels import load_contract
from post_platform.progress import Progress
from post_platform.training.evaluate import Scores

COLUMNS = ("PQ", "SQ", "RQ", "sMOTSA", "MOTSA", "STQ", "AQ", "VPQ", "mIoU")


@contextmanager
def training_progress(steps: int) -> Iterator[Callable[[dict[str, float]], None]]:
    """Show how far a training is while the block runs; yields what is told {"step", "loss", "frames_per_s"}."""
    with Progress("training", steps, "steps") as bar:

        def show(progress: dict[str, float]) -> None:
            loss, speed = progress.get("loss"), progress.get("frames_per_s")
            bar.update(int(progress["step"]), "" if loss is None else f"loss {loss:.2f}, {speed:.0f} frames/s")

        yield show


def print_scores(scores: Scores) -> None:
    """One row per dataset, the headline score of each marked, and undefined scores as a dash."""
    shown = [name for name in COLUMNS if any(found.get(name) is not None for found in scores.values())]
    table = Table(*["dataset", *shown], title="scores (ratios; * = the dataset's headline)")
    console = Console()
    for dataset, found in scores.items():
        mark = load_contract(dataset).headline
        table.add_row(dataset, *(cell(found.get(name)) + "*" * (name == mark) for name in shown))
    if not console.is_terminal:
        console.width = 120  # a log file has no edge to wrap at
    console.print(table)


def cell(value: float | None) -> str:
    """Three digits, or a dash where a score is undefined."""
    return "-" if value is None else f"{value:.3f}"
