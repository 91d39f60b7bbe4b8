"""Pictures for people: overlays whose track colours never change, strips, contact sheets and animations."""

from __future__ import annotations

import io
from collections.abc import Sequence
from colorsys import hsv_to_rgb
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from post_platform.labels import UNIDENTIFIED, VOID, Contract, taxonomy

Labels = tuple[np.ndarray, np.ndarray]
"""(classes, instances) of one frame, each (H, W)."""

_PAPER, _INK, _DARK, _GAP = (250, 250, 248), (40, 42, 46), (24, 26, 30), 6
_GOLDEN = 0.61803398875


def palette(contract: Contract) -> np.ndarray:
    """Return the colour of every native class: that of its first unified class, so datasets share colours.

    Shape: (256, 3) uint8. Background, void and ids that the dataset does not use are black.
    """
    unified = taxonomy()
    colors = np.zeros((256, 3), np.uint8)
    for native in contract.classes:
        colors[native.id] = unified.colors[unified.names.index(native.unified[0])]
    return colors


def track_color(track_class: int, instance: int) -> tuple[int, int, int]:
    """Return a vivid colour that depends on the (class, instance) alone: the same in every frame and run."""
    return _vivid(int(track_class) * 7919 + int(instance))


@cache
def _vivid(number: int) -> tuple[int, int, int]:
    """Walk the hue circle in golden steps, in three degrees of lightness, so that neighbours in number differ."""
    hue = number * _GOLDEN % 1.0
    saturation, value = ((0.85, 1.0), (0.55, 1.0), (0.75, 0.9))[number % 3]
    red, green, blue = (round(255 * channel) for channel in hsv_to_rgb(hue, saturation, value))
    return red, green, blue


def overlay(
    image: np.ndarray,
    classes: np.ndarray,
    instances: np.ndarray,
    palette: np.ndarray,
    thing: np.ndarray,
    alpha: float = 0.55,
    outline: int = 1,
) -> np.ndarray:
    """Paint stuff in its class's colour and every object in its own, outlined; void and background are dimmed.

    Shape: image (H, W, 3) uint8; classes, instances (H, W); palette (256, 3) uint8; thing (256,) bool, the classes
        whose instances count. Thing pixels without an identity (0 or 65535) keep their class's colour.
    Units: `outline` in pixels, drawn inside the object.
    Raises: ValueError when the sizes differ.
    """
    if image.shape[:2] != classes.shape or classes.shape != instances.shape:
        raise ValueError(
            f"image {image.shape[:2]}, classes {classes.shape} and instances {instances.shape} differ in size"
        )
    tint = palette[classes].astype(np.float32)
    objects = thing[classes] & (instances > 0) & (instances != UNIDENTIFIED)
    key = np.where(objects, classes.astype(np.int64) << 16 | instances, -1)
    values, where = np.unique(key, return_inverse=True)
    colors = np.array([track_color(v >> 16, v & 0xFFFF) if v >= 0 else (0, 0, 0) for v in values.tolist()], np.float32)
    tint[objects] = colors[where.reshape(key.shape)[objects]]
    unknown = ~objects & ((classes == VOID) | (palette[classes].sum(-1) == 0))
    weight = np.where(unknown, 0.6 * alpha, alpha)[..., None]
    painted = (1 - weight) * image + weight * tint
    border = objects & _edges(key, outline)
    painted[border] = 0.25 * tint[border] + 0.75 * 255
    return np.clip(np.rint(painted), 0, 255).astype(np.uint8)


def _edges(key: np.ndarray, thickness: int) -> np.ndarray:
    """Mark pixels with another key within `thickness` steps in the four directions."""
    edges = np.zeros(key.shape, bool)
    for step in range(1, thickness + 1):
        vertical, horizontal = key[step:] != key[:-step], key[:, step:] != key[:, :-step]
        edges[step:] |= vertical
        edges[:-step] |= vertical
        edges[:, step:] |= horizontal
        edges[:, :-step] |= horizontal
    return edges


