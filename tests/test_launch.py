"""How many workers a run takes, and that too many is an error instead of a wait without end."""

import pytest
import ray

from post_platform.config import load_config
from post_platform.errors import ConfigError
from post_platform.training.launch import _workers


@pytest.mark.parametrize(
    ("cpus", "gpus", "setting", "expected"),
    [
        (4, 0, [], (2, False)),
        (2, 0, [], (2, False)),
        (4, 0, ["train.workers=6"], (6, False)),
        (4, 0, ["train.workers={min: 1, max: 99}"], (6, False)),
        (16, 2, [], (2, True)),
        (16, 2, ["train.workers=1"], (1, True)),
        (16, 2, ["train.workers={min: 1, max: 4}"], (2, True)),
    ],
)
def test_workers_follow_the_hardware(monkeypatch, cpus, gpus, setting, expected):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": float(cpus), "GPU": float(gpus)})
    assert _workers(load_config(None, setting)) == expected


@pytest.mark.parametrize(
    ("cpus", "gpus", "setting", "room"),
    [(4, 0, "7", 6), (4, 0, "{min: 7, max: 8}", 6), (1, 0, "1", 0), (16, 2, "3", 2)],
)
def test_more_workers_than_ray_has_room_for_are_refused(monkeypatch, cpus, gpus, setting, room):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": float(cpus), "GPU": float(gpus)})
    with pytest.raises(ConfigError, match=rf"^train.workers: Ray has room for {room} \({cpus} CPUs, {gpus} GPUs\)"):
        _workers(load_config(None, [f"train.workers={setting}"]))
