"""What rank 0 writes down: metrics, scores and pictures, held back until the step they belong to is committed."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from post_model.network import Post
from post_model.weights import save_model
from post_platform import render
from post_platform.config import dump_config
from post_platform.labels import load_contract, thing_table
from post_platform.training import checkpoint
from post_platform.training.evaluate import Picture, Scores
from post_platform.training.job import Job
from post_platform.training.ledger import EMPTY, NAME, Ledger, Seen
from post_platform.training.vocabulary import projections

PROGRESS = "progress.json"
HISTORY = "metrics.jsonl"


class Journal:
    """The run's ledger, checkpoints and MLflow run, kept in step with each other.

    A metric reaches MLflow once the checkpoint of its step is whole, so a restart neither loses nor doubles a step.
    `metrics.jsonl` in the checkpoint holds what was to be published with it; a start publishes what a kill prevented.
    """

    def __init__(self, job: Job, newest: Path | None) -> None:
        """Continue the record of `job` from the checkpoint `newest`, or begin it."""
        self.job = job
        step, digest = 0, EMPTY
        if newest:
            state = checkpoint.read_state(newest)
            step, digest = state["step"], state["ledger"]
        self.ledger = Ledger(job.folder / NAME, step, digest)
        self.log, self.plan = job.open_log(), job.plan().digest
        self.pending: list[tuple[int, dict[str, float]]] = []
        self.latest: dict[str, float] = {}
        if newest:
            self._publish_missing(newest)

    def step(self, step: int, metrics: dict[str, float]) -> None:
        """Note a training step's metrics, and tell the driver how far the run is."""
        self._note(step, metrics)
        self.latest = {"loss": metrics["train/loss/total"], "frames_per_s": metrics["time/frames_per_s"]}
        self._progress(step)

    def validation(self, step: int, scores: Scores, mean: float | None, seconds: float) -> None:
        """Note the scores of a validation."""
        metrics = {f"val/{name}/{key}": value for name, found in scores.items() for key, value in found.items()}
        metrics |= {"val/mean/score": mean, "time/validation_s": seconds}
        self._note(step, {name: value for name, value in metrics.items() if value is not None})
        (self.job.folder / "scores.json").write_text(
            json.dumps({"step": step, "mean": mean, "datasets": scores}, indent=1)
        )

    def pictures(self, step: int, pictures: Sequence[Picture], most: int) -> None:
        """Log image | truth | prediction of up to `most` frames per dataset."""
        done: Counter[str] = Counter()
        for picture in pictures:
            done[picture.dataset] += 1
            if done[picture.dataset] <= most:
                name = f"{picture.dataset}/{picture.key.replace('/', '_')}"
                self.log.log_image(triptych(picture), name, step)

    def commit(
        self, step: int, seen: Sequence[tuple[int, Seen]], model: Post, optimizer: torch.optim.Optimizer
    ) -> None:
        """Write the checkpoint of `step`, then publish all that waited for it."""
        by_step: defaultdict[int, list[Seen]] = defaultdict(list)
        for number, sample in seen:
            by_step[number].append(sample)
        for number in sorted(by_step):
            self.ledger.append(number, by_step[number])
        counts = Counter(key.split("/", 1)[0] for _, (_, key) in seen)
        if counts:
            self._note(step, {f"data/{name}/share": n / counts.total() for name, n in counts.items()})
        config = self.job.config

        def write(folder: Path) -> None:
            save_model(folder, model, self.job.class_names, self.job.thing_flags, projections(self.job.class_names))
            torch.save(optimizer.state_dict(), folder / "optimizer.pt")
            state = {
                "step": step,
                "position": step * config.train.global_batch,
                "seed": config.seed,
                "plan": self.plan,
                "ledger": self.ledger.digest,
                "mlflow_run_id": self.job.mlflow_run_id,
                "config": dump_config(config),
            }
            (folder / "state.json").write_text(json.dumps(state, indent=1))
            (folder / HISTORY).write_text("".join(json.dumps(item) + "\n" for item in self.pending))

        checkpoint.save(self.job.checkpoints, step, write, config.train.keep)
        for number, metrics in self.pending:
            self.log.log_metrics(metrics, number)
        self.pending = []
        self._progress(step)

    def _note(self, step: int, metrics: dict[str, float]) -> None:
        """Keep metrics until their step is committed; with `log.live` publish them now, doubled after a restart."""
        if self.job.config.log.live:
            self.log.log_metrics(metrics, step)
        else:
            self.pending.append((step, metrics))

    def close(self) -> None:
        """Wait until MLflow has everything."""
        self.log.flush()

    def _publish_missing(self, newest: Path) -> None:
        """Publish what the checkpoint holds and MLflow lacks: the run was killed between the two."""
        published: dict[str, int] = {}
        for line in (newest / HISTORY).read_text().splitlines():
            step, metrics = json.loads(line)
            for name in metrics.keys() - published.keys():
                found = self.log.last_step(name)
                published[name] = -1 if found is None else found
            self.log.log_metrics({name: v for name, v in metrics.items() if step > published[name]}, step)

    def _progress(self, step: int) -> None:
        (self.job.logs / PROGRESS).write_text(json.dumps({"step": step, **self.latest}))


def triptych(picture: Picture, truth: bool = True, titles: bool = True) -> np.ndarray:
    """Image, truth and prediction side by side, in the dataset's colours, objects in the colours of their tracks."""
    contract = load_contract(picture.dataset)
    things = thing_table(contract)
    scale = max(1, round(640 / picture.image.shape[1]))
    shown = picture.truth if truth else None
    colors = render.palette(contract)
    return render.triptych(picture.image, shown, picture.prediction, colors, things, scale=scale, titles=titles)
