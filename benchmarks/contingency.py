"""Frames per second of the contingency table beside a sort of the 64-bit image of pairs, the way official tools count.

Run: python benchmarks/contingency.py [--repeats N]
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "platform"))

import numpy as np

from post_platform.metrics.contingency import frame_table

Maps = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def scene(height: int, width: int, objects: int, jitter: int, seed: int = 0) -> Maps:
    """A street of bands with ellipses, and a prediction in which every ellipse is off by up to `jitter` pixels."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    bands = (rows * 5 // height).astype(np.uint8)
    truth, pred = (
        (bands.copy(), np.zeros((height, width), np.int32)),
        (bands.copy(), np.zeros((height, width), np.int32)),
    )
    for track in range(1, objects + 1):
        y, x, ry, rx = random.integers((0, 0, height // 25, width // 60), (height, width, height // 8, width // 20))
        native = 11 + 2 * int(random.integers(2))
        for (classes, tracks), off in ((truth, 0), (pred, jitter)):
            dy, dx = random.integers(-off, off + 1, 2) if off else (0, 0)
            inside = ((rows - y - dy) / ry) ** 2 + ((columns - x - dx) / rx) ** 2 <= 1
            classes[inside], tracks[inside] = native, track
    return truth[0], truth[1].astype(np.uint16), pred[0], pred[1]


def noisy(maps: Maps, share: float, seed: int = 1) -> Maps:
    """The same with a share of the predicted pixels replaced at random: an untrained network."""
    random = np.random.default_rng(seed)
    wrong = random.random(maps[0].shape) < share
    classes, tracks = maps[2].copy(), maps[3].copy()
    classes[wrong] = random.integers(0, 19, int(wrong.sum()))
    return maps[0], maps[1], classes, tracks


def sort_pairs(truth_classes: np.ndarray, truth_instances: np.ndarray, classes: np.ndarray, tracks: np.ndarray) -> int:
    """The usual way: one 64-bit number per pixel, sorted."""
    truth = truth_classes.astype(np.int64) << 16 | truth_instances
    pred = classes.astype(np.int64) << 16 | tracks
    return len(np.unique(truth << 32 | pred, return_counts=True)[0])


def table(*maps: np.ndarray) -> int:
    """Ours, up to and with the Arrow table."""
    return frame_table("benchmark", "0000", 0, *maps).num_rows


def median_ms(count: Callable[..., int], maps: Maps, repeats: int) -> float:
    """Median wall time of one frame in milliseconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        count(*maps)
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20)
    args = parser.parse_args()
    street, large = scene(375, 1242, 20, 4), scene(1024, 2048, 60, 6)
    cases = {
        "375x1242, 20 objects": street,
        "375x1242, 20 objects, 2 % noise": noisy(street, 0.02),
        "375x1242, 20 objects, 30 % noise": noisy(street, 0.3),
        "375x1242, pure noise": noisy(street, 1.0),
        "1024x2048, 60 objects": large,
    }
    print(f"{'case':34} {'table ms':>9} {'sort ms':>9} {'ratio':>6}")
    for name, maps in cases.items():
        assert table(*maps) == sort_pairs(*maps)
        ours, theirs = (median_ms(count, maps, args.repeats) for count in (table, sort_pairs))
        print(f"{name:34} {ours:9.2f} {theirs:9.2f} {theirs / ours:6.1f}")


if __name__ == "__main__":
    main()
