"""One geometric draw for both frames of a clip, photometric draws per frame, and a synthetic past for stills."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance

VOID = 255
FILL = (124, 116, 104)  # the network's mean colour: padding looks like nothing after normalisation
MARGIN = 0.15  # of the crop: how far a still's synthetic motion may reach outside it


class Frame(NamedTuple):
    """A decoded frame: image (H, W, 3) uint8, classes (H, W) uint8 native ids, instances (H, W) uint16."""

    image: np.ndarray
    classes: np.ndarray
    instances: np.ndarray


@dataclass(frozen=True)
class Augmentation:
    """What may happen to a clip; the same for every dataset.

    Units: crop in pixels (height, width); scale relative to the image's native size.
    """

    crop: tuple[int, int]
    scale: tuple[float, float] = (1.0, 1.0)
    flip: bool = True
    photometric: bool = True
    still_motion: bool = True


def augment(now: Frame, prev: Frame | None, rules: Augmentation, seed: int) -> tuple[Frame, Frame]:
    """Crop a clip to (now, prev) of `rules.crop`, a pure function of its arguments.

    Without a previous frame, prev is the same frame under a small random affine motion (labels included, so that it
    teaches the previous-offset branch), or, with still_motion off, the same image without instances.

    Shape: any (H, W) -> two frames of `rules.crop`; what lies outside the image is FILL and void.
    """
    rng = np.random.default_rng(seed)
    height, width = now.classes.shape
    scale = math.exp(rng.uniform(math.log(rules.scale[0]), math.log(rules.scale[1])))
    scaled = (max(1, round(height * scale)), max(1, round(width * scale)))
    top, left = (int(rng.integers(0, max(0, size - crop) + 1)) for size, crop in zip(scaled, rules.crop, strict=True))
    mirrored = rules.flip and rng.random() < 0.5

    def cut(frame: Frame, margin: int = 0) -> Frame:
        size = (rules.crop[0] + 2 * margin, rules.crop[1] + 2 * margin)
        part = window(frame, scaled, (top - margin, left - margin), size)
        return Frame(*(np.ascontiguousarray(layer[:, ::-1]) for layer in part)) if mirrored else part

    if prev is not None:
        pair = cut(now), cut(prev)
    elif rules.still_motion:
        pair = cut(now), moved(cut(now, round(MARGIN * max(rules.crop))), rules.crop, rng)
    else:
        same = cut(now)
        pair = same, same._replace(instances=np.zeros_like(same.instances))
    if rules.photometric:
        first, second = (frame._replace(image=recoloured(frame.image, rng)) for frame in pair)
        return first, second
    return pair


def window(frame: Frame, scaled: tuple[int, int], corner: tuple[int, int], size: tuple[int, int]) -> Frame:
    """Resize a frame to `scaled` and cut a window of `size` at `corner`, without resizing what lies outside.

    Images are resampled bilinearly with anti-aliasing, labels by the nearest source pixel.
    """
    height, width = frame.classes.shape
    (y0, x0), (y1, x1) = np.maximum(corner, 0), np.minimum(np.add(corner, size), scaled)
    image = np.full((*size, 3), FILL, np.uint8)
    classes = np.full(size, VOID, np.uint8)
    instances = np.zeros(size, np.uint16)
    if y1 <= y0 or x1 <= x0:
        return Frame(image, classes, instances)
    place = np.s_[y0 - corner[0] : y1 - corner[0], x0 - corner[1] : x1 - corner[1]]
    rows = ((np.arange(y0, y1) + 0.5) * height / scaled[0]).astype(np.int64)
    columns = ((np.arange(x0, x1) + 0.5) * width / scaled[1]).astype(np.int64)
    classes[place] = frame.classes[np.ix_(rows, columns)]
    instances[place] = frame.instances[np.ix_(rows, columns)]
    if scaled == (height, width):
        image[place] = frame.image[y0:y1, x0:x1]
    else:
        box = (x0 * width / scaled[1], y0 * height / scaled[0], x1 * width / scaled[1], y1 * height / scaled[0])
        part = Image.fromarray(frame.image).resize((int(x1 - x0), int(y1 - y0)), Image.Resampling.BILINEAR, box=box)
        image[place] = np.asarray(part)
    return Frame(image, classes, instances)


def moved(frame: Frame, size: tuple[int, int], rng: np.random.Generator) -> Frame:
    """The centre window of `size` after a random shift (12 % of it), rotation (4 degrees) and zoom (8 %)."""
    angle, zoom = rng.uniform(-1, 1) * math.radians(4), math.exp(rng.uniform(-1, 1) * 0.08)
    shift = rng.uniform(-0.12, 0.12, 2) * size
    cosine, sine = math.cos(angle) * zoom, math.sin(angle) * zoom
    middle, target = np.array(frame.classes.shape) / 2 + shift, np.array(size) / 2
    a, b, d, e = cosine, -sine, sine, cosine  # source x = a x + b y + c, source y = d x + e y + f
    c = middle[1] - a * target[1] - b * target[0]
    f = middle[0] - d * target[1] - e * target[0]
    image = Image.fromarray(frame.image).transform(
        (size[1], size[0]), Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BILINEAR, fillcolor=FILL
    )
    y, x = np.meshgrid(np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5, indexing="ij")
    column, row = np.floor(a * x + b * y + c).astype(int), np.floor(d * x + e * y + f).astype(int)
    inside = (row >= 0) & (row < frame.classes.shape[0]) & (column >= 0) & (column < frame.classes.shape[1])
    row, column = np.where(inside, row, 0), np.where(inside, column, 0)
    classes = np.where(inside, frame.classes[row, column], VOID).astype(np.uint8)
    instances = np.where(inside, frame.instances[row, column], 0).astype(np.uint16)
    return Frame(np.asarray(image), classes, instances)


def recoloured(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change brightness, contrast and saturation by up to a fifth each."""
    picture = Image.fromarray(image)
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        picture = enhance(picture).enhance(rng.uniform(0.8, 1.2))
    return np.asarray(picture)
