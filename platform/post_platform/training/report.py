"""What a person sees of a run in the terminal: one moving line while it trains, one table when it is done."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from post_platform.labels import load_contract
from post_platform.training.evaluate import Scores

if TYPE_CHECKING:
    from post_platform.training.launch import Outcome

COLUMNS = ("PQ", "SQ", "RQ", "sMOTSA", "MOTSA", "STQ", "AQ", "VPQ", "mIoU")
SECONDS_BETWEEN_LINES = 15


class ProgressLine:
    """A progress bar on a terminal; elsewhere a plain line every 15 seconds."""

    def __init__(self, steps: int) -> None:
        """Expect `steps` training steps."""
        self.steps, self.last, self.shown = steps, 0.0, 0
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns) if Console().is_terminal else None
        self.task = self.bar.add_task("training", total=steps) if self.bar else None

    def __enter__(self) -> ProgressLine:
        """Show the bar."""
        if self.bar:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the terminal as it was."""
        if self.bar:
            self.bar.stop()

    def update(self, progress: dict[str, float]) -> None:
        """Show {"step", "loss", "frames_per_s"}."""
        step, loss, speed = int(progress["step"]), progress.get("loss"), progress.get("frames_per_s")
        text = "training" if loss is None else f"loss {loss:.2f}, {speed:.0f} frames/s"
        if step == self.shown:
            return
        self.shown = step
        if self.bar and self.task is not None:
            self.bar.update(self.task, completed=step, description=text)
        elif time.monotonic() - self.last > SECONDS_BETWEEN_LINES:
            self.last = time.monotonic()
            print(f"step {step}/{self.steps}: {text}", flush=True)


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


def write_json(path: Path, outcome: Outcome) -> None:
    """The outcome of a run as JSON: folder, checkpoint, scores, MLflow address."""
    path.write_text(json.dumps(jsonable(outcome), indent=1) + "\n")


def jsonable(value: Any) -> Any:
    """Dataclasses as mappings and paths as text, all the way down."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: jsonable(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {name: jsonable(item) for name, item in value.items()}
    return str(value) if isinstance(value, Path) else value
