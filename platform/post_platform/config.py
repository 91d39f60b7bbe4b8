"""The configuration of a run: a frozen tree, checked when it is built, read from one flat YAML and `key=value`.

By design nothing here belongs to a single dataset: there is no slot for a dataset's weight, share or threshold.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from reprlib import repr as short
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar, get_type_hints

from pydantic import Field, ValidationError, create_model, model_validator

from post_platform.config_text import BRANCH_WEIGHTS, BRANCHES, read_file, read_overrides, write
from post_platform.config_values import (
    Branches,
    Config,
    Count,
    CropSize,
    Datasets,
    Factors,
    Integer,
    Location,
    NotNegative,
    Number,
    Positive,
    RunName,
    Steps,
    TrackingUri,
    Workers,
)
from post_platform.errors import ConfigError
from post_platform.storage import is_remote

Kind = TypeVar("Kind", bound=Config)

MAY_CHANGE_ON_RESUME = frozenset(
    {
        "train.steps", "train.workers", "train.max_failures", "train.log_every",
        "mlflow.uri", "mlflow.experiment", "log.live",
    }
)  # fmt: skip
"""Keys that may differ from those a run was started with; every other difference refuses to resume."""


class DataConfig(Config):
    """Which frames, in which mixture, and how they are augmented; the same for every dataset."""

    root: Location = Field(default="./shards", description="Folder or s3:// address that holds DATASET/SPLIT.")
    datasets: Datasets = Field(
        default=None, description="Names of converted datasets; default: every one under the root."
    )
    train_split: str = Field(default="train", description="Split that is trained on.")
    val_split: str = Field(default="val", description="Split that is scored.")
    allow_shared_videos: bool = Field(
        default=False, description="Score also on videos that are trained on, as the same recording in another dataset."
    )
    alpha: Number = Field(
        default=0.0, ge=0, le=1, description="Share of a dataset ~ (its frames)^alpha; one rule for all."
    )
    crop: CropSize = Field(default=(512, 1024), description="Height and width of a training crop, pixels.")
    scale: Factors = Field(default=(0.5, 2.0), description="Smallest and largest factor of the random resize.")
    flip: bool = Field(default=True, description="Mirror half of the clips.")
    photometric: bool = Field(default=True, description="Vary brightness, contrast and colour, per frame.")
    clip: Annotated[Integer, Field(ge=2, le=100)] = Field(
        default=2, description="Frames of a clip, which is read once and yields clip - 1 pairs."
    )
    stride: Steps = Field(
        default=(1, 1), description="Smallest and largest distance between the frames of a pair, in frames."
    )
    still_motion: bool = Field(default=True, description="Invent the previous frame of a frame that has none.")
    decode_on: Literal["trainer", "cluster"] = Field(
        default="trainer", description="Where bytes become pixels: beside the network, or in Ray tasks on any node."
    )
    max_bad_samples: Annotated[Integer, Field(ge=0)] = Field(
        default=16, description="Unreadable samples that one worker replaces before the run fails."
    )


class ModelConfig(Config):
    """The network."""

    backbone: Literal["small", "resnet18", "resnet50", "resnet52"] = Field(
        default="resnet50", description="`small` is fit for a CPU."
    )
    depthwise: bool = Field(default=True, description="Depthwise separable convolutions in the decoders.")
    branches: Branches = Field(default=BRANCHES, description="Outputs; prev_offset (tracking) may be left out.")
    norm: Literal["auto", "batch", "sync", "frozen", "group"] = Field(
        default="auto",
        description="Normalisation; auto: by the hardware; frozen: imported statistics stay as they are.",
    )
    classes: Literal["observed", "coco", "core", "all"] = Field(
        default="observed",
        description="Unified classes the model knows; observed: those of the training shards, with COCO's where a "
        "background has none left.",
    )
    init_from: Location | None = Field(
        default=None, description="Checkpoint to start from, or a file of backbone weights."
    )


class LossSettings(Config):
    """What the losses share; `LossConfig` adds one weight per branch, for all datasets alike."""

    hard_fraction: Number = Field(default=0.2, gt=0, le=1, description="Share of each sample's pixels, hardest first.")
    center_sigma: Positive = Field(default=8.0, description="Width of a centre's Gaussian, pixels of the crop.")
    small_area: NotNegative = Field(default=4096, description="Objects below this many pixels of the crop are small.")
    small_weight: Positive = Field(default=3.0, description="Weight of small objects' pixels in the semantic loss.")
    unlabelled: Literal["sets", "ignore"] = Field(
        default="sets", description="Background of a partly labelled dataset: none of its classes, or ignored."
    )
    weighting: Literal["fixed", "learned"] = Field(
        default="fixed", description="learned: the branches' weights are where a learned uncertainty starts."
    )


if TYPE_CHECKING:
    LossConfig = LossSettings
else:
    LossConfig = create_model(
        "LossConfig",
        __base__=LossSettings,
        __doc__="What the losses share, and one weight per branch, for all datasets alike.",
        **{
            name: (NotNegative, Field(default=weight, description=f"Weight of the {name} branch's loss."))
            for name, weight in BRANCH_WEIGHTS.items()
        },
    )


class OptimConfig(Config):
    """The optimiser and its schedule, in steps."""

    lr: Positive = Field(default=1e-3, description="Learning rate after the warm-up.")
    weight_decay: NotNegative = Field(default=0.0, description="Decoupled weight decay.")
    warmup_steps: Annotated[Integer, Field(ge=0)] = Field(default=0, description="Steps of linear warm-up.")
    schedule: Literal["poly", "constant"] = Field(default="poly", description="poly: to 0 at the last step, power 0.9.")
    clip: Positive | None = Field(default=None, description="Largest norm of the gradient.")
    ema: Number = Field(default=0.0, ge=0, lt=1, description="Decay of averaged weights, which are scored; 0: none.")


class TrainConfig(Config):
    """Length, size and hardware of the training."""

    steps: Count = Field(default=60_000, description="Optimiser steps.")
    global_batch: Count = Field(default=32, description="Pairs per step, over all workers.")
    accumulate: Count = Field(
        default=1, description="Micro-batches that a worker's pairs of a step are cut into, for less memory."
    )
    workers: Workers = Field(
        default=None,
        description="Number, or {min, max}: what Ray has room for; default: one per GPU, two on CPU.",
    )
    max_failures: Annotated[Integer, Field(ge=0)] = Field(
        default=3, description="Times that lost workers are replaced before the run fails; it loses nothing then."
    )
    checkpoint_every: Count = Field(default=1000, description="Steps between checkpoints.")
    keep: Count = Field(default=3, description="Checkpoints kept.")
    precision: Literal["auto", "bf16", "fp32"] = Field(default="auto", description="auto: bf16 on GPU, fp32 on CPU.")
    compile: bool = Field(default=False, description="torch.compile the network.")
    log_every: Count = Field(default=20, description="Steps between logged losses.")
    threads: Count | None = Field(default=None, description="Threads that decode, per worker.")


class EvalConfig(Config):
    """Validation on whole sequences."""

    every: Annotated[Integer, Field(ge=0)] = Field(
        default=5000, description="Steps between validations; 0: only at the end."
    )
    max_frames: Count | None = Field(
        default=None, description="Frames scored per sequence, from its first; default: all."
    )
    overlays: Annotated[Integer, Field(ge=0)] = Field(default=2, description="Pictures logged per dataset.")
    tracking: Literal["prev_offset", "iou"] = Field(
        default="prev_offset", description="What carries identities over time."
    )


class RunNameConfig(Config):
    """Where a run's files go; the same name resumes."""

    dir: Location = Field(
        default="./runs", description="Folder of all runs, shared by every worker; or their s3:// address."
    )
    name: RunName = Field(default="post", description="This run.")


