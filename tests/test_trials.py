"""Trainings beside each other: what ends all of them, how many fit, and what a killed parent leaves."""

import json
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import ray
from mlflow import MlflowClient
from ray.tune.schedulers import FIFOScheduler

from post_platform import cluster, trials
from post_platform.config import load_config
from post_platform.errors import ConfigError, PostError
from post_platform.experiment_log import ExperimentLog
from post_platform.experiment_sweep import PARENT, Children
from post_platform.training.optimise import Diverged
from post_platform.trials import Supply, Training, parent, room, run_trials


def ended(tmp_path, problem):
    """The process of a trial whose training has ended so."""
    process = Training.__new__(Training)
    process.folder, process.seen, process.problem = tmp_path, 0, problem
    process.thread = SimpleNamespace(is_alive=lambda: False)
    return process._end(process._report())


def test_only_a_loss_that_diverges_is_a_recipe_s_failure(tmp_path):
    scores = {"step": 9, "mean": 0.5, "datasets": {"kitti_step": {"STQ": 0.5}}}
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    whole = {"step": 9, "score": 0.5, "datasets": {"kitti_step": 0.5}, "done": True}
    assert ended(tmp_path, None) == whole
    assert ended(tmp_path, Diverged("step 3: the loss is not finite")) == {
        "done": True, "reason": "step 3: the loss is not finite",
    }  # fmt: skip
    with pytest.raises(PostError, match="no space left"):
        ended(tmp_path, PostError("no space left", "make room"))


class Given(Supply):
    """Hands out the same run again and again."""

    def __init__(self, config):
        super().__init__()
        self.config, self.ended = config, []

    def suggest(self, trial_id):
        return self.handed(self.config, [])

    def on_trial_complete(self, trial_id, result=None, error=False):
        self.ended.append(error)


def test_any_other_error_ends_all_with_its_message(tmp_path):
    """Through Ray Tune and its pickles: the shards are gone once all has begun."""
    cluster.connect()
    (tmp_path / "run").mkdir()
    supply = Given(load_config(None, [f"data.root={tmp_path}", f"run.dir={tmp_path}", "run.name=run"]))
    with pytest.raises(PostError, match=f"^no converted dataset under {tmp_path}") as caught:
        run_trials(tmp_path, supply, FIFOScheduler(), 3, 1)
    assert caught.value.hint.endswith("or see it work first: make quickstart")
    assert supply.ended == [True], "no other is begun"


def test_trainings_beside_each_other_share_the_machine_s_cpus(tmp_path, monkeypatch):
    """Three at a time on two nodes: a node has two of them."""
    monkeypatch.setattr(ray, "nodes", lambda: [*slots((4, 0), (4, 0)), {"Alive": False}])
    monkeypatch.setattr(trials.tune, "Tuner", lambda *_, **__: SimpleNamespace(fit=lambda: SimpleNamespace(errors=[])))
    supply = Given(load_config())
    for count, together, beside in ((5, 3, 2), (1, 3, 1), (9, 8, 4)):
        run_trials(tmp_path, supply, FIFOScheduler(), count, together)
        assert supply.suggest("a")["beside"] == beside


def slots(*nodes):
    return [{"Alive": True, "Resources": {"CPU": float(cpus), "GPU": float(gpus)}} for cpus, gpus in nodes]


@pytest.mark.parametrize(
    ("nodes", "workers", "cpus", "expected"),
    [
        (slots((4, 0)), 1, 0.5, 2),  # 0.5 + 1 of data each
        (slots((4, 0)), 2, 0.5, 1),  # 1 + 1 each, and the trials' processes
        (slots((16, 8)), 2, 1.0, 4),  # by GPUs
        (slots((16, 8), (16, 8)), 8, 1.0, 2),
        (slots((5, 8), (5, 8)), 3, 1.0, 2),  # by CPUs: one of each node is left
        (slots((2, 8)), 1, 1.0, 1),  # one CPU is for data
    ],
)
def test_trials_at_a_time_fit_beside_each_other(nodes, workers, cpus, expected, monkeypatch):
    total = {key: sum(node["Resources"][key] for node in nodes) for key in ("CPU", "GPU")}
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(ray, "cluster_resources", lambda: total)
    monkeypatch.setattr("post_platform.cluster.worker_cpus", lambda: cpus)
    config = load_config(None, [f"train.workers={workers}"])
    assert room(config, None, "search.concurrent") == (expected, workers)
    with pytest.raises(ConfigError, match=f"search.concurrent: Ray has room for {expected} trial"):
        room(config, expected + 1, "search.concurrent")


