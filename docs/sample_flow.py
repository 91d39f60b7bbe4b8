"""Draws docs/sample_flow.png: one toy-city street, labelled by two datasets' rules, on its way through the real code.

Run: python docs/sample_flow.py [--out docs/sample_flow.png]
"""

import argparse
import io
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0:1] = [str(ROOT / "platform"), str(ROOT / "model")]

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.colors import hsv_to_rgb
from matplotlib.gridspec import GridSpec
from PIL import Image
from scipy.ndimage import distance_transform_edt

from post_model.batch import Batch
from post_model.branches.center import center_target, center_weight
from post_model.branches.offset import offset_target
from post_model.branches.prev_offset import motion_target
from post_model.fusion import fuse
from post_model.taxonomy import LabelTables
from post_model.tracker import start, step
from post_platform import render, toycity
from post_platform.data.augment import Augmentation, Frame, augment
from post_platform.datasets import reader
from post_platform.labels import UNIDENTIFIED, VOID, load_contract, thing_table
from post_platform.shards import record
from post_platform.shards.index import INDEX_SCHEMA, Split
from post_platform.shards.write import encode_frame
from post_platform.training.vocabulary import class_names, label_tables

WORLD_SEED, FRAME, SIZE, SEQUENCE = 8, 5, (256, 512), "0000"
RULES = Augmentation(crop=(192, 384), scale=(0.9, 0.9), still_motion=False)
DATASETS = ("kitti_step", "kitti_mots", "coco_panoptic")  # the mixture; the first two are drawn
SIGMA = 8.0
INK, SOFT, PAPER, EMPTY = "#2b2d31", "#6d717a", "#fbfaf7", 236


@dataclass(frozen=True)
class Labelled:
    """One dataset's view of the street: its file as it lies on disk, and its clip after the augmentation."""

    official: np.ndarray
    stored: record.Record
    now: Frame
    prev: Frame


def load(dataset: str, source: Path, seed: int) -> Labelled:
    """Official files -> shard bytes -> record -> clip, as convert.py and the loader do it."""
    refs = [ref for ref in reader(dataset).frames(source, "train") if ref.sequence == SEQUENCE]
    pair = [record.decode(encode_frame(dataset, "train", ref, False)[0]) for ref in (refs[FRAME], refs[FRAME - 1])]
    frames = [Frame(found.image, found.classes, found.instances) for found in pair]
    folder = source / {"kitti_step": "panoptic_maps/train", "kitti_mots": "instances"}[dataset]
    official = np.asarray(Image.open(folder / SEQUENCE / f"{FRAME:06d}.png"))
    return Labelled(official, pair[0], *augment(frames[0], frames[1], RULES, seed))


def mixture(folder: Path) -> tuple[tuple[str, ...], LabelTables]:
    """The classes that a model of the three datasets has, and its label tables, by what their frames contain."""
    splits = []
    for dataset in DATASETS:
        refs = reader(dataset).frames(folder / dataset, "train")
        present = {str(c) for ref in refs for c in np.unique(reader(dataset).label(ref).classes)}
        splits.append(Split(dataset, "train", "", INDEX_SCHEMA.empty_table(), {"classes": dict.fromkeys(present, 1)}))
    names = class_names(splits, "observed")
    return names, label_tables(splits, names)


