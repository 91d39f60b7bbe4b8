"""A search for the loss weights that are best for all datasets together: Ray Tune over Ray Train.

Every trial is a run of its own, in `<run.dir>/<sweep>/<trial>`: what stops it, resumes it and scores it is what does so
for any run. What the sweep knows is in `<run.dir>/<sweep>/trials.json`, the only thing that a restart believes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import TrialState
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from post_platform import cluster
from post_platform.config import RunConfig
from post_platform.errors import PostError
from post_platform.experiment_sweep import Children
from post_platform.search_config import REFERENCE, SearchConfig, refuse_changes, searched, store, with_weights
from post_platform.search_trial import Sweep, Trial, asha
from post_platform.trials import Supply, alone, begin, check, parent, run_trials

Report = Callable[[Trial], None]


def search(config: RunConfig, settings: SearchConfig, report: Report = lambda trial: None) -> tuple[Sweep, str]:
    """Try recipes until `settings.trials` are done, then repeat the best and trial 0; what is done already is kept.

    Args:
        config: the configuration of every trial; `run.name` is the sweep's.
        settings: the search.
        report: called with a trial when it has new scores, and when it has ended.

    Returns: the sweep, with its MLflow run closed, and the address of its store.
    """
    from post_platform.search_report import log_report

    cluster.stop_politely()
    check(with_weights(config, {name: REFERENCE[name] for name in searched(config)}))
    folder = Path(config.run.dir) / config.run.name
    with alone(folder, "sweep"):
        stored = folder / "sweep.yaml"
        if stored.exists():
            refuse_changes(stored, config, settings)
        sweep = Sweep(folder, config, settings)
        keep = partial(store, stored, config, settings)
        with parent(sweep, stored, keep, settings.concurrent, "search.concurrent") as (children, together):
            _search(sweep, children, together, report)
            _repeat(sweep, children, together, report)
            log_report(sweep, children.parent)
    return sweep, children.parent.uri


def _search(sweep: Sweep, children: Children, together: int, report: Report) -> None:
    """Bring the sweep to its number of trials, all of them ended."""
    waiting = [trial for trial in sweep.firsts if trial.state == "running"]
    missing = sweep.search.trials - len(sweep.firsts)
    searcher = Search(sweep, children, report, waiting, max(0, missing))
    _run(sweep, searcher, asha(sweep), together)


def _repeat(sweep: Sweep, children: Children, together: int, report: Report) -> None:
    """Train the best recipe and trial 0 with further seeds."""
    done = {trial.name for trial in sweep.trials}
    for first in {trial.number: trial for trial in (sweep.best(), sweep.firsts[0])}.values():
        for seed in range(first.seed + 1, first.seed + 1 + sweep.search.repeats):
            trial = Trial(first.number, first.weights, seed, repeats=True)
            if trial.name not in done:
                sweep.add(trial)
    waiting = [trial for trial in sweep.trials if trial.repeats and trial.state == "running"]
    _run(sweep, Search(sweep, children, report, waiting, 0), FIFOScheduler(), together)


def _run(sweep: Sweep, searcher: Search, scheduler: TrialScheduler, together: int) -> None:
    """Let Ray Tune run the searcher's trials. Raises: PostError: trial 0 failed; or as `run_trials`."""
    run_trials(sweep.folder, searcher, scheduler, len(searcher.waiting) + searcher.more, together)
    first = sweep.trials[0]
    if first.state == "failed":
        raise PostError(f"trial 0, the reference's recipe, failed: {first.reason}")


