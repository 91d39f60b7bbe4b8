"""How many workers train: as many as there is room for within `train.workers`, also after nodes have left or joined."""

from __future__ import annotations

import logging
import socket
import time
from contextlib import suppress
from typing import Any

import ray
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.scaling_policy import NoopDecision, ResizeDecision, ScalingDecision, ScalingPolicy
from ray.train.v2._internal.execution.worker_group import WorkerGroupPollStatus, WorkerGroupState
from ray.train.v2.api.config import ScalingConfig

from post_platform.training.job import Job
from post_platform.training.loop import write_log
from post_platform.training.stopping import request_checkpoint
from post_platform.training.workers import room

logger = logging.getLogger(__name__)

SETTLE = 10
"""Seconds for which there is room for more workers before the group grows: nodes come one after the other."""

CHECKPOINT_WITHIN = 120
"""Seconds that a group which is to grow has for its checkpoint; then it grows, and replays its steps since the last."""

SILENT = 60
"""Seconds for which a node that does not answer may still count as alive; Ray needs about 17 to find out."""


class ElasticTrainer(TorchTrainer):
    """Ray's trainer, whose worker groups have the size that `Elastic` chooses."""

    def __init__(self, job: Job, *args: Any, **settings: Any) -> None:
        """Train `job`; the rest is as for Ray's."""
        super().__init__(*args, **settings)
        self.policy = Elastic(settings["scaling_config"], job)

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        return super()._initialize_and_run_controller(**settings | {"scaling_policy": self.policy})  # type: ignore[misc]

    def _register_sigint_handler(self, controller: object) -> None:
        """Ray would abort on Ctrl-C; `stopping.stoppable` answers it."""


class Elastic(ScalingPolicy):
    """A lost node's workers are replaced where there is room, else missing; a group grows at a checkpoint.

    Ray's own elastic policy leaves Ray Data no CPU, which then waits without end; it restarts a group at any moment,
    and asks for places on a node that died a moment ago, which holds it up for a minute.
    """

    def __init__(self, scaling: ScalingConfig, job: Job) -> None:
        """Choose between `scaling.min_workers` and `scaling.max_workers` for `job`."""
        super().__init__(scaling)
        self.job = job
        self.started = False
        self.waiting: tuple[str, float] = "", 0.0  # what for, since when
        self.wanted, self.since = 0, 0.0  # workers that a running group could have, since when
        self.committed: int | None = None  # the step that was committed when the group was asked for a checkpoint

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """As many workers as fit, once it is clear which nodes are left."""
        self._maybe_send_resource_request()
        workers, least = self._possible(), self.scaling_config.min_workers
        if silent := [node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"] and not _answers(node)]:
            reason = f"waiting for Ray to find out what became of {', '.join(silent)}"
        elif workers < least:
            reason = f"waiting: there is room for {workers} workers, train.workers asks for {least}"
        else:
            reason = ""
        now = time.monotonic()
        if reason and reason != self.waiting[0]:
            logger.info("%s", reason)
            self.waiting = reason, now
        if workers < least or (silent and now - self.waiting[1] < SILENT):
            time.sleep(0.5)
            return NoopDecision()
        self.waiting = "", now
        return self._resize(workers)

    def make_decision_for_running_worker_group(
        self, worker_group_state: WorkerGroupState, worker_group_status: WorkerGroupPollStatus
    ) -> ScalingDecision:
        """More workers where there has been room for a while, after a checkpoint; a group too large fails by itself."""
        self._maybe_send_resource_request()
        now, wanted, workers = time.monotonic(), self._possible(), worker_group_state.num_workers
        if wanted != self.wanted:
            self.wanted, self.since, self.committed = wanted, now, None
        if wanted <= workers or now - self.since < SETTLE:
            return NoopDecision()
        if self.committed is None:
            logger.info("room for %d workers instead of %d: continuing with them after a checkpoint", wanted, workers)
            self.committed = self.job.committed_step()
            request_checkpoint(self.job)
            return NoopDecision()
        committed = self.job.committed_step()
        late = now - self.since > SETTLE + CHECKPOINT_WITHIN
        if committed >= self.job.config.train.steps or (committed == self.committed and not late):
            return NoopDecision()
        return self._resize(wanted)

    def _possible(self) -> int:
        """Workers that fit now, at most as many as are wanted."""
        each = self.scaling_config._resources_per_worker_not_none["CPU"]  # the driver knows which Ray this is
        return min(self.scaling_config.max_workers, room(self.job.config, each)[0])

    def _resize(self, workers: int) -> ResizeDecision:
        if self.started:
            plural, step = "s"[: workers != 1], self.job.committed_step()
            logger.info("continuing at step %d with %d worker%s", step, workers, plural)
        self.started = True
        self.wanted, self.since, self.committed = workers, time.monotonic(), None
        return ResizeDecision(workers, self.scaling_config._resources_per_worker_not_none)

    def _get_num_workers_for_resource_request(self) -> int:
        """What an autoscaler is asked for: all that are wanted, where their GPUs leave CPUs to data tasks."""
        scaling = self.scaling_config
        return scaling.max_workers if scaling.use_gpu else max(scaling.min_workers, self._possible())

    def after_controller_start(self, train_run_context: Any) -> None:
        """Tell the driver what is decided here."""
        write_log(self.job.logs / "workers.log")
        super().after_controller_start(train_run_context)


def _answers(node: dict[str, Any]) -> bool:
    """Whether the node's raylet still listens: Ray counts a dead one as alive for some seconds."""
    with suppress(OSError):
        socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), timeout=2).close()
        return True
    return False
