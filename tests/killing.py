"""Training runs in processes of their own, SIGKILL at a random moment inside what they do, and what must be left."""

import contextlib
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow import MlflowClient

from post_platform.training import checkpoint, ledger

ROOT = Path(__file__).resolve().parent.parent
STEPS = 24
VALIDATED = [8, 16, 24]
SETTINGS = (
    "data.crop=[32,64]",
    "model.backbone=small",
    "train.global_batch=6",
    f"train.steps={STEPS}",
    "train.checkpoint_every=3",
    "train.log_every=1",
    "eval.every=8",
    "eval.overlays=1",
)
MOMENTS = ("step", "validation", "report", "upload")
VICTIMS = ("worker", "driver", "cluster")
WORLDS = ((2, 2), (2, 1), (1, 3))


@dataclass(frozen=True)
class Case:
    """Who is killed, inside what, after which step, and on how many workers before and after."""

    victim: str
    moment: str
    after: int
    worlds: tuple[int, int]
    jitter: float  # seconds between the first sign of the moment and the kill

    @classmethod
    def drawn(cls, seed: int) -> "Case":
        """The case of a seed; consecutive seeds go through all victims and worlds."""
        rng = random.Random(seed)
        victim, worlds = VICTIMS[seed % 3], WORLDS[seed // 3 % 3]
        if victim == "worker":  # replaced in the same world
            worlds = (2, 2)
        return cls(victim, rng.choice(MOMENTS), rng.randrange(4, 16), worlds, rng.uniform(0, 0.02))


class Run:
    """One run of pipelines/train.py, in a session of its own."""

    def __init__(self, shards, runs, name, workers, *overrides):
        self.folder, self.log = runs / name, runs / f"{name}.log"
        known = (f"data.root={shards}", f"run.dir={runs}", f"run.name={name}", f"train.workers={workers}")
        command = [sys.executable, str(ROOT / "pipelines/train.py"), *SETTINGS, *known, *overrides]
        with self.log.open("a") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)

    def finish(self, timeout=600):
        """Wait for the end, which must be a good one."""
        assert self.process.wait(timeout) == 0, self.log.read_text()

    def kill(self, case):
        """SIGKILL the case's victim at its moment."""
        wait_until(lambda: inside(self.folder, case.moment, case.after), self.process, self.log, pause=0.0005)
        time.sleep(case.jitter)
        if case.victim == "worker":
            os.kill(random.Random(case.after).choice(self._workers()), signal.SIGKILL)
        elif case.victim == "driver":
            self.process.kill()
        else:
            os.killpg(self.process.pid, signal.SIGKILL)
        if case.victim != "worker":
            self.process.wait()

    def end(self):
        """Leave nothing behind."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _workers(self):
        """Process ids of this run's training workers."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                session = int((folder / "stat").read_text().rpartition(")")[2].split()[3])
                if session == self.process.pid and "RayTrainWorker" in (folder / "cmdline").read_text():
                    found.append(int(folder.name))
            except OSError:
                continue
        return found


def wait_until(ready, process, log, seconds=300, pause=0.05):
    """Wait for something that a living process does."""
    deadline = time.monotonic() + seconds
    while not ready():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(pause)


def reached(folder):
    """Step that a run is at by what it tells the driver."""
    try:
        return json.loads((folder / "logs/progress.json").read_text())["step"]
    except (OSError, ValueError):
        return 0


def inside(folder, moment, after):
    """Whether a run is inside a moment, after some step."""
    if moment == "step":
        return reached(folder) >= after
    if moment == "validation":
        wanted = 8 if after < 8 else 16
        log = folder / "logs/rank_0.log"
        return log.exists() and f"step {wanted}: validating" in log.read_text()
    pattern = ".step_*.partial" if moment == "upload" else "step_*/MANIFEST.json"
    names = [str(path.relative_to(folder)) for path in (folder / "checkpoints").glob(pattern)]
    return any(int(re.search(r"step_(\d+)", name)[1]) >= after for name in names)


def logged(folder, metric):
    """Step -> value of a metric in the run's MLflow run; a step that is stored twice is an error."""
    stored = json.loads((folder / "run.json").read_text())
    history = MlflowClient(stored["mlflow_uri"]).get_metric_history(stored["mlflow_run_id"], metric)
    assert len({entry.step for entry in history}) == len(history), f"{metric}: a step is doubled"
    return {entry.step: entry.value for entry in history}


def assert_nothing_lost(folder, whole, began_as, same_bits=False):
    """A run that was killed saw the data of one that was not, ended where it did, and told the same MLflow run so."""
    assert (folder / ledger.NAME).read_bytes() == (whole / ledger.NAME).read_bytes()
    newest = checkpoint.latest(folder / "checkpoints")
    checkpoint.verify(newest)
    assert checkpoint.read_state(newest)["step"] == STEPS
    assert mlflow_run_id(folder) == began_as, "another MLflow run"
    expected, losses = logged(whole, "train/loss/total"), logged(folder, "train/loss/total")
    assert sorted(losses) == list(range(1, STEPS + 1)), "a step is missing"
    assert sorted(logged(folder, "val/mean/score")) == VALIDATED
    if same_bits:
        assert losses == expected, "the loss is not continued bit by bit"
        weights = [hashlib.sha256((checkpoint.latest(run / "checkpoints") / "model.safetensors").read_bytes()).digest()
                   for run in (folder, whole)]  # fmt: skip
        assert weights[0] == weights[1]
    else:
        assert losses == pytest.approx(expected, rel=0.05), "another world size, but no other mathematics"


def mlflow_run_id(folder):
    """Id of the MLflow run that a run's folder names."""
    return json.loads((folder / "run.json").read_text())["mlflow_run_id"]
