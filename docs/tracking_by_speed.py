"""Draws docs/tracking_by_speed.png: how often an object keeps its track from one frame to the next, by its speed.

Run: python docs/tracking_by_speed.py --checkpoint quickstart/runs/toycity/checkpoints/step_00001050
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0:1] = [str(ROOT / "platform"), str(ROOT / "model")]

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch

from post_model import tracker
from post_model.branches.center import center_target
from post_model.branches.offset import offset_target
from post_model.branches.prev_offset import motion_target
from post_model.fusion import fuse
from post_model.objects import find_objects
from post_model.predictor import Predictor
from post_platform.toycity import Scene, World
from post_platform.toycity.world import THINGS

EDGES = (0, 0.1, 0.2, 0.35, 0.6, 1.2, 1.6, 4.0)  # own widths per frame
INK, SOFT, PAPER = "#2b2d31", "#6d717a", "#fbfaf7"
COLORS = {"prev_offset": "#1f6feb", "iou": "#d1622b"}
LABELS = {"prev_offset": "previous-offset votes", "iou": "mask IoU"}
FIRST_SEED = 500_000  # no world of the quickstart is among these


@dataclass(frozen=True)
class Link:
    """An object in two successive frames: how fast it was, and whether its track went on."""

    speed: float
    kept: bool


def truth(scene: Scene) -> dict[int, np.ndarray]:
    """The mask of every object with an identity, by its number."""
    numbers = np.unique(scene.instances[np.isin(scene.classes, THINGS)])
    return {int(number): scene.instances == number for number in numbers if number}


def match(masks: dict[int, np.ndarray], tracks: np.ndarray) -> dict[int, int]:
    """The track that covers each object by an IoU above one half; at most one can."""
    found = {}
    for number, mask in masks.items():
        ids, common = np.unique(tracks[mask], return_counts=True)
        for track, shared in zip(ids.tolist(), common.tolist(), strict=True):
            if track and shared / (mask.sum() + (tracks == track).sum() - shared) > 0.5:
                found[number] = track
    return found


def links(scenes: list[Scene], maps: list[np.ndarray]) -> Iterator[Link]:
    """Every object that is matched in two successive frames, and not cut off by the border in either."""
    before: dict[int, tuple[int, float, float]] = {}
    for scene, tracks in zip(scenes, maps, strict=True):
        masks = truth(scene)
        now = {}
        for number, track in match(masks, tracks).items():
            columns = np.flatnonzero(masks[number].any(0))
            if columns[0] > 0 and columns[-1] < tracks.shape[1] - 1:
                now[number] = (track, (columns[0] + columns[-1]) / 2, columns[-1] - columns[0] + 1)
        for number, (track, x, width) in now.items():
            if number in before:
                old, old_x, old_width = before[number]
                yield Link(abs(x - old_x) / ((width + old_width) / 2), track == old)
        before = now


def predicted(predictor: Predictor, scenes: list[Scene]) -> list[np.ndarray]:
    predictor.forget()
    return [predictor(scene.image).tracks.numpy() for scene in scenes]


def perfect(scenes: list[Scene], tracking: str) -> list[np.ndarray]:
    """Fusion and tracker on the maps that a perfect network would give."""
    thing = torch.isin(torch.arange(256), torch.tensor(THINGS))
    state, before, found = tracker.start(), None, []
    for scene in scenes:
        classes = torch.from_numpy(scene.classes.copy())
        instances = torch.from_numpy(scene.instances.astype(np.int32)) * thing[classes.long()]
        objects = find_objects(classes[None], instances[None].int(), torch.ones(1, dtype=torch.bool))
        logits = torch.nn.functional.one_hot(classes.long(), 256).permute(2, 0, 1)[None].float()
        offset, _ = offset_target(objects)
        panoptic = fuse(logits, center_target(objects, 4.0)[:, None], offset, thing, merge_plateaus=True).image(0)
        motion = motion_target(objects, before)[0][0] if before and tracking == "prev_offset" else None
        ids, state = tracker.step(panoptic, motion, state)
        found.append(ids.numpy())
        before = objects
    return found


def interval(kept: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % confidence interval of a share."""
    share, z = kept / total, 1.96
    middle = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * np.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    return middle - half, middle + half


