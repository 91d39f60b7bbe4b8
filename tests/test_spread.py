"""An evaluation spread over Ray: the same to the last bit on any number of workers, one killed on the way too."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from post_model.network import Post
from post_model.weights import save_model
from post_platform.errors import ConfigError, DataError
from post_platform.metrics.contingency import merge
from post_platform.shards.index import read_split
from post_platform.training.spread import evaluate_checkpoint
from post_platform.training.vocabulary import class_names, projections, thing_flags

DATASETS = ("coco_panoptic", "kitti_mots", "kitti_step")


@pytest.fixture(scope="module")
def splits(toy_shards):
    return tuple(read_split(toy_shards, name, "val") for name in DATASETS)


@pytest.fixture(scope="module")
def saved(splits, tmp_path_factory):
    """An untrained network: its predictions are noise, thus sensitive to every difference."""
    torch.manual_seed(0)
    names = class_names(splits, "observed")
    folder = tmp_path_factory.mktemp("checkpoint")
    model = Post(len(names), "small", False, ("semantic", "center", "offset", "prev_offset"), "group")
    save_model(folder, model, names, thing_flags(splits, names), projections(names))
    return folder


@pytest.fixture(scope="module")
def alone(saved, splits):
    return evaluate_checkpoint(saved, splits, workers=1)


def test_two_workers_give_what_one_gives(alone, saved, splits):
    told = []
    spread = evaluate_checkpoint(saved, splits, workers=2, progress=told.append)
    assert merge(spread.tables).equals(merge(alone.tables))
    assert spread.scores == alone.scores
    assert told == sorted(told)
    assert told[-1] == sum(split.index.num_rows for split in splits)


def evaluating():
    """Process ids of the workers of an evaluation that this process started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "cmdline").read_text().startswith("ray::_Worker"):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def test_a_killed_worker_is_replaced(alone, saved, splits):
    killed = []

    def kill():
        deadline = time.monotonic() + 60
        while not killed and time.monotonic() < deadline:
            for pid in evaluating()[:1]:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
            time.sleep(0.001)

    thread = threading.Thread(target=kill)
    thread.start()
    spread = evaluate_checkpoint(saved, splits, workers=2)
    thread.join()
    assert killed
    assert merge(spread.tables).equals(merge(alone.tables))
    assert spread.scores == alone.scores


def test_more_workers_than_fit_are_refused(saved, splits):
    with pytest.raises(ConfigError, match="--workers 999: Ray has room for"):
        evaluate_checkpoint(saved, splits, workers=999)


def test_a_folder_that_is_no_checkpoint_ends_it_at_once(splits, tmp_path):
    with pytest.raises(DataError, match="no usable checkpoint"):
        evaluate_checkpoint(tmp_path, splits, workers=2)
