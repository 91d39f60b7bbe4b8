"""A run whose `run.dir` is on S3, on moto's server: who trains it, what it is asked, and that no disk is needed again.

The last two train for real, one killed and continued on another disk, one on nodes that share none (`make
test-cluster`).
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch.distributed as dist
from killing import ROOT, SETTINGS, STEPS, Case, Run, assert_nothing_lost
from ray.train.v2._internal.execution import context
from ray_nodes import Nodes

from post_platform import storage
from post_platform.config import load_config
from post_platform.errors import ConfigError, DataError, PostError
from post_platform.training import checkpoint, launch, lease, ledger, stopping
from post_platform.training.checkpoint_store import Store
from post_platform.training.job import Job
from post_platform.training.relay import Relay, RelayHandler
from post_platform.training.run_files import folder_of
from post_platform.training.stopping import Request, Requests, request_checkpoint, stoppable

pytest_plugins = ("s3_server",)


@pytest.fixture
def config(bucket, monkeypatch, tmp_path):
    """Of a run on S3, on a machine whose cache is empty; leases are short, and a store that fails is given up soon."""
    monkeypatch.setattr(lease, "RENEW_EVERY", 0.05)
    monkeypatch.setattr(lease, "EXPIRES", 0.5)
    monkeypatch.setattr(lease, "LOOK_EVERY", 0.02)
    monkeypatch.setattr(stopping, "LOOK_AT_S3_EVERY", 0)
    monkeypatch.setattr(storage, "BACKOFF_SECONDS", 0.001)
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.001)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return load_config(None, [f"run.dir=s3://{bucket}/runs", "run.name=mine", f"mlflow.uri={tmp_path}/mlflow.db"])


@pytest.fixture
def address(config):
    return f"{config.run.dir}/mine"


@pytest.fixture
def job(config, address):
    """A run of another attempt's that has committed 3 of 9 steps."""
    folder = folder_of(config)
    folder.mkdir(parents=True)
    storage.write_bytes(f"{address}/attempt", b"ours")
    config = config.model_copy(update={"train": config.train.model_copy(update={"steps": 9})})
    known = {"committed_step": lambda: 3, "is_finished": lambda: False}
    return SimpleNamespace(folder=folder, shared=address, attempt="ours", config=config, **known)


@pytest.fixture
def requests(job, monkeypatch):
    """Rank 0's, in a group of one."""
    told = SimpleNamespace(preemption_context=SimpleNamespace(preemption_info=None))
    monkeypatch.setattr(context, "get_train_context", lambda: told)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    found = Requests(job, 0, dist.group.WORLD)
    yield found
    if found.reader:
        found.reader.join()  # it still asks, and must not outlive this test's credentials
    dist.destroy_process_group()


def asked(requests):
    """The answer once two looks are over: the first may have begun before what it looks for."""
    found = []
    for _ in range(3):
        requests.ask()
        found.append(requests.answer())
        if requests.reader:
            requests.reader.join()
    return max(found)


def test_a_run_s_folder_here_is_a_working_copy_of_its_own(config, tmp_path):
    other = config.model_copy(update={"run": config.run.model_copy(update={"dir": "s3://another/runs"})})
    assert folder_of(config).is_relative_to(tmp_path / "cache")
    assert folder_of(config).name == folder_of(other).name == "mine"
    assert folder_of(config) != folder_of(other)
    local = load_config(None, [f"run.dir={tmp_path}", "run.name=mine"])
    assert folder_of(local) == tmp_path / "mine"


def test_a_second_driver_is_refused_and_a_later_one_is_not(job, address, monkeypatch, tmp_path):
    with launch._alone(job) as attempt:
        assert storage.read_bytes(f"{address}/attempt").decode() == attempt
        elsewhere = SimpleNamespace(**{**vars(job), "folder": tmp_path})  # where no lock of this machine is seen
        with pytest.raises(ConfigError, match=f"'mine' is being trained by another process now .{address}"):
            launch._alone(elsewhere).__enter__()
        assert storage.read_bytes(f"{address}/attempt").decode() == attempt
    monkeypatch.setattr(lease, "EXPIRES", 1000)  # which nobody waits for
    with launch._alone(job) as later:
        assert storage.read_bytes(f"{address}/attempt").decode() == later != attempt


def test_a_killed_driver_s_lease_expires(job, address):
    storage.write_bytes(f"{address}/lease", b"a killed attempt 7")
    started = time.monotonic()
    with launch._alone(job) as attempt:
        assert time.monotonic() - started > lease.EXPIRES
        assert storage.read_bytes(f"{address}/lease").decode().startswith(attempt)
    assert not storage.exists(f"{address}/lease")