class MlflowConfig(Config):
    """Where experiments are logged."""

    uri: TrackingUri | None = Field(
        default=None, description="Tracking server or database; default: sqlite in run.dir, which S3 cannot hold."
    )
    experiment: str = Field(default="post", min_length=1, description="Experiment that the run belongs to.")


class LogConfig(Config):
    """When what is logged becomes visible."""

    live: bool = Field(
        default=False, description="Publish at once instead of at checkpoints: also steps that a restart trains again."
    )


class RunConfig(Config):
    """All that decides a run; with the shards it determines the result."""

    data: DataConfig = Field(default_factory=lambda: DataConfig())
    model: ModelConfig = Field(default_factory=lambda: ModelConfig())
    loss: LossConfig = Field(default_factory=lambda: LossConfig())
    optim: OptimConfig = Field(default_factory=lambda: OptimConfig())
    train: TrainConfig = Field(default_factory=lambda: TrainConfig())
    eval: EvalConfig = Field(default_factory=lambda: EvalConfig())
    run: RunNameConfig = Field(default_factory=lambda: RunNameConfig())
    mlflow: MlflowConfig = Field(default_factory=lambda: MlflowConfig())
    log: LogConfig = Field(default_factory=lambda: LogConfig())
    seed: Annotated[Integer, Field(ge=0, lt=2**63)] = Field(default=0, description="Of weights, plan and augmentation.")

    @model_validator(mode="after")
    def _a_database_is_no_object(self) -> RunConfig:
        if is_remote(self.run.dir) and not self.mlflow.uri:
            raise ValueError(
                "mlflow.uri must be a server, or a *.db file, where run.dir is on S3: no database can be there"
            )
        return self

    @model_validator(mode="after")
    def _knobs_have_a_branch(self) -> RunConfig:
        for name in BRANCH_WEIGHTS:
            if name in self.loss.model_fields_set and name not in self.model.branches:
                raise ValueError(f"loss.{name} is set, but model.branches has no branch {name!r}")
            if self.loss.weighting == "learned" and name in self.model.branches and not getattr(self.loss, name):
                raise ValueError(
                    f"loss.{name} must be > 0 where loss.weighting is learned: it is where learning starts"
                )
        if "prev_offset" in self.model.branches:
            return self
        if "tracking" in self.eval.model_fields_set and self.eval.tracking == "prev_offset":
            raise ValueError("eval.tracking is prev_offset, but model.branches has no branch 'prev_offset'; set iou")
        return self


