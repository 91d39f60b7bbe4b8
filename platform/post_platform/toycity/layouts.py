"""Writes toy worlds in three official layouts, each with its dataset's own label rules and traps.

Nothing here is shared with the readers or the converter: they are tested against these files.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as rle

from post_platform.toycity.backdrop import BUILDING, ROAD, SIDEWALK, SKY, VEGETATION
from post_platform.toycity.world import BICYCLE, CAR, PERSON, RIDER, TRUCK, Scene, Style, World

TRAIN_SEQUENCES = ("0000", "0001", "0003", "0004", "0005", "0009", "0011", "0012", "0015", "0017", "0019", "0020")
VAL_SEQUENCES = ("0002", "0006", "0007", "0008", "0010", "0013", "0014", "0016", "0018")
_SECOND_SIZE = (-3, -10)  # KITTI's sizes differ per sequence; neither of these divides by 16


@dataclass(frozen=True)
class Video:
    """One sequence to be written."""

    sequence: str
    split: str
    world: World


def write_all(
    folder: Path,
    seed: int = 0,
    train_frames: int = 20,
    val_frames: int = 16,
    stills: int = 160,
    height: int = 128,
    width: int = 256,
) -> dict[str, Path]:
    """Write kitti_mots, kitti_step and coco_panoptic below `folder`, and return where each lies.

    Each has six training and two validation sequences, COCO `stills` training and a sixth as many validation images.
    No two of them show the same street.
    """
    folders = {name: Path(folder) / name for name in ("kitti_mots", "kitti_step", "coco_panoptic")}
    write_kitti_mots(folders["kitti_mots"], 10 * seed + 1, train_frames, val_frames, height, width)
    write_kitti_step(folders["kitti_step"], 10 * seed + 2, train_frames, val_frames, height, width)
    write_coco_panoptic(folders["coco_panoptic"], 10 * seed + 3, stills, max(2, stills // 6), height, width)
    return folders


def videos(seed: int, train: int, val: int, train_frames: int, val_frames: int, height: int, width: int) -> list[Video]:
    """Plan the sequences: official numbers, every second of another size, training and held-out worlds.

    The second training and the second validation sequence start with an empty street, as KITTI's 0006 does.
    """
    planned = []
    for split, names, count, frames in (
        ("train", TRAIN_SEQUENCES, train, train_frames),
        ("val", VAL_SEQUENCES, val, val_frames),
    ):
        for k, sequence in enumerate(names[:count]):
            dy, dx = _SECOND_SIZE if k % 2 else (0, 0)
            world = World(
                1000 * seed + int(sequence),
                frames,
                height + dy,
                width + dx,
                "train" if split == "train" else "held_out",
                quiet=k == 1,
                crowd=k != 2,
            )
            planned.append(Video(sequence, split, world))
    return planned


def write_kitti_mots(
    folder: Path,
    seed: int,
    train_frames: int = 20,
    val_frames: int = 16,
    height: int = 128,
    width: int = 256,
    train: int = 6,
    val: int = 2,
) -> None:
    """Write KITTI-MOTS: uint16 `class*1000 + instance` PNGs and the same masks as text.

    Only cars and pedestrians are labelled, instances from 0; crowds are the ignore region 10000; riders and lorries
    are background. `testing/` holds another video under a training video's number.
    """
    planned = videos(seed, train, val, train_frames, val_frames, height, width)
    for video in planned:
        lines: list[str] = []
        numbers: dict[tuple[int, int], int] = {}
        for t in range(video.world.frames):
            scene = video.world.render(t)
            _save(folder / "training" / "image_02" / video.sequence / f"{t:06d}.png", scene.image)
            code = _mots_code(scene, numbers)
            _save(folder / "instances" / video.sequence / f"{t:06d}.png", code)
            lines += _mots_lines(t, code)
        text = folder / "instances_txt" / f"{video.sequence}.txt"
        text.parent.mkdir(parents=True, exist_ok=True)
        text.write_text("".join(f"{line}\n" for line in lines))
    testing = World(1000 * seed + 999, 2, height, width, "held_out")
    for t in range(testing.frames):
        _save(folder / "testing" / "image_02" / "0000" / f"{t:06d}.png", testing.render(t).image)
    for split in ("train", "val"):
        rows = [f"{v.sequence} empty 000000 {v.world.frames - 1:06d}\n" for v in planned if v.split == split]
        (folder / f"{split}.seqmap").write_text("".join(rows))
    (folder / "test.seqmap").write_text("0000 empty 000000 000001\n")


def _mots_code(scene: Scene, numbers: dict[tuple[int, int], int]) -> np.ndarray:
    """Return the uint16 label; `numbers` keeps each track's instance number, from 0 per class by first appearance."""
    code = np.zeros(scene.classes.shape, np.uint16)
    for native, mots in ((CAR, 1), (PERSON, 2)):
        here = scene.classes == native
        code[here & (scene.instances == 0)] = 10000
        for track in np.unique(scene.instances[here & (scene.instances > 0)]).tolist():
            used = sum(1 for kind, _ in numbers if kind == mots)
            code[here & (scene.instances == track)] = mots * 1000 + numbers.setdefault((mots, track), used)
    return code


