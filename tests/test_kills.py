"""Runs that are really killed, at random moments, see the same data and end with the same weights as one that is not.

Three seeds here, one of each victim, moment and change of workers; `make test-cluster` runs ten.
"""

import hashlib
import json
import os

import pytest
from killing import STEPS, Case, Run
from mlflow import MlflowClient

from post_platform.training import checkpoint, ledger

SEEDS = [int(seed) for seed in os.environ.get("POST_KILL_SEEDS", "6 13 17").split()]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("kills")


@pytest.fixture(scope="module")
def whole(toy_shards, runs):
    """A run on two workers that nothing interrupts."""
    run = Run(toy_shards, runs, "whole", 2)
    run.finish()
    return run.folder


def logged(folder, metric):
    """Step -> value of a metric of the run; a step that is stored twice is an error."""
    stored = json.loads((folder / "run.json").read_text())
    history = MlflowClient(stored["mlflow_uri"]).get_metric_history(stored["mlflow_run_id"], metric)
    assert len({entry.step for entry in history}) == len(history), f"{metric}: a step is doubled"
    return {entry.step: entry.value for entry in history}


@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: f"{seed}-{Case.drawn(seed).victim}-{Case.drawn(seed).moment}")
def test_a_killed_run_is_the_uninterrupted_one(seed, whole, toy_shards, runs):
    case = Case.drawn(seed)
    before, after = case.worlds
    run = Run(toy_shards, runs, f"killed_{seed}", before)
    try:
        run.kill(case)
        if case.victim != "worker":
            run = Run(toy_shards, runs, f"killed_{seed}", after)
        run.finish()
    finally:
        run.end()
    assert (run.folder / ledger.NAME).read_bytes() == (whole / ledger.NAME).read_bytes()
    newest = checkpoint.latest(run.folder / "checkpoints")
    checkpoint.verify(newest)
    assert checkpoint.read_state(newest)["step"] == STEPS
    expected, losses = logged(whole, "train/loss/total"), logged(run.folder, "train/loss/total")
    assert sorted(losses) == list(range(1, STEPS + 1)), f"{case}: a step is missing"
    if case.worlds == (2, 2):
        assert losses == expected, f"{case}: the loss is not continued bit by bit"
        weights = [hashlib.sha256((folder / "model.safetensors").read_bytes()).digest()
                   for folder in (newest, checkpoint.latest(whole / "checkpoints"))]  # fmt: skip
        assert weights[0] == weights[1]
    else:
        assert losses == pytest.approx(expected, rel=0.05), f"{case}: another world size, but no other mathematics"
    assert sorted(logged(run.folder, "val/mean/score")) == [8, 16, STEPS]
