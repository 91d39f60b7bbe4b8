"""One MLflow run per training: the same run after every restart. The only importer of mlflow.

mlflow is imported when a log is opened (2.5 s), so that a script's `--help` does not wait for it.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from post_platform.errors import PostError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient
    from mlflow.entities import Metric
    from mlflow.utils.async_logging.run_operations import RunOperations

PARAMS_PER_CALL, METRICS_PER_CALL, DIGEST_LENGTH, PARAM_LENGTH = 100, 1000, 36, 6000  # MLflow's own limits

_log = logging.getLogger(__name__)


class ExperimentLog:
    """An open MLflow run. Metrics are sent in the background, everything else at once; call `finish` at the end."""

    def __init__(self, client: MlflowClient, uri: str, run_id: str) -> None:
        self.uri = uri
        self.run_id = run_id
        self._client = client
        self._sent: list[tuple[list[Metric], RunOperations]] = []

    @classmethod
    def open(
        cls, uri: str | None, experiment: str, run_name: str, run_id: str | None = None, *, default_dir: Path
    ) -> ExperimentLog:
        """Continue the run `run_id`, or begin one where it is None or unknown to this store (then with a warning).

        Without `uri` the store is `default_dir`/mlflow.db, with the artifacts beside it.

        Raises:
            PostError: nothing answers at `uri`, or it is no MLflow store, or the experiment was deleted there.
        """
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        uri = uri or f"sqlite:///{default_dir.resolve()}/mlflow.db"
        _reach(uri)
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        logging.getLogger("mlflow").setLevel(logging.WARNING)  # the first use of a database announces its migrations
        try:
            client = MlflowClient(uri)
            experiment_id = _experiment(client, uri, experiment)
            if not (run_id and _continues(client, run_id)):
                run_id = client.create_run(experiment_id, run_name=run_name, tags=_tags()).info.run_id
        except MlflowException as error:
            raise PostError(f"MLflow at {uri}: {_first_line(error)}", "choose another store: mlflow.uri=...") from error
        return cls(client, uri, run_id)

    @property
    def view(self) -> str:
        """The command, or the address, that shows this log."""
        return f"mlflow ui --backend-store-uri {self.uri}" if self.uri.startswith("sqlite") else self.uri

    def log_params(self, params: Mapping[str, object]) -> None:
        """Log each parameter once; one that changed since (MLflow forbids that) becomes a tag `changed.<name>`."""
        from mlflow.entities import Param, RunTag

        known = self._client.get_run(self.run_id).data.params
        texts = {name: str(value)[:PARAM_LENGTH] for name, value in params.items()}
        new = [Param(name, text) for name, text in texts.items() if name not in known]
        for start in range(0, len(new), PARAMS_PER_CALL):
            self._client.log_batch(self.run_id, params=new[start : start + PARAMS_PER_CALL])
        changed = {name: text for name, text in texts.items() if known.get(name, text) != text}
        if changed:
            tags = [RunTag(f"changed.{name}", f"{known[name]} -> {text}") for name, text in changed.items()]
            self._client.log_batch(self.run_id, tags=tags)

    def log_metrics(self, metrics: Mapping[str, float | None], step: int) -> None:
        """Send metrics of one optimiser step in the background; an undefined one (None, NaN) is left out."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        entries = [
            Metric(name, float(value), now, step)
            for name, value in metrics.items()
            if value is not None and not math.isnan(value)
        ]
        for start in range(0, len(entries), METRICS_PER_CALL):
            batch = entries[start : start + METRICS_PER_CALL]
            self._sent.append((batch, self._send(batch)))

    def log_inputs(self, digests: Mapping[str, str], context: Literal["train", "val"]) -> None:
        """Name the data sets that the run reads, with the digest of each one's manifest (its first 36 characters)."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = [
            DatasetInput(
                Dataset(name=name, digest=digest[:DIGEST_LENGTH], source_type="manifest", source=name),
                [InputTag("mlflow.data.context", context)],
            )
            for name, digest in digests.items()
        ]
        self._client.log_inputs(self.run_id, inputs)

    def log_text(self, text: str, name: str) -> None:
        """Store a text as the run's file `name`."""
        self._client.log_text(self.run_id, text, name)

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Store a copy of a file, in a folder of the run's files."""
        self._client.log_artifact(self.run_id, str(path), folder)

    def log_figure(self, figure: Figure, name: str) -> None:
        """Store a matplotlib figure as the run's file `name`."""
        self._client.log_figure(self.run_id, figure, name)

    def log_image(self, image: NDArray[np.uint8], name: str, step: int) -> None:
        """Store an RGB picture of one step; the pictures of one name can be leafed through in MLflow.

        Shape: (H, W, 3) uint8.
        """
        self._client.log_image(self.run_id, image, key=name, step=step, synchronous=True)

    def steps(self, metric: str) -> set[int]:
        """Return the steps at which a metric is stored; flush before asking.

        Metrics are sent in the background and out of order: a step that is stored says nothing about those before it.
        """
        return {entry.step for entry in self._client.get_metric_history(self.run_id, metric)}

    def flush(self) -> bool:
        """Wait until the metrics are stored; those that could not be sent are sent again, with a warning."""
        from mlflow.exceptions import MlflowException

        failed: list[tuple[list[Metric], RunOperations]] = []
        reason = ""
        for batch, operation in self._sent:
            try:
                operation.wait()
            except MlflowException as error:
                reason = _first_line(error)
                failed.append((batch, self._send(batch)))
        self._sent = failed
        if failed:
            count = sum(len(batch) for batch, _ in failed)
            _log.warning("MLflow at %s did not take %d metrics, will try again: %s", self.uri, count, reason)
        return not failed

    def finish(self, status: Literal["FINISHED", "FAILED", "KILLED"] = "FINISHED") -> None:
        """Store what is left and close the run; a later `open` with its id continues it.

        A store that has gone away only gets a warning here: it must not turn a finished training into a failed one.
        """
        from mlflow.exceptions import MlflowException

        try:
            if not self.flush():
                self.flush()
            self._client.set_terminated(self.run_id, status)
        except MlflowException as error:
            _log.warning("MLflow at %s did not close the run %s: %s", self.uri, self.run_id, _first_line(error))

    def _send(self, batch: list[Metric]) -> RunOperations:
        operation = self._client.log_batch(self.run_id, batch, synchronous=False)
        assert operation is not None  # only a synchronous call returns nothing
        return operation


