"""A checkpoint over whole sequences, spread over a Ray cluster; the scores do not depend on how."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch

from post_model.network import Post
from post_model.predictor import Tracking
from post_model.weights import ModelCard
from post_platform import storage
from post_platform.errors import ConfigError, PostError
from post_platform.training.evaluate import (
    Picture,
    Scores,
    Share,
    Stretch,
    evaluate_share,
    joined,
    open_model,
    scores_of,
    sequences,
)
from post_platform.training.timelines import Timelines

if TYPE_CHECKING:
    from post_platform.shards.index import Split

RETRIES = 3  # times that a worker which is killed, with its node perhaps, is replaced


@dataclass(frozen=True)
class Evaluation:
    """A checkpoint's contingency tables, their scores, and pictures and timelines of its sequences."""

    tables: list[pa.Table]
    scores: Scores
    pictures: list[Picture]
    timelines: Timelines


class _Worker:
    """Holds the network in one slot of the cluster, and predicts sequence after sequence.

    On a CPU with one thread, so that what it computes depends on no other worker.
    """

    def __init__(self, folder: str, work: Sequence[Stretch], tracking: Tracking, pictures: int, timelines: int) -> None:
        self.folder, self.work, self.settings = folder, work, (tracking, pictures, timelines)

    @cached_property
    def opened(self) -> tuple[Post, ModelCard]:
        """The network; not opened as the worker starts, where Ray makes a text of an error."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cpu":
            torch.set_num_threads(1)
        return open_model(self.folder, device)

    def run(self, number: int) -> Share:
        model, card = self.opened
        return evaluate_share(model, card.class_names, [self.work[number]], *self.settings)


def evaluate_checkpoint(
    folder: storage.Location,
    splits: Sequence[Split],
    tracking: Tracking = "prev_offset",
    max_frames: int | None = None,
    pictures: int = 0,
    timelines: int = 0,
    workers: int | None = None,
    progress: Callable[[int], None] = lambda frames: None,
) -> Evaluation:
    """Score a checkpoint on whole sequences, spread over the Ray that `cluster.connect` joined.

    Args:
        folder: the checkpoint, where every node can read it.
        splits: what is predicted.
        tracking: what carries identities.
        max_frames: of each sequence, from its first.
        pictures: frames kept of each sequence.
        timelines: sequences of each dataset that get a timeline.
        workers: how many work at once; as many as Ray has room for unless told.
        progress: told how many frames are done.

    Raises:
        ConfigError: Ray has no room for so many workers.
        DataError: the folder is no checkpoint of ours.
        PostError: workers are killed again and again.
    """
    import ray
    from ray.exceptions import RayActorError, RayTaskError

    work = sequences(splits, max_frames)
    gpus = int(ray.cluster_resources().get("GPU", 0))
    room = gpus or max(1, int(ray.cluster_resources()["CPU"]) // 2)
    if workers and workers > room:
        raise ConfigError(f"--workers {workers}: Ray has room for {room}", f"ask for fewer: --workers {room}")
    actor = ray.remote(num_cpus=1, num_gpus=1 if gpus else 0, max_restarts=RETRIES, max_task_retries=RETRIES)(_Worker)
    stored = ray.put(work)  # with the indexes of the splits: one copy per node
    waiting = sorted(range(len(work)), key=lambda number: work[number].stop - work[number].start)  # the longest last
    running: dict[Any, tuple[Any, int]] = {}
    shares: dict[int, Share] = {}
    done = 0
    try:
        idle = [actor.remote(str(folder), stored, tracking, pictures, timelines)
                for _ in range(min(len(work), workers or room))]  # fmt: skip
        while waiting or running:
            while waiting and idle:
                worker, number = idle.pop(), waiting.pop()
                running[worker.run.remote(number)] = worker, number  # type: ignore[attr-defined]
            [ready], _ = ray.wait(list(running), num_returns=1)
            worker, number = running.pop(ready)
            shares[number] = ray.get(ready)
            idle.append(worker)
            done += work[number].stop - work[number].start
            progress(done)
    except RayTaskError as error:
        raise error.cause if isinstance(error.cause, PostError) else error from None
    except RayActorError as error:
        raise PostError(
            f"evaluation workers were killed, or ran out of memory, more than {RETRIES} times",
            "try fewer at once: --workers 1",
        ) from error
    found = joined([shares[number] for number in sorted(shares)])
    return Evaluation(found.tables, scores_of(found.tables), found.pictures, found.timelines)
