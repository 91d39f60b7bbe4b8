"""Frames per second of a conversion on one and on two cores, beside a plain loop that decodes and encodes the same.

The loop is one process without Ray, index, checksums or checks: it reads a frame, decodes image and label, encodes both
as shards hold them, and adds them to a tar with the standard library. Each contender runs in a process of its own,
pinned to its cores; rounds are interleaved, medians are printed. Ray's start is not counted: it happens once.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "platform"), str(ROOT / "model")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=60, help="frames per sequence, of 8 sequences (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jpeg", action="store_true", help="photographs as JPEG, which are stored byte for byte")
    parser.add_argument("--contender", choices=("loop", "one", "two"), help=argparse.SUPPRESS)
    parser.add_argument("--source", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        print(json.dumps(run(options.contender, Path(options.source))))
        return
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder)
        write_source(source, options.frames, options.jpeg)
        count = 8 * options.frames
        rates: dict[str, list[float]] = {"loop": [], "one": [], "two": []}
        for _ in range(options.rounds):
            for name, found in rates.items():
                command = [sys.executable, __file__, "--contender", name, "--source", folder]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                found.append(count / json.loads(done.stdout.splitlines()[-1]))
    loop, one, two = (statistics.median(found) for found in rates.values())
    kind = "JPEG" if options.jpeg else "PNG"
    print(f"{count} frames of 375x1242, photographs as {kind}; frames/s, medians of {options.rounds} rounds")
    print(f"plain loop, one process  {loop:7.1f}")
    print(f"conversion, one core     {one:7.1f}   cost over the loop {loop / one - 1:+.1%}")
    print(f"conversion, two cores    {two:7.1f}   {two / one:.2f} times one core")


def write_source(source: Path, frames: int, jpeg: bool) -> None:
    """KITTI-MOTS of smooth noise, which encodes about as a photograph does, and a label of blocks."""
    rng = np.random.default_rng(0)
    for sequence in ("0002", "0006", "0007", "0008", "0010", "0013", "0014", "0016"):
        coarse = Image.fromarray(rng.integers(0, 256, (47, 156, 3), np.uint8))
        base = np.asarray(coarse.resize((1242, 375), Image.Resampling.BICUBIC), np.int16)
        for frame in range(frames):
            pixels = (base + rng.integers(-6, 7, base.shape)).clip(0, 255).astype(np.uint8)
            label = np.zeros((375, 1242), np.uint16)
            for number in range(12):
                y, x = rng.integers(0, 300), rng.integers(0, 1100)
                label[y : y + 60, x : x + 90] = 1000 + number
            for folder, array, suffix in (("training/image_02", pixels, "jpg" if jpeg else "png"),
                                          ("instances", label, "png")):  # fmt: skip
                path = source / folder / sequence / f"{frame:06d}.{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path, **({"quality": 95} if suffix == "jpg" else {}))


def run(contender: str, source: Path) -> float:
    """Seconds for all frames."""
    os.sched_setaffinity(0, {0, 1} if contender == "two" else {0})
    with tempfile.TemporaryDirectory() as out:
        if contender == "loop":
            started = time.perf_counter()
            plain_loop(source, Path(out) / "all.tar")
            return time.perf_counter() - started
        from post_platform.cluster import connect
        from post_platform.shards.planning import plan_conversion
        from post_platform.shards.write import write_split

        connect()  # as convert.py does; its processes inherit the cores
        (whole,) = plan_conversion("kitti_mots", source, Path(out) / "warm", "val", 1 << 40)
        shard_bytes = max(1, whole.size // 8)
        (warm,) = plan_conversion("kitti_mots", source, Path(out) / "warm", "val", shard_bytes)
        write_split(warm)  # every worker is up and has imported its modules
        started = time.perf_counter()
        (job,) = plan_conversion("kitti_mots", source, Path(out) / "timed", "val", shard_bytes)
        write_split(job)
        return time.perf_counter() - started


def plain_loop(source: Path, target: Path) -> None:
    """What a first script would do: no check, no index, no checksum, no resumption."""
    with tarfile.open(target, "w") as tar:
        for image in sorted((source / "training/image_02").glob("*/*")):
            label = source / "instances" / image.parent.name / f"{image.stem}.png"
            content = image.read_bytes()
            with Image.open(io.BytesIO(content)) as opened:
                pixels = opened.convert("RGB")  # decodes, as a check or for the new encoding
                if opened.format == "PNG":
                    buffer = io.BytesIO()
                    pixels.save(buffer, "JPEG", quality=95, subsampling="4:4:4")
                    content = buffer.getvalue()
            values = np.asarray(Image.open(label)).astype(np.uint16)
            classes, instances = values // 1000, np.where(values > 0, values % 1000 + 1, 0)
            rgb = np.stack([classes, instances >> 8, instances & 255], -1).astype(np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(rgb).save(buffer, "PNG")
            for suffix, data in (("image.jpg", content), ("label.png", buffer.getvalue()), ("meta.json", b"{}")):
                entry = tarfile.TarInfo(f"{image.parent.name}/{image.stem}.{suffix}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))


if __name__ == "__main__":
    main()
