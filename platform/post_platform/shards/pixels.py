"""Pixels of the two kinds of file that most shards hold: those that PIL gives, in less time; None where PIL must judge.

A label is written without row filters, which costs about as many bytes (ids repeat exactly, and deflate finds that by
itself) and spares the reader all arithmetic: the inflated rows are the pixels. Any PNG reader opens it.
"""

from __future__ import annotations

import struct
import zlib as slow_zlib

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from zlib_ng import zlib_ng as zlib

LEVEL = 8  # of deflate; unfiltered labels take a quarter more bytes at 7, and up to twice the time at 9
SIGNATURE = b"\x89PNG\r\n\x1a\n"
RGB_8 = b"\x08\x02\0\0\0"  # bits, colour type, compression, filter method, no interlace
END = b"\0\0\0\0IEND\xae\x42\x60\x82"


def decode_jpeg(content: bytes, most_pixels: int) -> NDArray[np.uint8] | None:
    """RGB pixels of an ordinary JPEG; None for another file, a colour space to convert, damage, or too many pixels."""
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(content)
        if space not in ("YCbCr", "Gray") or height * width > most_pixels:
            return None
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(content)
    except ValueError:
        return None
    return pixels


def encode_label(pixels: NDArray[np.uint8]) -> bytes:
    """An (H, W, 3) array as a PNG whose rows are unfiltered; same pixels, same bytes."""
    height, width, _ = pixels.shape
    rows = np.zeros((height, 1 + 3 * width), np.uint8)
    rows[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack(">II", width, height) + RGB_8
    return SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(rows.tobytes(), LEVEL)) + END


def decode_label(content: bytes, most_pixels: int) -> NDArray[np.uint8] | None:
    """The (H, W, 3) read-only pixels of a PNG as `encode_label` writes it; None for any other, or too many pixels."""
    if len(content) < 57 or content[:8] != SIGNATURE or content[24:29] != RGB_8:
        return None
    width, height, length = *struct.unpack(">II", content[16:24]), int.from_bytes(content[33:37])
    header, data = content[16:29], content[41 : 41 + length]
    whole = SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + END  # compared: lengths, names and CRCs too
    if whole != content or not 0 < width * height <= most_pixels:
        return None
    size = height * (1 + 3 * width)
    inflater = zlib.decompressobj()
    try:
        rows = inflater.decompress(data, size + 1)
    except zlib.error:  # type: ignore[misc]  # its stub has no class
        return None
    if (
        len(rows) != size
        or not inflater.eof
        or inflater.unused_data
        or np.frombuffer(rows, np.uint8)[:: 1 + 3 * width].any()
    ):
        return None
    return np.ndarray((height, width, 3), np.uint8, rows, 1, (1 + 3 * width, 3, 1))


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", slow_zlib.crc32(name + content))
