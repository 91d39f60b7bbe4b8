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

from post_platform.cluster import JOB
from post_platform.training.job import Job

logger = logging.getLogger(__name__)

STOP, CHECKPOINT = "stop", "checkpoint_now"
"""Files of the run with which the driver, or Ray Train's controller, asks for it: small, and seen by every worker."""

LOOK_EVERY = 0.2
"""Seconds between two looks of rank 0 for a request."""

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
        self.asked = _text(job, CHECKPOINT)  # what was asked of the workers before these
        self.vote = torch.zeros(1, dtype=torch.int64)
        self.work: Any = None

    def ask(self) -> None:
        """Send this rank's request on its way; call before a step."""
        self.vote = torch.tensor([self._request()])
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

    def _request(self) -> Request:
        asked = False
        if self.rank == 0 and not self.stop and time.monotonic() - self.looked > LOOK_EVERY:
            self.looked = time.monotonic()
            self.stop = _text(self.job, STOP) == self.job.attempt
            before, self.asked = self.asked, _text(self.job, CHECKPOINT)
            asked = self.asked != before
        if self.stop:
            return Request.STOP
        known, self.notice = self.notice, self.ray.preemption_context.preemption_info
        return Request.CHECKPOINT if asked or (self.notice and self.notice != known) else Request.NOTHING


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

    def ask(signum: int, _: FrameType | None) -> None:
        for name in names:
            signal.signal(name, signal.default_int_handler)
        logger.info("stopping after this step's checkpoint; at once: the same signal again")
        (job.folder / STOP).write_text(job.attempt)
        if grace := seconds_to_stop():
            signal.setitimer(signal.ITIMER_REAL, max(0.5, grace - 1))  # the last second is for MLflow

    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, ask)
    try:
        yield
        if signal.getsignal(signal.SIGTERM) is not ask and job.committed_step() < job.config.train.steps:
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
    (job.folder / CHECKPOINT).write_text(uuid.uuid4().hex)


def _text(job: Job, name: str) -> str:
    """What is asked, in a file opened anew each time: NFS clients may show an old state of one they only stat."""
    with suppress(OSError):
        return (job.folder / name).read_text()
    return ""
