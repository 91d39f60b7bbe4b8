"""What a sweep found: is its best recipe better by more than noise, how flat is the optimum, and who pays for it."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from post_platform.config import KEYS
from post_platform.config_text import read_file, write
from post_platform.noise import half_width, pooled
from post_platform.search_config import SEARCH_KEYS, searched

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from post_platform.experiment_log import ExperimentLog
    from post_platform.search_trial import Sweep, Trial

PANELS = 6  # pairs of datasets that one figure holds; more datasets are drawn as profiles
GREY = "0.6"
RING: dict[str, Any] = {"facecolors": "none", "linewidths": 1.6, "label": "trial 0: the reference"}
LEGEND: dict[str, Any] = {"loc": "outside lower center", "fontsize": "small", "frameon": False}


@dataclass(frozen=True)
class Verdict:
    """The best recipe against trial 0, on seeds that had no part in choosing it.

    `noise` is the standard deviation of one run's score over seeds, pooled over both recipes; `gain` is the difference
    of the mean scores, best minus trial 0, and `interval` half of its 95% confidence interval. None: not enough runs.
    """

    best: int
    weights: dict[str, float]
    best_scores: list[float]
    reference_scores: list[float]
    noise: float | None
    gain: float | None
    interval: float | None

    @property
    def beats(self) -> bool:
        """Whether the whole interval of the gain is above 0."""
        return self.gain is not None and self.interval is not None and self.gain > self.interval

    def __str__(self) -> str:
        """One sentence, which says so when there is nothing to be glad of."""
        if not self.best:
            return "no recipe beat trial 0, the reference's" + _plus(self.noise)
        if self.gain is None:
            return f"trial {self.best} has the best score; without repeated seeds nobody knows by how much"
        text = f"trial {self.best} against trial 0, on other seeds: {self.gain:+.4f}" + _plus(self.noise)
        if self.interval is None:
            return text + ", of one run each: nobody knows whether that is more than the noise"
        text += f", 95% interval {self.gain - self.interval:+.4f} to {self.gain + self.interval:+.4f}"
        return text + (": better by more than the noise" if self.beats else ": not better by more than the noise")


def _plus(noise: float | None) -> str:
    return f" (noise of one run {noise:.4f})" if noise is not None else ""


def verdict(trials: Sequence[Trial]) -> Verdict:
    """Compare the best recipe with trial 0.

    The best one's own score is left out: it was chosen because it is high. That of trial 0 was not, and counts.
    """
    complete = [trial for trial in trials if trial.state == "complete" and trial.score is not None]
    best = max((trial for trial in complete if not trial.repeats), key=lambda trial: trial.score or 0.0)
    reference = [trial.score for trial in complete if trial.number == 0 and trial.score is not None]
    fresh = [
        trial.score for trial in complete if trial.number == best.number and trial.repeats and trial.score is not None
    ]
    groups = [reference] if best.number == 0 else [fresh, reference]
    noise, free = pooled(groups)
    gain = interval = None
    if best.number and fresh and reference:
        gain = statistics.mean(fresh) - statistics.mean(reference)
        interval = half_width(noise, free, len(fresh), len(reference))
    return Verdict(best.number, best.weights, [] if best.number == 0 else fresh, reference, noise, gain, interval)


def pareto(trials: Sequence[Trial]) -> list[Trial]:
    """The trials that no other one equals or exceeds on every dataset, and exceeds on one; an undefined score is 0."""
    rows = [[value or 0.0 for value in _headlines(trial).values()] for trial in trials]

    def dominated(row: list[float]) -> bool:
        return any(other != row and all(a >= b for a, b in zip(other, row, strict=True)) for other in rows)

    return [trial for trial, row in zip(trials, rows, strict=True) if not dominated(row)]


def _headlines(trial: Trial) -> dict[str, float | None]:
    found: dict[str, float | None] = trial.reports[-1]["datasets"]
    return found


def table(sweep: Sweep) -> str:
    """All trials as CSV: the recipe, how far it came, and its scores there; on the front across datasets or not."""
    complete = [trial for trial in sweep.firsts if trial.state == "complete"]
    front = {trial.name for trial in pareto(complete)}
    names = searched(sweep.config)
    datasets = list(_headlines(complete[0])) if complete else []
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(
        ["trial", "seed", "repeats", *names, "end", "step", "score", *datasets, "pareto", "seconds", "run", "reason"]
    )
    for trial in sweep.trials:
        found = _headlines(trial) if trial.reports else {}
        rows.writerow(
            [
                *(trial.number, trial.seed, int(trial.repeats), *(f"{trial.weights[name]:.6g}" for name in names)),
                *(trial.state, trial.step, _cell(trial.score), *(_cell(found.get(name)) for name in datasets)),
                *(int(trial.name in front), round(trial.seconds), trial.run_id, trial.reason),
            ]
        )
    return text.getvalue()


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.5f}"


def recipe(stored: Path, weights: dict[str, float], name: str) -> str:
    """The sweep's configuration with these weights, as a YAML that `train.py --config` takes."""
    values = {key: value for key, value in read_file(stored, (*KEYS, *SEARCH_KEYS)).items() if key in KEYS}
    return write(
        values | {"loss.semantic": 1.0} | {f"loss.{key}": v for key, v in weights.items()} | {"run.name": name}
    )


