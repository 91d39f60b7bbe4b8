"""The stream deals the plan: every rank gets its part of every batch in order, at any world size and restart."""

import gc
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from test_plan import split

from post_platform import cluster
from post_platform.data.augment import Augmentation
from post_platform.data.load import ClipLoader
from post_platform.data.plan import Plan
from post_platform.data.stream import (
    BATCHES_PER_BLOCK,
    _unpacked,
    data_config,
    local_batch,
    local_batches,
    local_rows,
    stream,
)
from post_platform.errors import DataError
from post_platform.shards.index import read_split

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def ray():
    import ray

    cluster.connect()
    yield ray
    gc.collect()  # iterators that a test has left half-way: their threads end before Ray does, or the process would
    time.sleep(1)
    ray.shutdown()


@pytest.fixture(scope="module")
def plan():
    return Plan([split("a", [7, 4]), split("b", [5])], global_batch=6, seed=1)


def positions(ray, plan, start, steps, world_size):
    """Positions as each rank's consumer sees them, read at different speeds."""
    ray.data.DataContext.get_current().execution_options = data_config()._user_execution_options
    loader = ray.put(ClipLoader(plan, Augmentation((8, 8))))
    whole = stream(loader, start, steps, world_size)  # held, as long as its blocks are read
    shards = whole.streaming_split(world_size, equal=True)
    size = local_batch(plan.global_batch, world_size)

    @ray.remote(num_cpus=0)
    def consume(shard, slow):
        import time

        seen = []
        for block in shard.iter_batches(batch_size=1, batch_format="pyarrow"):
            time.sleep(0.02 * slow)
            found = _unpacked(block)["position"].to_pylist()
            seen += [found[first : first + size] for first in range(0, len(found), size)]
        return seen

    return ray.get([consume.remote(shard, rank) for rank, shard in enumerate(shards)])


@pytest.mark.parametrize(("start", "steps", "world_size"), [(0, 2 * BATCHES_PER_BLOCK + 5, 2), (7, 40, 3), (3, 9, 1)])
def test_ranks_get_consecutive_parts_of_every_batch_in_order(ray, plan, start, steps, world_size):
    size = 6 // world_size
    dealt = positions(ray, plan, start, steps, world_size)
    for rank, seen in enumerate(dealt):
        assert seen == [
            list(range(step * 6 + rank * size, step * 6 + (rank + 1) * size)) for step in range(start, steps)
        ]


def test_a_batch_that_does_not_divide_is_padded_with_rows_of_weight_zero(plan):
    parts = [local_rows(plan, range(2, 3), rank, 4) for rank in range(4)]
    assert [part.num_rows for part in parts] == [2, 2, 2, 2]
    assert [part["weight"].to_pylist() for part in parts] == [[1, 1], [1, 1], [1, 1], [0, 0]]
    assert [row for part in parts for row in part["position"].to_pylist()] == [12, 13, 14, 15, 16, 17, 17, 17]


def everything(dataset, loader, steps, world_size):
    """All local batches of each rank, as the trainer gets them."""
    shards = dataset.streaming_split(world_size, equal=True)

    def batches(rank):
        return list(local_batches(shards[rank], loader, steps, rank, world_size))

    with ThreadPoolExecutor(world_size) as ranks:
        return list(ranks.map(batches, range(world_size)))


@pytest.fixture(scope="module")
def loader(toy_shards):
    names = ("kitti_mots", "kitti_step", "coco_panoptic")
    mixture = Plan([read_split(toy_shards, name, "train") for name in names], global_batch=5, clip=3, seed=4)
    return ClipLoader(mixture, Augmentation((32, 64), scale=(0.5, 2.0)))


def equal(a, b):
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in a.__dataclass_fields__)


@pytest.mark.parametrize("decode_on", ["trainer", "cluster"])
def test_batches_are_the_loader_s_wherever_they_are_decoded(ray, loader, decode_on):
    ray.data.DataContext.get_current().execution_options = data_config(decode_on)._user_execution_options
    dealt = everything(stream(ray.put(loader), 3, 41, 2, decode_on), loader, range(3, 41), 2)
    for rank, batches in enumerate(dealt):
        assert len(batches) == 38
        for step, found in enumerate(batches, 3):
            expected = loader.load(local_rows(loader.plan, range(step, step + 1), rank, 2))
            assert equal(found, expected), (decode_on, rank, step)
            assert {found.image.dtype, found.classes.dtype, found.instances.dtype} == {np.dtype("u1"), np.dtype("i4")}
            assert found.image.flags.writeable


