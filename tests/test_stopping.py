"""Signals that become a request to the workers, and what the ranks make of it; real clusters are in test_jobs.py."""

import json
import os
import signal
import time
from types import SimpleNamespace

import pytest
import torch.distributed as dist
from killing import Run, inside, logged, reached, wait_until
from ray.train.v2._internal.execution import context

from post_platform import cluster, toycity
from post_platform.shards.write import convert
from post_platform.training import checkpoint, stopping
from post_platform.training.stopping import Request, Requests, request_checkpoint, stoppable


@pytest.fixture
def job(tmp_path):
    """A run that has committed 3 of 9 steps."""
    config = SimpleNamespace(train=SimpleNamespace(steps=9))
    known = {"committed_step": lambda: 3, "is_finished": lambda: False}
    return SimpleNamespace(folder=tmp_path, shared=tmp_path, attempt="ours", config=config, **known)


@pytest.fixture
def group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


@pytest.fixture
def ray_train(monkeypatch):
    """What Ray Train tells a worker."""
    told = SimpleNamespace(preemption_context=SimpleNamespace(preemption_info=None))
    monkeypatch.setattr(context, "get_train_context", lambda: told)
    return told.preemption_context


def asked(requests):
    requests.ask()
    return requests.answer()


def signalled(job, *numbers, seconds=0.05):
    """Get signals inside the block, which then takes so long."""
    with stoppable(job):
        for number in numbers:
            os.kill(os.getpid(), number)
        time.sleep(seconds)
        (job.folder / "ended").write_text("as the workers did")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_a_request_and_the_workers_answer_ends_the_block(job, number):
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):
        signalled(job, number)
    assert (job.folder / "stop").read_text() == "ours"
    assert (job.folder / "ended").exists()
    assert signal.getsignal(number) is before


def test_a_second_signal_ends_the_block_at_once(job):
    with pytest.raises(KeyboardInterrupt):
        signalled(job, signal.SIGTERM, signal.SIGTERM, seconds=5)
    assert not (job.folder / "ended").exists()


def test_a_signal_that_comes_when_the_last_step_is_committed_changes_nothing(job):
    job.is_finished = lambda: True
    signalled(job, signal.SIGTERM)
    assert (job.folder / "ended").exists()


@pytest.mark.parametrize(("given", "expected"), [(None, 2), ("2", 1)])
def test_a_job_gives_up_a_second_before_ray_kills_it(job, monkeypatch, caplog, given, expected):
    monkeypatch.setenv(stopping.JOB, "{}")
    monkeypatch.delenv(stopping.GRACE, raising=False)
    if given:
        monkeypatch.setenv(stopping.GRACE, given)
    started = time.monotonic()
    with caplog.at_level("INFO"), pytest.raises(KeyboardInterrupt):
        signalled(job, signal.SIGTERM, seconds=5)
    assert expected <= time.monotonic() - started < expected + 1
    assert not (job.folder / "ended").exists()
    assert ("RAY_JOB_STOP_WAIT_TIME_S" in caplog.text) == (given is None)


def test_the_ranks_stop_for_this_attempt_only(job, group, ray_train, monkeypatch):
    monkeypatch.setattr(stopping, "LOOK_EVERY", 0)
    requests = Requests(job, 0, group)
    assert asked(requests) == Request.NOTHING
    (job.folder / "stop").write_text("an earlier attempt")
    assert asked(requests) == Request.NOTHING
    (job.folder / "stop").write_text("ours")
    assert [asked(requests), asked(requests)] == [Request.STOP, Request.STOP]


def test_each_notice_of_preemption_is_one_checkpoint(job, group, ray_train):
    requests = Requests(job, 0, group)
    ray_train.preemption_info = {"node": "a"}
    assert [asked(requests), asked(requests)] == [Request.CHECKPOINT, Request.NOTHING]
    ray_train.preemption_info = {"node": "a", "and": "b"}
    assert [asked(requests), asked(requests)] == [Request.CHECKPOINT, Request.NOTHING]


