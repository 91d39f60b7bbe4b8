"""What a study found: a table per question, with the spread over seeds and how sure the difference is; and pictures."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from post_platform import render
from post_platform.metrics.score import LOWER_IS_BETTER
from post_platform.noise import half_width, pooled
from post_platform.study_pictures import sheet
from post_platform.study_plan import Part, Row, Side

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from post_platform.experiment_log import ExperimentLog
    from post_platform.study_state import Study

Values = tuple[float | None, ...]
"""One per seed; None where the score is undefined, or the run failed or is not scored yet."""


@dataclass(frozen=True)
class Line:
    """A score on both sides. `interval` is half of the 95% confidence interval of the difference; None: not known."""

    dataset: str
    metric: str
    left: Values
    right: Values
    difference: float | None
    interval: float | None

    @property
    def verdict(self) -> str:
        """Which side is better; "" where the interval holds 0, or is not known."""
        if self.difference is None or self.interval is None or abs(self.difference) <= self.interval:
            return ""
        return "left" if (self.difference > 0) != (self.metric in LOWER_IS_BETTER) else "right"


@dataclass(frozen=True)
class Table:
    """The answer to a part's question."""

    part: Part
    lines: tuple[Line, ...]


def tables(study: Study) -> list[Table]:
    """A table for every part of the study."""
    return [table(part, study) for part in study.parts]


def table(part: Part, study: Study) -> Table:
    """All rows of a part, and the mean over datasets of each one's first metric, which is its headline."""
    lines = []
    heads: dict[str, tuple[Values, Values]] = {}
    for row in part.rows:
        left, right = _values(study, row, row.left), _values(study, row, row.right)
        lines.append(line(row.dataset, row.metric, left, right, part.paired))
        heads.setdefault(row.dataset, (left, right))
    left, right = (_mean_by_seed([sides[place] for sides in heads.values()]) for place in (0, 1))
    return Table(part, (*lines, line("mean", "headline", left, right, part.paired)))


def line(dataset: str, metric: str, left: Values, right: Values, paired: bool) -> Line:
    """The difference of the means over seeds, left minus right; `paired`: a seed is the same network on both sides."""
    if paired:
        pairs = [(a, b) for a, b in zip(left, right, strict=True) if a is not None and b is not None]
        groups = [[a - b for a, b in pairs]]
        difference = statistics.mean(groups[0]) if pairs else None
    else:
        groups = [[value for value in side if value is not None] for side in (left, right)]
        difference = statistics.mean(groups[0]) - statistics.mean(groups[1]) if all(groups) else None
    interval = None if difference is None else half_width(*pooled(groups), *map(len, groups))
    return Line(dataset, metric, left, right, difference, interval)


def _values(study: Study, row: Row, side: Side) -> Values:
    runs = sorted((run for run in study.runs if run.recipe == side.recipe), key=lambda run: run.seed)
    return tuple(run.scores.get(side.tracking, {}).get(row.dataset, {}).get(row.metric) for run in runs)


def _mean_by_seed(rows: Sequence[Values]) -> Values:
    found: list[float | None] = []
    for values in zip(*rows, strict=True):
        known = [value for value in values if value is not None]
        found.append(statistics.mean(known) if len(known) == len(values) else None)
    return tuple(found)


def markdown(found: Sequence[Table], study: Study) -> str:
    """All tables, as a page of documentation quotes them."""
    blocks = []
    for entry in found:
        part = entry.part
        rows = [f"| dataset | score | {part.left} | {part.right} | difference | 95 % interval |", "| --- " * 6 + "|"]
        rows += ["| " + " | ".join(cells(one)) + " |" for one in entry.lines]
        blocks.append(f"### {part.question}\n\n" + "\n".join(rows) + "\n")
    failed = [f"- {run.name} failed: {run.reason}" for run in study.runs if run.state == "failed"]
    if failed:
        blocks.append("\n".join(failed) + "\n")
    config = study.config
    blocks.append(
        f"{len(study.runs)} runs of {config.train.steps} steps, {study.seeds} seed{'s' * (study.seeds > 1)} of each "
        "recipe; ± is the standard deviation over seeds, the interval that of the difference.\n"
    )
    return "\n".join(blocks)


