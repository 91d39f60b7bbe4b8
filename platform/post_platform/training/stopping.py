"""Requests that reach a run while it trains: stop at a checkpoint, or write one because a node is about to go."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import IntEnum
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from post_platform import storage
from post_platform.cluster import JOB
from post_platform.errors import DataError, PostError, StorageError
from post_platform.training.job import Job
from post_platform.training.run_files import ATTEMPT, CHECKPOINT, STOP, continued_elsewhere

logger = logging.getLogger(__name__)

LOOK_EVERY = 0.2
"""Seconds between two looks of rank 0 for a request."""

LOOK_AT_S3_EVERY = 2.0
"""Each look is three requests there."""

GRACE = "RAY_JOB_STOP_WAIT_TIME_S"
"""Variable of the job, or of its cluster: seconds from `ray job stop` to SIGKILL."""

JOB_GRACE = 3
"""Seconds where it is not set."""


class Request(IntEnum):
    """What is asked of all ranks; the larger one wins."""

    NOTHING = 0
    CHECKPOINT = 1
    STOP = 2


class Requests:
    """One answer per step, the same on every rank: what has been asked of the run since the last one.

    The ranks agree while they compute the step, so asking costs the step nothing.
    """

    def __init__(self, job: Job, rank: int, group: Any) -> None:
        """Listen to the driver (rank 0) and to Ray's notices of preemption; `group` carries CPU tensors."""
        # `ray.train.get_preemption_info` is a round trip through an actor, by all ranks; the notice is here already.
        from ray.train.v2._internal.execution.context import get_train_context

        self.ray = get_train_context()
        self.job, self.rank, self.group = job, rank, group
        self.looked, self.stop = 0.0, False
        self.notice: object = None
        self.remote = storage.is_remote(job.shared)
        self.reader: threading.Thread | None = None
        self.said: dict[str, str] = {}
        if rank == 0:
            self._read()
        self.asked = self.said.get(CHECKPOINT)  # what was asked of the workers before these
        self.vote = torch.zeros(1, dtype=torch.int64)
        self.work: Any = None
        self.kept, self.polled = Request.NOTHING, 0.0  # a request that this rank has not sent on; the last look for one
        self.board = _get_default_store()

    def ask(self) -> None:
        """Send this rank's request on its way; call before a step."""
        self.vote, self.kept = torch.tensor([max(self.kept, self._request())]), Request.NOTHING
        self.work = dist.all_reduce(self.vote, dist.ReduceOp.MAX, group=self.group, async_op=True)

    def answer(self) -> Request:
        """What all ranks do after this step; call after it."""
        assert self.work is not None
        self.work.wait()
        request = Request(int(self.vote))
        if request and not self.rank:
            reason = "asked to stop" if request is Request.STOP else "the cluster changes"
            logger.info("%s: writing a checkpoint now", reason)
        return request

    def waits(self, work: str) -> bool:
        """Whether the ranks should leave long work of unequal lengths for a request, which the next `ask` then sends.

        Asked between two pieces of `work`, which has this name on every rank: what one is told, all find.
        """
        if time.monotonic() - self.polled < LOOK_EVERY:
            return False
        self.polled = time.monotonic()
        self.kept = max(self.kept, self._request())
        if self.kept:
            self.board.set(work, "left")
        return bool(self.board.check([work]))

    def _request(self) -> Request:
        asked = False
        if self.rank == 0 and not self.stop:
            self._look()
            if self.said.get(ATTEMPT, self.job.attempt) != self.job.attempt:
                raise continued_elsewhere(self.job.config)
            self.stop = self.said.get(STOP) == self.job.attempt
            before, self.asked = self.asked, self.said.get(CHECKPOINT)
            asked = before is not None and self.asked != before
        if self.stop:
            return Request.STOP
        known, self.notice = self.notice, self.ray.preemption_context.preemption_info
        return Request.CHECKPOINT if asked or (self.notice and self.notice != known) else Request.NOTHING

    def _look(self) -> None:
        """Read now and then what the files say; of S3, whose answer may take its time, beside the training."""
        every = LOOK_AT_S3_EVERY if self.remote else LOOK_EVERY
        if time.monotonic() - self.looked <= every or (self.reader and self.reader.is_alive()):
            return
        self.looked = time.monotonic()
        if self.remote:
            self.reader = threading.Thread(target=self._read, name="requests", daemon=True)
            self.reader.start()
        else:
            self._read()

    def _read(self) -> None:
        """On S3 also who trains the run now: in a folder a lock keeps a second driver away."""
        for name in (STOP, CHECKPOINT, *([ATTEMPT] if self.remote else [])):
            with suppress(StorageError):  # the store is away: what it said last
                self.said[name] = _text(self.job, name)


@contextmanager
def stoppable(job: Job) -> Iterator[None]:
    """While the block runs, answer SIGTERM and Ctrl-C by asking the workers to stop at a checkpoint.

    A second signal ends the block at once, and so does the end of the time that `ray job stop` gives.

    Raises:
        KeyboardInterrupt: the run was stopped before its last step.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    if seconds_to_stop() == JOB_GRACE:
        logger.info(
            "`ray job stop` gives this job %d s for its last checkpoint; more, when it is submitted: "
            """--runtime-env-json '{"env_vars": {"%s": "60"}}'""",
            JOB_GRACE,
            GRACE,
        )
    names = signal.SIGTERM, signal.SIGINT, signal.SIGALRM
    before = {name: signal.getsignal(name) for name in names}

    def tell() -> None:
        try:
            _write(job, STOP, job.attempt)
        except PostError as error:
            logger.warning("the workers cannot be asked to stop: %s", error)

    def ask(signum: int, _: FrameType | None) -> None:
        for name in names:
            signal.signal(name, signal.default_int_handler)
        logger.info("stopping after this step's checkpoint; at once: the same signal again")
        if storage.is_remote(job.shared):  # not here: what the signal has interrupted may hold a lock of its client
            threading.Thread(target=tell, daemon=True).start()
        else:
            tell()
        if grace := seconds_to_stop():
            signal.setitimer(signal.ITIMER_REAL, max(0.5, grace - 1))  # the last second is for MLflow

    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, ask)
    try:
        yield
        if signal.getsignal(signal.SIGTERM) is not ask and not job.is_finished():
            raise KeyboardInterrupt
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for name, handler in before.items():
            signal.signal(name, handler)


def seconds_to_stop() -> int | None:
    """Seconds that a Ray job has from SIGTERM to SIGKILL; None outside of a job."""
    return int(os.environ.get(GRACE, JOB_GRACE)) if JOB in os.environ else None


def request_checkpoint(job: Job) -> None:
    """Ask the workers that train now for a checkpoint after the step that they are at."""
    _write(job, CHECKPOINT, uuid.uuid4().hex)


def _write(job: Job, name: str, text: str) -> None:
    storage.write_bytes(storage.join(job.shared, name), text.encode())


def _text(job: Job, name: str) -> str:
    """What is asked, in a file opened anew each time: NFS clients may show an old state of one they only stat.

    Raises: StorageError: S3 does not answer.
    """
    try:
        return storage.read_bytes(storage.join(job.shared, name)).decode()
    except StorageError:
        raise
    except DataError:
        return ""
