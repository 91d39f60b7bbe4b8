"""What a checkpoint costs the training: seconds of each part, and steps while one is written and uploaded.

The store is moto's, over HTTP, in a process of its own with the lowest priority: it takes what the others leave of the
same cores, as near as one machine comes to a store on another. Steps with and without a checkpoint in flight are
measured in turns, on one thread.
"""

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[0:1] = [str(ROOT / "platform"), str(ROOT / "model")]

from post_model.network import Post
from post_model.weights import save_model
from post_platform import storage
from post_platform.training import checkpoint
from post_platform.training.checkpoint_store import Store
from post_platform.training.checkpoint_writer import Background, save_tensors, snapshot

CLASSES = 25
BESIDE = 4.0  # seconds that steps beside a part are measured for
Step = Callable[[], float]


def start_store() -> subprocess.Popen:
    """A store at a free port, with the environment that leads there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = f"from moto.server import main; main(['-H', '127.0.0.1', '-p', '{port}'])"
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen(["nice", "-n", "19", sys.executable, "-c", code], **silent)  # type: ignore[call-overload]
    keys = {"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "not-a-secret", "AWS_REGION": "us-east-1"}
    os.environ |= {**keys, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/bench", method="PUT")
    for _ in range(600):
        try:
            urllib.request.urlopen(request)
            return server
        except OSError:
            time.sleep(0.1)
    raise SystemExit("the store did not start")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, epilog="example: benchmarks/checkpoints.py --backbone small")
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--size", type=int, default=64, help="side of the training images, pixels")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--local", action="store_true", help="write to a folder only")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    server = None if arguments.local else start_store()
    model = Post(CLASSES, arguments.backbone, norm="group").train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    image = torch.rand(1, 3, arguments.size, arguments.size) * 255

    def step() -> float:
        began = time.perf_counter()
        optimizer.zero_grad()
        sum(part.square().mean() for part in model(image, image) if part is not None).backward()
        optimizer.step()
        return time.perf_counter() - began

    def tree() -> dict:
        return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}

    def write(folder: Path) -> None:
        save_model(folder, model, [f"c{i}" for i in range(CLASSES)], [True] * CLASSES)
        save_tensors(held["optimizer"], folder / "optimizer.pt")

    for _ in range(3):
        step()
    held = snapshot(tree())
    try:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            parts(folder, tree, write, held, step)
            store = Store(folder / "run", None if arguments.local else "s3://bench/run")
            store.claim()
            alone, beside, waited = [], [], []
            task = Background()
            for number in range(arguments.turns):
                began = time.perf_counter()
                done: list[float] = []

                def commit(number: int = number, done: list[float] = done) -> None:
                    store.commit(number, write, keep=2)
                    done.append(time.perf_counter())

                task.start(commit)
                turn = []
                while not done:
                    turn.append(step())
                task.wait()
                beside += turn[:-1] or turn  # the last one is partly alone
                waited.append(done[0] - began)
                alone += [step() for _ in turn]
            show("step alone", alone)
            show("step beside a checkpoint", beside)
            show("checkpoint in the background", waited)
            print(f"slower by {100 * (statistics.median(beside) / statistics.median(alone) - 1):.1f} % (medians), "
                  f"{100 * (statistics.mean(beside) / statistics.mean(alone) - 1):.1f} % (means)")  # fmt: skip
    finally:
        if server:
            server.kill()
            server.wait()


def parts(folder: Path, tree: Callable[[], dict], write: Callable[[Path], None], held: dict, step: Step) -> None:
    """Seconds of each part by itself, and of a step meanwhile."""
    (folder / "parts").mkdir()
    timed("write", lambda: write(folder / "parts"), step)
    timed("fsync", lambda: list(map(checkpoint.sync, (folder / "parts").iterdir())), step)
    timed("hash", lambda: [checkpoint.sha256(path) for path in (folder / "parts").iterdir()], step)
    files = list((folder / "parts").iterdir())
    if "AWS_ENDPOINT_URL" in os.environ:
        places = [f"s3://bench/parts/{path.name}" for path in files]
        timed("upload", lambda: list(map(storage.upload_file, files, places)), step)
    timed("snapshot, new memory", lambda: snapshot(tree()))
    timed("snapshot, held memory", lambda: snapshot(tree(), held))
    print(f"{sum(path.stat().st_size for path in files) / 1e6:.1f} MB")


def timed(name: str, action: Callable[[], object], step: Step | None = None) -> None:
    """Print how long an action takes, and how long the steps beside some repetitions of it."""
    began = time.perf_counter()
    action()
    text = f"{name:30} {time.perf_counter() - began:8.3f} s"
    if step:
        task, ends, beside = Background(), time.perf_counter() + BESIDE, []
        while time.perf_counter() < ends:
            done: list[bool] = []
            task.start(lambda done=done: (action(), done.append(True)))  # type: ignore[misc]
            while not done:
                beside.append(step())
            task.wait()
        text += f"   a step beside it {statistics.median(beside):.3f} s median, {statistics.mean(beside):.3f} s mean"
    print(text, flush=True)


def show(name: str, values: list[float]) -> None:
    """Print the median and mean of some seconds."""
    print(f"{name:30} {statistics.median(values):8.3f} s median, {statistics.mean(values):.3f} s mean of {len(values)}")


if __name__ == "__main__":
    main()
