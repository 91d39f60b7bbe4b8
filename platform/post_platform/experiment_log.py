"""One MLflow run per training: the same run after every restart. The only importer of mlflow.

mlflow is imported when a log is opened (2.5 s), so that a script's `--help` does not wait for it.
"""

from __future__ import annotations

import logging
import math
import os
import re
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from post_platform.errors import PostError
from post_platform.experiment_buffer import Entry, Sender, Spool, first_line, unreachable
from post_platform.experiment_owner import HOST, SPOOL, commit_tags, host, is_gone, process_tags

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient

PARAMS_PER_CALL, METRICS_PER_CALL, DIGEST_LENGTH, PARAM_LENGTH = 100, 1000, 36, 6000  # MLflow's own limits
THUMBNAIL = 256  # longest side, of the small copy that MLflow's page shows
# Where the user says nothing: MLflow itself would try 8 times, up to 120 s each. We try again by ourselves.
CLIENT_DEFAULTS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
# Answers that another try gets again. Whatever else goes wrong (a 500, a full disk, an expired token) may pass.
REFUSALS = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "BAD_REQUEST")

_log = logging.getLogger(__name__)


class ExperimentLog:
    """An open MLflow run. All is written to a spool on disk and sent in the background; call `finish` at the end.

    A store that goes away costs the training neither time nor data: what is logged meanwhile is sent when it is back,
    by this process, another one of the run, or its next start. However often a step is sent, or logged again by a
    later process, MLflow holds each of its metrics and pictures once.

    The spool is `<folder>/mlflow/<run id>`. What waits there is as safe as that folder: on a disk that only one
    machine sees, it is lost with that machine.
    """

    def __init__(self, client: MlflowClient, uri: str, run_id: str, folder: Path) -> None:
        self.uri = uri
        self.run_id = run_id
        self._client = client
        self._folder = folder / run_id
        self._sender = Sender(self._folder, f"MLflow at {uri}", self._deliver)
        self._lock = threading.Lock()
        self._spool: Spool | None = None
        self._head: list[Entry] = []  # of the spool, once something is written
        self._names: set[str] | None = None  # of metrics that were stored when we looked
        self._stored: dict[str, set[int]] = {}
        self._pictures: dict[str, str] | None = None

    @classmethod
    def open(
        cls,
        uri: str | None,
        experiment: str,
        run_name: str,
        run_id: str | None = None,
        *,
        default_dir: Path,
        folder: Path | None = None,
        owner: bool = True,
    ) -> ExperimentLog:
        """Continue the run `run_id`, or begin one where it is None or unknown to this store (then with a warning).

        A run that is continued goes on, with a warning, when its server is away. Runs of this experiment that were
        RUNNING in a process of this machine that is gone are closed as KILLED. Those of other machines are left as
        they are, also when such a machine has vanished: from here a silent process cannot be told from a dead one.

        Args:
            uri: the store; None for `default_dir`/mlflow.db, with the artifacts beside it.
            experiment: the experiment's name, made if it is new.
            run_name: the name of a new run.
            run_id: the run to continue.
            default_dir: where the database is without `uri`.
            folder: the run's folder, for the spool; `default_dir`/`run_name` unless told.
            owner: whether the run ends with this process; a worker of the run, which may be replaced, says False.

        Raises:
            PostError: nothing answers at `uri` for a new run, or it is no MLflow store, or the experiment was deleted.
        """
        for name, value in {"MLFLOW_DISABLE_TELEMETRY": "true", **CLIENT_DEFAULTS}.items():
            os.environ.setdefault(name, value)
        uri = uri or f"sqlite:///{default_dir.resolve()}/mlflow.db"
        spools = (folder or default_dir / run_name).resolve() / "mlflow"
        may_wait = run_id is not None and uri.startswith("http")
        problem = unreachable(uri)
        if problem and not may_wait:
            remedy = "start it: mlflow server --port 5000; or leave mlflow.uri out"
            raise PostError(f"cannot reach MLflow at {uri}: {problem}", remedy)
        from mlflow import MlflowClient
        from mlflow.entities import RunTag
        from mlflow.exceptions import MlflowException

        logging.getLogger("mlflow").setLevel(logging.WARNING)  # the first use of a database announces its migrations
        tags = {**process_tags(), SPOOL: str(spools)} if owner else {}
        try:
            client = MlflowClient(uri)
            if not problem:
                experiment_id = _experiment(client, uri, experiment)
                if run_id is not None and _continues(client, run_id):
                    client.log_batch(run_id, tags=[RunTag(*tag) for tag in tags.items()], synchronous=True)
                else:
                    run = client.create_run(experiment_id, run_name=run_name, tags=commit_tags() | tags)
                    run_id = run.info.run_id
                if owner:
                    _close_abandoned(client, uri, experiment_id, run_id)
        except MlflowException as error:
            if not may_wait or error.error_code in REFUSALS:
                remedy = "choose another store: mlflow.uri=..."
                raise PostError(f"MLflow at {uri}: {first_line(error)}", remedy) from error
            problem = first_line(error)
        assert run_id is not None
        log = cls(client, uri, run_id, spools)
        if owner and (problem or log._sender.waiting):
            log._head = [{"kind": "status", "status": "RUNNING", "tags": tags}]  # an older spool may hold an end
        if problem:
            log._sender.notice_away(problem)
        elif not log._sender.waiting:
            log._sender.notice_answer()
        return log

    @property
    def view(self) -> str:
        """The command, or the address, that shows this log."""
        return f"mlflow ui --backend-store-uri {self.uri}" if self.uri.startswith("sqlite") else self.uri

    def log_params(self, params: Mapping[str, object]) -> None:
        """Log each parameter once; one that changed since (MLflow forbids that) becomes a tag `changed.<name>`."""
        self._append("params", values={name: str(value)[:PARAM_LENGTH] for name, value in params.items()})

    def log_metrics(self, metrics: Mapping[str, float | None], step: int) -> None:
        """Log metrics of one optimiser step; an undefined one (None, NaN) is left out."""
        defined = {name: float(v) for name, v in metrics.items() if v is not None and not math.isnan(v)}
        if defined:
            self._append("metrics", step=step, time=_now(), values=defined)

    def log_inputs(self, digests: Mapping[str, str], context: Literal["train", "val"]) -> None:
        """Name the data sets that the run reads, with the digest of each one's manifest (its first 36 characters)."""
        self._append("inputs", digests={name: text[:DIGEST_LENGTH] for name, text in digests.items()}, context=context)

    def log_text(self, text: str, name: str) -> None:
        """Store a text as the run's file `name`."""
        self._append_files("file", {name: lambda path: path.write_text(text, encoding="utf-8")})

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Store a copy of a file, in a folder of the run's files."""
        self._append_files("file", {str(PurePosixPath(folder or "", path.name)): lambda copy: shutil.copy(path, copy)})

    def log_figure(self, figure: Figure, name: str) -> None:
        """Store a matplotlib figure as the run's file `name`."""
        self._append_files("file", {name: figure.savefig})

    def log_image(self, image: NDArray[np.uint8], name: str, step: int) -> None:
        """Store an RGB picture of one step; the pictures of one name can be leafed through in MLflow.

        Shape: (H, W, 3) uint8.
        Source: the file names of `MlflowClient.log_image`, which draws new ones when it is called again.
        """
        key = re.sub(r"[^\w\-. /]", "_", name, flags=re.ASCII).replace("/", "~")
        path = f"images/{key}+step+{step}+timestamp+{_now()}+{uuid.uuid4()}"
        picture = Image.fromarray(image)
        small = picture.copy()
        small.thumbnail((THUMBNAIL, THUMBNAIL))
        # The picture last: where it is stored, all of it is.
        self._append_files("image", {f"{path}+compressed.webp": small.save, f"{path}.png": picture.save})

    def steps(self, metric: str) -> set[int]:
        """Return the steps at which a metric is stored; flush before asking. Empty while the store is away.

        Nobody needs it to publish: what is stored already is left out when it is logged again.
        """
        if self._sender.away:
            return set()
        try:
            return self._steps(metric)
        except Exception as error:  # as in the sender
            self._sender.notice_away(first_line(error))
            return set()

    def flush(self) -> bool:
        """Wait until all is stored; False at once when the store does not answer: what waits is sent later."""
        return self._sender.flush()

    def finish(self, status: Literal["FINISHED", "FAILED", "KILLED"] = "FINISHED") -> None:
        """Store what is left and close the run; a later `open` with its id continues it.

        A store that has gone away only gets a warning here: it must not turn a finished training into a failed one.
        """
        self._append("status", status=status, time=_now())
        stored = self._sender.flush() or self._sender.flush()
        if self._spool:
            self._spool.close()
            self._spool = None
        self._sender.close()
        if not stored:
            where = f"{math.ceil(self._sender.waiting / 1000)} kB wait in {self._folder}"
            end = "the next start of this run sends them"
            _log.warning("MLflow at %s did not close the run %s: %s; %s", self.uri, self.run_id, where, end)

    def _append(self, kind: str, **fields: Any) -> None:
        try:
            self._open_spool().append({"kind": kind, **fields})
        except OSError as error:
            _log.warning("%s of the run %s are not logged: %s", kind, self.run_id, error)
        self._sender.wake()

    def _append_files(self, kind: str, files: Mapping[str, Callable[[Path], object]]) -> None:
        """Write files, by their path in the run, into the spool, and the entry that refers to them."""
        spooled = {}
        try:
            for name, write in files.items():
                path = self._open_spool().new_file(PurePosixPath(name).name)
                write(path)
                spooled[name] = str(path.relative_to(self._folder))
        except OSError as error:
            _log.warning("%s of the run %s is not logged: %s", " and ".join(files), self.run_id, error)
        else:
            self._append(kind, files=spooled)

    def _open_spool(self) -> Spool:
        with self._lock:
            if self._spool is None:
                self._spool = Spool(self._folder)
                for entry in self._head:
                    self._spool.append(entry)
                self._head = []
            return self._spool

    def _deliver(self, entries: list[Entry]) -> int:
        """Store the first entries, metrics of many steps at once; return how many are dealt with."""
        count, points = 0, 0
        while count < len(entries) and entries[count]["kind"] == "metrics" and points < METRICS_PER_CALL:
            points += len(entries[count]["values"])
            count += 1
        count = max(1, count)
        try:
            getattr(self, f"_store_{entries[0]['kind']}")(entries[:count])
        except Exception as error:
            self._names, self._stored, self._pictures = None, {}, None  # look again: only the answer may be lost
            if getattr(error, "error_code", None) not in REFUSALS:
                raise
            if count > 1:
                return self._deliver(entries[:1])
            _log.warning("MLflow at %s refused %s, left out: %s", self.uri, entries[0]["kind"], first_line(error))
        return count

    def _store_metrics(self, entries: list[Entry]) -> None:
        from mlflow.entities import Metric

        if self._names is None:
            self._names = set(self._client.get_run(self.run_id).data.metrics)
        points = []
        for entry in entries:
            for name, value in entry["values"].items():
                if name not in self._stored:
                    self._stored[name] = self._steps(name) if name in self._names else set()
                if entry["step"] not in self._stored[name]:
                    self._stored[name].add(entry["step"])
                    points.append(Metric(name, value, entry["time"], entry["step"]))
        for start in range(0, len(points), METRICS_PER_CALL):
            self._client.log_batch(self.run_id, points[start : start + METRICS_PER_CALL], synchronous=True)

    def _store_params(self, entries: list[Entry]) -> None:
        from mlflow.entities import Param, RunTag

        known, texts = self._client.get_run(self.run_id).data.params, entries[0]["values"]
        new = [Param(name, text) for name, text in texts.items() if name not in known]
        for start in range(0, len(new), PARAMS_PER_CALL):
            self._client.log_batch(self.run_id, params=new[start : start + PARAMS_PER_CALL], synchronous=True)
        changed = {name: text for name, text in texts.items() if known.get(name, text) != text}
        if changed:
            tags = [RunTag(f"changed.{name}", f"{known[name]} -> {text}") for name, text in changed.items()]
            self._client.log_batch(self.run_id, tags=tags, synchronous=True)

    def _store_inputs(self, entries: list[Entry]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = [
            DatasetInput(
                Dataset(name=name, digest=digest, source_type="manifest", source=name),
                [InputTag("mlflow.data.context", entries[0]["context"])],
            )
            for name, digest in entries[0]["digests"].items()
        ]
        self._client.log_inputs(self.run_id, inputs)

    def _store_file(self, entries: list[Entry]) -> None:
        for name, spooled in entries[0]["files"].items():
            path = self._folder / spooled
            if path.exists():  # else it is stored, and the process died before it could note that
                self._client.log_artifact(self.run_id, str(path), str(PurePosixPath(name).parent).strip("."))
                shutil.rmtree(path.parent)

    def _store_image(self, entries: list[Entry]) -> None:
        picture = list(entries[0]["files"])[-1]
        if self._pictures is None:
            found = self._client.list_artifacts(self.run_id, "images")
            self._pictures = {_of_step(file.path): file.path for file in found if file.path.endswith(".png")}
        if self._pictures.setdefault(_of_step(picture), picture) != picture:
            return
        self._client.set_tag(self.run_id, "mlflow.loggedImages", True, synchronous=True)
        self._store_file(entries)

    def _store_status(self, entries: list[Entry]) -> None:
        from mlflow.entities import RunTag

        status, tags = entries[0]["status"], entries[0].get("tags", {})
        if status == "RUNNING":
            self._client.log_batch(self.run_id, tags=[RunTag(*tag) for tag in tags.items()], synchronous=True)
            self._client.update_run(self.run_id, status)
        else:
            self._client.set_terminated(self.run_id, status, entries[0]["time"])

    def _steps(self, metric: str) -> set[int]:
        return {entry.step for entry in self._client.get_metric_history(self.run_id, metric)}

    def _end_abandoned(self) -> None:
        """Send what a killed process left, which may be the run's end; else the run was killed."""
        try:
            if self.flush() and self._client.get_run(self.run_id).info.status == "RUNNING":
                self._client.set_terminated(self.run_id, "KILLED")
        except Exception as error:  # runs beside a training, which it must not disturb; the next start tries again
            _log.warning("MLflow at %s did not close the run %s: %s", self.uri, self.run_id, first_line(error))
        self._sender.close()


def _experiment(client: MlflowClient, uri: str, name: str) -> str:
    """Return the experiment's id, made if it is new, also when another process makes it at the same moment."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        # A database keeps artifacts in the working directory unless told; a server decides by itself.
        database = Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None
        artifacts = (database.parent / "mlartifacts").as_uri() if database else None
        try:
            return client.create_experiment(name, artifact_location=artifacts)
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


def _close_abandoned(client: MlflowClient, uri: str, experiment_id: str, run_id: str) -> None:
    """Close as KILLED the experiment's runs that a process of this machine left RUNNING when it died."""
    query = f"attributes.status = 'RUNNING' and tags.`{HOST}` = '{host()}'"
    for run in client.search_runs([experiment_id], query, max_results=100):
        dead, tags = run.info.run_id, run.data.tags
        if dead == run_id or not is_gone(tags):
            continue
        _log.info("run %s (%s) was killed: closed in MLflow", tags.get("mlflow.runName"), dead)
        log = ExperimentLog(client, uri, dead, Path(tags[SPOOL]))
        if log._sender.waiting:
            threading.Thread(target=log._end_abandoned, daemon=True).start()
        else:
            client.set_terminated(dead, "KILLED")


def _of_step(picture: str) -> str:
    return picture.partition("+timestamp+")[0]


def _now() -> int:
    return int(time.time() * 1000)
