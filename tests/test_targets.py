from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from label_scenes import make_batch, make_tables, random_batch
from post_scene import THINGS, make_scene

from post_model.branches.center import center_target, center_weight
from post_model.branches.offset import offset_target
from post_model.branches.prev_offset import motion_target
from post_model.branches.semantic import semantic_weight
from post_model.objects import find_objects

DATA = Path(__file__).parent / "data"


def maps(*shape):
    return torch.zeros(1, *shape, dtype=torch.int64), torch.zeros(1, *shape, dtype=torch.int64)


@pytest.fixture(scope="module")
def pair():
    """A synthetic street of 375x1242; expected values made by POST's target generator, its weight bug corrected."""
    file = np.load(DATA / "post_pair.npz")
    names = ("classes", "instances", "prev_instances", "prev_classes")
    maps = (torch.as_tensor(file[name].astype(np.int64))[None] for name in names)
    return file, make_batch(*maps)


def test_targets_equal_the_reference(pair):
    file, batch = pair
    expected = file["center_points"]
    assert sorted(batch.objects.center.tolist()) == sorted(expected.tolist())
    heat = center_target(batch.objects, sigma=8)[0]
    np.testing.assert_allclose(heat[::8, ::8], file["center_sub"], atol=1e-7)
    offset, _ = offset_target(batch.objects)
    assert np.array_equal(offset[0, :, ::8, ::8], file["offset_sub"])
    motion, weight = motion_target(batch.objects, batch.prev_objects)
    assert np.array_equal(motion[0, :, ::8, ::8], file["prev_offset_sub"])
    assert np.array_equal(np.packbits(weight[0].numpy()), file["prev_weight"])


