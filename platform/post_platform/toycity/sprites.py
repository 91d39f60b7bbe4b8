"""The moving things of the toy city, each drawn in its own units: a grown person is 1.95 high, a car 3 long."""

from __future__ import annotations

import math
from dataclasses import dataclass

from post_platform.toycity.canvas import Canvas, Color, Pose, shade

GLASS: Color = (58, 78, 98)
TYRE: Color = (26, 26, 30)
HUB: Color = (168, 170, 176)
SKINS: tuple[Color, ...] = ((240, 200, 170), (214, 164, 126), (164, 112, 80), (112, 74, 54))
HAIRS: tuple[Color, ...] = ((48, 34, 26), (92, 60, 34), (24, 22, 24), (176, 130, 70))


@dataclass(frozen=True)
class Look:
    """The colours of one object and the variant of its shape."""

    main: Color
    second: Color
    skin: Color
    hair: Color
    shape: int


def _wheel(canvas: Canvas, pose: Pose, u: float, radius: float, code: int) -> None:
    """Draw a car's or truck's wheel that touches the ground."""
    r = radius * pose.scale
    canvas.disc(pose.at(u, radius), r, r, TYRE, code)
    canvas.disc(pose.at(u, radius), r * 0.5, r * 0.5, HUB)


_CABINS = (  # rear foot, rear roof, front roof, front foot along the length, and the height of the roof
    (-1.15, -0.78, 0.32, 0.88, 1.36),
    (-1.42, -1.30, 0.28, 0.86, 1.46),
    (-1.20, -0.62, 0.10, 0.82, 1.28),
)


def car(canvas: Canvas, pose: Pose, look: Look, code: int) -> None:
    """Draw a saloon (shape 0), a hatchback (1) or a sports car with a stripe (2)."""
    rear, rear_roof, front_roof, front, roof = _CABINS[look.shape]
    canvas.shadow(pose.at(0, 0.03), 1.65 * pose.scale, 0.22 * pose.scale)
    body = [(-1.5, 0.3), (-1.52, 0.72), (-1.4, 0.86), (1.0, 0.86), (1.4, 0.76), (1.53, 0.56), (1.5, 0.3)]
    cabin = [(rear, 0.84), (rear_roof, roof), (front_roof, roof), (front, 0.84)]
    canvas.polygon([pose.at(*p) for p in cabin], shade(look.main, 0.82), code)
    canvas.polygon([pose.at(*p) for p in body], look.main, code)
    canvas.polygon(
        [pose.at(*p) for p in ((-1.46, 0.76), (-1.38, 0.86), (1.0, 0.86), (1.36, 0.76))], shade(look.main, 1.3)
    )
    canvas.polygon([pose.at(*p) for p in ((-1.5, 0.3), (-1.5, 0.42), (1.51, 0.42), (1.5, 0.3))], shade(look.main, 0.55))
    pillar = (rear + front) / 2 - 0.05
    rear_glass = [
        (rear + 0.16, 0.88),
        (rear_roof + 0.1, roof - 0.1),
        (pillar - 0.05, roof - 0.1),
        (pillar - 0.05, 0.88),
    ]
    front_glass = [
        (pillar + 0.06, 0.88),
        (pillar + 0.06, roof - 0.1),
        (front_roof - 0.03, roof - 0.1),
        (front - 0.14, 0.88),
    ]
    canvas.polygon([pose.at(*p) for p in rear_glass], GLASS)
    canvas.polygon([pose.at(*p) for p in front_glass], shade(GLASS, 1.22))
    if look.shape == 2:
        canvas.polygon([pose.at(*p) for p in ((-1.5, 0.54), (-1.5, 0.66), (1.5, 0.66), (1.5, 0.54))], look.second)
    for u in (-0.94, 0.92):
        _wheel(canvas, pose, u, 0.33, code)
    canvas.polygon([pose.at(*p) for p in ((1.34, 0.6), (1.36, 0.74), (1.52, 0.6))], (255, 244, 196))
    canvas.polygon([pose.at(*p) for p in ((-1.52, 0.6), (-1.52, 0.76), (-1.4, 0.76), (-1.4, 0.6))], (214, 40, 36))


