"""Where tasks and training workers run: an embedded Ray on this machine, or the cluster at `RAY_ADDRESS`.

Ray is imported inside the functions, so that a script's `--help` does not wait for it.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import logging
import os
import signal
import socket
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from post_platform.errors import ConfigError, PostError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

OBJECT_STORE_BYTES = 512 << 20
"""Embedded object store. Ray would take 30% of the machine; what crosses it here is plan rows and shard reports."""

JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Variable with which Ray starts the process of a submitted job."""

SETTINGS = {
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",  # scripts show their own
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # a worker's line would appear twice
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # a warning about Ray's next default, which this choice takes
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",  # a node that is taken away gives notice of 30 s at some clouds
}


def connect() -> str:
    """Start or join Ray, with `post_platform` and `post_model` importable on every worker; describe it in one line.

    `RAY_ADDRESS` set: joins that cluster. Unset: an embedded Ray for this process, also where another one runs on
    the host. Calling again changes nothing.

    Raises:
        PostError: nothing answers at `RAY_ADDRESS`, the cluster refuses this process, or this machine is too busy.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    import ray

    if not ray.is_initialized():
        if address := _address():
            _join(address)
        else:
            _embed()
        stop_politely()
    return _describe()


def stop_politely() -> None:
    """Let SIGTERM end this process as Ctrl-C does; Ray's own handler prints a C++ stack and aborts."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def worker_cpus() -> float:
    """CPUs that one training worker reserves.

    Half a slot on the embedded Ray, so that Ray Data tasks always find one: reserving all of them hangs silently.
    """
    return 1.0 if _address() else 0.5


def _address() -> str:
    """Return the cluster's address, '' for the embedded Ray."""
    address = os.environ.get("RAY_ADDRESS", "")
    return "" if address == "local" else address


def _embed() -> None:
    import ray

    with _inherited_by_ray(), _without_auth_notice():
        try:
            ray.init(
                address="local",
                num_cpus=max(4, os.cpu_count() or 1),
                include_dashboard=False,
                log_to_driver=False,  # Ray's own chatter; our workers write to the run's folder, errors come back
                logging_level=logging.WARNING,
                object_store_memory=OBJECT_STORE_BYTES,
            )
        except Exception as error:
            if "timed out during startup" not in str(error):  # Ray has no class of its own for it
                raise
            raise PostError(
                "Ray did not start within its 30 seconds: this machine is too busy",
                "try again; what else runs here: top",
            ) from error


def _join(address: str) -> None:
    import ray

    try:
        _probe(address)
        ray.init(address="auto", log_to_driver=False, logging_level=logging.WARNING, runtime_env=_runtime_env())
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        hint = "unset RAY_ADDRESS to run on this machine alone, or look at the cluster: ray status"
        if "InvalidAuthToken" in f"{error} {error.__cause__} {error.__context__}":
            reason, hint = "it wants its token", "export RAY_AUTH_MODE=token, with its token in ~/.ray/auth_token"
        raise PostError(f"cannot join the Ray cluster at RAY_ADDRESS={address}: {reason}", hint) from error


def _probe(address: str) -> None:
    """Fail within seconds when nobody listens; `ray.init` was still retrying after ten minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdigit():  # "auto" is found by Ray itself
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _packages() -> list[Path]:
    """Return the folders of both packages of this checkout."""
    import post_model
    import post_platform

    return [Path(package.__file__).resolve().parent for package in (post_platform, post_model) if package.__file__]


def _runtime_env() -> dict[str, object]:
    """Ship both packages to the cluster, as paths; a submitted job that already ships modules keeps its own."""
    job = _job_environment()
    env_vars = {name: os.environ[name] for name in SETTINGS if name not in job.get("env_vars", {})}
    modules = {} if "py_modules" in job else {"py_modules": [str(path) for path in _packages()]}
    return {"env_vars": env_vars, **modules}


def _job_environment() -> dict[str, Any]:
    """Return the runtime environment that this process was submitted with; empty outside of a job."""
    environment: dict[str, Any] = json.loads(os.environ.get(JOB) or "{}").get("runtime_env", {})
    return environment


@dataclass(frozen=True)
class Dashboard:
    """Where the cluster's dashboard is, who can reach that address, and whether it asks for a token."""

    address: str
    public: bool
    loopback: bool
    wants_token: bool


def dashboard() -> Dashboard | None:
    """The dashboard of the cluster that this process has joined, asked as a stranger; None: there is none to ask."""
    from ray._private.worker import get_dashboard_url

    url = get_dashboard_url() if _address() else None
    if not url:
        return None
    host, _, port = url.rpartition(":")
    connection = http.client.HTTPConnection(host.strip("[]"), int(port), timeout=10)
    try:
        address = ipaddress.ip_address(socket.gethostbyname(host.strip("[]")))
        connection.request("GET", "/api/jobs/")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    return Dashboard(url, address.is_global, address.is_loopback, status in (401, 403))


def refuse_copies(paths: Mapping[str, str | None]) -> None:
    """Refuse paths inside what `ray job submit --working-dir` unpacked: each node has its own copy, for one job only.

    Args:
        paths: configuration key -> absolute path.

    Raises:
        ConfigError: one of them is; reports and checkpoints would be lost with the copy.
    """
    if "working_dir" not in _job_environment():
        return
    copy = Path.cwd()
    for name, path in paths.items():
        if path and Path(path).is_relative_to(copy):
            raise ConfigError(
                f"{name}: ./{Path(path).relative_to(copy)} is in the copy of the code that each node has of this job, "
                "and that goes with it",
                f"name one that all nodes share: {name}=/...",
            )


@contextmanager
def _inherited_by_ray() -> Iterator[None]:
    """Set what Ray's own processes inherit: both source roots on `PYTHONPATH`, and no API server.

    A `runtime_env` would set the path too, but throws away the workers Ray prestarts: 1.5 s slower to the eighth task.
    Ray Train asks the API server once a second whether its controller lives. There is none without a dashboard, and
    looking for one takes 40 s where the host remembers a cluster that is gone: an address that refuses at once.
    """
    before = dict(os.environ)
    roots = [str(path.parent) for path in _packages()]
    inherited = {
        "PYTHONPATH": os.pathsep.join([*roots, *filter(None, [before.get("PYTHONPATH")])]),
        "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:9",
        "RAY_worker_maximum_startup_concurrency": "4",  # else Ray warns of 8 workers on two cores; a run needs 10
    }
    os.environ.update(inherited)
    try:
        yield
    finally:
        for name in inherited:
            os.environ.pop(name)
            os.environ.update({name: before[name]} if name in before else {})


@contextmanager
def _without_auth_notice() -> Iterator[None]:
    """Hide the notice that Ray has switched token authentication on: the embedded Ray keeps that default."""
    logger = logging.getLogger("ray._private.authentication.authentication_token_setup")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _describe() -> str:
    import ray

    total = ray.cluster_resources()
    slots, gpus = round(total.get("CPU", 0)), round(total.get("GPU", 0))
    counts = f"{slots} CPU slots, {gpus} GPU{'' if gpus == 1 else 's'}"
    if address := _address():
        nodes = sum(bool(node["Alive"]) for node in ray.nodes())
        return f"Ray cluster at {address}: {nodes} node{'' if nodes == 1 else 's'}, {counts}"
    return f"embedded Ray: {counts}"
