"""The log over a real sqlite store and a real server: what a reader of MLflow finds afterwards."""

import logging
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow_server import ENVIRONMENT, Server, wait_for

from post_platform import experiment_owner
from post_platform.errors import PostError
from post_platform.experiment_buffer import Spool
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
    assert reader.get_run(log.run_id).data.tags["mlflow.loggedImages"] == "True"
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
    assert again.flush()
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


def fail(client: MlflowClient, method: str, monkeypatch, times: int = 1, after: bool = False) -> None:
    """Let the first calls of a client's method fail; `after` it has done its work, as when only the answer is lost."""
    working, calls = getattr(client, method), []

    def failing(*arguments, **options):
        calls.append(arguments)
        if len(calls) > times or after:
            result = working(*arguments, **options)
        if len(calls) <= times:
            raise MlflowException("disk full")
        return result

    monkeypatch.setattr(client, method, failing)


@pytest.mark.parametrize("after", [False, True])
def test_metrics_that_the_store_did_not_take_are_sent_again_once(folder, monkeypatch, caplog, after):
    log = reopen(folder)
    fail(log._client, "log_batch", monkeypatch, after=after)
    log.log_metrics({"a": 1.0, "b": 2.0}, step=1)
    log.log_metrics({"a": 1.0}, step=2)
    assert log.flush() or log.flush()  # the try that fails is this one's, or the one that began by itself before it
    history = [(entry.step, entry.value) for entry in MlflowClient(log.uri).get_metric_history(log.run_id, "a")]
    assert sorted(history) == [(1, 1.0), (2, 1.0)]
    assert log.steps("b") == {1}
    assert [record.message.split(str(folder))[0] for record in caplog.records] == [
        "MLflow at sqlite:///",
        "MLflow at sqlite:///",
    ]
    assert "is sent later: disk full" in caplog.text
    assert re.search(r"answers again; [12] entries that had waited are stored", caplog.text)
    log.finish()


def test_what_the_store_refuses_for_good_is_named_and_left_out(folder, caplog):
    log = reopen(folder)
    log.log_metrics({"a": 1.0}, step=1)
    log.log_metrics({"a:;!": 1.0}, step=1)
    log.log_metrics({"a": 1.0}, step=2)
    assert log.flush()
    assert log.steps("a") == {1, 2}
    assert "refused metrics, left out: " in caplog.text
    assert "a:;!" in caplog.text
    log.finish()


def test_a_step_or_picture_that_a_restart_logs_again_is_stored_once(folder):
    picture = np.zeros((8, 16, 3), dtype=np.uint8)
    first = reopen(folder)
    first.log_metrics({"a": 1.0, "b": 1.0}, step=1)
    first.log_image(picture, "val/x", 1)
    first.finish("FAILED")
    again = reopen(folder, first.run_id)
    for step in (1, 2):
        again.log_metrics({"a": 3.0, "b": 3.0, "c": 3.0}, step=step)
        again.log_image(picture, "val/x", step)
    again.finish()
    reader = MlflowClient(again.uri)
    for name, expected in {"a": [(1, 1.0), (2, 3.0)], "b": [(1, 1.0), (2, 3.0)], "c": [(1, 3.0), (2, 3.0)]}.items():
        found = [(entry.step, entry.value) for entry in reader.get_metric_history(again.run_id, name)]
        assert sorted(found) == expected
    assert len(reader.list_artifacts(again.run_id, "images")) == 4
    assert not list((folder / "a/mlflow" / again.run_id).glob("*-*")), "what is sent is removed from the spool"


def test_a_worker_s_step_that_its_successor_logs_again_is_stored_once(folder):
    driver = reopen(folder)
    driver.log_params({"seed": 0})  # from now on the driver sends for all
    assert driver.flush()
    workers = [ExperimentLog.open(None, "toy", "a", driver.run_id, default_dir=folder, owner=False) for _ in range(2)]
    for value, worker in enumerate(workers):
        worker.log_metrics({"a": value}, step=1)
        worker.log_metrics({"a": 5.0}, step=2 + value)
        worker.log_metrics({"a": 6.0}, step=2 + value)
    assert workers[1].flush()
    history = MlflowClient(driver.uri).get_metric_history(driver.run_id, "a")
    assert sorted((entry.step, entry.value) for entry in history) == [(1, 0.0), (2, 5.0), (3, 5.0)]
    for log in (*workers, driver):
        log.finish()


