"""A frame through `mlflow models serve` beside a frame given to the predictor: latency, and where the difference goes.

The network is untrained, its last layers scaled so that it sees dozens of ragged objects; the frames are toy city's, as
JPEG. Both sides take the frames of a video in turns, each in a process of its own. OpenMP's threads sleep while they
wait, on both sides: on a busy machine those that spin take ten times as long, now on one side and then on the other.
"""

import argparse
import base64
import io
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

os.environ["OMP_WAIT_POLICY"] = "passive"  # read by torch's OpenMP when it is loaded
ROOT = Path(__file__).resolve().parent.parent
sys.path[0:1] = [str(ROOT / "platform"), str(ROOT / "model")]

import torch

from post_model.network import Post
from post_model.predictor import Predictor
from post_model.weights import save_model
from post_platform import serving
from post_platform.command import image_size
from post_platform.toycity.world import World
from post_platform.training import checkpoint

CLASSES, STUFF = 19, 11
SPREAD = {"semantic": 3.0, "center": 0.4, "offset": 10.0, "prev_offset": 10.0}  # standard deviation of each output
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
}  # fmt: skip


@torch.inference_mode()
def network(backbone: str, image: np.ndarray) -> Post:
    """An untrained network whose outputs on an image spread as a trained one's do."""
    torch.manual_seed(0)
    model = Post(CLASSES, backbone, norm="group").eval()
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
    for name, map_ in model(pixels, pixels)._asdict().items():
        last = list(model.branches[name].children())[-1]
        for parameter in last.parameters():
            parameter *= SPREAD[name] / map_.std()
    return model


def save(folder: Path, model: Post) -> None:
    names, things = [f"class {n}" for n in range(CLASSES)], [n >= STUFF for n in range(CLASSES)]
    checkpoint.write_whole(folder, lambda path: save_model(path, model, names, things), {})


