"""What would stop or spoil a training, found before any GPU is taken: each check says what it found, and the remedy.

`examine` makes them all, in seconds; `refuse_before_training` makes those that cost nothing, in every training.
"""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from post_model.network import Post
from post_platform import cluster, storage
from post_platform.config import RunConfig
from post_platform.data.leaks import refuse_shared_videos
from post_platform.errors import ConfigError, DataError, PostError
from post_platform.experiment_buffer import unreachable
from post_platform.experiment_reader import ExperimentReader
from post_platform.shards.index import Split, convert_command
from post_platform.training.job import resolve_norm
from post_platform.training.nodes import NodeFacts, node_facts
from post_platform.training.splits import scored_splits, splits_of
from post_platform.training.vocabulary import class_names
from post_platform.training.workers import data_cpus, workers_of

SIZES = 512  # shards on S3 whose size is asked for, spread over all of them
SESSION = 2 << 30  # bytes; Ray's logs, and what it spills, lie where temporary files do
PAIR_BYTES = 12  # of a pixel: two images, two class maps, two instance maps of 16 bits
IN_FLIGHT = 4  # decoded global batches between Ray's tasks and the workers
PROBE = b"post"
SMALL_BATCH = 4  # samples, below which batch statistics are noise


class Doubt(PostError):
    """What a training survives, but whoever starts it should know."""


@dataclass(frozen=True)
class Finding:
    """The answer to one check; `remedy` is empty where nothing is to be done."""

    what: str
    state: Literal["ok", "warning", "failed"]
    found: str
    remedy: str = ""


@dataclass
class Case:
    """A configuration, and what the checks before have found out about it."""

    config: RunConfig
    train: tuple[Split, ...] = ()
    val: tuple[Split, ...] = ()
    classes: int = 0
    workers: int = 0
    gpus: bool = False
    nodes: list[NodeFacts] = field(default_factory=list)


Check = Callable[[Case], str]


def examine(config: RunConfig) -> Iterator[Finding]:
    """Every check in turn, each yielded as soon as it is answered; one that needs what another missed is left out."""
    case, unknown = Case(config), set[str]()
    for what, (check, needs) in CHECKS.items():
        finding = None if unknown.intersection(needs) else _answer(what, check, case)
        if finding is None or finding.state == "failed":
            unknown.add(what)
        if finding:
            yield finding


def refuse_before_training(
    config: RunConfig, classes: int, workers: int, gpus: bool, warn: Callable[[str], None]
) -> None:
    """The checks that cost nothing and that nothing else in a training makes; doubts go to `warn`.

    Raises:
        PostError: a training would be stopped, or anybody could run code on the cluster.
    """
    case = Case(config, classes=classes, workers=workers, gpus=gpus)
    for check in (_disk, _hardware, _normalisation, _authentication):
        try:
            check(case)
        except Doubt as doubt:
            warn(f"{doubt}; {doubt.hint}" if doubt.hint else str(doubt))


def _answer(what: str, check: Check, case: Case) -> Finding:
    try:
        return Finding(what, "ok", check(case))
    except Doubt as doubt:
        return Finding(what, "warning", str(doubt), doubt.hint)
    except PostError as error:
        return Finding(what, "failed", str(error), error.hint)


def _shards(case: Case) -> str:
    """Present, of the contracts that we have, and each file as long as its manifest says."""
    data = case.config.data
    case.train = splits_of(data.root, data.datasets, data.train_split)
    case.val = scored_splits(case.config, tuple(split.dataset for split in case.train))
    compared = sum(_compare_sizes(split, data.root) for split in (*case.train, *case.val))
    shards = [shard for split in (*case.train, *case.val) for shard in split.manifest["shards"]]
    size = sum(shard["size"] for shard in shards)
    names = ", ".join(split.dataset for split in case.train)
    some = "" if compared == len(shards) else f", the sizes of {compared} compared"
    return f"{names}: {len(shards)} shards, {size / 1e6:,.0f} MB{some}"


