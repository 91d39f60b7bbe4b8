"""Runs that are really killed, at random moments, see the same data and end with the same weights as one that is not.

Three seeds here, one of each victim, moment and change of workers; `make test-cluster` runs ten.
"""

import os

import pytest
from killing import Case, Run, assert_nothing_lost, mlflow_run_id

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


@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: f"{seed}-{Case.drawn(seed).victim}-{Case.drawn(seed).moment}")
def test_a_killed_run_is_the_uninterrupted_one(seed, whole, toy_shards, runs):
    case = Case.drawn(seed)
    before, after = case.worlds
    run = Run(toy_shards, runs, f"killed_{seed}", before)
    try:
        run.kill(case)
        began_as = mlflow_run_id(run.folder)
        if case.victim != "worker":
            run = Run(toy_shards, runs, f"killed_{seed}", after)
        run.finish()
    finally:
        run.end()
    assert_nothing_lost(run.folder, whole, began_as, same_bits=case.worlds == (2, 2))
