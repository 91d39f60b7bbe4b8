"""What one training run is: everything a worker needs, made once by the driver and carried to every rank."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from post_model.layers import Norm
from post_model.network import Post
from post_model.state import fill
from post_model.weights import best_weights, load_backbone, load_model, read_card
from post_platform import storage
from post_platform.config import RunConfig
from post_platform.data.augment import Augmentation
from post_platform.data.load import ClipLoader
from post_platform.data.plan import Plan
from post_platform.errors import ConfigError
from post_platform.experiment_log import ExperimentLog
from post_platform.shards.index import Split
from post_platform.training import checkpoint
from post_platform.training.checkpoint_store import Store
from post_platform.training.run_files import LOGS, SCORES, address_of, folder_of

logger = logging.getLogger(__name__)

CLASS_PREDICTOR = "branches.semantic.1"  # the layer with a row per class


@dataclass(frozen=True)
class Job:
    """One run, resolved: its configuration, its data, its classes, its folder and its MLflow run."""

    config: RunConfig
    train: tuple[Split, ...]
    val: tuple[Split, ...]
    class_names: tuple[str, ...]
    thing_flags: tuple[bool, ...]
    facts: dict[str, Any]  # of the data, as `same_run.facts_of` states them
    folder: Path
    mlflow_uri: str
    mlflow_run_id: str
    attempt: str = ""  # of the process that trains the run now; workers that a killed one left behind have another
    beside: int = 1  # trainings that share a machine's CPUs, this one among them

    @property
    def shared(self) -> storage.Location:
        """What all machines of the run see: its folder, or its address on S3."""
        return address_of(self.config) or self.folder

    def here(self) -> Job:
        """The run as this machine sees it: a working copy of one on S3 is in each machine's own cache."""
        return replace(self, folder=folder_of(self.config)) if address_of(self.config) else self

    def store(self) -> Store:
        """The run's checkpoints, wherever they are."""
        return store_of(self.config, self.folder)

    def open_log(self, owner: bool = False) -> ExperimentLog:
        """The run's MLflow run, from whichever process asks; `owner`: the one that the run dies with."""
        names = self.config.mlflow.experiment, self.config.run.name
        folder = self.folder.parent
        return ExperimentLog.open(self.mlflow_uri, *names, self.mlflow_run_id, default_dir=folder, owner=owner)

    @property
    def logs(self) -> Path:
        """Where each rank writes its log lines, and rank 0 how far the run is."""
        return self.folder / LOGS

    def loader(self) -> ClipLoader:
        """Reads the clips of the run's plan, with the one augmentation of all datasets."""
        data = self.config.data
        rules = Augmentation(data.crop, data.scale, data.flip, data.photometric, data.still_motion)
        plan = plan_of(self.config, self.train)
        return ClipLoader(plan, rules, data.max_bad_samples, self.config.train.threads or 2)

    def without_frames(self) -> Job:
        """The job as it travels to a worker: the index of what is trained on is in the loader's plan already."""
        slim = [replace(split, index=split.index.schema.empty_table()) for split in self.train]
        return replace(self, train=tuple(slim))

    def committed_step(self) -> int:
        """The step of the newest whole checkpoint; 0 where there is none."""
        return self.store().committed_step()

    def is_finished(self) -> bool:
        """Whether the last step is committed, with the scores of a validation that was not left for a request."""
        committed, steps = self.committed_step(), self.config.train.steps
        return committed > steps or (committed == steps and (self.scores() or {}).get("step") == steps)

    def scores(self) -> dict[str, Any] | None:
        """The last validation's: "step", "mean" and "datasets"; None where there was none."""
        file = storage.join(self.shared, SCORES)
        found: dict[str, Any] | None = json.loads(storage.read_bytes(file)) if storage.exists(file) else None
        return found

    def norm(self, gpus_everywhere: bool, local_batch: int) -> Norm:
        """The network's normalisation: the configured one, else what a starting checkpoint stored, else by hardware.

        Batch statistics are those of a micro-batch.
        """
        settings, local_batch = self.config.model, max(1, local_batch // self.config.train.accumulate)
        source = _local(settings.init_from) if settings.init_from else None
        if settings.norm == "auto" and source and source.is_dir():
            try:
                stored: Norm = read_card(source).arguments["norm"]
            except ValueError as error:
                raise ConfigError(f"model.init_from: {error}") from error
            return resolve_norm("auto", gpus_everywhere, local_batch, True) if stored in ("batch", "sync") else stored
        return resolve_norm(settings.norm, gpus_everywhere, local_batch, source is not None)

    def new_model(self, norm: Norm, quiet: bool = False) -> Post:
        """The network before its first step: seeded, or filled from `model.init_from`.

        Args:
            norm: the resolved normalisation.
            quiet: say nothing of classes that come or go; the driver has said it.

        Raises:
            ConfigError: `init_from` does not fit this network.
        """
        settings = self.config.model
        torch.manual_seed(self.config.seed)
        model = Post(len(self.class_names), settings.backbone, settings.depthwise, settings.branches, norm)
        if settings.init_from:
            try:
                return self._initialised(model, _local(settings.init_from), quiet)
            except ValueError as error:
                raise ConfigError(f"model.init_from: {error}") from error
        return model

    def _initialised(self, model: Post, source: Path, quiet: bool) -> Post:
        """The network with the weights of `source` (averaged ones where it has them), and how they pool and pad."""
        if source.is_file():
            load_backbone(model, source)
            return model
        loaded, card = load_model(source, best_weights(source))
        if not loaded.arguments["branches"]:
            fill(model.backbone, loaded.backbone.state_dict(), str(source))
            return model
        same_norm = loaded.state_dict().keys() == model.state_dict().keys()  # all but group hold the same weights
        for name in ("backbone", "depthwise", "branches", *(() if same_norm else ("norm",))):
            if (got := loaded.arguments[name]) != (expected := model.arguments[name]):
                raise ValueError(f"{source} is another network: its {name} is {got}, this run's {expected}")
        own = {name: model.arguments[name] for name in ("norm", "num_classes")}
        model = Post(**{**loaded.arguments, **own})
        state = loaded.state_dict()
        if card.class_names != self.class_names:
            state |= _rows_by_class(model, state, card.class_names, self.class_names)
            if not quiet:
                _say_classes(str(source), card.class_names, self.class_names)
        fill(model, state, str(source))
        return model


def _rows_by_class(
    model: Post, state: Mapping[str, Tensor], old: Sequence[str], new: Sequence[str]
) -> dict[str, Tensor]:
    """The class predictor's weights: the rows of classes of the same name from `state`, the others as in `model`."""
    place = {name: number for number, name in enumerate(old)}
    kept = [(number, place[name]) for number, name in enumerate(new) if name in place]
    to, source = (list(column) for column in zip(*kept, strict=True)) if kept else ([], [])
    found = {}
    for name, value in model.state_dict().items():
        if name.startswith(f"{CLASS_PREDICTOR}."):
            rows = found[name] = value.clone()
            rows[to] = state[name][source]
    return found


def _say_classes(source: str, old: Sequence[str], new: Sequence[str]) -> None:
    """One line on what becomes of the classes of a checkpoint."""
    kept = len(set(old) & set(new))
    logger.log(
        logging.INFO if kept else logging.WARNING,
        "model.init_from: %s: %d classes kept, %d new, %d dropped",
        source, kept, len(new) - kept, len(old) - kept,
    )  # fmt: skip


def store_of(config: RunConfig, folder: Path) -> Store:
    """The checkpoints of a run whose files on this machine are in `folder`."""
    address = address_of(config)
    return Store(folder / checkpoint.FOLDER, storage.join(address, checkpoint.FOLDER) if address else None)


def plan_of(config: RunConfig, train: Sequence[Split]) -> Plan:
    """The plan of a configuration over its training splits."""
    data = config.data
    return Plan(train, config.train.global_batch, data.clip, data.stride, data.alpha, config.seed)


def resolve_norm(requested: Norm | Literal["auto"], gpus_everywhere: bool, local_batch: int, pretrained: bool) -> Norm:
    """Turn `auto` into a kind of normalisation, once per run; the checkpoint stores it.

    Imported BatchNorm statistics are kept (synchronised across GPUs). From scratch, batch statistics need every rank
    on a GPU with at least 4 samples; else GroupNorm, which does not depend on the batch.
    """
    if requested != "auto":
        return requested
    if pretrained:
        return "sync" if gpus_everywhere else "batch"
    return "sync" if gpus_everywhere and local_batch >= 4 else "group"


def _local(location: str) -> Path:
    """`model.init_from` on this machine: the folder of a checkpoint, or a file of weights."""
    named_like_a_file = location.endswith((".pth", ".pt", ".pkl", ".safetensors"))
    return checkpoint.fetch_file(location) if named_like_a_file else checkpoint.fetch(location)
