"""The plan's guarantees, as properties over sizes, shares, batch sizes and seeds."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from post_platform.data.plan import Plan, shuffled
from post_platform.data.shares import PERIOD, deal, rounded_shares
from post_platform.data.stream import local_rows
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


MIXTURES = st.builds(
    lambda sizes, global_batch, clip, stride, alpha, seed: Plan(
        [split(name, lengths) for name, lengths in zip("abcdef", sizes, strict=False)],
        global_batch, clip, (stride, stride + 1), alpha, seed,
    ),
    st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=6),
    st.integers(1, 24), st.integers(2, 6), st.integers(1, 3), st.floats(0, 1), st.integers(0, 2**40),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(MIXTURES, st.integers(0, 10**7))
def test_every_batch_of_a_plan_and_its_total_so_far_hold_the_shares_to_within_one_sample(plan, batch):
    size = plan.global_batch
    dataset, nth = plan.draws(np.arange(batch * size, (batch + 3) * size))
    exact = plan.shares / PERIOD * size
    for number in range(3):
        here = dataset[number * size : (number + 1) * size]
        counts = np.bincount(here, minlength=len(exact))
        assert (np.abs(counts - exact) < 1).all()
        for d in range(len(exact)):
            drawn = nth[number * size : (number + 1) * size][here == d]
            if len(drawn):  # nth counts what came before, so its largest is the running total less one
                assert sorted(drawn) == list(range(drawn.min(), drawn.max() + 1))
                assert abs(drawn.max() + 1 - exact[d] * (batch + number + 1)) < 1


@settings(max_examples=60, deadline=None)
@given(MIXTURES, st.integers(0, 10**6))
def test_every_pass_draws_each_frame_exactly_once_whatever_the_clip(plan, number):
    for d, size in enumerate(plan.frames):
        drawn = plan._pairs(d, np.zeros(size, np.int64), number * size + np.arange(size)).to_pylist()
        assert len({row["key"] for row in drawn}) == size
        for first, second in pairwise(drawn):  # a clip is consecutive labelled frames
            if first["seed"] == second["seed"]:
                step = second["now_offset"] - first["now_offset"]
                assert step == 1000 or second["key"].endswith("/000000")


def test_passes_of_a_dataset_differ_and_a_clip_has_one_seed():
    plan = Plan([split("a", [40])], global_batch=8, clip=5, stride=(1, 3), seed=7)
    rows = plan.rows(np.arange(120)).to_pylist()
    orders = [[row["key"] for row in rows[first : first + 40]] for first in (0, 40, 80)]
    assert len({tuple(order) for order in orders}) == 3
    assert [len({row["seed"] for row in rows[first : first + 4]}) for first in range(0, 40, 4)] == [1] * 10
    assert len({row["seed"] for row in rows}) == 30
    for first in range(0, 40, 4):
        frames = [int(row["key"][-6:]) for row in rows[first : first + 4]]
        gaps = {
            (row["now_offset"] - row["prev_offset"]) // 1000 for row in rows[first : first + 4] if row["prev_shard"]
        }
        assert frames == [(frames[0] + i) % 40 for i in range(4)]
        early = min(frames) < 3  # a sequence's first frames reach back only as far as there is something
        assert early or len(gaps) == 1


@settings(max_examples=40, deadline=None)
@given(MIXTURES, st.integers(0, 10**6), st.integers(1, 7), st.integers(1, 5))
def test_global_batches_do_not_depend_on_the_number_of_ranks(plan, start, world_size, steps):
    parts = [local_rows(plan, range(start, start + steps), rank, world_size) for rank in range(world_size)]
    assert len({part.num_rows for part in parts}) == 1
    found = pa.concat_tables(parts).filter(pa.compute.equal(pa.concat_tables(parts)["weight"], 1)).sort_by("position")
    expected = plan.rows(np.arange(start * plan.global_batch, (start + steps) * plan.global_batch))
    assert found.combine_chunks().equals(expected.combine_chunks())


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
    assert rows["0000/000001"]["prev_offset"] == 0  # as early as there is
    assert rows["0000/000005"]["prev_offset"] == 3000
    assert rows["0000/000005"]["now_offset"] == 5000


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
        Plan([a, b], 4, clip=3),
        Plan([split("a", [8]), b], 4),
    ]
    assert len({plan.digest for plan in plans}) == len(plans)
    elsewhere = split("a", [7])
    elsewhere.folder = "s3://bucket/a/train"
    assert Plan([elsewhere, b], 4).digest == plans[0].digest, "where the same shards lie makes no difference"


ARGUMENTS = st.tuples(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 2)), min_size=1, max_size=3, unique_by=lambda s: s[0]),
    st.integers(3, 4), st.integers(2, 3), st.sampled_from([(1, 1), (1, 2)]), st.sampled_from([0.0, 0.5]),
    st.integers(0, 1),
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(ARGUMENTS, ARGUMENTS, st.integers(0, 5))
def test_two_plans_have_one_digest_if_and_only_if_they_have_the_same_arguments(one, other, changed):
    """All but one are made equal, so that a digest which forgets one is caught. Where the shards lie is none."""
    other = (*one[:changed], other[changed], *one[changed + 1 :])

    def digest(place, sizes, *arguments):
        splits = [split(name, [length]) for name, length in sizes]
        for found in splits:
            found.folder = f"{place}/{found.dataset}"
        return Plan(splits, *arguments).digest

    assert (digest("/here", *one) == digest("s3://there", *other)) == (one == other)


def test_any_part_of_a_batch_holds_about_its_share():
    plan = Plan([split("a", [7]), split("b", [5])], global_batch=16)
    for start in range(0, 16 * 20, 4):
        dataset, _ = plan.draws(np.arange(start, start + 4))
        assert abs(int((dataset == 0).sum()) - 2) <= 1


def test_a_split_without_labels_cannot_be_trained_on():
    with pytest.raises(DataError, match="a/train has no labelled frame"):
        Plan([split("a", [1], unlabelled={(0, 0)})], 4)
