"""Tracker: instances of successive frames become tracks. All state is explicit, one `TrackerState` per video."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from post_model.fusion import Panoptic, aimed_at, nearest_center

FULL_VIEW = 0.75  # a mask of at least this share of the remembered full one is a full view itself


class TrackerState(NamedTuple):
    """What is remembered of one video: tensors only, so `_asdict()` can be saved and loaded anywhere.

    T tracks live. Of each, two masks are kept: that of the frame it was last seen in, and that of its last full view,
    before something began to hide it. Both are lists of flattened pixels, track after track.

    Shape: frame, next_id () int64: number of frames seen, and the smallest id not given yet; size (2,) int64 (H, W),
        0 before the first frame; ids, classes, seen, full_seen (T,) int64, the last two frame numbers; boxes (T, 4)
        int64 (y0, x0, y1, x1) of the last mask; velocity (T, 2) float64; counts, full_counts (T,) int64;
        pixels (P,), full_pixels (Q,) int64.
    Units: velocity in pixels per frame, (y, x).
    """

    frame: Tensor
    next_id: Tensor
    size: Tensor
    ids: Tensor
    classes: Tensor
    seen: Tensor
    boxes: Tensor
    counts: Tensor
    pixels: Tensor
    full_seen: Tensor
    full_counts: Tensor
    full_pixels: Tensor
    velocity: Tensor


def start(device: torch.device | str = "cpu") -> TrackerState:
    """Return the state before a video's first frame."""
    empty = torch.zeros(0, dtype=torch.int64, device=device)
    zero = torch.zeros((), dtype=torch.int64, device=device)
    return TrackerState(
        frame=zero, next_id=zero + 1, size=empty.new_zeros(2), ids=empty, classes=empty, seen=empty,
        boxes=empty.view(0, 4), counts=empty, pixels=empty, full_seen=empty, full_counts=empty, full_pixels=empty,
        velocity=empty.double().view(0, 2),
    )  # fmt: skip


def step(
    panoptic: Panoptic,
    prev_offset: Tensor | None,
    state: TrackerState,
    *,
    min_overlap: float = 0.3,
    min_inside: float = 0.5,
    memory: int = 8,
    reach: float = 1.0,
) -> tuple[Tensor, TrackerState]:
    """Give every instance of a frame a track id: that of the track it continues, else a new one.

    Tracks and instances of a class are joined in three rounds, each by optimal assignment of what is still free:

    1. Tracks of the previous frame. With `prev_offset` every pixel of a track's mask votes for the current centre
       nearest to where it points, if that is near enough; the overlap of a track and an instance is the IoU of the
       track's pixels and the instance's votes, both of t-1, so the object may move any distance. Without it, the
       overlap is the plain IoU of the two frames' masks (the baseline).
    2. Tracks seen up to `memory` frames ago: the IoU of their last mask, moved on at their velocity.
    3. The same, whose full view, moved on, holds at least `min_inside` of an instance: what comes out from behind an
       obstacle is often another part than the one that was seen last.

    No id is given twice in a video, and a frame without objects forgets nothing.

    Shape: panoptic of one image; prev_offset (2, H, W), of the pixels of t-1 -> ids (H, W) int32, 0 = no instance.
    Units: `reach` is the distance at which a vote still counts, in square roots of the instance's area; overlaps below
        `min_overlap` join nothing.
    Raises: ValueError if the frame's size differs from the video's.
    Source: POST's tracker. Deviations: optimal instead of greedy assignment, equal classes required, an empty frame
        forgets nothing, remembered masks move, a vote has a limit (else an object that leaves hands its id to any).
    """
    frame, size = int(state.frame), panoptic.classes.shape
    if frame > 0 and tuple(size) != tuple(state.size.tolist()):
        raise ValueError(f"frame {frame} is {tuple(size)}, the video's frames are {tuple(state.size.tolist())}")
    pixels = _pixels(panoptic)
    partner = np.full(len(panoptic.instance_classes), -1)  # the row of `state` that each instance continues
    recent = state.seen == frame - 1
    if prev_offset is None:
        overlap = _iou(*_under(state.pixels, state.counts, None, panoptic), panoptic)
    else:
        overlap = _vote_overlap(state, panoptic, prev_offset, reach)
    possible = state.classes[:, None] == panoptic.instance_classes
    _assign(overlap * (possible & recent[:, None]), min_overlap, partner)

    moved = (state.velocity * (frame - state.seen)[:, None]).round().long()
    overlap = _iou(*_under(state.pixels, state.counts, moved, panoptic), panoptic)
    _assign(overlap * possible, min_overlap, partner)

    moved = (state.velocity * (frame - state.full_seen)[:, None]).round().long()
    common, _ = _under(state.full_pixels, state.full_counts, moved, panoptic)
    _assign(common / panoptic.areas.clamp(min=1) * possible, min_inside, partner)
    return _remember(panoptic, pixels, torch.from_numpy(partner).to(state.ids.device), state, memory)


