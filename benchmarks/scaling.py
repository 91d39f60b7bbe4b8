"""What one pass of 64 GPUs over 10^7 frames costs beside pixels: plan, ledger and checkpoints, in simulation.

Indexes of that size in memory, every row of every rank planned, every step written to a ledger as training does it,
and the checkpoint of a ResNet-50 network with its optimiser. No pixel is read and no network runs.
"""

from __future__ import annotations

import argparse
import pickle
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from plan_cost import large_split, resident, timed

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "platform"), str(ROOT / "model")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=64)
    parser.add_argument("--per-gpu", type=int, default=8, help="clips of a local batch (%(default)s)")
    parser.add_argument("--frames", type=int, default=10**7, help="over all datasets (%(default)s)")
    parser.add_argument("--datasets", type=int, default=12)
    parser.add_argument("--backbone", default="resnet50")
    options = parser.parse_args()
    from post_platform.data.plan import Plan

    batch = options.gpus * options.per_gpu
    steps = options.frames // batch
    each = options.frames // options.datasets
    splits = [large_split(f"d{d}", each, max(1, each // 1000)) for d in range(options.datasets)]
    memory = resident()
    seconds, plan = timed(lambda: Plan(splits, global_batch=batch, stride=(1, 3), alpha=0.5))
    print(f"{options.datasets} datasets of {each} frames; {options.gpus} GPUs x {options.per_gpu}: {steps} steps")
    print(f"plan made in {seconds:.2f} s, memory +{resident() - memory:.0f} MB")
    seconds, pickled = timed(lambda: pickle.dumps(plan, protocol=5))
    print(f"plan on its way to each node: {len(pickled) / 1e6:.0f} MB, {seconds:.2f} s")
    del pickled
    rank_rows(plan, options.gpus, steps)
    with tempfile.TemporaryDirectory() as folder:
        ledger(plan, steps, Path(folder) / "ledger.jsonl")
    checkpoint(options.backbone)


def rank_rows(plan: Any, gpus: int, steps: int) -> None:
    """Print what a block of one rank costs, at the start, half way and at the end of the run."""
    from post_platform.data.stream import BATCHES_PER_BLOCK, local_rows

    for first in (0, steps // 2, steps - BATCHES_PER_BLOCK):
        block = range(first, first + BATCHES_PER_BLOCK)
        seconds = min(timed(lambda block=block: local_rows(plan, block, gpus - 1, gpus))[0] for _ in range(5))
        print(f"rows of {BATCHES_PER_BLOCK} local batches of the last rank at step {first}: {1000 * seconds:.1f} ms")


def ledger(plan: Any, steps: int, path: Path) -> None:
    """Print what planning all positions and recording them costs, and what reading the record again does."""
    from post_platform.data.stream import BATCHES_PER_BLOCK
    from post_platform.training.ledger import EMPTY, Ledger, read

    book, planning, writing, memory = Ledger(path, 0, EMPTY), 0.0, 0.0, resident()
    for first in range(0, steps, BATCHES_PER_BLOCK):
        block = range(first, min(steps, first + BATCHES_PER_BLOCK))
        positions = np.arange(block.start * plan.global_batch, block.stop * plan.global_batch)
        seconds, rows = timed(lambda positions=positions: plan.rows(positions))
        planning += seconds
        names = np.array([f"d{d}" for d in range(12)], object)[rows["dataset"].to_numpy()]
        seen = [(p, f"{d}/{k}") for p, d, k in zip(positions.tolist(), names, rows["key"].to_pylist(), strict=True)]
        started = time.perf_counter()
        for step in block:
            at = (step - first) * plan.global_batch
            book.append(step + 1, seen[at : at + plan.global_batch])
        writing += time.perf_counter() - started
    size = path.stat().st_size
    print(
        f"all {steps * plan.global_batch} rows planned in {planning:.0f} s on one core, "
        f"memory {resident() - memory:+.0f} MB"
    )
    print(f"ledger: {1000 * writing / steps:.2f} ms a step, {size / 1e6:.0f} MB after {steps} steps")
    seconds, _ = timed(lambda: Ledger(path, steps - 1, book.digest))
    print(f"ledger cut back by a restart in {seconds:.1f} s")
    memory = resident()
    seconds, lines = timed(lambda: read(path))
    print(f"ledger read whole (the figure at the end) in {seconds:.1f} s, memory +{resident() - memory:.0f} MB")
    assert len(lines) == steps - 1


def checkpoint(backbone: str) -> None:
    """Print size and seconds of a checkpoint: copied out of the training's way, then written."""
    import torch

    from post_model.network import Post
    from post_model.weights import save_model
    from post_platform.training import checkpoint
    from post_platform.training.checkpoint_writer import save_tensors, snapshot

    classes = 211
    model = Post(classes, backbone)
    optimizer = torch.optim.AdamW(model.parameters())
    sum(p.sum() for p in model.parameters()).backward()
    optimizer.step()
    parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    held = snapshot(parts)
    copying = min(timed(lambda: snapshot(parts, held))[0] for _ in range(3))

    def write(folder: Path) -> None:
        save_model(folder, model, [f"c{i}" for i in range(classes)], [True] * classes, {})
        save_tensors(held["optimizer"], folder / "optimizer.pt")

    with tempfile.TemporaryDirectory() as folder:
        seconds, path = timed(lambda: checkpoint.save(Path(folder), 1, write, keep=1))
        size = sum(file.stat().st_size for file in path.iterdir())
    count = sum(p.numel() for p in model.parameters())
    print(f"checkpoint of {backbone}, {count / 1e6:.1f} M parameters: {size / 1e6:.0f} MB")
    print(f"  training stands still for {copying:.2f} s (copy), written beside it in {seconds:.1f} s")


if __name__ == "__main__":
    main()
