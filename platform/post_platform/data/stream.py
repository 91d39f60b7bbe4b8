"""Plan rows through Ray Data into the Train workers: every rank gets its part of every batch, in order.

A block of the stream has one row, which Ray neither cuts nor merges, so blocks are dealt to the ranks strictly in turn.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator
from queue import Queue
from threading import Thread
from typing import Any, Literal, TypeVar

import numpy as np
import pyarrow as pa
import ray
import ray.data
import ray.train
from ray.data import DataIterator, ExecutionOptions, ExecutionResources, TaskPoolStrategy

from post_platform.data.load import PIXELS, ClipLoader, Samples, pixel_shape, too_many
from post_platform.data.plan import Plan
from post_platform.errors import DataError, StorageError

logger = logging.getLogger(__name__)
Item = TypeVar("Item")

BATCHES_PER_BLOCK = 32  # of plan rows: one Ray task per batch does not scale, and a block of rows is a few kilobytes
MOST_TASKS = 256  # that make plan rows; Ray prepares every task of a run before the first, a second per thousand
BATCHES_BEFORE = 4  # a rank plans itself while the stream starts
BATCHES_AHEAD = 2  # decoded before the step that uses them
PLAN_ROWS_BYTES = 128 << 20  # of the object store, for plan rows that nobody has asked for yet


def local_batch(global_batch: int, world_size: int) -> int:
    """Rows that each rank gets per step; where the batch does not divide, the last ranks' rows are padding."""
    return math.ceil(global_batch / world_size)


def local_rows(plan: Plan, steps: range, rank: int, world_size: int) -> pa.Table:
    """Rank `rank`'s rows of some steps: consecutive positions of each global batch, padded by rows of weight 0."""
    size = local_batch(plan.global_batch, world_size)
    slots = rank * size + np.arange(size)
    first = np.array(steps)[:, None] * plan.global_batch
    rows = plan.rows((first + np.minimum(slots, plan.global_batch - 1)).ravel())
    weights = np.tile(slots < plan.global_batch, len(steps)).astype(np.float32)
    return rows.set_column(rows.schema.get_field_index("weight"), "weight", pa.array(weights))


