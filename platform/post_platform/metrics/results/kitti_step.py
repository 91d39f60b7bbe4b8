"""KITTI-STEP results: `<sequence>/<frame>.png` like the truth, R = class (255 void), G*256 + B = track."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from post_platform.datasets.files import decode_label_png, numbered, subfolders
from post_platform.errors import DataError
from post_platform.labels import UNIDENTIFIED, VOID, legal_classes, load_contract, thing_table
from post_platform.metrics.results.pair import FramePair, Results, choose, require_folder, require_frames, require_size

CONTRACT = load_contract("kitti_step")


def read(truth: Path, predictions: Path, sequences: Sequence[str] | None) -> Results:
    """Pairs of two folders of sequences; every true frame needs its PNG.

    A true thing without id is crowd; a predicted one has id 0, which is an ordinary id here. Ids of stuff are dropped.
    """
    require_folder(truth, "truth")
    require_folder(predictions, "predictions")
    true_folders, pred_folders = subfolders([truth]), subfolders([predictions])
    work: list[tuple[str, int, Path, Path]] = []
    for name in choose(list(true_folders), list(pred_folders), sequences, predictions):
        true_files, pred_files = (numbered(folders[name], (".png",)) for folders in (true_folders, pred_folders))
        require_frames(list(true_files), list(pred_files), pred_folders[name])
        work += [(name, frame, path, pred_files[frame]) for frame, path in true_files.items()]
    return Results(CONTRACT, len(work), _pairs(work))


def _pairs(work: list[tuple[str, int, Path, Path]]) -> Iterator[FramePair]:
    thing = thing_table(CONTRACT)
    for sequence, frame, true_path, pred_path in work:
        classes, instances = _maps(true_path)
        pred_classes, pred_tracks = _maps(pred_path)
        require_size(pred_classes, classes, str(pred_path))
        instances[thing[classes] & (instances == 0)] = UNIDENTIFIED
        yield FramePair(sequence, frame, classes, instances, pred_classes, pred_tracks)


def _maps(path: Path) -> tuple[np.ndarray, np.ndarray]:
    values = decode_label_png(path, str(path), "RGB")
    classes = np.ascontiguousarray(values[..., 0])
    unknown = np.flatnonzero((np.bincount(classes.reshape(-1), minlength=VOID + 1) > 0) & ~legal_classes(CONTRACT))
    if unknown.size:
        raise DataError(f"{path}: has class {unknown[0]}, must be 0..18 or {VOID}")
    instances = values[..., 1].astype(np.uint16) * 256 + values[..., 2].astype(np.uint16)
    return classes, instances * thing_table(CONTRACT)[classes]
