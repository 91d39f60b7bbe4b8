"""Training as a job of a real Ray cluster: submitted, failed, stopped, continued, and told that a node will go.

Two cases here; `make test-cluster` runs all.
"""

import json
import shutil
import time

import pytest
from killing import ROOT, SETTINGS, STEPS
from mlflow import MlflowClient
from ray_nodes import Nodes

from post_platform.training import checkpoint

LONG = ("train.steps=100000", "train.checkpoint_every=100000", "eval.every=0")
GRACE = ("--runtime-env-json", '{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}}')


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    """Two nodes of two slots, so that three workers need both, whose image holds an older install of both packages."""
    image = tmp_path_factory.mktemp("image")
    for name in ("post_platform", "post_model"):
        (image / name).mkdir()
        (image / name / "__init__.py").write_text("raise ImportError('the older install')\n")
    with Nodes(2, env={"PYTHONPATH": str(image)}) as nodes:
        yield nodes


def overrides(shards, folder):
    """Of a run named "job" in a folder."""
    return (*SETTINGS, f"data.root={shards}", f"run.dir={folder}", "run.name=job", "train.workers=3")


@pytest.fixture
def settings(toy_shards, tmp_path):
    return overrides(toy_shards, tmp_path)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the checkout, from which jobs are submitted with all they need."""
    copy = tmp_path_factory.mktemp("elsewhere")
    for name in ("platform", "model", "pipelines"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


@pytest.fixture(scope="module")
def trained(nodes, checkout, toy_shards, tmp_path_factory):
    """Folder of a run that was trained from the copy, and its finished submission."""
    folder = tmp_path_factory.mktemp("runs")
    command = ("python", "pipelines/train.py", *overrides(toy_shards, folder))
    return folder / "job", nodes.submit(*command, name="copy", options=("--working-dir", "."), cwd=checkout)


def progress(run):
    try:
        return json.loads((run / "logs/progress.json").read_text())["step"]
    except (OSError, ValueError):
        return 0


def wait_for_step(nodes, job, run, step):
    wait_until(lambda: progress(run) >= step, nodes, job)


def wait_until(condition, nodes, job, seconds=300):
    deadline = time.monotonic() + seconds
    while not condition():
        assert nodes.status(job) in ("PENDING", "RUNNING"), nodes.job_log(job)
        assert time.monotonic() < deadline, nodes.job_log(job)
        time.sleep(0.3)


def mlflow_run(run):
    stored = json.loads((run / "run.json").read_text())
    return MlflowClient(stored["mlflow_uri"]).get_run(stored["mlflow_run_id"])


def logged_steps(run):
    stored = json.loads((run / "run.json").read_text())
    history = MlflowClient(stored["mlflow_uri"]).get_metric_history(stored["mlflow_run_id"], "train/loss/total")
    return sorted(entry.step for entry in history)


def newest_step(run):
    newest = checkpoint.latest(run / "checkpoints")
    return checkpoint.read_state(newest)["step"] if newest else 0


def test_without_shards_the_job_fails_and_says_what_to_do(nodes, tmp_path):
    where = (f"data.root={tmp_path}/none", f"run.dir={tmp_path}")
    done = nodes.submit("python", "pipelines/train.py", *where, name="none")
    assert done.returncode == 1
    assert nodes.status("none") == "FAILED"
    log = nodes.job_log("none")
    assert "error: " in log
    assert "make quickstart" in log
    assert "Traceback" not in log


@pytest.fixture(scope="module")
def stopped(nodes, toy_shards, tmp_path_factory):
    """Folder of a run that `ray job stop` ended after its fifth step, and its overrides."""
    folder = tmp_path_factory.mktemp("stopped")
    run, settings = folder / "job", overrides(toy_shards, folder)
    nodes.submit("python", "pipelines/train.py", *settings, *LONG, options=GRACE, name="stopped", wait=False)
    wait_for_step(nodes, "stopped", run, 5)
    assert all(node.processes("RayTrainWorker") for node in nodes.nodes), "workers on both nodes"
    nodes.ray("job", "stop", "stopped")
    return run, settings


def test_a_stopped_job_leaves_a_checkpoint_of_its_step(nodes, stopped):
    run, _ = stopped
    assert nodes.status("stopped") == "STOPPED"
    log = nodes.job_log("stopped")
    step = newest_step(run)
    assert step >= 5
    assert f"continues from step {step}" in log
    assert "Traceback" not in log
    assert mlflow_run(run).info.status == "KILLED"
    assert logged_steps(run) == list(range(1, step + 1))


@pytest.mark.slow
def test_a_stopped_job_continues_at_its_step(nodes, stopped):
    run, settings = stopped
    step = newest_step(run)
    rest = (f"train.steps={step + 4}", *LONG[1:])
    done = nodes.submit("python", "pipelines/train.py", *settings, *rest, name="continued")
    log = nodes.job_log("continued")
    assert done.returncode == 0, log
    assert nodes.status("continued") == "SUCCEEDED"
    assert f"continuing run job at step {step}" in log
    assert newest_step(run) == step + 4
    assert mlflow_run(run).info.status == "FINISHED"
    assert logged_steps(run) == list(range(1, step + 5))


@pytest.mark.slow
def test_an_older_install_would_be_found_without_what_the_job_ships(nodes):
    """What makes the other tests here a proof that workers import the submitted code."""
    done = nodes.submit("python", "-c", "import post_platform", name="older")
    assert done.returncode == 1
    assert "ImportError: the older install" in nodes.job_log("older")


@pytest.mark.slow
def test_a_job_with_a_working_directory_trains_from_its_copy(nodes, trained):
    run, done = trained
    assert done.returncode == 0, nodes.job_log("copy")
    assert nodes.status("copy") == "SUCCEEDED"
    assert newest_step(run) == STEPS
    assert logged_steps(run) == list(range(1, STEPS + 1))
    assert mlflow_run(run).info.status == "FINISHED"


@pytest.mark.slow
@pytest.mark.parametrize("key", ["data.root", "run.dir", "mlflow.uri"])
def test_a_path_in_the_copy_is_refused_by_name(nodes, checkout, settings, key):
    value = "./there.db" if key == "mlflow.uri" else "./there"
    command = ("python", "pipelines/train.py", *settings, f"{key}={value}")
    done = nodes.submit(*command, name=f"copy-{key}", options=("--working-dir", "."), cwd=checkout)
    assert done.returncode == 1
    log = nodes.job_log(f"copy-{key}")
    assert f"error: {key}: {value} is in the copy of the code that each node has of this job" in log
    assert f"name one that all nodes share: {key}=/..." in log
    assert "Traceback" not in log


@pytest.mark.slow
def test_evaluation_is_a_job_too(nodes, trained, toy_shards, tmp_path):
    run, _ = trained
    newest = checkpoint.latest(run / "checkpoints")
    command = ("python", "pipelines/evaluate.py", "--checkpoint", newest, "--data", toy_shards)
    done = nodes.submit(*command, "--json", tmp_path / "scores.json", name="evaluate")
    assert done.returncode == 0, nodes.job_log("evaluate")
    found = json.loads((tmp_path / "scores.json").read_text())
    assert found["datasets"] == json.loads((run / "scores.json").read_text())["datasets"]


@pytest.mark.slow
def test_a_training_that_fails_makes_the_job_fail(nodes, toy_shards, tmp_path):
    shards = shutil.copytree(toy_shards, tmp_path / "shards")
    for tar in shards.glob("*/train/*.tar"):
        data = bytearray(tar.read_bytes())
        data[700::1000] = bytes(value ^ 255 for value in data[700::1000])
        tar.write_bytes(data)
    command = ("python", "pipelines/train.py", *overrides(shards, tmp_path), "data.max_bad_samples=0")
    done = nodes.submit(*command, name="damaged")
    log = nodes.job_log("damaged")
    assert done.returncode == 1
    assert nodes.status("damaged") == "FAILED"
    assert "error: " in log
    assert "Traceback" not in log
    assert mlflow_run(tmp_path / "job").info.status == "FAILED"


@pytest.mark.slow
def test_a_node_that_will_go_leads_to_a_checkpoint_at_once_and_another_takes_its_place(nodes, settings, tmp_path):
    """The last test: the cluster has another node after it."""
    run = tmp_path / "job"
    nodes.submit("python", "pipelines/train.py", *settings, *LONG, options=GRACE, name="drained", wait=False)
    wait_for_step(nodes, "drained", run, 5)
    assert newest_step(run) == 0
    spare = nodes.join()
    nodes.wait_for(3)
    nodes.drain(nodes.nodes[1], seconds=30)
    wait_until(lambda: newest_step(run), nodes, "drained")
    noticed = newest_step(run)
    wait_for_step(nodes, "drained", run, noticed + 3)
    assert newest_step(run) == noticed, "one checkpoint per notice"
    wait_until(lambda: spare.processes("RayTrainWorker"), nodes, "drained")  # when the 30 s are over
    reached = progress(run)
    wait_until(lambda: noticed < progress(run) < reached, nodes, "drained")  # the steps since the checkpoint again
    nodes.ray("job", "stop", "drained")
    assert newest_step(run) > noticed
    assert logged_steps(run) == list(range(1, newest_step(run) + 1))
