"""How long each part of a frame takes on this hardware: backbone, heads, fusion, tracker."""

from __future__ import annotations

import math
import resource
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from post_model import tracker
from post_model.branches.center import center_target
from post_model.branches.offset import offset_target
from post_model.branches.prev_offset import motion_target
from post_model.fusion import fuse
from post_model.network import Post
from post_model.objects import find_objects
from post_model.predictor import MIN_STUFF

PARTS = ("backbone", "heads", "fusion", "tracker")


@dataclass(frozen=True)
class Speed:
    """What was measured.

    Attributes:
        seconds: every repetition of each part, one frame each.
        peak_gb: most memory held: of the process on a CPU, of the device's tensors on a GPU.
    """

    seconds: dict[str, list[float]]
    peak_gb: float

    def median(self, part: str) -> float:
        """Seconds of a part, or of all parts: `total`."""
        return sum(map(self.median, PARTS)) if part == "total" else statistics.median(self.seconds[part])


def measure(
    model: Post,
    things: Sequence[bool],
    size: tuple[int, int],
    objects: int,
    repeats: int,
    bf16: bool = False,
    channels_last: bool = False,
    compiled: bool = False,
) -> Speed:
    """Time the parts of a frame of a video, interleaved, after one round that does not count.

    The network sees noise, for which time it takes is all the same. Fusion and tracker, for which it is not, get the
    maps that a perfect network would give of a street with moving objects.
    """
    device = model.mean.device
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = model.eval().to(memory_format=layout)  # type: ignore[call-overload]
    image = torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8).to(device)
    features, heads = model.features, model.heads
    if compiled:
        features, heads = torch.compile(features), torch.compile(heads)
    thing = torch.tensor(list(things), device=device)
    frames = [[map_.to(device, memory_format=layout) for map_ in maps] for maps in street(things, size, objects)]
    moves = "prev_offset" in model.arguments["branches"]
    clock, state = _Clock(device), tracker.start(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with torch.inference_mode():
        for repeat in range(repeats + 1):
            semantic, center, offset, prev_offset = frames[repeat % 2]
            with _precision(device, bf16):
                with clock.part("backbone"):
                    now = features(image)
                with clock.part("heads"):
                    heads(now, now, size)
            with clock.part("fusion"):
                panoptic = fuse(semantic, center, offset, thing, stuff_area=MIN_STUFF * size[0] * size[1]).image(0)
            with clock.part("tracker"):
                _, state = tracker.step(panoptic, prev_offset[0] if repeat and moves else None, state)
            if repeat == 0:
                clock.seconds.clear()
    return Speed(dict(clock.seconds), _peak_gb(device))


def street(things: Sequence[bool], size: tuple[int, int], objects: int) -> Iterator[tuple[Tensor, ...]]:
    """Yield the perfect maps of two frames, to be shown in turn: ellipses that move to and fro before stuff.

    Shape: semantic (1, C, H, W) logits, center (1, 1, H, W), offset and prev_offset (1, 2, H, W), as of a network.
    """
    height, width = size
    generator = torch.Generator().manual_seed(0)
    thing_classes = [index for index, thing in enumerate(things) if thing]
    stuff_classes = [index for index, thing in enumerate(things) if not thing] or [0]
    yy, xx = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    bands = torch.tensor(stuff_classes)[(yy * min(len(stuff_classes), 6)) // height]
    draws = torch.rand(objects if thing_classes else 0, 6, generator=generator).tolist()
    shown = []
    for shift in (0.0, 0.02):
        classes, instances = bands.clone(), torch.zeros_like(bands)
        for number, (y, x, h, w, kind, speed) in enumerate(draws, start=1):
            center = (0.35 + 0.55 * y) * height, (x + shift * (speed - 0.5)) * width
            radii = (0.02 + 0.08 * h) * height, (0.01 + 0.05 * w) * width
            inside = ((yy - center[0]) / radii[0]) ** 2 + ((xx - center[1]) / radii[1]) ** 2 <= 1
            classes[inside], instances[inside] = thing_classes[math.floor(kind * len(thing_classes))], number
        found = find_objects(classes[None].to(torch.uint8), instances[None].int(), torch.ones(1, dtype=torch.bool))
        shown.append((classes, found))
    for (classes, now), (_, before) in ((shown[0], shown[1]), (shown[1], shown[0])):
        logits = torch.nn.functional.one_hot(classes, len(things)).permute(2, 0, 1).float().contiguous()[None] * 6
        yield logits, center_target(now, 8.0)[:, None], offset_target(now)[0], motion_target(now, before)[0]


class _Clock:
    """Seconds of named pieces of work, each waited for on the device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: defaultdict[str, list[float]] = defaultdict(list)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time what is done in the block."""
        self._wait()
        start = time.perf_counter()
        yield
        self._wait()
        self.seconds[name].append(time.perf_counter() - start)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _precision(device: torch.device, bf16: bool) -> AbstractContextManager[object]:
    return torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()


def _peak_gb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    scale = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 1e9
