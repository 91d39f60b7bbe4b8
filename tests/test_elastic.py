"""How many workers a run has when nodes leave and join; real clusters are in test_node_failures.py."""

from types import SimpleNamespace

import pytest
import ray
from ray.train.v2.api.config import ScalingConfig

from post_platform.config import load_config
from post_platform.training import elastic
from post_platform.training.elastic import Elastic


@pytest.fixture
def cluster(monkeypatch):
    """CPUs that Ray counts, nodes that it takes for alive, those of them that answer, and the time."""
    now = SimpleNamespace(cpus=4, nodes=["a", "b"], answering=["a", "b"], time=100.0)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": float(now.cpus)})
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "NodeManagerAddress": name} for name in now.nodes])
    monkeypatch.setattr(elastic, "_answers", lambda node: node["NodeManagerAddress"] in now.answering)
    monkeypatch.setattr(elastic.time, "monotonic", lambda: now.time)
    monkeypatch.setattr(elastic.time, "sleep", lambda seconds: setattr(now, "time", now.time + seconds))
    monkeypatch.setattr(Elastic, "_maybe_send_resource_request", lambda self: None)
    return now


@pytest.fixture
def job(tmp_path):
    """A run of 1000 steps."""
    job = SimpleNamespace(config=load_config(None, ["train.steps=1000"]), shared=tmp_path, committed=30)
    job.committed_step = lambda: job.committed
    return job


def policy(job, least, most):
    return Elastic(ScalingConfig(num_workers=(least, most), resources_per_worker={"CPU": 1}), job)


def started(policy):
    """Workers of the group that is started now; None while it waits."""
    return getattr(policy.make_decision_for_non_running_worker_group(), "num_workers", None)


def resized(policy, workers):
    """Workers that a running group is to have; None if it stays as it is."""
    decision = policy.make_decision_for_running_worker_group(SimpleNamespace(num_workers=workers), None)
    return getattr(decision, "num_workers", None)


def asked(job):
    file = job.shared / "checkpoint_now"
    return file.read_text() if file.exists() else None


@pytest.mark.parametrize(("cpus", "expected"), [(2, 1), (4, 3), (5, 4), (64, 4), (1, None)])
def test_a_group_has_the_workers_that_fit_beside_a_cpu_for_data(cluster, job, cpus, expected):
    cluster.cpus = cpus
    assert started(policy(job, 1, 4)) == expected


def test_a_fixed_number_waits_for_room_and_says_so(cluster, job, caplog):
    fixed = policy(job, 3, 3)
    cluster.cpus = 2
    with caplog.at_level("INFO"):
        assert [started(fixed), started(fixed)] == [None, None]
    assert caplog.text.count("waiting: there is room for 1 workers, train.workers asks for 3") == 1
    cluster.cpus = 4
    assert started(fixed) == 3


def test_a_lost_node_s_places_are_not_asked_for_while_ray_counts_them(cluster, job):
    range_ = policy(job, 1, 4)
    cluster.answering = ["a"]
    assert started(range_) is None
    cluster.nodes, cluster.cpus = ["a"], 2
    assert started(range_) == 1


def test_a_node_that_only_this_one_cannot_reach_is_waited_for_a_minute(cluster, job):
    range_, began = policy(job, 1, 4), cluster.time
    cluster.answering = ["a"]
    while started(range_) is None:
        assert cluster.time < began + 2 * elastic.SILENT
    assert cluster.time == began + elastic.SILENT


def test_a_group_grows_at_a_checkpoint_when_there_is_room_for_a_while(cluster, job):
    range_ = policy(job, 1, 4)
    cluster.cpus = 2
    assert started(range_) == 1
    cluster.cpus = 4
    assert resized(range_, 1) is None
    cluster.time += elastic.SETTLE - 1
    assert resized(range_, 1) is None
    assert asked(job) is None, "another node may come"
    cluster.time += 1
    assert resized(range_, 1) is None
    assert asked(job)
    cluster.time += 5
    assert resized(range_, 1) is None, "not before the checkpoint"
    job.committed = 31
    assert resized(range_, 1) == 3


def test_a_group_whose_checkpoint_does_not_come_grows_all_the_same(cluster, job):
    range_ = policy(job, 1, 4)
    cluster.cpus = 4
    assert resized(range_, 1) is None
    cluster.time += elastic.SETTLE
    assert resized(range_, 1) is None
    cluster.time += elastic.CHECKPOINT_WITHIN + 1
    assert resized(range_, 1) == 3


def test_a_node_that_joins_and_leaves_again_changes_nothing(cluster, job):
    range_ = policy(job, 1, 4)
    cluster.cpus = 2
    assert started(range_) == 1
    cluster.cpus = 4
    assert resized(range_, 1) is None
    cluster.cpus = 2
    cluster.time += elastic.SETTLE
    assert resized(range_, 1) is None
    cluster.cpus = 4
    assert resized(range_, 1) is None, "the time counts anew"


def test_a_group_stays_as_it_is_with_all_it_wants_with_less_room_and_at_the_last_step(cluster, job):
    range_ = policy(job, 1, 3)
    for cpus in (64, 2):
        cluster.cpus = cpus
        for _ in range(3):
            assert resized(range_, 3) is None
            cluster.time += elastic.SETTLE
    cluster.cpus, job.committed = 64, 1000
    for _ in range(3):
        assert resized(range_, 1) is None
        cluster.time += elastic.SETTLE + elastic.CHECKPOINT_WITHIN


def test_an_autoscaler_is_asked_for_all_gpus_that_are_wanted_but_not_for_the_cpus_of_data(cluster, job):
    assert policy(job, 1, 99)._get_num_workers_for_resource_request() == 3
    gpus = ScalingConfig(num_workers=(1, 99), use_gpu=True, resources_per_worker={"CPU": 1, "GPU": 1})
    assert Elastic(gpus, job)._get_num_workers_for_resource_request() == 99