def test_a_lease_outlasts_a_store_that_is_away(job, address, proxy):
    with launch._alone(job):
        proxy.inject("answer", method="PUT", target="lease", times=1 << 20)
        time.sleep(0.3)
        proxy.reset()
        before, deadline = storage.read_bytes(f"{address}/lease"), time.monotonic() + 20
        while storage.read_bytes(f"{address}/lease") == before:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_the_workers_stop_for_this_attempt_only(requests, address):
    assert asked(requests) == Request.NOTHING
    storage.write_bytes(f"{address}/stop", b"an earlier attempt")
    assert asked(requests) == Request.NOTHING
    storage.write_bytes(f"{address}/stop", b"ours")
    assert asked(requests) == Request.STOP


def test_a_checkpoint_is_asked_once_also_of_a_store_that_is_away_meanwhile(requests, job, proxy):
    request_checkpoint(job)
    assert asked(requests) == Request.CHECKPOINT
    proxy.inject("answer", method="GET", target="checkpoint_now", times=1 << 20)
    assert asked(requests) == Request.NOTHING
    proxy.reset()
    assert asked(requests) == Request.NOTHING


def test_the_training_does_not_wait_for_the_store(requests, monkeypatch):
    go = threading.Event()
    monkeypatch.setattr(stopping, "_text", lambda job, name: go.wait(30) and "")
    started = time.monotonic()
    for _ in range(3):
        requests.ask()
        requests.answer()
    go.set()
    assert time.monotonic() - started < 5


def test_workers_that_are_left_behind_end_at_their_next_step(requests, address):
    storage.write_bytes(f"{address}/attempt", b"another's")
    with pytest.raises(PostError, match="run 'mine' has been continued by another process"):
        asked(requests)


def signalled(job):
    """Get a signal inside the block, which then takes until it is asked of the workers."""
    with stoppable(job):
        os.kill(os.getpid(), signal.SIGTERM)
        deadline = time.monotonic() + 20
        while not storage.exists(f"{job.shared}/stop"):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_signal_reaches_the_workers_through_the_store(job, address):
    with pytest.raises(KeyboardInterrupt):
        signalled(job)
    assert storage.read_bytes(f"{address}/stop") == b"ours"


def test_what_ranks_elsewhere_say_stands_in_the_driver_s_files(tmp_path):
    writer = Relay(tmp_path)
    sent = SimpleNamespace(append=SimpleNamespace(remote=writer.append))
    handler = RelayHandler(sent, "rank_1.log")
    for text in ("first", "second"):
        handler.handle(stopping.logger.makeRecord("post_platform", 20, "", 0, text, (), None))
    writer.replace("progress.json", "{}")
    writer.replace("progress.json", '{"step": 3}')
    assert (tmp_path / "rank_1.log").read_text() == "first\nsecond\n"
    assert (tmp_path / "progress.json").read_text() == '{"step": 3}'


def committed(address, folder, steps, text="one line\n"):
    """Checkpoints of a run, each with its ledger."""
    store = Store(folder, f"{address}/checkpoints")
    store.claim()
    for step in steps:

        def write(path, step=step):
            (path / "state.json").write_text(json.dumps({"step": step, "score": None}))
            (path / ledger.NAME).write_text(text)

        store.commit(step, write, keep=3)
    return store


def test_a_run_s_address_stands_for_its_newest_checkpoint(address, tmp_path):
    store = committed(address, tmp_path / "one", (2, 4))
    assert checkpoint.resolve(address) == checkpoint.resolve(f"{address}/latest") == store.address(store.newest())
    assert checkpoint.resolve(store.address(store.names()[0])) == store.address(store.names()[0])
    assert checkpoint.read_state(checkpoint.fetch(address))["step"] == 4


