"""For tests of readers: files in official layouts, and what becomes of a frame on its way through a shard."""

import numpy as np
from PIL import Image

from post_platform.datasets import reader
from post_platform.shards import record
from post_platform.shards.frame import encode_frame


def save(path, array, **options):
    """An array as an image file, in PIL's own encoding of its type and shape."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array)).save(path, **options)


def photograph(path, height, width):
    """A grey image of this size."""
    save(path, np.full((height, width, 3), 90, np.uint8))


def write(path, text):
    """A text file, with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def run_lengths(mask):
    """COCO's uncompressed run lengths, counted pixel by pixel down the columns."""
    counts, value = [0], 0
    for pixel in np.asarray(mask, int).T.reshape(-1).tolist():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return {"size": list(np.shape(mask)), "counts": counts}


def compressed(mask):
    """COCO's compressed run lengths, spelled by hand: 5 bits a character, differences from the fourth run on."""
    counts, text = run_lengths(mask)["counts"], ""
    for place, count in enumerate(counts):
        value = count - (counts[place - 2] if place > 2 else 0)
        while True:
            bits, value = value & 31, value >> 5
            more = not (value == -1 if bits & 16 else value == 0)
            text += chr(48 + (bits | (32 if more else 0)))
            if not more:
                break
    return text


def through_a_shard(dataset, split, source):
    """Every frame of a split as a shard gives it back, by key."""
    frames = (encode_frame(dataset, split, ref, lossless=False)[0] for ref in reader(dataset).frames(source, split))
    return {frame.key: frame for frame in map(record.decode, frames)}
