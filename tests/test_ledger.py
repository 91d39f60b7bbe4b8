"""The ledger: one chained hash over what was trained on, cut back to the step from which a run continues."""

import hashlib

import pytest

from post_platform.training.ledger import EMPTY, Ledger, read

STEPS = [[(0, "a/s/000001"), (1, "b/s/000000")], [(2, "a/s/000002"), (3, "a/t/000000")], [(4, "b/s/000001")]]


def filled(path, steps=STEPS):
    ledger = Ledger(path, 0, EMPTY)
    for number, seen in enumerate(steps, 1):
        ledger.append(number, seen)
    return ledger


def test_a_line_holds_positions_counts_and_the_chained_hash(tmp_path):
    ledger = filled(tmp_path / "l")
    first, second, third = read(tmp_path / "l")
    assert first == {
        "step": 1,
        "positions": [0, 1],
        "counts": {"a": 1, "b": 1},
        "sha256": hashlib.sha256((EMPTY + "0 a/s/000001\n1 b/s/000000\n").encode()).hexdigest(),
    }
    assert second["counts"] == {"a": 2}
    assert second["sha256"] == hashlib.sha256((first["sha256"] + "2 a/s/000002\n3 a/t/000000\n").encode()).hexdigest()
    assert ledger.digest == third["sha256"]


def test_the_order_in_which_ranks_report_does_not_matter(tmp_path):
    filled(tmp_path / "a")
    filled(tmp_path / "b", [seen[::-1] for seen in STEPS])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    "other",
    [
        [[(0, "a/s/000009"), (1, "b/s/000000")], *STEPS[1:]],  # another sample
        [[(0, "b/s/000000"), (1, "a/s/000001")], *STEPS[1:]],  # the same samples at other positions
        [STEPS[0] + STEPS[1], STEPS[2]],  # other steps
    ],
)
def test_any_difference_stays_in_the_hash_for_ever(tmp_path, other):
    a, b = filled(tmp_path / "a"), filled(tmp_path / "b", other)
    assert a.digest != b.digest or len(read(tmp_path / "a")) != len(read(tmp_path / "b"))


def test_resuming_cuts_back_to_the_committed_step(tmp_path):
    filled(tmp_path / "whole")
    filled(tmp_path / "cut")
    committed = read(tmp_path / "cut")[0]
    ledger = Ledger(tmp_path / "cut", committed["step"], committed["sha256"])
    assert [line["step"] for line in read(tmp_path / "cut")] == [1]
    ledger.append(2, STEPS[1])
    ledger.append(3, STEPS[2])
    assert (tmp_path / "cut").read_bytes() == (tmp_path / "whole").read_bytes()


def test_starting_anew_forgets_what_a_kill_left(tmp_path):
    filled(tmp_path / "l")
    assert filled(tmp_path / "l").digest == filled(tmp_path / "other").digest
    assert (tmp_path / "l").read_bytes() == (tmp_path / "other").read_bytes()


def test_a_last_line_cut_by_a_kill_is_dropped(tmp_path):
    filled(tmp_path / "whole")
    text = (tmp_path / "whole").read_text()
    (tmp_path / "cut").write_text(text[: text.rindex('"sha256"')])
    assert [line["step"] for line in read(tmp_path / "cut")] == [1, 2]
    second = read(tmp_path / "cut")[1]
    Ledger(tmp_path / "cut", 2, second["sha256"]).append(3, STEPS[2])
    assert (tmp_path / "cut").read_text() == text


def test_a_ledger_that_is_not_there_is_empty(tmp_path):
    assert read(tmp_path / "none") == []
