"""Photographs of the usual kinds as RGB pixels, the way a viewer shows them; none of them is trusted."""

from __future__ import annotations

import io
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from post_platform.datasets.files import MAX_PIXELS
from post_platform.errors import DataError

FORMATS = ("BMP", "JPEG", "PNG", "WEBP")
ORIENTATION = 0x0112  # the tag's number in Exif
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, OverflowError, Image.DecompressionBombError, zlib.error)
"""What PIL raises for a file that is no image, or is damaged."""


def decode_image(content: bytes, where: str, most_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """RGB pixels, upright as the camera's tag says; of 16 bits the upper 8; alpha is dropped.

    Shape: (H, W, 3).
    Raises: DataError naming `where` for what is no image, is damaged, or has more pixels than `most_pixels`.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > most_pixels:
                raise DataError(f"{where}: is {image.height}x{image.width}, more than {most_pixels} pixels")
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):
                upright = Image.fromarray((np.asarray(upright).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
            elif upright.mode == "P" and "transparency" in upright.info:
                upright = upright.convert("RGBA")
            return np.array(upright.convert("RGB"))
    except DAMAGE as error:
        raise DataError(f"{where}: image cannot be read: {' '.join(str(error).split())}") from error
