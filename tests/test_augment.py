"""Augmentation on frames one can check by eye: what moves the image moves its labels, and nothing else does."""

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from post_platform.data import augment as module
from post_platform.data.augment import FILL, VOID, Augmentation, Frame, augment, moved, recoloured, window

PLAIN = {"flip": False, "photometric": False, "still_motion": False}


def numbered(height, width):
    """A frame whose every pixel tells where it came from: red = row, green = column, class too."""
    y, x = np.mgrid[:height, :width].astype(np.uint8)
    return Frame(np.stack([y, x, np.full_like(y, 9)], -1), y * 10 + x, y.astype(np.uint16) * 100 + x)


def square(size, corner, side, number=7):
    """A red object of class 1 on a blue ground of class 0."""
    image = np.zeros((*size, 3), np.uint8)
    image[..., 2] = 255
    here = np.s_[corner[0] : corner[0] + side, corner[1] : corner[1] + side]
    image[here] = (255, 0, 0)
    classes, instances = np.zeros(size, np.uint8), np.zeros(size, np.uint16)
    classes[here], instances[here] = 1, number
    return Frame(image, classes, instances)


def middle(mask):
    return np.argwhere(mask).mean(axis=0)


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_window_inside_is_a_slice():
    part = window(numbered(6, 8), (6, 8), (1, 2), (3, 4))
    assert part.classes.tolist() == [[12, 13, 14, 15], [22, 23, 24, 25], [32, 33, 34, 35]]
    assert part.instances[2].tolist() == [302, 303, 304, 305]
    assert part.image[0, 0].tolist() == [1, 2, 9]


def test_a_window_over_the_edge_is_void_and_fill_outside():
    part = window(numbered(2, 3), (2, 3), (-1, -2), (4, 5))
    assert part.classes.tolist() == [[255] * 5, [255, 255, 0, 1, 2], [255, 255, 10, 11, 12], [255] * 5]
    assert part.instances.tolist() == [[0] * 5, [0, 0, 0, 1, 2], [0, 0, 100, 101, 102], [0] * 5]
    assert part.image[0, 0].tolist() == list(FILL)
    assert part.image[2, 3].tolist() == [1, 1, 9]


def test_a_window_that_misses_the_image_is_nothing():
    part = window(numbered(2, 3), (2, 3), (5, 5), (2, 2))
    assert (part.classes == VOID).all()
    assert (part.image == FILL).all()


def test_labels_take_the_nearest_source_pixel():
    doubled = window(numbered(2, 3), (4, 6), (0, 0), (4, 6))
    assert doubled.classes.tolist() == [[0, 0, 1, 1, 2, 2]] * 2 + [[10, 10, 11, 11, 12, 12]] * 2
    halved = window(numbered(4, 6), (2, 3), (0, 0), (2, 3))
    assert halved.classes.tolist() == [[11, 13, 15], [31, 33, 35]]  # pixel (0, 0) of the half covers (0..1, 0..1)
    assert set(np.unique(halved.instances)) <= set(np.unique(numbered(4, 6).instances))  # never an id in between


def test_images_shrink_with_anti_aliasing():
    stripes = Frame(np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8), np.zeros((8, 8), np.uint16))
    stripes.image[:, ::2] = 200
    assert np.abs(window(stripes, (2, 2), (0, 0), (2, 2)).image.astype(int) - 100).max() <= 30


def test_a_cut_of_a_resized_image_is_the_resized_image_s_cut():
    frame = square((40, 60), (10, 20), 12)
    whole, part = window(frame, (60, 90), (0, 0), (60, 90)), window(frame, (60, 90), (11, 25), (20, 30))
    assert np.array_equal(part.classes, whole.classes[11:31, 25:55])
    assert np.abs(part.image.astype(int) - whole.image[11:31, 25:55].astype(int)).max() <= 1


def test_an_image_smaller_than_the_crop_lies_at_its_corner():
    now, prev = augment(numbered(2, 3), numbered(2, 3), Augmentation((4, 4), **PLAIN), seed=0)
    assert now.classes.tolist() == [[0, 1, 2, 255], [10, 11, 12, 255], [255] * 4, [255] * 4]
    assert same(now, prev)


