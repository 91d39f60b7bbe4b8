"""Plan rows through Ray Data into the Train workers: every rank gets its part of every batch, in order."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import pyarrow as pa
import ray
import ray.data
import ray.train
from ray.data import DataIterator, ExecutionOptions
from ray.data.collate_fn import ArrowBatchCollateFn

from post_platform.data.load import ClipLoader, Samples
from post_platform.data.plan import Plan

BATCHES_PER_BLOCK = 32  # one Ray task per batch does not scale; a block of rows is a few kilobytes


def local_batch(global_batch: int, world_size: int) -> int:
    """Rows that each rank gets per step; where the batch does not divide, the last ranks' rows are padding."""
    return math.ceil(global_batch / world_size)


def local_rows(plan: Plan, step: int, rank: int, world_size: int) -> pa.Table:
    """Rank `rank`'s rows of one step: consecutive positions of the global batch, padded by rows of weight 0."""
    size = local_batch(plan.global_batch, world_size)
    slots = rank * size + np.arange(size)
    real = slots < plan.global_batch
    rows = plan.rows(step * plan.global_batch + np.minimum(slots, plan.global_batch - 1))
    index = rows.schema.get_field_index("weight")
    return rows.set_column(index, "weight", pa.array(real.astype(np.float32)))


class _Blocks:
    """Turns a block's number into its rows: several consecutive local batches of one rank."""

    def __init__(self, plan: Plan, start: int, steps: int, world_size: int) -> None:
        self.plan, self.start, self.steps, self.world_size = plan, start, steps, world_size

    def __call__(self, block: pa.Table) -> pa.Table:
        group, rank = divmod(block["id"][0].as_py(), self.world_size)
        first = self.start + group * BATCHES_PER_BLOCK
        steps = range(first, min(first + BATCHES_PER_BLOCK, self.steps))
        return pa.concat_tables([local_rows(self.plan, step, rank, self.world_size) for step in steps])


def plan_rows(plan: Plan, start: int, steps: int, world_size: int) -> ray.data.Dataset:
    """Rows of steps [start, steps) as one block per rank in turn, which `streaming_split` deals in this order."""
    blocks = math.ceil((steps - start) / BATCHES_PER_BLOCK) * world_size
    numbers = ray.data.range(blocks, override_num_blocks=blocks)
    return numbers.map_batches(
        _Blocks(plan, start, steps, world_size), batch_size=None, batch_format="pyarrow", num_cpus=0.25
    )


def data_config() -> ray.train.DataConfig:
    """Ray Train's ingest: blocks dealt strictly in turn, which needs preserved order and no locality."""
    return ray.train.DataConfig(execution_options=ExecutionOptions(preserve_order=True), enable_shard_locality=False)


class _Collate(ArrowBatchCollateFn):
    """Reads and decodes a local batch in the trainer's own process, where its pixels are needed."""

    def __init__(self, loader: ClipLoader) -> None:
        self.loader = loader

    def __call__(self, batch: pa.Table) -> Any:
        return self.loader.load(batch)


def local_batches(shard: DataIterator, loader: ClipLoader, world_size: int) -> Iterator[Samples]:
    """This rank's batches, decoded two ahead of the step that uses them."""
    batches = shard.iter_torch_batches(
        batch_size=local_batch(loader.plan.global_batch, world_size), collate_fn=_Collate(loader), prefetch_batches=2
    )
    return cast(Iterator[Samples], iter(batches))
