import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from post_scene import THINGS, fake_logits, fake_outputs, make_scene

from post_model.fusion import find_centers, first_argmax, fuse

DATA = Path(__file__).parent / "data"


def one_hot(classes, number):
    return torch.nn.functional.one_hot(torch.as_tensor(classes), number).permute(2, 0, 1).float()


def heat(shape, peaks):
    out = torch.zeros(1, *shape)
    for (y, x), value in peaks.items():
        out[0, y, x] = value
    return out


def fuse_one(scores, center, offset, thing, **settings):
    """`fuse` of one image of probabilities."""
    return fuse(scores[None], center[None], offset[None], thing, **{"normalized": True, **settings}).image(0)


def centers_of(center, *settings):
    centers, number = find_centers(center[None], *settings)
    return centers[0, : number[0]]


def detectron2_ids(found):
    """Detectron2's numbers of the instances: per class, in the order of the centres; and its panoptic map."""
    number = [0]
    for j, index in enumerate(found.instance_classes.tolist()):
        number.append(index * 1000 + 1 + found.instance_classes[:j].eq(index).sum().item())
    ids = torch.tensor(number, dtype=torch.int32)[found.instances.long()]
    return number[1:], torch.where(ids > 0, ids, torch.where(found.classes >= 0, found.classes * 1000, -1))


def reference_scene(height, width, objects, seed):
    scene, ids = make_scene(height, width, objects, seed=seed)
    classes, center, offset = (torch.as_tensor(a) for a in fake_outputs(scene, ids, seed=seed + 1))
    thing = torch.zeros(19, dtype=torch.bool)
    thing[THINGS] = True
    return torch.as_tensor(fake_logits(classes.numpy())), center, offset, thing


