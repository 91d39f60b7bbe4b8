"""A sweep, or a study, in MLflow: one parent run, a child run per training. With `experiment_log` alone with mlflow."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

from post_platform.errors import PostError
from post_platform.experiment_buffer import first_line
from post_platform.experiment_log import METRICS_PER_CALL, ExperimentLog

PARENT = "mlflow.parentRunId"  # what MLflow's own pages nest runs by

_log = logging.getLogger(__name__)


class Children:
    """The child runs of an open log. A trial's training continues the run that was begun for it here."""

    def __init__(self, parent: ExperimentLog) -> None:
        """Open the store of `parent` again: the log sends in the background, these answers are needed now."""
        from mlflow import MlflowClient

        self.parent = parent
        self._client = MlflowClient(parent.uri)

    def begin(self, name: str, tags: Mapping[str, object]) -> str:
        """Begin a child run, and return its id.

        Raises:
            PostError: the store does not answer.
        """
        try:
            experiment = self._client.get_run(self.parent.run_id).info.experiment_id
            texts = {name: str(value) for name, value in tags.items()} | {PARENT: self.parent.run_id}
            return str(self._client.create_run(experiment, run_name=name, tags=texts).info.run_id)
        except Exception as error:
            raise PostError(
                f"MLflow at {self.parent.uri} did not begin a run for {name}: {first_line(error)}",
                "the same command continues, once MLflow answers",
            ) from error

    def tag(self, run_id: str, name: str, value: object) -> None:
        """Tag a child; one that the store does not have any more, or that does not answer, gets a warning."""
        try:
            self._client.set_tag(run_id, name, str(value))
        except Exception as error:  # whatever a client or a driver raises: a tag must not end a sweep
            _log.warning("MLflow at %s: no tag %s for the run %s: %s", self.parent.uri, name, run_id, first_line(error))

    def metrics(self, run_id: str, values: Mapping[str, float | None], step: int) -> None:
        """Log metrics of a child's step, undefined ones left out; as in `tag`, a warning at most."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        points = [Metric(name, value, now, step) for name, value in values.items() if value is not None]
        try:
            for start in range(0, len(points), METRICS_PER_CALL):
                self._client.log_batch(run_id, points[start : start + METRICS_PER_CALL], synchronous=True)
        except Exception as error:
            _log.warning("MLflow at %s: no metrics for the run %s: %s", self.parent.uri, run_id, first_line(error))

    def end_running(self) -> None:
        """Close as KILLED every child that is RUNNING still: none of them has a process when this is called."""
        try:
            experiment = self._client.get_run(self.parent.run_id).info.experiment_id
            query = f"attributes.status = 'RUNNING' and tags.`{PARENT}` = '{self.parent.run_id}'"
            for run in self._client.search_runs([experiment], query, max_results=1000):
                self._client.set_terminated(run.info.run_id, "KILLED")
        except Exception as error:  # as above; the next start tries again
            _log.warning("MLflow at %s: some trials stay RUNNING: %s", self.parent.uri, first_line(error))
