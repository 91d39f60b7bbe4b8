"""A small street that is the same for the same seed: who is on it, how they move, and what a camera sees.

Made so that truth is known to the pixel, so that a small network learns it in minutes, and so that identities
cannot be kept by mask overlap alone: about a third of the tracks move farther per frame than they are wide.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from post_platform.toycity.backdrop import POLE, RUG, SIDEWALK, lamp, paint, scale_at
from post_platform.toycity.canvas import Canvas, Color, Pose
from post_platform.toycity.sprites import HAIRS, SKINS, Look, car, cyclist, person, truck

Style = Literal["train", "held_out"]
Kind = Literal["car", "person", "truck", "cyclist"]

PERSON, RIDER, CAR, TRUCK, BICYCLE = 11, 12, 13, 14, 18
THINGS = (PERSON, RIDER, CAR, TRUCK, BICYCLE)

_CAR_PAINTS: dict[str, tuple[Color, ...]] = {
    "train": (
        (206, 44, 48),
        (36, 86, 176),
        (240, 186, 36),
        (38, 136, 92),
        (236, 238, 240),
        (62, 66, 76),
        (150, 62, 150),
        (230, 116, 40),
    ),
    "held_out": (
        (178, 30, 66),
        (46, 122, 190),
        (214, 206, 60),
        (28, 116, 116),
        (214, 216, 222),
        (88, 70, 60),
        (120, 80, 176),
        (232, 136, 90),
    ),
}
_CLOTHES: tuple[Color, ...] = (
    (210, 60, 70),
    (60, 110, 190),
    (240, 200, 70),
    (70, 150, 100),
    (240, 240, 236),
    (150, 80, 160),
    (40, 44, 56),
)
_TROUSERS: tuple[Color, ...] = ((48, 58, 92), (70, 62, 56), (36, 38, 44), (120, 104, 84))
_JERSEYS: tuple[Color, ...] = ((255, 92, 28), (240, 36, 120), (190, 240, 40), (30, 220, 220))
_CARGO: tuple[Color, ...] = ((232, 230, 222), (214, 220, 226), (228, 216, 190))
_TRUCK_BANDS: tuple[Color, ...] = ((44, 96, 160), (190, 62, 48), (52, 128, 86))

_EXPRESS, _MIDDLE, _NEAR = 0.605, 0.71, 0.835  # the rows, as fractions of the height, on which the lanes' wheels stand

_FAR_SIZE = 1.45  # of who walks behind the road, beyond perspective: a body of six pixels is lost on a map at 1/4


@dataclass(frozen=True)
class Scene:
    """What the camera sees in one frame, and the truth about it.

    Shape: image (H, W, 3) uint8 RGB; classes (H, W) uint8, Cityscapes trainIds; instances (H, W) uint16, 0 = none,
        unique over all classes and persistent over the world; rug (H, W) bool, a carpet lying on what `classes` says.
    """

    image: np.ndarray
    classes: np.ndarray
    instances: np.ndarray
    rug: np.ndarray

    @property
    def crowd(self) -> np.ndarray:
        """Where things stand that nobody can tell apart."""
        return np.isin(self.classes, THINGS) & (self.instances == 0)


@dataclass(frozen=True)
class Track:
    """One object and its whole path.

    Units: x, y in pixels of the street (before the pan); speed and climb in pixels per frame.
    """

    id: int
    kind: Kind
    look: Look
    x: float
    y: float
    speed: float
    climb: float = 0.0
    sway: float = 0.0
    swing: float = 0.0
    period: float = 1.0
    phase: float = 0.0
    size: float = 1.0

    def at(self, t: int) -> tuple[float, float]:
        """Return where the object touches the ground in frame t, as (x, y)."""
        x = self.x + self.speed * t + self.sway * math.sin(0.35 * t + self.phase)
        return x + self.swing * math.cos(2 * math.pi * t / self.period), self.y + self.climb * t

    def facing(self, t: int) -> int:
        """Return +1 when the object moves right, -1 when it moves left."""
        return 1 if self.at(t + 1)[0] >= self.at(t)[0] else -1


class World:
    """A deterministic street of `frames` frames; `held_out` ones have other colours and are about a tenth faster.

    A `quiet` world starts with an empty street. `crowd` puts a group at a bus stop, `rug` a carpet on the pavement.
    """

    def __init__(
        self,
        seed: int,
        frames: int,
        height: int = 128,
        width: int = 256,
        style: Style = "train",
        quiet: bool = False,
        crowd: bool = False,
        rug: bool = False,
    ) -> None:
        self.seed, self.frames, self.height, self.width, self.style, self.quiet = (
            seed,
            frames,
            height,
            width,
            style,
            quiet,
        )
        self._unit = height / 128
        rng = np.random.default_rng([seed, 1 if style == "train" else 2])
        self._sweep = rng.uniform(6, 12) * self._unit
        self._pan_rate, self._pan_phase = rng.uniform(0.1, 0.2), rng.uniform(0, 2 * math.pi)
        self._margin = math.ceil(12 * self._unit) + 2
        self._crossing = rng.uniform(0.3, 0.7) * width
        self._street = paint(rng, height, width + 2 * self._margin, style, crowd, rug, self._crossing + self._margin)
        self._lamps = tuple(x + rng.uniform(-20, 20) for x in np.arange(rng.uniform(20, 90), width, 150 * self._unit))
        self._light = _light(rng)
        self.tracks = self._populate(rng)

    def pan(self, t: int) -> float:
        """Return how far the camera looks to the right in frame t, in pixels."""
        return self._sweep * math.sin(self._pan_rate * t + self._pan_phase)

    def render(self, t: int) -> Scene:
        """Return frame t (0 .. frames - 1); the same arrays at every call."""
        if not 0 <= t < self.frames:
            raise ValueError(f"frame {t} of a world of {self.frames} frames")
        canvas = self._street.crop(self._margin + self.pan(t), self.width)
        row = 0.965 * self.height
        queue = [(track.at(t)[1], track.id, track) for track in self.tracks]
        for _, _, track in sorted(entry for entry in queue if entry[0] < row):
            self._draw(canvas, track, t)
        for x in self._lamps:
            lamp(canvas, Pose(x - self.pan(t), row, scale_at(row, self.height)), POLE)
        for _, _, track in sorted(entry for entry in queue if entry[0] >= row):
            self._draw(canvas, track, t)
        picture, codes = canvas.finish()
        image = np.asarray(picture.point(self._light)).astype(np.int16)
        noise = np.random.default_rng([self.seed, t, 3]).normal(0, 1.6, (self.height, self.width, 1))
        classes = (codes & 0xFF).astype(np.uint8)
        rug = classes == RUG
        classes[rug] = SIDEWALK
        return Scene(np.clip(image + noise, 0, 255).astype(np.uint8), classes, (codes >> 8).astype(np.uint16), rug)

    def _draw(self, canvas: Canvas, track: Track, t: int) -> None:
        x, y = track.at(t)
        if not track.swing:  # who leaves and returns does so whatever the pan
            x -= self.pan(t)
        pose = Pose(x, y, scale_at(y, self.height) * track.size, track.facing(t))
        if not -2.6 * pose.scale < pose.x < self.width + 2.6 * pose.scale:
            return
        code, stride = track.id << 8, track.phase + 0.9 * t
        if track.kind == "car":
            car(canvas, pose, track.look, code | CAR)
        elif track.kind == "truck":
            truck(canvas, pose, track.look, code | TRUCK)
        elif track.kind == "person":
            runs = abs(track.speed) > 6 * self._unit
            still = track.speed == track.climb == track.swing == 0
            person(
                canvas,
                pose,
                track.look,
                code | PERSON,
                0.5 if still else stride * (1.6 if runs else 1.0),
                0.14 if runs else 0.0,
            )
        else:
            cyclist(canvas, pose, track.look, code | RIDER, (track.id + 1) << 8 | BICYCLE, stride)

    def _populate(self, rng: np.random.Generator) -> tuple[Track, ...]:
        """Fill the lanes and the pavements; ids follow the order of creation, a cyclist taking two."""
        pace = self._unit * (1.0 if self.style == "train" else 1.1)
        tracks: list[Track] = []
        for y, speed, gaps, sizes, slow in (
            (_EXPRESS, -rng.uniform(25.0, 27.0) * pace, (1.02, 1.1), (0.78, 0.84), False),
            (_MIDDLE, rng.uniform(4.5, 6.5) * pace, (120, 190), (0.95, 1.05), True),
            (_NEAR, rng.uniform(6.5, 8.5) * pace, (170, 250), (0.95, 1.05), True),
        ):
            tracks += self._lane(rng, len(tracks) * 2 + 1, y * self.height, speed, gaps, sizes, slow)
        tracks += self._walkers(rng, 2 * len(tracks) + 1, pace)
        return tuple(tracks)

    def _lane(
        self,
        rng: np.random.Generator,
        first_id: int,
        y: float,
        speed: float,
        gaps: tuple[float, float],
        sizes: tuple[float, float],
        slow: bool,
    ) -> list[Track]:
        """Fill a lane for the whole time, front to back.

        The express lane runs in platoons of two or three whose spacing is about the distance covered in a frame: each
        car then lands where the one ahead of it was, so a tracker that trusts overlap hands the identity down the row.
        """
        edge = 2.4 * scale_at(y, self.height) + self._margin
        ahead = -edge if self.quiet else self.width * rng.uniform(0.75, 1.0)
        tracks: list[Track] = []
        paints = _CAR_PAINTS[self.style]
        order = rng.permutation(len(paints))
        while ahead > -edge - abs(speed) * self.frames:
            k = len(tracks)
            kind: Kind = "car"
            if slow and rng.random() < 0.34:
                kind = "truck" if y < 0.8 * self.height and rng.random() < 0.55 else "cyclist"
            look = self._look(rng, kind, paints[order[k % len(paints)]], slow)
            x = ahead if speed > 0 else self.width - ahead
            tracks.append(
                Track(
                    first_id + 2 * k,
                    kind,
                    look,
                    x,
                    y,
                    speed,
                    sway=rng.uniform(0, 1.5) * self._unit if slow else 0.0,
                    phase=rng.uniform(0, 6),
                    size=rng.uniform(*sizes),
                )
            )
            if slow:
                ahead -= rng.uniform(*gaps) * self._unit
            else:
                ahead -= abs(speed) * (rng.uniform(*gaps) if k % 5 in (0, 2, 3) else rng.uniform(6.5, 9.0))
        return tracks

    def _look(self, rng: np.random.Generator, kind: Kind, paint_: Color, slow: bool) -> Look:
        skin, hair = SKINS[int(rng.integers(len(SKINS)))], HAIRS[int(rng.integers(len(HAIRS)))]
        if kind == "truck":
            return Look(_CARGO[int(rng.integers(3))], _TRUCK_BANDS[int(rng.integers(3))], skin, hair, 0)
        if kind == "cyclist":
            return Look(_CLOTHES[int(rng.integers(5))], paint_, skin, hair, 0)
        return Look(
            paint_,
            (250, 246, 236) if sum(paint_) < 560 else (40, 40, 48),
            skin,
            hair,
            int(rng.integers(2)) if slow else 2,
        )

    def _walkers(self, rng: np.random.Generator, first_id: int, pace: float) -> list[Track]:
        """Return strollers, joggers, someone who crosses, someone who waits, and someone who leaves and comes back."""
        h, w, unit, t_end = self.height, self.width, self._unit, self.frames
        plans: list[tuple[float, float, float, float, float, bool]] = []  # x, y, speed, climb, swing, jogger

        def enter(y: float, speed: float, share: float) -> None:
            """Add a walker who has covered `share` of the street at frame 0 (below 0: still outside)."""
            share = -0.08 if self.quiet and share > -0.08 else share
            plans.append((share * w if speed > 0 else (1 - share) * w, y * h, speed * pace, 0.0, 0.0, abs(speed) > 6))

        enter(0.522, rng.uniform(16.0, 17.5), rng.uniform(0.0, 0.2))
        enter(0.512, rng.choice([-1, 1]) * rng.uniform(1.0, 1.8), rng.uniform(0.2, 0.8))
        if rng.random() < 0.5:
            enter(0.53, -rng.uniform(16.0, 17.5), rng.uniform(-0.4, 0.3))
        else:
            enter(0.945, -rng.uniform(20.0, 22.0), rng.uniform(-0.5, 0.3))
        enter(0.955, rng.choice([-1, 1]) * rng.uniform(2.0, 3.5), rng.uniform(0.1, 0.6))
        if not self.quiet:
            plans.append(
                (
                    self._crossing + rng.uniform(-4, 4),
                    0.55 * h - rng.uniform(-14, 14) * unit,
                    0.0,
                    1.5 * pace,
                    0.0,
                    False,
                )
            )
            if rng.random() < 0.5:
                plans.append((rng.uniform(0.1, 0.9) * w, 0.512 * h, 0.0, 0.0, 0.0, False))
            plans.append((0.0, 0.985 * h, 0.0, 0.0, 0.0, False))
        tracks = []
        for k, (x, y, speed, climb, _, jogger) in enumerate(plans):
            main = _JERSEYS[int(rng.integers(4))] if jogger else _CLOTHES[int(rng.integers(len(_CLOTHES)))]
            look = Look(
                main,
                (36, 38, 44) if jogger else _TROUSERS[int(rng.integers(4))],
                SKINS[int(rng.integers(4))],
                HAIRS[int(rng.integers(4))],
                0,
            )
            returns = not self.quiet and k == len(plans) - 1
            tracks.append(
                Track(
                    first_id + 2 * k,
                    "person",
                    look,
                    x,
                    y,
                    speed,
                    climb,
                    phase=rng.uniform(0, 6),
                    size=rng.uniform(0.95, 1.05) * (_FAR_SIZE if y < 0.6 * h else 1.0),
                    swing=24 * unit if returns else 0.0,
                    period=0.8 * t_end if returns else 1.0,
                )
            )
        return tracks


def _light(rng: np.random.Generator) -> list[int]:
    """Return a lookup table for the time of day: brightness, contrast and warmth."""
    gain, warmth, gamma = rng.uniform(0.86, 1.06), rng.uniform(-0.06, 0.07), rng.uniform(0.9, 1.15)
    table: list[int] = []
    for channel in (1 + warmth, 1.0, 1 - warmth):
        table += [min(255, round(255 * (v / 255) ** gamma * gain * channel)) for v in range(256)]
    return table
