"""Masks as the official files write them: run lengths, compressed or not, and polygons; none of them to be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
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
    if isinstance(segmentation, list):
        _require_size(height, width, where)
        return _polygons(segmentation, height, width, where)
    runs = _runs(segmentation, height, width, where)
    values = np.arange(len(runs), dtype=np.int64) % 2 == 1
    return np.repeat(values, runs).reshape(width, height).T


def run_lengths(
    texts: Sequence[str], heights: Sequence[int], widths: Sequence[int], where: Sequence[str]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The runs of many masks out of COCO's compressed texts, and where each mask's begin among them.

    A row is so many pixels outside, then so many inside, down the columns; a mask's rows fill its size exactly. Much
    faster than `decode_mask` on each, and as distrustful.

    Shape: (rows, 2) and (masks + 1,), the last being the number of rows.
    Raises: DataError naming `where` of the first text that is no mask of its size.
    """
    found = _decompress_all(texts)
    if found is not None:
        runs, edges = found
        filled = np.diff(np.append(0, np.cumsum(runs))[2 * edges])
        pixels = np.multiply(heights, widths)
        legal = (runs.min(initial=0) >= 0, runs.max(initial=0) <= MAX_PIXELS, pixels.min(initial=1) > 0)
        if all(legal) and pixels.max(initial=1) <= MAX_PIXELS and np.array_equal(filled, pixels):
            return runs, edges
    for mask in zip(texts, heights, widths, where, strict=True):
        _runs(*mask)
    raise AssertionError("one by one, all masks are legal")


def encode_mask(mask: NDArray[np.bool_]) -> str:
    """Compressed COCO run lengths of a mask. Shape: (H, W)."""
    counts: bytes = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
    return counts.decode()


def compressed(segmentation: Any, height: int, width: int, where: str) -> str:
    """Compressed COCO run lengths of one object, given as `decode_mask` takes it; those that it has are only checked.

    Raises: DataError as `decode_mask`.
    """
    if isinstance(segmentation, dict) and isinstance(segmentation.get("counts"), str):
        _runs(segmentation, height, width, where)
        return str(segmentation["counts"])
    return encode_mask(decode_mask(segmentation, height, width, where))


def encode_segments(places: NDArray[np.integer], number: int) -> list[str]:
    """Compressed COCO run lengths of the segments 1 to `number` of a map; those of `encode_mask`, the map read once.

    Shape: places (H, W).
    """
    height, width = places.shape
    column = np.ascontiguousarray(places.T).reshape(-1)
    starts = np.append(0, np.flatnonzero(column[1:] != column[:-1]) + 1)
    ends = np.append(starts[1:], column.size)
    values = column[starts]
    order = np.argsort(values, kind="stable")
    edges = np.searchsorted(values[order], np.arange(1, number + 2))
    found = []
    for low, high in pairwise(edges):
        rows = order[low:high]
        turns = np.stack([starts[rows], ends[rows]], 1).reshape(-1)  # where the mask begins and ends, in turn
        counts = np.diff(turns, prepend=0, append=column.size)
        if counts[-1] == 0:
            counts = counts[:-1]
        coded: bytes = coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)["counts"]
        found.append(coded.decode())
    return found


def _runs(segmentation: Any, height: int, width: int, where: str) -> list[int]:
    _require_size(height, width, where)
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
    return segmentation


def _require_size(height: int, width: int, where: str) -> None:
    if not (height > 0 and width > 0 and height * width <= MAX_PIXELS):
        raise DataError(f"{where}: size {height}x{width}, must be 1 to {MAX_PIXELS} pixels")


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


def _decompress_all(texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """The runs of all texts as `run_lengths` has them; None when `_decompress` would refuse one of the texts."""
    characters = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32)
    codes = characters - np.uint32(48)  # those below 48 become very large
    ends = np.cumsum([0, *map(len, texts)])  # of texts
    first = np.ones(len(codes) + 1, bool)  # characters that begin a number
    first[1:] = (codes & 32) == 0
    starts = np.flatnonzero(first[:-1])
    lengths = np.diff(starts, append=len(codes))
    if not first[ends].all() or codes.max(initial=0) >= 64 or lengths.max(initial=0) > 8:
        return None
    values = (codes[starts] & 31).astype(np.int64)
    for place in range(1, int(lengths.max(initial=0))):
        longer = np.flatnonzero(lengths > place)
        values[longer] |= (codes[starts[longer] + place] & 31).astype(np.int64) << 5 * place
    negative = codes[starts + lengths - 1] >> 4 & 1
    values -= negative.astype(np.int64) << 5 * lengths
    return _undo_differences(values, np.diff(np.searchsorted(starts, ends)))


def _undo_differences(
    values: NDArray[np.int64], counts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sum up every other number of each text, the text's first one apart: in rows of two, down the columns."""
    heights = (counts + 1) // 2
    edges = np.append(0, np.cumsum(heights))
    rows = np.zeros((int(edges[-1]), 2), np.int64)
    filled = np.ones(rows.size, bool)
    filled[2 * edges[1:][counts % 2 == 1] - 1] = False  # an odd number of runs ends outside
    rows.reshape(-1)[filled] = values
    tops = edges[:-1][counts > 0]
    apart = rows[tops, 0]
    rows[tops, 0] = 0
    sums = np.cumsum(np.concatenate([np.zeros((1, 2), np.int64), rows]), axis=0)
    sums = sums[1:] - np.repeat(sums[edges[:-1]], heights, axis=0)
    sums[tops, 0] = apart
    sums.reshape(-1)[~filled] = 0
    return sums, edges


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
