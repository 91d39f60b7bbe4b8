"""cluster.yaml is a file that Ray takes, agrees with the lock, holds no secret, and opens nothing to the world."""

import re
import tomllib

import pytest
import yaml
from killing import ROOT
from ray.autoscaler._private.util import prepare_config, validate_config

TEXT = (ROOT / "cluster.yaml").read_text()
CONFIG = yaml.safe_load(TEXT)
LOCK = dict(re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
TYPES = CONFIG["available_node_types"]
HEAD, WORKERS = TYPES["head"], {name: kind for name, kind in TYPES.items() if name != "head"}
COMMANDS = [command for name, value in CONFIG.items() if name.endswith("_commands") for command in value]
STARTS = [command for command in COMMANDS if "ray start" in command]


def test_ray_takes_it():
    validate_config(prepare_config(CONFIG))


def test_ray_refuses_a_key_that_it_does_not_know():
    """What makes the test above one that can fail."""
    with pytest.raises(Exception, match="idle_minutes"):
        validate_config(prepare_config(CONFIG | {"idle_minutes": 10}))


def test_the_head_has_no_gpu_and_no_room_for_tasks():
    assert CONFIG["head_node_type"] == "head"
    assert HEAD["resources"] == {"CPU": 0, "GPU": 0}
    assert "InstanceMarketOptions" not in HEAD["node_config"], "the head is not taken away"


def test_workers_start_on_demand_as_spot_nodes():
    assert {name: kind["resources"]["GPU"] > 0 for name, kind in WORKERS.items()} == {"gpu": True, "decode": False}
    for kind in WORKERS.values():
        assert kind["min_workers"] == 0 < kind["max_workers"]
        assert kind["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert sum(kind["max_workers"] for kind in WORKERS.values()) <= CONFIG["max_workers"]


def test_every_node_has_the_same_image_whose_python_runs_the_project():
    images = {kind["node_config"]["ImageId"] for kind in TYPES.values()}
    assert len(images) == 1
    python = {"ubuntu-24.04": (3, 12)}[re.search(r"ubuntu-[\d.]+", images.pop())[0]]
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert python >= tuple(map(int, wanted.removeprefix(">=").split(".")))


def test_packages_come_from_the_lock_and_no_other_version_is_named():
    assert any('make -C ~/post env POST_VENV="$HOME/venv"' in command for command in CONFIG["setup_commands"])
    installed = re.findall(r"pip install (?:--\S+ )*(.*)", "\n".join(COMMANDS))
    assert all(re.fullmatch(r"[\w-]+==[\w.]+", what) for what in installed), installed
    for name, version in re.findall(r"([\w-]+)==([\w.]+)", TEXT):
        assert LOCK.get(name, version) == version


def test_there_is_no_key_in_it():
    assert "ssh_private_key" not in CONFIG["auth"], "Ray makes one"
    assert not re.search(r"AKIA|ASIA|PRIVATE KEY|aws_secret|aws_access|password|RAY_AUTH_TOKEN\b", TEXT, re.IGNORECASE)
    assert not re.search(r"\b[0-9a-f]{32,}\b|://[^/\s]*:[^/\s]*@", TEXT)
    assert all(set(kind["node_config"]["IamInstanceProfile"]) == {"Name"} for kind in TYPES.values())


def test_the_metadata_service_wants_a_session():
    for kind in TYPES.values():
        assert kind["node_config"]["MetadataOptions"] == {"HttpTokens": "required", "HttpPutResponseHopLimit": 1}


def test_jobs_need_the_token():
    assert any("RAY_AUTH_MODE=token" in command for command in CONFIG["setup_commands"])
    assert CONFIG["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "chmod 600 ~/.ray/auth_token" in CONFIG["setup_commands"]


def test_nothing_listens_to_the_world():
    assert not re.search(r"\b0\.0\.0\.0\b|::", TEXT)
    head = [command for command in STARTS if "--head" in command]
    assert len(head) == 1
    assert "--dashboard-host=127.0.0.1" in head[0]
    assert all("--ray-client-server-port" not in command for command in STARTS)
    mlflow = next(command for command in COMMANDS if "mlflow server" in command.replace('"$(which mlflow)"', "mlflow"))
    assert re.search(r'--host "\$\(hostname -I', mlflow)
    assert "--allowed-hosts" in mlflow


def test_mlflow_keeps_runs_in_postgres_and_artifacts_on_s3():
    mlflow = next(command for command in COMMANDS if "--backend-store-uri" in command)
    assert "postgresql+psycopg2:///mlflow?host=/var/run/postgresql" in mlflow, "over the socket, without a password"
    assert '--artifacts-destination "$POST_BUCKET/mlflow"' in mlflow
    assert "MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false" in mlflow


def test_the_checkout_travels_without_what_git_ignores():
    assert CONFIG["file_mounts"]["~/post"] == "."
    assert CONFIG["rsync_filter"] == [".gitignore"]
    assert ".git" in CONFIG["rsync_exclude"]


def test_configuration_that_the_head_writes_is_one_that_training_reads(tmp_path):
    from post_platform.config import load_config

    write = next(command for command in COMMANDS if ">/runs/team.yaml" in command)
    names = re.findall(r"([a-z]+\.[a-z]+): ", write)
    values = {"data.root": "s3://bucket/shards", "run.dir": "/runs", "mlflow.uri": "http://10.0.0.5:5000"}
    assert names == list(values)
    file = tmp_path / "team.yaml"
    file.write_text("".join(f"{name}: {value}\n" for name, value in values.items()))
    config = load_config(file, [])
    assert (config.data.root, config.run.dir, config.mlflow.uri) == tuple(values.values())
