"""COCO panoptic 2017: stills, every pixel labelled; RGB PNG of segment ids, whose classes stand in one JSON."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from post_platform.datasets import zips
from post_platform.datasets.files import decode_label_png, is_junk, missing, read_json, require_folder
from post_platform.datasets.frame import FrameRef, Label
from post_platform.errors import DataError
from post_platform.labels import UNIDENTIFIED, VOID, load_contract, thing_table

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Segments:
    """One image's label: a PNG file, or a member of the nested zip, and (segment id, category id, iscrowd) rows."""

    png: Path
    member: str | None
    rows: tuple[tuple[int, int, int], ...]


def frames(source: Path, split: str) -> list[FrameRef]:
    """Every image of a split as a sequence of one frame, in name order.

    Label PNGs are found in `panoptic_<split>2017/`, beside the JSON, or in the zip as it comes, which is read in place.

    Raises: MissingSplit, or DataError when an annotated image or its PNG is missing or an unknown category is used.
    """
    require_folder("coco_panoptic", source)
    images = source / f"{split}2017"
    if not images.is_dir():
        raise missing("coco_panoptic", split, source, [f"{split}2017/<image>.jpg"])
    present = {entry.name for entry in os.scandir(images) if not is_junk(entry.name)}
    if split == "test":
        return [_ref(images / name, None) for name in sorted(present) if name.endswith(".jpg")]
    content, path = _read_json(source, split)
    try:
        names, labels = _join(content, _PngSource(source, split), split)
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise DataError(f"coco_panoptic {split}: {path} is malformed: {error!r}") from error
    absent = sorted(set(names) - present)
    if absent:
        raise DataError(
            f"coco_panoptic {split}: {len(absent)} of {len(names)} images are not in {images}, first {absent[0]!r}",
            hint=f"unpack {split}2017.zip completely",
        )
    return [_ref(images / name, labels.get(name)) for name in sorted(names)]


def label(ref: FrameRef) -> Label:
    """The label of one image; objects are numbered from 1 by ascending native segment id.

    Raises: DataError for a segment of the PNG that the JSON does not know, or an unreadable file.
    """
    where = f"coco_panoptic {ref.key}"
    assert isinstance(ref.label, Segments)
    content = ref.label.png if ref.label.member is None else zips.read_member(ref.label.png, ref.label.member, where)
    rgb = decode_label_png(content, where, "RGB").astype(np.int32)
    values = rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]
    rows = sorted({(0, VOID, 0), *ref.label.rows})
    segments = np.array([segment for segment, _, _ in rows], np.int32)
    place = np.searchsorted(segments, values).clip(max=len(rows) - 1)
    foreign = values[segments[place] != values]
    if foreign.size:
        raise DataError(f"{where}: segment {int(foreign[0])} of the label PNG is not in the JSON")
    thing = thing_table(load_contract("coco_panoptic"))
    drawn = np.bincount(place.ravel(), minlength=len(rows)) > 0
    instances = np.zeros(len(rows), np.uint16)
    native_ids: dict[str, int] = {}
    for position, (segment, category, crowd) in enumerate(rows):
        if thing[category] and crowd:
            instances[position] = UNIDENTIFIED
        elif thing[category] and drawn[position]:
            instances[position] = len(native_ids) + 1
            native_ids[f"{category}/{len(native_ids) + 1}"] = segment
    classes = np.array([category for _, category, _ in rows], np.uint8)
    return Label(classes[place], instances[place], native_ids)


def _join(content: dict[str, list[dict]], pngs: _PngSource, split: str) -> tuple[set[str], dict[str, Segments]]:
    """The file names of all images, and the labels of the annotated ones, by file name."""
    names = {int(entry["id"]): str(entry["file_name"]) for entry in content["images"]}
    known = {entry.id for entry in load_contract("coco_panoptic").classes}
    labels: dict[str, Segments] = {}
    for entry in content["annotations"]:
        name = names.get(entry["image_id"])
        if name is None:
            raise DataError(f"coco_panoptic {split}: an annotation is of the unlisted image {entry['image_id']}")
        rows = tuple((int(s["id"]), int(s["category_id"]), int(s.get("iscrowd", 0))) for s in entry["segments_info"])
        key = f"{PurePosixPath(name).stem}/000000"
        if len({segment for segment, _, _ in rows}) < len(rows) or any(not 0 < row[0] < 1 << 24 for row in rows):
            raise DataError(f"coco_panoptic {key}: segment ids must be unique and in 1..16777215")
        for segment, category, _ in rows:
            if category not in known:
                raise DataError(f"coco_panoptic {key}: segment {segment} has unknown category {category}")
        labels[name] = pngs.segments(entry["file_name"], rows)
    return set(names.values()), labels


def _ref(image: Path, segments: Segments | None) -> FrameRef:
    return FrameRef(image.stem, 0, image, segments, None, f"coco/{image.stem}")


def _read_json(source: Path, split: str) -> tuple[dict[str, list[dict]], Path]:
    name = f"panoptic_{split}2017.json"
    path = next((folder / name for folder in (source / "annotations", source) if (folder / name).is_file()), None)
    if path is None:
        raise DataError(f"coco_panoptic {split}: no annotations/{name} in {source}")
    content = read_json(path, f"coco_panoptic {split}")
    if not isinstance(content, dict) or not {"images", "annotations"} <= content.keys():
        raise DataError(f"coco_panoptic {split}: {path} has no images and annotations; is it the panoptic file?")
    return content, path


class _PngSource:
    """Finds label PNGs by name: in a folder if there is one, else in the nested zip."""

    def __init__(self, source: Path, split: str) -> None:
        self.split = split
        name = f"panoptic_{split}2017"
        parents = (source, source / "annotations", source / "annotations" / name)
        self.folder = next((parent / name for parent in parents if (parent / name).is_dir()), None)
        self.zip: Path | None = None
        if self.folder is not None:
            if (self.folder / name).is_dir():  # unzipped into a folder of its own name
                self.folder = self.folder / name
            self.present = {entry.name: entry.name for entry in os.scandir(self.folder) if not is_junk(entry.name)}
            return
        self.zip = next((path for parent in parents[:2] if (path := parent / f"{name}.zip").is_file()), None)
        if self.zip is None:
            raise DataError(f"coco_panoptic {split}: neither {name}/ nor annotations/{name}.zip in {source}")
        self.present = zips.members(self.zip)

    def segments(self, name: str, rows: tuple[tuple[int, int, int], ...]) -> Segments:
        """The label called `name`. Raises: DataError when there is no such PNG."""
        if name not in self.present:
            raise DataError(f"coco_panoptic {self.split}: label {name!r} is not in {self.folder or self.zip}")
        if self.zip is not None:
            return Segments(self.zip, self.present[name], rows)
        assert self.folder is not None
        return Segments(self.folder / self.present[name], None, rows)
