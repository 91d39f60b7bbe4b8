"""From a configuration to a finished run: preflight, the MLflow run, Ray Train, and resumption when run again."""

from __future__ import annotations

import json
import logging
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from post_model.weights import save_model
from post_platform import cluster, storage
from post_platform.atomic import held, replacing
from post_platform.config import RunConfig, dump_config, flatten
from post_platform.config_values import WorkerRange
from post_platform.data.leaks import refuse_shared_videos
from post_platform.data.load import ClipLoader
from post_platform.errors import ConfigError, PostError
from post_platform.experiment_log import ExperimentLog
from post_platform.shards.index import Split
from post_platform.training.doctor import refuse_before_training
from post_platform.training.job import Job, plan_of, store_of
from post_platform.training.journal import restore
from post_platform.training.lease import leased
from post_platform.training.run_files import ATTEMPT, CONFIG, LOCK, PROGRESS, RUN, address_of, folder_of
from post_platform.training.same_run import facts_of, refuse_changes, refuse_other_data
from post_platform.training.splits import scored_splits, splits_of
from post_platform.training.stopping import stoppable
from post_platform.training.vocabulary import class_names, projections, thing_flags
from post_platform.training.workers import workers_of

logger = logging.getLogger(__name__)

Report = Callable[[dict], None]


@dataclass(frozen=True)
class Outcome:
    """What a run ended with: its newest checkpoint, the scores of its last validation, and its MLflow run."""

    folder: storage.Location
    checkpoint: storage.Location
    scores: dict
    mlflow_uri: str
    mlflow_run_id: str


def preflight(config: RunConfig) -> tuple[tuple[Split, ...], tuple[Split, ...]]:
    """The splits that a run is trained and scored on, once nothing is wrong with them; nothing is begun.

    Raises:
        ConfigError: a path is in a job's own copy of the code.
        DataError: shards are missing, or what is scored is also trained on.
    """
    database = config.mlflow.uri and config.mlflow.uri.removeprefix("sqlite:///")
    cluster.refuse_copies(
        {"data.root": config.data.root, "run.dir": config.run.dir, "mlflow.uri": database}
        | {"model.init_from": config.model.init_from}
    )
    train = splits_of(config.data.root, config.data.datasets, config.data.train_split)
    val = scored_splits(config, tuple(split.dataset for split in train))
    if not config.data.allow_shared_videos:
        refuse_shared_videos(train, val, "data.allow_shared_videos=true")
    return train, val


def prepare(config: RunConfig) -> Job:
    """Check everything that can be checked before Ray starts, and resolve the run.

    Raises:
        ConfigError: the run exists with another configuration or other shards, or its folder cannot be written.
        DataError: as `preflight`; or the newest checkpoint is damaged.
    """
    train, val = preflight(config)
    folder, address = folder_of(config), address_of(config)
    store = store_of(config, folder)
    newest = store.latest()
    if newest:
        if address:
            restore(folder, newest)
        refuse_changes(config, folder / CONFIG, store.address(newest.name))
    classes = class_names(train, config.model.classes)
    facts = facts_of(plan_of(config, train), train, classes, config.loss.unlabelled)
    if newest:
        refuse_other_data(config, facts, newest, store.address(newest.name))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / CONFIG) as file:
            file.write(dump_config(config).encode())
    except OSError as error:
        raise ConfigError(
            f"run.dir: cannot write {error.filename}: {error.strerror}", "choose another: run.dir=<folder>"
        ) from error
    if address:
        storage.upload_file(folder / CONFIG, storage.join(address, CONFIG))
    log = _open_log(config, folder)
    return Job(config, train, val, classes, thing_flags(train, classes), facts, folder, log.uri, log.run_id)


def train(config: RunConfig, report: Report = lambda progress: None, beside: int = 1) -> Outcome:
    """Train to `train.steps`, from the newest whole checkpoint where there is one; a finished run returns at once.

    Args:
        config: the resolved configuration.
        report: called now and then with the run's progress ({"step", "loss", "frames_per_s"}).
        beside: trainings that share a machine's CPUs, this one among them.
    """
    cluster.stop_politely()
    job = prepare(config)
    with _alone(job) as attempt:
        return _train(replace(job, attempt=attempt, beside=beside), report)


