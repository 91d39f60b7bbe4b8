import pickle

import numpy as np
import pytest
import torch
from evalset import CAR, FRAMES, PERSON, maps
from hypothesis import given, settings
from hypothesis import strategies as st

from post_model.branches.prev_offset import motion_target
from post_model.fusion import Panoptic
from post_model.objects import find_objects
from post_model.tracker import TrackerState, track

SIZE = (24, 60)


def frame(*boxes, size=SIZE):
    """Panoptic map of boxes (class, y, x, height, width); None for what is not there."""
    classes, instances = torch.zeros(size, dtype=torch.int64), torch.zeros(size, dtype=torch.int32)
    centers, indices = [], []
    for index, y, x, height, width in (box for box in boxes if box):
        centers.append([y + height // 2, x + width // 2])
        indices.append(index)
        classes[y : y + height, x : x + width] = index
        instances[y : y + height, x : x + width] = len(indices)
    return Panoptic(
        classes, instances, torch.tensor(centers, dtype=torch.int64).view(-1, 2), torch.ones(len(indices)),
        torch.tensor(indices, dtype=torch.int64),
    )  # fmt: skip


def motion(prev, now):
    """Perfect previous offsets: from every pixel of a box in t-1 to the same box's centre in t; elsewhere 0."""
    offset = torch.zeros(2, *SIZE)
    yy, xx = torch.meshgrid(torch.arange(SIZE[0]), torch.arange(SIZE[1]), indexing="ij")
    for before, after in zip(prev, now, strict=True):
        if before and after:
            patch = np.s_[before[1] : before[1] + before[3], before[2] : before[2] + before[4]]
            offset[0][patch] = (after[1] + after[3] // 2 - yy[patch]).float()
            offset[1][patch] = (after[2] + after[4] // 2 - xx[patch]).float()
    return offset


def run(frames, mode="prev_offset", **settings):
    """Ids of the boxes in each frame (0 where there is no box)."""
    state, found = TrackerState(), []
    for t, boxes in enumerate(frames):
        offset = motion(frames[t - 1], boxes) if t and mode == "prev_offset" else None
        ids, state = track(frame(*boxes), offset, state, **settings)
        found.append([int(ids[box[1], box[2]]) if box else 0 for box in boxes])
    return found


def test_motion_keeps_an_object_that_moves_more_than_its_width_and_iou_loses_it():
    frames = [[(1, 8, x, 6, 6)] for x in (2, 12, 22)]
    assert run(frames) == [[1], [1], [1]]
    assert run(frames, "iou")[1] == [2]


def test_two_objects_that_swap_places_swap_nothing_else():
    left, right = (1, 8, 4, 6, 6), (1, 8, 40, 6, 6)
    assert run([[left, right], [right, left]]) == [[1, 2], [1, 2]]
    assert run([[left, right], [right, left]], "iou") == [[1, 2], [2, 1]]


def test_slow_objects_keep_their_ids_either_way():
    frames = [[(1, 4, 4 + t, 8, 8), (2, 14, 40 - t, 6, 10)] for t in range(5)]
    assert run(frames) == run(frames, "iou") == [[1, 2]] * 5


def test_an_object_that_leaves_hands_its_id_to_nobody():
    """The leaving object's offsets are 0: its pixels' nearest centre is the newcomer's, but far away."""
    assert run([[(1, 2, 0, 6, 6), None], [None, (1, 14, 40, 6, 6)]]) == [[1, 0], [0, 2]]


def test_a_class_is_never_changed():
    assert run([[(1, 8, 8, 6, 6)], [(2, 8, 8, 6, 6)]]) == [[1], [2]]
    assert run([[(1, 8, 8, 6, 6)], [(2, 8, 8, 6, 6)]], "iou") == [[1], [2]]


def test_an_empty_frame_forgets_nothing():
    box = (1, 8, 8, 6, 6)
    assert run([[box], [None], [box]]) == [[1], [0], [1]]


def test_a_remembered_track_moves_on():
    boxes = [(1, 8, 4 + 4 * t, 6, 6) for t in range(6)]
    frames = [[boxes[0]], [boxes[1]], [None], [None], [boxes[4]], [boxes[5]]]
    assert run(frames) == [[1], [1], [0], [0], [1], [1]]


def test_memory_ends():
    box = (1, 8, 8, 6, 6)
    assert run([[box], *[[None]] * 3, [box]], memory=3)[-1] == [1]
    assert run([[box], *[[None]] * 4, [box]], memory=3)[-1] == [2]


def test_assignment_is_optimal_not_greedy():
    """Track 1 overlaps both instances, track 2 only the first: greedy by track would leave track 2 without any."""
    frames = [[(1, 0, 10, 10, 10), (1, 0, 0, 10, 10)], [(1, 0, 4, 10, 10), (1, 0, 14, 10, 10)]]
    # IoU: track 1 with x=4: 4/16, with x=14: 6/14; track 2 (x=0) with x=4: 6/14.
    assert run(frames, "iou", min_overlap=0.2) == [[1, 2], [2, 1]]


def test_videos_are_independent_and_states_are_values():
    one = frame((1, 8, 8, 6, 6))
    _, first = track(one, None, TrackerState())
    again, _ = track(one, None, pickle.loads(pickle.dumps(first)))
    fresh, _ = track(one, None, first)
    assert torch.equal(again, fresh)
    other, _ = track(one, None, TrackerState())
    assert other.max() == 1
    with pytest.raises(ValueError, match=r"frame 1 is \(5, 5\), the video's frames are \(24, 60\)"):
        track(frame(size=(5, 5)), None, first)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.booleans())
def test_ids_are_unique_in_a_frame_and_never_given_again(seed, moving):
    rs = np.random.RandomState(seed)
    state, dead, alive = TrackerState(), set(), set()
    for _ in range(8):
        boxes = [(1 + rs.randint(2), 8 * j, rs.randint(50), 6, 3 + rs.randint(6)) for j in range(3) if rs.rand() < 0.7]
        offset = torch.as_tensor(rs.randn(2, *SIZE) * 8).float() if moving else None
        panoptic = frame(*boxes)
        ids, state = track(panoptic, offset, state, memory=2)
        assert torch.equal(ids > 0, panoptic.instances > 0)
        assert len({(int(a), int(b)) for a, b in zip(ids[ids > 0], panoptic.instances[ids > 0], strict=True)}) == len(
            boxes
        )
        now = set(ids[ids > 0].tolist())
        assert len(now) == len(boxes)
        assert not now & dead
        assert all(i < state.next_id for i in now)
        dead |= alive - set(state.tracks)
        alive |= now


@pytest.mark.parametrize(("sequence", "expected"), [("0002", 1), ("0006", 0)])
def test_identity_switches_with_perfect_maps(sequence, expected):
    """The reference's tracker makes 2 and 3 switches from the same perfect inputs.

    Ours makes one: an object of which one edge is seen, then nothing, then the other edge, far from the first.
    """
    state, owner, switches, prev = TrackerState(), {}, 0, None
    for t in FRAMES:
        classes, instances = (torch.as_tensor(a.astype(np.int64))[None] for a in maps(sequence, t)[:2])
        instances *= (classes == PERSON) | (classes == CAR)
        objects = find_objects(classes, instances, torch.ones(1, dtype=torch.bool))
        numbers = torch.zeros(classes.shape, dtype=torch.int32).flatten()
        numbers[objects.pixel] = objects.owner.int() + 1
        panoptic = Panoptic(
            classes[0], numbers.view(classes.shape)[0], objects.center.round().long(), torch.ones(len(objects.key)),
            objects.key // 65536 % 256,
        )  # fmt: skip
        offset = motion_target(objects, prev)[0][0] if prev else None
        ids, state = track(panoptic, offset, state)
        track_of = dict(zip(objects.key[objects.owner].tolist(), ids.flatten()[objects.pixel].tolist(), strict=True))
        switches += sum(owner.get(key, now) != now for key, now in track_of.items())
        owner |= track_of
        prev = objects
    assert switches == expected
    assert len(set(owner.values())) == len(owner)