def cells(one: Line) -> list[str]:
    """A line of a table as texts; bold where the interval does not hold 0."""
    count = one.metric in LOWER_IS_BETTER
    digits = 1 if count else 3

    def side(values: Values) -> str:
        known = [value for value in values if value is not None]
        if not known:
            return "-"
        text = f"{statistics.mean(known):.{digits}f}"
        return text + (f" ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else "")

    change, reach = "-", "not known"
    if one.difference is not None:
        change = f"{one.difference:+.{digits}f}"
        if one.interval is not None:
            ends = one.difference - one.interval, one.difference + one.interval
            reach = f"{ends[0]:+.{digits}f} to {ends[1]:+.{digits}f}"
    return [one.dataset, one.metric, side(one.left), side(one.right), f"**{change}**" if one.verdict else change, reach]


def as_json(study: Study) -> dict[str, Any]:
    """The tables with the scores of every seed, and what became of every run."""
    return {
        "steps": study.config.train.steps,
        "seeds": study.seeds,
        "parts": {
            entry.part.name: {
                "question": entry.part.question,
                "left": entry.part.left,
                "right": entry.part.right,
                "rows": [
                    {
                        "dataset": one.dataset,
                        "metric": one.metric,
                        "left": one.left,
                        "right": one.right,
                        "difference": one.difference,
                        "interval": one.interval,
                        "better": one.verdict or None,
                    }
                    for one in entry.lines
                ],
            }
            for entry in tables(study)
        },
        "runs": {
            run.name: {
                "state": run.state,
                "reason": run.reason or None,
                "mlflow_run_id": run.run_id,
                "seed": run.seed,
                "seconds": run.seconds,
            }
            for run in study.runs
        },
    }


def draw(found: Sequence[Table]) -> Figure:
    """A panel per question: both sides of every ratio, a dot per seed and a stroke at their mean."""
    from matplotlib.figure import Figure

    columns = min(2, len(found))
    lines = -(-len(found) // columns)
    figure = Figure(figsize=(6.4 * columns, 0.6 + 3.0 * lines), dpi=120, layout="constrained")
    sides = figure.subplots(lines, columns, squeeze=False).ravel()
    for axis, entry in zip(sides, found, strict=False):
        _panel(axis, entry)
    for axis in sides[len(found) :]:
        axis.set_visible(False)
    return figure


def _panel(axis: Axes, entry: Table) -> None:
    shown = [one for one in entry.lines if one.metric not in LOWER_IS_BETTER]
    for color, label, shift, name in (("C0", entry.part.left, -0.14, "left"), ("C1", entry.part.right, 0.14, "right")):
        for place, one in enumerate(shown):
            known = [value for value in getattr(one, name) if value is not None]
            axis.scatter(known, [place + shift] * len(known), s=22, color=color, alpha=0.6, linewidths=0,
                         label=label if not place else None)  # fmt: skip
            if known:
                axis.vlines(statistics.mean(known), place + shift - 0.13, place + shift + 0.13, color, linewidth=2.2)
    axis.set_yticks(range(len(shown)), [f"{one.dataset}\n{one.metric}" for one in shown], fontsize="small")
    axis.set_title(entry.part.question, fontsize="medium")
    axis.set_xlabel("score", fontsize="small")
    axis.margins(x=0.08)
    axis.set_ylim(len(shown) - 0.5, -0.5)
    axis.grid(axis="x", alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize="small", frameon=False, loc="best")


def log_report(study: Study, log: ExperimentLog) -> None:
    """Write the tables, their figure and the pictures into the study's folder, and log them."""
    folder, found = study.folder, tables(study)
    for name, text in (
        ("tables.md", markdown(found, study)),
        ("tables.json", json.dumps(as_json(study), indent=1, allow_nan=False) + "\n"),
    ):
        (folder / name).write_text(text)
        log.log_file(folder / name)
    draw(found).savefig(folder / "study.png")
    log.log_file(folder / "study.png")
    names = {run.recipe: run.title for run in study.runs}
    for entry in found:
        picture = sheet(entry.part, names, folder / "pictures")
        if picture is not None:
            log.log_file(render.save_png(folder / f"{entry.part.name}.png", picture))
        mean = entry.lines[-1]
        log.log_metrics({f"study/{entry.part.name}/difference": mean.difference}, study.seeds)