@pytest.mark.parametrize("decode_on", ["trainer", "cluster"])
def test_bad_samples_are_named_and_bounded_over_batches(ray, loader, toy_shards, tmp_path, caplog, decode_on):
    root = shutil.copytree(toy_shards, tmp_path / "shards")
    plan = Plan([read_split(root, "kitti_step", "train")], global_batch=4)
    first, second = (plan.rows(np.arange(4 * step, 4 * step + 1)).to_pylist()[0] for step in (0, 6))
    tar = bytearray((root / "kitti_step/train/000000.tar").read_bytes())
    for row in (first, second):
        tar[row["now_offset"] + 700] ^= 255
    (root / "kitti_step/train/000000.tar").write_bytes(tar)
    tolerant = ClipLoader(plan, loader.rules, max_bad_samples=100)
    (found,) = everything(stream(ray.put(tolerant), 0, 9, 1, decode_on), tolerant, range(9), 1)
    assert [batch.dataset.tolist() for batch in found] == [[0] * 4] * 9, "batches keep their composition"
    problems = [problem for batch in found for problem, _ in batch.replaced]
    assert len(problems) >= 2
    assert caplog.messages == [f"bad sample {n} of at most 100: {text}" for n, text in enumerate(problems, 1)]
    assert all(re.search(r"CRC-32 [0-9a-f]{8}, expected [0-9a-f]{8}$", text) for text in problems)
    strict = ClipLoader(plan, loader.rules, max_bad_samples=1)
    dealt = stream(ray.put(strict), 0, 9, 1, decode_on)  # held, as long as its blocks are read
    with pytest.raises(DataError, match=r"^more than 1 samples could not be read; the last: kitti_step/train/"):
        everything(dealt, strict, range(9), 1)


@pytest.mark.parametrize("start", range(7))
def test_whatever_the_step_a_run_goes_on_from_the_rest_is_the_same(ray, plan, start):
    """Also on another number of ranks: 2 until `start`, then 1, 2 or 3."""
    world_size = 1 + start % 3
    dealt = positions(ray, plan, start, 9, world_size)
    rest = [[position for seen in dealt for position in seen[step]] for step in range(9 - start)]
    assert rest == [list(range(6 * step, 6 * step + 6)) for step in range(start, 9)]


def test_a_run_of_a_million_steps_begins_as_a_short_one(ray, plan):
    """Ray prepares every task before the first one runs: there are never more than a few hundred."""
    ray.data.DataContext.get_current().execution_options = data_config()._user_execution_options
    stored = ray.put(ClipLoader(plan, Augmentation((8, 8))))
    whole = stream(stored, 5, 10**6, 1)  # held: what its tasks take is freed with it, and they would wait without end
    [shard] = whole.streaming_split(1, equal=True)

    @ray.remote(num_cpus=0)  # an iterator left half-way has a thread, which must not outlive Ray in this process
    def first(shard):
        block = next(iter(shard.iter_batches(batch_size=1, batch_format="pyarrow")))
        return _unpacked(block)["position"].to_pylist()[:3]

    assert ray.get(first.remote(shard)) == [30, 31, 32]


@pytest.mark.parametrize("decode_on", ["trainer", "cluster"])
def test_a_stream_that_begins_elsewhere_than_the_run_is_an_error(ray, loader, decode_on):
    ray.data.DataContext.get_current().execution_options = data_config(decode_on)._user_execution_options
    dealt = stream(ray.put(loader), 3, 12, 1, decode_on)  # held, as long as its blocks are read
    with pytest.raises(RuntimeError, match="the stream does not begin at step 2, rank 0 of 1"):
        everything(dealt, loader, range(2, 12), 1)


def test_a_reader_that_stops_before_ray_answers_does_not_hold_its_process(toy_shards):
    """Ray waits without end for a dataset that is gone; whoever read it must still be able to leave."""
    program = f"""
import threading
from post_platform.data.augment import Augmentation
from post_platform.data.load import ClipLoader
from post_platform.data.plan import Plan
from post_platform.data.stream import local_batches
from post_platform.shards.index import read_split

class Silent:
    def iter_batches(self, **options):
        threading.Event().wait()
        yield

plan = Plan([read_split({str(toy_shards)!r}, "kitti_step", "train")], global_batch=2)
batches = local_batches(Silent(), ClipLoader(plan, Augmentation((8, 8))), range(9), 0, 1)
print(next(batches).position.tolist())
"""
    env = {**os.environ, "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT / 'model'}"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, env=env)
    assert (done.stdout, done.returncode) == ("[0, 1]\n", 0), done.stderr
