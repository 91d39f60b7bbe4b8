from dataclasses import replace

import numpy as np
import pytest
from evalset import CAR, EXPECTED, PERSON, table

from post_platform.metrics.contingency import frame_table, merge
from post_platform.metrics.panoptic_quality import Counts, average, match_segments
from post_platform.metrics.segments import rows_of
from post_platform.metrics.vpq import count_tubes, report

NAMES, THINGS = {number: f"class {number}" for number in range(19)}, (PERSON, CAR)


@pytest.mark.parametrize("frames", [1, 2, 3, 4])
def test_equals_the_evaluation_of_cityscapes_vps(frames):
    expected, counts = EXPECTED["vps"][str(frames)], count_tubes(table(), range(19), frames)
    for native in range(19):
        want = expected["per_class"].get(str(native + 1), {"tp": 0, "fp": 0, "fn": 0, "iou": 0})
        assert (counts[native].tp, counts[native].fp, counts[native].fn) == (want["tp"], want["fp"], want["fn"])
        assert counts[native].iou == pytest.approx(want["iou"], abs=1e-9)
    things = {PERSON, CAR}
    for group, classes in (("All", set(range(19))), ("Things", things), ("Stuff", set(range(19)) - things)):
        found = average(counts, classes)
        assert (found.pq, found.sq, found.rq) == pytest.approx(
            [expected[group][k] for k in ("pq", "sq", "rq")], abs=1e-9
        )


def test_report_equals_the_evaluation_of_cityscapes_vps():
    expected = EXPECTED["vps"]
    found = report(table(), NAMES, THINGS)
    for group, values in (("All", found), ("Things", found["Things"]), ("Stuff", found["Stuff"])):
        wanted = [expected[str(frames)][group]["pq"] for frames in (1, 2, 3, 4)]
        assert [values[k] for k in ("1", "2", "3", "4", "mean")] == pytest.approx([*wanted, np.mean(wanted)], abs=1e-9)


def test_crowd_as_a_missed_object_equals_deeplab2():
    """The numbers of the reference have six decimals."""
    found = report(table(), NAMES, THINGS, windows=(2, 3, 4), crowd="missed")
    for frames, expected in EXPECTED["deeplab2"]["VPQ"].items():
        assert found[frames] == pytest.approx(expected, abs=1e-6)
    assert set(found) == {"2", "3", "4", "mean", "Things", "Stuff"}


def test_one_frame_windows_are_pq():
    expected = match_segments(rows_of(table()), range(19))
    for native, found in count_tubes(table(), range(19), 1).items():  # summed sequence by sequence
        assert replace(found, iou=0) == replace(expected[native], iou=0)
        assert found.iou == pytest.approx(expected[native].iou, abs=1e-12)


def line(frame, truth, pred, sequence="a"):
    """A frame of one row; each pixel is the track of a car, 0 = void."""
    truth, pred = np.array([truth]), np.array([pred])
    classes = [np.where(tracks > 0, 1, 255).astype(np.uint8) for tracks in (truth, pred)]
    return frame_table("d", sequence, frame, classes[0], truth.astype(np.uint16), classes[1], pred)


def test_an_identity_switch_breaks_a_tube():
    """Frames 10, 20, 30 are successive: tracks 1 1 2 give one whole tube and one broken (2 x FP, 1 x FN)."""
    switch = merge([line(10, [7] * 4, [1] * 4), line(20, [7] * 4, [1] * 4), line(30, [7] * 4, [2] * 4)])
    assert count_tubes(switch, (1,), 2) == {1: Counts(1, 2, 1, 1.0)}
    assert count_tubes(switch, (1,), 3) == {1: Counts(1, 1, 0, 2 / 3)}


def test_windows_stay_inside_a_sequence():
    two = merge([line(0, [7] * 4, [1] * 4), line(1, [7] * 4, [1] * 4, "b")])
    assert count_tubes(two, (1,), 1) == {1: Counts(2, 0, 0, 2.0)}
    assert count_tubes(two, (1,), 2) == {1: Counts()}
    alone = {"1": 1.0, "2": None, "mean": 1.0}
    assert report(two, {1: "car"}, (1,), (1, 2)) == {**alone, "Things": alone, "Stuff": dict.fromkeys(alone)}
    assert report(two.slice(0, 0), {1: "car"}, (1,))["mean"] is None


def test_a_sequence_shorter_than_a_window_does_not_count_there():
    """Sequence a has two frames with a switch, b one frame without; VIPSeg's windows reach beyond both."""
    both = merge([line(0, [7] * 4, [1] * 4), line(1, [7] * 4, [2] * 4), line(0, [7] * 4, [1] * 4, "b")])
    found = report(both, {1: "car"}, (1,), windows=(1, 2, 4, 6, 8))
    assert [found[k] for k in ("1", "2", "4", "6", "8", "mean")] == [1.0, 0.0, None, None, None, 0.5]


def test_crowd_excuses_a_tube_or_is_missed():
    crowd = merge([line(frame, [65535] * 4, [1] * 4) for frame in range(2)])
    assert count_tubes(crowd, (1,), 2) == {1: Counts()}
    assert count_tubes(crowd, (1,), 2, "missed") == {1: Counts(1, 0, 0, 1.0)}
    half = merge([line(frame, [65535] * 4, [1, 1, 2, 2]) for frame in range(2)])
    assert count_tubes(half, (1,), 2) == {1: Counts()}
    assert count_tubes(half, (1,), 2, "missed") == {1: Counts(0, 2, 1, 0.0)}
