"""Trainings beside each other, as children of one MLflow run: how many fit, and Ray Tune to run each in a process.

A search and a study say what is trained; each run is one of its own, in a folder of the parent's. What stops it,
resumes it and scores it is what does so for any run.
"""

from __future__ import annotations

import json
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, Protocol

import ray
from ray import tune
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from post_platform import cluster, storage
from post_platform.atomic import held
from post_platform.config import RunConfig
from post_platform.errors import ConfigError, PostError
from post_platform.experiment_log import ExperimentLog
from post_platform.experiment_sweep import Children
from post_platform.labels import load_contract
from post_platform.metrics.score import headline
from post_platform.shards.index import Split
from post_platform.training import launch
from post_platform.training.job import Job
from post_platform.training.optimise import Diverged
from post_platform.training.run_files import ATTEMPT, LOCK, RUN, SCORES, STOP, folder_of
from post_platform.training.vocabulary import class_names, thing_flags
from post_platform.training.workers import data_cpus, workers_of

logger = logging.getLogger(__name__)

ACTOR_CPUS = 0.01  # of the process that drives a trial; Tune refuses 0
LOOK_EVERY = 0.5  # seconds between two looks for new scores
PATIENCE = 60.0  # seconds that a killed parent's processes may need to go
SETTINGS = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends all; the same command continues
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # CSV, JSON and TensorBoard files beside what we log
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's new tables ignore verbose=0
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that fails ends without a score
}


def check(config: RunConfig) -> tuple[tuple[Split, ...], tuple[Split, ...]]:
    """The splits that a run is trained and scored on, once nothing is wrong with it that can be found beforehand.

    Raises: PostError, as the run itself would, half a minute later.
    """
    train, val = launch.preflight(config)
    if config.model.init_from:
        names = class_names(train, config.model.classes)
        job = Job(config, train, val, names, thing_flags(train, names), {}, folder_of(config), "", "")
        job.new_model(job.norm(False, config.train.global_batch), quiet=True)
    return train, val


@contextmanager
def alone(folder: Path, what: str) -> Iterator[None]:
    """Hold the folder's lock. Raises: ConfigError: another process has it, or the folder cannot be written."""
    busy = ConfigError(
        f"the {what} in {folder} is run by another process now",
        "wait for it, or give this one another name: run.name=<new name>",
    )
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(held(folder / LOCK, busy))
        except OSError as error:
            raise ConfigError(
                f"run.dir: cannot write {error.filename}: {error.strerror}", "choose another: run.dir=<folder>"
            ) from error
        yield


class Record(Protocol):
    """What a parent knows of its trainings, in its folder: the configuration of all of them, and its own MLflow run."""

    folder: Path
    config: RunConfig
    run_id: str | None

    def save(self) -> None:
        """Put it on disk."""


@contextmanager
def parent(
    record: Record, stored: Path, store: Callable[[], Mapping[str, object]], wanted: int | None, key: str
) -> Iterator[tuple[Children, int]]:
    """The parent's MLflow run, begun or continued, while the block runs; however that ends, no child stays RUNNING.

    Args:
        record: of the parent; its configuration gets the trainings' number of workers and their MLflow store.
        stored: the parent's configuration as a file, which goes to MLflow.
        store: writes it, and returns its keys; called once MLflow has answered.
        wanted: trainings at a time; None: as many as fit.
        key: the setting that says so.

    Returns: the children, and how many train at a time.

    Raises: PostError: it was stopped; or as `room`.
    """
    config, what = record.config, stored.stem
    names = config.mlflow.uri, config.mlflow.experiment, config.run.name
    log = ExperimentLog.open(*names, record.run_id, default_dir=Path(config.run.dir), folder=record.folder)
    status: Literal["FINISHED", "FAILED", "KILLED"] = "FAILED"
    children = Children(log)
    try:
        children.end_running()
        record.run_id = log.run_id
        record.save()
        log.log_params(store())
        log.log_file(stored)
        logger.info("%s", cluster.connect())
        together, workers = room(config, wanted, key)
        record.config = with_workers(config, workers, log.uri)
        logger.info("at a time: %d, workers of each: %d", together, workers)
        yield children, together
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise PostError(f"{what} {config.run.name!r} was stopped", "the same command continues it") from None
    finally:
        if ray.is_initialized() and status != "FINISHED":
            ray.shutdown()  # the trials' processes, so that their runs can be closed
        children.end_running()
        log.finish(status)