def log_report(sweep: Sweep, log: ExperimentLog) -> None:
    """Write the table, the best recipe, the verdict and the figures into the sweep's folder, and log them."""
    folder, found = sweep.folder, verdict(sweep.trials)
    texts = {
        "trials.csv": table(sweep),
        "best.yaml": recipe(folder / "sweep.yaml", found.weights, f"{sweep.config.run.name}_best"),
        "verdict.json": json.dumps({**asdict(found), "beats": found.beats, "text": str(found)}, indent=1) + "\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
        log.log_file(folder / name)
    names = searched(sweep.config)
    figures = {
        "parallel.png": draw_parallel(sweep.firsts, names),
        "sensitivity.png": draw_sensitivity(sweep.firsts, names, found),
        "pareto.png": draw_pareto(sweep.firsts),
    }
    for name, figure in figures.items():
        figure.savefig(folder / name)
        log.log_file(folder / name)
    for trial in sweep.firsts:
        log.log_metrics({"sweep/score": trial.score, "sweep/step": trial.step}, trial.number)
    best = max((trial.score or 0.0 for trial in sweep.firsts if trial.state == "complete"), default=None)
    log.log_metrics({"sweep/best": best, "sweep/gain": found.gain, "sweep/noise": found.noise}, len(sweep.firsts))


def _ended(trials: Sequence[Trial]) -> tuple[list[Trial], list[Trial]]:
    """Complete trials, the worst first, and stopped ones."""
    complete = [trial for trial in trials if trial.state == "complete"]
    stopped = [trial for trial in trials if trial.state == "stopped" and trial.reports]
    return sorted(complete, key=lambda trial: trial.score or 0.0), stopped


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=120, layout="constrained")


