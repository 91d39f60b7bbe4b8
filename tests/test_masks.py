"""Masks of the official files: what pycocotools writes is read back, and nothing else is believed."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask as coco_mask

from post_platform.datasets.masks import decode_mask, encode_mask, encode_segments, run_lengths
from post_platform.errors import DataError

SIDES = st.integers(1, 40)


@given(st.tuples(SIDES, SIDES).flatmap(lambda shape: arrays.arrays(bool, shape)))
@settings(max_examples=200, deadline=None)
def test_pycocotools_run_lengths_are_read_back(mask):
    height, width = mask.shape
    theirs = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert encode_mask(mask) == theirs["counts"].decode()
    np.testing.assert_array_equal(decode_mask(encode_mask(mask), height, width, "here"), mask)
    runs = np.flatnonzero(np.diff(np.concatenate([[0], mask.T.ravel(), [2]])))  # ends of runs, by columns
    counts = np.diff(np.concatenate([[0], runs])).tolist()
    np.testing.assert_array_equal(decode_mask({"size": [height, width], "counts": counts}, height, width, "x"), mask)


@given(st.tuples(SIDES, SIDES).flatmap(lambda shape: arrays.arrays(np.int32, shape, elements=st.integers(0, 4))))
@settings(max_examples=200, deadline=None)
def test_all_segments_of_a_map_are_encoded_as_each_alone(places):
    assert encode_segments(places, 5) == [encode_mask(places == number) for number in range(1, 6)]


def test_polygon_by_hand():
    mask = decode_mask([[1, 1, 4, 1, 4, 3, 1, 3]], 5, 6, "here")
    assert mask.astype(int).tolist() == [
        [0, 0, 0, 0, 0, 0],
        [0, 1, 1, 1, 0, 0],
        [0, 1, 1, 1, 0, 0],
        [0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
    ]


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"counts": [3, 4], "size": [2, 4]}, "fill 7 pixels, 2x4 has 8"),
        ({"counts": [3, 4, 2], "size": [2, 4]}, "fill 9 pixels, 2x4 has 8"),
        ({"counts": [9, -1], "size": [2, 4]}, "neither run lengths nor polygons"),
        ({"counts": [True, 7], "size": [2, 4]}, "neither run lengths nor polygons"),
        ({"counts": [8], "size": [4, 2]}, r"the mask is \[4, 2\], must be 2x4"),
        ({"size": [2, 4]}, "neither run lengths nor polygons: None"),
        (None, "neither run lengths nor polygons: None"),
        ("zzz", "is not compressed run lengths"),
        ("o" * 40, "is not compressed run lengths"),
        ("8P", "break off in the middle of a number"),
        ("1", "fill 1 pixels, 2x4 has 8"),
        ("0O", "neither run lengths nor polygons"),  # a negative run
        ([], "a polygon must be"),
        ([[0, 0, 1, 1]], "a polygon must be"),
        ([[0, 0, 1, 1, 2, float("nan")]], "a polygon must be"),
        ([[0, 0, 1, 1, 2, 1e9]], "a polygon must be"),
        ([["0", 0, 1, 1, 2, 2]], "a polygon must be"),
        ([7], "a polygon must be"),
    ],
)
def test_what_is_no_mask(segmentation, message):
    with pytest.raises(DataError, match=f"^here: .*{message}"):
        decode_mask(segmentation, 2, 4, "here")


@pytest.mark.parametrize(("height", "width"), [(0, 4), (2, -1), (1 << 20, 1 << 20)])
def test_size_is_capped(height, width):
    with pytest.raises(DataError, match="must be 1 to"):
        decode_mask({"counts": [height * width]}, height, width, "here")


@given(st.text(max_size=30) | st.text(st.characters(min_codepoint=48, max_codepoint=111), max_size=30))
@settings(max_examples=300, deadline=None)
def test_any_text_gives_a_mask_or_one_error(text):
    try:
        shape = decode_mask(text, 3, 5, "here").shape
    except DataError as error:
        shape = (3, 5) if str(error).startswith("here: ") else error
    assert shape == (3, 5)


def one_by_one(texts, height, width):
    """What `decode_mask` makes of each text, or the error of the first that is no mask."""
    try:
        return [decode_mask(text, height, width, f"mask {place}").tolist() for place, text in enumerate(texts)]
    except DataError as error:
        return str(error)


def all_at_once(texts, height, width):
    count = len(texts)
    try:
        runs, edges = run_lengths(texts, [height] * count, [width] * count, [f"mask {n}" for n in range(count)])
    except DataError as error:
        return str(error)
    parts = [runs[first:last] for first, last in pairwise(edges)]
    return [np.repeat([False, True] * len(part), part.ravel()).reshape(width, height).T.tolist() for part in parts]


RANDOM_MASKS = arrays.arrays(bool, (3, 5)).map(encode_mask)
ANY_TEXT = st.text(max_size=12) | st.text(st.characters(min_codepoint=48, max_codepoint=111), max_size=12)


@given(st.lists(RANDOM_MASKS, max_size=6))
@settings(max_examples=200, deadline=None)
def test_many_masks_are_those_of_one_by_one(texts):
    assert all_at_once(texts, 3, 5) == one_by_one(texts, 3, 5)
    assert isinstance(one_by_one(texts, 3, 5), list)


@given(
    st.lists(RANDOM_MASKS | ANY_TEXT, min_size=1, max_size=4), st.sampled_from([(3, 5), (5, 4), (0, 3), (1 << 20, 64)])
)
@settings(max_examples=300, deadline=None)
def test_the_first_of_many_that_is_no_mask_is_named(texts, size):
    assert all_at_once(texts, *size) == one_by_one(texts, *size)


def test_large_masks_of_many_sizes():
    """Numbers of several characters, up and down: stripes of growing width in images of two sizes."""
    random = np.random.default_rng(0)
    masks = [np.repeat(np.arange(n) % 2 == 1, random.integers(1, 5000, n)) for n in range(1, 40)]
    images = [mask.reshape(-1, 1) if n % 2 else mask.reshape(1, -1) for n, mask in enumerate(masks)]
    texts, where = [encode_mask(image) for image in images], [str(n) for n in range(len(images))]
    runs, edges = run_lengths(texts, *zip(*(image.shape for image in images), strict=True), where)
    for image, first, last in zip(images, edges[:-1], edges[1:], strict=True):
        found = np.repeat([False, True] * int(last - first), runs[first:last].ravel())
        np.testing.assert_array_equal(found, image.ravel())
