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
from post_model.network import Post, Predictions, losses
from post_model.weights import load_model
from post_platform.data.load import ClipLoader, Samples
from post_platform.data.stream import local_batch, local_batches
from post_platform.training import checkpoint
from post_platform.training.evaluate import evaluate_share, mean_score, scores_of, sequences, share_of
from post_platform.training.job import Job
from post_platform.training.journal import Journal
from post_platform.training.ledger import Seen, seen
from post_platform.training.vocabulary import label_tables

logger = logging.getLogger(__name__)


def train_worker(settings: dict[str, Any]) -> None:
    """Run this rank from the committed step to the last; Ray Train calls it on every worker.

    Args:
        settings: "job": the Job; "loader": a reference to its ClipLoader.
    """
    context = ray.train.get_context()
    write_log(settings["job"].logs / f"rank_{context.get_world_rank()}.log")
    if ray.train.torch.get_device().type == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // context.get_local_world_size()))
    device = ray.train.torch.get_device()
    worker = Worker(
        settings["job"], ray.get(settings["loader"]), context.get_world_rank(), context.get_world_size(), device
    )
    worker.run(ray.train.get_dataset_shard("train"))


def write_log(file: Path) -> None:
    """Append this process's own log lines to `file`, where the driver shows them as they come."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(file)
    handler.setFormatter(logging.Formatter("%(message)s"))
    own = logging.getLogger("post_platform")
    own.setLevel(logging.INFO)
    own.addHandler(handler)


class Worker:
    """The state of one rank between steps."""

    def __init__(self, job: Job, loader: ClipLoader, rank: int, world_size: int, device: torch.device) -> None:
        """Build the network, and continue from the newest whole checkpoint where there is one."""
        self.job, self.rank, self.world_size, self.device = job, rank, world_size, device
        self.config, self.loader = job.config, loader
        self.tables = label_tables(job.train, job.class_names).to(device)
        loss = self.config.loss
        self.loss_settings = {
            "hard_fraction": loss.hard_fraction, "sigma": loss.center_sigma,
            "small_area": loss.small_area, "small_weight": loss.small_weight,
        }  # fmt: skip
        self.messages: Any = dist.new_group(backend="gloo")  # Python objects, on GPU runs too
        newest = checkpoint.latest(job.checkpoints)
        if newest:
            checkpoint.verify(newest)
            model, _ = load_model(newest)
            self.step = checkpoint.read_state(newest)["step"]
        else:
            model, self.step = job.new_model(self._norm()), 0
        gpu = device.type == "cuda"
        layout = torch.channels_last if gpu else torch.contiguous_format
        self.model: Post = model.to(device).to(memory_format=layout)  # type: ignore[call-overload]
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=self.config.optim.lr, weight_decay=self.config.optim.weight_decay, fused=True
        )
        if newest:
            self.optimizer.load_state_dict(torch.load(newest / "optimizer.pt", map_location=device, weights_only=True))
        network = torch.compile(self.model) if self.config.train.compile else self.model
        self.network = DistributedDataParallel(
            network,
            device_ids=[device] if gpu else None,
            broadcast_buffers=self.model.arguments["norm"] == "batch",  # others have the same buffers everywhere
            gradient_as_bucket_view=True,
            static_graph=True,  # every step uses every branch
        )
        self.journal = Journal(job, newest) if rank == 0 else None
        self.seen: list[tuple[int, Seen]] = []
        self.bad = 0  # samples that were replaced since the last commit

    def _norm(self) -> Norm:
        gpu = self.device.type == "cuda"
        rows = local_batch(self.config.train.global_batch, self.world_size)
        return self.job.norm(gpu, rows)

    def run(self, shard: ray.data.DataIterator) -> None:
        """Train to the last step, validating and committing on the way."""
        config = self.config
        steps = range(self.step, config.train.steps)
        batches = local_batches(shard, self.loader, steps, self.rank, self.world_size)
        self.network.train()
        clock = Clock()
        while self.step < config.train.steps:
            with clock.waiting():
                samples = next(batches)
            with clock.working():
                values = self._train_step(samples)
            self.step += 1
            last = self.step == config.train.steps
            if self.step % config.train.log_every == 0 or last:
                self._log_step(values, clock)
                clock = Clock()
            validates = last or (config.eval.every and self.step % config.eval.every == 0)
            if validates:
                self._validate()
            if validates or self.step % config.train.checkpoint_every == 0:
                self._commit()
            if validates and self.journal:
                self.journal.mixture(self.loader.plan)
        if self.journal:
            self.journal.close()

    def _train_step(self, samples: Samples) -> dict[str, Tensor]:
        """One optimiser step on this rank's rows; returns each branch's mean loss over all ranks."""
        config = self.config
        self._require_this_step(samples)
        torch.manual_seed((config.seed * 1_000_003 + self.step) * 4096 + self.rank)
        batch = to_batch(samples, self.device)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config.optim, self.step, config.train.steps)
        with self._autocast():
            predictions: Predictions = self.network(batch.image, batch.prev_image)
        found = losses(predictions, batch, self.tables, **self.loss_settings)
        loss, values = global_loss(found, {name: getattr(config.loss, name) for name in found})
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if config.optim.clip:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.optim.clip)
        self.optimizer.step()
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

    def _log_step(self, values: dict[str, Tensor], clock: Clock) -> None:
        if not self.journal:
            return
        metrics = {f"train/loss/{name}": float(value) for name, value in values.items()}
        if any(value != value for value in metrics.values()):
            logger.warning("step %d: a loss is not a number: %s", self.step, metrics)
        metrics["train/lr"] = self.optimizer.param_groups[0]["lr"]
        metrics["time/frames_per_s"] = self.config.train.global_batch * clock.steps / clock.seconds
        metrics["time/data_wait"] = clock.waited / clock.seconds
        self.journal.step(self.step, metrics)

    def _validate(self) -> None:
        """Whole validation sequences, spread over the ranks; rank 0 scores the merged tables."""
        config, started = self.config.eval, time.perf_counter()
        everything = sequences(self.job.val, config.max_frames)
        work = share_of(everything, self.rank, self.world_size)
        if self.journal:
            logger.info("step %d: validating on %d sequences", self.step, len(everything))
        tables, pictures = evaluate_share(
            self.model, self.job.class_names, work, config.tracking, pictures=1 if config.overlays else 0
        )
        found: list[Any] = [None] * self.world_size
        dist.gather_object((tables, pictures), found if self.rank == 0 else None, group=self.messages)
        if self.journal:
            scores = scores_of([table for part in found for table in part[0]])
            self.journal.validation(self.step, scores, mean_score(scores), time.perf_counter() - started)
            self.journal.pictures(self.step, [picture for part in found for picture in part[1]], config.overlays)

    def _commit(self) -> None:
        """Make everything up to this step permanent: ledger, checkpoint, then the metrics in MLflow."""
        found: list[Any] = [None] * self.world_size
        dist.gather_object((self.seen, self.bad), found if self.rank == 0 else None, group=self.messages)
        self.seen, self.bad = [], 0
        if self.journal:
            entered = [item for part, _ in found for item in part]
            self.journal.commit(self.step, entered, sum(bad for _, bad in found), self.model, self.optimizer)
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


def global_loss(
    found: Mapping[str, tuple[Tensor, Tensor]], weights: Mapping[str, float]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return what this rank minimises, and each branch's mean loss over all ranks, with their weighted "total".

    DDP averages gradients over ranks; dividing by the global count and multiplying by the ranks makes a batch's
    gradient independent of how its rows are spread.

    Args:
        found: (total, count) of each branch on this rank, of `post_model.network.losses`.
        weights: `loss.<branch>`.
    """
    totals = torch.stack([total for total, _ in found.values()])
    counts = torch.stack([count.detach().to(totals.dtype) for _, count in found.values()])
    factors = totals.new_tensor([weights[name] for name in found])
    sums = torch.stack([totals.detach(), counts])
    dist.all_reduce(sums)
    loss = (factors * totals / sums[1].clamp(min=1)).sum() * dist.get_world_size()
    means = sums[0] / sums[1].clamp(min=1)
    return loss, {**dict(zip(found, means, strict=True)), "total": (factors * means).sum()}


def to_batch(samples: Samples, device: torch.device) -> Batch:
    """A loaded batch on the training device, where its targets are made."""
    names = ("image", "prev_image", "classes", "instances", "prev_classes", "prev_instances", "dataset", "weight")
    tensors = [torch.from_numpy(getattr(samples, name)) for name in names]
    if device.type == "cuda":
        tensors = [tensor.pin_memory() for tensor in tensors]
    return Batch(*tensors).to(device, non_blocking=True)


def learning_rate(optim: Any, step: int, steps: int) -> float:
    """Linear warm-up, then poly decay (power 0.9) or a constant. Source: Panoptic-DeepLab."""
    warm = min(1.0, (step + 1) / optim.warmup_steps) if optim.warmup_steps else 1.0
    decay = (1 - step / steps) ** 0.9 if optim.schedule == "poly" else 1.0
    return float(optim.lr * warm * decay)
