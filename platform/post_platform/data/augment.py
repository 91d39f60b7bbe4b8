"""One geometric draw for both frames of a clip, photometric draws per frame, and a synthetic past for stills."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

VOID = 255
FILL = (124, 116, 104)  # the network's mean colour: padding looks like nothing after normalisation
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R 601, what a colour weighs in its grey
MARGIN = 0.15  # of the crop: how far a still's synthetic motion may reach outside it


class Frame(NamedTuple):
    """A decoded frame: image (H, W, 3) uint8, classes (H, W) uint8 native ids, instances (H, W) uint16.

    Any of them may be a view of something larger, in any byte order: a batch copies them once, at the end.
    """

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
        return window(frame, scaled, (top - margin, left - margin), size)

    if prev is not None:
        pair = cut(now), cut(prev)
    elif rules.still_motion:
        pair = cut(now), moved(cut(now, round(MARGIN * max(rules.crop))), rules.crop, rng)
    else:
        same = cut(now)
        pair = same, same._replace(instances=np.zeros_like(same.instances))
    if rules.photometric:
        first, second = (frame._replace(image=recoloured(frame.image, rng)) for frame in pair)
        pair = first, second
    if mirrored:  # last, as views: PIL takes seven times as long to read a mirrored array
        first, second = (Frame(*(layer[:, ::-1] for layer in frame)) for frame in pair)
        pair = first, second
    return pair


def window(frame: Frame, scaled: tuple[int, int], corner: tuple[int, int], size: tuple[int, int]) -> Frame:
    """Resize a frame to `scaled` and cut a window of `size` at `corner`, without resizing what lies outside.

    Images are resampled bilinearly with anti-aliasing, labels by the nearest source pixel.
    """
    (y0, x0), (y1, x1) = np.maximum(corner, 0).tolist(), np.minimum(np.add(corner, size), scaled).tolist()
    covered = (y1 - y0, x1 - x0) == tuple(size)
    part = _resized(frame, scaled, (y0, y1), (x0, x1)) if y1 > y0 and x1 > x0 else None
    if part and covered:
        return part
    image = np.empty((*size, 3), np.uint8)
    image[:] = np.full((size[1], 3), FILL, np.uint8)  # by whole rows, five times as fast as by pixels
    whole = Frame(image, np.full(size, VOID, np.uint8), np.zeros(size, np.uint16))
    if part:
        place = np.s_[y0 - corner[0] : y1 - corner[0], x0 - corner[1] : x1 - corner[1]]
        for layer, pixels in zip(whole, part, strict=True):
            layer[place] = pixels
    return whole


def _resized(frame: Frame, scaled: tuple[int, int], y: tuple[int, int], x: tuple[int, int]) -> Frame:
    """Rows y[0] to y[1] and columns x[0] to x[1] of the frame resized to `scaled`; not resized, they are a view."""
    if scaled == frame.classes.shape:
        return Frame(*(layer[y[0] : y[1], x[0] : x[1]] for layer in frame))
    rows, columns = (
        ((np.arange(*span) + 0.5) * native / new).astype(np.int64)
        for span, native, new in zip((y, x), frame.classes.shape, scaled, strict=True)
    )
    reach = slice(columns[0], columns[-1] + 1)

    def nearest(layer: np.ndarray) -> np.ndarray:
        native = layer[rows, reach].astype(layer.dtype.newbyteorder("="), order="C")
        return native.take(columns - columns[0], axis=1)

    # PIL's own form of an image is a copy: made only of what the filter sees, one source pixel or output pixel around.
    step_y, step_x = (native / new for native, new in zip(frame.classes.shape, scaled, strict=True))
    top, left = max(0, int(y[0] * step_y - step_y) - 1), max(0, int(x[0] * step_x - step_x) - 1)
    bottom, right = int(y[1] * step_y + step_y) + 2, int(x[1] * step_x + step_x) + 2
    box = (x[0] * step_x - left, y[0] * step_y - top, x[1] * step_x - left, y[1] * step_y - top)
    image = Image.fromarray(frame.image[top:bottom, left:right])
    image = image.resize((x[1] - x[0], y[1] - y[0]), Image.Resampling.BILINEAR, box=box)
    return Frame(np.asarray(image), nearest(frame.classes), nearest(frame.instances))


def moved(frame: Frame, size: tuple[int, int], rng: np.random.Generator) -> Frame:
    """The centre window of `size` after a random shift (12 % of it), rotation (4 degrees) and zoom (8 %)."""
    angle, zoom = rng.uniform(-1, 1) * math.radians(4), math.exp(rng.uniform(-1, 1) * 0.08)
    shift = rng.uniform(-0.12, 0.12, 2) * size
    cosine, sine = math.cos(angle) * zoom, math.sin(angle) * zoom
    middle, target = np.array(frame.classes.shape) / 2 + shift, np.array(size) / 2
    a, b, d, e = cosine, -sine, sine, cosine  # source x = a x + b y + c, source y = d x + e y + f
    c = middle[1] - a * target[1] - b * target[0]
    f = middle[0] - d * target[1] - e * target[0]

    def transformed(layer: np.ndarray, filter_: Image.Resampling, fill: int | tuple[int, ...]) -> np.ndarray:
        picture, where = Image.fromarray(layer), (a, b, c, d, e, f)
        return np.asarray(picture.transform(size[::-1], Image.Transform.AFFINE, where, filter_, fillcolor=fill))

    label = frame.classes.astype(np.int32) << 16 | frame.instances  # as one picture: no pixel of two objects
    label = transformed(label, Image.Resampling.NEAREST, VOID << 16)
    image = transformed(frame.image, Image.Resampling.BILINEAR, FILL)
    return Frame(image, (label >> 16).astype(np.uint8), label.astype(np.uint16))


def recoloured(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change brightness, contrast (about the mean grey) and saturation by up to a fifth each; clip once.

    All three are linear, so they are one matrix: a colour x becomes s(c b x + (1 - c) m) + (1 - s) grey of the same.
    """
    brightness, contrast, saturation = rng.uniform(0.8, 1.2, 3)
    sparse = image[::4, ::4]  # enough for a mean
    means = np.reshape(Image.fromarray(sparse).histogram(), (3, 256)) @ np.arange(256) / (sparse.size // 3)
    matrix = brightness * contrast * (saturation * np.eye(3) + (1 - saturation) * LUMA)
    offset = (1 - contrast) * brightness * (LUMA @ means)
    rows = np.column_stack([matrix, np.full(3, offset)])
    return np.asarray(Image.fromarray(image).convert("RGB", tuple(rows.ravel().tolist())))
