"""Progress off the terminal: lines that come in time, say rate and time left, and count only this call's work."""

import pytest

from post_platform import progress
from post_platform.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is set."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_line_after_two_seconds_then_every_fifteen(clock, capsys):
    with Progress("counting", 1000) as shown:
        for second in range(1, 31):
            clock[0] = 100.0 + second
            shown.update(10 * second)
    assert capsys.readouterr().err.splitlines() == [
        "counting: 20 of 1000 frames, 10.0 frames/s, 0:01:38 left",
        "counting: 170 of 1000 frames, 10.0 frames/s, 0:01:23 left",
    ]


def test_what_an_earlier_call_did_is_done_but_no_work_of_this_one(clock, capsys):
    with Progress("kitti_mots/train", 1000) as shown:
        shown.update(900)
        clock[0] += 4
        shown.update(920, "one note")
    assert capsys.readouterr().err == "kitti_mots/train: 920 of 1000 frames, one note, 5.0 frames/s, 0:00:16 left\n"


def test_without_a_total_there_is_no_time_left(clock, capsys):
    with Progress("video", None) as shown:
        shown.update(0)
        clock[0] += 10
        shown.update(5)
    assert capsys.readouterr().err == "video: 5 frames, 0.5 frames/s\n"


def test_the_end_is_not_announced(clock, capsys):
    with Progress("counting", 3) as shown:
        clock[0] += 10
        assert list(shown.over("abc")) == ["a", "b", "c"]
    assert "3 of 3" not in capsys.readouterr().err
