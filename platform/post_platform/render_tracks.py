"""The picture of a sequence's tracks: when each was found, under which identity, and what the worst switches look like.

One lane per true track, in the colour of the predicted identity that it was found under; false positives below; then
the frames around the switches of the largest objects. What counts as a match is the MOTS score's own affair.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from PIL import Image

from post_platform import render
from post_platform.labels import Contract, thing_table
from post_platform.metrics import mots
from post_platform.metrics.protocols import protocol_of
from post_platform.metrics.segments import Rows, rows_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

Sight = tuple[np.ndarray, render.Labels, render.Labels]
"""Image, truth and prediction of one frame."""

MISSED = 0
MOST_LANES = 40  # a taller picture is not looked at; what is left out is counted
MOST_SWITCHES = 3
CROP = (180, 240)  # (height, width) of a close-up, in pixels
_SWITCH, _FALSE, _FAINT = "#111111", "#c0392b", "#b8bcc2"


@dataclass(frozen=True)
class Lane:
    """A true track: its frames, the predicted identity found in each (0: missed), where that is a switch, its pixels.

    Shape: the four arrays have one length; frames ascend.
    """

    native_class: int
    instance: int
    frames: np.ndarray
    found: np.ndarray
    switched: np.ndarray
    pixels: np.ndarray

    @property
    def badness(self) -> tuple[int, int]:
        """Switches, then misses: the larger, the worse."""
        return int(self.switched.sum()), int((self.found == MISSED).sum())


@dataclass(frozen=True)
class Timeline:
    """What happened to the true tracks of one sequence; `lanes` by class, the worst first within one.

    `frames` are all its labelled frames, `false_positives` how many each has.
    """

    sequence: str
    frames: np.ndarray
    lanes: tuple[Lane, ...]
    false_positives: np.ndarray


@dataclass(frozen=True)
class Switch:
    """An object found at a frame under another identity (`new`) than when it was last found (`old`, `before`)."""

    native_class: int
    instance: int
    before: int
    at: int
    old: int
    new: int
    pixels: int


@dataclass(frozen=True)
class Closeup:
    """A switch to look at: crops of the truth and of the prediction, before it and at it, and where the object is.

    Shape: `truth[k]` and `prediction[k]`, k = 0 before and 1 at the switch: (*CROP, 3) uint8.
    Units: `boxes[k]` is (left, top, right, bottom) in pixels of the crop.
    """

    switch: Switch
    truth: list[np.ndarray]
    prediction: list[np.ndarray]
    boxes: list[tuple[float, float, float, float]]


def timeline(table: pa.Table, contract: Contract) -> Timeline:
    """The timeline of one sequence, from its contingency table by the MOTS rule of its dataset."""
    rows = rows_of(table)
    frames = np.unique(rows.frame)
    lanes: list[Lane] = []
    false_positives = np.zeros(len(frames), np.int64)
    rule = protocol_of(contract.dataset).mots
    for entry in contract.classes:
        if not entry.has_instances:
            continue
        events = mots.events(rows, entry.id, rule)
        kinds, when = np.array(events["kind"].to_pylist(), object), events["frame"].to_numpy()
        truth, track = events["truth_instance"].to_numpy(), events["pred_track"].to_numpy()
        false_positives += np.bincount(np.searchsorted(frames, when[kinds == "false positive"]), minlength=len(frames))
        of_object = np.isin(kinds, ("match", "switch", "miss"))
        ours = []
        for instance in np.unique(truth[of_object]).tolist():
            own = of_object & (truth == instance)
            ours.append(_lane(rows, entry.id, instance, when[own], track[own], kinds[own]))
        lanes += sorted(ours, key=lambda lane: lane.badness, reverse=True)
    return Timeline("/".join(rows.names), frames, tuple(lanes), false_positives)


def _lane(
    rows: Rows, native_class: int, instance: int, frames: np.ndarray, track: np.ndarray, kinds: np.ndarray
) -> Lane:
    object_rows = rows.where((rows.truth_class == native_class) & (rows.truth_instance == instance))
    pixels = np.zeros(len(frames), np.int64)
    np.add.at(pixels, np.searchsorted(frames, object_rows.frame), object_rows.pixels)
    return Lane(native_class, instance, frames, np.where(kinds == "miss", MISSED, track), kinds == "switch", pixels)


def stretches(lane: Lane, frames: np.ndarray) -> list[tuple[int, int, int]]:
    """The lane as (first frame, last frame, identity), 0 where missed; frames without the object are in none.

    Args:
        lane: of a sequence.
        frames: all labelled frames of the sequence.
    """
    places = np.searchsorted(frames, lane.frames)
    runs = zip(lane.frames.tolist(), lane.found.tolist(), (places - np.arange(len(places))).tolist(), strict=True)
    joined = (list(run) for _, run in groupby(runs, key=lambda item: item[1:]))
    return [(run[0][0], run[-1][0], run[0][1]) for run in joined]


def worst_switches(found: Timeline, most: int = MOST_SWITCHES) -> list[Switch]:
    """The switches of the largest objects, at most one per track before a track gets its second.

    Large objects are those that a person sees lose their identity.
    """
    ranked: list[tuple[int, Switch]] = []
    for lane in found.lanes:
        switches = []
        for place in np.flatnonzero(lane.switched).tolist():
            last = int(np.flatnonzero(lane.found[:place])[-1])
            before, at, pixels = (int(value) for value in (lane.frames[last], lane.frames[place], lane.pixels[place]))
            old, new = int(lane.found[last]), int(lane.found[place])
            switches.append(Switch(lane.native_class, lane.instance, before, at, old, new, pixels))
        switches.sort(key=lambda switch: -switch.pixels)
        ranked += enumerate(switches)
    ranked.sort(key=lambda item: (item[0], -item[1].pixels))
    return [switch for _, switch in ranked[:most]]


def close_up(switch: Switch, contract: Contract, look: Callable[[int], Sight]) -> Closeup:
    """Crops around the object in the two frames of a switch, from `look(frame)`, both at one scale."""
    sights = [look(switch.before), look(switch.at)]
    boxes = [_box((truth[0] == switch.native_class) & (truth[1] == switch.instance)) for _, truth, _ in sights]
    height, width = _size(boxes, sights[0][0].shape[:2])
    scale = CROP[0] / height
    colors, things = render.palette(contract), thing_table(contract)
    found = Closeup(switch, [], [], [])
    for (image, truth, prediction), (x, y, right, bottom) in zip(sights, boxes, strict=True):
        top = min(max((y + bottom - height) // 2, 0), image.shape[0] - height)
        left = min(max((x + right - width) // 2, 0), image.shape[1] - width)
        rows = (np.arange(CROP[0]) * height // CROP[0] + top)[:, None]
        columns = np.arange(CROP[1]) * width // CROP[1] + left
        cut = Image.fromarray(image[top : top + height, left : left + width])
        enlarged = np.asarray(cut.resize(CROP[::-1], Image.Resampling.BICUBIC))
        for crops, labels in ((found.truth, truth), (found.prediction, prediction)):
            classes, identities = (each[rows, columns] for each in labels)
            crops.append(render.overlay(enlarged, classes, identities, colors, things, alpha=0.45))
        found.boxes.append(((x - left) * scale, (y - top) * scale, (right - left) * scale, (bottom - top) * scale))
    return found


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of what is true; the last two are just outside."""
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1