def batch_of(clip: Labelled) -> Batch:
    """The clip as a batch of one, of the mixture's first dataset."""

    def image(frame: Frame) -> torch.Tensor:
        return torch.from_numpy(frame.image.copy()).permute(2, 0, 1)[None]

    def ids(layer: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(layer.astype(np.int32))[None]

    return Batch(
        image(clip.now), image(clip.prev), torch.from_numpy(clip.now.classes)[None], ids(clip.now.instances),
        torch.from_numpy(clip.prev.classes)[None], ids(clip.prev.instances), torch.zeros(1, dtype=torch.int64),
        torch.ones(1),
    )  # fmt: skip


def tracks_of_truth(clip: Labelled) -> list[np.ndarray]:
    """Fusion and tracker at t-1 and t, fed with the targets instead of a network's output: two (H, W) maps of ids."""
    thing = torch.from_numpy(thing_table(load_contract("kitti_step")))
    both, state, found = batch_of(clip), start(), []
    motion, _ = motion_target(both.objects, both.prev_objects)
    frames = ((clip.prev, both.prev_objects, None), (clip.now, both.objects, motion[0]))
    for frame, objects, prev_offset in frames:
        classes = torch.from_numpy(np.where(frame.instances == UNIDENTIFIED, VOID, frame.classes))[None]
        scores = torch.nn.functional.one_hot(classes.long(), 256).permute(0, 3, 1, 2).float()
        heat, (offset, _) = center_target(objects, SIGMA), offset_target(objects)
        panoptic = fuse(scores, heat[:, None], offset, thing, normalized=True).image(0)
        ids, state = step(panoptic, prev_offset, state)
        found.append(ids.numpy())
    return found


def class_picture(classes: np.ndarray, dataset: str) -> np.ndarray:
    """Class colours; void striped, background light grey."""
    contract = load_contract(dataset)
    picture = render.palette(contract)[classes]
    if contract.background is not None:
        picture[classes == 0] = (214, 214, 210)
    return striped(picture, classes == VOID)


def instance_picture(classes: np.ndarray, instances: np.ndarray) -> np.ndarray:
    """Every (class, instance) in its own colour; pixels without identity striped."""
    picture = np.full((*classes.shape, 3), EMPTY, np.uint8)
    for key in np.unique(classes.astype(np.int64) << 16 | instances).tolist():
        if key & 0xFFFF not in (0, UNIDENTIFIED):
            picture[(classes == key >> 16) & (instances == key & 0xFFFF)] = render.track_color(key >> 16, key & 0xFFFF)
    return striped(picture, instances == UNIDENTIFIED, (240, 160, 60))


def striped(picture: np.ndarray, where: np.ndarray, color: tuple[int, int, int] = (120, 120, 126)) -> np.ndarray:
    """Diagonal stripes over a mask."""
    rows, columns = np.indices(where.shape)
    picture = picture.copy()
    picture[where] = 252
    picture[where & ((rows + columns) % 6 < 2)] = color
    return picture


def set_picture(count: np.ndarray, most: int) -> np.ndarray:
    """How many of the model's classes a pixel may be, as a shade: one is dark, all of them striped."""
    shade = np.log(count) / np.log(most)
    picture = (255 * matplotlib.colormaps["YlGnBu_r"](0.14 + 0.84 * shade)[..., :3]).astype(np.uint8)
    return striped(picture, count == most)


def wheel(offset: np.ndarray, weight: np.ndarray, reach: float) -> np.ndarray:
    """Direction as hue, length as saturation; light grey where no object is."""
    hue = (np.arctan2(offset[0], offset[1]) / (2 * np.pi)) % 1
    length = np.sqrt(np.clip(np.hypot(*offset) / reach, 0, 1))
    color = hsv_to_rgb(np.stack([hue, length, np.full_like(hue, 0.96)], -1))
    return np.where(weight[..., None], (255 * color).astype(np.uint8), np.uint8(EMPTY))


class Sheet:
    """Rows of three panels, each row under a heading."""

    def __init__(self, headings: list[tuple[str, str]]) -> None:
        self.figure = plt.figure(figsize=(12.4, 2.72 * len(headings) + 0.1), dpi=110, facecolor=PAPER)
        self.grid = GridSpec(
            len(headings), 3, left=0.012, right=0.988, top=0.955, bottom=0.026, wspace=0.03, hspace=0.47
        )
        for row, (title, text) in enumerate(headings):
            top = self.grid[row, 0].get_position(self.figure).y1
            self.figure.text(0.012, top + 0.0215, title, size=15, weight="bold", color=INK, va="bottom")
            self.figure.text(0.988, top + 0.0225, text, size=11, color=SOFT, va="bottom", ha="right")

    def panel(self, row: int, column: int, picture: np.ndarray, title: str, note: str) -> plt.Axes:
        """Show a picture with a title above and a note below."""
        axes = self.figure.add_subplot(self.grid[row, column])
        axes.imshow(picture, interpolation="antialiased", aspect="auto")
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_color("#c9c9c4")
        axes.set_title(title, size=11.5, color=INK, loc="left", pad=4)
        axes.text(0, -0.03, note, size=9.6, color=SOFT, transform=axes.transAxes, va="top")
        return axes


def write_on(axes: plt.Axes, where: np.ndarray, text: str) -> None:
    """A small label in the middle of a mask, kept inside the picture."""
    depth = distance_transform_edt(np.pad(where, 1))[1:-1, 1:-1]
    height, width = where.shape
    margin = 5 + 3.4 * len(text)
    inside = np.zeros_like(where)
    inside[10 : height - 10, int(margin) : int(width - margin)] = True
    y, x = np.unravel_index((depth * (inside & where)).argmax(), depth.shape)
    box = {"boxstyle": "round,pad=0.22", "facecolor": "white", "edgecolor": "none", "alpha": 0.88}
    axes.text(x, y, text, size=9, color=INK, ha="center", va="center", bbox=box)


def draw(step: Labelled, mots: Labelled, names: tuple[str, ...], tables: LabelTables) -> plt.Figure:
    """All panels."""
    sheet = Sheet([
        ("1  Official files", "the same street under two datasets' rules"),
        ("2  Shards", "label.png keeps the native classes: R = class, G·256 + B = instance"),
        ("3  A clip", "one geometric draw for both frames and their labels; colours vary per frame"),
        ("4  Targets of frame t", "made on the training device, from integer maps, for the whole batch at once"),
        ("5  Motion", "the fourth branch looks from t-1 to t, and carries identities"),
    ])  # fmt: skip
    file_rows(sheet, step, mots)
    clip_row(sheet, step)
    target_row(sheet, step, mots, names, tables)
    motion_row(sheet, step)
    return sheet.figure


def file_rows(sheet: Sheet, step: Labelled, mots: Labelled) -> None:
    """Image and label files of both datasets, and what the shards keep of them."""
    sheet.panel(0, 0, step.stored.image, f"frame t = {step.stored.key}", "toy city: the truth of every pixel is known")
    raw = np.clip(step.official.astype(int) * (13, 60, 13), 0, 255).astype(np.uint8)
    sheet.panel(0, 1, raw, "KITTI-STEP: RGB PNG, brightened", "19 classes; ids for car and person; void at edges")
    raw = (255 * matplotlib.colormaps["magma"](np.sqrt(mots.official / 10000.0))[..., :3]).astype(np.uint8)
    sheet.panel(0, 2, raw, "KITTI-MOTS: 16-bit PNG", "only cars and pedestrians; a crowd is ignored")
    sheet.panel(1, 0, class_picture(step.stored.classes, "kitti_step"), "kitti_step: class", "striped: 255 void")
    picture = instance_picture(step.stored.classes, step.stored.instances)
    sheet.panel(1, 1, picture, "kitti_step: instance", "grey: 0, no object; striped: 65535, a crowd")
    picture = class_picture(mots.stored.classes, "kitti_mots")
    sheet.panel(1, 2, picture, "kitti_mots: class", "grey: 0 background; striped: 255 void")


def clip_row(sheet: Sheet, step: Labelled) -> None:
    """Both frames after the augmentation, and the label that went with the second."""
    sheet.panel(2, 0, step.prev.image, "frame t-1", "the network sees both frames")
    sheet.panel(2, 1, step.now.image, "frame t", "a still would get a synthetic t-1: itself, moved")
    contract = load_contract("kitti_step")
    painted = render.overlay(*step.now, render.palette(contract), thing_table(contract))
    sheet.panel(2, 2, painted, "frame t with its label", "objects outlined, in colours of their own")


def target_row(sheet: Sheet, step: Labelled, mots: Labelled, names: tuple[str, ...], tables: LabelTables) -> None:
    """Which classes each dataset's label allows, and where the centre heat map is known."""
    for column, clip in ((0, step), (1, mots)):
        contract = load_contract(DATASETS[column])
        count = tables.allowed[column].sum(1).numpy()[clip.now.classes]
        note = f"how many of {len(names)} classes are allowed; striped: all"
        axes = sheet.panel(3, column, set_picture(count, len(names)), f"semantic, {contract.dataset}", note)
        spoken = {entry.id: entry.name for entry in contract.classes}
        spoken |= {0: "anything but car and person:"} if contract.background else {}
        for native, name in spoken.items():
            where = clip.now.classes == native
            if where.mean() > 0.012:
                text = f"{name} {int(count[where][0])}"
                if contract.background and native == 0:
                    where[len(where) // 3 :] = False  # beside the objects, not between them
                write_on(axes, where, text)
    batch = batch_of(step)
    heat, known = center_target(batch.objects, SIGMA)[0].numpy(), center_weight(batch, tables)[0].numpy()
    warm = (255 * matplotlib.colormaps["inferno"](0.04 + 0.94 * heat)[..., :3]).astype(np.uint8)
    note = "striped: may hide another object, so not taught"
    sheet.panel(3, 2, striped(warm, ~known), "centre heat map, kitti_step", note)


def motion_row(sheet: Sheet, clip: Labelled) -> None:
    """Offset, previous offset, and the tracks that fusion and tracker make of perfect maps."""
    batch, contract = batch_of(clip), load_contract("kitti_step")
    offset, weight = (part[0].numpy() for part in offset_target(batch.objects))
    axes = sheet.panel(
        4, 0, wheel(offset, weight, 30), "offset to the object's centre, at t", "hue: direction, as on the wheel"
    )
    inset_wheel(axes)

    motion, moved = (part[0].numpy() for part in motion_target(batch.objects, batch.prev_objects))
    faint = (0.35 * clip.prev.image + 0.65 * 250).astype(np.uint8)
    faint[moved] = (0.75 * wheel(motion, moved, 60)[moved] + 0.25 * clip.prev.image[moved]).astype(np.uint8)
    axes = sheet.panel(4, 1, faint, "previous offset, at t-1", "from where an object was to its centre in t")
    before, after = tracks_of_truth(clip)
    painted = render.overlay(clip.now.image, clip.now.classes, after, render.palette(contract), thing_table(contract))
    result = sheet.panel(
        4, 2, painted, "fusion and tracker, fed with the truth", "dashed: at t-1; numbers: tracks that go on"
    )
    keys = batch.objects.key.tolist()
    for number, key in enumerate(batch.prev_objects.key.tolist()):
        if key not in keys:
            continue
        start, goal = batch.prev_objects.center[number].tolist(), batch.objects.center[keys.index(key)].tolist()
        style = {"arrowstyle": "-|>", "color": INK, "lw": 1.7, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 10}
        axes.annotate("", (goal[1], goal[0]), (start[1], start[0]), arrowprops=style)
        then = (clip.prev.classes == key >> 16 & 255) & (clip.prev.instances == key & 0xFFFF)
        now = (clip.now.classes == key >> 16 & 255) & (clip.now.instances == key & 0xFFFF)
        track_id = int(np.bincount(after[now]).argmax())
        assert track_id == int(np.bincount(before[then]).argmax()), "truth in, but the track changed its number"
        result.contour(then, [0.5], colors="white", linewidths=0.9, linestyles="dashed")
        if now.sum() > 60:
            write_on(result, now, str(track_id))


def inset_wheel(axes: plt.Axes) -> None:
    """The key of the colours of directions."""
    y, x = np.mgrid[-1:1:201j, -1:1:201j]
    alpha = (255 * (np.hypot(y, x) <= 1)).astype(np.uint8)
    inset = axes.inset_axes((0.885, 0.74, 0.105, 0.23))
    inset.imshow(np.dstack([wheel(np.stack([y, x]), np.hypot(y, x) <= 1, 1), alpha]))
    inset.axis("off")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "sample_flow.png", metavar="F.png")
    parser.add_argument("--seed", type=int, default=155, help="of the augmentation (%(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for dataset in DATASETS[:2]:
            write = getattr(toycity, f"write_{dataset}")
            write(folder / dataset, WORLD_SEED, FRAME + 3, 1, *SIZE, train=1, val=1)
        toycity.write_coco_panoptic(folder / "coco_panoptic", WORLD_SEED, 12, 1)
        views = [load(dataset, folder / dataset, options.seed) for dataset in DATASETS[:2]]
        known = mixture(folder)
    buffer = io.BytesIO()
    draw(views[0], views[1], *known).savefig(buffer, facecolor=PAPER)
    picture = np.asarray(Image.open(buffer).convert("RGB")).astype(int)
    rounded = np.minimum(255, (picture + 4) // 8 * 8).astype(np.uint8)  # half the bytes; a palette breaks the wheel
    Image.fromarray(rounded).save(options.out, optimize=True)
    print(f"{options.out}: {options.out.stat().st_size >> 10} KB, {len(known[0])} classes in the mixture")


if __name__ == "__main__":
    main()