def _mots_lines(t: int, code: np.ndarray) -> list[str]:
    height, width = code.shape
    lines = []
    for value in np.unique(code[code > 0]).tolist():
        counts = rle.encode(np.asfortranarray(code == value, dtype=np.uint8))["counts"].decode("ascii")
        lines.append(f"{t} {value} {value // 1000} {height} {width} {counts}")
    return lines


def write_kitti_step(
    folder: Path,
    seed: int,
    train_frames: int = 20,
    val_frames: int = 16,
    height: int = 128,
    width: int = 256,
    train: int = 6,
    val: int = 2,
) -> None:
    """Write KITTI-STEP: RGB PNGs with the trainId in R and `G*256 + B` the instance, from 1.

    Only persons and cars have instances; riders, lorries and bicycles have 0, as has a crowd. Void (255) is a thin
    ring around every instance, and a wider one where it touches a crowd of its own class.
    """
    for video in videos(seed, train, val, train_frames, val_frames, height, width):
        numbers: dict[tuple[int, int], int] = {}
        for t in range(video.world.frames):
            scene = video.world.render(t)
            name = f"{video.split}/{video.sequence}/{t:06d}.png"
            _save(folder / "images" / name, scene.image)
            _save(folder / "panoptic_maps" / name, _step_label(scene, numbers))


