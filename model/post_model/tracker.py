"""Tracker: instances of successive frames become tracks. All state is explicit, one `TrackerState` per video."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from post_model.fusion import Panoptic, aimed_at, nearest_center


@dataclass(frozen=True)
class Track:
    """A track as it was last seen.

    Attributes:
        index: the class, as the panoptic map numbers it.
        frame: when it was last seen.
        center: (2,) float64 mean (y, x) of its mask.
        velocity: (2,) float64, pixels per frame.
        pixels: (P, 2) int64 (y, x) of its mask.
    """

    index: int
    frame: int
    center: Tensor
    velocity: Tensor
    pixels: Tensor


@dataclass(frozen=True)
class TrackerState:
    """What is remembered of one video.

    Attributes:
        frame: number of frames seen.
        next_id: smallest id not given yet; no id is given twice in a video.
        tracks: living tracks by id.
        size: (H, W) of the frames; None before the first.
    """

    frame: int = 0
    next_id: int = 1
    tracks: dict[int, Track] = field(default_factory=dict)
    size: tuple[int, int] | None = None


def track(
    panoptic: Panoptic,
    prev_offset: Tensor | None,
    state: TrackerState,
    *,
    min_overlap: float = 0.3,
    memory: int = 8,
    reach: float = 1.0,
) -> tuple[Tensor, TrackerState]:
    """Give every instance of a frame a track id: that of the track it continues, else a new one.

    First, tracks of the previous frame against instances of the same class, by optimal assignment. With `prev_offset`
    every pixel of a previous mask votes for the current centre nearest to where it points, if that is near enough; the
    overlap of a track and an instance is the IoU of the track's pixels and the instance's votes, both of t-1, so the
    object may move any distance. Without it, the overlap is the plain IoU of the two frames' masks (the baseline).
    Then, tracks lost up to `memory` frames ago, moved on at their last velocity, against the instances left over, by
    the IoU of masks. Nothing is joined at an overlap below `min_overlap`.

    Shape: prev_offset (2, H, W), of the pixels of t-1 -> ids (H, W) int32, 0 = no instance.
    Units: `reach` is the distance at which a vote still counts, in square roots of the instance's area.
    Raises: ValueError if the frame's size differs from the video's.
    Source: POST's tracker. Deviations: optimal instead of greedy assignment, equal classes required, an empty frame
        forgets nothing, remembered masks move, a vote has a limit (else an object that leaves hands its id to any).
    """
    size = (panoptic.classes.shape[0], panoptic.classes.shape[1])
    if state.size not in (None, size):
        raise ValueError(f"frame {state.frame} is {size}, the video's frames are {state.size}")
    found = _masks(panoptic)
    ids = [0] * len(found)
    recent = [i for i, known in state.tracks.items() if known.frame == state.frame - 1]
    lost = [i for i in state.tracks if i not in set(recent)]
    if prev_offset is None:
        overlap = _mask_overlap(state, recent, panoptic, found, moving=False)
    else:
        overlap = _vote_overlap(state, recent, panoptic, found, prev_offset, reach)
    _assign(overlap, recent, ids, min_overlap)
    _assign(_mask_overlap(state, lost, panoptic, found, moving=True), lost, ids, min_overlap)
    next_id = state.next_id
    tracks = {i: known for i, known in state.tracks.items() if state.frame - known.frame <= memory}
    for j, pixels in enumerate(found):
        if ids[j] == 0:
            ids[j], next_id = next_id, next_id + 1
        tracks[ids[j]] = _seen(state.tracks.get(ids[j]), int(panoptic.instance_classes[j]), state.frame, pixels)
    lookup = torch.tensor([0, *ids], dtype=torch.int32, device=panoptic.instances.device)
    return lookup[panoptic.instances.long()], TrackerState(state.frame + 1, next_id, tracks, size)


def _masks(panoptic: Panoptic) -> list[Tensor]:
    """Return the (y, x) of each instance's pixels, in one pass over the map."""
    number = len(panoptic.instance_classes)
    pixels = panoptic.instances.nonzero()
    owner = panoptic.instances[pixels[:, 0], pixels[:, 1]].long() - 1
    order = owner.argsort(stable=True)
    return list(pixels[order].split(torch.bincount(owner, minlength=number).tolist())) if number else []


