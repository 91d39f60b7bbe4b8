"""The picture of tracks: lanes are the events, stretches their runs, and the worst switches are large objects'."""

import io
from collections import Counter

import evalset
import numpy as np
import pyarrow.compute as pc
import pytest
from PIL import Image

from post_platform.labels import load_contract
from post_platform.metrics import mots
from post_platform.metrics.contingency import frame_table, merge
from post_platform.render_tracks import (
    CROP,
    Lane,
    Switch,
    Timeline,
    close_up,
    draw_timeline,
    png,
    stretches,
    timeline,
    worst_switches,
)

CONTRACT = load_contract("kitti_mots")
CAR, PERSON = 1, 2


def lane(found, instance=1, native_class=CAR, frames=None, switched=(), pixels=100):
    found = np.array(found)
    frames = np.arange(len(found)) if frames is None else np.array(frames)
    return Lane(native_class, instance, frames, found, np.isin(frames, switched), np.full(len(found), pixels))


def test_stretches_join_neighbouring_frames_of_one_identity():
    assert stretches(lane([7, 7, 0, 0, 7, 9]), np.arange(6)) == [(0, 1, 7), (2, 3, 0), (4, 4, 7), (5, 5, 9)]


def test_a_frame_without_the_object_parts_stretches_and_an_unlabelled_one_does_not():
    away = lane([7, 7, 7], frames=[0, 1, 3])
    assert stretches(away, np.arange(5)) == [(0, 1, 7), (3, 3, 7)]
    assert stretches(away, np.array([0, 1, 3])) == [(0, 3, 7)]


def test_the_worst_switches_are_of_large_objects_and_of_several_before_a_second_of_one():
    lanes = (
        lane([5, 6, 7], instance=1, switched=[1, 2], pixels=900),
        lane([1, 0, 2], instance=2, switched=[2], pixels=50),
        lane([3, 3, 3], instance=3, pixels=5000),
    )
    found = worst_switches(Timeline("s", np.arange(3), lanes, np.zeros(3, int)))
    assert [(s.instance, s.before, s.at, s.old, s.new) for s in found] == [
        (1, 0, 1, 5, 6),
        (2, 0, 2, 1, 2),
        (1, 1, 2, 6, 7),
    ]


def scene():
    """Four frames of one car: found as 7, missed, found as 9, and found beside a false positive."""
    tables, views = [], {}
    for frame, track in enumerate((7, 0, 9, 9)):
        truth = np.zeros((40, 60), np.uint8)
        truth[10:20, 10 + frame : 30 + frame] = CAR
        pred = truth if track else np.zeros_like(truth)
        if frame == 3:
            pred = pred.copy()
            pred[30:34, 50:54] = CAR
        instances, tracks = truth.astype(np.uint16) * 4, (pred > 0) * track
        tracks[30:34] = (pred[30:34] > 0) * 20
        tables.append(frame_table("kitti_mots", "0001", frame, truth, instances, pred, tracks))
        views[frame] = (np.full((40, 60, 3), 90, np.uint8), (truth, instances), (pred, tracks))
    return merge(tables), views


def test_a_timeline_holds_what_happened_frame_by_frame():
    found = timeline(scene()[0], CONTRACT)
    assert found.sequence == "kitti_mots/0001"
    assert found.frames.tolist() == [0, 1, 2, 3]
    assert found.false_positives.tolist() == [0, 0, 0, 1]
    (car,) = found.lanes
    assert (car.native_class, car.instance) == (CAR, 4)
    assert car.found.tolist() == [7, 0, 9, 9]
    assert car.switched.tolist() == [False, False, True, False]
    assert car.pixels.tolist() == [200] * 4


def test_a_close_up_shows_the_object_in_both_frames_at_one_scale():
    table, views = scene()
    (switch,) = worst_switches(timeline(table, CONTRACT))
    assert (switch.before, switch.at, switch.pixels) == (0, 2, 200)
    found = close_up(switch, CONTRACT, views.__getitem__)
    assert [crop.shape for crop in (*found.truth, *found.prediction)] == [(*CROP, 3)] * 4
    (left, top, right, bottom), (later, *_) = found.boxes
    scale = CROP[0] / 40  # the window is as high as the image: 40 x 53 pixels
    assert (right - left, bottom - top) == pytest.approx((20 * scale, 10 * scale))
    assert later - left == pytest.approx(2 * scale)
    y, x = round((top + bottom) / 2), round((left + right) / 2)
    assert (found.prediction[0][y, x] != found.prediction[1][y, x]).any(), "another identity, another colour"
    assert (found.truth[0][y, x] == found.truth[1][y, x]).all()