def test_ledgers_of_runs_on_s3(address, config, tmp_path):
    def line(step, digest):
        return json.dumps({"step": step, "positions": [step], "counts": {"a": 1}, "sha256": digest}) + "\n"

    text = line(1, "x") + line(2, "y")
    committed(address, tmp_path / "one", (2,), text)
    committed(f"{config.run.dir}/other", tmp_path / "other", (2,), line(1, "x") + line(2, "z"))
    assert ledger.find(address, "runs").read_text() == ledger.find("mine", config.run.dir).read_text() == text
    (tmp_path / ledger.NAME).write_text(text)
    command = [sys.executable, "pipelines/ledger.py", "--dir", config.run.dir]
    same = subprocess.run([*command, "mine", str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert (same.returncode, same.stdout) == (0, "the same data over 2 steps\n"), same.stderr
    parted = subprocess.run([*command, "mine", "other"], cwd=ROOT, capture_output=True, text=True)
    assert parted.returncode == 1
    assert parted.stdout.startswith("the runs part at step 2: ")
    with pytest.raises(DataError, match=rf"^{config.run.dir}/none/{ledger.NAME}: not found"):
        ledger.find("none", config.run.dir)


def test_what_a_run_ended_with_is_in_its_store(address, job, tmp_path):
    scores = {"step": 4, "mean": 0.5, "datasets": {"kitti_mots": {"PQ": 0.5}}}
    store = committed(address, tmp_path / "one", (4,))
    (job.folder / "scores.json").write_text('{"step": 2}')  # of a validation that was on this machine
    storage.write_bytes(f"{address}/scores.json", json.dumps(scores).encode())
    real = Job(job.config, (), (), (), (), {}, job.folder, "http://host", "id")
    found = launch.outcome(real)
    assert (found.folder, found.checkpoint, found.scores) == (address, store.address(store.newest()), scores)


def test_another_machine_continues_the_mlflow_run_before_there_is_a_checkpoint(
    config, address, toy_shards, monkeypatch, tmp_path
):
    overrides = [f"data.root={toy_shards}", "model.backbone=small"]
    kept = [f"run.dir={config.run.dir}", "run.name=mine", f"mlflow.uri={config.mlflow.uri}"]
    first = launch.prepare(load_config(None, overrides + kept))
    assert {name for name in storage.list_names(address)} == {"config.yaml", "run.json"}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    second = launch.prepare(load_config(None, overrides + kept))
    assert second.mlflow_run_id == first.mlflow_run_id
    assert second.folder != first.folder
    assert first.here().folder == second.folder, "each machine has its own"
    assert second.shared == address


@pytest.fixture(scope="module")
def whole(toy_shards, tmp_path_factory):
    """Folder of a run that nothing interrupts, on two workers and this machine's disk."""
    run = Run(toy_shards, tmp_path_factory.mktemp("whole"), "whole", 2)
    run.finish()
    return run.folder


@pytest.mark.slow
def test_a_driver_that_is_killed_is_continued_without_its_disk(proxy, bucket, toy_shards, whole, monkeypatch, tmp_path):
    """The same ledger, weights and MLflow run as those of the whole one; then it is scored."""
    place = (f"run.dir=s3://{bucket}/runs", f"mlflow.uri={tmp_path}/on_s3.db")
    config, address = load_config(None, [*place, "run.name=cut"]), f"s3://{bucket}/runs/cut"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "one"))
    run = Run(toy_shards, tmp_path, "cut", 2, *place)
    run.folder = folder_of(config)
    try:
        run.kill(Case("driver", "report", 6, (2, 2), 0.3))
        began_as = json.loads(storage.read_bytes(f"{address}/run.json"))["mlflow_run_id"]
        assert 0 < Store(tmp_path / "look", f"{address}/checkpoints").committed_step() < STEPS
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
        run = Run(toy_shards, tmp_path, "cut", 2, *place, "--json", str(tmp_path / "outcome.json"))
        run.folder = folder_of(config)
        run.finish()
    finally:
        run.end()
    assert_nothing_lost(run.folder, whole, began_as, same_bits=True)
    assert ledger.find(address, tmp_path).read_bytes() == (whole / ledger.NAME).read_bytes()
    store = Store(tmp_path / "third", f"{address}/checkpoints")
    assert checkpoint.read_state(store.latest())["step"] == STEPS
    outcome = json.loads((tmp_path / "outcome.json").read_text())
    assert (outcome["folder"], outcome["checkpoint"]) == (address, store.address(store.newest()))
    assert not storage.exists(f"{address}/lease")

    command = ("pipelines/evaluate.py", "--checkpoint", address, "--data", toy_shards, "--json", tmp_path / "scores")
    done = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "scores").read_text())["datasets"] == outcome["scores"]["datasets"]


@pytest.mark.slow
def test_nodes_that_share_no_folder_train_one_run(proxy, bucket, toy_shards, whole, tmp_path):
    """Each node has a cache of its own; the job's log has what rank 0 says, wherever that is."""
    place = (f"run.dir=s3://{bucket}/runs", "run.name=job", f"mlflow.uri={tmp_path}/on_s3.db")
    caches = [tmp_path / "head", tmp_path / "second"]
    with Nodes(1, env={"XDG_CACHE_HOME": str(caches[0])}) as nodes:
        nodes.env["XDG_CACHE_HOME"] = str(caches[1])
        nodes.join()
        nodes.wait_for(2)
        command = ("python", "pipelines/train.py", *SETTINGS, *place, f"data.root={toy_shards}", "train.workers=3")
        done = nodes.submit(*command, name="job")
        log = nodes.job_log("job")
    assert done.returncode == 0, log
    assert f"rank 0: step {STEPS}: validating" in log
    logs = [next(cache.glob("post-platform/runs/*/job/logs")) for cache in caches]  # workers on both nodes
    told = [log / "progress.json" for log in logs]
    assert json.loads(told[0].read_text())["step"] == STEPS, "the driver's, on the head"
    assert not told[1].exists()
    assert ledger.find(f"s3://{bucket}/runs/job", tmp_path).read_bytes() == (whole / ledger.NAME).read_bytes()
