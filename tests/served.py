"""A run whose network is untrained but loud: it sees many objects that come, stay and go, so that tracks can differ."""

import io
import json
from base64 import b64encode
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from post_model.network import Post
from post_model.weights import save_model
from post_platform.training import checkpoint
from post_platform.training.vocabulary import projections

NAMES, THINGS = ("road", "sky-other-merged", "car", "person"), (False, False, True, True)
LOUD = {"semantic.1": 1000, "center.2": 300, "offset.1": 30, "prev_offset.1": 30}


def loud_post(seed: int = 0) -> Post:
    """An untrained network whose outputs are as large as a trained one's."""
    torch.manual_seed(seed)
    model = Post(len(NAMES), "small", norm="group")
    with torch.no_grad():
        for name, factor in LOUD.items():
            for parameter in model.branches.get_submodule(name).parameters():
                parameter *= factor
    return model


def save_checkpoint(folder: Path, seed: int = 0) -> None:
    """The model's files of a checkpoint."""
    save_model(folder, loud_post(seed), NAMES, THINGS, projections(NAMES))


def save_run(folder: Path, run_id: str, uri: str, scores: dict[int, float | None], seed: int = 0) -> None:
    """A run's folder with a checkpoint at each step, as a training leaves it."""
    for step, score in scores.items():

        def write(path: Path, step: int = step, score: float | None = score) -> None:
            save_checkpoint(path, seed + step)
            state = {"step": step, "score": score, "mlflow_uri": uri, "mlflow_run_id": run_id, "config": "seed: 0"}
            (path / checkpoint.STATE).write_text(json.dumps(state))

        checkpoint.save(folder / checkpoint.FOLDER, step, write, keep=len(scores))


def frame(number: int, height: int = 64, width: int = 128) -> np.ndarray:
    """A street on which one thing moves right and another left. Shape: (H, W, 3) uint8."""
    image = np.full((height, width, 3), (170, 200, 230), np.uint8)
    image[height // 2 :] = (90, 90, 95)
    image[30:46, 10 + 4 * number : 34 + 4 * number] = (180, 40, 40)
    image[24:40, 80 - 2 * number : 100 - 2 * number] = (30, 160, 60)
    return image


def encoded(image: np.ndarray, kind: str = "PNG") -> str:
    """The image's file in base64."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return b64encode(buffer.getvalue()).decode()
