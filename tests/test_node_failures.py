"""Nodes, workers and drivers of a real cluster are killed while a job trains, which loses nothing.

Each victim once, at a moment drawn at random; `POST_NODE_SEEDS="0 1 2 ... 15"` goes through all victims and moments.
The times to recover are printed (`-s`), and written to the file that `POST_RECOVERY` names.
"""

import contextlib
import os
import random
import signal
import time
from pathlib import Path

import pytest
from killing import MOMENTS, SETTINGS, Run, assert_nothing_lost, inside, mlflow_run_id, reached
from ray_nodes import Nodes

from post_platform.training import checkpoint, ledger

pytestmark = pytest.mark.slow
VICTIMS = ("raylet", "head", "worker", "driver")
SEEDS = [int(seed) for seed in os.environ.get("POST_NODE_SEEDS", "0 5 10 15").split()]
WAIT = 600


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("nodes")


@pytest.fixture(scope="module")
def whole(toy_shards, runs):
    """A run on this machine that nothing interrupts."""
    run = Run(toy_shards, runs, "whole", 2)
    run.finish()
    return run.folder


@pytest.fixture(scope="module")
def nodes():
    with Nodes(3) as nodes:
        yield nodes


class Submission:
    """A training job and what can be seen of it from outside."""

    def __init__(self, nodes, shards, runs, name, workers, *overrides):
        self.nodes, self.folder = nodes, runs / name
        known = (f"data.root={shards}", f"run.dir={runs}", f"run.name={name}", f"train.workers={workers}")
        self.id = nodes.submit("python", "pipelines/train.py", *SETTINGS, *known, *overrides, wait=False)

    def wait_until(self, condition, pause=0.2):
        deadline = time.monotonic() + WAIT
        looked = time.monotonic()
        while not (found := condition()):
            if time.monotonic() - looked > 10:
                looked = time.monotonic()
                assert self.nodes.status(self.id) in ("PENDING", "RUNNING"), self.nodes.job_log(self.id)
                assert looked < deadline, self.nodes.job_log(self.id)
            time.sleep(pause)
        return found

    def finish(self):
        with contextlib.suppress(AssertionError):
            self.wait_until(lambda: self.nodes.status(self.id) == "SUCCEEDED", pause=1)
        assert self.nodes.status(self.id) == "SUCCEEDED", self.nodes.job_log(self.id)

    def workers(self):
        """Process id of each training worker -> its node."""
        return {process: node for node in self.nodes.nodes for process in node.processes("RayTrainWorker")}

    def progress(self):
        """When the run last told its driver of a step."""
        with contextlib.suppress(OSError):
            return (self.folder / "logs/progress.json").stat().st_mtime
        return 0.0

    def first_step_after(self, old):
        """Wait for the first step of workers that are not the `old` ones; the time of it."""
        self.wait_until(lambda: (found := self.workers()) and not old & found.keys())
        ready = time.time()
        self.wait_until(lambda: self.progress() > ready, pause=0.05)
        return self.progress()


def record(text):
    print(text)
    if file := os.environ.get("POST_RECOVERY"):
        with Path(file).open("a") as stream:
            stream.write(f"{text}; load {os.getloadavg()[0]:.1f}\n")


def renew_head(nodes):
    """The head is gone with all it knew: a new one, which the other nodes join when they are started again."""
    nodes.nodes[0].crash()
    for node in nodes.nodes[1:]:
        node.stop()
    others = len(nodes.nodes) - 1
    del nodes.nodes[1:]
    nodes.start_head()
    for _ in range(others):
        nodes.join()
    nodes.wait_for(others + 1)


@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: f"{VICTIMS[seed % 4]}-{MOMENTS[seed // 4]}")
def test_a_job_survives(seed, nodes, whole, toy_shards, runs):
    """Three workers on three nodes of two slots; what is left has room for as many."""
    victim, moment = VICTIMS[seed % 4], MOMENTS[seed // 4]
    rng = random.Random(seed)
    job = Submission(nodes, toy_shards, runs, f"job_{seed}", 3)
    after = rng.randrange(4, 16)
    job.wait_until(lambda: inside(job.folder, moment, after), pause=0.001)
    old, began_as, killed = job.workers(), mlflow_run_id(job.folder), time.time()
    if victim == "worker":
        process = rng.choice(list(old))
        os.kill(process, signal.SIGKILL)
    elif victim == "raylet":
        lost = next(node for node in old.values() if node is not nodes.nodes[0])
        lost.kill("raylet/raylet")
    elif victim == "driver":
        nodes.nodes[0].kill("pipelines/train.py")
        job = Submission(nodes, toy_shards, runs, job.folder.name, 3)
    else:
        renew_head(nodes)
        record(f"a new head and its nodes are up after {time.time() - killed:.1f} s")
        job = Submission(nodes, toy_shards, runs, job.folder.name, 3)
    record(f"{victim} in a {moment}: {job.first_step_after(old.keys()) - killed:.1f} s to the first new step")
    job.finish()
    if victim == "raylet":
        lost.stop()
        nodes.nodes.remove(lost)
        nodes.join()
        nodes.wait_for(3)
    assert_nothing_lost(job.folder, whole, began_as)


def test_an_elastic_job_shrinks_with_its_nodes_and_grows_with_them(nodes, toy_shards, runs):
    """The last test: room for 5 workers on three nodes of two slots, for 3 on two, for 5 again; 4 are wanted."""
    endless = ("train.steps=100000", "train.checkpoint_every=20", "eval.every=0")
    job = Submission(nodes, toy_shards, runs, "elastic", "{min: 1, max: 4}", *endless)
    job.wait_until(lambda: reached(job.folder) > 25)
    first, began_as, killed = job.workers(), mlflow_run_id(job.folder), time.time()
    assert len(first) == 4
    lost = next(node for node in first.values() if node is not nodes.nodes[0])
    lost.kill("raylet/raylet")
    record(f"raylet, fewer workers: {job.first_step_after(first.keys()) - killed:.1f} s to the first new step")
    fewer = job.workers()
    assert len(fewer) == 3
    before = committed(job.folder)
    job.wait_until(lambda: reached(job.folder) > before + 3)
    lost.stop()
    nodes.nodes.remove(lost)
    joined = time.time()
    nodes.join()
    nodes.wait_for(3)
    record(f"a node is up after {time.time() - joined:.1f} s")
    joined = time.time()
    record(f"a node joins: {job.first_step_after(fewer.keys()) - joined:.1f} s to the first step of more workers")
    assert len(job.workers()) == 4
    job.wait_until(lambda: reached(job.folder) > committed(job.folder) + 5)
    nodes.ray("job", "stop", job.id)
    steps = committed(job.folder)
    job = Submission(nodes, toy_shards, runs, "elastic", 2, f"train.steps={steps + 2}", *endless[1:])
    job.finish()
    whole = Run(toy_shards, runs, "whole_elastic", 2, f"train.steps={steps + 2}", *endless[1:])
    whole.finish()
    assert (job.folder / ledger.NAME).read_bytes() == (whole.folder / ledger.NAME).read_bytes()
    assert mlflow_run_id(job.folder) == began_as
    assert committed(job.folder) == steps + 2


def committed(folder):
    newest = checkpoint.latest(folder / "checkpoints")
    return checkpoint.read_state(newest)["step"] if newest else 0
