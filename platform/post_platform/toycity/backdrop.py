"""Paints what stands still: one wide strip of sky, houses, pavement and road over which the camera pans."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from post_platform.toycity.canvas import SUPERSAMPLE, Canvas, Color, Pose, shade
from post_platform.toycity.sprites import HAIRS, SKINS, Look, person

ROAD, SIDEWALK, BUILDING, POLE, VEGETATION, SKY, PERSON = 0, 1, 2, 5, 8, 10, 11
RUG = 100  # not a Cityscapes class: a world turns it into a mask of its own

# Fractions of the picture's height.
EYE, HOUSES_END, CURB_FAR, CURB_NEAR, PAVEMENT_NEAR = 0.22, 0.475, 0.54, 0.89, 0.908
UNIT_PER_DEPTH = 0.19  # pixels per object unit, per pixel below eye level


@dataclass(frozen=True)
class Palette:
    """Colours of a style; held-out worlds have others than training worlds, from the same families."""

    skies: tuple[tuple[Color, Color], ...]
    walls: tuple[Color, ...]
    asphalt: tuple[Color, ...]
    paving: tuple[Color, ...]
    leaves: tuple[Color, ...]
    awnings: tuple[Color, ...]


PALETTES = {
    "train": Palette(
        skies=(
            ((92, 150, 214), (206, 228, 244)),
            ((120, 170, 216), (236, 232, 222)),
            ((146, 166, 190), (214, 220, 226)),
        ),
        walls=((196, 122, 92), (222, 190, 146), (176, 92, 78), (206, 204, 190), (164, 146, 128), (228, 168, 116)),
        asphalt=((84, 86, 94), (96, 94, 98), (76, 80, 90)),
        paving=((178, 170, 164), (188, 182, 170), (168, 166, 170)),
        leaves=((76, 138, 62), (98, 150, 58), (58, 118, 66)),
        awnings=((200, 60, 56), (40, 120, 96), (52, 92, 168), (226, 160, 48)),
    ),
    "held_out": Palette(
        skies=(((104, 136, 206), (240, 214, 196)), ((84, 160, 204), (214, 236, 236))),
        walls=((150, 120, 142), (204, 158, 128), (132, 142, 150), (214, 180, 168), (184, 104, 84), (190, 182, 150)),
        asphalt=((88, 82, 86), (72, 76, 80)),
        paving=((186, 172, 156), (160, 166, 166)),
        leaves=((112, 138, 48), (50, 124, 88)),
        awnings=((146, 58, 130), (36, 130, 140), (214, 110, 44)),
    ),
}


def scale_at(y: float, height: int) -> float:
    """Return how many pixels one object unit spans for something that stands at row `y`."""
    return UNIT_PER_DEPTH * (y - EYE * height)


def _pick(rng: np.random.Generator, options: tuple) -> Color:
    return options[int(rng.integers(len(options)))]


def paint(
    rng: np.random.Generator, height: int, width: int, style: str, crowd: bool, rug: bool, crossing: float
) -> Canvas:
    """Return the strip; its labels are class numbers (a crowd is PERSON without an instance).

    Units: `width` and `crossing` (the x of the zebra crossing) in pixels of the strip.
    """
    palette = PALETTES[style]
    canvas = Canvas.blank(height, width, SKY)
    _sky(canvas, rng, palette, height, width)
    _skyline(canvas, rng, palette, height, width)
    _houses(canvas, rng, palette, height, width, style)
    _ground(canvas, rng, palette, height, width, crossing)
    for x in np.arange(rng.uniform(8, 40), width, 74 * height / 128):
        _tree(canvas, rng, palette, x + rng.uniform(-14, 14), height)
    for x in np.arange(rng.uniform(30, 80), width, 110 * height / 128):
        lamp(canvas, Pose(x, 0.535 * height, scale_at(0.535 * height, height)), POLE)
    if crowd:
        _bus_stop(canvas, rng, rng.uniform(0.3, 0.7) * width, height)
    if rug:
        _carpet(canvas, rng, palette, rng.uniform(0.25, 0.75) * width, height)
    _grain(canvas, rng, height, width)
    return canvas


def _sky(canvas: Canvas, rng: np.random.Generator, palette: Palette, height: int, width: int) -> None:
    top, low = palette.skies[int(rng.integers(len(palette.skies)))]
    ramp = np.clip(np.linspace(0, 2, height), 0, 1)[:, None, None]
    sky = (1 - ramp) * np.array(top) + ramp * np.array(low)
    sky = Image.fromarray(np.broadcast_to(sky, (height, width, 3)).astype(np.uint8))
    cover = Image.new("L", (width, height))
    puffs = Canvas(Image.new("RGB", (1, 1)), Image.new("L", (width * SUPERSAMPLE, height * SUPERSAMPLE)))
    for _ in range(int(width / 60)):
        x, y, size = rng.uniform(0, width), rng.uniform(0.0, 0.24) * height, rng.uniform(0.03, 0.07) * height
        for k in range(-2, 3):
            puffs.disc(
                (x + 1.3 * k * size, y - size * (0.5 - 0.2 * abs(k))),
                size * 1.4,
                size * (1 - 0.2 * abs(k)),
                (0, 0, 0),
                code=200,
            )
    cover = puffs.labels.reduce(SUPERSAMPLE).filter(ImageFilter.GaussianBlur(height / 90))
    sky.paste((255, 253, 248), (0, 0), cover)
    canvas.picture.paste(sky.resize(canvas.picture.size, Image.Resampling.BILINEAR))


def _skyline(canvas: Canvas, rng: np.random.Generator, palette: Palette, height: int, width: int) -> None:
    """Draw hazy towers far behind the houses."""
    x = -10.0
    while x < width:
        wide = rng.uniform(10, 26) * height / 128
        if rng.random() < 0.6:
            haze = shade(_pick(rng, palette.walls), 1.5)
            tint = (haze[0] // 2 + 84, haze[1] // 2 + 92, haze[2] // 2 + 106)
            canvas.box(x, rng.uniform(0.13, 0.26) * height, x + wide, HOUSES_END * height, tint, BUILDING)
        x += wide


def _houses(canvas: Canvas, rng: np.random.Generator, palette: Palette, height: int, width: int, style: str) -> None:
    """Draw the row of houses along the far pavement, with gaps through which the skyline shows."""
    x, unit = -rng.uniform(0, 20), height / 128
    base = HOUSES_END * height
    while x < width:
        wide = rng.uniform(34, 62) * unit
        if rng.random() < 0.84:
            _house(canvas, rng, palette, (x, rng.uniform(0.05, 0.21) * height, x + wide, base), unit, style)
        else:
            _hedge(canvas, rng, palette, x, x + wide, base, unit)
        x += wide


def _hedge(
    canvas: Canvas, rng: np.random.Generator, palette: Palette, x0: float, x1: float, base: float, unit: float
) -> None:
    leaf = _pick(rng, palette.leaves)
    canvas.box(x0, base - 12 * unit, x1, base, shade(leaf, 0.8), VEGETATION)
    for x in np.arange(x0, x1 + 1, 4 * unit):
        radius = rng.uniform(3.2, 4.6) * unit
        x = min(max(x, x0 + radius), x1 - radius)
        canvas.disc(
            (x, base - rng.uniform(8, 13) * unit), radius, radius, shade(leaf, rng.uniform(0.7, 1.15)), VEGETATION
        )


def _house(
    canvas: Canvas,
    rng: np.random.Generator,
    palette: Palette,
    box: tuple[float, float, float, float],
    unit: float,
    style: str,
) -> None:
    x0, y0, x1, y1 = box
    wall = shade(_pick(rng, palette.walls), rng.uniform(0.88, 1.06))
    canvas.box(x0, y0, x1, y1, wall, BUILDING)
    spacing = (2.4 if style == "train" else 3.4) * unit
    for y in np.arange(y0 + 2 * unit, y1, spacing):  # courses of brick
        canvas.box(x0, y, x1, y + 0.5 * unit, shade(wall, 0.93))
    canvas.box(x0, y0, x0 + 1.6 * unit, y1, shade(wall, 1.18))
    canvas.box(x1 - 2.2 * unit, y0, x1, y1, shade(wall, 0.78))
    if rng.random() < 0.45:  # a pitched roof
        roof = shade((122, 66, 56), rng.uniform(0.8, 1.1))
        canvas.polygon(
            [
                (x0 - unit, y0 + unit),
                (x0 + 7 * unit, y0 - 6 * unit),
                (x1 - 7 * unit, y0 - 6 * unit),
                (x1 + unit, y0 + unit),
            ],
            roof,
            BUILDING,
        )
    else:
        canvas.box(x0 - 0.8 * unit, y0 - 1.4 * unit, x1 + 0.8 * unit, y0 + unit, shade(wall, 0.68), BUILDING)
    _windows(canvas, rng, (x0, y0, x1, y1 - 13 * unit), wall, unit)
    _ground_floor(canvas, rng, palette, (x0, y1 - 13 * unit, x1, y1), wall, unit)


def _windows(
    canvas: Canvas, rng: np.random.Generator, box: tuple[float, float, float, float], wall: Color, unit: float
) -> None:
    x0, y0, x1, y1 = box
    wide, high = rng.uniform(3.4, 5.0) * unit, rng.uniform(4.6, 6.2) * unit
    columns, rows = max(1, int((x1 - x0 - 3 * unit) / (wide * 1.9))), int((y1 - y0 - 2 * unit) / (high * 1.6))
    step_x, step_y = (x1 - x0) / columns, (y1 - y0) / max(rows, 1)
    for row in range(rows):
        for column in range(columns):
            x = x0 + (column + 0.5) * step_x - wide / 2
            y = y0 + (row + 0.55) * step_y - high / 2
            glass = (252, 226, 150) if rng.random() < 0.12 else shade((70, 92, 116), rng.uniform(0.8, 1.3))
            canvas.box(x - 0.7 * unit, y - 0.7 * unit, x + wide + 0.7 * unit, y + high + 0.9 * unit, shade(wall, 1.3))
            canvas.box(x, y, x + wide, y + high, glass)
            canvas.polygon([(x, y), (x + wide * 0.6, y), (x, y + high * 0.55)], shade(glass, 1.25))
            canvas.box(x + wide / 2 - 0.3 * unit, y, x + wide / 2 + 0.3 * unit, y + high, shade(wall, 1.3))


def _ground_floor(
    canvas: Canvas,
    rng: np.random.Generator,
    palette: Palette,
    box: tuple[float, float, float, float],
    wall: Color,
    unit: float,
) -> None:
    """Draw a shop with a striped awning, or a door."""
    x0, y0, x1, y1 = box
    if rng.random() < 0.6:
        canvas.box(x0 + 2.5 * unit, y0 + 2 * unit, x1 - 3 * unit, y1, (64, 74, 88))
        canvas.box(
            x0 + 4 * unit,
            y0 + 5 * unit,
            x1 - 4.5 * unit,
            y1 - 1.5 * unit,
            shade((150, 172, 184), rng.uniform(0.85, 1.1)),
        )
        main = _pick(rng, palette.awnings)
        edges = np.linspace(x0 + 2 * unit, x1 - 2.5 * unit, 2 * int((x1 - x0) / (7 * unit)) + 2)
        for k, (left, right) in enumerate(itertools.pairwise(edges)):
            color = main if k % 2 == 0 else (242, 236, 226)
            canvas.polygon(
                [
                    (left, y0 + unit),
                    (right, y0 + unit),
                    (right - 0.6 * unit, y0 + 5.5 * unit),
                    (left - 0.6 * unit, y0 + 5.5 * unit),
                ],
                color,
            )
    else:
        middle = rng.uniform(x0 + 8 * unit, x1 - 8 * unit)
        canvas.box(middle - 3.6 * unit, y1 - 10.5 * unit, middle + 3.6 * unit, y1, shade(wall, 1.3))
        canvas.box(
            middle - 2.8 * unit, y1 - 9.6 * unit, middle + 2.8 * unit, y1, shade(_pick(rng, palette.awnings), 0.7)
        )
        canvas.disc((middle + 1.6 * unit, y1 - 4.6 * unit), 0.5 * unit, 0.5 * unit, (230, 200, 90))


def _ground(
    canvas: Canvas, rng: np.random.Generator, palette: Palette, height: int, width: int, crossing: float
) -> None:
    paving, asphalt, unit = _pick(rng, palette.paving), _pick(rng, palette.asphalt), height / 128
    far, near = CURB_FAR * height, CURB_NEAR * height
    canvas.box(0, HOUSES_END * height, width, far, paving, SIDEWALK)
    canvas.box(0, HOUSES_END * height, width, HOUSES_END * height + 1.2 * unit, shade(paving, 0.72))
    for x in np.arange(0, width, 7 * unit):
        canvas.limb((x, HOUSES_END * height), (x - 2 * unit, far), 0.4 * unit, shade(paving, 0.86))
    canvas.box(0, far - 1.4 * unit, width, far, shade(paving, 1.35))
    rows = 8
    for k in range(rows):  # asphalt grows lighter towards the viewer
        y0, y1 = far + (near - far) * k / rows, far + (near - far) * (k + 1) / rows
        canvas.box(0, y0, width, y1 + 0.5, shade(asphalt, 0.9 + 0.025 * k), ROAD)
    canvas.box(0, far, width, far + 1.3 * unit, shade(asphalt, 0.62))
    for line, gap in ((0.635, 22), (0.745, 30)):
        y, thick = line * height, 1.1 * unit * (1 if line < 0.7 else 1.4)
        for x in np.arange(rng.uniform(-20, 0), width, gap * unit):
            canvas.box(x, y, x + gap * 0.5 * unit, y + thick, (222, 220, 208))
    _zebra(canvas, crossing, far + 3 * unit, near - 2 * unit, unit)
    canvas.box(0, near, width, PAVEMENT_NEAR * height, shade(paving, 1.4), SIDEWALK)
    canvas.box(0, near + 1.4 * unit, width, PAVEMENT_NEAR * height, shade(paving, 0.7), SIDEWALK)
    canvas.box(0, PAVEMENT_NEAR * height, width, height, shade(paving, 1.04), SIDEWALK)
    for x in np.arange(-10, width, 17 * unit):
        canvas.limb((x, PAVEMENT_NEAR * height), (x - 6 * unit, height), 0.6 * unit, shade(paving, 0.84))
    canvas.box(0, 0.952 * height, width, 0.952 * height + 0.6 * unit, shade(paving, 0.84))


def _zebra(canvas: Canvas, x: float, y0: float, y1: float, unit: float) -> None:
    """Draw a zebra crossing; its labels stay road."""
    y = y0
    while y < y1 - 3 * unit:
        grow = (y - y0) / (y1 - y0)
        half, thick = (8 + 7 * grow) * unit, (1.5 + 1.6 * grow) * unit
        canvas.box(x - half, y, x + half, y + thick, (226, 226, 218))
        y += 2.1 * thick


def _tree(canvas: Canvas, rng: np.random.Generator, palette: Palette, x: float, height: int) -> None:
    leaf, unit = shade(_pick(rng, palette.leaves), rng.uniform(0.85, 1.1)), height / 128
    base, tall = 0.525 * height, rng.uniform(26, 36) * unit
    canvas.shadow((x, base), 6 * unit, 1.1 * unit)
    canvas.limb((x, base - tall * 0.6), (x, base - 0.8 * unit), 2.4 * unit, (104, 76, 54), VEGETATION)
    canvas.limb((x - 0.6 * unit, base - tall * 0.6), (x - 0.6 * unit, base - unit), 0.8 * unit, (134, 102, 74))
    for layer, count in ((0.72, 7), (0.95, 8), (1.22, 5)):
        for _ in range(count):
            angle, far = rng.uniform(0, 2 * math.pi), rng.uniform(0, 7.5) * unit
            lift = 1.6 * unit if layer > 1 else 0.0
            spot = (x + far * math.cos(angle) - lift, base - tall * 0.74 + 0.85 * far * math.sin(angle) - lift)
            radius = rng.uniform(3.0, 5.0) * unit * (0.6 if layer > 1.1 else 1.0)
            canvas.disc(spot, radius, radius, shade(leaf, layer), VEGETATION)


def lamp(canvas: Canvas, pose: Pose, code: int) -> None:
    """Draw a street lamp that stands on the pavement."""
    s, iron = pose.scale, (58, 64, 70)
    canvas.shadow(pose.at(0, 0), 0.3 * s, 0.08 * s)
    canvas.box(*pose.at(-0.2, 4.6), *pose.at(0.2, 0), iron, code)
    canvas.box(*pose.at(-0.3, 0.5), *pose.at(0.3, 0), shade(iron, 0.8), code)
    canvas.box(*pose.at(-0.2, 4.6), *pose.at(-0.06, 0.4), shade(iron, 1.3))
    canvas.limb(pose.at(0, 4.55), pose.at(0.8, 4.7), 0.24 * s, iron, code)
    canvas.disc(pose.at(0.85, 4.62), 0.3 * s, 0.2 * s, (250, 232, 160), code)


def _bus_stop(canvas: Canvas, rng: np.random.Generator, x: float, height: int) -> None:
    """Draw a group that waits at a stop: people too close together to be told apart, hence a crowd."""
    coats = ((92, 96, 120), (120, 88, 84), (96, 112, 92), (128, 120, 110))
    unit = height / 128
    for k in range(7):
        y = (0.505 + 0.004 * (k % 3)) * height
        look = Look(_pick(rng, coats), (60, 62, 76), _pick(rng, SKINS), _pick(rng, HAIRS), 0)
        person(
            canvas,
            Pose(x + (3.6 * k + rng.uniform(-0.8, 0.8)) * unit, y, scale_at(y, height) * 0.96, (-1) ** k),
            look,
            PERSON,
            0.3,
        )


def _carpet(canvas: Canvas, rng: np.random.Generator, palette: Palette, x: float, height: int) -> None:
    """Lay a rug for sale on the near pavement."""
    y0, y1, unit = 0.922 * height, 0.985 * height, height / 128
    main = _pick(rng, palette.awnings)
    for inset, color, code in ((0.0, shade(main, 0.8), RUG), (1.6, (236, 214, 160), None), (2.6, main, None)):
        i = inset * unit
        canvas.polygon(
            [
                (x - 16 * unit + i, y0 + i * 0.6),
                (x + 20 * unit - i, y0 + i * 0.6),
                (x + 16 * unit - i, y1 - i * 0.6),
                (x - 22 * unit + i, y1 - i * 0.6),
            ],
            color,
            code,
        )
    for k in range(-2, 3):
        canvas.disc((x - unit + 6 * k * unit, (y0 + y1) / 2), 1.6 * unit, 1.2 * unit, (236, 214, 160))


def _grain(canvas: Canvas, rng: np.random.Generator, height: int, width: int) -> None:
    """Give every surface a fixed grain that moves with it under the pan, strongest on the asphalt."""
    fine = rng.normal(0, 1, (height, width))
    coarse = np.asarray(
        Image.fromarray(rng.normal(0, 1, (height // 8, width // 8)).astype(np.float32)).resize((width, height))
    )
    rows = np.arange(height)[:, None] / height
    strength = np.where(rows > CURB_FAR, 5.0, np.where(rows > HOUSES_END, 3.5, 2.5))
    grain = (strength * (fine + 0.8 * coarse)).repeat(SUPERSAMPLE, 0).repeat(SUPERSAMPLE, 1)
    picture = np.asarray(canvas.picture).astype(np.float32) + grain[..., None].astype(np.float32)
    canvas.picture.paste(Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)))
