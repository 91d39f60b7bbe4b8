"""A search for the loss weights that are best for all datasets together: Ray Tune over Ray Train.

Every trial is a run of its own, in `<run.dir>/<sweep>/<trial>`: what stops it, resumes it and scores it is what does so
for any run. What the sweep knows is in `<run.dir>/<sweep>/trials.json`, the only thing that a restart believes.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import optuna
import ray
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import TrialState
from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from post_platform import cluster
from post_platform.atomic import replacing
from post_platform.config import RunConfig, flatten
from post_platform.config_text import write
from post_platform.data.leaks import refuse_shared_videos
from post_platform.errors import ConfigError, PostError
from post_platform.experiment_log import ExperimentLog
from post_platform.experiment_sweep import Children
from post_platform.search_config import (
    REFERENCE,
    SEARCHED,
    SearchConfig,
    dump_search,
    refuse_changes,
    searched,
)
from post_platform.search_trial import Sweep, Training, Trial, asha
from post_platform.training import launch
from post_platform.training.splits import scored_splits, splits_of

logger = logging.getLogger(__name__)

ACTOR_CPUS = 0.01  # of the process that drives a trial; Tune refuses 0
SETTINGS = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the sweep; the same command continues it
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # CSV, JSON and TensorBoard files beside what we log
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's new tables ignore verbose=0
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that fails ends without a score
}

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
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    _preflight(config)
    folder = Path(config.run.dir) / config.run.name
    with _alone(folder):
        stored = folder / "sweep.yaml"
        if stored.exists():
            refuse_changes(stored, config, settings)
        sweep = Sweep(folder, config, settings)
        pinned = {f"loss.{name}" for name in (*SEARCHED, "semantic", "weighting")}
        keys = {key: value for key, value in flatten(config).items() if key not in pinned}
        names = config.mlflow.uri, config.mlflow.experiment, config.run.name
        log = ExperimentLog.open(*names, sweep.run_id, default_dir=Path(config.run.dir), folder=folder)
        sweep.run_id = log.run_id
        stored.write_text(write(keys) + dump_search(settings))
        sweep.save()
        sweep.config = config = config.model_copy(update={"mlflow": config.mlflow.model_copy(update={"uri": log.uri})})
        status: Literal["FINISHED", "FAILED", "KILLED"] = "FAILED"
        children = Children(log)
        try:
            children.end_running()
            log.log_params({**keys, **{f"search.{name}": value for name, value in settings.model_dump().items()}})
            log.log_text(stored.read_text(), "sweep.yaml")
            logger.info("%s", cluster.connect())
            together, workers = room(config, settings.concurrent)
            sweep.config = config.model_copy(update={"train": config.train.model_copy(update={"workers": workers})})
            logger.info("trials at a time: %d, workers of each: %d", together, workers)
            _search(sweep, children, together, report)
            _repeat(sweep, children, together, report)
            log_report(sweep, log)
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise PostError(f"sweep {config.run.name!r} was stopped", "the same command continues it") from None
        finally:
            if ray.is_initialized() and status != "FINISHED":
                ray.shutdown()  # the trials' processes, so that their runs can be closed
            children.end_running()
            log.finish(status)
    return sweep, log.uri


def _preflight(config: RunConfig) -> None:
    """Refuse what every trial would refuse, before one is begun. Raises: PostError."""
    cluster.refuse_copies({"data.root": config.data.root, "run.dir": config.run.dir})
    train = splits_of(config.data.root, config.data.datasets, config.data.train_split)
    val = scored_splits(config, tuple(split.dataset for split in train))
    if not config.data.allow_shared_videos:
        refuse_shared_videos(train, val, "data.allow_shared_videos=true")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the sweep's lock. Raises: ConfigError: another process has it, or the folder cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "lock").open("w")
    except OSError as error:
        raise ConfigError(
            f"run.dir: cannot write {error.filename}: {error.strerror}", "choose another: run.dir=<folder>"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"the sweep in {folder} is run by another process now",
                "wait for it, or give this one another name: run.name=<new name>",
            ) from error
        yield


def room(config: RunConfig, wanted: int | None) -> tuple[int, int]:
    """How many trials run at a time, and the workers of each: all of them fit into Ray beside each other.

    A trial is a process, and inside it a training that reserves its workers all at once. Of two trials that do not both
    fit, each might hold a part of what the other waits for. One CPU of each node is left for data tasks and for the
    trials' processes, and one per trial (two where the cluster decodes) in all.

    Raises: ConfigError: `wanted` is more.
    """
    workers, gpus = launch._workers(config)
    cpus = cluster.worker_cpus()
    data = 2 if config.data.decode_on == "cluster" else 1
    places = 0
    for node in ray.nodes():
        if node["Alive"]:
            slots = int((node["Resources"].get("CPU", 0) - 1) / cpus)
            places += max(0, min(slots, int(node["Resources"].get("GPU", 0))) if gpus else slots)
    total = ray.cluster_resources()["CPU"]
    fit = max(1, min(places // workers, int(total / (workers * cpus + data + ACTOR_CPUS))))
    if wanted and wanted > fit:
        raise ConfigError(
            f"search.concurrent: Ray has room for {fit} trial{'s' * (fit > 1)} of {workers} workers, got {wanted}",
            "fewer workers make room for more trials: train.workers=1" if workers > 1 else f"search.concurrent={fit}",
        )
    return wanted or fit, workers


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
    """Hand trials to Ray Tune. Raises: PostError: trial 0 failed; or what went wrong in a trial that is a bug."""
    samples = len(searcher.waiting) + searcher.more
    if not samples:
        return
    tuner = tune.Tuner(
        tune.with_resources(Training, {"CPU": ACTOR_CPUS}),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=scheduler,
            num_samples=samples,
            max_concurrent_trials=together,
            trial_dirname_creator=lambda trial: str(trial.trial_id),  # Tune's own holds all of the configuration
        ),
        run_config=tune.RunConfig(
            name=time.strftime("%Y%m%d-%H%M%S"),  # Tune's own restart is not used: `trials.json` is the authority
            storage_path=str(sweep.folder / "ray"),
            verbose=0,
            failure_config=tune.FailureConfig(fail_fast=True),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # runs have their own
        ),
    )
    # It would warn that Tune's own files of results are missing, which nobody asked for.
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)
    results = tuner.fit()
    if results.errors:
        raise results.errors[0]
    first = sweep.trials[0]
    if first.state == "failed":
        raise PostError(f"trial 0, the reference's recipe, failed: {first.reason}")


class Search(Searcher):
    """Hands out the trials that wait (a killed sweep's unfinished ones, repetitions), then what Optuna suggests.

    Optuna knows of every earlier trial: complete ones with their score, stopped ones with the scores they had.
    """

    def __init__(self, sweep: Sweep, children: Children, report: Report, waiting: list[Trial], more: int) -> None:
        super().__init__(metric="score", mode="max")
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
            return Searcher.FINISHED  # type: ignore[return-value]  # as Ray documents
        if not trial.run_id:
            self._begin(trial)
        self.live[trial_id] = trial, asked, time.monotonic() - trial.seconds
        address = os.environ.get("RAY_ADDRESS", "")  # which Ray's own processes are not told
        return {"run": self.sweep.run_of(trial), "reports": list(trial.reports), "address": address}

    def _begin(self, trial: Trial) -> None:
        """Begin the trial's MLflow run; `run.json` makes its training continue that one."""
        sweep = self.sweep
        tags = {"sweep": sweep.config.run.name, "sweep.trial": trial.number, "sweep.repeats": trial.repeats}
        trial.run_id = self.children.begin(f"{sweep.config.run.name}/{trial.name}", tags)
        content = {"mlflow_uri": self.children.parent.uri, "mlflow_run_id": trial.run_id}
        with replacing(sweep.folder / trial.name / "run.json") as file:
            file.write(json.dumps(content).encode())
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
        self.sweep.save()
        for item in trial.reports:
            asked.report(item["score"], item["step"])
        ends = {"complete": TrialState.COMPLETE, "stopped": TrialState.PRUNED}
        value = trial.score if trial.state == "complete" else None
        self.study.tell(asked, value, state=ends.get(trial.state, TrialState.FAIL))
        self.children.tag(trial.run_id, "sweep.end", f"{trial.state} at step {trial.step}")
        self.report(trial)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: `trials.json` has it."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, as in `save`."""

    def __getstate__(self) -> dict[str, Any]:
        """Nothing either, for the files from which Tune could restart a sweep."""
        return {}


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