def binned(found: list[Link]) -> list[tuple[int, int]]:
    """(kept, total) of each interval of EDGES; the last one takes all that is faster."""
    place = np.minimum(np.searchsorted(EDGES, [link.speed for link in found], "right") - 1, len(EDGES) - 2)
    return [
        (
            sum(link.kept for link, where in zip(found, place, strict=True) if where == index),
            int((place == index).sum()),
        )
        for index in range(len(EDGES) - 1)
    ]


def draw(results: dict[str, dict[str, list[tuple[int, int]]]], out: Path) -> None:
    figure, axes = plt.subplots(figsize=(8.6, 4.6), dpi=110, facecolor=PAPER)
    axes.set_facecolor(PAPER)
    places = np.arange(len(EDGES) - 1)
    for shift, tracking in ((-0.06, "prev_offset"), (0.06, "iou")):
        counts = results["network"][tracking]
        share = np.array([kept / total for kept, total in counts])
        low, high = np.array([interval(*count) for count in counts]).T
        axes.errorbar(
            places + shift, 100 * share, 100 * np.array([share - low, high - share]), color=COLORS[tracking],
            marker="o", lw=2, capsize=3, label=f"{LABELS[tracking]}, trained network",
        )  # fmt: skip
        ideal = [100 * kept / total for kept, total in results["perfect"][tracking]]
        axes.plot(
            places + shift, ideal, color=COLORS[tracking], ls=":", lw=1.6, label=f"{LABELS[tracking]}, perfect maps"
        )
    names = [f"{a:g} to {b:g}" for a, b in pairwise(EDGES[:-1])] + [f"above {EDGES[-2]:g}"]
    totals = [total for _, total in results["network"]["prev_offset"]]
    axes.set_xticks(places, [f"{name}\n{total} pairs" for name, total in zip(names, totals, strict=True)], color=INK)
    axes.set_ylim(-3, 103)
    axes.set_xlabel("speed in the image, own widths per frame", color=INK)
    axes.set_ylabel("tracks that go on, %", color=INK)
    axes.set_title(
        "The faster an object, the less its masks overlap; votes do not mind", loc="left", color=INK, size=12
    )
    axes.grid(axis="y", color="#dedbd2", lw=0.8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="lower left")
    figure.tight_layout()
    figure.savefig(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True, help="of the quickstart")
    parser.add_argument("--worlds", type=int, default=24, help="held-out streets (default: 24)")
    parser.add_argument("--frames", type=int, default=16, help="of each street (default: 16)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "tracking_by_speed.png")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the counts")
    arguments = parser.parse_args()
    found: dict[str, dict[str, list[Link]]] = {way: {name: [] for name in COLORS} for way in ("network", "perfect")}
    predictors = {name: Predictor.from_checkpoint(arguments.checkpoint, "kitti_step", tracking=name) for name in COLORS}
    for number in range(arguments.worlds):
        world = World(FIRST_SEED + number, arguments.frames, style="held_out")
        scenes = [world.render(t) for t in range(arguments.frames)]
        for name, predictor in predictors.items():
            found["network"][name] += links(scenes, predicted(predictor, scenes))
            found["perfect"][name] += links(scenes, perfect(scenes, name))
        print(f"street {number + 1} of {arguments.worlds}", flush=True)
    results = {way: {name: binned(items) for name, items in rows.items()} for way, rows in found.items()}
    for way, rows in results.items():
        for name, counts in rows.items():
            kept, total = (sum(column) for column in zip(*counts, strict=True))
            print(f"{way:8} {name:12} {100 * kept / total:5.1f} % of {total}: "
                  + ", ".join(f"{kept}/{total}" for kept, total in counts))  # fmt: skip
    draw(results, arguments.out)
    if arguments.json:
        arguments.json.write_text(json.dumps({"edges": EDGES, **results}) + "\n")


if __name__ == "__main__":
    main()
