"""How many workers a run takes, and that too many is an error instead of a wait without end."""

from types import SimpleNamespace

import pytest
import ray
from ray.train import ControllerError, WorkerGroupError

from post_platform.config import load_config
from post_platform.errors import ConfigError, DataError, PostError
from post_platform.training import checkpoint
from post_platform.training.evaluate import open_model
from post_platform.training.launch import _alone, _explained
from post_platform.training.workers import workers_of


@pytest.mark.parametrize(
    ("cpus", "gpus", "setting", "expected"),
    [
        (4, 0, [], (2, False)),
        (2, 0, [], (2, False)),
        (4, 0, ["train.workers=4", "data.decode_on=cluster"], (4, False)),
        (4, 0, ["train.workers=6"], (6, False)),
        (4, 0, ["train.workers={min: 1, max: 99}"], (6, False)),
        (16, 2, [], (2, True)),
        (16, 2, ["train.workers=1"], (1, True)),
        (16, 2, ["train.workers={min: 1, max: 4}"], (2, True)),
    ],
)
def test_workers_follow_the_hardware(monkeypatch, cpus, gpus, setting, expected):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": float(cpus), "GPU": float(gpus)})
    assert workers_of(load_config(None, setting)) == expected


@pytest.mark.parametrize(
    ("cpus", "gpus", "setting", "decode_on", "room"),
    [
        (4, 0, "7", "trainer", 6),
        (4, 0, "{min: 7, max: 8}", "trainer", 6),
        (1, 0, "1", "trainer", 0),
        (16, 2, "3", "trainer", 2),
        (2, 8, "8", "trainer", 2),
        (2, 8, "null", "cluster", 0),
        (4, 0, "5", "cluster", 4),
        (1, 0, "1", "cluster", 0),
    ],
)
def test_more_workers_than_ray_has_room_for_are_refused(monkeypatch, cpus, gpus, setting, decode_on, room):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": float(cpus), "GPU": float(gpus)})
    with pytest.raises(ConfigError, match=rf"^train.workers: Ray has room for {room} \({cpus} CPUs, {gpus} GPUs\)"):
        workers_of(load_config(None, [f"train.workers={setting}", f"data.decode_on={decode_on}"]))


def test_a_second_process_of_the_same_run_is_refused(tmp_path):
    """The lock is a process's own: another open file, here in the same process, stands for the other process."""
    job = SimpleNamespace(folder=tmp_path, shared=tmp_path, config=load_config(None, ["run.name=mine"]))
    with (
        _alone(job),
        pytest.raises(ConfigError, match="run 'mine' is being trained by another process now"),
        _alone(job),
    ):
        pass
    with _alone(job):
        pass  # free again


def test_a_run_s_folder_is_not_a_checkpoint_but_names_its_newest(tmp_path):
    for step in (2, 4):
        checkpoint.save(tmp_path / "checkpoints", step, lambda folder: (folder / "x").touch(), keep=3)
    with pytest.raises(DataError, match="is a run, not a checkpoint") as caught:
        open_model(tmp_path)
    assert caught.value.hint == f"its newest: --checkpoint {tmp_path}/checkpoints/step_00000004"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ControllerError(ray.exceptions.OutOfMemoryError("full")),
         "Ray's own processes of run 'mine' were killed, or ran out of memory"),
        (WorkerGroupError("lost", {1: ray.exceptions.ActorDiedError()}),
         "training workers of run 'mine' were killed, or ran out of memory, more than 3 times"),
        (WorkerGroupError("wrong", {0: DataError("a damaged tar")}), "a damaged tar"),
    ],
)  # fmt: skip
def test_the_end_of_ray_s_trainer_is_told_in_one_line(error, expected):
    job = SimpleNamespace(config=load_config(None, ["run.name=mine"]), committed_step=lambda: 7)
    found = _explained(error, job)
    assert isinstance(found, PostError)
    assert str(found) == expected


def test_an_unknown_end_of_ray_s_trainer_keeps_its_traceback():
    error = WorkerGroupError("wrong", {0: ValueError("a bug")})
    assert _explained(error, None) is error
