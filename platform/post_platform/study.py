"""A study: the trainings that several questions need, each run once, and what they score.

Every training is a run of its own, in `<run.dir>/<study>/<run>`. What the study knows is in `study.json` beside them,
the only thing that a restart believes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ray.tune.schedulers import FIFOScheduler

from post_platform import cluster
from post_platform.config import RunConfig
from post_platform.errors import PostError
from post_platform.experiment_sweep import Children
from post_platform.shards.index import Split
from post_platform.study_config import StudyConfig, refuse_changes, store
from post_platform.study_pictures import look
from post_platform.study_plan import plan, wanted
from post_platform.study_state import Run, Study
from post_platform.training.job import store_of
from post_platform.training.run_files import folder_of
from post_platform.training.spread import evaluate_checkpoint
from post_platform.trials import Supply, alone, begin, check, parent, run_trials

logger = logging.getLogger(__name__)

Report = Callable[[Run], None]


def study(config: RunConfig, settings: StudyConfig, report: Report = lambda run: None) -> tuple[Study, str]:
    """Train and score all that the study's parts need, and write its tables; what is done already is kept.

    Args:
        config: the configuration of every run; `run.name` is the study's.
        settings: the study.
        report: called with a run when it has been trained, and when it has been scored.

    Returns: the study, with its MLflow run closed, and the address of its store.
    """
    from post_platform.study_report import log_report

    cluster.stop_politely()
    train, val = check(config)
    parts = plan(settings.parts, [split.dataset for split in train], [split.dataset for split in val])
    folder = Path(config.run.dir) / config.run.name
    stored = folder / "study.yaml"
    digests = {f"{split.dataset}/{split.split}": split.digest for split in (*train, *val)}
    with alone(folder, "study"):
        if stored.exists():
            refuse_changes(stored, config, settings)
        found = Study(folder, config, settings.seeds, parts, digests)
        for run in found.runs:
            check(found.config_of(run))
        keep = partial(store, stored, config, settings)
        with parent(found, stored, keep, settings.concurrent, "study.concurrent") as (children, together):
            supply = Runs(found, children, report)
            done = len(found.runs) - len(supply.waiting)
            logger.info("%d runs of %d steps, %d of them trained already", len(found.runs), config.train.steps, done)
            run_trials(folder, supply, FIFOScheduler(), len(supply.waiting), together)
            _score(found, children, {split.dataset: split for split in val}, report)
            log_report(found, children.parent)
    return found, children.parent.uri


class Runs(Supply):
    """Hands out the runs that are not trained yet, and notes what becomes of them."""

    def __init__(self, study: Study, children: Children, report: Report) -> None:
        super().__init__()
        self.study, self.children, self.report = study, children, report
        self.waiting = [run for run in study.runs if run.state == "waiting"]
        self.live: dict[str, tuple[Run, float]] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The next run, begun in MLflow and noted on disk."""
        if not self.waiting:
            return Supply.FINISHED  # type: ignore[return-value]  # as Ray documents
        run, study = self.waiting.pop(0), self.study
        if not run.run_id:
            name = study.config.run.name
            tags = {"study": name, "study.datasets": ", ".join(run.recipe.datasets)}
            run.run_id = begin(self.children, study.folder / run.name, f"{name}/{run.name}", tags)
            study.save()
        self.live[trial_id] = run, time.monotonic()
        return self.handed(study.config_of(run), [])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Note the end; a run whose process broke, or that was stopped on the way, still waits."""
        if error or not result:
            return
        run, began = self.live.pop(trial_id)
        run.seconds = time.monotonic() - began
        if "reason" in result:
            run.state, run.reason = "failed", result["reason"]
        elif result["step"] >= self.study.config.train.steps:
            run.state = "trained"
        self.study.save()
        self.report(run)


def _score(study: Study, children: Children, splits: dict[str, Split], report: Report) -> None:
    """Score every trained run on what the tables show of it. Raises: PostError: its checkpoint is gone."""
    for run in study.runs:
        asked = wanted(study.parts, run.recipe) if run.state == "trained" else {}
        for way, names in asked.items():
            missing = [splits[name] for name in names if name not in run.scores.get(way, {})]
            if not missing:
                continue
            config = study.config_of(run)
            checkpoint = store_of(config, folder_of(config)).latest()
            if checkpoint is None:
                raise PostError(
                    f"the checkpoint of {run.name} is gone from {study.folder / run.name}, and it is not scored yet",
                    "give the study another name: run.name=<new name>",
                )
            found = evaluate_checkpoint(checkpoint, missing, way, config.eval.max_frames).scores
            if run.seed == study.config.seed:
                look(checkpoint, missing, way, study.folder / "pictures", run.title)
            whole = {f"test/{way}/{name}/{metric}": value for name, scores in found.items()
                     for metric, value in scores.items() if "/" not in metric}  # fmt: skip
            children.metrics(run.run_id, whole, config.train.steps)
            run.scores.setdefault(way, {}).update(found)
            study.save()
            report(run)
