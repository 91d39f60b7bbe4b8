"""Masks as the official files write them: run lengths, compressed or not, and polygons; none of them to be trusted."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from post_platform.datasets.files import MAX_PIXELS
from post_platform.errors import DataError

MAX_POINTS = 1 << 20  # of one polygon's coordinates


def decode_mask(segmentation: Any, height: int, width: int, where: str) -> NDArray[np.bool_]:
    """The pixels of one object, from COCO run lengths (`counts` a text or a list of numbers) or a list of polygons.

    A bare text is compressed run lengths too, as KITTI-MOTS writes them.

    Shape: (height, width).
    Raises: DataError naming `where` when it is neither, has another size, or does not fill its size exactly.
    """
    if not (height > 0 and width > 0 and height * width <= MAX_PIXELS):
        raise DataError(f"{where}: size {height}x{width}, must be 1 to {MAX_PIXELS} pixels")
    if isinstance(segmentation, list):
        return _polygons(segmentation, height, width, where)
    if isinstance(segmentation, dict):
        size = segmentation.get("size")
        if size is not None and size != [height, width]:
            raise DataError(f"{where}: the mask is {_text(size)}, must be {height}x{width}")
        segmentation = segmentation.get("counts")
    if isinstance(segmentation, str):
        segmentation = _decompress(segmentation, where)
    if not isinstance(segmentation, list) or not all(type(run) is int and run >= 0 for run in segmentation):
        raise DataError(f"{where}: the mask is neither run lengths nor polygons: {_text(segmentation)}")
    if sum(segmentation) != height * width:
        raise DataError(
            f"{where}: the run lengths fill {sum(segmentation)} pixels, {height}x{width} has {height * width}"
        )
    values = np.arange(len(segmentation), dtype=np.int64) % 2 == 1
    return np.repeat(values, segmentation).reshape(width, height).T


def encode_mask(mask: NDArray[np.bool_]) -> str:
    """Compressed COCO run lengths of a mask. Shape: (H, W)."""
    counts: bytes = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
    return counts.decode()


def _decompress(text: str, where: str) -> list[int]:
    """Run lengths out of COCO's text: 5 bits per character, low first; from the fourth run on, less the last but one.

    Done here, since the library's C code trusts its input: it reads on behind a text that breaks off in a number.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 35:
            raise DataError(f"{where}: {_text(text)} is not compressed run lengths")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    if shift:
        raise DataError(f"{where}: the run lengths break off in the middle of a number")
    return runs


def _polygons(polygons: list[Any], height: int, width: int, where: str) -> NDArray[np.bool_]:
    limit = 4 * max(height, width)
    points = accumulate(len(polygon) if isinstance(polygon, list) else 0 for polygon in polygons)
    legal = all(
        isinstance(polygon, list)
        and len(polygon) >= 6
        and len(polygon) % 2 == 0
        and all(type(value) in (int, float) and -limit <= value <= limit for value in polygon)
        for polygon in polygons
    )
    if not polygons or not legal or max(points) > MAX_POINTS:
        raise DataError(f"{where}: a polygon must be x, y, x, y, ... of 3 points or more, in or near the image")
    merged = coco_mask.merge(coco_mask.frPyObjects([list(map(float, polygon)) for polygon in polygons], height, width))
    return np.asarray(coco_mask.decode(merged)).astype(bool)


def _text(value: object) -> str:
    """The start of a value, for a message."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