def test_trials_are_children_of_the_sweep_and_none_stays_running(tmp_path):
    log = ExperimentLog.open(None, "post", "sweep", default_dir=tmp_path)
    children = Children(log)
    done, left = children.begin("sweep/trial_000", {"sweep.trial": 0}), children.begin("sweep/trial_001", {})
    client = MlflowClient(log.uri)
    client.set_terminated(done, "FINISHED")
    children.tag(done, "sweep.end", "stopped at step 3")
    children.end_running()
    runs = [client.get_run(run_id) for run_id in (done, left)]
    assert [run.info.status for run in runs] == ["FINISHED", "KILLED"]
    assert {run.data.tags[PARENT] for run in runs} == {log.run_id}
    assert (runs[0].data.tags["sweep.trial"], runs[0].data.tags["sweep.end"]) == ("0", "stopped at step 3")
    log.finish()
    assert client.get_run(log.run_id).info.status == "FINISHED"


def test_a_parent_that_is_stopped_is_killed_in_mlflow_and_so_are_its_children(tmp_path, monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # this process's Ray is for other tests, too
    monkeypatch.setattr(trials.cluster, "connect", lambda: "no Ray")
    monkeypatch.setattr(trials, "room", lambda *_: (2, 3))
    config = load_config(None, [f"run.dir={tmp_path}", "run.name=sweep"])
    saved, stored = [], tmp_path / "sweep.yaml"
    record = SimpleNamespace(folder=tmp_path / "sweep", config=config, run_id=None)
    record.save = lambda: saved.append(record.run_id)

    def store():
        stored.write_text("search.trials: 4\n")
        return {"search.trials": 4}

    def stopped():
        with parent(record, stored, store, None, "search.concurrent") as (children, together):
            assert (together, record.config.train.workers, record.config.mlflow.uri) == (2, 3, children.parent.uri)
            begun.extend([children.parent.run_id, children.begin("sweep/trial_000", {})])
            raise KeyboardInterrupt

    begun = []
    with pytest.raises(PostError, match=r"^sweep 'sweep' was stopped$") as caught:
        stopped()
    assert caught.value.hint == "the same command continues it"
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    assert [client.get_run(run_id).info.status for run_id in begun] == ["KILLED", "KILLED"]
    assert saved == begun[:1]
    assert client.get_run(begun[0]).data.params == {"search.trials": "4"}
    assert [item.path for item in client.list_artifacts(begun[0])] == ["sweep.yaml"]


def test_a_child_s_metrics_are_its_own_and_undefined_ones_are_none(tmp_path):
    log = ExperimentLog.open(None, "post", "study", default_dir=tmp_path)
    children = Children(log)
    run_id = children.begin("study/joint_seed_0", {})
    children.metrics(run_id, {"test/iou/kitti_step/STQ": 0.5, "test/iou/kitti_step/PQ": None}, 9)
    run = MlflowClient(log.uri).get_run(run_id)
    assert run.data.metrics == {"test/iou/kitti_step/STQ": 0.5}
    children.metrics("0" * 32, {"x": 1.0}, 9)  # a warning, no error
    children.end_running()
    log.finish()


def test_a_trial_waits_for_the_process_that_a_killed_sweep_left(tmp_path, monkeypatch):
    monkeypatch.setattr(trials, "PATIENCE", 5.0)
    monkeypatch.setattr(trials, "LOOK_EVERY", 0.05)
    code = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); print(1, flush=True); time.sleep(0.6)"
    )
    with subprocess.Popen([sys.executable, "-c", code, tmp_path / "lock"], stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        started = time.monotonic()
        trials.wait_for_lock(tmp_path)
        assert 0.3 < time.monotonic() - started < 5