def test_a_full_disk_does_not_fail_the_training(folder, monkeypatch, caplog):
    log = reopen(folder)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Spool, "append", full)
    log.log_metrics({"a": 1.0}, step=1)
    log.log_text("a", "a.txt")
    log.finish()
    assert f"metrics of the run {log.run_id} are not logged: [Errno 28]" in caplog.text


def test_store_that_went_away_does_not_fail_a_finished_training(folder, monkeypatch, caplog):
    log = reopen(folder)
    fail(log._client, "set_terminated", monkeypatch, times=9)
    log.finish()
    assert "did not close the run" in caplog.text
    assert "disk full" in caplog.text
    reopen(folder, log.run_id).finish()
    assert MlflowClient(log.uri).get_run(log.run_id).info.status == "FINISHED"


def other_process(folder: Path, experiment: str, name: str, end: str) -> str:
    """The id of a run that a process of its own began, logged to, and did not finish."""
    code = (
        "import os, sys; from pathlib import Path; from post_platform.experiment_log import ExperimentLog\n"
        f"log = ExperimentLog.open(None, {experiment!r}, {name!r}, default_dir=Path({str(folder)!r}))\n"
        f"log.log_metrics({{'a': 1.0}}, 1)\nprint(log.run_id, flush=True)\n{end}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, check=False)
    return done.stdout.strip()


def test_runs_of_killed_processes_are_closed_by_the_next_start(folder, monkeypatch):
    killed = other_process(folder, "ends", "killed", "log.flush(); os.kill(os.getpid(), 9)")
    unsent = other_process(folder, "ends", "unsent", "log._sender.close(); log.log_metrics({'a': 2.0}, 2); os._exit(1)")
    alive = ExperimentLog.open(None, "ends", "alive", default_dir=folder)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(experiment_owner, "host", lambda: "elsewhere")
        foreign = ExperimentLog.open(None, "ends", "foreign", default_dir=folder)
    reader = MlflowClient(alive.uri)
    reader.set_tag(foreign.run_id, experiment_owner.PROCESS, "1 0")
    ExperimentLog.open(None, "ends", "worker", alive.run_id, default_dir=folder, owner=False)
    assert reader.get_run(alive.run_id).data.tags[experiment_owner.PROCESS].startswith(f"{os.getpid()} ")
    ExperimentLog.open(None, "other", "next", default_dir=folder)  # of another experiment: closes nothing
    ExperimentLog.open(None, "ends", "next", default_dir=folder)

    def states():
        return [reader.get_run(run).info.status for run in (killed, unsent, alive.run_id, foreign.run_id)]

    wait_for(lambda: states() == ["KILLED", "KILLED", "RUNNING", "RUNNING"])
    assert {entry.step for entry in reader.get_metric_history(unsent, "a")} == {1, 2}, "what it left was sent"
    again = ExperimentLog.open(None, "ends", "killed", killed, default_dir=folder)
    assert states()[0] == "RUNNING"
    again.finish()
    assert states()[0] == "FINISHED"


def test_a_reused_process_number_is_no_living_run(monkeypatch):
    tags = experiment_owner.process_tags()
    assert not experiment_owner.is_gone(tags)
    number, started = tags[experiment_owner.PROCESS].split()
    assert experiment_owner.is_gone({**tags, experiment_owner.PROCESS: f"{number} {int(started) - 1}"})
    assert not experiment_owner.is_gone({})
    with subprocess.Popen([sys.executable, "-c", "pass"], stdout=subprocess.PIPE) as child:
        child.stdout.read()
        wait_for(lambda: experiment_owner.is_gone({**tags, experiment_owner.PROCESS: f"{child.pid} 0"}))


def test_server(tmp_path):
    with Server(tmp_path) as server:
        log = ExperimentLog.open(server.uri, "toy", "a", default_dir=tmp_path)
        assert log.view == server.uri
        check_a_run(log, MlflowClient(server.uri))
