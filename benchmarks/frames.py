"""Frames that `benchmarks/data.py` reads, and where the milliseconds of one go, on one thread."""

from __future__ import annotations

import argparse
import functools
import hashlib
import io
import json
import sys
import tarfile
import tempfile
import time
import zlib
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "platform"), str(ROOT / "model")]

DATASETS = ("kitti_step", "motchallenge_step", "vipseg")
SHARDS = 6  # of each dataset of frames
SIZES = {(256, 512): 300, (1024, 2048): 60}  # frames per dataset
SEQUENCE = 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(tempfile.gettempdir()) / "post-benchmark", help="cache")
    options = parser.parse_args()
    for size in SIZES:
        profile(make_shards(options.data, size), size)


def profile(root: Path, size: tuple[int, int]) -> None:
    """Print a frame's milliseconds by stage, as it lies in the shards and under a training run's augmentation."""
    from post_platform.data.augment import Augmentation
    from post_platform.data.load import ClipLoader
    from post_platform.data.plan import Plan
    from post_platform.shards.index import read_split

    splits = [read_split(root, name, "train") for name in DATASETS]
    crop = (min(512, size[0]), min(1024, size[1]))
    trained = f"crop {crop[0]}x{crop[1]}, scale 0.5 to 2"
    settings = (
        ("untouched", 2, Augmentation(size, flip=False, photometric=False, still_motion=False)),
        (trained, 2, Augmentation(crop, scale=(0.5, 2.0))),
        (f"{trained}, clips of 5 frames", 5, Augmentation(crop, scale=(0.5, 2.0))),
    )
    for title, clip, rules in settings:
        plan = Plan(splits, 12, clip)
        loader = ClipLoader(plan, rules, threads=1)
        count = 5 if size[0] > 512 else 33
        with stages() as spent:
            loader.load(plan.rows(np.arange(12)))
            spent.clear()
            started = time.perf_counter()
            for step in range(count):
                loader.load(plan.rows(np.arange(12 * step, 12 * step + 12)))
            total = time.perf_counter() - started
        frames = 24 * count
        print(f"\n{size[0]}x{size[1]}, {title}: {1000 * total / frames:.2f} ms a frame, one thread")
        for name, seconds in sorted(spent.items(), key=lambda item: -item[1]):
            print(f"  {name:22}{1000 * seconds / frames:8.3f} ms{100 * seconds / total:7.1f} %")
        rest = total - sum(spent.values())
        print(f"  {'rest: rows':22}{1000 * rest / frames:8.3f} ms{100 * rest / total:7.1f} %")


class stages:
    """While the block runs, the functions of the loader note the seconds they take, less those of each other."""

    def __enter__(self) -> dict[str, float]:
        """Wrap the functions."""
        from post_platform import storage
        from post_platform.data import augment, load
        from post_platform.shards import record

        self.spent: dict[str, float] = defaultdict(float)
        self.inner = [0.0]
        pixels = {"image.jpg": "JPEG decoding", "label.png": "PNG decoding"}
        places: list[tuple[Any, str, Callable[..., str]]] = [
            (storage, "read_range", lambda *_: "range read"),
            (record, "_members", lambda *_: "tar parsing"),
            (record, "_pixels", lambda content, where, *_: pixels[where.rpartition(" ")[2]]),
            (record, "view", lambda *_: "sizes, JSON"),
            (augment, "window", lambda *_: "window: crop, resize"),
            (augment, "recoloured", lambda *_: "photometric"),
            (augment, "moved", lambda *_: "motion of stills"),
            (load, "augment", lambda *_: "flip, rest of augment"),
            (load, "_put", lambda *_: "copy into the batch"),
        ]
        self.saved = [(module, name, getattr(module, name)) for module, name, _ in places] + [
            (storage, "zlib", storage.zlib),
        ]
        for module, name, label in places:
            setattr(module, name, self.noting(getattr(module, name), label))
        storage.zlib = SimpleNamespace(crc32=self.noting(zlib.crc32, lambda *_: "CRC-32"))
        return self.spent

    def __exit__(self, *_: object) -> None:
        """Unwrap them."""
        for module, name, function in self.saved:
            setattr(module, name, function)

    def noting(self, function: Callable[..., Any], label: Callable[..., str]) -> Callable[..., Any]:
        """The function, whose own seconds are added to its label."""

        @functools.wraps(function)
        def wrapped(*arguments: Any, **named: Any) -> Any:
            self.inner.append(0.0)
            started = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                seconds = time.perf_counter() - started
                self.spent[label(*arguments)] += seconds - self.inner.pop()
                self.inner[-1] += seconds

        return wrapped


def make_shards(data: Path, size: tuple[int, int]) -> Path:
    """Converted splits of frames that compress about as photographs and their labels do; kept from call to call."""
    root = data / f"{size[0]}x{size[1]}"
    for number, name in enumerate(DATASETS):
        if not (root / name / "train" / "manifest.json").exists():
            write_split(root / name / "train", name, size, np.random.default_rng(number))
    return root