@pytest.mark.parametrize(("case", "seed"), [("512x1024_n20", 1532), ("1024x2048_n20", 2044)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_equals_the_reference_bit_for_bit(case, seed, memory_format):
    """Expected: what Detectron2's Panoptic-DeepLab post-processing made of the same scene."""
    expected = np.load(DATA / f"post_{case}.npz")
    logits, center, offset, thing = reference_scene(*map(int, case.split("_")[0].split("x")), 20, seed)
    maps = [map_[None].contiguous(memory_format=memory_format) for map_ in (logits, center, offset)]
    found = fuse(*maps, thing, stuff_area=2048).image(0)
    labels, panoptic = detectron2_ids(found)
    assert np.array_equal(panoptic.numpy(), expected["panoptic"])
    assert np.array_equal(centers_of(center, 0.1, 7, 200), expected["centers"])
    order = [labels.index(label) for label in expected["inst_labels"].tolist()]
    assert len(order) == len(labels)
    np.testing.assert_allclose(found.scores[order], expected["inst_scores"], atol=1e-6)
    assert np.array_equal(found.instance_classes[order], expected["inst_classes"])
    assert np.array_equal(found.boxes[order][:, [1, 0, 3, 2]], expected["inst_boxes"])
    assert found.areas.tolist() == [(found.instances == j + 1).sum().item() for j in range(len(labels))]


def test_equals_the_reference_with_58_centres():
    """Expected: the SHA-256 of Detectron2's int32 map; the scene has 1296 pixels at equal distance of two centres."""
    logits, center, offset, thing = reference_scene(1024, 2048, 60, 2084)
    found = fuse(logits[None], center[None], offset[None], thing, stuff_area=2048).image(0)
    assert len(centers_of(center, 0.1, 7, 200)) == 58
    digest = hashlib.sha256(detectron2_ids(found)[1].numpy().tobytes()).hexdigest()
    assert digest == "ba4fb3f9ac322c3077829ef125ee5c7aa8ee18f75f701dda307e0d328544f1d7"


def test_a_batch_is_its_images():
    """Images of no, few and many centres, each as if it were alone."""
    shape, thing = (24, 40), torch.tensor([False, True, True, False])
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(4, 4, *shape, generator=generator)
    offset = torch.randn(4, 2, *shape, generator=generator) * 5
    center = torch.rand(4, 1, *shape, generator=generator) * torch.tensor([1, 0, 0.25, 1]).view(4, 1, 1, 1)
    logits[3, 1:3] -= 50  # no thing pixel
    settings = {"threshold": 0.2, "nms_kernel": 3, "stuff_area": 9, "min_score": 0.05, "fill_void": True}
    batch = fuse(logits, center, offset, thing, **settings)
    assert batch.number.tolist() == [len(fuse_one(logits[0], center[0], offset[0], thing, normalized=False,
                                                  **settings).scores), 0, batch.number[2], 0]  # fmt: skip
    assert batch.number[0] > batch.number[2] > 0
    for index in range(4):
        alone = fuse(*(map_[index : index + 1] for map_ in (logits, center, offset)), thing, **settings).image(0)
        for ours, expected in zip(batch.image(index), alone, strict=True):
            assert torch.equal(ours, expected)
    assert batch.centers[1].tolist() == [[-1, -1]] * batch.centers.shape[1], "padding is -1"


def test_two_objects_side_by_side():
    classes = torch.zeros(4, 6, dtype=torch.int64)
    classes[1:3, 0:2], classes[1:3, 4:6] = 1, 2
    found = fuse_one(
        one_hot(classes, 3), heat((4, 6), {(1, 0): 0.9, (2, 5): 0.5}), torch.zeros(2, 4, 6),
        torch.tensor([False, True, True]), nms_kernel=3,
    )  # fmt: skip
    assert found.instances[1].tolist() == [1, 1, 0, 0, 2, 2]
    assert found.centers.tolist() == [[1, 0], [2, 5]]
    assert found.instance_classes.tolist() == [1, 2]
    assert found.classes.tolist() == classes.tolist()


def test_offsets_are_dy_dx_and_decide_the_instance():
    classes = torch.ones(3, 8, dtype=torch.int64)
    offset = torch.zeros(2, 3, 8)
    offset[1, :, :4], offset[1, :, 4:] = 4, -4  # every pixel points to the other half
    found = fuse_one(one_hot(classes, 2), heat((3, 8), {(1, 1): 1.0, (1, 6): 1.0}), offset, torch.tensor([False, True]))
    assert found.instances[0].tolist() == [2, 2, 2, 2, 1, 1, 1, 1]


def test_majority_class_wins_and_ties_go_to_the_smaller():
    classes = torch.tensor([[2, 2, 2, 1], [3, 3, 1, 1]])
    thing = torch.tensor([False, True, True, True])
    found = fuse_one(one_hot(classes, 4), heat((2, 4), {(0, 0): 1.0}), torch.zeros(2, 2, 4), thing)
    assert found.classes.unique().tolist() == [1]  # three pixels of 1, three of 2


def test_an_equidistant_pixel_goes_to_the_first_centre():
    found = fuse_one(
        one_hot(torch.ones(1, 5, dtype=torch.int64), 2), heat((1, 5), {(0, 0): 0.5, (0, 4): 0.9}),
        torch.zeros(2, 1, 5), torch.tensor([False, True]), nms_kernel=3,
    )  # fmt: skip
    assert found.instances.tolist() == [[1, 1, 1, 2, 2]]


def test_things_without_a_centre_are_void_and_stuff_is_limited_by_area():
    classes = torch.tensor([[0, 0, 0, 0], [2, 2, 1, 1]])
    thing = torch.tensor([False, True, False])
    for area, expected in {2: [2, 2, -1, -1], 3: [-1, -1, -1, -1]}.items():
        found = fuse_one(one_hot(classes, 3), torch.zeros(1, 2, 4), torch.zeros(2, 2, 4), thing, stuff_area=area)
        assert found.classes.tolist() == [[0, 0, 0, 0], expected]
        assert found.instances.sum() == 0
        assert len(found.scores) == 0


def test_threshold_is_exclusive_and_a_plateau_yields_all_its_pixels():
    assert len(centers_of(heat((9, 9), {(4, 4): 0.5}), 0.5, 7, 200)) == 0
    plateau = torch.zeros(1, 20, 20)
    plateau[0, 8:11, 8:11] = 0.5
    assert len(centers_of(plateau, 0.1, 7, 200)) == 9
    # Measured of the reference: the .5 three pixels from its equal stays, the .6 four and five away too.
    peaks = {(10, 10): 0.5, (10, 13): 0.5, (10, 30): 0.7, (10, 34): 0.6, (10, 35): 0.6}
    assert centers_of(heat((20, 40), peaks), 0.1, 7, 200).tolist() == [list(key) for key in peaks]


def test_a_plateau_may_count_as_one_centre():
    """In bfloat16 the top of a Gaussian is flat: without merging, one object becomes several."""
    yy, xx = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    center = 0.6 * torch.exp(-((yy - 16.1) ** 2 + (xx - 15.4) ** 2) / 128)[None]
    assert len(centers_of(center, 0.1, 7, 200)) == 1
    center = center.bfloat16().float()
    classes = torch.ones(32, 32, dtype=torch.int64)
    arguments = one_hot(classes, 2), center, torch.zeros(2, 32, 32), torch.tensor([False, True])
    assert len(fuse_one(*arguments).scores) > 1
    found = fuse_one(*arguments, merge_plateaus=True)
    assert found.areas.tolist() == [32 * 32]
    ridge = torch.zeros(1, 5, 40)
    ridge[0, 2, 4:30] = 0.5
    assert centers_of(ridge, 0.1, 7, 200, True).tolist() == [[2, 4]], "also where it is longer than the window"
    apart = heat((20, 40), {(10, 10): 0.5, (10, 14): 0.5, (10, 30): 0.7})
    assert centers_of(apart, 0.1, 7, 200, True).tolist() == [[10, 10], [10, 14], [10, 30]]


def test_top_k_keeps_the_highest_in_row_major_order():
    peaks = {(0, 0): 0.3, (0, 10): 0.9, (0, 20): 0.5, (0, 30): 0.5}
    assert centers_of(heat((1, 40), peaks), 0.1, 7, 2).tolist() == [[0, 10], [0, 20]]
    with pytest.raises(ValueError, match="nms_kernel must be odd, got 4"):
        centers_of(heat((1, 40), peaks), 0.1, 4, 2)


def grid(values):
    """A heat map with peaks of these values, far enough from each other, in row-major order."""
    return heat((128, 160), {(8 * (j // 20), 8 * (j % 20)): value for j, value in enumerate(values)})


@pytest.mark.parametrize(
    ("values", "kept", "reference"),
    [
        ([0.2 + j / 1000 for j in range(150)], 150, 150),
        ([0.2 + j / 1000 for j in range(200)], 200, 199),
        ([0.2 + j / 1000 for j in range(250)], 200, 199),
        ([0.5] * 250, 200, 0),
        ([0.9] * 100 + [0.5] * 150, 200, 100),
    ],
)
def test_of_more_peaks_than_top_k_exactly_top_k_are_kept(values, kept, reference):
    """`reference`: how many Detectron2 keeps, measured. Ours never loses a peak that there is room for."""
    found = centers_of(grid(values), 0.1, 7, 200)
    assert len(found) == kept >= reference
    assert found.tolist() == sorted(found.tolist())
    lowest = min(grid(values)[0, y, x] for y, x in found.tolist())
    assert sum(value > lowest for value in values) <= 200


def test_an_image_of_fewer_pixels_than_top_k():
    found = fuse_one(one_hot(torch.ones(1, 2, dtype=torch.int64), 2), heat((1, 2), {(0, 1): 0.5}), torch.zeros(2, 1, 2),
                     torch.tensor([False, True]))  # fmt: skip
    assert found.instances.tolist() == [[1, 1]]


def test_equal_logits_go_to_the_first_class_and_nan_to_some_class():
    values = torch.tensor([[1.0, 3, 3, 2], [torch.nan] * 4, [-torch.inf] * 4])
    assert first_argmax(values, 1).tolist()[0::2] == [1, 0]
    assert 0 <= first_argmax(values, 1)[1] < 4
    many = torch.zeros(300, 2)
    many[299, 1] = 1
    assert first_argmax(many, 0).tolist() == [0, 299]


def test_a_score_is_the_mean_class_score_times_the_heat_at_the_masks_mean():
    scores = torch.tensor([[[0.1, 0.4, 0.9]], [[0.9, 0.6, 0.1]]])
    center = torch.tensor([[[0.5, 0.4, 0.0]]])
    found = fuse_one(scores, center, torch.zeros(2, 1, 3), torch.tensor([False, True]))
    assert found.scores.tolist() == pytest.approx([0.75 * 0.5])  # mean x = 0.5, truncated to 0


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 12), st.integers(1, 4))
def test_equals_a_loop_over_pixels(seed, height, width, number):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(number, height, width, generator=generator)
    center = torch.randint(0, 4, (1, height, width), generator=generator) / 4
    offset = torch.randint(-6, 7, (2, height, width), generator=generator) / 2
    thing = torch.rand(number, generator=generator) < 0.6
    found = fuse_one(scores, center, offset, thing, threshold=0.3, nms_kernel=3, stuff_area=4)

    heat_map, classes = center[0].tolist(), scores.argmax(0).tolist()
    peaks = []
    for y in range(height):
        for x in range(width):
            around = [heat_map[v][u] for v in range(max(0, y - 1), min(height, y + 2))
                      for u in range(max(0, x - 1), min(width, x + 2))]  # fmt: skip
            if heat_map[y][x] > 0.3 and heat_map[y][x] == max(around):
                peaks.append((y, x))
    owner, votes, area = {}, {}, [0] * number
    for y in range(height):
        for x in range(width):
            area[classes[y][x]] += 1
            if thing[classes[y][x]] and peaks:
                ty, tx = y + offset[0, y, x].item(), x + offset[1, y, x].item()
                distances = [(ty - v) ** 2 + (tx - u) ** 2 for v, u in peaks]
                owner[y, x] = distances.index(min(distances))
                votes.setdefault(owner[y, x], [0] * number)[classes[y][x]] += 1
    rank = {peak: j + 1 for j, peak in enumerate(sorted(votes))}
    for y in range(height):
        for x in range(width):
            index = classes[y][x]
            if (y, x) in owner:
                votes_here = votes[owner[y, x]]
                expected = votes_here.index(max(votes_here)), rank[owner[y, x]]
            else:
                expected = (index if not thing[index] and area[index] >= 4 else -1), 0
            assert (found.classes[y, x].item(), found.instances[y, x].item()) == expected
    assert found.centers.tolist() == [list(peaks[j]) for j in sorted(votes)]


def test_a_small_instance_loses_its_pixels():
    classes = torch.tensor([[1, 1, 1, 0, 0, 1]])
    arguments = (
        one_hot(classes, 2), heat((1, 6), {(0, 1): 0.9, (0, 5): 0.9}), torch.zeros(2, 1, 6), torch.tensor([False, True])
    )  # fmt: skip
    assert fuse_one(*arguments, nms_kernel=3, instance_area=1).instances.tolist() == [[1, 1, 1, 0, 0, 2]]
    found = fuse_one(*arguments, nms_kernel=3, instance_area=2)
    assert found.instances.tolist() == [[1, 1, 1, 0, 0, 0]]
    assert found.classes.tolist() == [[1, 1, 1, 0, 0, -1]]
    assert found.centers.tolist() == [[0, 1]]
    assert len(found.scores) == 1


def test_void_is_filled_with_the_likeliest_stuff_that_is_large_enough():
    scores = torch.tensor(
        [  # stuff, stuff, thing
            [[0.9, 0.9, 0.8, 0.1, 0.2]],
            [[0.1, 0.0, 0.1, 0.7, 0.3]],
            [[0.0, 0.1, 0.1, 0.2, 0.5]],
        ]
    )
    arguments = scores, torch.zeros(1, 1, 5), torch.zeros(2, 1, 5), torch.tensor([False, False, True])
    assert fuse_one(*arguments, stuff_area=2).classes.tolist() == [[0, 0, 0, -1, -1]]
    assert fuse_one(*arguments, stuff_area=2, fill_void=True).classes.tolist() == [[0, 0, 0, 0, 0]]
    assert fuse_one(*arguments, fill_void=True).classes.tolist() == [[0, 0, 0, 1, 1]]
    assert fuse_one(*arguments, stuff_area=9, fill_void=True).classes.tolist() == [[0, 0, 0, 1, 1]]


def test_a_splinter_far_from_its_centre_scores_too_little_to_stay():
    classes = torch.tensor([[1, 1, 1, 0, 0, 0, 1, 1]])
    offset = torch.zeros(2, 1, 8)
    center = heat((1, 8), {(0, 1): 0.9, (0, 4): 0.8})
    arguments = one_hot(classes, 2), center, offset, torch.tensor([False, True])
    assert fuse_one(*arguments, nms_kernel=3).scores.tolist() == pytest.approx([0.9, 0])
    found = fuse_one(*arguments, nms_kernel=3, min_score=0.1)
    assert found.instances.tolist() == [[1, 1, 1, 0, 0, 0, 0, 0]]
    assert found.scores.tolist() == pytest.approx([0.9])
    assert found.classes[0, 6] == -1