def stream(
    loader: ray.ObjectRef, start: int, steps: int, world_size: int, decode_on: Literal["trainer", "cluster"] = "trainer"
) -> ray.data.Dataset:
    """Steps [start, steps) as blocks for `streaming_split`: one per rank in turn, each of one or more local batches.

    Args:
        loader: a `ClipLoader`, put into Ray's store: its plan may be large, and one copy per node serves all tasks.
        start: first step; a resumed run begins at its committed one.
        steps: the step that ends the run.
        world_size: ranks that the blocks are dealt to.
        decode_on: `cluster`: batches are decoded in Ray tasks, anywhere; `trainer`: only their plan rows travel.
    """
    batches = 1 if decode_on == "cluster" else BATCHES_PER_BLOCK
    blocks = math.ceil((steps - start) / batches) * world_size
    tasks = max(1, min(MOST_TASKS, blocks // 64))
    numbers = ray.data.from_arrow([pa.table({"task": [number]}) for number in range(tasks)])
    rows = numbers.map_batches(
        _PlanBlocks(loader, range(start, steps), world_size, batches, blocks, tasks),
        batch_size=None, batch_format="pyarrow", num_cpus=0.25, compute=TaskPoolStrategy(2),
    )  # fmt: skip
    rows.context.target_max_block_size = 1  # bytes: every row becomes a block of its own
    if decode_on == "trainer":
        return rows
    return rows.map_batches(_Decode(loader), batch_size=None, batch_format="pyarrow", num_cpus=1)


class _PlanBlocks:
    """Turns a task's number into its part of the stream's blocks, one after the other, as they are asked for."""

    def __init__(
        self, loader: ray.ObjectRef, steps: range, world_size: int, batches: int, blocks: int, tasks: int
    ) -> None:
        self.loader, self.steps, self.world_size, self.batches = loader, steps, world_size, batches
        self.blocks, self.tasks = blocks, tasks

    def __call__(self, task: pa.Table) -> Iterator[pa.Table]:
        plan = ray.get(self.loader).plan
        number = task["task"][0].as_py()
        for block in range(number * self.blocks // self.tasks, (number + 1) * self.blocks // self.tasks):
            group, rank = divmod(block, self.world_size)
            steps = self.steps[group * self.batches : (group + 1) * self.batches]
            yield pa.table({"rows": [_packed(local_rows(plan, steps, rank, self.world_size))]})


class _Decode:
    """Turns a block of plan rows into one with a local batch's arrays, each contiguous."""

    def __init__(self, loader: ray.ObjectRef) -> None:
        self.loader = loader

    def __call__(self, block: pa.Table) -> pa.Table:
        rows = _unpacked(block)
        try:
            samples = ray.get(self.loader).load(rows)
        except DataError as error:  # an exception would arrive as Ray's own, without the next command
            problem = [type(error).__name__, str(error), error.hint]
            return pa.table({"rows": block["rows"], "failed": pa.array([problem], pa.list_(pa.string()))})
        arrays = {name: _one_value(getattr(samples, name).astype(_stored(name), copy=False)) for name in PIXELS}
        said = {"key": [list(samples.key)], "replaced": [[list(problem) for problem in samples.replaced]]}
        texts = {"key": pa.list_(pa.string()), "replaced": pa.list_(pa.list_(pa.string()))}
        said_columns = {name: pa.array(said[name], kind) for name, kind in texts.items()}
        return pa.table({"rows": block["rows"], **said_columns, **arrays})


def data_config(decode_on: Literal["trainer", "cluster"] = "trainer") -> ray.train.DataConfig:
    """Ray Train's ingest: blocks dealt strictly in turn, which needs preserved order and no locality."""
    memory = PLAN_ROWS_BYTES if decode_on == "trainer" else None
    limits = ExecutionResources(object_store_memory=memory)
    options = ExecutionOptions(preserve_order=True, resource_limits=limits)
    return _PerGroup(execution_options=options, enable_shard_locality=False)


class _PerGroup(ray.train.DataConfig):
    """Also takes a function of the number of workers, called for each worker group: an elastic run's change in size."""

    def configure(self, datasets: dict[str, Any], world_size: int, *args: Any, **kwargs: Any) -> list[dict[str, Any]]:
        made = {name: found(world_size) if callable(found) else found for name, found in datasets.items()}
        return super().configure(made, world_size, *args, **kwargs)


def local_batches(
    shard: DataIterator, loader: ClipLoader, steps: range, rank: int, world_size: int
) -> Iterator[Samples]:
    """Rank `rank`'s batch of each of `steps`, decoded before it is needed; what was replaced is named in the log.

    The first few do not wait for Ray, whose start takes seconds: a plan gives the same rows to whoever asks.

    Raises:
        DataError: more samples than the loader replaces could not be read.
        RuntimeError: the stream begins elsewhere than at `steps`.
    """
    bad = 0
    for samples in _ahead(_batches(shard, loader, steps, rank, world_size), BATCHES_AHEAD):
        for problem, hint in samples.replaced:
            bad += 1
            if bad > loader.max_bad_samples:
                raise too_many(loader.max_bad_samples, problem, hint)
            logger.warning("bad sample %d of at most %d: %s", bad, loader.max_bad_samples, problem)
        yield samples


def _batches(shard: DataIterator, loader: ClipLoader, steps: range, rank: int, world_size: int) -> Iterator[Samples]:
    """Each local batch, decoded when it is asked for; Ray starts meanwhile."""
    size = local_batch(loader.plan.global_batch, world_size)
    blocks: Iterator[Any] = _ahead(
        shard.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=BATCHES_AHEAD), 1
    )
    known = local_rows(loader.plan, steps[:BATCHES_BEFORE], rank, world_size)
    yield from (loader.load(known.slice(row, size)) for row in range(0, known.num_rows, size))
    for block in blocks:
        if "failed" in block.column_names:
            kind, message, hint = block["failed"][0].as_py()
            raise (StorageError if kind == "StorageError" else DataError)(message, hint)
        rows = _unpacked(block)
        seen = min(known.num_rows, rows.num_rows)
        if not rows.slice(0, seen).equals(known.slice(0, seen)):
            raise RuntimeError(f"the stream does not begin at step {steps.start}, rank {rank} of {world_size}")
        known = known.slice(seen)
        if "image" in block.column_names and not seen:
            yield _received(block, loader)
        else:
            yield from (loader.load(rows.slice(row, size)) for row in range(seen, rows.num_rows, size))


def _ahead(items: Iterable[Item], depth: int) -> Iterator[Item]:
    """The same items, made from now on by a thread that is `depth` of them ahead of whoever reads them.

    The thread is a daemon: who stops reading leaves it where it waits, which nothing later has to wait for.
    """
    ready: Queue[tuple[Item] | BaseException | None] = Queue(depth)

    def fill() -> None:
        try:
            for item in items:
                ready.put((item,))
            ready.put(None)
        except BaseException as error:
            ready.put(error)

    def read() -> Iterator[Item]:
        while (found := ready.get()) is not None:
            if isinstance(found, BaseException):
                raise found
            yield found[0]

    Thread(target=fill, name="ahead", daemon=True).start()
    return read()


def _received(block: pa.Table, loader: ClipLoader) -> Samples:
    """The local batch in a decoded block, as the loader would have given it."""
    rows = _unpacked(block)

    def pixels(name: str) -> np.ndarray:
        found = np.frombuffer(block[name][0].as_buffer(), _stored(name))
        return found.reshape(pixel_shape(name, rows.num_rows, loader.rules.crop)).astype(PIXELS[name])

    return Samples(
        **{name: pixels(name) for name in PIXELS},  # copies: torch wants memory that it may write
        dataset=rows["dataset"].to_numpy().astype(np.int64),
        weight=rows["weight"].to_numpy().astype(np.float32),
        position=rows["position"].to_numpy().astype(np.int64),
        key=tuple(block["key"][0].as_py()),
        replaced=tuple((problem, hint) for problem, hint in block["replaced"][0].as_py()),
    )


def _stored(name: str) -> type[np.generic]:
    """The type in which a field crosses the object store: ids fit 16 bits."""
    return np.uint16 if name.endswith("instances") else np.uint8


def _one_value(array: np.ndarray) -> pa.Array:
    """A column whose only value is the array's memory, not copied."""
    ends = np.array([0, array.nbytes], np.int64)
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, pa.py_buffer(ends), pa.py_buffer(array)])


def _packed(rows: pa.Table) -> bytes:
    """A table as one value, which no rule about block sizes can cut."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    return sink.getvalue().to_pybytes()


def _unpacked(block: pa.Table) -> pa.Table:
    """The plan rows in a block."""
    return pa.ipc.open_stream(block["rows"][0].as_buffer()).read_all()