def write_split(folder: Path, name: str, size: tuple[int, int], rng: np.random.Generator) -> None:
    """One split, its frames encoded as a conversion does; sequences' names are unique over all datasets."""
    import pyarrow as pa

    from post_platform.datasets.frame import Label
    from post_platform.labels import load_contract
    from post_platform.shards import record
    from post_platform.shards.index import FORMAT, INDEX_SCHEMA, encode_index

    folder.mkdir(parents=True, exist_ok=True)
    rows, listed, frames = [], [], SIZES[size]
    for shard in range(SHARDS):
        content = b""
        for number in range(shard * frames // SHARDS, (shard + 1) * frames // SHARDS):
            sequence, frame = f"{name}_{number // SEQUENCE:02d}", number % SEQUENCE
            image, classes, instances = picture(size, rng)
            stored = record.StoredImage(image, "jpg", *size)
            data = record.encode(f"{sequence}/{frame:06d}", stored, Label(classes, instances), {"dataset": name})
            facts = {"sequence": sequence, "frame": frame, "shard": f"{shard:06d}.tar", "height": size[0]}
            facts |= {"width": size[1], "labelled": True, "seconds_since_previous": 0.1 if frame else None}
            rows.append({**facts, "offset": len(content), "length": len(data), "crc32": zlib.crc32(data)})
            content += data
        (folder / f"{shard:06d}.tar").write_bytes(content + bytes(1024))
        listed.append({"name": f"{shard:06d}.tar", "frames": 0, "size": len(content) + 1024, "sha256": ""})
    parquet = encode_index(pa.Table.from_pylist(rows, schema=INDEX_SCHEMA))
    (folder / "index.parquet").write_bytes(parquet)
    manifest = {"format": FORMAT, "dataset": name, "split": "train", "contract": load_contract(name).native_hash()}
    manifest |= {"frames": frames, "labelled_frames": frames, "shards": listed, "source": "benchmark"}
    manifest |= {"index_sha256": hashlib.sha256(parquet).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def picture(size: tuple[int, int], rng: np.random.Generator) -> tuple[bytes, np.ndarray, np.ndarray]:
    """A JPEG of noise at every scale, and regions with 12 objects: classes and instances.

    About 0.3 to 0.5 bytes per pixel, the lower end of photographs at these sizes.
    """
    height, width = size
    pixels = rng.normal(0, 2.5, (*size, 3)).astype(np.float32)
    for cell in (4, 16, 64):
        coarse = rng.normal(128 if cell == 64 else 0, cell**0.75, (height // cell, width // cell, 3)) + 128
        layer = Image.fromarray(coarse.clip(0, 255).astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
        pixels += np.asarray(layer, np.float32) - 128
    buffer = io.BytesIO()
    image = Image.fromarray((pixels + 128).clip(0, 255).astype(np.uint8))
    image.save(buffer, "JPEG", quality=95, subsampling="4:4:4")
    cells = Image.fromarray(rng.integers(0, 256, (8, 16), np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    classes, instances = np.asarray(cells) // 32, np.zeros(size, np.uint16)
    y, x = np.ogrid[:height, :width]
    for number in range(1, 13):
        radius = height * rng.uniform(0.03, 0.12)
        here = (y - rng.uniform(0, height)) ** 2 + (x - rng.uniform(0, width)) ** 2 < radius**2
        classes, instances[here] = np.where(here, 13, classes), 1000 + number
    return buffer.getvalue(), classes.astype(np.uint8), instances


def before(key: str) -> str:
    """Key of the previous frame; '' where there is none."""
    sequence, _, frame = key.rpartition("/")
    return f"{sequence}/{int(frame) - 1:06d}" if int(frame) else ""


def tensors(key: str, image: np.ndarray, label: np.ndarray) -> dict[str, Any]:
    """A decoded frame as the other loaders collate it: what ours delivers, one frame."""
    import torch

    instances = label[..., 1].astype(np.int32) << 8 | label[..., 2]
    return {
        "key": key,
        "image": torch.from_numpy(image).permute(2, 0, 1),
        "classes": torch.from_numpy(label[..., 0]),
        "instances": torch.from_numpy(instances),
    }


def plain_decode(path: Path, row: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Image and label of an index row, with nothing but the standard library and PIL."""
    with open(path, "rb") as file:
        file.seek(row["offset"])
        data = file.read(row["length"])
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        content = {entry.name.partition(".")[2]: archive.extractfile(entry).read() for entry in archive}  # type: ignore[union-attr]
    image, label = (Image.open(io.BytesIO(content[name])) for name in ("image.jpg", "label.png"))
    return np.array(image.convert("RGB")), np.array(label)


def digest(image: Any, classes: Any, instances: Any) -> str:
    """Of a frame's arrays, whatever holds them."""
    arrays = (np.asarray(image, np.uint8), np.asarray(classes, np.uint8), np.asarray(instances, np.int32))
    return hashlib.sha1(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()


def require_equal(root: Path, size: tuple[int, int], digests: dict[str, str]) -> None:
    """Each frame's arrays are those of the plain decoding."""
    import pyarrow.parquet as pq

    for name in DATASETS:
        folder = root / name / "train"
        for row in pq.read_table(folder / "index.parquet").to_pylist():
            key = f"{row['sequence']}/{row['frame']:06d}"
            if key in digests:
                found = tensors(key, *plain_decode(folder / row["shard"], row))
                assert found["image"].shape[1:] == size
                assert digests.pop(key) == digest(found["image"], found["classes"], found["instances"]), key
    assert not digests, f"keys that no shard has: {list(digests)[:3]}"


if __name__ == "__main__":
    main()
