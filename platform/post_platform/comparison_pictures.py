"""The pictures of runs next to each other: overlays and timelines, fetched from MLflow and made small."""

from __future__ import annotations

import io
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from post_platform.experiment_reader import ExperimentReader, StoredRun

WIDTH = 1100  # of a picture in the page: what a timeline's texts need
MOST_PIXELS = 64_000_000
QUALITY = 78  # WebP: about 40 kB an overlay, 60 kB a timeline
_TIMELINE = re.compile(r"timelines/step_(?P<step>\d+)/(?P<dataset>[^/]+)/(?P<name>[^/]+)\.png")


@dataclass(frozen=True)
class Picture:
    """A small WebP of one run, of the step it was logged at."""

    content: bytes
    size: tuple[int, int]
    step: int


@dataclass(frozen=True)
class Panel:
    """The same thing as every run saw it; None where a run has no such picture."""

    dataset: str
    name: str
    pictures: tuple[Picture | None, ...]


def gather_pictures(
    reader: ExperimentReader,
    runs: Sequence[tuple[str, StoredRun]],
    datasets: Iterable[str],
    scratch: Path,
    most: int,
    notes: list[str],
) -> tuple[list[Panel], list[Panel]]:
    """(Overlays, timelines) of each run's last step that has some, at most `most` of each per dataset.

    Those that all runs have come first. What was deleted, or cannot be read, is said in `notes`.
    """

    def panels(folder: str, pattern: re.Pattern[str], expected: Callable[[StoredRun], bool]) -> list[Panel]:
        found = []
        for letter, run in runs:
            listed = _last(reader.files(run.run_id, folder), pattern)
            found.append(listed)
            if not listed and expected(run):
                notes.append(f"the {folder} of {letter} are not in MLflow: deleted, or never stored")
        names = {name for listed in found for name in listed}
        by_dataset: defaultdict[str, list[str]] = defaultdict(list)
        for dataset, name in sorted(names, key=lambda key: (-sum(key in listed for listed in found), key)):
            by_dataset[dataset].append(name)
        result = []
        for dataset in sorted(by_dataset):
            for name in by_dataset[dataset][:most]:
                pictures = []
                for (letter, run), listed in zip(runs, found, strict=True):
                    path, step = listed.get((dataset, name), ("", 0))
                    copy = reader.fetch(run.run_id, path, scratch / letter) if path else None
                    pictures.append(shrink(copy, step) if copy else None)
                    if path and pictures[-1] is None:
                        notes.append(f"{letter}: {path} cannot be read")
                result.append(Panel(dataset, name, tuple(pictures)))
        return result

    for letter, _ in runs:
        (scratch / letter).mkdir()
    # MLflow flattens the slash in a picture's name, which datasets' names cannot be told from: kitti_mots_0002.
    known = "|".join(re.escape(name) for name in sorted(datasets, key=len, reverse=True)) or "(?!)"
    overlay = rf"images/(?P<dataset>{known})[~_](?P<name>[^/]+?)\+step\+(?P<step>\d+)\+timestamp\+[^/]*\.png"
    overlays = panels(
        "images", re.compile(overlay), lambda run: run.tags.get("mlflow.loggedImages", "").lower() == "true"
    )
    followed = re.compile(r"val/[^/]+/IDS")
    timelines = panels("timelines", _TIMELINE, lambda run: any(map(followed.fullmatch, run.metrics)))
    return overlays, timelines


def shrink(path: Path, step: int) -> Picture | None:
    """A PNG as a WebP no wider than the page needs; None where it is no picture, or one that is too large."""
    try:
        with warnings.catch_warnings(), Image.open(path, formats=["PNG"]) as image:
            warnings.simplefilter("ignore")
            if image.width * image.height > MOST_PIXELS:
                return None
            picture = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    picture.thumbnail((WIDTH, 4 * WIDTH))
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=QUALITY)
    return Picture(buffer.getvalue(), picture.size, step)


def _last(paths: Sequence[str], pattern: re.Pattern[str]) -> dict[tuple[str, str], tuple[str, int]]:
    """{(dataset, name): (path, step)} of the last step among the paths."""
    found = [(match, path) for path in paths if (match := pattern.fullmatch(path))]
    last = max((int(match["step"]) for match, _ in found), default=0)
    return {(m["dataset"], m["name"]): (path, last) for m, path in found if int(m["step"]) == last}
