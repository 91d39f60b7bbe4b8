"""What MLflow holds of runs, read only: for whoever compares them. With `experiment_log` the place that knows mlflow.

mlflow is imported when a store is opened (2.5 s), so that a script's `--help` does not wait for it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from post_platform.errors import PostError, nearest
from post_platform.experiment_buffer import first_line, unreachable
from post_platform.experiment_log import CLIENT_DEFAULTS

if TYPE_CHECKING:
    from mlflow.entities import Run

MEAN_SCORE = "val/mean/score"
PER_PAGE = 500
TOGETHER = 8  # requests at a time
INFINITE = 1e300  # what MLflow stores for an infinite value is the largest finite one
NEXT = "python pipelines/compare.py RUN RUN --uri URI"

History = dict[str, dict[int, float]]
"""{metric: {step: value}}."""


@dataclass(frozen=True)
class StoredRun:
    """A run as MLflow shows it. All texts are whatever somebody stored: escape them.

    `metrics` are the names of all that it logged; times are seconds since 1970; `digests` tell the versions of the
    datasets that it read, by `<dataset>/<split>`.
    """

    run_id: str
    name: str
    experiment_id: str
    status: str
    begin: float
    end: float | None
    params: dict[str, str]
    tags: dict[str, str]
    metrics: frozenset[str]
    digests: dict[str, str] = field(default_factory=dict)


class ExperimentReader:
    """An MLflow store that is only read: neither a database nor an experiment is made."""

    def __init__(self, uri: str | None, folder: Path, next_command: str = NEXT) -> None:
        """Open the store at `uri`; None: the database in `folder`. `next_command` is what errors tell to try.

        Raises: PostError when there is none, or nothing answers.
        """
        uri = uri or f"sqlite:///{folder.resolve()}/mlflow.db"
        database = Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None
        if database and not database.is_file():
            raise PostError(f"no MLflow database {database}", f"name the store of the runs: {next_command}")
        self._next = next_command
        problem = unreachable(uri)
        if problem:
            raise PostError(f"cannot reach MLflow: {problem}", "start it: mlflow server --port 5000; or check --uri")
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
        for name, value in {**quiet, **CLIENT_DEFAULTS}.items():
            os.environ.setdefault(name, value)
        with _store_errors():
            from mlflow import MlflowClient

            logging.getLogger("mlflow").setLevel(logging.WARNING)
            self._client = MlflowClient(uri)

    def experiments(self) -> list[str]:
        """Names of the store's experiments."""
        with _store_errors():
            return [str(entry.name) for entry in self._client.search_experiments()]

    def experiment_id(self, name: str) -> str:
        """The id of an experiment. Raises: PostError naming those that exist."""
        with _store_errors():
            found = self._client.get_experiment_by_name(name)
            known = [] if found else [entry.name for entry in self._client.search_experiments()]
        if found is None:
            raise PostError(f"no experiment {name!r}{nearest(name, known)}", "name one: --experiment E")
        return str(found.experiment_id)

    def find(self, wanted: str, experiment: str | None = None) -> StoredRun:
        """The run of an id, or of a name, which must then be the only one of that name (in the experiment, if told).

        Raises: PostError naming the candidates.
        """
        if re.fullmatch("[0-9a-f]{32}", wanted):
            with _store_errors():
                run = self._client.get_run(wanted)
            if run.info.lifecycle_stage != "active":
                raise PostError(f"run {wanted} was deleted", f"mlflow runs restore --run-id {wanted}")
            return _stored(run)
        if experiment is not None:
            places = [self.experiment_id(experiment)]
        else:
            with _store_errors():
                places = [entry.experiment_id for entry in self._client.search_experiments()]
        runs = [run for place in places for run in self.runs(place)]
        found = [run for run in runs if run.name == wanted]
        if not found:
            raise PostError(f"no run {wanted!r}{nearest(wanted, {run.name for run in runs})}", self._next)
        if len(found) > 1:
            ids = "; ".join(f"{run.run_id} ({run.status})" for run in found)
            raise PostError(f"{len(found)} runs are named {wanted!r}", f"name one by its id: {ids}")
        return found[0]

    def runs(self, experiment_id: str) -> list[StoredRun]:
        """All runs of an experiment that are not deleted, the newest first."""
        return [_stored(run) for run in self._search(experiment_id)]

    def best(self, experiment: str, count: int) -> list[StoredRun]:
        """The runs of an experiment with the highest newest `val/mean/score`, at most `count`; none without one."""
        found = self._search(self.experiment_id(experiment), f"metrics.`{MEAN_SCORE}` DESC")
        scored = [run for run in found if MEAN_SCORE in run.data.metrics]
        return [_stored(run) for run in scored[:count]]

    def history(self, run_id: str, metrics: Iterable[str]) -> History:
        """Every step of the given metrics; infinite values are left out."""

        def one(metric: str) -> dict[int, float]:
            entries = self._client.get_metric_history(run_id, metric)
            return {entry.step: entry.value for entry in entries if abs(entry.value) < INFINITE}

        names = sorted(metrics)
        with _store_errors(), ThreadPoolExecutor(TOGETHER) as pool:
            return dict(zip(names, pool.map(one, names), strict=True))

    def files(self, run_id: str, folder: str = "") -> list[str]:
        """Paths of all files that are stored in a folder of the run, deeper ones too; none where it was deleted."""
        found: list[str] = []
        with _store_errors():
            for entry in self._client.list_artifacts(run_id, folder or None):
                if ".." in PurePosixPath(entry.path).parts:
                    continue
                found += self.files(run_id, entry.path) if entry.is_dir else [entry.path]
        return found

    def fetch(self, run_id: str, path: str, folder: Path) -> Path | None:
        """A copy of one of the run's files, in `folder`; None when it is gone or cannot be had."""
        try:
            copy = Path(self._client.download_artifacts(run_id, path, str(folder)))
        except Exception:  # whatever an artifact store raises: the file is not there
            return None
        return copy if copy.is_file() else None

    def _search(self, experiment_id: str, order: str = "attributes.start_time DESC") -> Iterator[Run]:
        token = None
        while True:
            with _store_errors():
                page = self._client.search_runs(
                    [experiment_id], max_results=PER_PAGE, order_by=[order], page_token=token
                )
            yield from page
            token = page.token
            if not token:
                return


def _stored(run: Run) -> StoredRun:
    info, data = run.info, run.data
    inputs = run.inputs.dataset_inputs if run.inputs else []
    return StoredRun(
        run_id=info.run_id,
        name=info.run_name or info.run_id,
        experiment_id=str(info.experiment_id),
        status=info.status,
        begin=info.start_time / 1000,
        end=info.end_time / 1000 if info.end_time else None,
        params=dict(data.params),
        tags=dict(data.tags),
        metrics=frozenset(data.metrics),
        digests={entry.dataset.name: entry.dataset.digest for entry in inputs},
    )


@contextlib.contextmanager
def _store_errors() -> Iterator[None]:
    """Turn what MLflow reports into one line. Raises: PostError."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        raise PostError(f"MLflow: {first_line(error)}", f"check the run and the store: {NEXT}") from error
