"""Training runs in processes of their own, and SIGKILL at a moment drawn at random inside what they do."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STEPS = 24
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
        deadline = time.monotonic() + 300
        while not self._is(case):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.0005)
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

    def _is(self, case):
        """Whether the run is inside the case's moment, after its step."""
        if case.moment == "step":
            return self._step() >= case.after
        if case.moment == "validation":
            log = self.folder / "logs/rank_0.log"
            wanted = 8 if case.after < 8 else 16
            return log.exists() and f"step {wanted}: validating" in log.read_text()
        pattern = ".step_*.partial" if case.moment == "upload" else "step_*/MANIFEST.json"
        found = [path.parent.name if case.moment == "report" else path.name
                 for path in (self.folder / "checkpoints").glob(pattern)]  # fmt: skip
        return any(int("".join(filter(str.isdigit, name))) >= case.after for name in found)

    def _step(self):
        try:
            return json.loads((self.folder / "logs/progress.json").read_text())["step"]
        except (OSError, ValueError):
            return 0

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
