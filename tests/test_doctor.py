"""What the doctor finds: each check with a case that it must pass and one that it must not, and the script on both."""

import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest

from post_platform import cluster
from post_platform.config import load_config
from post_platform.errors import ConfigError, PostError
from post_platform.training import doctor
from post_platform.training.doctor import CHECKS, Case, Doubt, refuse_before_training
from post_platform.training.nodes import NodeFacts

ROOT = Path(__file__).resolve().parent.parent
GB = 10**9
NODE = NodeFacts("10.0.0.1", "Python 3.11.7, ray 2.60.0", 8 * GB, 4 * GB, ())
TOY = ROOT / "pipelines/configs/toycity.yaml"


@pytest.fixture
def case(toy_shards, tmp_path):
    def make(*overrides, **facts):
        config = load_config(TOY, [f"data.root={toy_shards}", f"run.dir={tmp_path}/runs", *overrides])
        return Case(config, **{"classes": 24, "workers": 2, "gpus": False, "nodes": [NODE], **facts})

    return make


def check(what, case):
    return CHECKS[what][0](case)


def test_shards_are_there_and_as_long_as_their_manifests_say(case, toy_shards, tmp_path):
    shutil.copytree(toy_shards, tmp_path / "copy")
    at = case(f"data.root={tmp_path}/copy")
    assert check("shards", at).startswith("coco_panoptic, kitti_mots, kitti_step: ")
    assert check("classes", at) == "24 unified classes of 3 label contracts"
    shard = next((tmp_path / "copy/kitti_step/train").glob("*.tar"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-512])
    with pytest.raises(PostError, match=rf"^kitti_step/train: {shard.name} has {len(whole) - 512} bytes, its"):
        check("shards", at)
    shard.unlink()
    with pytest.raises(PostError, match=rf"^kitti_step/train: {shard.name} is missing$") as caught:
        check("shards", at)
    assert "python pipelines/convert.py kitti_step" in caught.value.hint


def test_the_probe_leaves_nothing_behind(case, tmp_path):
    assert check("run.dir", case()) == f"{tmp_path}/runs: a probe was written, read and deleted"
    assert not list((tmp_path / "runs").iterdir())


def test_a_folder_that_cannot_be_written(case, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=rf"^run\.dir {tmp_path}/file/runs: .*Not a directory"):
        check("run.dir", case(f"run.dir={tmp_path}/file/runs"))


def test_disk(case, monkeypatch):
    at = case("train.keep=3")
    each = doctor.checkpoint_bytes(at.config, 24)
    assert check("disk", at).startswith(f"5 checkpoints of {each / 1e6:.0f} MB; ")
    monkeypatch.setattr(doctor.storage, "free_bytes", lambda path: 5 * each - 1)
    with pytest.raises(ConfigError, match=rf"runs has .* GB left, 5 checkpoints of {each / 1e6:.0f} MB need"):
        check("disk", at)
    monkeypatch.setattr(doctor.storage, "free_bytes", lambda path: 5 * each)
    usage = namedtuple("Usage", "free")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage(GB))
    with pytest.raises(Doubt, match=r"has 1\.0 GB left; Ray keeps its logs there"):
        check("disk", at)


def test_averaged_weights_count(case):
    plain, averaged = (doctor.checkpoint_bytes(case(f"optim.ema={decay}").config, 24) for decay in (0, 0.99))
    assert 1.3 * plain < averaged < 1.35 * plain  # weights and two moments; a third of it once more


def test_an_mlflow_that_does_not_answer(case):
    with pytest.raises(PostError, match=r"^mlflow\.uri http://127\.0\.0\.1:1: .*refused") as caught:
        check("MLflow", case("mlflow.uri=http://127.0.0.1:1"))
    assert "mlflow server" in caught.value.hint


def test_an_mlflow_database_that_is_made_later(case, tmp_path):
    assert check("MLflow", case()) == f"{tmp_path}/runs/mlflow.db will be made"


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            replace(NODE, address="10.0.0.2", versions="Python 3.12.1"),
            r"node 10\.0\.0\.2 has Python 3\.12\.1, node 10\.0\.0\.1 Python 3\.11",
        ),
        (replace(NODE, address="10.0.0.2", missing=("/runs/.probe",)), r"node 10\.0\.0\.2 does not see /runs$"),
    ],
)
def test_nodes_that_differ(case, monkeypatch, other, message):
    monkeypatch.setattr(doctor, "node_facts", lambda files: [NODE, other])
    with pytest.raises(ConfigError, match=message):
        check("nodes", case())