@pytest.mark.parametrize("seed", range(8))
def test_both_frames_get_the_same_geometry(seed):
    rules = Augmentation((16, 32), scale=(0.5, 2.0), photometric=False)
    now, prev = augment(numbered(20, 25), numbered(20, 25), rules, seed)
    assert same(now, prev)


def test_flips_are_half_of_all_and_turn_image_and_labels():
    frame, rules = numbered(2, 3), Augmentation((2, 3), photometric=False)
    flipped = [augment(frame, frame, rules, seed)[0] for seed in range(200)]
    turned = [part for part in flipped if part.classes[0, 0] == 2]
    assert 70 < len(turned) < 130
    for part in turned:
        assert part.classes.tolist() == [[2, 1, 0], [12, 11, 10]]
        assert part.image[..., 1].tolist() == [[2, 1, 0], [2, 1, 0]]
        assert part.instances.tolist() == [[2, 1, 0], [102, 101, 100]]


def test_crops_reach_every_corner_and_never_leave_a_large_image():
    frame, rules = numbered(3, 4), Augmentation((2, 2), **PLAIN)
    corners = {int(augment(frame, frame, rules, seed)[0].classes[0, 0]) for seed in range(100)}
    assert corners == {0, 1, 2, 10, 11, 12}


def test_the_draw_depends_on_the_seed_alone():
    frame, rules = square((40, 60), (10, 20), 12), Augmentation((32, 32), scale=(0.5, 2.0))
    np.random.seed(1)
    first = augment(frame, None, rules, seed=5)
    np.random.seed(2)
    again = augment(frame, None, rules, seed=5)
    other = augment(frame, None, rules, seed=6)
    assert same(first[0], again[0])
    assert same(first[1], again[1])
    assert not np.array_equal(first[0].image, other[0].image)
    assert same(frame, square((40, 60), (10, 20), 12)), "the input was changed"


def test_colours_change_and_labels_do_not():
    frame = square((32, 32), (8, 8), 8)
    frame.image[...] = frame.image // 3 + 60  # away from the ends, where no brightness shows
    plain = augment(frame, frame, Augmentation((32, 32), **PLAIN), seed=3)
    coloured = augment(frame, frame, Augmentation((32, 32), **{**PLAIN, "photometric": True}), seed=3)
    for a, b in zip(plain, coloured, strict=True):
        assert np.array_equal(a.classes, b.classes)
        assert np.array_equal(a.instances, b.instances)
        assert not np.array_equal(a.image, b.image)
    assert not np.array_equal(coloured[0].image, coloured[1].image), "each frame has a draw of its own"


def test_colours_change_by_a_fifth_at_most():
    grey = np.full((4, 4, 3), 100, np.uint8)
    means = [float(recoloured(grey, np.random.default_rng(seed)).mean()) for seed in range(200)]
    assert 79 <= min(means) < 85
    assert 115 < max(means) <= 121


def photograph():
    """Colours away from the ends, so that no step clips."""
    y, x = np.mgrid[:48, :64] / 9
    waves = np.stack([np.sin(x + y), np.cos(x - 2 * y), np.sin(3 * y)], -1) * 50 + 120
    return (waves + np.random.default_rng(0).normal(0, 5, waves.shape)).astype(np.uint8)


@pytest.mark.parametrize("seed", range(8))
def test_colours_are_the_formula_rounded_and_those_of_pil_s_three_steps(seed):
    image = photograph()
    found = recoloured(image, np.random.default_rng(seed)).astype(int)
    brightness, contrast, saturation = np.random.default_rng(seed).uniform(0.8, 1.2, 3)

    def grey(colours):
        return (colours @ [0.299, 0.587, 0.114])[..., None]

    bright = brightness * image
    contrasted = contrast * bright + (1 - contrast) * grey(bright[::4, ::4]).mean()
    exact = saturation * contrasted + (1 - saturation) * grey(contrasted)
    assert np.abs(found - exact).max() <= 0.51
    picture = Image.fromarray(image)
    for enhance, factor in zip(("Brightness", "Contrast", "Color"), (brightness, contrast, saturation), strict=True):
        picture = getattr(ImageEnhance, enhance)(picture).enhance(factor)
    assert np.abs(found - np.asarray(picture).astype(int)).max() <= 3  # three roundings down, and the mean of a sample


