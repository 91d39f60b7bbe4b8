"""The quick ways to a file's pixels: exactly PIL's, or None where PIL must judge."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from post_platform.datasets.frame import Label
from post_platform.shards import record
from post_platform.shards.pixels import END, SIGNATURE, decode_jpeg, decode_label, encode_label

MOST = 1 << 20
LABEL = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
ROWS = b"".join(b"\0" + row.tobytes() for row in LABEL)


def photograph(height, width):
    """Smooth colours, an edge and noise."""
    y, x = np.mgrid[:height, :width] / 40
    waves = np.stack([np.sin(x + y), np.cos(x - 2 * y), np.sin(3 * y)], -1) * 90 + 128
    waves[:, width // 2 :] *= 0.5
    return (waves + np.random.default_rng(0).normal(0, 6, waves.shape)).clip(0, 255).astype(np.uint8)


def saved(array, kind, mode="RGB", **options):
    buffer = io.BytesIO()
    Image.fromarray(array).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def by_pil(content):
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(rows=ROWS, width=3, height=2, kind=b"\x08\x02\0\0\0", before=b"", data=None, after=b""):
    header = chunk(b"IHDR", struct.pack(">II", width, height) + kind)
    return SIGNATURE + header + before + chunk(b"IDAT", zlib.compress(rows) if data is None else data) + END + after


@given(arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3))))
def test_a_label_is_a_png_that_anyone_reads_and_comes_back_exactly(label):
    content = encode_label(label)
    assert content == encode_label(label)
    assert np.array_equal(by_pil(content), label)
    assert np.array_equal(decode_label(content, MOST), label)


def test_a_label_as_another_deflate_would_write_it():
    assert np.array_equal(decode_label(png(), MOST), LABEL)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        png()[:-1],
        png(after=b"x"),
        png(b"\2" + ROWS[1:]),
        png(ROWS[:-1]),
        png(ROWS + b"\0"),
        png(bytes(1 << 24)),
        png(data=zlib.compress(ROWS)[:-5]),
        png(data=zlib.compress(ROWS) + b"more"),
        png(data=b"no deflate"),
        png(before=chunk(b"tEXt", b"a\0b")),
        png(kind=b"\x10\x02\0\0\0"),
        png(kind=b"\x08\x02\0\0\1"),
        png(b"", width=0),
        png(b"", height=0),
        png(b"", width=1 << 31, height=1 << 31),
        png().replace(b"IDAT", b"IDAX"),
        png()[:30] + b"?" + png()[31:],
        saved(photograph(40, 50), "PNG"),
        saved(photograph(40, 50), "JPEG"),
    ],
)
def test_any_other_label_is_left_to_pil(content):
    assert decode_label(content, MOST) is None


def test_sizes_are_capped_before_anything_is_inflated():
    assert decode_label(encode_label(LABEL), 5) is None
    content = saved(photograph(4, 6), "JPEG")
    assert decode_jpeg(content, 23) is None


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(
    "options",
    [
        {"quality": 95, "subsampling": "4:4:4"},
        {"quality": 80, "subsampling": "4:2:0"},
        {"quality": 90, "subsampling": "4:2:2"},
        {"quality": 70, "progressive": True},
    ],
)
def test_a_jpeg_s_pixels_are_those_of_pil(mode, options):
    content = saved(photograph(75, 101), "JPEG", mode, **options)
    assert np.array_equal(decode_jpeg(content, MOST), by_pil(content))


@pytest.mark.parametrize("content", [b"", b"no image", saved(photograph(9, 9), "PNG")])
def test_what_is_no_jpeg_is_left_to_pil(content):
    assert decode_jpeg(content, MOST) is None


def test_a_jpeg_that_is_cut_or_of_another_colour_space_is_left_to_pil():
    content = saved(photograph(75, 101), "JPEG")
    assert decode_jpeg(content[: len(content) // 2], MOST) is None
    ink = saved(photograph(75, 101), "JPEG", "CMYK")
    assert decode_jpeg(ink, MOST) is None
    assert np.array_equal(record._pixels(ink, "here", "RGB"), by_pil(ink))


@given(st.integers(0, 10_000), st.integers(1, 255))
@settings(max_examples=200, deadline=None)
def test_a_flipped_byte_gives_pixels_of_the_claimed_size_or_none(place, mask):
    for content, decode in ((encode_label(photograph(9, 11)), decode_label), (JPEG, decode_jpeg)):
        damaged = bytearray(content)
        damaged[place % len(content)] ^= mask
        found = decode(bytes(damaged), MOST)
        assert found is None or (found.dtype == np.uint8 and found.shape[2:] == (3,))


JPEG = saved(photograph(32, 48), "JPEG")


def test_frames_are_the_same_without_the_quick_libraries_and_from_shards_of_other_writers(monkeypatch):
    image, ids = photograph(40, 56), np.arange(40 * 56, dtype=np.uint16).reshape(40, 56) * 29
    label = Label(image[..., 0], ids)
    data = record.encode("a/000000", record.StoredImage(saved(image, "JPEG"), "jpg", 40, 56), label, {})
    frames = [record.decode(data)]
    monkeypatch.setattr(record, "decode_jpeg", lambda content, most: None)
    monkeypatch.setattr(record, "decode_label", lambda content, most: None)
    frames.append(record.decode(data))
    monkeypatch.setattr(record, "encode_label", lambda label: saved(label, "PNG"))  # rows filtered, as PIL chooses
    other = record.encode("a/000000", record.StoredImage(saved(image, "JPEG"), "jpg", 40, 56), label, {})
    assert decode_label(record.split_members(other)["label.png"], MOST) is None
    frames += [record.decode(other), record.view(other), record.view(data)]
    for frame in frames:
        assert np.array_equal(frame.image, frames[0].image)
        assert np.array_equal(frame.classes, label.classes)
        assert np.array_equal(frame.instances, ids)
    for frame in frames[:3]:
        assert frame.classes.flags.c_contiguous
        assert frame.classes.flags.writeable
        assert frame.instances.dtype == np.dtype("=u2")
