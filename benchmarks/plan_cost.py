"""What planning costs as work grows.

Twelve datasets of 10^6 frames in 10^4 shards each, as indexes in memory: seconds and memory to make the plan, its size
on the way to Ray's tasks, and the time of a block of rows, now and at position 10^9. With --stream: seconds to the
first batch of rows of a run of 10^6 steps.
"""

from __future__ import annotations

import argparse
import pickle
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "platform"), str(ROOT / "model")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=10**6, help="per dataset (%(default)s)")
    parser.add_argument("--datasets", type=int, default=12)
    parser.add_argument("--shards", type=int, default=10**4, help="per dataset (%(default)s)")
    parser.add_argument("--stream", action="store_true", help="also through Ray Data")
    options = parser.parse_args()
    from post_platform.data.plan import Plan
    from post_platform.data.stream import BATCHES_PER_BLOCK, local_rows

    splits = [large_split(f"d{d}", options.frames, options.shards) for d in range(options.datasets)]
    memory, started = resident(), time.perf_counter()
    plan = Plan(splits, global_batch=64, stride=(1, 3), alpha=0.5)
    print(f"{options.datasets} datasets of {options.frames} frames in {options.shards} shards")
    print(f"plan made in {time.perf_counter() - started:.2f} s, memory +{resident() - memory:.0f} MB")
    started = time.perf_counter()
    pickled = pickle.dumps(plan, protocol=5)
    print(f"pickled {len(pickled) / 1e6:.0f} MB in {time.perf_counter() - started:.2f} s")
    for step in (0, 10**9 // 64):
        steps = range(step, step + BATCHES_PER_BLOCK)
        seconds = min(timed(lambda steps=steps: local_rows(plan, steps, 0, 2))[0] for _ in range(5))
        print(f"rows of {BATCHES_PER_BLOCK} local batches of 32 from position {step * 64}: {1000 * seconds:.1f} ms")
    seconds = min(timed(lambda: plan.rows(np.array([10**9 - 1])))[0] for _ in range(5))
    print(f"row at position 10^9: {1000 * seconds:.2f} ms")
    if options.stream:
        first_rows(plan, 10**6)


def first_rows(plan: Any, steps: int) -> None:
    """Print the seconds to the first batch of rows of a long run, through Ray Data as training asks for them."""
    import ray.data

    from post_platform import cluster
    from post_platform.data.augment import Augmentation
    from post_platform.data.load import ClipLoader
    from post_platform.data.stream import data_config, stream

    seconds, _ = timed(cluster.connect)
    print(f"Ray started in {seconds:.1f} s")
    ray.data.DataContext.get_current().execution_options = data_config()._user_execution_options
    seconds, stored = timed(lambda: ray.put(ClipLoader(plan, Augmentation((512, 1024)))))
    print(f"plan put into Ray's store in {seconds:.2f} s")
    for attempt in ("first", "second"):  # the first also starts Ray's workers
        started = time.perf_counter()
        rows = stream(stored, 0, steps, 2)
        made = time.perf_counter() - started
        next(iter(rows.iter_batches(batch_size=1, batch_format="pyarrow")))
        seconds = time.perf_counter() - started
        print(f"{attempt} stream of {steps} steps: {made:.2f} s to make, first rows after {seconds:.2f} s")


def large_split(name: str, frames: int, shards: int) -> Any:
    """A split's index as `read_split` gives it: sequences of 100 frames, a tenth of the frames unlabelled."""
    import pyarrow as pa

    from post_platform.shards.index import INDEX_SCHEMA

    number = np.arange(frames)
    first = number % 100 == 0
    columns = {
        "sequence": pa.array([f"{name}_{s:06d}" for s in range(frames // 100 + 1)]).take(pa.array(number // 100)),
        "frame": number % 100,
        "shard": pa.array([f"{s:06d}.tar" for s in range(shards)]).take(pa.array(number * shards // frames)),
        "offset": number % (frames // shards + 1) * 200_192,
        "length": np.full(frames, 200_192),
        "crc32": number,
        "height": np.full(frames, 1024),
        "width": np.full(frames, 2048),
        "labelled": number % 10 != 9,
        "seconds_since_previous": pa.array(np.full(frames, 0.1), mask=first),
        "source_video": pa.nulls(frames, pa.string()),
    }
    arrays = [pa.array(columns[field.name]).cast(field.type) for field in INDEX_SCHEMA]
    index = pa.table(arrays, schema=INDEX_SCHEMA)
    return SimpleNamespace(
        dataset=name, split="train", folder=f"/shards/{name}/train", index=index, manifest={"index_sha256": name}
    )


def resident() -> float:
    """Memory of this process in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    found = function()
    return time.perf_counter() - started, found


if __name__ == "__main__":
    main()
