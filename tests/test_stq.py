import math

import numpy as np
import pyarrow as pa
import pytest
from evalset import CAR, EXPECTED, PERSON, table

from post_platform.metrics.contingency import frame_table, merge
from post_platform.metrics.stq import report

STUFF, THING, OTHER, VOID, CROWD = (0, 0), (1, 1), (2, 1), (255, 0), (1, 65535)


def test_equals_deeplab2():
    expected, found = EXPECTED["deeplab2"], report(table(), range(19), (PERSON, CAR))
    assert found["SQ"] == pytest.approx(expected["IoU"], abs=1e-9)
    assert (found["STQ"], found["AQ"]) == pytest.approx((expected["STQ"], expected["AQ"]), abs=1e-6)  # float32 there


def test_equals_deeplab2_per_sequence():
    expected = EXPECTED["deeplab2"]
    found = report(table(), range(19), (PERSON, CAR))["per_sequence"]
    assert list(found) == [f"kitti_step/{name}" for name in expected["ID_per_seq"]]
    assert [one["SQ"] for one in found.values()] == pytest.approx(expected["IoU_per_seq"], abs=1e-9)
    assert [one["AQ"] for one in found.values()] == pytest.approx(expected["AQ_per_seq"], abs=1e-6)
    assert [one["STQ"] for one in found.values()] == pytest.approx(expected["STQ_per_seq"], abs=1e-6)


def video(*frames):
    """A table from frames of one row: (truth, prediction), each a list of eight (class, id)."""
    tables = []
    for number, (truth, pred) in enumerate(frames):
        truth, pred = np.array([truth]), np.array([pred])
        maps = (
            truth[..., 0].astype(np.uint8),
            truth[..., 1].astype(np.uint16),
            pred[..., 0].astype(np.uint8),
            pred[..., 1],
        )
        tables.append(frame_table("d", "s", number, *maps))
    return merge(tables)


SPLIT = [THING] * 4 + [STUFF] * 4
# (frames, things, STQ, AQ, IoU); inputs and numbers as deeplab2's numpy version: crowd is id 0 there,
# and "nothing labelled" nan with a warning.
CASES = {
    "perfect": ([(SPLIT, SPLIT)], (1,), 1.0, 1.0, 1.0),
    "no things": ([([STUFF] * 8, [STUFF] * 8)], (1,), 0.0, 0.0, 1.0),
    "no things, but one predicted": ([([STUFF] * 8, SPLIT)], (1,), 0.0, 0.0, 0.25),
    "thing over void counts in its tube": ([([THING] * 4 + [VOID] * 4, [THING] * 8)], (1,), math.sqrt(0.5), 0.5, 1.0),
    "predicted void is one more class": (
        [(SPLIT, [THING] * 2 + [VOID] * 2 + [STUFF] * 4)],
        (1,),
        0.3535533905932738,
        0.25,
        0.5,
    ),
    "crowd is not punished in AQ": ([([THING] * 4 + [CROWD] * 4, [THING] * 8)], (1,), 1.0, 1.0, 1.0),
    "predicted id 0 is an ordinary id": ([(SPLIT, [(1, 0)] * 4 + [STUFF] * 4)], (1,), 1.0, 1.0, 1.0),
    "right identity, wrong class": ([(SPLIT, [OTHER] * 4 + [STUFF] * 4)], (1, 2), math.sqrt(1 / 3), 1.0, 1 / 3),
    "nothing labelled": ([([VOID] * 8, [THING] * 8)], (1,), None, 0.0, None),
    "identity switch halfway": (
        [([THING] * 8, [THING] * 8), ([THING] * 8, [(1, 2)] * 8)],
        (1,),
        math.sqrt(0.5),
        0.5,
        1.0,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_edge_cases_equal_deeplab2(case):
    frames, things, *expected = CASES[case]
    found = report(video(*frames), range(3), things)
    assert [found["STQ"], found["AQ"], found["SQ"]] == [
        None if x is None else pytest.approx(x, abs=1e-12) for x in expected
    ]


def test_one_id_in_two_sequences_is_two_tubes():
    apart = merge([frame_table("d", s, 0, *[np.ones((1, 4), np.uint8)] * 4) for s in ("a", "b")])
    assert report(apart, range(3), (1,))["AQ"] == 1.0
    switched = merge([apart, frame_table("d", "b", 1, *[np.ones((1, 4), np.uint8)] * 3, np.full((1, 4), 2))])
    assert report(switched, range(3), (1,))["AQ"] == pytest.approx((1.0 + 0.5) / 2)


def test_a_sequence_without_things_and_one_without_labels():
    tables = [video((SPLIT, SPLIT)), video(([STUFF] * 8, [STUFF] * 8)), video(([VOID] * 8, SPLIT))]
    names = [pa.array([name] * one.num_rows) for name, one in zip("abc", tables, strict=True)]
    together = merge([one.set_column(1, one.schema.field(1), name) for one, name in zip(tables, names, strict=True)])
    found = report(together, range(3), (1,))
    assert found["per_sequence"] == {
        "d/a": {"STQ": 1.0, "AQ": 1.0, "SQ": 1.0},
        "d/b": {"STQ": 0.0, "AQ": 0.0, "SQ": 1.0},
        "d/c": {"STQ": None, "AQ": 0.0, "SQ": None},
    }
    assert (found["STQ"], found["AQ"], found["SQ"]) == (1.0, 1.0, 1.0)


def test_a_table_without_rows():
    assert report(merge([]), range(3), (1,)) == {"STQ": None, "AQ": 0.0, "SQ": None, "per_sequence": {}}