def test_a_close_up_follows_an_object_that_moves_far():
    def look(frame):
        truth = np.zeros((100, 400), np.uint8)
        left = 100 if frame == 1 else 300
        truth[40:60, left : left + 40] = CAR
        return np.zeros((100, 400, 3), np.uint8), (truth, truth), (truth, truth)

    found = close_up(Switch(CAR, CAR, 1, 9, 5, 6, 800), CONTRACT, look)
    before, at = found.boxes
    assert before == at == (20 * 3, 20 * 3, 60 * 3, 40 * 3)  # of a window 80 wide and 60 high, enlarged three times


@pytest.mark.parametrize("sequence", evalset.SEQUENCES)
def test_on_the_evaluation_set_lanes_are_the_events(sequence):
    contract, table = load_contract("kitti_step"), evalset.table()
    table = table.filter(pc.equal(table["sequence"], sequence))
    kinds = Counter()
    for entry in (entry for entry in contract.classes if entry.has_instances):
        kinds.update(mots.events(table, entry.id).column("kind").to_pylist())
    found = timeline(table, contract)
    assert sum(int(lane.switched.sum()) for lane in found.lanes) == kinds["switch"] > 0
    assert sum(int((lane.found == 0).sum()) for lane in found.lanes) == kinds["miss"]
    assert sum(int((lane.found > 0).sum()) for lane in found.lanes) == kinds["match"] + kinds["switch"]
    assert found.false_positives.sum() == kinds["false positive"]
    assert len(worst_switches(found)) == min(3, kinds["switch"])
    for lane in found.lanes:
        covered = np.concatenate([np.arange(first, last + 1) for first, last, _ in stretches(lane, found.frames)])
        assert covered.tolist() == lane.frames.tolist()


def drawn(found, closeups=()):
    figure = draw_timeline(found, CONTRACT, closeups)
    Image.open(io.BytesIO(png(figure))).verify()
    return figure


def test_the_figure_has_a_bar_for_every_stretch_and_a_mark_for_every_switch():
    lanes = (lane([7, 7, 0, 9], switched=[3]), lane([2, 2], instance=2, native_class=PERSON))
    figure = drawn(Timeline("kitti_mots/0001", np.arange(4), lanes, np.array([0, 2, 0, 1])))
    tracks, strip = figure.axes
    missed, bars = tracks.collections[:2]
    assert (len(missed.get_paths()), len(bars.get_paths())) == (1, 3)
    assert bars.get_paths()[0].vertices[:4, 0].tolist() == [-0.5, 1.5, 1.5, -0.5]
    (marks, *_) = tracks.lines
    assert marks.get_xdata().tolist() == [2.5]
    assert [label.get_text() for label in tracks.get_yticklabels()] == ["car 1", "pedestrian 2"]
    assert [bar.get_height() for bar in strip.patches] == [0, 2, 0, 1]
    said = "kitti_mots/0001: 1 identity switches, 1 misses, 3 false positives; 2 tracks in 4 frames"
    assert figure.get_suptitle() == said


def test_close_ups_stand_below():
    table, views = scene()
    found = timeline(table, CONTRACT)
    figure = drawn(found, [close_up(switch, CONTRACT, views.__getitem__) for switch in worst_switches(found)])
    assert sum(len(axes.images) for axes in figure.axes) == 4
    assert [axes.get_title() for axes in figure.axes if axes.get_title()] == ["frame 0", "frame 2"]


def test_of_many_tracks_the_worst_are_drawn_and_the_others_counted():
    fine = [lane([1, 1], instance=n) for n in range(1, 60)]
    bad = [lane([1, 2], instance=n, switched=[1], native_class=PERSON) for n in range(60, 66)]
    tracks, _ = drawn(Timeline("s", np.arange(2), (*fine, *bad), np.zeros(2, int))).axes
    names = [label.get_text() for label in tracks.get_yticklabels()]
    assert len(names) == 40
    assert names[-6:] == [f"pedestrian {n}" for n in range(60, 66)]
    assert tracks.get_xlabel() == "and 25 more tracks, with fewer switches and misses"


def test_a_sequence_without_objects_is_an_empty_picture():
    figure = drawn(Timeline("kitti_mots/0001", np.arange(3), (), np.zeros(3, int)))
    assert figure.get_suptitle().endswith("0 tracks in 3 frames")
