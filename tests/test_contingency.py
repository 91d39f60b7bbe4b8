import numpy as np
import pyarrow.parquet as pq
import pytest
from evalset import maps, table
from hypothesis import given, settings
from hypothesis import strategies as st

from post_platform.errors import DataError
from post_platform.metrics.contingency import SCHEMA, frame_table, load, merge, save


def rows(frame):
    names = ("truth_class", "truth_instance", "pred_class", "pred_track", "pixels")
    return sorted(zip(*(frame[name].to_pylist() for name in names), strict=True))


def counted_one_by_one(*four):
    counts = {}
    for pixel in zip(*(array.reshape(-1).tolist() for array in four), strict=True):
        counts[pixel] = counts.get(pixel, 0) + 1
    return sorted((*pair, n) for pair, n in counts.items())


def test_four_pixels_by_hand():
    frame = frame_table(
        "toy", "a", 7,
        np.array([[1, 1], [255, 0]], np.uint8), np.array([[9, 65535], [0, 0]], np.uint16),
        np.array([[1, 1], [1, 255]], np.uint8), np.array([[4, 4], [4, 0]], np.int32),
    )  # fmt: skip
    assert rows(frame) == [(0, 0, 255, 0, 1), (1, 9, 1, 4, 1), (1, 65535, 1, 4, 1), (255, 0, 1, 4, 1)]
    assert frame.schema.equals(SCHEMA)
    assert frame["dataset"].unique().to_pylist() == ["toy"]
    assert frame["sequence"].unique().to_pylist() == ["a"]
    assert frame["frame"].unique().to_pylist() == [7]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(0, 2**32 - 1),
    st.sampled_from([2, 65535]),
    st.sampled_from([3, 2**31 - 1]),
    st.booleans(),
)
def test_counts_every_pixel_once(height, width, seed, largest_instance, largest_track, transposed):
    random = np.random.default_rng(seed)
    shape = (height, width)
    four = (
        random.choice(np.array([0, 1, 254, 255], np.uint8), shape),
        random.choice(np.array([0, 1, largest_instance], np.uint16), shape),
        random.choice(np.array([0, 1, 255], np.uint8), shape),
        random.choice(np.array([0, 1, 2, largest_track], np.int32), shape),
    )
    if transposed:  # maps that do not lie contiguously in memory
        four = tuple(array.T for array in four)
    assert rows(frame_table("d", "s", 0, *four)) == counted_one_by_one(*four)


def test_equals_sorting_pairs_on_a_real_size_frame():
    four = maps("0002", 5)
    truth = four[0].astype(np.int64) << 16 | four[1]
    pred = four[2].astype(np.int64) << 16 | four[3]
    pairs, pixels = np.unique(truth << 32 | pred, return_counts=True)
    expected = [
        (p >> 48, p >> 32 & 65535, p >> 16 & 65535, p & 65535, n)
        for p, n in zip(pairs.tolist(), pixels.tolist(), strict=True)
    ]
    assert rows(frame_table("d", "s", 0, *four)) == expected


def test_every_frame_sums_to_its_size():
    sums = table().group_by(["sequence", "frame"]).aggregate([("pixels", "sum")])
    assert sums.num_rows == 40
    assert set(sums["pixels_sum"].to_pylist()) == {375 * 1242}


def test_a_size_mismatch_names_the_frame():
    truth, small = np.zeros((4, 6), np.uint8), np.zeros((4, 5), np.uint8)
    with pytest.raises(DataError, match=r"toy/0009/000154: the prediction is 4x5 .* the truth is 4x6"):
        frame_table("toy", "0009", 154, truth, truth, small, small)


def test_survives_parquet(tmp_path):
    save(table(), tmp_path / "t.parquet")
    assert load(tmp_path / "t.parquet").equals(table())


def test_nothing_merges_to_an_empty_table():
    assert merge([]).schema.equals(SCHEMA)


def test_a_file_that_is_no_table_is_named(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"nonsense")
    with pytest.raises(DataError, match=r"a\.parquet: no readable contingency table"):
        load(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"b\.parquet: no readable contingency table \(no such file\)$"):
        load(tmp_path / "b.parquet")
    pq.write_table(table().drop_columns(["pixels"]), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b\.parquet: not a contingency table; columns are dataset, "):
        load(tmp_path / "b.parquet")