def test_colours_are_clipped_at_both_ends():
    image = np.zeros((8, 8, 3), np.uint8)
    image[4:] = 255
    for seed in range(20):
        found = recoloured(image, np.random.default_rng(seed))
        assert found[:4].max() < 100
        assert found[4:].min() > 155


@pytest.mark.parametrize("prev", [True, False])
@pytest.mark.parametrize("scale", [(1.0, 1.0), (0.5, 2.0)])
def test_views_in_another_byte_order_give_the_same_clips(prev, scale):
    plain = numbered(40, 60)
    label = np.stack([plain.classes, plain.instances >> 8, plain.instances & 255], -1).astype(np.uint8)
    wide = np.concatenate([plain.image, plain.image], 1)
    viewed = Frame(wide[:, :60], label[..., 0], label[..., 1:].view(">u2")[..., 0])
    rules = Augmentation((32, 48), scale=scale)
    for seed in range(6):
        for a, b in zip(*(augment(f, f if prev else None, rules, seed) for f in (plain, viewed)), strict=True):
            assert same(a, b)


@pytest.mark.parametrize("seed", range(12))
def test_an_invented_past_moves_labels_with_the_image(seed):
    frame = square((48, 64), (18, 24), 10)
    now, prev = augment(frame, None, Augmentation((48, 64), photometric=False, flip=False), seed)
    assert same(now, frame)
    red = (prev.image[..., 0] > 127) & (prev.image[..., 2] < 127)
    assert (prev.instances == 7).sum() > 60
    assert np.abs(middle(red) - middle(prev.instances == 7)).max() < 0.3
    assert ((prev.instances == 7) == (prev.classes == 1)).all()
    shift = middle(prev.instances == 7) - middle(now.instances == 7)
    assert np.abs(shift).max() < 0.12 * 64 + 4, "no farther than the largest shift, and the little that a turn adds"


def test_invented_pasts_differ_and_some_objects_move_far():
    frame = square((48, 64), (18, 24), 10)
    rules = Augmentation((48, 64), photometric=False, flip=False)
    shifts = [
        middle(augment(frame, None, rules, seed)[1].classes == 1) - middle(frame.classes == 1) for seed in range(40)
    ]
    assert np.std(shifts, axis=0).min() > 1.5
    assert np.abs(shifts).max() > 5


def test_an_invented_past_is_an_affine_of_the_present():
    """Rows and columns of a frame that counts them are, one motion later, planes over the picture."""
    frame = numbered(80, 100)
    prev = moved(frame, (40, 60), np.random.default_rng(4))
    y, x = np.mgrid[:40, :60] + 0.5
    basis = np.stack([x.ravel(), y.ravel(), np.ones(x.size)], 1)
    for channel in (0, 1):
        values = prev.image[..., channel].ravel().astype(float)
        coefficients, *_ = np.linalg.lstsq(basis, values, rcond=None)
        assert np.abs(basis @ coefficients - values).max() <= 1.01  # rounded to whole colours
        turn = coefficients[1 - channel]
        assert 0.92 <= np.hypot(*coefficients[:2]) <= 1.09, "the zoom"
        assert 0.9 <= turn <= 1.1


def test_what_an_invented_past_takes_from_outside_is_void():
    frame, rng = square((8, 8), (2, 2), 4), np.random.default_rng(0)
    prev = moved(frame, (32, 32), rng)  # a window larger than the frame
    outside = prev.classes == VOID
    assert 0.8 < outside.mean() < 1
    assert (prev.instances[outside] == 0).all()
    assert np.median(prev.image[outside], axis=0).tolist() == list(FILL)


def test_the_invented_past_sees_beyond_the_crop_where_there_is_more_image():
    frame, rules = square((200, 200), (90, 90), 20), Augmentation((64, 64), **{**PLAIN, "still_motion": True})
    inner = [augment(frame, None, rules, seed) for seed in range(60)]
    void = [float((prev.classes == VOID).mean()) for _, prev in inner]
    assert np.mean(np.array(void) == 0) > 0.5
    assert module.MARGIN >= 0.12


def test_without_still_motion_the_past_is_the_same_image_without_objects():
    frame = square((32, 32), (8, 8), 8)
    now, prev = augment(frame, None, Augmentation((32, 32), **PLAIN), seed=1)
    assert np.array_equal(now.image, prev.image)
    assert now.instances.any()
    assert not prev.instances.any()
