"""The embedded Ray, started as a script does, in a process of its own: other tests may hold their own Ray."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from post_platform import cluster
from post_platform.errors import PostError

ROOT = Path(__file__).resolve().parent.parent

SCRIPT = """
import json, sys
sys.path[:0] = json.loads(sys.argv[1])
from post_platform import cluster
print(cluster.connect())
assert cluster.connect() == cluster.connect()
import ray

@ray.remote
def look():
    import os, platform, post_model, post_platform
    return platform.system(), post_model.__file__, post_platform.__file__, os.environ["RAY_TRAIN_ENABLE_PRINT_PATCH"]

system, *rest = ray.get(look.remote())
assert system, "platform is not the standard library's"
print(*rest, sep="\\n")
"""


def test_workers_import_this_checkout_and_the_standard_library_s_platform(tmp_path):
    roots = f'["{ROOT}/platform", "{ROOT}/model"]'
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RAY_ADDRESS")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, roots], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    line, model, platform, print_patch = done.stdout.splitlines()
    assert line.startswith(f"embedded Ray: {max(4, os.cpu_count())} CPU slots, ")
    assert Path(model) == ROOT / "model/post_model/__init__.py"
    assert Path(platform) == ROOT / "platform/post_platform/__init__.py"
    assert print_patch == "0"
    assert "authentication" not in done.stderr


def test_address_where_nobody_listens_is_one_line_at_once():
    """In a process of its own: another test may hold an embedded Ray in this one."""
    script = "from post_platform import cluster, command; command.run(cluster.connect)"
    path = os.pathsep.join(str(ROOT / folder) for folder in ("platform", "model"))
    env = {**os.environ, "RAY_ADDRESS": "127.0.0.1:1", "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    error, hint = done.stderr.splitlines()
    assert error.startswith("error: cannot join the Ray cluster at RAY_ADDRESS=127.0.0.1:1: ")
    assert error.endswith("refused")
    assert "unset RAY_ADDRESS" in hint


def test_the_path_given_to_ray_does_not_stay_in_this_process(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/mine")
    with cluster._inherited_by_ray():
        assert os.environ["PYTHONPATH"].split(os.pathsep) == [f"{ROOT}/platform", f"{ROOT}/model", "/mine"]
    assert os.environ["PYTHONPATH"] == "/mine"


@pytest.mark.parametrize(("address", "cpus"), [("", 0.5), ("local", 0.5), ("10.0.0.1:6379", 1.0)])
def test_training_workers_leave_a_slot_for_data_tasks_when_embedded(monkeypatch, address, cpus):
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert cluster.worker_cpus() == cpus


def test_a_submitted_job_s_own_runtime_environment_is_not_overridden(monkeypatch):
    monkeypatch.setenv(
        "RAY_JOB_CONFIG_JSON_ENV_VAR",
        '{"runtime_env": {"py_modules": ["x"], "env_vars": {"RAY_DATA_DISABLE_PROGRESS_BARS": "0"}}}',
    )
    for name, value in cluster.SETTINGS.items():
        monkeypatch.setenv(name, value)
    env = cluster._runtime_env()
    assert "py_modules" not in env
    assert "RAY_DATA_DISABLE_PROGRESS_BARS" not in env["env_vars"]


def test_a_machine_too_busy_to_start_ray_is_one_line(monkeypatch):
    import ray

    def late(**_):
        raise Exception("The current node timed out during startup. This could happen because ...")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", late)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(PostError, match=r"^Ray did not start within its 30 seconds: this machine is too busy$"):
        cluster.connect()
