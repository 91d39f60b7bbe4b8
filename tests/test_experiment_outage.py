"""A training whose MLflow server hangs, refuses, dies and comes back; and which is killed itself meanwhile."""

import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow_server import Server

from post_platform import experiment_buffer
from post_platform.experiment_log import ExperimentLog

STEPS = 200
# As if each process were started anew, without importing mlflow anew.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["mlflow", "sqlalchemy", "post_platform.experiment_log"])


@pytest.fixture
def impatient(monkeypatch):
    """The user's own settings of MLflow's client, for a server that hangs; the ones of ours are longer."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(experiment_buffer, "PROBE", 1.0)
    yield
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "1"
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "0"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Server(tmp_path_factory.mktemp("server")) as server:
        yield server


def warnings(caplog):
    return [record.message for record in caplog.records if record.name.startswith("post_platform")]


def stored(server, run_id, metric):
    history = MlflowClient(server.uri).get_metric_history(run_id, metric)
    return sorted((entry.step, entry.value) for entry in history)


def flush(log):
    """As soon as the server answers again, on a machine that may be slow; the user's own settings allow 1 s."""
    end = time.monotonic() + 60
    while not log.flush():
        assert time.monotonic() < end


def log_everything(log, step, folder):
    log.log_params({"seed": 0, "steps": STEPS})
    log.log_metrics({"a": step / 2, "b": -step}, step)
    log.log_inputs({"kitti_mots/train": "abc"}, "train")
    log.log_text(f"step {step}", f"texts/{step}.txt")
    (folder / "ledger.txt").write_text(f"ledger {step}")
    log.log_file(folder / "ledger.txt", "ledgers")
    log.log_image(np.full((40, 600, 3), step, dtype=np.uint8), "val/x", step)


def test_a_server_that_hangs_does_not_hold_the_training_up(server, tmp_path, impatient, caplog):
    log = ExperimentLog.open(server.uri, "outage", "a", default_dir=tmp_path)
    log_everything(log, 1, tmp_path)
    flush(log)
    caplog.clear()
    server.send(signal.SIGSTOP)
    try:
        begin = time.monotonic()
        for step in range(2, 102):
            log.log_metrics({"a": step / 2}, step)
        log_everything(log, 102, tmp_path)
        assert time.monotonic() - begin < 2
        assert not log.flush()
        assert log.steps("a") == set()
        assert time.monotonic() - begin < 15
        again = ExperimentLog.open(server.uri, "outage", "a", log.run_id, default_dir=tmp_path, owner=False)
        assert time.monotonic() - begin < 25
        assert (again.run_id, again.steps("a")) == (log.run_id, set())
    finally:
        server.send(signal.SIGCONT)
    flush(log)
    gone, back = warnings(caplog)
    assert gone.startswith(f"MLflow at {server.uri} does not answer; what is logged waits in {tmp_path}/a/mlflow/")
    assert back == f"MLflow at {server.uri} answers again; 106 entries that had waited are stored"
    assert stored(server, log.run_id, "a") == [(step, step / 2) for step in range(1, 103)]
    assert stored(server, log.run_id, "b") == [(1, -1), (102, -102)]
    log.finish()


