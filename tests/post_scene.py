"""Scenes for the fusion test: what a good network would say of ellipses on a street, reproducible bit by bit."""

import numpy as np

THINGS = list(range(11, 19))


def make_scene(height, width, objects, seed):
    """Return class x 1000 + instance (stuff: class x 1000, void: -1) and the (id, class) of what is visible."""
    rs = np.random.RandomState(seed)
    scene = np.full((height, width), 10 * 1000, np.int32)
    for block in range(16):
        block_class, top = [2, 8, 3, 9][rs.randint(4)], height * rs.randint(10, 45) // 100
        scene[top : height * 55 // 100, block * (width // 16) : (block + 1) * (width // 16)] = block_class * 1000
    scene[height * 55 // 100 : height * 65 // 100] = 1000
    scene[height * 65 // 100 :] = 0
    for _ in range(20):
        sign = 5 + rs.randint(3)
        y, x = rs.randint(height * 30 // 100, height * 55 // 100), rs.randint(0, width - 8)
        scene[y : y + height * 8 // 100, x : x + max(2, width // 300)] = sign * 1000
    yy, xx = np.mgrid[0:height, 0:width]
    ids = []
    for number in range(1, objects + 1):
        thing = THINGS[rs.randint(len(THINGS))]
        cy, cx = rs.randint(height * 35 // 100, height * 90 // 100), rs.randint(0, width)
        ry = rs.randint(max(3, height // 60), max(5, height // 9))
        rx = rs.randint(max(3, height // 60), max(5, height // 6))
        scene[((yy - cy) * rx) ** 2 + ((xx - cx) * ry) ** 2 <= (rx * ry) ** 2] = thing * 1000 + number
        ids.append((thing * 1000 + number, thing))
    scene[height - height // 20 :] = -1
    scene[:, : width // 100] = -1
    present = set(np.unique(scene).tolist())
    return scene, [pair for pair in ids if pair[0] in present]


def fake_outputs(scene, ids, seed, sigma=10):
    """Return noisy classes (H, W), centre heat (1, H, W) and offsets (2, H, W), with equal values."""
    height, width = scene.shape
    rs = np.random.RandomState(seed)
    classes = np.where(scene >= 0, scene // 1000, 0).astype(np.int64)
    blocks = (height + 7) // 8, (width + 7) // 8
    flip, other = rs.randint(0, 100, blocks) < 2, rs.randint(0, 19, blocks)
    flip, other = (np.kron(a, np.ones((8, 8), np.int64))[:height, :width] for a in (flip, other))
    classes = np.where(flip > 0, other, classes)
    yy, xx = np.mgrid[0:height, 0:width].astype(np.float64)
    center, offset = np.zeros((height, width)), np.zeros((2, height, width))
    reach = 3 * sigma + 1
    for number, _ in ids:
        ys, xs = np.nonzero(scene == number)
        cy, cx = ys.mean(), xs.mean()
        peak, iy, ix = rs.randint(5, 101) / 100.0, round(cy), round(cx)
        patch = np.s_[max(0, iy - reach) : iy + reach + 1, max(0, ix - reach) : ix + reach + 1]
        bell = peak * np.exp(-((yy[patch] - iy) ** 2 + (xx[patch] - ix) ** 2) / (2.0 * sigma**2))
        center[patch] = np.maximum(center[patch], bell)
        offset[0][ys, xs], offset[1][ys, xs] = cy - ys, cx - xs
    center = np.round(center * 256) / 256 + rs.randint(0, 33, (height, width)) / 2048.0
    offset = np.round(offset * 4) / 4 + rs.randint(-24, 25, (2, height, width)) / 8.0
    return classes, center[None].astype(np.float32), offset.astype(np.float32)


def fake_logits(classes, number=19):
    """Return logits (number, H, W) with their maximum at `classes`."""
    y, x = np.arange(classes.shape[0])[:, None] // 8, np.arange(classes.shape[1])[None] // 8
    return np.stack([np.where(classes == c, 6.0, 0.25 * ((y + x + 3 * c) % 4)) for c in range(number)]).astype("f4")