def draw_parallel(trials: Sequence[Trial], names: Sequence[str]) -> Figure:
    """One line per trial through its weights, the datasets' scores and their mean; coloured by the mean.

    Trials that were stopped early are thin and grey, and end before the scores: theirs are those of fewer steps.
    """
    from matplotlib import cm, colors

    complete, stopped = _ended(trials)
    datasets = list(_headlines(complete[-1]))
    axes = [*names, *datasets, "mean score"]
    weights = np.log10([[trial.weights[name] for name in names] for trial in (*stopped, *complete)])
    scores = np.array([[*(_headlines(t).get(name) or 0.0 for name in datasets), t.score or 0.0] for t in complete])
    low = np.array([*weights.min(axis=0), *[scores.min()] * scores.shape[1]])  # one scale for all scores
    high = np.array([*weights.max(axis=0), *[scores.max()] * scores.shape[1]])
    span = np.where(high > low, high - low, 1.0)
    scale = colors.Normalize(scores[:, -1].min(), max(scores[:, -1].max(), scores[:, -1].min() + 1e-6))
    figure = _figure(2.2 + 1.5 * len(axes), 4.2)
    axis = figure.subplots()
    for place, trial in enumerate((*stopped, *complete)):
        whole, first = place >= len(stopped), trial.number == 0
        row = np.array([*weights[place], *(scores[place - len(stopped)] if whole else ())])
        style = {"color": cm.viridis(scale(row[-1])), "linewidth": 1.8} if whole else {"color": GREY, "linewidth": 0.7}
        axis.plot((row - low[: len(row)]) / span[: len(row)], **style, marker="*" if first else "o",
                  markersize=11 if first else 3, zorder=1 + whole)  # fmt: skip
    for place in range(len(axes)):
        axis.axvline(place, color="0.85", linewidth=0.8, zorder=0)
        ends = [10 ** low[place], 10 ** high[place]] if place < len(names) else [low[place], high[place]]
        axis.text(place, -0.06, f"{ends[0]:.3g}", ha="center", va="top", fontsize="small")
        axis.text(place, 1.04, f"{ends[1]:.3g}", ha="center", va="bottom", fontsize="small")
    axis.set_xticks(range(len(axes)), [f"loss.{name}\n(log)" for name in names] + axes[len(names) :])
    axis.tick_params(axis="x", length=0, pad=22)
    axis.set(yticks=[], ylim=(-0.05, 1.05))
    axis.set_title("Trials: weights and scores. Star: the reference; grey: stopped early", pad=24)
    axis.spines[:].set_visible(False)
    figure.colorbar(cm.ScalarMappable(scale, "viridis"), ax=axis, label="mean score", pad=0.02)
    return figure


def draw_sensitivity(trials: Sequence[Trial], names: Sequence[str], found: Verdict) -> Figure:
    """Score over each weight: how flat the optimum is, told by the trials within the noise of the best.

    A trial 0 that was stopped early is shown at the mean of its other seeds.
    """
    from matplotlib.ticker import LogLocator

    complete, stopped = _ended(trials)
    best = complete[-1]
    top = best.score or 0.0
    first = [(trial.weights, trial.score) for trial in complete if trial.number == 0]
    if not first and found.reference_scores:  # stopped early, but its other seeds were not
        first = [(trials[0].weights, statistics.fmean(found.reference_scores))]
    near = [trial for trial in complete if found.noise is not None and (trial.score or 0.0) >= top - found.noise]
    figure = _figure(4.2 * len(names), 4.0)
    sides = np.atleast_1d(figure.subplots(1, len(names), sharey=True))
    for side, name in zip(sides, names, strict=True):
        if found.noise is not None:
            side.axhspan(top - found.noise, top, color="C0", alpha=0.12, linewidth=0, label="within noise of the best")
        for shown, style in (
            ([(trial.weights, trial.score) for trial in complete], {"s": 26, "color": "C0", "label": "complete"}),
            (first, RING | {"marker": "*", "s": 150, "edgecolors": "C1"}),
            ([(best.weights, best.score)],
             RING | {"marker": "D", "s": 70, "edgecolors": "C3", "label": f"best: trial {best.number}"}),
        ):  # fmt: skip
            side.scatter([weights[name] for weights, _ in shown], [score for _, score in shown], **style)
        # Their scores are those of fewer steps, so not on this scale.
        side.plot([trial.weights[name] for trial in stopped], [0.03] * len(stopped), "x", color=GREY, markersize=5,
                  transform=side.get_xaxis_transform(), label="stopped early")  # fmt: skip
        ends = [trial.weights[name] for trial in near]
        title = f"loss.{name}"
        if ends:
            title += f"\n{len(near)} of {len(complete)} within noise: {min(ends):.3g} to {max(ends):.3g}"
        side.set(xscale="log", xlabel=f"loss.{name}", title=title)
        side.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        side.xaxis.set_major_formatter("{x:g}")
        side.xaxis.set_minor_formatter("")
        side.title.set_fontsize("medium")
        side.margins(y=0.15)
        side.spines[["top", "right"]].set_visible(False)
        side.grid(alpha=0.25)
    sides[0].set_ylabel("mean score over datasets")
    figure.legend(*sides[0].get_legend_handles_labels(), ncols=5, **LEGEND)
    return figure


