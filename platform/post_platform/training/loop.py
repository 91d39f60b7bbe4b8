"""One worker's part of a training run: resume, step, validate, commit."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from post_model.batch import Batch
from post_model.layers import Norm
from post_model.network import Post
from post_model.weights import load_model
from post_platform.data.load import ClipLoader, Samples
from post_platform.data.stream import local_batch, local_batches
from post_platform.training import checkpoint, timelines
from post_platform.training.evaluate import Left, evaluate_share, joined, mean_score, scores_of, sequences, share_of
from post_platform.training.job import Job
from post_platform.training.journal import Journal
from post_platform.training.ledger import Seen, seen
from post_platform.training.optimise import (
    Average,
    Diverged,
    Gradient,
    Health,
    LearnedWeights,
    clip,
    compiled,
    explained,
    learning_rate,
)
from post_platform.training.relay import RelayHandler
from post_platform.training.stopping import Request, Requests
from post_platform.training.vocabulary import label_tables

logger = logging.getLogger(__name__)


def train_worker(settings: dict[str, Any]) -> None:
    """Run this rank from the committed step to the last; Ray Train calls it on every worker.

    Args:
        settings: "job": the Job; "loader": a reference to its ClipLoader; "relay": to the driver, or None.
    """
    context = ray.train.get_context()
    job, relay = settings["job"].here(), settings["relay"]
    write_log(job.logs / f"rank_{context.get_world_rank()}.log", relay)
    if ray.train.torch.get_device().type == "cpu":
        # A thread that waits for another one spins: two trainings with all CPUs each would mostly do that.
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // (context.get_local_world_size() * job.beside)))
    device = ray.train.torch.get_device()
    worker = Worker(job, ray.get(settings["loader"]), context.get_world_rank(), context.get_world_size(), device, relay)
    worker.run(ray.train.get_dataset_shard("train"))


def write_log(file: Path, relay: Any = None) -> None:
    """Append this process's own log lines to `file`, where the driver shows them as they come.

    Args:
        file: in the run's logs.
        relay: to the driver, where it does not see this machine's files.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    handler = RelayHandler(relay, file.name) if relay else logging.FileHandler(file)
    handler.setFormatter(logging.Formatter("%(message)s"))
    own = logging.getLogger("post_platform")
    own.setLevel(logging.INFO)
    own.addHandler(handler)