def _reach(uri: str) -> None:
    """Make the database's folder, or fail within seconds when no server answers: MLflow retries for minutes."""
    parts = urlsplit(uri)
    try:
        if parts.scheme == "sqlite":
            Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        elif parts.scheme in ("http", "https"):
            port = parts.port or (443 if parts.scheme == "https" else 80)
            socket.create_connection((parts.hostname or "", port), timeout=10).close()
    except (OSError, ValueError) as error:
        raise PostError(
            f"cannot reach MLflow at {uri}: {error}", "start it: mlflow server --port 5000; or leave mlflow.uri out"
        ) from error


def _experiment(client: MlflowClient, uri: str, name: str) -> str:
    """Return the experiment's id, made if it is new, also when another process makes it at the same moment."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        # A database keeps artifacts in the working directory unless told; a server decides by itself.
        database = Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None
        try:
            return client.create_experiment(
                name, artifact_location=(database.parent / "mlartifacts").as_uri() if database else None
            )
        except MlflowException:
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        raise PostError(
            f"the experiment {name!r} was deleted in MLflow at {uri}",
            f"choose another: mlflow.experiment=...; or: mlflow experiments restore -x {found.experiment_id}",
        )
    return str(found.experiment_id)


def _continues(client: MlflowClient, run_id: str) -> bool:
    """Reopen a stored run; False, with a warning, when this store does not have it any more."""
    from mlflow.exceptions import MlflowException

    try:
        if client.get_run(run_id).info.lifecycle_stage == "active":
            client.update_run(run_id, status="RUNNING")
            return True
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
    _log.warning("MLflow does not have the run %s any more; logging continues in a new one", run_id)
    return False


def _tags() -> dict[str, str]:
    """Return the commit of this checkout, and whether its files differ from it; nothing where git cannot say."""
    root = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        tags = {"mlflow.source.git.commit": git("rev-parse", "HEAD")}
        if git("status", "--porcelain", "--untracked-files=no"):
            tags["git.changed"] = "true"
    except (OSError, subprocess.SubprocessError):
        return {}
    return tags


def _first_line(error: Any) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