def draw_pareto(trials: Sequence[Trial]) -> Figure:
    """What one dataset gains at the cost of another: trials that no other one beats everywhere, and the rest.

    Pairs of datasets where there are few; else a line per trial over all datasets, as difference from trial 0.
    """
    complete, _ = _ended(trials)
    front = pareto(complete)
    datasets = list(_headlines(complete[-1]))
    pairs = list(combinations(datasets, 2))
    if not 1 <= len(pairs) <= PANELS:
        return _profiles(complete, front, datasets)
    columns = min(3, len(pairs))
    lines = math.ceil(len(pairs) / columns)
    figure = _figure(1.0 + 4.2 * columns, 0.7 + 3.8 * lines)
    sides = np.atleast_1d(figure.subplots(lines, columns)).ravel()
    for side, (x, y) in zip(sides, pairs, strict=False):
        _panel(side, complete, front, x, y)
    for side in sides[len(pairs) :]:
        side.set_visible(False)
    figure.suptitle(f"{len(front)} of {len(complete)} complete trials are on the front across all datasets")
    figure.legend(*sides[0].get_legend_handles_labels(), ncols=3, **LEGEND)
    return figure


def _panel(side: Axes, complete: Sequence[Trial], front: Sequence[Trial], x: str, y: str) -> None:
    names = {trial.name for trial in front}
    for chosen, color, label in (
        (False, GREY, "another is at least as good everywhere"),
        (True, "C0", "on the front (number: trial)"),
    ):
        shown = [trial for trial in complete if (trial.name in names) == chosen]
        points = [(_headlines(trial).get(x) or 0.0, _headlines(trial).get(y) or 0.0) for trial in shown]
        side.scatter([point[0] for point in points], [point[1] for point in points], s=30, color=color, label=label)
        for trial, point in zip(shown, points, strict=True):
            if chosen:
                side.annotate(str(trial.number), point, (4, 4), textcoords="offset points", fontsize="small")
    first = next((trial for trial in complete if trial.number == 0), None)
    if first:
        point = _headlines(first).get(x) or 0.0, _headlines(first).get(y) or 0.0
        side.scatter(point[0], point[1], marker="*", s=150, edgecolors="C1", **RING)
    side.set(xlabel=x, ylabel=y)
    side.spines[["top", "right"]].set_visible(False)
    side.grid(alpha=0.25)


def _profiles(complete: Sequence[Trial], front: Sequence[Trial], datasets: Sequence[str]) -> Figure:
    base = next((trial for trial in complete if trial.number == 0), complete[-1])
    names = {trial.name for trial in front}
    figure = _figure(2.5 + 1.1 * len(datasets), 4.2)
    axis = figure.subplots()
    for place, trial in enumerate(sorted(complete, key=lambda trial: trial.name in names)):
        row = [(_headlines(trial).get(n) or 0.0) - (_headlines(base).get(n) or 0.0) for n in datasets]
        chosen = trial.name in names
        axis.plot(datasets, row, color=f"C{place % 10}" if chosen else "0.85", marker="o", markersize=4,
                  label=f"trial {trial.number}" if chosen else None, zorder=2 if chosen else 1)  # fmt: skip
    axis.set(
        ylabel=f"score minus that of trial {base.number}", title=f"{len(front)} of {len(complete)} trials on the front"
    )
    axis.tick_params(axis="x", rotation=30)
    axis.grid(alpha=0.25)
    axis.legend(fontsize="small", frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axis.spines[["top", "right"]].set_visible(False)
    return figure
