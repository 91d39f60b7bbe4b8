"""The trials of a search: what is known of each, and the scheduler that may end one early."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from post_platform import storage
from post_platform.config import RunConfig
from post_platform.errors import PostError
from post_platform.search_config import SearchConfig, with_weights
from post_platform.training.run_files import folder_of
from post_platform.trials import ask_to_stop


@dataclass
class Trial:
    """One recipe, or a repetition of one with another seed, and how far it came.

    `reports` are its validations: {"step", "score", "datasets": {name: headline score}}.
    """

    number: int
    weights: dict[str, float]
    seed: int
    repeats: bool = False  # the trial of its number, with another seed
    state: Literal["running", "complete", "stopped", "failed"] = "running"
    reports: list[dict[str, Any]] = field(default_factory=list)
    reason: str = ""
    run_id: str = ""
    seconds: float = 0.0

    @property
    def name(self) -> str:
        """The name of its run."""
        return f"trial_{self.number:03d}" + (f"_seed_{self.seed}" if self.repeats else "")

    @property
    def step(self) -> int:
        """The step of its last validation."""
        return int(self.reports[-1]["step"]) if self.reports else 0

    @property
    def score(self) -> float | None:
        """The mean score of its last validation."""
        return float(self.reports[-1]["score"]) if self.reports else None


class Sweep:
    """The trials of a sweep, as its file holds them: each change is on disk before anything else follows from it."""

    def __init__(self, folder: Path, config: RunConfig, search: SearchConfig) -> None:
        """Read what an earlier process of the sweep left, or begin."""
        self.folder, self.config, self.search = folder, config, search
        self.file = folder / "trials.json"
        stored = json.loads(self.file.read_text()) if self.file.exists() else {"run_id": None, "trials": []}
        self.run_id: str | None = stored["run_id"]
        self.trials = [Trial(**trial) for trial in stored["trials"]]

    def save(self) -> None:
        """Write the file anew, whole or not at all."""
        content = {"run_id": self.run_id, "trials": [asdict(trial) for trial in self.trials]}
        storage.write_bytes(self.file, json.dumps(content, indent=1).encode())

    def add(self, trial: Trial) -> Trial:
        """Note a new trial."""
        self.trials.append(trial)
        self.save()
        return trial

    @property
    def firsts(self) -> list[Trial]:
        """The trials without their repetitions."""
        return [trial for trial in self.trials if not trial.repeats]

    def best(self) -> Trial:
        """The complete trial with the highest score. Raises: PostError: there is none."""
        complete = [trial for trial in self.firsts if trial.state == "complete"]
        if not complete:
            raise PostError(f"no trial of the sweep in {self.folder} reached its last step")
        return max(complete, key=lambda trial: trial.score or 0.0)

    def run_of(self, trial: Trial) -> RunConfig:
        """The configuration of a trial's run: the sweep's, with the trial's weights and seed."""
        config = with_weights(self.config, trial.weights)
        every = 0 if trial.repeats else config.eval.every  # nothing stops a repetition early
        return config.model_copy(
            update={
                "run": config.run.model_copy(update={"dir": str(self.folder), "name": trial.name}),
                "eval": config.eval.model_copy(update={"every": every}),
                "seed": trial.seed,
            }
        )


class Asha(ASHAScheduler):
    """ASHA whose verdict is carried out by the run itself: it writes a last checkpoint, closes its MLflow run and ends.

    Tune would kill a trial that needs more than ten seconds for that, and would start the next one meanwhile, in the
    place that this one still holds.
    """

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Always go on; a run that is not worth it is asked to stop."""
        action: str = super().on_trial_result(tune_controller, trial, result)
        if action == TrialScheduler.STOP and tune_controller and not result["done"]:
            ask_to_stop(folder_of(trial.config["run"]))
        return str(TrialScheduler.CONTINUE)


def asha(sweep: Sweep) -> Asha:
    """The scheduler, its rungs as they were: every trial that has ended, with all its validations."""
    steps, first = sweep.config.train.steps, sweep.config.eval.every
    scheduler = Asha("step", "score", "max", max_t=steps, grace_period=first, reduction_factor=sweep.search.reduction)
    for trial in sweep.firsts:
        if trial.state in ("complete", "stopped"):
            ended: Any = SimpleNamespace(trial_id=trial.name)  # all that ASHA asks of a trial
            nobody: Any = None
            scheduler.on_trial_add(nobody, ended)
            for report in trial.reports:
                scheduler.on_trial_result(None, ended, report)
    return scheduler
