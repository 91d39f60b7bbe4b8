"""What rank 0 writes down: metrics, scores and pictures, held back until the step they belong to is committed."""

from __future__ import annotations

import json
import logging
import shutil
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from post_model.network import Post
from post_model.weights import save_model, save_weights
from post_platform import render, storage
from post_platform.atomic import file_errors
from post_platform.config import dump_config
from post_platform.data.plan import Plan
from post_platform.labels import load_contract, thing_table
from post_platform.metrics.contingency import merge
from post_platform.training import checkpoint
from post_platform.training.checkpoint_store import Store
from post_platform.training.checkpoint_writer import Background, save_tensors, snapshot
from post_platform.training.evaluate import Picture, Scores
from post_platform.training.job import Job
from post_platform.training.ledger import EMPTY, NAME, Ledger, Seen, read
from post_platform.training.mixture import draw_mixture
from post_platform.training.run_files import ATTEMPT, CONFIG, PROGRESS, RUN, SCORES, continued_elsewhere
from post_platform.training.sequence_report import sequence_report, write_report
from post_platform.training.timelines import Timelines, write_timelines
from post_platform.training.vocabulary import projections

logger = logging.getLogger(__name__)

HISTORY = "metrics.jsonl"


class Journal:
    """The run's ledger, checkpoints and MLflow run, kept in step with each other.

    A metric reaches MLflow once the checkpoint of its step is whole, so a restart neither loses nor doubles a step.
    `metrics.jsonl` in the checkpoint holds what was to be published with it; a start publishes what a kill prevented.
    Checkpoints are written beside the training, one at a time; what goes wrong there ends the run at its next step.
    """

    def __init__(self, job: Job, store: Store, newest: Path | None, relay: Any = None) -> None:
        """Continue the record of `job` from the checkpoint `newest` of its store, or begin it.

        Args:
            job: the run.
            store: its checkpoints.
            newest: the one that it is continued from.
            relay: to the driver, where it does not see this machine's files.
        """
        self.job, self.store, self.relay = job, store, relay
        self.background = Background()
        self.twin: Post | None = None
        self.held: dict[str, Any] = {}
        self.scores: dict[str, Any] | None = None  # of the last validation
        step, digest, self.bad = 0, EMPTY, 0
        if newest:
            state = checkpoint.read_state(newest)
            step, digest, self.bad = state["step"], state["ledger"], state["bad_samples"]
            self.scores = state.get("scores")
            shutil.copy(newest / NAME, job.folder / NAME)
        self.ledger = Ledger(job.folder / NAME, step, digest)
        self.log = job.open_log()
        self.pending: list[tuple[int, dict[str, float]]] = []
        self.latest: dict[str, float] = {}
        if newest:
            self._publish_again(newest)

    def step(self, step: int, metrics: dict[str, float]) -> None:
        """Note a training step's metrics, and tell the driver how far the run is.

        Raises: what went wrong with the checkpoint that was being written.
        """
        self.background.check()
        self._note(step, metrics)
        self.latest = {"loss": metrics["train/loss/total"], "frames_per_s": metrics["time/frames_per_s"]}
        self._progress(step)

    def validation(
        self, step: int, scores: Scores, mean: float | None, seconds: float, committed: bool = False
    ) -> None:
        """Note the scores of a validation; of a step that is committed already, publish them once that is whole."""
        metrics = {f"val/{name}/{key}": value for name, found in scores.items() for key, value in found.items()}
        metrics |= {"val/mean/score": mean, "time/validation_s": seconds}
        defined = {name: value for name, value in metrics.items() if value is not None}
        if committed:
            self.background.wait()
            self.log.log_metrics(defined, step)
        else:
            self._note(step, defined)
        self.scores = {"step": step, "mean": mean, "datasets": scores}
        storage.write_bytes(storage.join(self.job.shared, SCORES), json.dumps(self.scores, indent=1).encode())

    def pictures(self, step: int, pictures: Sequence[Picture], most: int) -> None:
        """Log image | truth | prediction of up to `most` frames per dataset."""
        done: Counter[str] = Counter()
        for picture in pictures:
            done[picture.dataset] += 1
            if done[picture.dataset] <= most:
                name = f"{picture.dataset}/{picture.key.replace('/', '_')}"
                self.log.log_image(triptych(picture), name, step)

    def breakdown(self, step: int, tables: Sequence[pa.Table], timelines: Timelines) -> None:
        """Log every score of every sequence and class, and the timelines; a restart writes the same files again."""
        name = f"step_{step:08d}"
        for path in write_report(sequence_report(merge(tables)), self.job.folder / "scores", name):
            self.log.log_file(path, "scores")
        for path in write_timelines(timelines, self.job.folder / "timelines" / name):
            self.log.log_file(path, f"timelines/{name}/{path.parent.name}")

    def commit(
        self,
        step: int,
        seen: Sequence[tuple[int, Seen]],
        bad: int,
        model: Post,
        optimizer: torch.optim.Optimizer,
        ema: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """Begin to write the checkpoint of `step`; once it is whole, all that waited for it is published.

        Returns when what belongs to it is copied, and the checkpoint before is whole.

        Args:
            step: steps that are done.
            seen: what entered the network since the last commit, with its step.
            bad: samples that were replaced meanwhile.
            model: the network after `step`.
            optimizer: its optimiser.
            ema: the averaged weights, where `optim.ema` asks for them; saved beside the network's own.

        Raises:
            PostError: another process trains this run by now, nothing was written; or the checkpoint before failed.
        """
        self.background.wait()
        self._require_our_attempt()
        by_step: defaultdict[int, list[Seen]] = defaultdict(list)
        for number, sample in seen:
            by_step[number].append(sample)
        for number in sorted(by_step):
            self.ledger.append(number, by_step[number])
        counts = Counter(key.split("/", 1)[0] for _, (_, key) in seen)
        if counts:
            self._note(step, {f"data/{name}/share": n / counts.total() for name, n in counts.items()})
        self.bad += bad
        self._note(step, {"data/bad_samples": self.bad})
        parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "ema": ema or {}}
        self.held = snapshot(parts, self.held)
        if self.twin is None:
            with torch.device("meta"):  # it only holds what the snapshot does
                self.twin = Post(**model.arguments)
        self.twin.load_state_dict(self.held["model"], assign=True)
        state, pending, self.pending = self._state(step), self.pending, []

        def write(folder: Path) -> None:
            assert self.twin
            names = self.job.class_names
            save_model(folder, self.twin, names, self.job.thing_flags, projections(names))
            if ema:
                save_weights(folder / "ema.safetensors", self.held["ema"])
            save_tensors(self.held["optimizer"], folder / "optimizer.pt")
            (folder / checkpoint.STATE).write_text(json.dumps(state, indent=1))
            shutil.copy(self.ledger.path, folder / NAME)
            (folder / HISTORY).write_text("".join(json.dumps(item) + "\n" for item in pending))

        def commit() -> None:
            with file_errors(self.store.root):
                name = self.store.commit(step, write, self.job.config.train.keep, self._require_our_attempt)
            for number, metrics in pending:
                self.log.log_metrics(metrics, number)
            if state["score"] is not None and self.store.best() == name:
                logger.info("step %d: the best so far, mean score %.4f: %s", step, state["score"], name)

        self.background.start(commit)
        self._progress(step)

    def _state(self, step: int) -> dict[str, Any]:
        """What the checkpoint of `step` says of the run, beside its files."""
        config, scores = self.job.config, self.scores
        return {
            "step": step,
            "position": step * config.train.global_batch,
            "seed": config.seed,
            "facts": self.job.facts,
            "bad_samples": self.bad,
            "ledger": self.ledger.digest,
            "score": scores["mean"] if scores and scores["step"] == step else None,
            "scores": scores,
            "mlflow_uri": self.job.mlflow_uri,
            "mlflow_run_id": self.job.mlflow_run_id,
            "config": dump_config(config),
        }

    def _note(self, step: int, metrics: dict[str, float]) -> None:
        """Keep metrics until their step is committed; with `log.live` publish them now."""
        if self.job.config.log.live:
            self.log.log_metrics(metrics, step)
        else:
            self.pending.append((step, metrics))

    def mixture(self, plan: Plan) -> None:
        """Store the ledger, and the figure of what the datasets' shares were and should be, with the MLflow run."""
        self.log.log_file(self.ledger.path)
        self.log.log_figure(draw_mixture(read(self.ledger.path), plan), "mixture.png")

    def _require_our_attempt(self) -> None:
        if self.job.attempt and storage.read_bytes(storage.join(self.job.shared, ATTEMPT)).decode() != self.job.attempt:
            raise continued_elsewhere(self.job.config)

    def settle(self) -> None:
        """Wait for the checkpoint that is being written, where something else went wrong: only tell its own error."""
        try:
            self.background.wait()
        except Exception as error:
            logger.warning("the last checkpoint was not written: %s", error)

    def close(self) -> None:
        """Wait until the last checkpoint is whole, and MLflow has everything. Raises: what went wrong with it."""
        self.background.wait()
        self.log.flush()

    def _publish_again(self, newest: Path) -> None:
        """Publish what waited for this checkpoint: a kill may have come between. MLflow holds each step once."""
        for line in (newest / HISTORY).read_text().splitlines():
            step, metrics = json.loads(line)
            self.log.log_metrics(metrics, step)

    def _progress(self, step: int) -> None:
        text = json.dumps({"step": step, **self.latest})
        if self.relay:
            self.relay.replace.remote(PROGRESS, text)
        else:
            (self.job.logs / PROGRESS).write_text(text)


def triptych(picture: Picture, truth: bool = True, titles: bool = True) -> np.ndarray:
    """Image, truth and prediction side by side, in the dataset's colours, objects in the colours of their tracks."""
    contract = load_contract(picture.dataset)
    things = thing_table(contract)
    scale = max(1, round(640 / picture.image.shape[1]))
    shown = picture.truth if truth else None
    colors = render.palette(contract)
    return render.triptych(picture.image, shown, picture.prediction, colors, things, scale=scale, titles=titles)


def restore(folder: Path, newest: Path) -> None:
    """Write what a run's folder holds beside its checkpoints, as the checkpoint `newest` has it.

    For a run on S3, whose folder on this machine is new, or older than the checkpoint.
    """
    state = checkpoint.read_state(newest)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(state["config"])
    (folder / RUN).write_text(json.dumps({name: state[name] for name in ("mlflow_uri", "mlflow_run_id")}))
    shutil.copy(newest / NAME, folder / NAME)
