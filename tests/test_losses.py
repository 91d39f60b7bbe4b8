import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from label_scenes import make_batch, make_tables, random_batch

from post_model.branches import LossSettings
from post_model.branches.semantic import hardest, loss, set_loss
from post_model.network import Post, Predictions, losses, maps_of
from post_model.taxonomy import LabelTables

SETS = {0: {0, 3}, 1: {1}, 2: {2}, 3: {0, 1, 2}}  # and void: everything


def predicted(seed, number=4, classes=4, height=24, width=32):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(number, channels, height, width) for channels in (classes, 1, 2, 2)]
    return Predictions(*(torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes))


def test_set_loss_of_one_pixel_by_hand():
    logits = torch.tensor([0.0, math.log(2), math.log(5)]).view(1, 3, 1, 1)  # probabilities 1/8, 2/8, 5/8
    allowed = make_tables({1: {1}, 2: {0, 2}, 3: {0, 1, 2}, 4: set()}, 3).allowed
    for native, expected in {1: math.log(4), 2: math.log(8 / 6), 3: 0.0, 4: 0.0}.items():
        value = set_loss(logits, torch.full((1, 1, 1), native, dtype=torch.uint8), allowed)
        assert value.item() == pytest.approx(expected, abs=1e-6)


def test_set_loss_of_one_class_is_cross_entropy():
    logits = torch.randn(2, 5, 4, 6, generator=torch.Generator().manual_seed(1))
    classes = torch.randint(0, 5, (2, 4, 6), generator=torch.Generator().manual_seed(2))
    allowed = make_tables({c: {c} for c in range(5)}, 5).allowed.expand(2, -1, -1)
    expected = torch.nn.functional.cross_entropy(logits, classes, reduction="none")
    torch.testing.assert_close(set_loss(logits, classes.to(torch.uint8), allowed), expected)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.booleans(), st.sampled_from([1.0, 40.0]))
def test_set_loss_and_gradient_equal_the_plain_formula(seed, channels_last, scale):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 6, 5, 7, generator=generator) * scale
    classes = torch.randint(0, 8, (2, 5, 7), generator=generator, dtype=torch.uint8)
    allowed = torch.rand(2, 256, 6, generator=generator) < 0.5
    allowed[..., 0] |= ~allowed.any(-1)
    upstream = torch.randn(2, 5, 7, generator=generator) * (torch.rand(2, 5, 7, generator=generator) < 0.5)
    memory = torch.channels_last if channels_last else torch.contiguous_format
    ours = logits.clone(memory_format=memory).requires_grad_()
    naive = logits.clone().double().requires_grad_()
    value = set_loss(ours, classes, allowed)
    members = torch.stack([a[c.long()] for a, c in zip(allowed, classes, strict=True)]).permute(0, 3, 1, 2)
    expected = naive.logsumexp(1) - naive.masked_fill(~members, -torch.inf).logsumexp(1)
    (value * upstream).sum().backward()
    (expected * upstream).sum().backward()
    torch.testing.assert_close(value, expected.float(), atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(ours.grad, naive.grad.float(), atol=1e-5, rtol=1e-4)


def test_set_loss_sums_bfloat16_logits_in_float32():
    logits = torch.randn(1, 4, 3, 3).bfloat16().requires_grad_()
    value = set_loss(logits, torch.ones(1, 3, 3, dtype=torch.uint8), make_tables(SETS, 4).allowed)
    value.sum().backward()
    assert value.dtype == torch.float32
    assert logits.grad.dtype == torch.bfloat16


def test_mining_keeps_the_hardest_of_what_is_informative():
    values = torch.tensor([[[5.0, 4, 3, 2, 1]], [[1.0, 2, 3, 4, 5]]])
    among = torch.tensor([[[False, True, True, True, True]], [[True, True, False, False, False]]])
    assert hardest(values, among, 0.5).int().tolist() == [[[0, 1, 1, 0, 0]], [[0, 1, 0, 0, 0]]]
    assert torch.equal(hardest(values, among, 1.0), among)
    assert not hardest(values, torch.zeros_like(among), 0.5).any()


def test_void_and_padding_are_not_counted():
    classes = torch.tensor([[[1, 1, 255, 255]], [[1, 1, 1, 1]]])
    batch = make_batch(classes, torch.zeros_like(classes), weight=[1.0, 0.0])
    total, count = loss(torch.zeros(2, 4, 1, 4), batch, make_tables(SETS, 4), LossSettings(hard_fraction=1.0))
    assert count == 2
    small = torch.tensor([[[1, 0, 0, 0]], [[0, 0, 0, 0]]])
    batch = make_batch(classes, small, weight=[1.0, 0.0])
    total3, count = loss(torch.zeros(2, 4, 1, 4), batch, make_tables(SETS, 4), LossSettings(hard_fraction=1.0))
    assert count == 2
    assert total3.item() == pytest.approx(2 * total.item()), "one of two pixels weighs 3"
    assert total.item() == pytest.approx(2 * math.log(4))


def test_only_void_gives_no_loss_and_no_gradient():
    classes = torch.full((1, 4, 4), 255)
    maps = predicted(0, 1, 4, 4, 4)
    found = losses(maps, make_batch(classes, torch.zeros_like(classes)), make_tables(SETS, 4))
    assert {name: (total.item(), count.item()) for name, (total, count) in found.items()} == dict.fromkeys(
        ("semantic", "center", "offset", "prev_offset"), (0.0, 0.0)
    )
    sum(total for total, _ in found.values()).backward()
    assert all(map_.grad.abs().sum() == 0 for map_ in maps_of(maps).values())


def test_regression_losses_by_hand():
    """One object of 4 pixels moves by (0, 2); predictions are all zero."""
    classes, instances, prev = (torch.zeros(1, 4, 6, dtype=torch.int64) for _ in range(3))
    classes[0, 1:3, 2:4], instances[0, 1:3, 2:4], prev[0, 1:3, 0:2] = 1, 1, 1
    batch = make_batch(classes, instances, prev, prev_classes=(prev > 0).long())
    zeros = Predictions(*(torch.zeros(1, channels, 4, 6) for channels in (4, 1, 2, 2)))
    found = losses(zeros, batch, make_tables(SETS, 4), sigma=1.0)
    assert [x.item() for x in found["offset"]] == [4 * (0.5 + 0.5), 4]
    assert [x.item() for x in found["prev_offset"]] == [4 * 0.5 + 2 * (2.5 + 1.5), 4]
    total, count = found["center"]
    # Only the object's own pixels are sure; its mean (1.5, 2.5) is rounded to (2, 2).
    assert count == 4
    assert total.item() == pytest.approx(1 + math.exp(-0.5) ** 2 * 2 + math.exp(-1) ** 2)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 3))