def _remember(
    panoptic: Panoptic, pixels: Tensor, partner: Tensor, state: TrackerState, memory: int
) -> tuple[Tensor, TrackerState]:
    """Write what is seen into the state, instances first, then the tracks that were not seen but are not forgotten."""
    frame = int(state.frame)
    new, old = partner < 0, partner.clamp(min=0)
    known = len(state.ids) > 0
    fresh = state.next_id + new.cumsum(0) - 1
    ids = torch.where(new, fresh, state.ids[old]) if known else fresh
    waits = frame - state.seen <= memory
    waits[partner[~new]] = False
    kept = waits.nonzero().squeeze(1)

    velocity = torch.zeros(len(new), 2, dtype=torch.float64, device=ids.device)
    full = torch.ones_like(new)
    full_pool, full_counts = torch.cat([pixels, state.full_pixels]), torch.cat([panoptic.areas, state.full_counts])
    row = torch.arange(len(new), device=ids.device)
    if known:
        measured = _velocity(state.boxes[old], panoptic.boxes, frame - state.seen[old], panoptic.classes.shape)
        before = state.velocity[old]
        stale = frame - state.full_seen[old] > memory
        full = new | (panoptic.areas >= FULL_VIEW * state.full_counts[old]) | stale
        smooth = torch.where((before == 0).all(1, keepdim=True), measured, (measured + before) / 2)
        velocity = torch.where(new[:, None], 0.0, torch.where(full[:, None], smooth, before))
        row = torch.where(full, row, len(new) + old)
    rows = torch.cat([row, len(new) + kept])
    seen = torch.full_like(ids, frame)
    following = TrackerState(
        frame=state.frame + 1,
        next_id=state.next_id + new.sum(),
        size=torch.tensor(panoptic.classes.shape, device=ids.device),
        ids=torch.cat([ids, state.ids[kept]]),
        classes=torch.cat([panoptic.instance_classes, state.classes[kept]]),
        seen=torch.cat([seen, state.seen[kept]]),
        boxes=torch.cat([panoptic.boxes, state.boxes[kept]]),
        counts=torch.cat([panoptic.areas, state.counts[kept]]),
        pixels=torch.cat([pixels, _take(state.pixels, state.counts, kept)]),
        full_seen=torch.cat([seen, state.full_seen])[rows],
        full_counts=full_counts[rows],
        full_pixels=_take(full_pool, full_counts, rows),
        velocity=torch.cat([velocity, state.velocity[kept]]),
    )
    lookup = torch.cat([ids.new_zeros(1), ids]).int()
    return lookup[panoptic.instances.long()], following


def _pixels(panoptic: Panoptic) -> Tensor:
    """The flattened pixels of all instances, instance after instance."""
    instances = panoptic.instances.flatten()
    pixels = instances.nonzero().squeeze(1)
    return pixels[instances[pixels].argsort(stable=True)]


def _take(pixels: Tensor, counts: Tensor, rows: Tensor) -> Tensor:
    """The lists of some rows, one after the other."""
    begin = counts.cumsum(0) - counts
    wanted = counts[rows]
    shift = begin[rows] - (wanted.cumsum(0) - wanted)
    return pixels[torch.arange(int(wanted.sum()), device=rows.device) + shift.repeat_interleave(wanted)]