def test_memory(case):
    assert check("memory", case()) == "object store 4.0 GB, in /dev/shm"
    small = replace(NODE, shm=64 << 20)
    with pytest.raises(Doubt, match=r"node 10\.0\.0\.1: /dev/shm has 0\.1 GB free, its object store 4\.0"):
        check("memory", case(nodes=[small]))
    decoding = ("data.decode_on=cluster", "data.crop=[512,1024]", "train.global_batch=256")
    with pytest.raises(Doubt, match=r"object store 4\.0 GB, frames decoded ahead take 6\.4"):
        check("memory", case(*decoding))


def test_normalisation(case):
    assert check("normalisation", case("train.global_batch=8")) == "group, 4 samples of a worker at a time"
    with pytest.raises(ConfigError, match=r"^model\.norm: sync, 4 samples .* it needs GPUs$"):
        check("normalisation", case("model.norm=sync", "train.global_batch=8"))
    with pytest.raises(Doubt, match=r"^model\.norm: batch, 2 samples .* noise$"):
        check("normalisation", case("model.norm=batch", "train.global_batch=8", "train.accumulate=2"))


def test_a_network_for_a_gpu_without_one(case):
    assert check("hardware", case()) == "a network that is fit for a CPU"
    with pytest.raises(Doubt, match="no GPU here, and resnet50 at"):
        check("hardware", case("model.backbone=resnet50"))


OPEN = cluster.Dashboard("8.8.8.8:8265", public=True, loopback=False, wants_token=False)


@pytest.mark.parametrize(
    ("found", "error"),
    [
        (None, None),
        (OPEN, ConfigError),
        (replace(OPEN, wants_token=True), None),
        (replace(OPEN, public=False), Doubt),
        (replace(OPEN, public=False, loopback=True), None),
    ],
)
def test_a_dashboard_that_anybody_can_use_is_refused(case, monkeypatch, found, error):
    monkeypatch.setattr(cluster, "dashboard", lambda: found)
    if error is None:
        assert check("authentication", case())
        return
    with pytest.raises(error, match=r"^the dashboard at 8\.8\.8\.8:8265 .*wants no token") as caught:
        check("authentication", case())
    assert caught.type is error
    assert "RAY_AUTH_MODE=token" in caught.value.hint


@pytest.mark.parametrize(("status", "wants_token"), [(401, True), (200, False)])
def test_the_dashboard_is_asked_as_a_stranger(monkeypatch, status, wants_token):
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            assert "Authorization" not in self.headers
            self.send_response(status)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{server.server_port}"
        monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
        monkeypatch.setattr("ray._private.worker.get_dashboard_url", lambda: address)
        assert cluster.dashboard() == cluster.Dashboard(address, False, True, wants_token)
        server.shutdown()


def test_a_training_refuses_and_warns_by_itself(case, monkeypatch):
    monkeypatch.setattr(cluster, "dashboard", lambda: OPEN)
    told = []
    with pytest.raises(ConfigError, match="public"):
        refuse_before_training(case("model.backbone=resnet18").config, 24, 2, False, told.append)
    assert [line.split(",")[0] for line in told] == ["no GPU here"]


def test_the_script_names_every_failure_and_keeps_looking(toy_shards, tmp_path):
    command = [
        sys.executable, ROOT / "pipelines/doctor.py", "--config", TOY, "--json", tmp_path / "found.json",
        f"data.root={toy_shards}", f"run.dir={tmp_path}/runs", "mlflow.uri=http://127.0.0.1:1", "train.workers=99",
    ]  # fmt: skip
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr == "error: a training would not start: MLflow, workers\n"
    found = {finding["what"]: finding for finding in json.loads((tmp_path / "found.json").read_text())}
    states = {what: finding["state"] for what, finding in found.items()}
    assert states == {what: "ok" for what in CHECKS if what not in ("hardware", "normalisation")} | {
        "MLflow": "failed",
        "workers": "failed",
    }
    assert "ask for fewer: train.workers=" in done.stdout
    assert not (tmp_path / "runs/post").exists()
