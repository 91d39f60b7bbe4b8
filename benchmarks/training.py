"""Where a training step goes, and what it gives: images/s, share of peak, time in each phase; on a GPU or a CPU.

In-memory batches through the training loop's own parts, one process; no figure here includes reading or decoding.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parent.parent
sys.path[0:1] = [str(ROOT / "platform"), str(ROOT / "model")]

from post_model.batch import Batch
from post_model.branches.center import center_target, center_weight
from post_model.branches.offset import offset_target
from post_model.branches.prev_offset import motion_target
from post_model.branches.semantic import semantic_weight
from post_model.network import Post, losses
from post_model.taxonomy import LabelTables
from post_platform.command import image_size
from post_platform.data.load import Samples
from post_platform.training.loop import to_batch
from post_platform.training.optimise import clip, global_loss

SETTINGS = {"hard_fraction": 0.2, "sigma": 8.0, "small_area": 4096, "small_weight": 3.0}
WEIGHTS = {"semantic": 1.0, "center": 200.0, "offset": 0.01, "prev_offset": 0.01}
PHASES = ("data", "targets", "forward", "losses", "backward", "optimiser")


class Phases:
    """Seconds of each phase of each step; the device is waited for at every border."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, list[float]] = {name: [] for name in PHASES}

    def wait(self) -> None:
        """Let the device finish."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Count the block as the phase `name`."""
        self.wait()
        started = time.perf_counter()
        yield
        self.wait()
        self.seconds[name].append(time.perf_counter() - started)


def samples(size: int, height: int, width: int, classes: int) -> Samples:
    """A chequerboard of 16-pixel tiles, a fifth of them objects that stand still."""
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, min(20, classes), (size, height // 16, width // 16))
    numbers = np.where(tiles < 4, 1 + np.arange(tiles[0].size).reshape(tiles[0].shape), 0)
    maps = {"classes": tiles.astype(np.uint8), "instances": numbers.astype(np.int32)}
    maps = {name: tile.repeat(16, 1).repeat(16, 2) for name, tile in maps.items()}
    images = rng.integers(0, 256, (2, size, 3, height, width), dtype=np.uint8)
    return Samples(
        images[0], images[1], maps["classes"], maps["instances"], maps["classes"], maps["instances"],
        np.zeros(size, np.int64), np.ones(size, np.float32), np.arange(size), ("",) * size,
    )  # fmt: skip


def label_tables(classes: int) -> LabelTables:
    """One dataset whose every class is one of the model's; its first four are things."""
    allowed = torch.zeros(1, 256, classes, dtype=torch.bool)
    allowed[0, torch.arange(256), torch.arange(256) % classes] = True
    allowed[0, 255] = True
    return LabelTables(allowed, torch.arange(256)[None] < 4, torch.ones(1, 256, dtype=torch.bool))


def make_targets(batch: Batch, tables: LabelTables) -> None:
    """What the losses make of the labels, apart from them; the search for objects is kept in the batch."""
    center_target(batch.objects, SETTINGS["sigma"])
    center_weight(batch, tables)
    offset_target(batch.objects)
    motion_target(batch.objects, batch.prev_objects)
    semantic_weight(batch.objects, SETTINGS["small_area"], SETTINGS["small_weight"])


def matmul_rate(device: torch.device, kind: torch.dtype) -> float:
    """Floating-point operations per second of a large square product: the peak that a share is taken of."""
    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device, dtype=kind) for _ in range(2))
    phases = Phases(device)
    for _ in range(6):
        with phases.of("forward"):
            a @ b
    return 2 * side**3 / min(phases.seconds["forward"])


def measure(arguments: argparse.Namespace, size: int, device: torch.device) -> tuple[Phases, float, float]:
    """The phases of `repeats` steps of `size` pairs, a step's operations, and the peak memory in bytes (0 on CPU)."""
    torch.manual_seed(0)
    gpu = device.type == "cuda"
    model = Post(arguments.classes, arguments.backbone, norm=arguments.norm).to(device)
    model.to(memory_format=torch.channels_last if gpu else torch.contiguous_format)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    network = torch.compile(model, fullgraph=True) if arguments.compile else model
    ddp = DistributedDataParallel(network, gradient_as_bucket_view=True, static_graph=True)
    pairs, tables = samples(size, *arguments.size, arguments.classes), label_tables(arguments.classes).to(device)

    def autocast() -> AbstractContextManager[object]:
        return torch.autocast("cuda", torch.bfloat16) if gpu else nullcontext()

    phases = Phases(device)
    for step in range(arguments.warm_up + arguments.repeats):
        if step == arguments.warm_up:
            phases = Phases(device)
        with phases.of("data"):
            batch = to_batch(pairs, device)
        with phases.of("targets"):
            make_targets(batch, tables)
        with phases.of("forward"), autocast():
            predictions = ddp(batch.image, batch.prev_image)
        with phases.of("losses"):
            loss, _ = global_loss(losses(predictions, batch, tables, **SETTINGS), WEIGHTS)
        with phases.of("backward"):
            loss.backward()
        with phases.of("optimiser"):
            clip(model.parameters(), 10.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    memory = float(torch.cuda.max_memory_allocated()) if gpu else 0.0
    with FlopCounterMode(display=False) as counter, autocast():
        maps = model(batch.image[:1], batch.prev_image[:1])
        sum(map_.float().mean() for map_ in maps).backward()
    return phases, counter.get_total_flops() * size, memory


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="example: python benchmarks/training.py --backbone small --size 256x512 --batch 2"
    )
    parser.add_argument("--size", type=image_size, default=(512, 1024), metavar="HxW")
    parser.add_argument("--batch", type=int, nargs="+", default=[8, 16, 32], help="pairs per step (default: 8 16 32)")
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--norm", default="group", help="group (default), or batch: what sync is on one GPU")
    parser.add_argument("--classes", type=int, default=133)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--threads", type=int, default=0, help="of torch on a CPU (default: its own choice)")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--warm-up", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    kind = torch.bfloat16 if device.type == "cuda" else torch.float32
    with tempfile.TemporaryDirectory() as folder:
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=0, world_size=1)
        name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
        peak = matmul_rate(device, kind)
        print(f"{name}; {arguments.backbone}, {arguments.classes} classes, norm {arguments.norm}, {kind}, "
              f"{'x'.join(map(str, arguments.size))}; median of {arguments.repeats} steps")  # fmt: skip
        print(f"peak = a square matrix product: {peak / 1e12:.2f} TFLOP/s; an image = a frame, two per pair")
        print("| pairs | images/s | of peak | GB | step ms | " + " | ".join(f"{name} ms" for name in PHASES) + " |")
        print("| " + " | ".join("---" for _ in range(5 + len(PHASES))) + " |")
        for size in arguments.batch:
            phases, operations, memory = measure(arguments, size, device)
            spent = {name: statistics.median(times) for name, times in phases.seconds.items()}
            # The losses make their targets themselves; the search for objects was done by then, the rest once more.
            step = statistics.median(map(sum, zip(*phases.seconds.values(), strict=True)))
            row = [f"{size}", f"{2 * size / step:.1f}", f"{operations / step / peak:.1%}", f"{memory / 1e9:.1f}"]
            row += [f"{1e3 * seconds:.1f}" for seconds in (step, *spent.values())]
            print("| " + " | ".join(row) + " |", flush=True)
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
