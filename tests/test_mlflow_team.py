"""MLflow for a team, as cluster.yaml starts it: a server over Postgres, artifacts on S3, passwords where wanted.

Needs Debian's postgresql, and psycopg2-binary and Flask-WTF beside the lock's packages: `make test-services`.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from base64 import b64encode
from pathlib import Path

import pytest
from killing import ROOT, SETTINGS, STEPS, Run
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

pytest_plugins = ("s3_server",)
BINARIES = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)
pytestmark = pytest.mark.services
ADMIN = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": "made-for-this-test"}


@pytest.fixture(scope="module")
def postgres():
    """Address, for SQLAlchemy, of a new Postgres that listens on a socket alone."""
    assert BINARIES, "needs Postgres (Debian: apt install postgresql)"
    folder = Path(tempfile.mkdtemp(prefix="pg-"))  # short: a socket's path has 107 characters at the most
    user = []
    if os.geteuid() == 0:  # as root, Postgres refuses to run
        user = ["runuser", "-u", "postgres", "--"]
        shutil.chown(folder, "postgres")
    run = [*user, "env", "-C", str(folder)]
    subprocess.run(
        [*run, BINARIES / "initdb", "-A", "trust", "-U", "post", "data"], check=True, stdout=subprocess.DEVNULL
    )
    options = f"-c listen_addresses= -k {folder}"
    control = [*run, BINARIES / "pg_ctl", "-D", "data", "-w"]
    subprocess.run([*control, "-l", "log", "-o", options, "start"], check=True, stdout=subprocess.DEVNULL)
    try:
        subprocess.run([*run, BINARIES / "createdb", "-h", folder, "-U", "post", "mlflow"], check=True)
        yield f"postgresql+psycopg2://post@/mlflow?host={folder}"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], check=True, stdout=subprocess.DEVNULL)
        shutil.rmtree(folder)


@contextlib.contextmanager
def server(folder, store, bucket, *options, **env):
    """Address of an `mlflow server` on the loopback, over the given store, with artifacts below the bucket."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", store, "--artifacts-destination", f"s3://{bucket}/mlflow", *options,
    ]  # fmt: skip
    env = (
        os.environ
        | {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        | env
    )
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        end = time.monotonic() + 300
        while not answers(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None, (folder / "server.log").read_text()
            assert time.monotonic() < end, (folder / "server.log").read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answers(address):
    with contextlib.suppress(OSError):
        urllib.request.urlopen(address, timeout=5).close()
        return True
    return False


def status(address, **headers):
    """HTTP status of listing experiments."""
    request = urllib.request.Request(f"{address}/api/2.0/mlflow/experiments/search?max_results=1", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_a_training_lands_in_postgres_and_its_files_on_s3(postgres, bucket, direct, toy_shards, tmp_path):
    hosts = ("--allowed-hosts", "127.0.0.1:*,mlflow.example")
    with server(tmp_path, postgres, bucket, *hosts) as address:
        run = Run(toy_shards, tmp_path, "team", 2, f"mlflow.uri={address}")
        try:
            run.finish()
        finally:
            run.end()
        client = MlflowClient(address)
        (found,) = client.search_runs([client.get_experiment_by_name("post").experiment_id])
        assert found.info.status == "FINISHED"
        assert found.data.params["train.steps"] == str(STEPS)
        history = client.get_metric_history(found.info.run_id, "train/loss/total")
        assert [entry.step for entry in history] == list(range(1, STEPS + 1))
        assert "config.yaml" in {file.path for file in client.list_artifacts(found.info.run_id)}
        assert client.download_artifacts(found.info.run_id, "config.yaml", str(tmp_path))
        assert not list(tmp_path.rglob("mlflow.db"))

        assert status(address, Host="mlflow.example") == 200
        assert status(address, Host="attacker.example") == 403, "a page elsewhere whose name now leads here"
    kept = direct.list_objects_v2(Bucket=bucket, Prefix="mlflow/")["Contents"]
    assert any(entry["Key"].endswith("/config.yaml") for entry in kept)


def test_a_sweep_and_a_comparison_of_its_trials_go_through_the_team_s_server(
    postgres, bucket, direct, toy_shards, tmp_path
):
    with server(tmp_path, postgres, bucket) as address:
        place = (f"data.root={toy_shards}", f"run.dir={tmp_path}", "run.name=sweep")
        store = (f"mlflow.uri={address}", "mlflow.experiment=sweeps")
        search = ("train.workers=1", "train.checkpoint_every=8", "search.trials=2", "search.repeats=1")
        pipeline("tune", *SETTINGS, *place, *store, *search)
        client = MlflowClient(address)
        experiment = client.get_experiment_by_name("sweeps")
        runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
        parent = runs["sweep"]
        trials = [run for run in runs.values() if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
        assert {"sweep/trial_000", "sweep/trial_001"} <= {run.info.run_name for run in trials}
        assert {run.info.status for run in runs.values()} == {"FINISHED"}
        assert "best.yaml" in {Path(file.path).name for file in client.list_artifacts(parent.info.run_id)}
        kept = direct.list_objects_v2(Bucket=bucket, Prefix="mlflow/")["Contents"]
        assert any(parent.info.run_id in entry["Key"] and entry["Key"].endswith("best.yaml") for entry in kept)

        said = tmp_path / "comparison.json"
        between = ("sweep/trial_000", "sweep/trial_001", "--experiment", experiment.name, "--uri", address)
        pipeline("compare", *between, "--out", str(tmp_path / "page.html"), "--json", str(said))
        compared = json.loads(said.read_text())
        assert [run["name"] for run in compared["runs"].values()] == ["sweep/trial_000", "sweep/trial_001"]
        assert compared["ledgers"][0]["same"], "downloaded from S3: both trials saw the same data"
        assert (tmp_path / "page.html").stat().st_size > 10_000


def pipeline(name, *arguments):
    """Run one of the pipelines, which must end well."""
    command = [sys.executable, str(ROOT / f"pipelines/{name}.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr


def test_with_passwords_strangers_see_nothing_and_members_their_own(postgres, bucket, monkeypatch, tmp_path):
    file = tmp_path / "auth.ini"
    file.write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = {postgres.replace('%', '%%')}\nadmin_username = admin\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    env = {
        "MLFLOW_AUTH_CONFIG_PATH": str(file),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": os.urandom(16).hex(),
        "MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN["MLFLOW_TRACKING_PASSWORD"],
    }
    with server(tmp_path, postgres, bucket, "--app-name", "basic-auth", **env) as address:
        assert status(address) == 401
        wrong = b64encode(b"admin:guess").decode()
        assert status(address, Authorization=f"Basic {wrong}") == 401
        for name in ADMIN:
            monkeypatch.delenv(name, raising=False)
        with pytest.raises(MlflowException, match=r"401|not authenticated"):
            MlflowClient(address).search_experiments()
        for name, value in ADMIN.items():
            monkeypatch.setenv(name, value)
        client = MlflowClient(address)
        experiment = client.create_experiment("with-password")
        assert client.get_experiment(experiment).name == "with-password"


def test_a_pickled_model_is_refused_where_the_setting_is_off(monkeypatch, tmp_path):
    import mlflow

    class Echo(mlflow.pyfunc.PythonModel):
        def predict(self, context, model_input, params=None):
            return model_input

    mlflow.pyfunc.save_model(tmp_path / "model", python_model=Echo(), pip_requirements=[])
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    with pytest.raises(MlflowException, match="using pickle is disallowed"):
        mlflow.pyfunc.load_model(str(tmp_path / "model"))
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "true")
    assert mlflow.pyfunc.load_model(str(tmp_path / "model")), "what makes the refusal one"