def test_a_continued_run_starts_and_ends_without_its_server(server, tmp_path, caplog):
    first = ExperimentLog.open(server.uri, "outage", "b", default_dir=tmp_path)
    log_everything(first, 1, tmp_path)
    flush(first)
    first.finish("FAILED")
    server.kill()
    begin = time.monotonic()
    second = ExperimentLog.open(server.uri, "outage", "b", first.run_id, default_dir=tmp_path)
    for step in (1, 2):  # 1 is logged again, as after a kill between a checkpoint and its publication
        log_everything(second, step, tmp_path)
    second.finish("KILLED")
    assert time.monotonic() - begin < 10
    gone, unclosed = warnings(caplog)
    assert "does not answer" in gone
    assert f"did not close the run {first.run_id}" in unclosed
    caplog.clear()

    server.start()
    reader = MlflowClient(server.uri)
    third = ExperimentLog.open(server.uri, "outage", "b", first.run_id, default_dir=tmp_path)
    third.log_metrics({"a": 1.5}, 3)
    flush(third)
    run = reader.get_run(first.run_id)
    assert run.info.status == "RUNNING", "the end that had waited is not this start's"
    assert "answers again" in warnings(caplog)[-1]
    assert run.data.params == {"seed": "0", "steps": str(STEPS)}
    assert len(run.inputs.dataset_inputs) == 1
    assert stored(server, first.run_id, "a") == [(1, 0.5), (2, 1.0), (3, 1.5)]
    assert stored(server, first.run_id, "b") == [(1, -1), (2, -2)]
    files = {folder: reader.list_artifacts(first.run_id, folder) for folder in ("texts", "ledgers", "images")}
    assert {folder: len(found) for folder, found in files.items()} == {"texts": 2, "ledgers": 1, "images": 4}
    ledger = reader.download_artifacts(first.run_id, "ledgers/ledger.txt", str(tmp_path))
    assert Path(ledger).read_text() == "ledger 2"
    third.finish()
    assert reader.get_run(first.run_id).info.status == "FINISHED"


def train(uri: str, folder: Path, run_id: str, seed: int) -> None:
    """Log what is missing of 200 steps, from the last commit on: those behind it are logged again after a kill."""
    chance = random.Random(seed)
    commit = folder / "committed"
    begin = int(commit.read_text()) if commit.exists() else 0
    log = ExperimentLog.open(uri, "outage", folder.name, run_id, default_dir=folder.parent)
    log.log_params({"seed": 0})
    for step in range(begin + 1, STEPS + 1):
        log.log_metrics({"a": step / 2, "b": -step}, step)
        if step % 20 == 0:
            log.log_text(str(step), f"{step}.txt")
            log.log_image(np.full((8, 8, 3), step, dtype=np.uint8), "x", step)
            (folder / "new").write_text(str(step))
            (folder / "new").rename(commit)
        time.sleep(chance.uniform(0, 0.02))
    log.finish()


@pytest.mark.parametrize("seed", range(3))
def test_kills_of_training_and_server_lose_and_double_nothing(server, tmp_path, seed):
    chance = random.Random(seed)
    folder = tmp_path / "run"
    run_id = ExperimentLog.open(server.uri, "outage", "run", default_dir=tmp_path).run_id

    def begin(number):
        process = processes.Process(target=train, args=(server.uri, folder, run_id, number))
        process.start()
        return process

    folder.mkdir()
    first = begin(seed)
    time.sleep(chance.uniform(0.2, 2))
    for kill in chance.sample([server.kill, first.kill], 2):
        kill()
        time.sleep(chance.uniform(0, 0.5))
    first.join()
    second = begin(seed + 10)
    server.start(wait=False)
    time.sleep(chance.uniform(0, 3))
    second.kill()
    second.join()
    third = begin(seed + 20)
    third.join()
    assert third.exitcode == 0
    server.wait()
    ExperimentLog.open(server.uri, "outage", "run", run_id, default_dir=tmp_path).finish()

    for metric, value in {"a": lambda step: step / 2, "b": lambda step: -step}.items():
        assert stored(server, run_id, metric) == [(step, value(step)) for step in range(1, STEPS + 1)]
    reader = MlflowClient(server.uri)
    assert reader.get_run(run_id).data.params == {"seed": "0"}
    assert reader.get_run(run_id).info.status == "FINISHED"
    files = {file.path for file in reader.list_artifacts(run_id)} - {"images"}
    assert files == {f"{step}.txt" for step in range(20, STEPS + 1, 20)}
    pictures = Counter(file.path.split("+timestamp+")[0] for file in reader.list_artifacts(run_id, "images"))
    assert pictures == {f"images/x+step+{step}": 2 for step in range(20, STEPS + 1, 20)}
    assert not list(folder.glob("mlflow/*/*-*")), "nothing waits"