class Search(Supply):
    """Hands out the trials that wait (a killed sweep's unfinished ones, repetitions), then what Optuna suggests.

    Optuna knows of every earlier trial: complete ones with their score, stopped ones with the scores they had.
    """

    def __init__(self, sweep: Sweep, children: Children, report: Report, waiting: list[Trial], more: int) -> None:
        super().__init__()
        self.sweep, self.children, self.report = sweep, children, report
        self.waiting, self.more = waiting, more
        self.live: dict[str, tuple[Trial, optuna.Trial, float]] = {}
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.study = study(sweep)
        self.space = space(sweep)

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The next trial's run, noted on disk and begun in MLflow."""
        if self.waiting:
            trial = self.waiting.pop(0)
            self.study.enqueue_trial(trial.weights)
            asked = self.study.ask(self.space)
        elif self.more:
            self.more -= 1
            number = len(self.sweep.firsts)
            if not number:
                self.study.enqueue_trial({name: REFERENCE[name] for name in self.space})
            asked = self.study.ask(self.space)
            trial = self.sweep.add(Trial(number, asked.params, self.sweep.config.seed))
        else:
            return Supply.FINISHED  # type: ignore[return-value]  # as Ray documents
        if not trial.run_id:
            self._begin(trial)
        self.live[trial_id] = trial, asked, time.monotonic() - trial.seconds
        return self.handed(self.sweep.run_of(trial), list(trial.reports))

    def _begin(self, trial: Trial) -> None:
        """Begin the trial's MLflow run."""
        sweep = self.sweep
        tags = {"sweep": sweep.config.run.name, "sweep.trial": trial.number, "sweep.repeats": trial.repeats}
        trial.run_id = begin(self.children, sweep.folder / trial.name, f"{sweep.config.run.name}/{trial.name}", tags)
        sweep.save()

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Note a validation."""
        if self._note(trial_id, result):
            self.sweep.save()
            self.report(self.live[trial_id][0])

    def _note(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Add a result's scores; False where it has none, or repeats to the scheduler what a killed sweep has seen."""
        trial, _, began = self.live[trial_id]
        trial.seconds = time.monotonic() - began
        if "score" not in result or result["step"] <= trial.step:
            return False
        datasets = {name.removeprefix("datasets/"): v for name, v in result.items() if name.startswith("datasets/")}
        trial.reports.append({"step": result["step"], "score": result["score"], "datasets": datasets})
        return True

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Note the end, and tell Optuna; a trial whose process broke stays unfinished."""
        if error or not result:
            return
        self._note(trial_id, result)
        trial, asked, _ = self.live.pop(trial_id)
        trial.state = "complete" if trial.step >= self.sweep.config.train.steps else "stopped"
        if "reason" in result:
            trial.state, trial.reason = "failed", result["reason"]
            if not trial.number:  # nothing to compare with, and others fail as well, most likely
                self.waiting, self.more = [], 0
        self.children.tag(trial.run_id, "sweep.end", f"{trial.state} at step {trial.step}")
        self.sweep.save()  # last: a trial that is noted as ended is not looked at again
        for item in trial.reports:
            asked.report(item["score"], item["step"])
        ends = {"complete": TrialState.COMPLETE, "stopped": TrialState.PRUNED}
        value = trial.score if trial.state == "complete" else None
        self.study.tell(asked, value, state=ends.get(trial.state, TrialState.FAIL))
        self.report(trial)


def space(sweep: Sweep) -> dict[str, BaseDistribution]:
    """What is searched: one log-uniform ratio per branch that the model has."""
    found: dict[str, BaseDistribution] = {}
    for name in searched(sweep.config):
        low, high = getattr(sweep.search, name)
        found[name] = FloatDistribution(low, high, log=True)
    return found


def study(sweep: Sweep) -> optuna.Study:
    """An Optuna study that knows every trial that has ended; repetitions are not its business."""
    settings = sweep.search
    # Another seed for what a restart draws: the same one would draw again what was drawn at the beginning.
    sampler = optuna.samplers.TPESampler(
        seed=sweep.config.seed + 1_000_003 * len(sweep.firsts), n_startup_trials=settings.random, multivariate=True
    )
    found = optuna.create_study(direction="maximize", sampler=sampler)
    for trial in sweep.firsts:
        if trial.state in ("complete", "stopped") and trial.reports:
            complete = trial.state == "complete"
            found.add_trial(
                optuna.trial.create_trial(
                    state=TrialState.COMPLETE if complete else TrialState.PRUNED,
                    value=trial.score,
                    params=trial.weights,
                    distributions=space(sweep),
                    intermediate_values={item["step"]: item["score"] for item in trial.reports},
                )
            )
    return found