def begin(children: Children, folder: Path, name: str, tags: Mapping[str, object]) -> str:
    """Begin a trial's MLflow run, and return its id; `run.json` makes the training in `folder` continue that one."""
    run_id = children.begin(name, tags)
    content = json.dumps({"mlflow_uri": children.parent.uri, "mlflow_run_id": run_id})
    storage.write_bytes(folder / RUN, content.encode())
    return run_id


def room(config: RunConfig, wanted: int | None, key: str) -> tuple[int, int]:
    """How many trials run at a time, and the workers of each: all of them fit into Ray beside each other.

    A trial is a process, and inside it a training that reserves its workers all at once. Of two trials that do not both
    fit, each might hold a part of what the other waits for. One CPU of each node is left for data tasks and for the
    trials' processes, and one per trial (two where the cluster decodes) in all.

    Args:
        config: of each trial.
        wanted: so many at a time; None: as many as fit.
        key: the setting that says so.

    Raises: ConfigError: `wanted` is more.
    """
    workers, gpus = workers_of(config)
    cpus = cluster.worker_cpus()
    places = 0
    for node in ray.nodes():
        if node["Alive"]:
            slots = int((node["Resources"].get("CPU", 0) - 1) / cpus)
            places += max(0, min(slots, int(node["Resources"].get("GPU", 0))) if gpus else slots)
    total = ray.cluster_resources()["CPU"]
    fit = max(1, min(places // workers, int(total / (workers * cpus + data_cpus(config) + ACTOR_CPUS))))
    if wanted and wanted > fit:
        raise ConfigError(
            f"{key}: Ray has room for {fit} trial{'s' * (fit > 1)} of {workers} workers, got {wanted}",
            "fewer workers make room for more trials: train.workers=1" if workers > 1 else f"{key}={fit}",
        )
    return wanted or fit, workers


def with_workers(config: RunConfig, workers: int, uri: str) -> RunConfig:
    """The configuration of every trial: so many workers, and the parent's MLflow store."""
    train, mlflow = config.train, config.mlflow
    return config.model_copy(
        update={
            "train": train.model_copy(update={"workers": workers}),
            "mlflow": mlflow.model_copy(update={"uri": uri}),
        }
    )


class Supply(Searcher):
    """Hands trials to Ray Tune; what it knows is in files of its own, so Tune has nothing to save or restore."""

    def __init__(self) -> None:
        super().__init__(metric="score", mode="max")
        self.beside = 1  # trainings that share a machine's CPUs

    def handed(self, run: RunConfig, reports: list[dict[str, Any]]) -> dict[str, Any]:
        """What `Training` is given: a run, and the validations that it has had already."""
        address = os.environ.get("RAY_ADDRESS", "")  # which Ray's own processes are not told
        return {"run": run, "reports": reports, "address": address, "beside": self.beside}

    def save(self, checkpoint_path: str) -> None:
        """Nothing."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, as in `save`."""

    def __getstate__(self) -> dict[str, Any]:
        """Nothing either, for the files from which Tune could restart."""
        return {}


def run_trials(folder: Path, supply: Supply, scheduler: TrialScheduler, count: int, together: int) -> None:
    """Let Ray Tune run `count` trials, `together` at a time.

    Raises: what went wrong in a trial, but for a loss that diverges: that is a result. No further trial is begun then.
    """
    if not count:
        return
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    supply.beside = -(-min(together, count) // sum(node["Alive"] for node in ray.nodes()))
    tuner = tune.Tuner(
        tune.with_resources(Training, {"CPU": ACTOR_CPUS}),
        tune_config=tune.TuneConfig(
            search_alg=supply,
            scheduler=scheduler,
            num_samples=count,
            max_concurrent_trials=together,
            trial_dirname_creator=lambda trial: str(trial.trial_id),  # Tune's own holds all of the configuration
        ),
        run_config=tune.RunConfig(
            name=time.strftime("%Y%m%d-%H%M%S"),  # Tune's own restart is not used: our files are the authority
            storage_path=str(folder / "ray"),
            verbose=0,
            failure_config=tune.FailureConfig(fail_fast=True),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # runs have their own
        ),
    )
    # It would warn that Tune's own files of results are missing, which nobody asked for.
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)
    for error in tuner.fit().errors:
        cause = getattr(error, "cause", None)  # of a Ray error, whose own text is a traceback
        raise cause if isinstance(cause, PostError) else error


def ask_to_stop(folder: Path) -> None:
    """Ask the run that trains in `folder` to write a checkpoint and end, as SIGTERM asks a run of its own."""
    (folder / STOP).write_text((folder / ATTEMPT).read_text())


class Training(tune.Trainable):
    """A trial's process: trains the run, and hands Tune each validation as it comes."""

    def setup(self, config: dict[str, Any]) -> None:
        """Begin, or continue, the trial's run."""
        if config["address"]:
            os.environ["RAY_ADDRESS"] = config["address"]
        self.run_config: RunConfig = config["run"]
        self.beside: int = config["beside"]
        self.folder = folder_of(self.run_config)
        self.earlier = [{**report, "done": False} for report in config["reports"]]
        self.seen = max((report["step"] for report in self.earlier), default=0)
        self.problem: BaseException | None = None
        self.before = self._attempt()
        self.thread = threading.Thread(target=self._train, daemon=True)
        self.thread.start()

    def step(self) -> dict[str, Any]:
        """The next validation; the last one once the run has ended."""
        while True:
            alive = self.thread.is_alive()
            if alive and self.earlier and self._attempt() != self.before:  # a verdict now reaches this attempt
                return self.earlier.pop(0)
            report = None if self.earlier and alive else self._report()
            if not alive:
                return self._end(report)
            if report and report["step"] < self.run_config.train.steps:
                self.seen = report["step"]
                return report
            time.sleep(LOOK_EVERY)

    def _train(self) -> None:
        try:
            wait_for_lock(self.folder)
            launch.train(self.run_config, beside=self.beside)
        except BaseException as error:
            self.problem = error

    def _end(self, report: dict[str, Any] | None) -> dict[str, Any]:
        """The last result, of a run that went to its end, that was stopped, or that failed by its own recipe.

        Raises: whatever else went wrong: a full disk or a lost node says nothing about a recipe.
        """
        if isinstance(self.problem, Diverged):
            return {"done": True, "reason": str(self.problem)}
        if self.problem:
            raise self.problem
        assert report, "a run that ends has been validated"
        return {**report, "done": True}

    def _report(self) -> dict[str, Any] | None:
        """The newest validation, if it is new or the run has ended."""
        try:
            found = json.loads((self.folder / SCORES).read_text())
        except (OSError, ValueError):  # none yet, or half written
            return None
        if found["step"] <= self.seen and self.thread.is_alive():
            return None
        scores = {name: headline(values, load_contract(name)) for name, values in found["datasets"].items()}
        mean = found["mean"]
        score = mean if mean is not None and math.isfinite(mean) else 0.0  # undefined: nothing is right
        return {"step": found["step"], "score": score, "datasets": scores, "done": False}

    def _attempt(self) -> str:
        file = self.folder / ATTEMPT
        return file.read_text() if file.exists() else ""


def wait_for_lock(folder: Path) -> None:
    """Wait while a killed parent's process for this trial is still there; what then still is there, `train` reports."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with suppress(PostError), held(folder / LOCK, PostError("it is still there")):
            return
        time.sleep(LOOK_EVERY)
