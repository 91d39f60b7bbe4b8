"""The state of a video as a text that travels with its requests: the last frame and the tracks. None is trusted.

The features of the last frame, which its tracks are continued with, are hundreds of times larger: they are made again.
"""

from __future__ import annotations

import hashlib
from base64 import b64decode, b64encode

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from post_model.tracker import TrackerState
from post_platform.errors import DataError

FORMAT = "post-state/1"
AGAIN = "send the state of the video's last answer as it came, or null where a video begins"
MOST_TRACKS = 1 << 12  # a frame has 200 objects at most, and a track that is not seen is forgotten after 8 frames
MOST_MASKS = 20  # frames that all remembered masks together could fill
MOST = (1 << 31) - (1 << 20)  # of frames and ids, which are int32 in the maps
PIXELS = ("pixels", "full_pixels")
TABLES = {  # field: its shape behind the number of tracks
    "ids": (), "classes": (), "seen": (), "boxes": (4,), "counts": (), "full_seen": (), "full_counts": (),
    "velocity": (2,),
}  # fmt: skip


def pack(model: str, frame: bytes, tracks: TrackerState) -> str:
    """The state after a frame of a video, given as the bytes that it came in."""
    tensors = {name: value.cpu().contiguous() for name, value in tracks._asdict().items() if name not in PIXELS}
    for name in PIXELS:
        tensors[name] = torch.from_numpy(_runs(getattr(tracks, name).cpu().numpy()))
    tensors["image"] = torch.frombuffer(bytearray(frame), dtype=torch.uint8)
    content = save(tensors)
    head = f"{FORMAT} {model} {hashlib.sha256(content).hexdigest()}\n"
    return b64encode(head.encode() + content).decode()


def unpack(text: str, model: str, num_classes: int) -> tuple[bytes, TrackerState]:
    """The last frame's bytes and the tracks of a state of this very model.

    Whatever the text holds, the tracks that come out are such as the tracker could have left: no index leads astray,
    and they take little memory.

    Raises: DataError saying what is wrong with it.
    """
    try:
        head, _, content = b64decode(text, validate=True).partition(b"\n")
    except ValueError as error:
        raise DataError("state: is not base64, or not all of it", AGAIN) from error
    words = head.decode("ascii", "replace").split(" ")
    if len(words) != 3 or words[0] != FORMAT:
        raise DataError(f"state: is none of the format {FORMAT}", AGAIN)
    if words[2] != hashlib.sha256(content).hexdigest():
        raise DataError("state: is damaged: its SHA-256 is another", AGAIN)
    if words[1] != model:
        raise DataError("state: was made by another model or version", "begin the video again, with null")
    try:
        found = load(content)
        if found.keys() != {*TrackerState._fields, "image"}:
            raise ValueError(f"has the fields {', '.join(sorted(found))[:200]!a}")
        frame = _typed(found.pop("image"), torch.uint8, 1).numpy().tobytes()
        return frame, _tracks(found, num_classes)
    except (SafetensorError, ValueError) as error:
        raise DataError(f"state: is none that this model made: {error}", AGAIN) from error


def _runs(pixels: NDArray[np.int64]) -> NDArray[np.int32]:
    """A list of pixels as runs (first pixel, length): masks are rows of neighbours."""
    starts = np.flatnonzero(np.diff(pixels, prepend=-2) != 1)
    lengths = np.diff(starts, append=len(pixels))
    return np.stack([pixels[starts], lengths], 1).astype(np.int32)


def _pixels(runs: Tensor, total: Tensor, size: int) -> Tensor:
    """The list of pixels again. Raises: ValueError for runs that leave the image, or are not `total` pixels."""
    first, length = _typed(runs, torch.int32, 2).long().unbind(1) if runs.shape[1:] == (2,) else (runs[:0], runs[:0])
    _require(runs.shape[1:] == (2,), "masks of another shape")
    _require(bool((first >= 0).all() and (length > 0).all() and (first + length <= size).all()), "pixels outside")
    _require(int(length.sum()) == int(total), "masks of another area")
    begin = length.cumsum(0) - length
    return torch.arange(int(total)) + (first - begin).repeat_interleave(length)


def _tracks(found: dict[str, Tensor], num_classes: int) -> TrackerState:
    """The tracker's state. Raises: ValueError for one that no tracker leaves."""
    number = len(found["ids"]) if found["ids"].ndim else 0
    for name, shape in TABLES.items():
        dtype = torch.float64 if name == "velocity" else torch.int64
        _require(_typed(found[name], dtype, 1 + len(shape)).shape == (number, *shape), f"{name} of another shape")
    size, frame, next_id = (_typed(found[name], torch.int64, name == "size") for name in ("size", "frame", "next_id"))
    _require(size.shape == (2,) and bool((size > 0).all() and (size < 1 << 15).all()), "an impossible size")
    _require(0 < int(frame) < MOST and 0 < int(next_id) < MOST and number <= MOST_TRACKS, "impossible counts")
    height, width = size.tolist()
    limits = {
        "ids": (1, int(next_id)), "classes": (0, num_classes), "seen": (0, int(frame)), "full_seen": (0, int(frame)),
        "boxes": (0, max(height, width) + 1), "counts": (1, height * width + 1), "full_counts": (1, height * width + 1),
    }  # fmt: skip
    for name, (low, high) in limits.items():
        _require(bool((found[name] >= low).all() and (found[name] < high).all()), f"{name} out of range")
    _require(len(found["ids"].unique()) == number, "an id given twice")
    _require(bool((found["velocity"].abs() <= 1 << 15).all()), "velocity out of range")  # false for NaN too
    for name, counts in zip(PIXELS, ("counts", "full_counts"), strict=True):
        total = found[counts].sum()
        _require(int(total) <= MOST_MASKS * height * width, "masks too large")
        found[name] = _pixels(found[name], total, height * width)
    return TrackerState(**found)


def _typed(value: Tensor, dtype: torch.dtype, dimensions: int) -> Tensor:
    _require(value.dtype == dtype and value.ndim == dimensions, "a field of another type")
    return value


def _require(legal: bool, problem: str) -> None:
    if not legal:
        raise ValueError(problem)
