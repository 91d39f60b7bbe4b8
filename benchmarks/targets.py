"""All training targets of an image on the CPU: at once for a batch, beside one segment after the other."""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[0:1] = [str(ROOT / "platform"), str(ROOT / "model"), str(ROOT / "tests")]

from post_scene import THINGS, make_scene

from post_model.batch import Batch
from post_model.branches.center import center_target, center_weight
from post_model.branches.offset import offset_target
from post_model.branches.semantic import semantic_weight
from post_model.taxonomy import LabelTables

SIGMA, SMALL_AREA, SMALL_WEIGHT = 10, 4096, 3.0
SCENES = {20: 2044, 60: 2084}  # objects drawn (55 of the 60 stay visible): seed of the scene


def per_segment(panoptic: np.ndarray, gaussian: np.ndarray) -> dict[str, np.ndarray]:
    """The straightforward way: a mask for each segment, and everything that concerns it written through the mask."""
    height, width = panoptic.shape
    reach = len(gaussian) // 2
    out = {name: np.zeros((height, width), np.float32) for name in ("center", "center_weight", "offset_weight")}
    out["offset"] = np.zeros((2, height, width), np.float32)
    out["semantic_weight"] = np.ones((height, width), np.float32)
    out["semantic"] = np.full((height, width), 255, np.uint8)
    for segment in np.unique(panoptic):
        if segment < 0:
            continue
        mask = panoptic == segment
        out["semantic"][mask] = segment // 1000
        out["center_weight"][mask] = 1
        if segment % 1000 == 0:
            continue
        ys, xs = np.nonzero(mask)
        if len(ys) < SMALL_AREA:
            out["semantic_weight"][mask] = SMALL_WEIGHT
        out["offset_weight"][mask] = 1
        cy, cx = ys.mean(), xs.mean()
        out["offset"][0][mask], out["offset"][1][mask] = cy - ys, cx - xs
        y, x = round(cy), round(cx)
        top, bottom, left, right = (
            max(0, y - reach),
            min(height, y + reach + 1),
            max(0, x - reach),
            min(width, x + reach + 1),
        )
        patch = gaussian[top - y + reach : bottom - y + reach, left - x + reach : right - x + reach]
        out["center"][top:bottom, left:right] = np.maximum(out["center"][top:bottom, left:right], patch)
    return out


def at_once(batch: Batch, tables: LabelTables) -> dict[str, torch.Tensor]:
    """The same through `post_model`, beginning with the search for objects."""
    fresh = Batch(*(getattr(batch, name) for name in Batch.__dataclass_fields__))
    offset, weight = offset_target(fresh.objects)
    return {
        "center": center_target(fresh.objects, SIGMA), "center_weight": center_weight(fresh, tables),
        "offset": offset, "offset_weight": weight,
        "semantic": fresh.classes, "semantic_weight": semantic_weight(fresh.objects, SMALL_AREA, SMALL_WEIGHT),
    }  # fmt: skip


def as_batch(panoptic: np.ndarray, size: int) -> Batch:
    void = panoptic < 0
    classes = torch.from_numpy(np.where(void, 255, panoptic // 1000).astype(np.uint8)).expand(size, -1, -1).contiguous()
    instances = torch.from_numpy(np.where(void, 0, panoptic % 1000).astype(np.int32)).expand(size, -1, -1).contiguous()
    image = torch.zeros(size, 3, *panoptic.shape, dtype=torch.uint8)
    return Batch(
        image, image, classes, instances, classes, instances, torch.zeros(size, dtype=torch.long), torch.ones(size)
    )


def street_tables() -> LabelTables:
    """Cityscapes-like labels: every class proves what it is, also that it hides no other object."""
    allowed = torch.ones(1, 256, 19, dtype=torch.bool)
    allowed[0, :19] = torch.eye(19, dtype=torch.bool)
    index = torch.arange(256)[None]
    return LabelTables(allowed, (index >= THINGS[0]) & (index < 19), index < 19)


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, epilog="example: python benchmarks/targets.py --repeats 15")
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    reach = 3 * SIGMA + 1
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    gaussian = np.exp(-(y**2 + x**2) / (2 * SIGMA**2)).astype(np.float32)
    tables = street_tables()
    print(f"1024x2048, {torch.get_num_threads()} threads, median of {repeats} interleaved runs, per image")
    print(f"{'objects':>8} {'batch':>6} {'per segment ms':>15} {'at once ms':>11} {'ratio':>6}")
    for drawn, seed in SCENES.items():
        panoptic, ids = make_scene(1024, 2048, drawn, seed=seed)
        expected = per_segment(panoptic, gaussian)
        for size in (1, 4):
            batch = as_batch(panoptic, size)
            for name, value in at_once(batch, tables).items():
                np.testing.assert_allclose(value[-1].numpy().astype(np.float32), expected[name], atol=1e-6)
            runs = partial(per_segment, panoptic, gaussian), partial(at_once, batch, tables)
            times = [(seconds(runs[0]), seconds(runs[1]) / size) for _ in range(repeats)]
            slow, fast = (statistics.median(column) * 1e3 for column in zip(*times, strict=True))
            print(f"{len(ids):8d} {size:6d} {slow:15.1f} {fast:11.1f} {slow / fast:6.1f}")


if __name__ == "__main__":
    main()
