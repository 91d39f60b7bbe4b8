"""Peak memory and time of the semantic loss, forward and backward, beside the plain formula in autograd."""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0:1] = [str(ROOT / "platform"), str(ROOT / "model")]


def measure(way: str, batch: int, classes: int, height: int, width: int) -> dict[str, float]:
    """One forward and backward pass in this process: peak memory beyond logits and their gradient, and seconds."""
    import torch

    from post_model.branches.semantic import set_loss

    torch.manual_seed(0)
    logits = torch.empty(batch, classes, height, width).normal_().requires_grad_()
    gradient = torch.empty_like(logits)
    gradient.zero_()  # what backward writes, counted as given: it is needed in any case
    labels = torch.randint(0, classes, (batch, height, width), dtype=torch.uint8)
    allowed = torch.ones(batch, 256, classes, dtype=torch.bool)
    allowed[:, :classes] = torch.eye(classes, dtype=torch.bool)
    allowed[:, :classes, 0] = True  # sets of two
    del gradient  # its pages are reused by the backward pass
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    if way == "ours":
        values = set_loss(logits, labels, allowed)
    else:
        members = torch.stack([table[label.long()] for table, label in zip(allowed, labels, strict=True)])
        inside = logits.masked_fill(~members.permute(0, 3, 1, 2), -torch.inf).logsumexp(1)
        values = logits.logsumexp(1) - inside
    values.mean().backward()
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"logits_gb": logits.numel() * 4 / 1e9, "extra_gb": (peak - before) * 1024 / 1e9, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, epilog="example: python benchmarks/losses.py --batch 8")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--classes", type=int, default=211)
    parser.add_argument("--size", type=int, nargs=2, default=(512, 1024), metavar=("H", "W"))
    parser.add_argument("--way", choices=("ours", "plain"), help="measure one way in this process, print JSON")
    arguments = parser.parse_args()
    shape = (arguments.batch, arguments.classes, *arguments.size)
    if arguments.way:
        print(json.dumps(measure(arguments.way, *shape)))
        return
    print(f"batch, classes, height, width: {shape}; each way in a process of its own")
    print(f"{'way':8} {'logits GB':>10} {'extra peak GB':>14} {'seconds':>8}")
    for way in ("ours", "plain"):
        command = [sys.executable, __file__, "--way", way, "--batch", str(shape[0]), "--classes", str(shape[1])]
        done = subprocess.run([*command, "--size", *map(str, shape[2:])], capture_output=True, text=True)
        if done.returncode != 0:
            print(f"{way:8} ran out of memory (exit code {done.returncode})")
            continue
        found = json.loads(done.stdout)
        print(f"{way:8} {found['logits_gb']:10.2f} {found['extra_gb']:14.2f} {found['seconds']:8.1f}")


if __name__ == "__main__":
    main()