def jpeg(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def body(content: bytes, state: str | None) -> bytes:
    row = {"image": base64.b64encode(content).decode(), "state": state}
    return json.dumps({"dataframe_records": [row]}).encode()


@contextmanager
def server(model: Path, folder: Path) -> Iterator[str]:
    """Address of `mlflow models serve` with one worker."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "models",
        "serve",
        "-m",
        str(model),
        "--env-manager",
        "local",
        "-p",
        port,
    ]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, env={**os.environ, **QUIET, "PATH": path}, stdout=log, stderr=log, start_new_session=True
        )
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5).close()
                break
            except OSError:
                time.sleep(0.2)
        else:
            raise SystemExit((folder / "log").read_text())
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def ask(address: str, content: bytes, state: str | None) -> dict[str, Any]:
    request = urllib.request.Request(address, body(content, state), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)["predictions"][0]


def timed(run: Callable[..., Any], *arguments: object) -> tuple[float, Any]:
    start = time.perf_counter()
    found = run(*arguments)
    return time.perf_counter() - start, found


def in_turns(address: str, predictor: Predictor, images: list[np.ndarray]) -> tuple[list[tuple[float, float]], dict]:
    """Seconds of each frame, served and direct; the side that is first changes. Both must say the same."""
    found, state, told = [], None, {}
    predictor.forget()
    for number, content in enumerate(map(jpeg, images)):
        image = np.array(Image.open(io.BytesIO(content)))
        sides = {"direct": partial(predictor, image), "served": partial(ask, address, content, state)}
        seconds, results = {}, {}
        for side in sorted(sides, reverse=number % 2 == 1):
            seconds[side], results[side] = timed(sides[side])
        told = results["served"]
        same = [(s["track"], s["area"], s["score"]) for s in told["segments"]]
        assert same == [(s.track, s.area, s.score) for s in results["direct"].segments], "both see the same"
        state = told["state"]
        found.append((seconds["served"], seconds["direct"]))
    return found[2:], told  # the first frame has no motion, and both sides warm up


def profile(model: Path, images: list[np.ndarray], forget: bool) -> dict[str, float]:
    """Median milliseconds of the parts of a request inside the server, measured in a process without one.

    With `forget` every state is one that another worker made.
    """
    import mlflow
    from mlflow.pyfunc import scoring_server

    loaded = mlflow.pyfunc.load_model(str(model))
    service = loaded.unwrap_python_model().service
    schema = loaded.metadata.get_input_schema()
    parts: defaultdict[str, float] = defaultdict(float)
    rows: list[dict[str, float]] = []

    def watch(owner: object, name: str, label: str) -> None:
        inner = getattr(owner, name)

        def watched(*arguments: object, **named: object) -> object:
            start = time.perf_counter()
            found = inner(*arguments, **named)
            parts[label] += time.perf_counter() - start
            return found

        setattr(owner, name, watched)

    before = {name: getattr(serving, name) for name in ("_decoded", "decode_image", "described", "pack", "unpack")}
    watch(service.predictor, "step", "network, fusion, tracker")
    watch(service.predictor, "recall", "features again")
    watch(service, "answer", "all of ours")
    for name, label in zip(before, ("base64", "JPEG", "run lengths", "state out", "state in"), strict=True):
        watch(serving, name, label)
    state = None
    try:
        for image in images:
            parts.clear()
            if forget:
                service._kept.clear()
            request = body(jpeg(image), state)
            whole, answer = timed(scoring_server.invocations, request, "application/json", loaded, schema)
            state = json.loads(answer.response)["predictions"][0]["state"]
            rows.append({**parts, "JSON, pandas, MLflow": whole - parts["all of ours"], "request": whole})
    finally:
        for name, function in before.items():
            setattr(serving, name, function)
    return {label: 1e3 * statistics.median(row.get(label, 0.0) for row in rows[2:]) for label in rows[-1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, epilog="example: python benchmarks/serving.py --frames 12")
    parser.add_argument("--sizes", type=image_size, nargs="+", default=[(375, 1242), (512, 1024)], metavar="HxW")
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--threads", type=int, default=1, help="that compute, on each side (default: 1)")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    os.environ.update(QUIET, OMP_NUM_THREADS=str(arguments.threads))
    torch.set_num_threads(arguments.threads)
    from post_platform.experiment_registry import save_served

    results = {}
    for height, width in arguments.sizes:
        world = World(0, arguments.frames, height, width)
        images = [world.render(t).image for t in range(arguments.frames)]
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            save(folder / "checkpoint", network(arguments.backbone, images[0]))
            save_served(folder / "model", folder / "checkpoint")
            with server(folder / "model", folder) as address:
                rounds, told = in_turns(address, Predictor.from_checkpoint(folder / "checkpoint"), images)
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:  # one thread that computes, as in the server
                parts = pool.submit(profile, folder / "model", images, forget=False).result()
                again = pool.submit(profile, folder / "model", images, forget=True).result()
        served, direct = (statistics.median(pair[side] for pair in rounds) for side in (0, 1))
        ratio = statistics.median(one / other for one, other in rounds)
        objects = sum(segment["thing"] for segment in told["segments"])
        sizes = {"JPEG": len(jpeg(images[-1])), "state": len(told["state"]), "answer": len(json.dumps(told))}
        print(
            f"{height}x{width}, {arguments.backbone}, {torch.get_num_threads()} threads, {len(rounds)} frames in turns"
        )
        print(f"  direct {1e3 * direct:.0f} ms, served {1e3 * served:.0f} ms, ratio {ratio:.3f} (median of pairs)")
        print(f"  {objects} objects; kB: " + ", ".join(f"{name} {size / 1e3:.0f}" for name, size in sizes.items()))
        print("  in the server, ms: " + ", ".join(f"{name} {value:.1f}" for name, value in parts.items()))
        print(
            "  the same, states of another worker: " + ", ".join(f"{name} {value:.1f}" for name, value in again.items())
        )
        results[f"{height}x{width}"] = {
            "direct": direct, "served": served, "ratio": ratio, "objects": objects, "bytes": sizes, "parts_ms": parts,
            "parts_ms_of_another_worker": again,
        }  # fmt: skip
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
