"""One frame <-> its tar members `<key>.{image.jpg|image.png, label.png, meta.json}`; same input, same bytes."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from post_platform.datasets.frame import Label
from post_platform.errors import DataError
from post_platform.images import DAMAGE, ORIENTATION
from post_platform.labels import VOID
from post_platform.shards.pixels import decode_jpeg, decode_label, encode_label

MAX_MEMBER_BYTES = 1 << 28
MAX_PIXELS = 1 << 26
JPEG_QUALITY = 95


@dataclass(frozen=True)
class Record:
    """A decoded frame. Shape: image (H, W, 3) uint8 RGB, classes (H, W) uint8, instances (H, W) uint16."""

    key: str
    image: NDArray[np.uint8]
    classes: NDArray[np.uint8]
    instances: NDArray[np.uint16]
    meta: dict[str, Any]


@dataclass(frozen=True)
class StoredImage:
    """An image as it lies in a shard: encoded bytes, `jpg` or `png`, and its size in pixels."""

    content: bytes
    suffix: str
    height: int
    width: int


def store_image(
    content: bytes, where: str, lossless: bool = False, label_shape: tuple[int, ...] | None = None
) -> StoredImage:
    """A photograph in the form that shards keep: a JPEG stays as it is, byte for byte; a PNG becomes one.

    The PNG is re-encoded at quality 95 without chroma subsampling; under `lossless` it stays a PNG.

    A camera's orientation tag never leaves here, since half of all readers obey it and half do not. Labels are drawn on
    the pixels as they are stored, so the image stays unturned and only its metadata go; where the label's (height,
    width) fits the turned image alone, it is turned and encoded again.

    Raises: DataError naming `where` when the image cannot be decoded.
    """
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"{where}: image is {image.height}x{image.width}, more than {MAX_PIXELS} pixels")
            _require_8_bits(content, image, f"{where}: image")
            image.load()
            jpeg, turned = image.format != "PNG", image.getexif().get(ORIENTATION, 1) != 1
            if turned and label_shape not in (None, (image.height, image.width)):
                upright = ImageOps.exif_transpose(image)
                if label_shape == (upright.height, upright.width):
                    return _reencoded(upright, lossless)
            if jpeg:
                kept = _without_exif(content) if turned else content
                return StoredImage(kept, "jpg", image.height, image.width)
            if lossless and not turned and image.mode in ("RGB", "L"):
                return StoredImage(content, "png", image.height, image.width)
            return _reencoded(image, lossless)
    except DAMAGE as error:
        raise DataError(f"{where}: image cannot be read: {' '.join(str(error).split())}") from error


def _reencoded(image: Image.Image, lossless: bool) -> StoredImage:
    buffer = io.BytesIO()
    rgb = image.convert("RGB")
    rgb.info.clear()  # else PIL would write the orientation again
    if lossless:
        rgb.save(buffer, "PNG")
    else:
        rgb.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling="4:4:4")
    return StoredImage(buffer.getvalue(), "png" if lossless else "jpg", rgb.height, rgb.width)


def _without_exif(jpeg: bytes) -> bytes:
    """The same JPEG less its APP1 segments, which are Exif and XMP; everything else stays byte for byte."""
    kept, place = [jpeg[:2]], 2
    while place + 4 <= len(jpeg) and jpeg[place] == 0xFF and jpeg[place + 1] not in (0xDA, 0xD9):  # the scan, the end
        if jpeg[place + 1] == 0xFF:  # a fill byte
            place += 1
            continue
        end = place + 2 + int.from_bytes(jpeg[place + 2 : place + 4], "big")
        if jpeg[place + 1] != 0xE1:
            kept.append(jpeg[place:end])
        place = end
    return b"".join([*kept, jpeg[place:]])


def encode(key: str, image: StoredImage, label: Label | None, facts: Mapping[str, Any]) -> bytes:
    """The frame's slice of a tar, padding included; it is itself a readable tar. Label None = all void.

    `facts` goes to meta.json, with the image's size, whether the frame is labelled, the native instance ids, and the
    whole masks of a dataset whose masks may overlap.

    Raises: DataError when label and image differ in size, or the key is too long for a tar header.
    """
    shape = (image.height, image.width)
    label_or_void = label or Label(np.full(shape, VOID, np.uint8), np.zeros(shape, np.uint16))
    if label_or_void.classes.shape != shape:
        got = "x".join(map(str, label_or_void.classes.shape))
        raise DataError(f"{key}: label is {got}, image is {image.height}x{image.width}")
    meta = {
        **facts,
        "height": image.height,
        "width": image.width,
        "labelled": label is not None,
        "instances": label_or_void.native_ids,
    }
    if label_or_void.masks:
        size = [image.height, image.width]
        meta["masks"] = {name: {"size": size, "counts": mask} for name, mask in label_or_void.masks.items()}
    members = {
        f"image.{image.suffix}": image.content,
        "label.png": _encode_label(label_or_void),
        "meta.json": json.dumps(meta, sort_keys=True, separators=(",", ":")).encode(),
    }
    return b"".join(_member(f"{key}.{suffix}", content) for suffix, content in members.items())


def decode(data: bytes, where: str = "") -> Record:
    """The frame in a slice of a shard. `where` (dataset/shard) goes into messages.

    Raises: DataError naming `where`, key and member when anything is missing, damaged, too large or contradictory.
    """
    found = view(data, where)
    classes, instances = np.array(found.classes, order="C"), found.instances.astype(np.uint16)
    return Record(found.key, found.image, classes, instances, found.meta)


def view(data: bytes, where: str = "") -> Record:
    """As `decode`, but the maps are views of the label's pixels (strided, big-endian), for who takes only a part."""
    key, members = _members(data, where)
    place = f"{where}, sample {key}" if where else f"sample {key}"
    image_name = next((name for name in ("image.jpg", "image.png") if name in members), "")
    for name in (image_name or "image.jpg", "label.png", "meta.json"):
        if name not in members:
            raise DataError(f"{place}: {name} is missing")
    try:
        meta = json.loads(members["meta.json"])
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: meta.json is not JSON") from error
    if not isinstance(meta, dict):
        raise DataError(f"{place}: meta.json is not a JSON object")
    image = _pixels(members[image_name], f"{place}: {image_name}", "RGB")
    label = _pixels(members["label.png"], f"{place}: label.png", None)
    if image.shape != label.shape:
        raise DataError(f"{place}: label is {_size(label)}, image is {_size(image)}")
    return Record(key, image, label[..., 0], label[..., 1:].view(">u2")[..., 0], meta)