def load_config(path: Path | None = None, overrides: Sequence[str] = ()) -> RunConfig:
    """Build the configuration from one flat YAML (or defaults) and `key=value` arguments, which win.

    Relative paths become absolute, from the working directory. Without the prev_offset branch tracking is by IoU.

    Raises:
        ConfigError: one line naming the key, the constraint and the value it got; for a key that does not exist the
            nearest one; for any attempt to give one dataset a number, that this is refused by design.
    """
    values = read_file(path, KEYS) if path else {}
    values.update(read_overrides(overrides, KEYS, TEXT_KEYS))
    return run_config(values)


def run_config(values: Mapping[str, object]) -> RunConfig:
    """Build the configuration from flat values, as `load_config` does. Raises: ConfigError."""
    config = build(RunConfig, values)
    if "prev_offset" not in config.model.branches and "eval.tracking" not in values:
        config = config.model_copy(update={"eval": config.eval.model_copy(update={"tracking": "iou"})})
    return config


def build(kind: type[Kind], values: Mapping[str, object]) -> Kind:
    """Build a part of the configuration from flat values. Raises: ConfigError, one line for all wrong keys."""
    try:
        return kind.model_validate(_nested(values))
    except ValidationError as error:
        raise ConfigError("; ".join(_problems(error))) from error


def flatten(config: RunConfig) -> dict[str, object]:
    """Return every dotted key with its value, in the order of the tree, but the weight of a branch that is absent."""
    flat: dict[str, object] = {}
    for name, part in config.model_dump(mode="json").items():
        if isinstance(part, dict):
            flat.update({f"{name}.{key}": value for key, value in part.items()})
        else:
            flat[name] = part
    absent = {f"loss.{name}" for name in BRANCH_WEIGHTS if name not in config.model.branches}
    return {key: value for key, value in flat.items() if key not in absent}


def dump_config(config: RunConfig) -> str:
    """Write the configuration as flat YAML that `load_config` reads back to an equal one."""
    return write(flatten(config))


def differences(a: RunConfig, b: RunConfig, ignoring: Collection[str] = ()) -> list[str]:
    """Name every key in which `b` differs from `a`, as `key: old -> new`; none when they are the same."""
    old, new = flatten(a), flatten(b)
    keys = [key for key in KEYS if key not in ignoring and old.get(key) != new.get(key)]
    return [f"{key}: {old.get(key)} -> {new.get(key)}" for key in keys]


def _nested(flat: Mapping[str, object]) -> dict[str, object]:
    tree: dict[str, object] = {}
    for key, value in flat.items():
        section, dot, leaf = key.partition(".")
        if dot:
            part = tree.setdefault(section, {})
            assert isinstance(part, dict)
            part[leaf] = value
        else:
            tree[key] = value
    return tree


def _problems(error: ValidationError) -> list[str]:
    """One line per wrong key: what it must be, and what it got."""
    problems: dict[str, str] = {}
    for problem in error.errors(include_url=False):
        key = ".".join(str(part) for part in problem["loc"][:2])
        text = problem["msg"].removeprefix("Value error, ").replace("Input should", "must")
        text = text.replace("greater than or equal to", ">=").replace("less than or equal to", "<=")
        text = text.replace("greater than", ">").replace("less than", "<")
        if problem["type"] == "missing" or problem["type"].startswith("too_"):
            text = "must be two values, [a, b]"
        if problem["type"] == "string_type":
            text = "must be text (in YAML, put it in quotes)"
        if not (key == "" or (problem["type"] == "value_error" and "'" in text)):  # those name what they got
            text += f", got {short(problem['input'])}"
        problems.setdefault(key, f"{key}: {text}" if key else text)
    return list(problems.values())


KEYS: tuple[str, ...] = tuple(
    f"{name}.{leaf}" if isinstance(part, Config) else name
    for name, part in ((name, getattr(RunConfig(), name)) for name in RunConfig.model_fields)
    for leaf in (type(part).model_fields if isinstance(part, Config) else [name])
)
"""Every valid key, in the order of the tree."""

TEXT_KEYS = frozenset(
    f"{name}.{leaf}"
    for name, part in get_type_hints(RunConfig).items()
    if isinstance(part, type) and issubclass(part, Config)
    for leaf, kind in get_type_hints(part).items()
    if kind in (str, str | None)
)
"""Keys whose value is text also where it looks like a number."""
