"""Draws a picture and its labels with the same strokes, several times too large, so that both agree to the pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

Color = tuple[int, int, int]
Point = tuple[float, float]

SUPERSAMPLE = 3
"""Odd, so that the middle sample of a pixel is its label while the mean of all samples is its colour."""


def shade(color: Color, factor: float) -> Color:
    """Darken (factor < 1) or lighten towards white (factor > 1)."""
    light = min(max(factor - 1.0, 0.0), 1.0)
    red, green, blue = (int(c * min(factor, 1.0) + (255 - c) * light) for c in color)
    return red, green, blue


@dataclass(frozen=True)
class Pose:
    """Where an object stands, and which side it faces (+1 right, -1 left).

    Units: the ground contact x, y in pixels; scale in pixels per object unit.
    """

    x: float
    y: float
    scale: float
    facing: int = 1

    def at(self, u: float, v: float) -> Point:
        """Map object units (u forwards, v upwards) to picture coordinates (x, y)."""
        return self.x + self.facing * u * self.scale, self.y - v * self.scale


class Canvas:
    """A picture and an int32 label plane, both SUPERSAMPLE times larger than the coordinates that callers use.

    A stroke without a `code` changes the picture only (shadows, windows within a labelled silhouette).
    """

    def __init__(self, picture: Image.Image, labels: Image.Image) -> None:
        self.picture, self.labels = picture, labels
        self._ink = ImageDraw.Draw(picture, "RGBA")
        self._codes = ImageDraw.Draw(labels)

    @classmethod
    def blank(cls, height: int, width: int, code: int) -> Canvas:
        """Return a black canvas labelled `code` everywhere."""
        size = (width * SUPERSAMPLE, height * SUPERSAMPLE)
        return cls(Image.new("RGB", size), Image.new("I", size, code))

    def crop(self, x: float, width: int) -> Canvas:
        """Copy the columns from `x` on; the camera's pan."""
        left = round(x * SUPERSAMPLE)
        box = (left, 0, left + width * SUPERSAMPLE, self.picture.height)
        return Canvas(self.picture.crop(box), self.labels.crop(box))

    def polygon(self, points: Sequence[Point], color: Color, code: int | None = None, alpha: int = 255) -> None:
        """Fill a polygon."""
        scaled = [(x * SUPERSAMPLE, y * SUPERSAMPLE) for x, y in points]
        self._ink.polygon(scaled, fill=(*color, alpha))
        if code is not None:
            self._codes.polygon(scaled, fill=code)

    def box(self, x0: float, y0: float, x1: float, y1: float, color: Color, code: int | None = None) -> None:
        """Fill an axis-parallel rectangle."""
        self.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], color, code)

    def disc(
        self, center: Point, rx: float, ry: float, color: Color, code: int | None = None, alpha: int = 255
    ) -> None:
        """Fill an axis-parallel ellipse."""
        x, y = center[0] * SUPERSAMPLE, center[1] * SUPERSAMPLE
        box = (x - rx * SUPERSAMPLE, y - ry * SUPERSAMPLE, x + rx * SUPERSAMPLE, y + ry * SUPERSAMPLE)
        self._ink.ellipse(box, fill=(*color, alpha))
        if code is not None:
            self._codes.ellipse(box, fill=code)

    def ring(self, center: Point, radius: float, thickness: float, color: Color, code: int | None = None) -> None:
        """Draw a circle's outline; its label covers the whole disc, as annotators draw bicycle wheels."""
        x, y, r = center[0] * SUPERSAMPLE, center[1] * SUPERSAMPLE, radius * SUPERSAMPLE
        self._ink.ellipse(
            (x - r, y - r, x + r, y + r), outline=(*color, 255), width=max(2, round(thickness * SUPERSAMPLE))
        )
        if code is not None:
            self._codes.ellipse((x - r, y - r, x + r, y + r), fill=code)

    def limb(self, a: Point, b: Point, thickness: float, color: Color, code: int | None = None) -> None:
        """Draw a thick line with a round end at `b`."""
        dx, dy = b[0] - a[0], b[1] - a[1]
        norm = max((dx * dx + dy * dy) ** 0.5, 1e-6)
        nx, ny = -dy / norm * thickness / 2, dx / norm * thickness / 2
        corners = [(a[0] + nx, a[1] + ny), (b[0] + nx, b[1] + ny), (b[0] - nx, b[1] - ny), (a[0] - nx, a[1] - ny)]
        self.polygon(corners, color, code)
        self.disc(b, thickness / 2, thickness / 2, color, code)

    def shadow(self, center: Point, rx: float, ry: float) -> None:
        """Darken the ground softly under an object."""
        for grow, alpha in ((1.15, 22), (1.0, 34), (0.8, 46)):
            self.disc(center, rx * grow, ry * grow, (10, 12, 30), alpha=alpha)

    def finish(self) -> tuple[Image.Image, np.ndarray]:
        """Return the anti-aliased picture and the codes, at native size.

        Shape: picture (H, W) RGB; codes (H, W) int32.
        """
        middle = SUPERSAMPLE // 2
        return self.picture.reduce(SUPERSAMPLE), np.asarray(self.labels)[middle::SUPERSAMPLE, middle::SUPERSAMPLE]