def _train(job: Job, report: Report) -> Outcome:
    config, log = job.config, job.open_log(owner=True)
    if job.is_finished():
        logger.info("run %s is already finished at step %d", config.run.name, job.committed_step())
        log.finish()
        return outcome(job)
    status: Literal["FINISHED", "FAILED", "KILLED"] = "FAILED"
    try:
        if config.model.init_from and not job.committed_step():
            # Refuse weights that do not fit here, not half a minute later on every rank.
            job.new_model(job.norm(False, config.train.global_batch))
        logger.info("%s", cluster.connect())
        if job.committed_step():
            logger.info("continuing run %s at step %d", config.run.name, job.committed_step())
        refuse_before_training(config, len(job.class_names), *workers_of(config), logger.warning)
        loader = job.loader()
        log.log_params({**flatten(config), "plan": loader.plan.digest})
        log.log_text(dump_config(config), "config.yaml")
        log.log_inputs({f"{s.dataset}/{s.split}": s.digest for s in job.train}, "train")
        log.log_inputs({f"{s.dataset}/{s.split}": s.digest for s in job.val}, "val")
        with _watching(job.logs, report), stoppable(job):
            _fit(job, loader)
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise PostError(
            f"run {config.run.name!r} was stopped", f"the same command continues from step {job.committed_step()}"
        ) from None
    finally:
        log.finish(status)
    return outcome(job)


@contextmanager
def _alone(job: Job) -> Iterator[str]:
    """Hold the run's lock, and name this attempt: two of the same run would write the same ledger and checkpoints.

    The lock goes when this process does; on S3, where there is none, it is a lease that this process renews. Workers
    that outlive it find another attempt's name before they commit.

    Raises:
        ConfigError: another process trains this run now.
    """
    attempt = uuid.uuid4().hex
    busy = ConfigError(
        f"run {job.config.run.name!r} is being trained by another process now ({job.shared})",
        "wait for it, or give this one another name: run.name=<new name>",
    )
    with ExitStack() as stack:
        stack.enter_context(held(job.folder / LOCK, busy))
        if address := address_of(job.config):
            stack.enter_context(leased(address, attempt, busy))
        storage.write_bytes(storage.join(job.shared, ATTEMPT), attempt.encode())
        yield attempt


def save_untrained(job: Job, folder: Path) -> Path:
    """Write the network as the run's first step finds it: the baseline that training is compared with."""
    from post_platform.data.stream import local_batch

    workers, gpus = workers_of(job.config)
    norm = job.norm(gpus, local_batch(job.config.train.global_batch, workers))
    save_model(folder, job.new_model(norm), job.class_names, job.thing_flags, projections(job.class_names))
    return folder


def outcome(job: Job) -> Outcome:
    """The run's newest checkpoint and last scores.

    Raises:
        PostError: the run was stopped before its first validation, and `train.steps` is now below where it stands.
    """
    store = job.store()
    name = store.newest()
    assert name is not None
    newest = store.address(name)
    scores = job.scores()
    if not scores:
        raise PostError(
            f"run {job.config.run.name!r} has trained {job.committed_step()} steps, not less than train.steps="
            f"{job.config.train.steps}, and was never validated",
            f"score it: python pipelines/evaluate.py --checkpoint {newest} --data {job.config.data.root}",
        )
    return Outcome(job.shared, newest, scores, job.mlflow_uri, job.mlflow_run_id)


def _open_log(config: RunConfig, folder: Path) -> ExperimentLog:
    """The run's MLflow run: the one that `run.json` names, else a new one."""
    file = storage.join(address_of(config) or folder, RUN)
    run_id = json.loads(storage.read_bytes(file))["mlflow_run_id"] if storage.exists(file) else None
    names = config.mlflow.experiment, config.run.name
    log = ExperimentLog.open(config.mlflow.uri, *names, run_id, default_dir=folder.parent)
    storage.write_bytes(file, json.dumps({"mlflow_uri": log.uri, "mlflow_run_id": log.run_id}).encode())
    return log


