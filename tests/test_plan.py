"""The plan's guarantees, as properties over sizes, shares, batch sizes and seeds."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from post_platform.data.plan import Plan, shuffled
from post_platform.data.shares import PERIOD, deal, rounded_shares
from post_platform.errors import DataError


def split(name, lengths, unlabelled=()):
    """A converted split as the plan sees it: sequences of the given lengths, one frame every 0.1 s."""
    rows = [
        {
            "sequence": f"{s:04d}",
            "frame": f,
            "shard": "000000.tar",
            "offset": 1000 * (s * 100 + f),
            "length": 1000,
            "crc32": f,
            "labelled": (s, f) not in unlabelled,
            "seconds_since_previous": None if f == 0 else 0.1,
        }
        for s, length in enumerate(lengths)
        for f in range(length)
    ]
    manifest = {"index_sha256": f"{name}{lengths}"}
    return SimpleNamespace(
        dataset=name, split="train", folder=f"/shards/{name}/train", index=pa.Table.from_pylist(rows), manifest=manifest
    )


@settings(max_examples=60, deadline=None)
@given(
    frames=st.lists(st.integers(1, 200_000), min_size=1, max_size=12),
    alpha=st.floats(0, 1),
    global_batch=st.integers(1, 70),
)
def test_every_batch_and_every_running_total_is_within_one_sample_of_the_share(frames, alpha, global_batch):
    shares = rounded_shares(frames, alpha)
    assert shares.sum() == PERIOD
    assert shares.min() >= 1
    counts = deal(shares, global_batch)
    exact = shares * global_batch / PERIOD
    assert (counts.sum(axis=1) == global_batch).all()
    assert (np.abs(counts - exact) < 1).all()
    running = np.cumsum(counts, axis=0) - exact * np.arange(1, PERIOD + 1)[:, None]
    assert (np.abs(running) < 1).all()
    assert (np.abs(running[-1]) < 1e-6).all()


def test_shares_follow_alpha():
    assert rounded_shares([100, 300], 0.0).tolist() == [512, 512]
    assert rounded_shares([100, 300], 1.0).tolist() == [256, 768]
    assert rounded_shares([1, 10**9], 1.0).tolist() == [1, 1023]


@settings(max_examples=40, deadline=None)
@given(size=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
def test_shuffled_is_a_permutation(size, key):
    assert sorted(shuffled(np.arange(size), size, key).tolist()) == list(range(size))


def test_each_pass_draws_every_labelled_frame_once_and_in_another_order():
    plan = Plan([split("a", [3, 4], unlabelled={(1, 0)}), split("b", [5])], global_batch=4, seed=3)
    rows = plan.rows(np.arange(4 * 12)).to_pylist()
    keys = [row["key"] for row in rows if row["dataset"] == 0]
    first, second = keys[:6], keys[6:12]
    assert (
        sorted(first)
        == sorted(second)
        == ["0000/000000", "0000/000001", "0000/000002", "0001/000001", "0001/000002", "0001/000003"]
    )
    assert first != second


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**9), st.integers(1, 40), st.integers(0, 5))
def test_a_position_does_not_depend_on_what_is_asked_with_it(position, global_batch, seed):
    plan = Plan([split("a", [7, 2]), split("b", [5]), split("c", [1] * 9)], global_batch, seed=seed)
    many = plan.rows(np.arange(position, position + 30))
    assert plan.rows(np.array([position + 17])).equals(many.slice(17, 1))


def test_the_last_of_a_billion_positions_is_as_quick_as_the_first():
    plan = Plan([split("a", [7, 2]), split("b", [5])], global_batch=64)
    dataset, nth = plan.draws(np.array([10**9 - 1]))
    share = nth[0] / 10**9
    assert abs(share - 0.5) < 1e-6
    assert dataset[0] in (0, 1)


def test_the_previous_frame_is_stride_earlier_and_missing_for_the_first_frame():
    plan = Plan([split("a", [6])], global_batch=6, stride=(2, 2))
    rows = {row["key"]: row for row in plan.rows(np.arange(6)).to_pylist()}
    assert rows["0000/000000"]["prev_shard"] is None
    assert rows["0000/000000"]["prev_seconds"] is None
    assert rows["0000/000001"]["prev_offset"] == 0  # as early as there is
    assert rows["0000/000005"]["prev_offset"] == 3000
    assert rows["0000/000005"]["now_offset"] == 5000
    assert rows["0000/000005"]["prev_seconds"] == pytest.approx(0.2)


def test_stills_of_one_name_are_no_video():
    """Cityscapes: a sequence holds several annotated snippets, whose frames are not consecutive."""
    stills = split("cityscapes", [3])
    column = stills.index.schema.get_field_index("seconds_since_previous")
    stills.index = stills.index.set_column(column, "seconds_since_previous", pa.nulls(3, pa.float64()))
    rows = Plan([stills], global_batch=3).rows(np.arange(3)).to_pylist()
    assert {row["key"] for row in rows} == {"0000/000000", "0000/000001", "0000/000002"}
    assert {row["prev_shard"] for row in rows} == {None}


def test_strides_and_augmentation_seeds_cover_their_range():
    plan = Plan([split("a", [50])], global_batch=50, stride=(1, 3))
    rows = [row for row in plan.rows(np.arange(200)).to_pylist() if int(row["key"][-6:]) >= 3]
    assert {(row["now_offset"] - row["prev_offset"]) // 1000 for row in rows} == {1, 2, 3}
    assert len({row["seed"] for row in rows}) == len(rows)


def test_the_digest_covers_every_argument():
    a, b = split("a", [7]), split("b", [5])
    plans = [
        Plan([a, b], 4),
        Plan([b, a], 4),
        Plan([a], 4),
        Plan([a, b], 5),
        Plan([a, b], 4, stride=(1, 2)),
        Plan([a, b], 4, alpha=0.5),
        Plan([a, b], 4, seed=1),
        Plan([split("a", [8]), b], 4),
    ]
    assert len({plan.digest for plan in plans}) == len(plans)
    assert Plan([a, b], 4).digest == plans[0].digest


def test_any_part_of_a_batch_holds_about_its_share():
    plan = Plan([split("a", [7]), split("b", [5])], global_batch=16)
    for start in range(0, 16 * 20, 4):
        dataset, _ = plan.draws(np.arange(start, start + 4))
        assert abs(int((dataset == 0).sum()) - 2) <= 1


def test_a_split_without_labels_cannot_be_trained_on():
    with pytest.raises(DataError, match="a/train has no labelled frame"):
        Plan([split("a", [1], unlabelled={(0, 0)})], 4)