def _seen(known: Track | None, index: int, frame: int, pixels: Tensor) -> Track:
    center = pixels.double().mean(0)
    velocity = torch.zeros_like(center) if known is None else (center - known.center) / (frame - known.frame)
    return Track(index, frame, center, velocity, pixels)


def _vote_overlap(
    state: TrackerState, ids: list[int], panoptic: Panoptic, found: list[Tensor], prev_offset: Tensor, reach: float
) -> Tensor:
    """IoU of each track's previous mask and the pixels of t-1 that vote for each instance: (tracks, instances)."""
    if not ids or not found:
        return torch.zeros(len(ids), len(found))
    classes = panoptic.instance_classes
    areas = torch.tensor([len(pixels) for pixels in found], device=classes.device)
    votes = torch.zeros(len(ids), len(found), dtype=torch.int64, device=classes.device)
    indices = torch.tensor([state.tracks[i].index for i in ids], device=classes.device)
    sizes = torch.tensor([len(state.tracks[i].pixels) for i in ids], device=classes.device)
    for index in indices.unique().tolist():
        rivals = (classes == index).nonzero().squeeze(1)
        if len(rivals) == 0:
            continue
        rows = (indices == index).nonzero().squeeze(1)
        pixels = torch.cat([state.tracks[ids[row]].pixels for row in rows.tolist()])
        target = aimed_at(pixels[:, 0] * prev_offset.shape[-1] + pixels[:, 1], prev_offset)
        choice = rivals[nearest_center(target, panoptic.centers[rivals])]
        near = (target - panoptic.centers[choice]).square().sum(1) <= areas[choice] * reach**2
        pair = rows.repeat_interleave(sizes[rows]) * len(found) + choice
        votes += torch.bincount(pair[near], minlength=votes.numel()).view_as(votes)
    return votes / (sizes[:, None] + votes.sum(0) - votes).clamp(min=1)


def _mask_overlap(
    state: TrackerState, ids: list[int], panoptic: Panoptic, found: list[Tensor], *, moving: bool
) -> Tensor:
    """IoU of each track's mask, moved on to this frame if `moving`, and each instance of its class."""
    overlap = torch.zeros(len(ids), len(found))
    height, width = panoptic.instances.shape
    areas = torch.tensor([len(pixels) for pixels in found], device=panoptic.instances.device)
    for row, i in enumerate(ids if found else []):
        known = state.tracks[i]
        pixels = known.pixels
        if moving:
            pixels = pixels + (known.velocity * (state.frame - known.frame)).round().long()
        inside = (pixels >= 0).all(1) & (pixels[:, 0] < height) & (pixels[:, 1] < width)
        pixels = pixels[inside]
        below = panoptic.instances[pixels[:, 0], pixels[:, 1]].long()
        common = torch.bincount(below, minlength=len(found) + 1)[1:]
        iou = common / (len(pixels) + areas - common)
        overlap[row] = torch.where(panoptic.instance_classes == known.index, iou, 0).cpu()
    return overlap


def _assign(overlap: Tensor, tracks: list[int], ids: list[int], min_overlap: float) -> None:
    """Write the ids of the assignment with the largest total overlap into the free places of `ids`."""
    free = [j for j, i in enumerate(ids) if i == 0]
    scores = overlap.cpu().numpy()[:, free]
    # Pairs that may not be joined must not pull the assignment towards themselves.
    scores = scores * (scores >= min_overlap)
    for row, column in zip(*linear_sum_assignment(scores, maximize=True), strict=True):
        if scores[row, column] > 0:
            ids[free[column]] = tracks[row]
