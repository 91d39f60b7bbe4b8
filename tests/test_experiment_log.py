"""The log over a real sqlite store and a real server: what a reader of MLflow finds afterwards."""

import logging
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from post_platform.errors import PostError
from post_platform.experiment_log import ExperimentLog


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


def reopen(folder: Path, run_id: str | None = None, name: str = "a") -> ExperimentLog:
    return ExperimentLog.open(None, "toy", name, run_id, default_dir=folder)


def check_a_run(log: ExperimentLog, reader: MlflowClient) -> None:
    """Everything the training logs, read back by MLflow's own client."""
    params = {f"p{number}": number for number in range(130)}
    log.log_params(params)
    log.log_metrics({f"m/{number}": number / 7 for number in range(1030)}, step=3)
    log.log_metrics({"train/loss/center": 0.5, "undefined": None, "nan": float("nan")}, step=4)
    log.log_inputs({"kitti_mots/train": "0123456789" * 6}, context="train")
    log.log_text("seed: 0\n", "config.yaml")
    log.log_image(np.full((8, 16, 3), 200, dtype=np.uint8), "val/kitti_mots", step=4)
    assert log.flush()

    data = reader.get_run(log.run_id).data
    assert {name: int(value) for name, value in data.params.items()} == params
    assert len(data.metrics) == 1031
    assert data.metrics["m/1029"] == 147.0
    assert (max(log.steps("m/0")), max(log.steps("train/loss/center")), log.steps("nan")) == (3, 4, set())
    (source,) = reader.get_run(log.run_id).inputs.dataset_inputs
    assert (source.dataset.name, source.dataset.digest) == ("kitti_mots/train", "012345678901234567890123456789012345")
    assert [(tag.key, tag.value) for tag in source.tags] == [("mlflow.data.context", "train")]
    assert {file.path for file in reader.list_artifacts(log.run_id)} == {"config.yaml", "images"}
    assert len(reader.list_artifacts(log.run_id, "images")) == 2  # the picture and its thumbnail
    log.finish()
    assert reader.get_run(log.run_id).info.status == "FINISHED"


def test_sqlite_store_lies_in_the_run_s_folder(folder, monkeypatch, tmp_path, caplog):
    monkeypatch.chdir(tmp_path)
    with caplog.at_level(logging.INFO):
        log = reopen(folder)
    assert not [record for record in caplog.records if record.name.startswith(("mlflow", "alembic"))]
    assert log.uri == f"sqlite:///{folder}/mlflow.db"
    check_a_run(log, MlflowClient(log.uri))
    assert (folder / "mlartifacts" / log.run_id / "artifacts" / "config.yaml").read_text() == "seed: 0\n"
    assert log.view == f"mlflow ui --backend-store-uri sqlite:///{folder}/mlflow.db"
    assert not list(tmp_path.iterdir()), "nothing is left in the working directory"


def test_restart_continues_the_same_run(folder):
    first = reopen(folder)
    first.log_params({"train.steps": 100, "seed": 0})
    first.log_metrics({"a": 1.0}, step=10)
    first.finish("FAILED")
    again = reopen(folder, first.run_id)
    reader = MlflowClient(again.uri)
    assert again.run_id == first.run_id
    assert reader.get_run(again.run_id).info.status == "RUNNING"
    assert max(again.steps("a")) == 10
    again.log_params({"train.steps": 200, "seed": 0, "new": 1})
    for _ in range(2):
        again.log_inputs({"d/train": "abc"}, context="train")
    run = reader.get_run(again.run_id)
    assert run.data.params == {"train.steps": "100", "seed": "0", "new": "1"}
    assert run.data.tags["changed.train.steps"] == "100 -> 200"
    assert "changed.seed" not in run.data.tags
    assert len(run.inputs.dataset_inputs) == 1


def test_commit_is_a_tag(folder):
    log = reopen(folder)
    root = Path(__file__).resolve().parent
    git = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    expected = None if git.returncode else git.stdout.strip()  # a copy without git has no commit to name
    tags = MlflowClient(log.uri).get_run(log.run_id).data.tags
    assert tags.get("mlflow.source.git.commit") == expected


def test_run_that_the_store_lost_begins_anew_with_a_warning(folder, caplog):
    log = reopen(folder, "0" * 32)
    assert log.run_id != "0" * 32
    assert "does not have the run 00000000" in caplog.text


def test_deleted_experiment_is_named(folder):
    log = ExperimentLog.open(None, "gone", "a", default_dir=folder)
    client = MlflowClient(log.uri)
    client.delete_experiment(client.get_experiment_by_name("gone").experiment_id)
    with pytest.raises(PostError, match=r"^the experiment 'gone' was deleted in MLflow at sqlite:"):
        ExperimentLog.open(None, "gone", "a", default_dir=folder)


def test_unreachable_server_is_one_line_at_once(tmp_path):
    begin = time.monotonic()
    with pytest.raises(PostError, match=r"^cannot reach MLflow at http://127.0.0.1:1: .*refused$") as caught:
        ExperimentLog.open("http://127.0.0.1:1", "toy", "a", default_dir=tmp_path)
    assert "mlflow server" in caught.value.hint
    assert time.monotonic() - begin < 5


def test_metrics_the_store_refused_are_sent_again(folder, monkeypatch, caplog):
    log = reopen(folder)
    queue = log._client._tracking_client.store._async_logging_queue
    working, calls = queue._logging_func, []

    def failing_once(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 1:
            raise MlflowException("disk full")
        return working(*arguments, **options)

    monkeypatch.setattr(queue, "_logging_func", failing_once)
    log.log_metrics({"a": 1.0, "b": 2.0}, step=1)
    assert not log.flush()
    assert "did not take 2 metrics" in caplog.text
    assert log.flush()
    assert log.steps("b") == {1}


def test_store_that_went_away_does_not_fail_a_finished_training(folder, monkeypatch, caplog):
    log = reopen(folder)

    def gone(*arguments, **options):
        raise MlflowException("connection lost")

    monkeypatch.setattr(log._client, "set_terminated", gone)
    log.finish()
    assert "did not close the run" in caplog.text
    assert "connection lost" in caplog.text


def test_server(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{tmp_path}/s.db", "--artifacts-destination", str(tmp_path / "files")]
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    with (tmp_path / "server.log").open("w") as output:
        server = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{uri}/health", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, (tmp_path / "server.log").read_text()
                time.sleep(0.2)
        log = ExperimentLog.open(uri, "toy", "a", default_dir=tmp_path)
        assert log.view == uri
        check_a_run(log, MlflowClient(uri))
    finally:
        os.killpg(server.pid, 15)
        server.wait(timeout=30)