class Worker:
    """The state of one rank between steps."""

    def __init__(
        self, job: Job, loader: ClipLoader, rank: int, world_size: int, device: torch.device, relay: Any = None
    ) -> None:
        """Build the network, and continue from the newest whole checkpoint where there is one."""
        self.job, self.rank, self.world_size, self.device = job, rank, world_size, device
        self.config, self.loader = job.config, loader
        self.messages: Any = dist.new_group(backend="gloo")  # Python objects, on GPU runs too
        self.store = job.store()
        newest = self._newest()
        if newest:
            model, _ = load_model(newest)
            state = checkpoint.read_state(newest)
            self.step = state["step"]
            self.owed = self._is_validated(self.step) and (state["scores"] or {}).get("step") != self.step
        else:
            model, self.step, self.owed = job.new_model(self._norm(), quiet=True), 0, False
        gpu = device.type == "cuda"
        layout = torch.channels_last if gpu else torch.contiguous_format
        self.model: Post = model.to(device).to(memory_format=layout)  # type: ignore[call-overload]
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=self.config.optim.lr, weight_decay=self.config.optim.weight_decay, fused=True
        )
        fixed = {name: getattr(self.config.loss, name) for name in self.config.model.branches}
        learned = self.config.loss.weighting == "learned"
        self.learned = LearnedWeights(fixed, self.optimizer, device) if learned else None
        if newest:
            self.optimizer.load_state_dict(torch.load(newest / "optimizer.pt", map_location=device, weights_only=True))
            if self.learned:
                self.learned.restore()
        ema = self.config.optim.ema
        self.average = Average(self.model, ema, newest / "ema.safetensors" if newest else None) if ema else None
        network = DistributedDataParallel(
            compiled(self.model) if self.config.train.compile else self.model,
            device_ids=[device] if gpu else None,
            broadcast_buffers=self.model.arguments["norm"] == "batch",  # others have the same buffers everywhere
            gradient_as_bucket_view=True,
            static_graph=self.config.train.accumulate == 1,  # every step uses every branch; torch forbids no_sync then
        )
        self.gradient = self._gradient(network, self.learned or fixed)
        self.health = Health()
        self.journal = Journal(job, self.store, newest, relay) if rank == 0 else None
        self.seen: list[tuple[int, Seen]] = []
        self.validations = 0
        self.bad = 0  # samples that were replaced since the last commit
        self.requests = Requests(job, rank, self.messages)

    def _newest(self) -> Path | None:
        """The checkpoint where all ranks continue, verified: rank 0 looks, once no older worker can commit another."""
        found: list[str | None] = [None]
        if self.rank == 0:
            self.store.claim()
            found = [self.store.newest()]
        dist.broadcast_object_list(found, group=self.messages)
        return self.store.path(found[0]) if found[0] else None

    def _norm(self) -> Norm:
        gpu = self.device.type == "cuda"
        rows = local_batch(self.config.train.global_batch, self.world_size)
        return self.job.norm(gpu, rows)

    def _gradient(self, network: DistributedDataParallel, weights: Mapping[str, float]) -> Gradient:
        loss = self.config.loss
        settings = {
            "hard_fraction": loss.hard_fraction, "sigma": loss.center_sigma,
            "small_area": loss.small_area, "small_weight": loss.small_weight,
        }  # fmt: skip
        tables = label_tables(self.job.train, self.job.class_names, loss.unlabelled).to(self.device)
        return Gradient(network, tables, settings, weights, self.config.train.accumulate, self._autocast)

    def run(self, shard: ray.data.DataIterator) -> None:
        """Train to the last step, validating and committing on the way; the last checkpoint is whole at the end."""
        try:
            self._run(shard)
        except BaseException:
            if self.journal:
                self.journal.settle()
            raise
        if self.journal:
            self.journal.close()

    def _run(self, shard: ray.data.DataIterator) -> None:
        config = self.config
        steps = range(self.step, config.train.steps)
        batches = local_batches(shard, self.loader, steps, self.rank, self.world_size)
        self.gradient.network.train()
        clock = Clock()
        if self.owed and self._validate_and_commit(committed=True) is Request.STOP:
            return
        while self.step < config.train.steps:
            with clock.waiting():
                samples = next(batches)
            self.requests.ask()
            with clock.working():
                values = self._train_step(samples)
            self.step += 1
            request = self.requests.answer()
            if self.step % config.train.log_every == 0 or self.step == config.train.steps:
                self._log_step(values, clock)
                clock = Clock()
            validates = self._is_validated(self.step)
            if validates:
                request = max(request, self._validate_and_commit())
            elif request or self.step % config.train.checkpoint_every == 0:
                self._commit()
            if request is Request.STOP:
                break

    def _train_step(self, samples: Samples) -> dict[str, Tensor]:
        """One optimiser step on this rank's rows; returns each branch's mean loss over all ranks, and "grad_norm"."""
        config = self.config
        self._require_this_step(samples)
        torch.manual_seed((config.seed * 1_000_003 + self.step) * 4096 + self.rank)
        batch = to_batch(samples, self.device)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config.optim, self.step, config.train.steps)
        self.optimizer.zero_grad(set_to_none=True)
        with explained(config.train.compile):
            values = self.gradient(batch)
        values["grad_norm"] = clip(self.model.parameters(), config.optim.clip)
        if self.learned:
            self.learned.learn(values)
        self.optimizer.step()
        if self.average:
            self.average.update(self.step + 1)
        self.health.note(self.step + 1, values)
        self.seen += [(self.step + 1, sample) for sample in seen(samples)]
        self.bad += len(samples.replaced)
        return values

    def _require_this_step(self, samples: Samples) -> None:
        """The stream and the checkpoint must agree on where the run is: a batch out of place would be lost or doubled.

        Raises: RuntimeError: they do not; a restart reads both anew.
        """
        rows = local_batch(self.config.train.global_batch, self.world_size)
        slots = np.minimum(self.rank * rows + np.arange(rows), self.config.train.global_batch - 1)
        expected = self.step * self.config.train.global_batch + slots
        if not np.array_equal(samples.position, expected):
            raise RuntimeError(
                f"step {self.step}, rank {self.rank} of {self.world_size}: the stream is at position "
                f"{samples.position[0]}, expected {expected[0]}"
            )

    def _autocast(self) -> AbstractContextManager[Any]:
        precision = self.config.train.precision
        wanted = precision == "bf16" or (precision == "auto" and self.device.type == "cuda")
        return torch.autocast(self.device.type, torch.bfloat16) if wanted else nullcontext()

    def _check(self) -> None:
        """Refuse to go on with weights that are of no use; all ranks come to the same end.

        Raises: Diverged naming the last good checkpoint: the newest whose weights the next step's loss has confirmed.
        """
        try:
            self.health.check(list(self.model.parameters()))
        except Diverged as error:
            rate, job = f"optim.lr={self.config.optim.lr / 10:g}", self.job
            if self.journal:
                self.journal.settle()
            dist.barrier(group=self.messages)
            good = [name for name in self.store.names() if checkpoint.step_of(name) < self.health.good]
            if not good:
                text = "; there is no good checkpoint"
                hint = f"begin again with a lower rate, under another name: {rate} run.name=<new name>"
            else:
                path = self.store.address(good[-1])
                text = f"; the last good checkpoint is {path} (step {checkpoint.step_of(good[-1])})"
                hint = f"continue from it with a lower rate: model.init_from={path} {rate} run.name=<new name>"
            raise Diverged(f"run {job.config.run.name!r} failed at {error}{text}", hint) from error

    def _log_step(self, values: dict[str, Tensor], clock: Clock) -> None:
        self._check()
        if not self.journal:
            return
        metrics = {f"train/loss/{name}": float(value) for name, value in values.items()}
        metrics["train/grad_norm"] = metrics.pop("train/loss/grad_norm")
        metrics["train/lr"] = self.optimizer.param_groups[0]["lr"]
        if self.learned:
            metrics |= {f"train/weight/{name}": weight for name, weight in self.learned.items()}
        metrics["time/frames_per_s"] = self.config.train.global_batch * clock.steps / clock.seconds
        metrics["time/data_wait"] = clock.waited / clock.seconds
        self.journal.step(self.step, metrics)

    def _is_validated(self, step: int) -> bool:
        config = self.config
        return step == config.train.steps or bool(config.eval.every and step % config.eval.every == 0)

    def _validate_and_commit(self, committed: bool = False) -> Request:
        """Validate, then commit, unless a request comes meanwhile: then commit, and validate again or, to stop, later.

        A checkpoint that was committed so has no score, and is not among those that may be the best.
        """
        while not self._validate(committed):
            if not committed:
                self._commit()
            committed = True
            self.requests.ask()
            if self.requests.answer() is Request.STOP:
                return Request.STOP
        if not committed:
            self._commit()
        if self.journal:
            self.journal.mixture(self.loader.plan)
        return Request.NOTHING

    def _validate(self, committed: bool) -> bool:
        """Whole validation sequences, spread over the ranks; rank 0 scores the merged tables.

        Returns: whether it was done; False on every rank where a request came first.
        """
        self._check()
        config, started = self.config.eval, time.perf_counter()
        everything = sequences(self.job.val, config.max_frames)
        work = share_of(everything, self.rank, self.world_size)
        if self.journal:
            logger.info("step %d: validating on %d sequences", self.step, len(everything))
        shown = (1, timelines.MOST) if config.overlays else (0, 0)
        self.validations += 1
        name, done = f"validation {self.validations}", torch.ones(1, dtype=torch.int64)
        with self.average.applied() if self.average else nullcontext():
            try:
                share = evaluate_share(
                    self.model, self.job.class_names, work, config.tracking, *shown, lambda: self.requests.waits(name)
                )
            except Left:
                done.zero_()
        dist.all_reduce(done, dist.ReduceOp.MIN, group=self.messages)
        if not done:
            return False
        found: list[Any] = [None] * self.world_size
        dist.gather_object(share, found if self.rank == 0 else None, group=self.messages)
        if self.journal:
            whole = joined(found)
            scores = scores_of(whole.tables)
            self.journal.validation(self.step, scores, mean_score(scores), time.perf_counter() - started, committed)
            self.journal.pictures(self.step, whole.pictures, config.overlays)
            self.journal.breakdown(self.step, whole.tables, whole.timelines)
        return True

    def _commit(self) -> None:
        """Begin to make everything up to this step permanent: ledger, checkpoint, then the metrics in MLflow.

        The ranks wait for the copy, and for the checkpoint before; not for the writing.
        """
        self._check()
        found: list[Any] = [None] * self.world_size
        dist.gather_object((self.seen, self.bad), found if self.rank == 0 else None, group=self.messages)
        self.seen, self.bad = [], 0
        if self.journal:
            entered = [item for part, _ in found for item in part]
            ema, bad = self.average.state() if self.average else None, sum(bad for _, bad in found)
            self.journal.commit(self.step, entered, bad, self.model, self.optimizer, ema)
        dist.barrier(group=self.messages)


class Clock:
    """Where the seconds of some steps went: waiting for data, or working."""

    def __init__(self) -> None:
        """Start at nothing."""
        self.steps, self.waited, self.seconds = 0, 0.0, 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the block as waiting for a step's data."""
        started = time.perf_counter()
        yield
        self.waited += time.perf_counter() - started
        self.seconds += time.perf_counter() - started

    @contextmanager
    def working(self) -> Iterator[None]:
        """Count the block as a step's work."""
        started = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - started
        self.steps += 1


def to_batch(samples: Samples, device: torch.device) -> Batch:
    """A loaded batch on the training device, where its targets are made."""
    names = ("image", "prev_image", "classes", "instances", "prev_classes", "prev_instances", "dataset", "weight")
    tensors = [torch.from_numpy(getattr(samples, name)) for name in names]
    if device.type == "cuda":
        tensors = [tensor.pin_memory() for tensor in tensors]
    return Batch(*tensors).to(device, non_blocking=True)