def _velocity(before: Tensor, now: Tensor, frames: Tensor, size: torch.Size) -> Tensor:
    """How far each box moved per frame: (N, 4) boxes -> (N, 2) float64 (y, x).

    Along each axis the edge that moved less counts: an obstacle moves one edge of what it hides, not both. Edges at
    the border of the image, which hides too, do not count; where no edge is left the centre does.
    """
    limit = torch.tensor(size, device=now.device)
    low, high = (now - before).double().split(2, 1)
    low_hidden = (before[:, :2] <= 0) | (now[:, :2] <= 0)
    high_hidden = (before[:, 2:] >= limit) | (now[:, 2:] >= limit)
    lower = low.abs().masked_fill(low_hidden, torch.inf) <= high.abs().masked_fill(high_hidden, torch.inf)
    moved = torch.where(low_hidden & high_hidden, (low + high) / 2, torch.where(lower, low, high))
    return moved / frames[:, None]


def _under(pixels: Tensor, counts: Tensor, moved: Tensor | None, panoptic: Panoptic) -> tuple[Tensor, Tensor]:
    """Lay the masks of T tracks, each moved by (y, x), on the N instances of a frame.

    Returns the pixels that each pair shares, (T, N), and those of each track that stay inside the image, (T,).
    """
    height, width = panoptic.classes.shape
    tracks, instances = len(counts), len(panoptic.instance_classes)
    owner = torch.arange(tracks, device=counts.device).repeat_interleave(counts)
    if moved is not None:
        y, x = pixels // width + moved[owner, 0], pixels % width + moved[owner, 1]
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        pixels, owner = (y * width + x)[inside], owner[inside]
    below = panoptic.instances.flatten()[pixels].long()
    common = torch.bincount(owner * (instances + 1) + below, minlength=tracks * (instances + 1))
    common = common.view(tracks, instances + 1)
    return common[:, 1:], common.sum(1)


def _iou(common: Tensor, inside: Tensor, panoptic: Panoptic) -> Tensor:
    union = inside[:, None] + panoptic.areas - common
    return common / union.clamp(min=1)


def _vote_overlap(state: TrackerState, panoptic: Panoptic, prev_offset: Tensor, reach: float) -> Tensor:
    """IoU of each track's last mask and the pixels of t-1 that vote for each instance: (T, N)."""
    tracks, instances = len(state.counts), len(panoptic.instance_classes)
    votes = torch.zeros(tracks, instances, dtype=torch.int64, device=prev_offset.device)
    recent = (state.seen == state.frame - 1).nonzero().squeeze(1)
    for index in state.classes[recent].unique().tolist():
        rivals = (panoptic.instance_classes == index).nonzero().squeeze(1)
        if len(rivals) == 0:
            continue
        rows = recent[state.classes[recent] == index]
        pixels = _take(state.pixels, state.counts, rows)
        target = aimed_at(pixels // prev_offset.shape[-1], pixels % prev_offset.shape[-1], prev_offset)
        choice = rivals[nearest_center(target, panoptic.centers[rivals])]
        near = (target - panoptic.centers[choice].T).square().sum(0) <= panoptic.areas[choice] * reach**2
        pair = rows.repeat_interleave(state.counts[rows]) * instances + choice
        votes += torch.bincount(pair[near], minlength=votes.numel()).view_as(votes)
    return votes / (state.counts[:, None] + votes.sum(0) - votes).clamp(min=1)


def _assign(overlap: Tensor, least: float, partner: np.ndarray) -> None:
    """Join free tracks and free instances for the largest total overlap, each pair at least `least`, in `partner`."""
    scores = overlap.cpu().double().numpy().copy()
    scores[partner[partner >= 0]] = 0
    scores[:, partner >= 0] = 0
    # Pairs that may not be joined must not pull the assignment towards themselves.
    scores[scores < least] = 0
    for row, column in zip(*linear_sum_assignment(scores, maximize=True), strict=True):
        if scores[row, column] > 0:
            partner[column] = row