def _compare_sizes(split: Split, root: str) -> int:
    """The number of files whose size was compared. Raises: DataError for one that is missing, or of another size."""
    where, again = f"{split.dataset}/{split.split}", convert_command(split.dataset, split.split, root)
    expected = {shard["name"]: shard["size"] for shard in split.manifest["shards"]}
    if missing := sorted(expected.keys() - set(storage.list_names(split.folder))):
        more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DataError(f"{where}: {missing[0]} is missing{more}", again)
    names = sorted(expected)
    if storage.is_remote(split.folder):
        names = names[:: -(-len(names) // SIZES)]
    with ThreadPoolExecutor(16) as pool:
        sizes = pool.map(lambda name: storage.size(storage.join(split.folder, name)), names)
        for name, size in zip(names, sizes, strict=True):
            if size != expected[name]:
                raise DataError(f"{where}: {name} has {size} bytes, its manifest says {expected[name]}", again)
    return len(names)


def _videos(case: Case) -> str:
    if not case.config.data.allow_shared_videos:
        refuse_shared_videos(case.train, case.val, "data.allow_shared_videos=true")
        return "none is both trained and scored on"
    return "not compared: data.allow_shared_videos=true"


def _classes(case: Case) -> str:
    names = class_names(case.train, case.config.model.classes)
    case.classes = len(names)
    return f"{len(names)} unified classes of {len(case.train)} label contracts"


def _run_dir(case: Case) -> str:
    with _probe(case.config.run.dir) as probe:
        if storage.read_bytes(probe) != PROBE:
            raise DataError(f"{probe}: reads otherwise than it was written")
    return f"{case.config.run.dir}: a probe was written, read and deleted"


@contextmanager
def _probe(folder: str) -> Iterator[str]:
    """A small file where the run will write, while the block runs. Raises: ConfigError."""
    probe = storage.join(folder, f".probe-{uuid.uuid4().hex}")
    try:
        if not storage.is_remote(folder):
            Path(folder).mkdir(parents=True, exist_ok=True)
        storage.write_bytes(probe, PROBE)
        yield probe
        storage.delete(probe)
    except (DataError, OSError) as error:
        raise ConfigError(f"run.dir {folder}: {error}", "choose another: run.dir=<folder>") from error


def checkpoint_bytes(config: RunConfig, classes: int) -> int:
    """Size of one checkpoint: weights, Adam's two moments, and averaged weights where there are some."""
    with torch.device("meta"):
        model = Post(classes, config.model.backbone, config.model.depthwise, config.model.branches)
    trained = sum(parameter.numel() for parameter in model.parameters())
    stored = trained + sum(buffer.numel() for buffer in model.buffers())
    return 4 * (stored * (2 if config.optim.ema else 1) + 2 * trained)


def _disk(case: Case) -> str:
    """Room for the checkpoints that are kept, the best one, and the one that is being written."""
    config = case.config
    count, each = config.train.keep + 2, checkpoint_bytes(config, case.classes)
    what = f"{count} checkpoints of {each / 1e6:.0f} MB"
    temporary = shutil.disk_usage(tempfile.gettempdir()).free
    free = storage.free_bytes(config.run.dir)
    if free is not None and free < count * each:
        raise ConfigError(
            f"{config.run.dir} has {free / 1e9:.1f} GB left, {what} need {count * each / 1e9:.1f}",
            "make room, keep fewer (train.keep=1), or choose another folder: run.dir=<folder>",
        )
    if temporary < SESSION:
        raise Doubt(
            f"{tempfile.gettempdir()} has {temporary / 1e9:.1f} GB left; Ray keeps its logs there, and spills there",
            "make room, or name another folder: TMPDIR=<folder>",
        )
    return f"{what}; " + ("S3" if free is None else f"{free / 1e9:.0f} GB are free")


def _mlflow(case: Case) -> str:
    """Answers, and is a store that we write to; MLflow's file store is refused by the configuration already."""
    uri, folder = case.config.mlflow.uri, Path(case.config.run.dir)
    database = Path((uri or f"sqlite:///{folder}/mlflow.db").removeprefix("sqlite:///"))
    if (uri is None or uri.startswith("sqlite:///")) and not database.exists():
        return f"{database} will be made"
    if problem := unreachable(uri or ""):
        raise PostError(f"mlflow.uri {uri}: {problem}", "start it: mlflow server --port 5000; or leave mlflow.uri out")
    known = ExperimentReader(uri, folder).experiments()
    return f"{uri or database} answers, {len(known)} experiment{'s' * (len(known) != 1)}"


def _ray(case: Case) -> str:
    return cluster.connect()


def _workers(case: Case) -> str:
    """Ray has room for the training workers beside the data tasks; they validate, too."""
    case.workers, case.gpus = workers_of(case.config)
    kind = "with a GPU each" if case.gpus else "without GPUs"
    beside = data_cpus(case.config)
    text = f"{case.workers} {kind}, which train and validate; {beside} CPU{'s' * (beside > 1)} beside them for data"
    if case.workers > (batch := case.config.train.global_batch):
        raise Doubt(f"{text}; only {batch} have a sample", f"ask for fewer: train.workers={batch}")
    return text


def _hardware(case: Case) -> str:
    """What the defaults are meant for, said before somebody waits a day for the first checkpoint."""
    model, (height, width) = case.config.model, case.config.data.crop
    if not case.gpus and model.backbone != "small":
        raise Doubt(
            f"no GPU here, and {model.backbone} at {height}x{width} is slow without",
            "for a try on a CPU: --config pipelines/configs/toycity.yaml",
        )
    return "a GPU for each worker" if case.gpus else "a network that is fit for a CPU"


def _nodes(case: Case) -> str:
    """Every node has our versions, and sees the folders of the run and of the shards."""
    manifests = [storage.join(split.folder, "manifest.json") for split in (*case.train, *case.val)]
    with _probe(case.config.run.dir) as probe:
        case.nodes = node_facts([file for file in (probe, *manifests) if not storage.is_remote(file)])
    first = case.nodes[0]
    for node in case.nodes:
        if node.versions != first.versions:
            raise ConfigError(
                f"node {node.address} has {node.versions}, node {first.address} {first.versions}",
                "give all nodes one environment: requirements.lock",
            )
        if node.missing:
            raise ConfigError(
                f"node {node.address} does not see {Path(node.missing[0]).parent}",
                "name one that all nodes share, or s3://: run.dir=..., data.root=...",
            )
    return f"{len(case.nodes)} with {first.versions}" + ", which all see the run and the shards" * (len(case.nodes) > 1)


def _memory(case: Case) -> str:
    """The object store holds what is decoded ahead, and lies in memory, not on a disk."""
    store = sum(node.object_store for node in case.nodes)
    config = case.config
    height, width = config.data.crop
    need = IN_FLIGHT * config.train.global_batch * PAIR_BYTES * height * width
    text = f"object store {store / 1e9:.1f} GB"
    for node in case.nodes:
        if node.shm < node.object_store:
            raise Doubt(
                f"{text}; node {node.address}: /dev/shm has {node.shm / 1e9:.1f} GB free, its object store "
                f"{node.object_store / 1e9:.1f}: Ray puts it on the disk",
                "larger: docker run --shm-size, or an emptyDir of medium Memory",
            )
    if config.data.decode_on == "cluster" and store < need:
        raise Doubt(
            f"{text}, frames decoded ahead take {need / 1e9:.1f}",
            "larger: ray start --object-store-memory; or data.decode_on=trainer",
        )
    return f"{text}, in /dev/shm"


def _normalisation(case: Case) -> str:
    """Batch statistics need samples, and synchronised ones GPUs."""
    config = case.config
    local = -(-config.train.global_batch // case.workers) // config.train.accumulate
    norm = resolve_norm(config.model.norm, case.gpus, local, config.model.init_from is not None)
    text = f"{norm}, {local} samples of a worker at a time"
    if norm == "sync" and not case.gpus:
        raise ConfigError(f"model.norm: {text}: it needs GPUs", "for instance model.norm=group")
    if norm == "batch" and local < SMALL_BATCH:
        raise Doubt(f"model.norm: {text}: its statistics are noise", "model.norm=group, or a larger train.global_batch")
    return text


def _authentication(case: Case) -> str:
    """Whoever reaches Ray's dashboard without a token runs any code on the cluster.

    Raises:
        ConfigError: it has a public address and asks for no token.
    """
    found = cluster.dashboard()
    if found is None:
        return "no dashboard"
    if found.wants_token:
        return f"the dashboard at {found.address} wants its token"
    remedy = "start every node of Ray with RAY_AUTH_MODE=token (docs/security.md)"
    if found.public:
        raise ConfigError(
            f"the dashboard at {found.address} is public and wants no token: anybody can run code", remedy
        )
    if found.loopback:
        return f"the dashboard at {found.address} wants no token, and only this machine reaches it"
    raise Doubt(f"the dashboard at {found.address} wants no token: whoever reaches it runs code", remedy)


CHECKS: dict[str, tuple[Check, Sequence[str]]] = {
    "shards": (_shards, ()),
    "videos": (_videos, ("shards",)),
    "classes": (_classes, ("shards",)),
    "run.dir": (_run_dir, ()),
    "disk": (_disk, ("classes", "run.dir")),
    "MLflow": (_mlflow, ("run.dir",)),
    "Ray": (_ray, ()),
    "authentication": (_authentication, ("Ray",)),
    "workers": (_workers, ("Ray",)),
    "hardware": (_hardware, ("Ray", "workers")),
    "nodes": (_nodes, ("Ray", "run.dir")),
    "memory": (_memory, ("Ray", "nodes")),
    "normalisation": (_normalisation, ("Ray", "workers")),
}
