"""Videos of rectangles whose scores one can work out by hand; the official tools were run on the same ones."""

import numpy as np

from post_platform.metrics.contingency import frame_table, merge

VOID = 255


def frame(number, truth, pred):
    """100x100; objects are (class, id, y, x, height, width) on background 0."""
    maps = []
    for objects in (truth, pred):
        classes, ids = np.zeros((100, 100), np.uint8), np.zeros((100, 100), np.int32)
        for native, identity, y, x, height, width in objects:
            classes[y : y + height, x : x + width], ids[y : y + height, x : x + width] = native, identity
        maps += [classes, ids]
    return frame_table("d", "0000", number, *maps)


def car(identity, native=1):
    return (native, identity, 10, 10, 40, 40)


def history(ids):
    """One car that stays, matched under the given ids; 0 = not found."""
    return [([car(1)], [car(i)] if i else []) for i in ids]


def video(frames):
    """The table of one sequence, from (truth objects, predicted objects) per frame."""
    return merge([frame(number, truth, pred) for number, (truth, pred) in enumerate(frames)])