def split_members(data: bytes, where: str = "") -> dict[str, bytes]:
    """Suffix (`image.jpg`, `label.png`, `meta.json`) -> bytes, undecoded. Raises: DataError as `decode`."""
    return _members(data, where)[1]


def _members(data: bytes, where: str) -> tuple[str, dict[str, bytes]]:
    """Key and members of a slice. What the headers say is believed only as far as the slice's own bytes bear it out."""
    prefix = f"{where}: " if where else ""
    members: dict[str, bytes] = {}
    keys: set[str] = set()
    names: set[str] = set()
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            for entry in archive:
                # A sparse file would pass as a regular one, and unpack to a size of its own choosing.
                plain = entry.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not entry.issparse()
                if not plain or entry.size > min(MAX_MEMBER_BYTES, len(data)):
                    raise DataError(f"{prefix}{_shown(entry.name)} is not a file of at most {MAX_MEMBER_BYTES} bytes")
                folder, _, name = entry.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                if not stem or not folder or {"", ".", ".."} & set(folder.split("/")):
                    raise DataError(f"{prefix}{_shown(entry.name)} is no name of ours, <sequence>/<frame>.<suffix>")
                if entry.name in names:
                    raise DataError(f"{prefix}{_shown(entry.name)} is there twice")
                names.add(entry.name)
                keys.add(f"{folder}/{stem}")
                members[suffix] = data[entry.offset_data : entry.offset_data + entry.size]
                if len(members[suffix]) < entry.size:
                    raise tarfile.ReadError("unexpected end of data")
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise DataError(f"{prefix}sample {next(iter(keys), '')} is not a whole tar slice: {error}") from error
    if len(keys) != 1:
        raise DataError(f"{prefix}slice holds {len(keys)} samples, must be one")
    return keys.pop(), members


def _shown(name: str) -> str:
    """A name that may be hostile, for a message: one line, not too long."""
    return ascii(name) if len(name) <= 80 else f"{name[:77]!a}..."


def _pixels(content: bytes, where: str, convert: str | None) -> NDArray[np.uint8]:
    quick = (decode_jpeg if convert else decode_label)(content, MAX_PIXELS)
    if quick is not None:
        return quick
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"{where} is {image.height}x{image.width}, more than {MAX_PIXELS} pixels")
            if convert is None and image.mode != "RGB":
                raise DataError(f"{where} has mode {image.mode}, must be RGB")
            if convert is None and image.format != "PNG":
                raise DataError(f"{where} is a {image.format}, must be a PNG: no other keeps ids as they are")
            _require_8_bits(content, image, where)
            return np.array(image.convert(convert) if convert and image.mode != convert else image)
    except DAMAGE as error:
        raise DataError(f"{where} cannot be decoded: {' '.join(str(error).split())}") from error


def _require_8_bits(content: bytes, image: Image.Image, where: str) -> None:
    """Raises: DataError for a PNG of 16 bits per channel, of which half would be lost without a word."""
    if image.format == "PNG" and content[24] > 8:
        raise DataError(f"{where} has {content[24]} bits per channel, must be 8")


def _encode_label(label: Label) -> bytes:
    high, low = (label.instances >> 8).astype(np.uint8), (label.instances & 255).astype(np.uint8)
    return encode_label(np.stack([label.classes, high, low], axis=-1))


def _member(name: str, content: bytes) -> bytes:
    """One member with a header that depends on nothing but its name and content."""
    header = tarfile.TarInfo(name)
    header.size = len(content)
    header.mode = 0o644
    try:
        packed = header.tobuf(tarfile.USTAR_FORMAT)
    except ValueError as error:
        raise DataError(f"{name}: name does not fit a tar header: {error}") from error
    return packed + content + bytes(-len(content) % tarfile.BLOCKSIZE)


def _size(array: NDArray[np.uint8]) -> str:
    return f"{array.shape[0]}x{array.shape[1]}"
