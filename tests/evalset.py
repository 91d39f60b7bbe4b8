"""The evaluation set in tests/data, decoded with nothing but Pillow, and what the official tools say about it."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from post_platform.metrics.contingency import frame_table, merge

FOLDER = Path(__file__).parent / "data" / "evalset"
SEQUENCES = ("0002", "0006")
FRAMES = range(20)
PERSON, CAR = 11, 13
EXPECTED = json.loads((FOLDER / "expected.json").read_text())


def step_maps(side, sequence, frame):
    """Classes and ids as the PNG holds them: R, and 256 * G + B."""
    pixels = np.asarray(Image.open(FOLDER / f"step_{side}" / sequence / f"{frame:06d}.png")).astype(np.int32)
    return pixels[..., 0], pixels[..., 1] * 256 + pixels[..., 2]


def maps(sequence, frame):
    """The four maps of a frame in our label convention (a thing without id is crowd: 65535)."""
    classes, instances = step_maps("gt", sequence, frame)
    instances[np.isin(classes, (PERSON, CAR)) & (instances == 0)] = 65535
    pred_classes, pred_tracks = step_maps("pred", sequence, frame)
    return classes.astype(np.uint8), instances.astype(np.uint16), pred_classes.astype(np.uint8), pred_tracks


@cache
def table(dataset="kitti_step") -> pa.Table:
    return merge([frame_table(dataset, s, f, *maps(s, f)) for s in SEQUENCES for f in FRAMES])


@cache
def scored_table() -> pa.Table:
    """The same with the confidence of every predicted thing."""
    confidences = json.loads((FOLDER / "scores.json").read_text())
    return merge(
        [
            frame_table("kitti_step", s, f, *maps(s, f), _scores(confidences[f"{s}/{f:06d}"]))
            for s in SEQUENCES
            for f in FRAMES
        ]
    )


def _scores(listed):
    return {tuple(int(part) for part in name.split("/")): score for name, score in listed.items()}