def truck(canvas: Canvas, pose: Pose, look: Look, code: int) -> None:
    """Draw a lorry: a tall pale box with a band, and a cab in front."""
    canvas.shadow(pose.at(0, 0.03), 2.35 * pose.scale, 0.26 * pose.scale)
    cab = [(1.0, 0.4), (1.0, 1.8), (1.75, 1.8), (2.12, 1.1), (2.2, 1.0), (2.2, 0.4)]
    cargo = [(-2.2, 0.55), (-2.2, 2.35), (0.92, 2.35), (0.92, 0.55)]
    canvas.polygon([pose.at(*p) for p in ((-2.15, 0.35), (-2.15, 0.6), (1.2, 0.6), (1.2, 0.35))], (54, 54, 60), code)
    canvas.polygon([pose.at(*p) for p in cab], look.second, code)
    canvas.polygon([pose.at(*p) for p in cargo], look.main, code)
    canvas.polygon(
        [pose.at(*p) for p in ((-2.2, 2.2), (-2.2, 2.35), (0.92, 2.35), (0.92, 2.2))], shade(look.main, 1.45)
    )
    canvas.polygon([pose.at(*p) for p in ((-2.2, 1.1), (-2.2, 1.5), (0.92, 1.5), (0.92, 1.1))], look.second)
    for u in (-1.42, -0.64, 0.14):
        canvas.limb(pose.at(u, 0.55), pose.at(u, 2.3), 0.05 * pose.scale, shade(look.main, 0.86))
    canvas.polygon([pose.at(*p) for p in ((1.3, 1.12), (1.3, 1.64), (1.68, 1.64), (1.94, 1.12))], GLASS)
    canvas.polygon([pose.at(*p) for p in ((2.05, 0.55), (2.05, 0.75), (2.2, 0.75), (2.2, 0.55))], (255, 244, 196))
    for u in (-1.6, -0.82, 1.45):
        _wheel(canvas, pose, u, 0.37, code)


def person(canvas: Canvas, pose: Pose, look: Look, code: int, stride: float, lean: float = 0.0) -> None:
    """Draw someone walking; `stride` is the phase of the legs in radians, `lean` tilts a runner forwards."""
    s = pose.scale
    canvas.shadow(pose.at(0, 0.02), 0.46 * s, 0.12 * s)
    swing = math.sin(stride)
    reach = 0.26 + 0.5 * lean
    far, near = shade(look.second, 0.68), look.second
    canvas.limb(pose.at(-0.06, 0.85), pose.at(-reach * swing, 0.1), 0.23 * s, far, code)
    canvas.limb(pose.at(-0.06, 1.36), pose.at(lean + reach * swing, 0.86), 0.17 * s, shade(look.main, 0.66), code)
    canvas.limb(pose.at(0.06, 0.85), pose.at(reach * swing, 0.1), 0.23 * s, near, code)
    torso = [
        (-0.26, 0.76),
        (0.26, 0.76),
        (0.32 + lean, 1.32),
        (0.22 + lean, 1.5),
        (-0.22 + lean, 1.5),
        (-0.32 + lean, 1.32),
    ]
    canvas.polygon([pose.at(*p) for p in torso], look.main, code)
    back = [(-0.26, 0.76), (-0.1, 0.76), (-0.1 + lean, 1.5), (-0.22 + lean, 1.5), (-0.32 + lean, 1.32)]
    canvas.polygon([pose.at(*p) for p in back], shade(look.main, 0.8))
    canvas.limb(
        pose.at(0.1 + lean, 1.38), pose.at(0.08 + lean - reach * swing, 0.88), 0.16 * s, shade(look.main, 1.15), code
    )
    _head(canvas, pose, look, code, 0.03 + 1.2 * lean, 1.7)


def _head(canvas: Canvas, pose: Pose, look: Look, code: int, u: float, v: float) -> None:
    """Draw a head: hair behind, the face in front of it."""
    s = pose.scale
    canvas.disc(pose.at(u - 0.03, v + 0.03), 0.26 * s, 0.27 * s, look.hair, code)
    canvas.disc(pose.at(u + 0.06, v - 0.05), 0.19 * s, 0.2 * s, look.skin, code)


def cyclist(canvas: Canvas, pose: Pose, look: Look, rider: int, wheels: int, stride: float) -> None:
    """Draw a person on a bicycle; the two have codes of their own."""
    s = pose.scale
    canvas.shadow(pose.at(0, 0.02), 1.1 * s, 0.15 * s)
    swing = math.sin(stride)
    for u in (-0.68, 0.68):
        canvas.ring(pose.at(u, 0.44), 0.44 * s, 0.13 * s, TYRE, wheels)
    for a, b in (
        ((-0.68, 0.44), (-0.1, 0.95)),
        ((-0.1, 0.95), (0.52, 0.95)),
        ((-0.68, 0.44), (0.0, 0.42)),
        ((0.0, 0.42), (0.52, 0.95)),
        ((0.68, 0.44), (0.5, 1.15)),
    ):
        canvas.limb(pose.at(*a), pose.at(*b), 0.12 * s, look.second, wheels)
    leg = shade(look.hair, 1.2)
    canvas.limb(pose.at(-0.2, 1.0), pose.at(0.22, 0.82), 0.22 * s, leg, rider)
    canvas.limb(pose.at(0.22, 0.82), pose.at(0.05 + 0.1 * swing, 0.36 + 0.1 * swing), 0.2 * s, leg, rider)
    canvas.polygon([pose.at(*p) for p in ((-0.44, 0.92), (0.02, 0.92), (0.3, 1.52), (-0.1, 1.66))], look.main, rider)
    canvas.limb(pose.at(0.14, 1.48), pose.at(0.54, 1.16), 0.16 * s, shade(look.main, 1.2), rider)
    _head(canvas, pose, look, rider, 0.24, 1.82)
    canvas.polygon([pose.at(*p) for p in ((-0.04, 1.88), (0.06, 2.12), (0.38, 2.14), (0.5, 1.92))], look.second, rider)
