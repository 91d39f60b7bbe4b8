"""Where a training step of the quickstart's network goes, on one thread: shares by kind of operation."""

import argparse
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[0:1] = [str(ROOT / "platform"), str(ROOT / "model")]

from post_model.batch import Batch
from post_model.network import Post, losses
from post_model.taxonomy import LabelTables

CLASSES = 25
KINDS = {  # names of operations, by what they are for
    "convolutions": ("conv",),
    "bilinear resizing": ("upsample",),
    "normalisation": ("group_norm",),
    "optimiser": ("adamw", "foreach"),
}


def batch(size: int, height: int, width: int) -> Batch:
    """A chequerboard of 16-pixel tiles, a fifth of them objects that stand still."""
    tiles = torch.randint(0, 20, (size, height // 16, width // 16), generator=torch.Generator().manual_seed(0))
    numbers = torch.arange(tiles.numel()).view_as(tiles) + 1
    classes, instances = (
        layer.repeat_interleave(16, 1).repeat_interleave(16, 2) for layer in (tiles, torch.where(tiles < 4, numbers, 0))
    )
    image = torch.randint(0, 256, (size, 3, height, width), dtype=torch.uint8)
    labels = (classes.to(torch.uint8), instances.int())
    return Batch(image, image, *labels, *labels, torch.zeros(size, dtype=torch.long), torch.ones(size))


def tables() -> LabelTables:
    """One dataset whose every class is one of the model's; its first four are things."""
    allowed = torch.zeros(1, 256, CLASSES, dtype=torch.bool)
    allowed[0, torch.arange(256), torch.arange(256) % CLASSES] = True
    allowed[0, 255] = True
    thing = torch.arange(256)[None] < 4
    return LabelTables(allowed, thing, torch.ones(1, 256, dtype=torch.bool))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, epilog="example: benchmarks/training_step.py --batch 4")
    parser.add_argument("--batch", type=int, default=4, help="clips (default: 4, a worker's share in the quickstart)")
    parser.add_argument("--repeats", type=int, default=10)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = Post(CLASSES, "small", norm="group")
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    clips, label_tables = batch(arguments.batch, 96, 192), tables()

    def step() -> None:
        found = losses(model(clips.image, clips.prev_image), clips, label_tables, hard_fraction=0.3, sigma=4.0)
        optimizer.zero_grad()
        sum(total / count.clamp(min=1) for total, count in found.values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()

    for _ in range(3):
        step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(arguments.repeats):
            step()
    events = profile.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    print(f"{total / arguments.repeats / 1000:.0f} ms a step of {arguments.batch} clips, one thread, profiler on")
    rest = 100.0
    for kind, names in KINDS.items():
        used = sum(e.self_cpu_time_total for e in events if any(name in e.key.lower() for name in names))
        rest -= 100 * used / total
        print(f"{kind:20} {100 * used / total:5.1f} %")
    print(f"{'losses and the rest':20} {rest:5.1f} %")


if __name__ == "__main__":
    main()
