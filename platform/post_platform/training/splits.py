"""Which converted splits a run is trained and scored on."""

from __future__ import annotations

import logging

import yaml

from post_platform import storage
from post_platform.config import RunConfig
from post_platform.errors import DataError, nearest
from post_platform.shards.index import Split, converted, read_split
from post_platform.training import checkpoint

logger = logging.getLogger(__name__)


def splits_of(root: str, datasets: tuple[str, ...] | None, split: str) -> tuple[Split, ...]:
    """One split of each requested dataset, by default of every converted one that has it.

    Raises:
        DataError: a dataset is not converted, or none has this split.
    """
    found = converted(root)
    for name in datasets or ():
        if name not in found:
            raise DataError(
                f"dataset {name!r} is not converted under {root}{nearest(name, found)}",
                f"python pipelines/convert.py {name} --source <folder> --out {root}",
            )
        if split not in found[name]:
            raise DataError(
                f"{name} under {root} has no split {split!r}; it has {', '.join(sorted(found[name]))}",
                f"python pipelines/convert.py {name} --source <folder> --out {root} --split {split}",
            )
    names = datasets or tuple(name for name in found if split in found[name])
    if not names:
        have = "; ".join(f"{name}: {', '.join(sorted(splits))}" for name, splits in found.items())
        raise DataError(f"no dataset under {root} has a split {split!r}; there are {have}")
    return tuple(read_split(root, name, split) for name in names)


def scored_splits(config: RunConfig, trained: tuple[str, ...]) -> tuple[Split, ...]:
    """The validation splits of the datasets that are trained on; some publish none, or none with labels.

    Raises:
        DataError: none of them has one.
    """
    root, split = config.data.root, config.data.val_split
    have = converted(root)
    present = tuple(name for name in trained if split in have[name])
    val = splits_of(root, present or trained, split)
    labelled = tuple(one for one in val if one.manifest["labelled_frames"])
    if not labelled:
        raise DataError(f"no frame of {', '.join(f'{name}/{split}' for name in present)} has a label: nothing to score")
    silent = [name for name in trained if name not in {one.dataset for one in labelled}]
    if silent:
        logger.warning("trained on, but not scored, without labels in a split %r: %s", split, ", ".join(silent))
    return labelled


def trained_splits(location: storage.Location, root: str) -> tuple[Split, ...] | None:
    """The splits that a checkpoint was trained on, from where they lay then or else under `root`; None: they are gone.

    A checkpoint of imported weights was trained on nothing of ours.
    """
    folder = checkpoint.fetch(location)
    if not (folder / "state.json").is_file():
        return ()
    config = yaml.safe_load(checkpoint.read_state(folder)["config"])
    names = config["data.datasets"]
    for place in (config["data.root"], root):
        try:
            return splits_of(place, tuple(names) if names else None, config["data.train_split"])
        except DataError:
            continue
    return None