def _size(boxes: Sequence[tuple[int, int, int, int]], image: tuple[int, ...]) -> tuple[int, int]:
    """(height, width) of a window shaped like a crop: twice the larger box, 48 pixels high or more, in the image."""
    aspect = CROP[1] / CROP[0]
    wanted = max(2 * max(bottom - top, (right - left) / aspect) for left, top, right, bottom in boxes)
    height = int(min(max(wanted, 48), image[0], image[1] / aspect))
    return height, int(height * aspect)


def draw_timeline(found: Timeline, contract: Contract, closeups: Sequence[Closeup] = ()) -> Figure:
    """Draw lanes, the strip of false positives and the close-ups, under a title with the sums.

    At most 40 lanes, those with the most switches and misses; a line says how many are left out.
    """
    # Not pyplot, whose figures live until they are closed and which chooses a window system.
    from matplotlib.figure import Figure

    worst = sorted(found.lanes, key=lambda lane: lane.badness, reverse=True)[:MOST_LANES]
    lanes = [lane for lane in found.lanes if any(lane is chosen for chosen in worst)]
    high, low, below = 0.5 + 0.2 * max(3, len(lanes)), 0.8, 3.4
    figure = Figure(figsize=(12, 0.9 + high + low + below * bool(closeups)), dpi=100, layout="constrained")
    upper: Figure | SubFigure = figure
    if closeups:
        upper, lower = figure.subfigures(2, 1, height_ratios=(0.9 + high + low, below), squeeze=False)[:, 0]
        _draw_closeups(lower, closeups, contract)
    tracks, strip = upper.subplots(2, 1, sharex=True, height_ratios=(high, low))
    _draw_lanes(tracks, found, lanes, contract)
    _draw_false_positives(strip, found)
    switches, misses = (sum(lane.badness[place] for lane in found.lanes) for place in (0, 1))
    upper.suptitle(
        f"{found.sequence}: {switches} identity switches, {misses} misses, "
        f"{found.false_positives.sum()} false positives; {len(found.lanes)} tracks in {len(found.frames)} frames",
        fontsize="medium",
    )
    return figure


def _half_step(frames: np.ndarray) -> float:
    """Half the distance of neighbouring labelled frames: a frame's bar reaches half-way to the next."""
    return float(np.median(np.diff(frames))) / 2 if len(frames) > 1 else 0.5


def _shade(native_class: int, identity: int) -> tuple[float, float, float]:
    red, green, blue = render.track_color(native_class, identity)
    return red / 255, green / 255, blue / 255


