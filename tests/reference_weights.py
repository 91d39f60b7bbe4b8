"""The weights and the image that the reference arrays in `data/detectron2` were made with, and the key lists."""

import zlib
from pathlib import Path

import numpy as np

DATA = Path(__file__).parent / "data" / "detectron2"


def keys(name):
    """Shape of every entry of a Detectron2 state dictionary, in its order."""
    rows = (line.split() for line in (DATA / f"keys_{name}.txt").read_text().splitlines())
    return {key: () if shape == "-" else tuple(map(int, shape.split("x"))) for key, shape in rows}


def fill(key, shape):
    """A weight that depends on its key and shape alone, of a size that keeps activations in range."""
    normal = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape)
    last = key.rsplit(".", 1)[-1]
    if last == "num_batches_tracked":
        return np.zeros((), np.int64)
    if last == "running_var":
        return (1 + 0.1 * np.abs(normal)).astype(np.float32)
    if last in ("running_mean", "bias"):
        return (0.1 * normal).astype(np.float32)
    if len(shape) == 1:
        return (1 + 0.1 * normal).astype(np.float32)
    gain = 32 if "predictor" in key else 1 if key.startswith("backbone.") else 2
    return (normal * np.sqrt(gain / np.prod(shape[1:]))).astype(np.float32)


def filled(name):
    """A whole state dictionary of arrays."""
    return {key: fill(key, shape) for key, shape in keys(name).items()}


def make_image(height, width, seed=7):
    """Blocks of 16 pixels under noise: uint8 RGB, (3, height, width)."""
    base = np.random.RandomState(seed).randint(0, 256, (3, height // 16, width // 16))
    noise = np.random.RandomState(seed + 1).randint(-20, 21, (3, height, width))
    return np.clip(np.kron(base, np.ones((16, 16), np.int64)) + noise, 0, 255).astype(np.uint8)