def test_targets_of_a_large_street_equal_the_reference():
    """Expected: Detectron2's target generator on the scene that the fusion tests use too."""
    file = np.load(DATA / "target_scene_1024x2048_n20.npz")
    scene, _ = make_scene(1024, 2048, 20, seed=2044)
    scene = torch.from_numpy(scene)
    batch = make_batch(
        torch.where(scene >= 0, scene // 1000, 255)[None], torch.where(scene >= 0, scene % 1000, 0)[None]
    )
    assert sorted(batch.objects.center.tolist()) == sorted(file["center_points"].tolist())
    heat = center_target(batch.objects, sigma=10)[0]
    np.testing.assert_allclose(heat[::4, ::4], file["center"], atol=1e-7)
    assert heat.double().sum().item() == pytest.approx(12525.551605781657)
    offset, weight = offset_target(batch.objects)
    assert np.array_equal(offset[0, :, ::16, ::16], file["offset_sub"])
    assert offset.double().abs().sum().item() == pytest.approx(24105378.063307878)
    assert weight.sum() == 309_493
    tables = make_tables({c: {c} for c in range(19)}, 19, things=THINGS, negative=range(19))
    assert center_weight(batch, tables).sum() == 1_973_244
    assert semantic_weight(batch.objects, 4096, 3.0).sum() == 1024 * 2048, "no object is small"


def test_small_objects_weigh_more_also_crowds():
    """Areas 3 and 8, and a crowd of 3 pixels in two places; the other class's crowd is not small."""
    classes, instances = maps(4, 8)
    classes[0, 0, :3], instances[0, 0, :3] = 1, 4
    classes[0, 1, :8], instances[0, 1, :8] = 1, 5
    classes[0, 2, :2], instances[0, 2, :2] = 1, 65535
    classes[0, 3, 7], instances[0, 3, 7] = 1, 65535
    classes[0, 2, 2:7], instances[0, 2, 2:7] = 2, 65535
    weight = semantic_weight(make_batch(classes, instances).objects, 5, 3.0)[0]
    assert weight.tolist() == [[3] * 3 + [1] * 5, [1] * 8, [3] * 2 + [1] * 6, [1] * 7 + [3]]


def test_an_object_is_a_pair_of_class_and_instance():
    classes, instances = maps(4, 8)
    classes[0, :2, :2], instances[0, :2, :2] = 1, 7
    classes[0, :2, 4:6], instances[0, :2, 4:6] = 2, 7  # the same number, another class
    classes[0, 3, :], instances[0, 3, :] = 1, 65535  # a crowd is no object
    classes[0, 2, :], instances[0, 2, :] = 255, 9  # nor is void
    objects = find_objects(classes.to(torch.uint8), instances.to(torch.int32), torch.ones(1, dtype=torch.bool))
    assert objects.center.tolist() == [[0.5, 0.5], [0.5, 4.5]]
    assert objects.area.tolist() == [4, 4]
    owner = objects.paint(objects.owner)[0]
    assert owner.tolist() == [[0, 0, 2, 2, 1, 1, 2, 2]] * 2 + [[2] * 8] * 2


def test_offsets_lead_to_the_centre():
    classes, instances = maps(4, 6)
    classes[0, 1:3, 1:4], instances[0, 1:3, 1:4] = 1, 5
    offset, weight = offset_target(make_batch(classes, instances).objects)
    assert weight.sum() == 6
    assert offset[0, :, 1, 1].tolist() == [0.5, 1.0]  # (1, 1) -> centre (1.5, 2)
    assert offset[0, :, 2, 3].tolist() == [-0.5, -1.0]
    assert offset[0, :, 0, 0].tolist() == [0, 0]


def test_object_that_leaves_gives_no_motion_supervision():
    classes, prev = maps(6, 8)
    prev[0, 1:3, 1:3], prev[0, 4:6, 0:2] = 7, 9
    now = torch.zeros_like(prev)
    now[0, 1:3, 4:6] = 7  # 7 moves three pixels right, 9 leaves
    batch = make_batch(classes, now, prev)
    offset, weight = motion_target(batch.objects, batch.prev_objects)
    assert weight.sum() == 4
    assert offset[0, :, 1, 1].tolist() == [0.5, 3.5]  # (1, 1) -> centre (1.5, 4.5)


def test_an_object_never_continues_in_another_sample_or_class():
    classes = torch.zeros(2, 2, 4, dtype=torch.int64)
    now, prev = torch.zeros_like(classes), torch.zeros_like(classes)
    now[0, :, :2], prev[1, :, :2] = 3, 3
    batch = make_batch(classes, now, prev)
    assert motion_target(batch.objects, batch.prev_objects)[1].sum() == 0
    batch = make_batch(classes, now, now, prev_classes=classes + 1)
    assert motion_target(batch.objects, batch.prev_objects)[1].sum() == 0


def test_centre_is_a_gaussian_and_overlap_takes_the_larger():
    classes, instances = maps(21, 41)
    classes[0, 10, 10], instances[0, 10, 10] = 1, 1
    classes[0, 10, 16], instances[0, 10, 16] = 1, 2
    heat = center_target(make_batch(classes, instances).objects, sigma=2)[0]
    assert heat[10, 10] == heat[10, 16] == 1
    assert heat[10, 13].item() == pytest.approx(np.exp(-9 / 8))  # equally far from both
    assert heat[10, 17].item() == pytest.approx(np.exp(-1 / 8))
    assert heat[10, 24] == 0  # beyond 3 sigma + 1 of (10, 16)


def test_a_centre_at_the_border_stays_in_its_sample():
    classes = torch.zeros(2, 8, 8, dtype=torch.int64)
    instances = torch.zeros_like(classes)
    classes[0, 7, 7], instances[0, 7, 7] = 1, 1
    heat = center_target(make_batch(classes, instances).objects, sigma=2)
    assert heat[0, 7, 7] == 1
    assert heat[1].sum() == 0


def test_the_heat_map_is_known_on_objects_and_where_no_thing_can_be():
    """Classes: 0 unknown background, 1 thing, 2 stuff."""
    classes, instances = maps(3, 8)
    classes[0, 0, :4], instances[0, 0, :4] = 1, 1  # an object
    classes[0, 0, 4:], instances[0, 0, 4:] = 1, 65535  # a crowd of the same class
    classes[0, 1] = 2
    classes[0, 2, 4:] = 255
    tables = make_tables({0: {0, 2}, 1: {1}, 2: {2}}, 3, things=(1,), negative=(1, 2))
    weight = center_weight(make_batch(classes, instances), tables)[0].int()
    assert weight.tolist() == [[1] * 4 + [0] * 4, [1] * 8, [0] * 8]


def test_padding_rows_hold_no_objects():
    classes, instances = torch.ones(2, 2, 2), torch.ones(2, 2, 2)
    batch = make_batch(classes, instances, instances, weight=[1.0, 0.0])
    assert batch.objects.sample.tolist() == [0]
    assert batch.prev_objects.sample.tolist() == [0]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_targets_equal_a_loop_over_objects(seed):
    batch = random_batch(seed)
    offset, weight = offset_target(batch.objects)
    motion, known = motion_target(batch.objects, batch.prev_objects)
    yx = torch.stack(torch.meshgrid(torch.arange(24), torch.arange(32), indexing="ij"))
    for sample in range(len(batch.image)):
        wanted, moved = torch.zeros(2, 24, 32), torch.zeros(2, 24, 32)
        inside, stays = torch.zeros(24, 32, dtype=torch.bool), torch.zeros(24, 32, dtype=torch.bool)
        for index in (1, 2):
            for instance in range(1, 10):
                mask = (batch.classes[sample] == index) & (batch.instances[sample] == instance)
                if not mask.any():
                    continue
                center = yx[:, mask].double().mean(1)[:, None, None]
                prev = (batch.prev_classes[sample] == index) & (batch.prev_instances[sample] == instance)
                wanted, inside = torch.where(mask, (center - yx).float(), wanted), inside | mask
                moved, stays = torch.where(prev, (center - yx).float(), moved), stays | prev
        assert torch.equal(weight[sample], inside)
        assert torch.equal(known[sample], stays)
        assert torch.equal(offset[sample], wanted)
        assert torch.equal(motion[sample], moved)