def _draw_lanes(axes: Axes, found: Timeline, lanes: Sequence[Lane], contract: Contract) -> None:
    half = _half_step(found.frames)
    axes.set_xlim(found.frames[0] - half, found.frames[-1] + half)
    axes.set_ylim(len(lanes) - 0.4, -0.9)
    _draw_bars(axes, found, lanes)
    at = [(frame - half, row) for row, lane in enumerate(lanes) for frame in lane.frames[lane.switched].tolist()]
    x, y = np.array(at, np.float64).reshape(-1, 2).T
    axes.vlines(x, y - 0.45, y + 0.45, colors=_SWITCH, linewidth=1.5, zorder=4)
    axes.plot(x, y - 0.45, "v", color=_SWITCH, markersize=5, linestyle="", zorder=5)
    for row in range(1, len(lanes)):
        if lanes[row].native_class != lanes[row - 1].native_class:
            axes.axhline(row - 0.5, color=_FAINT, linewidth=0.8, zorder=0)
    names = {entry.id: entry.name for entry in contract.classes}
    axes.set_yticks(range(len(lanes)), [f"{names[lane.native_class]} {lane.instance}" for lane in lanes], fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    if left_out := len(found.lanes) - len(lanes):
        axes.set_xlabel(f"and {left_out} more tracks, with fewer switches and misses", fontsize=8, style="italic")
    _draw_legend(axes)


def _draw_bars(axes: Axes, found: Timeline, lanes: Sequence[Lane]) -> None:
    """Stretches as bars, full or hollow; each identity in figures too where there is room: colours may resemble."""
    from matplotlib.collections import PolyCollection

    half, room = _half_step(found.frames), 0.02 * (found.frames[-1] - found.frames[0])  # room: for three digits
    bars: list[list[tuple[float, float]]] = []  # drawn at once: thousands of single patches take seconds
    gaps: list[list[tuple[float, float]]] = []
    colors = []
    for row, lane in enumerate(lanes):
        spans = stretches(lane, found.frames)
        for first, last, identity in spans:
            left, right, high = first - half, last + half, 0.3 if identity == MISSED else 0.4
            corners = [(left, row - high), (right, row - high), (right, row + high), (left, row + high)]
            (gaps if identity == MISSED else bars).append(corners)
            if identity != MISSED:
                colors.append(_shade(lane.native_class, identity))
        for identity, group in groupby((span for span in spans if span[2] != MISSED), key=lambda span: span[2]):
            (first, last, _), *more = group
            if max([last, *(span[1] for span in more)]) - first + 2 * half >= room:
                dark = np.dot(_shade(lane.native_class, identity), (0.3, 0.6, 0.1)) < 0.4
                ink = "white" if dark else "black"
                axes.text(first - half, row, f" {identity}", fontsize=6.5, va="center_baseline", color=ink)
    axes.add_collection(PolyCollection(gaps, facecolors="none", edgecolors=_FAINT, linewidths=0.8))
    axes.add_collection(PolyCollection(bars, facecolors=colors))


def _draw_legend(axes: Axes) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    marks = {
        "found (colour and number: predicted identity)": Patch(facecolor=_shade(1, 4)),
        "missed": Patch(facecolor="none", edgecolor=_FAINT),
        "identity switch": Line2D([], [], color=_SWITCH, marker="v", linestyle=""),
    }
    axes.legend(
        list(marks.values()), list(marks), loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, fontsize=8
    )


def _draw_false_positives(axes: Axes, found: Timeline) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.bar(found.frames, found.false_positives, width=2 * _half_step(found.frames), color=_FALSE)
    axes.set_ylabel("false\npositives", fontsize=8, rotation=0, ha="right", va="center")
    axes.set_xlabel("frame", fontsize=8)
    axes.set_ylim(0, max(1, found.false_positives.max(initial=0)) * 1.1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(2, integer=True))
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_closeups(part: SubFigure, closeups: Sequence[Closeup], contract: Contract) -> None:
    from matplotlib.patches import Rectangle

    names = {entry.id: entry.name for entry in contract.classes}
    for column, closeup in zip(part.subfigures(1, MOST_SWITCHES, squeeze=False)[0], closeups, strict=False):
        switch = closeup.switch
        title = f"{names[switch.native_class]} {switch.instance} (dashed): identity {switch.old} becomes {switch.new}"
        column.suptitle(title, fontsize=9)
        grid = column.subplots(2, 2)
        for row, side, crops in ((0, "truth", closeup.truth), (1, "prediction", closeup.prediction)):
            grid[row, 0].set_ylabel(side, fontsize=8)
            for axes, crop, (left, top, right, bottom) in zip(grid[row], crops, closeup.boxes, strict=True):
                axes.imshow(crop)
                corner, size = (left - 2, top - 2), (right - left + 3, bottom - top + 3)
                axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor="white", linestyle="--", linewidth=0.9))
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
        for axes, frame in zip(grid[0], (switch.before, switch.at), strict=True):
            axes.set_title(f"frame {frame}", fontsize=8, pad=2)


def png(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG."""
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()