def test_a_checkpoint_is_asked_of_the_workers_that_train_now(job, group, ray_train, monkeypatch):
    monkeypatch.setattr(stopping, "LOOK_EVERY", 0)
    request_checkpoint(job)
    requests = Requests(job, 0, group)
    assert asked(requests) == Request.NOTHING, "it was asked of those before"
    request_checkpoint(job)
    assert [asked(requests), asked(requests)] == [Request.CHECKPOINT, Request.NOTHING]


def test_long_work_is_left_for_a_request_that_the_next_question_tells(job, group, ray_train, monkeypatch):
    monkeypatch.setattr(stopping, "LOOK_EVERY", 0)
    requests = Requests(job, 0, group)
    assert not requests.waits("validation 1")
    ray_train.preemption_info = {"node": "a"}
    assert requests.waits("validation 1")
    assert requests.waits("validation 1"), "until it has been asked"
    assert [asked(requests), asked(requests)] == [Request.CHECKPOINT, Request.NOTHING]
    assert not requests.waits("validation 2")


def test_what_one_rank_is_told_all_find(job, group, ray_train, monkeypatch):
    monkeypatch.setattr(stopping, "LOOK_EVERY", 0)
    first, second = Requests(job, 0, group), Requests(job, 1, group)
    (job.folder / "stop").write_text("ours")
    assert not second.waits("validation 1"), "only rank 0 reads what the driver says"
    assert first.waits("validation 1")
    assert second.waits("validation 1")


@pytest.fixture(scope="module")
def long_validation(tmp_path_factory):
    """Shards whose validation takes a while."""
    folder = tmp_path_factory.mktemp("long")
    sources = toycity.write_all(folder / "raw", train_frames=4, val_frames=400, stills=4, height=64, width=128)
    cluster.connect()
    convert("kitti_step", sources["kitti_step"], folder / "shards")
    return folder / "shards"


@pytest.mark.slow
@pytest.mark.parametrize("step", [8, 16], ids=["between", "last"])
def test_a_validation_is_left_for_a_stop_and_made_when_the_run_goes_on(long_validation, tmp_path, step):
    settings = ("train.steps=16", "train.checkpoint_every=100", "eval.every=8", "eval.overlays=1")
    run = Run(long_validation, tmp_path, "run", 2, *settings)
    try:
        wait_until(lambda: inside(run.folder, "validation", step - 1), run.process, run.log, pause=0.01)
        os.kill(run.process.pid, signal.SIGTERM)
        assert run.process.wait(120) == 1
        assert run.log.read_text().endswith(
            f"error: run 'run' was stopped\n  the same command continues from step {step}\n"
        )
        state = checkpoint.read_state(checkpoint.latest(run.folder / "checkpoints"))
        assert state["step"] == step
        assert (state["scores"] or {}).get("step") == (None if step == 8 else 8)
        again = Run(long_validation, tmp_path, "run", 2, *settings)
        again.finish()
    finally:
        run.end()
    assert logged(run.folder, "val/mean/score").keys() == {8, 16}
    assert checkpoint.read_state(checkpoint.latest(run.folder / "checkpoints"))["step"] == 16
    assert json.loads((run.folder / "scores.json").read_text())["step"] == 16
    third = Run(long_validation, tmp_path, "run", 2, *settings)
    third.finish()
    assert "run run is already finished at step 16" in run.log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_run_on_this_machine_stops_with_a_checkpoint_of_its_step(toy_shards, tmp_path, number):
    endless = ("train.steps=100000", "train.checkpoint_every=100000", "eval.every=0")
    run = Run(toy_shards, tmp_path, "run", 2, *endless)
    try:
        wait_until(lambda: reached(run.folder) >= 5, run.process, run.log)
        os.kill(run.process.pid, number)
        assert run.process.wait(120) == 1
    finally:
        run.end()
    step = checkpoint.read_state(checkpoint.latest(run.folder / "checkpoints"))["step"]
    assert step >= 5
    assert run.log.read_text().endswith(
        f"error: run 'run' was stopped\n  the same command continues from step {step}\n"
    )