def _fit(job: Job, loader: ClipLoader) -> None:
    """Hand the job to Ray Train.

    Raises:
        PostError: the user's mistake that a worker met, as itself; or a worker was killed.
    """
    import ray
    from ray.data import Dataset
    from ray.train import FailureConfig, UserCallback
    from ray.train import RunConfig as RayRunConfig
    from ray.train.v2.api.config import ScalingConfig
    from ray.train.v2.api.exceptions import TrainingFailedError

    from post_platform.data.stream import data_config, stream
    from post_platform.training.elastic import ElasticTrainer
    from post_platform.training.loop import train_worker
    from post_platform.training.relay import beside_driver

    class _MistakesEndTheRun(UserCallback):
        """Another try meets the same mistake: only what is no PostError, a lost worker above all, is worth one."""

        def after_exception(self, run_context: object, worker_exceptions: dict[int, Exception]) -> None:
            for failure in worker_exceptions.values():
                for cause in _causes(failure):
                    if isinstance(cause, PostError):
                        raise cause

    workers, gpus = workers_of(job.config)
    wanted, slim = job.config.train.workers, job.without_frames()
    scaling = ScalingConfig(
        num_workers=(wanted.min, wanted.max) if isinstance(wanted, WorkerRange) else (workers, workers),
        use_gpu=gpus,
        resources_per_worker={"CPU": cluster.worker_cpus()} | ({"GPU": 1} if gpus else {}),
    )
    stored = ray.put(loader)  # with the plan, which may be large: one copy per node, for tasks and ranks

    def batches() -> Callable[[int], Dataset]:
        # Evaluated anew for each worker group: a restarted group continues where the last checkpoint ends.
        steps, decode_on = slim.config.train.steps, slim.config.data.decode_on
        return lambda workers: stream(stored, slim.committed_step(), steps, workers, decode_on)

    trainer = ElasticTrainer(
        slim,
        train_worker,
        train_loop_config={
            "job": slim,
            "loader": stored,
            "relay": beside_driver(job.logs) if address_of(job.config) else None,
        },
        scaling_config=scaling,
        datasets={"train": batches},
        dataset_config=data_config(slim.config.data.decode_on),
        run_config=RayRunConfig(
            # A reused name would make Ray Train resume by itself; our checkpoints are the only authority on that.
            name=f"{job.config.run.name}-{time.strftime('%Y%m%d-%H%M%S')}",
            # Only of its own notes, which nobody reads: so not on S3, where it would need its own access.
            storage_path=str(job.folder / "ray"),
            failure_config=FailureConfig(max_failures=job.config.train.max_failures),
            callbacks=[_MistakesEndTheRun()],  # type: ignore[list-item]
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise _explained(error, job) from error


def _explained(error: Exception, job: Job) -> Exception:
    """What to tell of the end of Ray's trainer: the user's mistake, or who was killed; else the error as it is."""
    from ray.exceptions import OutOfMemoryError, RayActorError
    from ray.train import ControllerError

    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, PostError):
            return cause
    if not any(isinstance(cause, RayActorError | OutOfMemoryError) for cause in causes):
        return error
    if isinstance(error, ControllerError):
        who, often = "Ray's own processes", ""
    else:
        who, often = "training workers", f", more than {job.config.train.max_failures} times"
    return PostError(
        f"{who} of run {job.config.run.name!r} were killed, or ran out of memory{often}",
        f"the same command continues from step {job.committed_step()}",
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error, the errors of the workers it collects, and what caused each."""
    yield error
    for failure in getattr(error, "worker_failures", {}).values():
        yield from _causes(failure)
    names = ("cause", "health_check_failure", "controller_failure", "__cause__")
    for inner in (getattr(error, name, None) for name in names):
        if isinstance(inner, BaseException):
            yield from _causes(inner)


@contextmanager
def _watching(folder: Path, report: Report) -> Iterator[None]:
    """While the block runs, pass rank 0's progress to `report` and every rank's new log lines to our own log."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    done = threading.Event()
    read: dict[Path, int] = {}

    def look() -> None:
        for file in sorted(folder.glob("*.log")):
            *lines, _ = file.read_text()[read.get(file, 0) :].split("\n")
            for line in lines:
                logger.info("%s: %s", file.stem.replace("_", " "), line)
            read[file] = read.get(file, 0) + sum(len(line) + 1 for line in lines)
        text = ""
        with suppress(OSError):
            text = (folder / PROGRESS).read_text()
        if text.endswith("}"):
            report(json.loads(text))

    def watch() -> None:
        while not done.wait(0.5):
            look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        look()
