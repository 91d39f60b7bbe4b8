"""What the platform costs a training step: the Ray Train loop against a bare torch DDP loop, in turns.

Both train the same network on the same batches, which lie in memory, with as many processes and threads. A step of the
platform is everything from one step's data to the next one's: the ledger, health, requests, logs, and Ray's own
processes on the same cores. What a commit costs is told beside it. The figure of a round is its median step.
"""

from __future__ import annotations  # a class that travels to a worker has no names of this file in its annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch.nn.parallel import DistributedDataParallel

ROOT = Path(__file__).resolve().parent.parent
sys.path[0:1] = [str(ROOT / "platform"), str(ROOT / "model")]

from post_model.network import losses
from post_platform import cluster, toycity
from post_platform.config import RunConfig, load_config
from post_platform.data.load import ClipLoader, Samples
from post_platform.data.stream import local_batch, local_rows
from post_platform.shards.write import convert
from post_platform.training import launch, loop
from post_platform.training.job import Job
from post_platform.training.optimise import clip, global_loss
from post_platform.training.vocabulary import label_tables
from post_platform.training.workers import workers_of

WARM_UP = 5  # steps of a round that do not count


def in_memory(loader: ClipLoader, steps: range, rank: int, world_size: int) -> Iterator[Samples]:
    """The rank's first batch again and again, with the positions of each step."""
    batch = loader.load(local_rows(loader.plan, range(1), rank, world_size))
    for step in steps:
        yield replace(batch, position=batch.position + step * loader.plan.global_batch)


def timed_worker(settings: dict) -> None:
    """A training worker whose data lie in memory; rank 0 leaves the moments of its steps and commits."""

    class Timed(loop.Worker):
        def _train_step(self, samples: Samples) -> dict:
            moments.append(time.perf_counter())
            return super()._train_step(samples)

        def _commit(self) -> None:
            began = time.perf_counter()
            super()._commit()
            commits.append(time.perf_counter() - began)

        def run(self, shard: object) -> None:
            super().run(shard)
            if self.rank == 0:
                periods = [b - a for a, b in zip(moments[WARM_UP:-1], moments[WARM_UP + 1 :], strict=True)]
                (self.job.folder / "steps.json").write_text(json.dumps({"steps": periods, "commits": commits}))

    moments: list[float] = []
    commits: list[float] = []
    loop.Worker = Timed  # type: ignore[misc]
    loop.local_batches = lambda shard, *arguments: in_memory(*arguments)  # type: ignore[assignment]
    loop.train_worker(settings)  # in a worker, where nothing has taken its place


def on_the_platform(config: RunConfig) -> dict:
    """One round through `train`, as `pipelines/train.py` calls it."""
    loop.train_worker = timed_worker
    folder = launch.train(config).folder
    return dict(json.loads((folder / "steps.json").read_text()))


def bare(rank: int, job: Job, folder: str, world_size: int) -> None:
    """One round of the loop that anybody would write; rank 0 leaves the seconds of its steps."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // world_size))
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    config = job.config
    model = job.new_model(job.norm(False, local_batch(config.train.global_batch, world_size)), quiet=True).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.optim.lr, fused=True)
    ddp = DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True, static_graph=True)
    tables = label_tables(job.train, job.class_names)
    shared = {"hard_fraction": config.loss.hard_fraction, "sigma": config.loss.center_sigma,
              "small_area": config.loss.small_area, "small_weight": config.loss.small_weight}  # fmt: skip
    weights = {name: getattr(config.loss, name) for name in config.model.branches}
    moments = []
    for samples in in_memory(job.loader(), range(config.train.steps), rank, world_size):
        moments.append(time.perf_counter())
        batch = loop.to_batch(samples, torch.device("cpu"))
        optimizer.zero_grad(set_to_none=True)
        loss, _ = global_loss(losses(ddp(batch.image, batch.prev_image), batch, tables, **shared), weights)
        loss.backward()
        clip(model.parameters(), config.optim.clip)
        optimizer.step()
    if rank == 0:
        periods = [b - a for a, b in zip(moments[WARM_UP:-1], moments[WARM_UP + 1 :], strict=True)]
        Path(folder, "steps.json").write_text(json.dumps({"steps": periods}))
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, epilog="example: python benchmarks/platform_cost.py")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40, help="of each round")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="on top of pipelines/configs/toycity.yaml")
    arguments = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory() as folder:
        print(cluster.connect())
        for name, source in toycity.write_all(Path(folder, "raw"), train_frames=8, val_frames=2, stills=8).items():
            convert(name, source, Path(folder, "shards"))
        fixed = [f"data.root={folder}/shards", f"run.dir={folder}/runs", f"train.steps={arguments.steps}"]
        rows, commits = [], []
        print("| round | bare, ms a step | platform, ms a step | ratio |\n| --- | --- | --- | --- |")
        for number in range(arguments.rounds):
            given = [*fixed, f"run.name=round{number}", *arguments.overrides]
            config = load_config(ROOT / "pipelines/configs/toycity.yaml", given)
            found = on_the_platform(config)
            with tempfile.TemporaryDirectory() as place:
                world_size = workers_of(config)[0]
                os.environ["OMP_NUM_THREADS"] = "1"  # as Ray sets it for its workers
                torch.multiprocessing.spawn(bare, (launch.prepare(config), place, world_size), world_size)
                alone = json.loads(Path(place, "steps.json").read_text())
            times = [1e3 * statistics.median(one["steps"]) for one in (alone, found)]
            rows.append(times)
            commits += found["commits"]
            print(f"| {number + 1} | {times[0]:.1f} | {times[1]:.1f} | {times[1] / times[0]:.3f} |", flush=True)
        ratio = statistics.median(platform / alone for alone, platform in rows)
        every = load_config().train.checkpoint_every
        commit, step = statistics.median(commits), statistics.median(row[1] for row in rows) / 1e3
        print(f"median ratio {ratio:.3f}; the ranks wait {1e3 * commit:.0f} ms for a commit, "
              f"{commit / (every * step):.2%} of the {every} steps between two")  # fmt: skip


if __name__ == "__main__":
    main()