def test_a_batch_may_be_spread_in_any_way(seed, cut):
    """Sum of totals over sum of counts has the same gradient for a batch and for its parts with padding."""
    batch, tables = random_batch(seed), make_tables(SETS, 4, things=(1, 2), negative=(1, 2))
    whole, parts = predicted(seed), predicted(seed)
    counts, totals = {}, {}
    for rows in (slice(0, cut), slice(cut, 4)):
        fields = [getattr(batch, name)[rows] for name in batch.__dataclass_fields__]
        # Each part gets a padding row that must not matter.
        padded = [torch.cat([field, field[:1] * (name != "weight")])
                  for name, field in zip(batch.__dataclass_fields__, fields, strict=True)]  # fmt: skip
        maps = Predictions(*(torch.cat([map_[rows], map_[:1].detach() + 1]) for map_ in parts[:4]))
        for name, (total, count) in losses(maps, type(batch)(*padded), tables).items():
            totals[name], counts[name] = totals.get(name, 0) + total, counts.get(name, 0) + count
    for name, (total, count) in losses(whole, batch, tables).items():
        assert counts[name] == count
        torch.testing.assert_close(totals[name], total)
        if count > 0:
            (total / count).backward()
            (totals[name] / counts[name]).backward()
    for one, other in zip(whole[:4], parts[:4], strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_every_parameter_learns_from_a_batch():
    batch = random_batch(3, height=32, width=64)
    model = Post(4, "small", norm="group")
    noise = torch.randint(0, 256, batch.image.shape, dtype=torch.uint8)
    found = losses(model(noise, noise.flip(0)), batch, make_tables(SETS, 4, (1, 2), (1, 2)))
    sum(total / count for total, count in found.values()).backward()
    assert [name for name, value in model.named_parameters() if value.grad is None] == []


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000))
def test_the_order_of_datasets_changes_nothing(seed):
    """The same clips and contracts, listed in another order: the same totals, counts and gradients, bit for bit."""
    tables = [make_tables({c: {(c + d) % 4} for c in range(3)}, 4, things=(1, 2), negative=(d,)) for d in range(3)]
    of_sample = torch.randint(0, 3, (4,), generator=torch.Generator().manual_seed(seed))
    results = []
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
        place = torch.tensor([order.index(d) for d in range(3)])
        batch = dataclasses.replace(random_batch(seed), dataset=place[of_sample])
        listed = LabelTables(*(torch.cat([getattr(tables[d], name) for d in order])
                               for name in ("allowed", "thing", "negative")))  # fmt: skip
        maps = predicted(seed)
        found = losses(maps, batch, listed)
        sum(total for total, _ in found.values()).backward()
        results.append([*(value for pair in found.values() for value in pair), *(map_.grad for map_ in maps)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("classes", [4, 211])
def test_set_loss_works_through_pieces(classes, monkeypatch):
    """A sample of several pieces gives what a single piece gives."""
    from post_model.branches import semantic

    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, classes, 9, 11, generator=generator)
    labels = torch.randint(0, classes, (2, 9, 11), generator=generator, dtype=torch.uint8)
    allowed = torch.rand(2, 256, classes, generator=generator) < 0.5
    results = []
    for size in (1 << 20, 7 * classes):
        monkeypatch.setitem(semantic._SCORES_AT_ONCE, "cpu", size)
        ours = logits.clone().requires_grad_()
        value = set_loss(ours, labels, allowed)
        (value * torch.arange(99).view(9, 11)).sum().backward()
        results.append((value.detach(), ours.grad))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_settings_are_checked():
    with pytest.raises(ValueError, match=r"hard_fraction must be in \(0, 1\], got 0"):
        LossSettings(hard_fraction=0)
    with pytest.raises(ValueError, match=r"small_weight positive, got 4096, 0"):
        LossSettings(small_weight=0)
    with pytest.raises(ValueError, match="sigma must be positive, got -1"):
        LossSettings(sigma=-1)