def _step_label(scene: Scene, numbers: dict[tuple[int, int], int]) -> np.ndarray:
    """Return (H, W, 3) uint8. Every third pedestrian is numbered from 300 on, so that G is needed."""
    classes, instances = scene.classes.copy(), np.zeros(scene.classes.shape, np.uint16)
    for native in (PERSON, CAR):
        for track in np.unique(scene.instances[scene.classes == native]).tolist():
            if track:
                number = 1 + sum(1 for kind, _ in numbers if kind == native)
                number += 299 if native == PERSON and number % 3 == 2 else 0
                here = (scene.classes == native) & (scene.instances == track)
                instances[here] = numbers.setdefault((native, track), number)
        touched = _grow(instances * (scene.classes == native) > 0, 3) & (scene.classes == native) & (instances == 0)
        classes[touched] = 255
    classes[_grow(instances > 0, 1) & (instances == 0)] = 255
    return np.stack([classes, instances // 256, instances % 256], axis=-1).astype(np.uint8)


def _grow(mask: np.ndarray, steps: int) -> np.ndarray:
    """Dilate by `steps` pixels in the four directions."""
    grown = mask.copy()
    for _ in range(steps):
        before = grown.copy()
        grown[1:] |= before[:-1]
        grown[:-1] |= before[1:]
        grown[:, 1:] |= before[:, :-1]
        grown[:, :-1] |= before[:, 1:]
    return grown


_COCO = (  # id, name, isthing, the trainId drawn so (None: the rug)
    (1, "person", 1, (PERSON, RIDER)),
    (2, "bicycle", 1, (BICYCLE,)),
    (3, "car", 1, (CAR,)),
    (8, "truck", 1, (TRUCK,)),
    (149, "road", 0, (ROAD,)),
    (184, "tree-merged", 0, (VEGETATION,)),
    (187, "sky-other-merged", 0, (SKY,)),
    (191, "pavement-merged", 0, (SIDEWALK,)),
    (197, "building-other-merged", 0, (BUILDING,)),
    (200, "rug-merged", 0, ()),
)


def write_coco_panoptic(
    folder: Path, seed: int, stills: int = 160, val_stills: int = 24, height: int = 128, width: int = 256
) -> None:
    """Write COCO panoptic: JPEGs, one JSON per split, and PNGs whose RGB spells a segment id.

    Riders are persons, poles are void (COCO has no such class), a crowd is one segment. The validation PNGs lie in a
    zip only, beside the `__MACOSX` entries of the real archive; one image in thirty is grey, one in four narrower.
    """
    annotations = folder / "annotations"
    annotations.mkdir(parents=True, exist_ok=True)
    plans: tuple[tuple[str, int, Style], ...] = (("train", stills, "train"), ("val", val_stills, "held_out"))
    for split, count, style in plans:
        images, entries, labels = [], [], []
        for k in range(count):
            number = 139 + 146 * k + (1 if split == "train" else 0)
            wide = width * 3 // 4 if k % 4 == 3 else width
            world = World(100_000 * seed + number, 8, height, wide, style, crowd=k % 3 == 0, rug=k % 4 == 1)
            scene = world.render(k % 8)
            picture = Image.fromarray(scene.image)
            path = folder / f"{split}2017" / f"{number:012d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            (picture.convert("L") if k % 30 == 3 else picture).save(path, quality=92)
            ids, segments = _coco_segments(scene)
            images.append(
                {"id": number, "file_name": path.name, "height": height, "width": wide, "license": 1, "coco_url": ""}
            )
            entries.append({"image_id": number, "file_name": f"{number:012d}.png", "segments_info": segments})
            labels.append(
                (
                    f"panoptic_{split}2017/{number:012d}.png",
                    np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8),
                )
            )
        categories = [{"id": i, "name": n, "isthing": t, "supercategory": "toy"} for i, n, t, _ in _COCO]
        content = {
            "info": {"description": "toy city"},
            "licenses": [],
            "images": images,
            "annotations": entries,
            "categories": categories,
        }
        (annotations / f"panoptic_{split}2017.json").write_text(json.dumps(content))
        if split == "train":
            for name, label in labels:
                _save(annotations / name, label)
        else:
            _zip(annotations / "panoptic_val2017.zip", labels)


def _coco_segments(scene: Scene) -> tuple[np.ndarray, list[dict]]:
    """Return the (H, W) segment ids, below 2**24 and mostly above 65535, and their description."""
    ids = np.zeros(scene.classes.shape, np.int64)
    segments: list[dict] = []
    for category, _, isthing, drawn in _COCO:
        here = np.isin(scene.classes, drawn) & ~scene.rug if drawn else scene.rug
        parts = (
            [(here & (scene.instances == track), int(track == 0)) for track in np.unique(scene.instances[here])]
            if isthing
            else [(here, 0)]
        )
        for mask, crowd in parts:
            if not mask.any():
                continue
            segment = (4242 + 1_234_577 * len(segments)) % 2**24
            ids[mask] = segment
            ys, xs = np.nonzero(mask)
            box = [int(xs.min()), int(ys.min()), int(xs.max() - xs.min() + 1), int(ys.max() - ys.min() + 1)]
            segments.append(
                {"id": segment, "category_id": category, "iscrowd": crowd, "area": int(mask.sum()), "bbox": box}
            )
    return ids, segments


def _save(path: Path, array: np.ndarray) -> None:
    """Write a PNG: uint16 for (H, W), RGB for (H, W, 3)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, compress_level=3)


def _zip(path: Path, labels: Sequence[tuple[str, np.ndarray]]) -> None:
    """Write the nested archive, with fixed dates and the resource forks that the real one carries."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, label in labels:
            data = io.BytesIO()
            Image.fromarray(label).save(data, "PNG", compress_level=3)
            archive.writestr(zipfile.ZipInfo(name, (2017, 9, 1, 0, 0, 0)), data.getvalue())
            folder, file = name.split("/")
            archive.writestr(zipfile.ZipInfo(f"__MACOSX/{folder}/._{file}", (2017, 9, 1, 0, 0, 0)), b"\x00\x05\x16\x07")
