"""What the networks of a study see: two frames per dataset, kept as each run is scored and joined side by side."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from post_model.predictor import Predictor, Tracking
from post_platform import render
from post_platform.labels import load_contract, thing_table
from post_platform.shards.index import Split
from post_platform.study_plan import Part, Recipe, Side
from post_platform.training.evaluate import Picture, open_model, run_sequence, sequences
from post_platform.training.vocabulary import projection_of

FRAMES = 2
WIDTH = 480  # pixels of a panel, at least


def look(checkpoint: Path, splits: Sequence[Split], way: Tracking, folder: Path, name: str) -> None:
    """Keep what a run sees in the middle of each split's first sequence, with the frames and their truth.

    Args:
        checkpoint: of the run.
        splits: what is looked at.
        way: of tracking.
        folder: of the study's pictures.
        name: of the run's recipe.
    """
    model, card = open_model(checkpoint)
    for split in splits:
        contract, sequence = load_contract(split.dataset), sequences([split])[0]
        predictor = Predictor(model, projection_of(contract, card.class_names), way)
        until = islice(run_sequence(predictor, contract, sequence), (sequence.stop - sequence.start) // 2 + FRAMES)
        for number, (_, picture) in enumerate(deque(until, FRAMES)):
            image, truth, prediction = _panels(picture)
            for what, panel in (("image", image), ("truth", truth), (f"{name}_{way}", prediction)):
                render.save_png(folder / _file(split.dataset, number, what), panel)


def sheet(part: Part, names: Mapping[Recipe, str], folder: Path) -> np.ndarray | None:
    """A row per dataset (for tracking one per frame): image, truth, and both sides of the part; None without pictures.

    Shape: (H, W, 3) uint8.
    """
    rows, captions = [], []
    sides = {row.dataset: (row.left, row.right) for row in part.rows}
    for dataset, (left, right) in sides.items():
        for number in range(FRAMES if part.paired else 1):
            shown = ("image", "truth", _seen(left, names), _seen(right, names))
            files = [folder / _file(dataset, number, what) for what in shown]
            if all(file.is_file() for file in files):
                rows.append([np.asarray(Image.open(file).convert("RGB")) for file in files])
                captions.append([dataset])
    return render.contact_sheet(rows, ["image", "truth", part.left, part.right], captions) if rows else None


def _seen(side: Side, names: Mapping[Recipe, str]) -> str:
    return f"{names[side.recipe]}_{side.tracking}"


def _file(dataset: str, number: int, what: str) -> str:
    return f"{dataset}_{number}_{what}.png"


def _panels(picture: Picture) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image, truth and prediction, large enough to look at, objects in the colours of their tracks."""
    contract = load_contract(picture.dataset)
    colors, things = render.palette(contract), thing_table(contract)
    scale = max(1, -(-WIDTH // picture.image.shape[1]))
    image = render.enlarge(picture.image, scale)

    def painted(labels: render.Labels) -> np.ndarray:
        classes, instances = (render.enlarge(one, scale) for one in labels)
        return render.overlay(image, classes, instances, colors, things)

    return image, painted(picture.truth), painted(picture.prediction)