@dataclass(frozen=True)
class Tag:
    """What is written on a picture about an object, in its colour. Units: box (y0, x0, y1, x1), the ends exclusive."""

    text: str
    color: tuple[int, int, int]
    box: tuple[int, int, int, int]


def annotate(
    image: np.ndarray, tags: Sequence[Tag], boxes: bool = False, legend: Sequence[tuple[str, tuple[int, ...]]] = ()
) -> np.ndarray:
    """Write tags where there is room, those of large objects first, and a legend of (text, colour) bottom left.

    Text is white on dark, of a size that follows the image's. A tag goes above its object, else inside, else below;
    where all that is taken it is left out rather than drawn over another.

    Shape: (H, W, 3) uint8, as the result.
    """
    height, width = image.shape[:2]
    picture = Image.fromarray(image)
    size = max(11, min(height, width) // 36)
    pen, font, pad = ImageDraw.Draw(picture), ImageFont.load_default(size), max(2, size // 5)
    line = size + 2 * pad
    taken: list[tuple[float, float, float, float]] = []

    def write(text: str, color: tuple[int, ...], top: float, left: float, edge: float) -> None:
        right = left + edge + font.getlength(text) + 3 * pad
        taken.append((top, left, top + line, right))
        pen.rectangle((left, top, right - 1, top + line - 1), fill=_DARK)
        pen.rectangle((left, top, left + edge - 1, top + line - 1), fill=color)
        pen.text((left + edge + 1.5 * pad, top + line / 2), text, _PAPER, font, anchor="lm")

    for place, (text, color) in enumerate(legend):
        top = height - line * (len(legend) - place)
        if top >= 0:
            write(text, color, top, 0, line)
    ordered = sorted(tags, key=lambda tag: (tag.box[0] - tag.box[2]) * (tag.box[3] - tag.box[1]))
    for tag in ordered if boxes else ():
        y0, x0, y1, x1 = tag.box
        pen.rectangle((x0, y0, x1 - 1, y1 - 1), outline=tag.color, width=max(1, size // 10))
    for tag in ordered:
        y0, x0, y1, _ = tag.box
        wide = 2 * pad + font.getlength(tag.text) + 3 * pad
        left = min(x0, width - wide)
        for top in (y0 - line, y0, y1 - line, y1):
            free = all(top >= end or top + line <= start or left >= right or left + wide <= other
                       for start, other, end, right in taken)  # fmt: skip
            if tag.text and left >= 0 and 0 <= top <= height - line and free:
                write(tag.text, tag.color, top, left, 2 * pad)
                break
    return np.asarray(picture)


def enlarge(array: np.ndarray, factor: int) -> np.ndarray:
    """Return an image (H, W, 3) enlarged smoothly, or a label map (H, W) enlarged by repetition."""
    if factor == 1:
        return array
    if array.ndim == 2:
        return array.repeat(factor, 0).repeat(factor, 1)
    size = (array.shape[1] * factor, array.shape[0] * factor)
    return np.asarray(Image.fromarray(array).resize(size, Image.Resampling.BICUBIC))


def triptych(
    image: np.ndarray,
    truth: Labels | None,
    prediction: Labels | None,
    palette: np.ndarray,
    thing: np.ndarray,
    scale: int = 2,
    titles: bool = True,
) -> np.ndarray:
    """Return image | truth | prediction side by side, enlarged before painting so that outlines stay fine.

    What is None is left out.
    """
    large = enlarge(image, scale)
    panels, names = [large], ["image"]
    for name, labels in (("truth", truth), ("prediction", prediction)):
        if labels is not None:
            panels.append(overlay(large, enlarge(labels[0], scale), enlarge(labels[1], scale), palette, thing))
            names.append(name)
    return contact_sheet([panels], titles=names if titles else None)


def strip(*images: np.ndarray, gap: int = _GAP, vertical: bool = False) -> np.ndarray:
    """Join images in a row, or in a column, on light paper; smaller ones are not stretched.

    Raises: ValueError when there is no image.
    """
    if not images:
        raise ValueError("no image to join")
    axis = 0 if vertical else 1
    across = max(image.shape[1 - axis] for image in images)
    length = sum(image.shape[axis] for image in images) + gap * (len(images) - 1)
    shape = (length, across, 3) if vertical else (across, length, 3)
    sheet = np.empty(shape, np.uint8)
    sheet[:] = _PAPER
    start = 0
    for image in images:
        height, width = image.shape[:2]
        y, x = (start, 0) if vertical else (0, start)
        sheet[y : y + height, x : x + width] = image
        start += image.shape[axis] + gap
    return sheet


def contact_sheet(
    rows: Sequence[Sequence[np.ndarray]],
    titles: Sequence[str] | None = None,
    captions: Sequence[Sequence[str]] | None = None,
    scale: int = 1,
) -> np.ndarray:
    """Return images in a grid: `titles` above the columns, `captions[row][column]` below the images.

    Shape: each image (H, W, 3) uint8, of any size -> (height, width, 3) uint8.
    Raises: ValueError when there is no image.
    """
    cells = [[enlarge(image, scale) for image in row] for row in rows]
    if not any(cells):
        raise ValueError("no image for the contact sheet")
    columns = max(len(row) for row in cells)
    widths = [max(row[k].shape[1] for row in cells if k < len(row)) for k in range(columns)]
    heights = [max((image.shape[0] for image in row), default=0) for row in cells]
    size = max(11, min(18, min(widths) // 18))
    line = size + 6
    head, foot = (line if titles else 0), (line if captions else 0)
    width = sum(widths) + _GAP * (columns + 1)
    sheet = Image.new("RGB", (width, head + sum(heights) + foot * len(cells) + _GAP * (len(cells) + 1)), _PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size)
    lefts = [_GAP * (k + 1) + sum(widths[:k]) for k in range(columns)]
    for left, wide, title in zip(lefts, widths, titles or (), strict=False):
        pen.text((left + wide / 2, head / 2 + 3), _shorten(title, font, wide), _INK, font, anchor="mm")
    top = head + _GAP
    for r, row in enumerate(cells):
        for k, image in enumerate(row):
            sheet.paste(Image.fromarray(image), (lefts[k], top))
            if captions and r < len(captions) and k < len(captions[r]):
                text = _shorten(captions[r][k], font, widths[k])
                pen.text((lefts[k] + 2, top + heights[r] + line / 2), text, _INK, font, anchor="lm")
        top += heights[r] + foot + _GAP
    return np.asarray(sheet)


def _shorten(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Cut the front of a text that does not fit: the end of a key tells frames apart."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"…{text}") > width:
        text = text[1:]
    return f"…{text}"


def save_gif(path: Path, frames: Sequence[np.ndarray], fps: float = 10) -> Path:
    """Write an endless animation with one colour table for all frames, so that still parts do not flicker.

    Raises: ValueError when there is no frame.
    """
    if not frames:
        raise ValueError(f"no frame for {path}")
    sample = strip(*frames[:: max(1, len(frames) // 8)], gap=0, vertical=True)
    table = Image.fromarray(sample).quantize(255, Image.Quantize.MEDIANCUT)
    pages = [Image.fromarray(frame).quantize(palette=table, dither=Image.Dither.NONE) for frame in frames]
    data = io.BytesIO()
    pages[0].save(
        data, "GIF", save_all=True, append_images=pages[1:], duration=round(1000 / fps), loop=0, optimize=False
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.getvalue())
    return path


def save_png(path: Path, image: np.ndarray) -> Path:
    """Write an image, creating its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, "PNG")
    return path
