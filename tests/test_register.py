"""A run becomes a model of the registry, and that a server: the runs are made by hand, everything else is real."""

import json
import os
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow_server import ENVIRONMENT, ROOT, Server, wait_for
from PIL import Image
from served import encoded, frame, save_checkpoint, save_run
from test_serving import PICKLES, assert_answers

from post_model.predictor import Predictor
from post_platform.errors import ConfigError, DataError, PostError
from post_platform.experiment_log import ExperimentLog
from post_platform.experiment_registry import candidate, register
from post_platform.training import checkpoint

pytest_plugins = ("s3_server",)
PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")


class Trained:
    """The run `first`, of which step 2 is the best and step 3 the newest."""

    def __init__(self, folder: Path, uri: str | None = None, name: str = "first"):
        self.runs = folder / "runs"
        self.folder = self.runs / name
        log = ExperimentLog.open(uri, "post", name, default_dir=self.runs)
        log.log_params({"run.dir": str(self.runs), "run.name": name})
        log.finish()
        self.uri, self.run_id = log.uri, log.run_id
        save_run(self.folder, self.run_id, self.uri, {1: 0.25, 2: 0.5, 3: None})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return Trained(tmp_path_factory.mktemp("trained"))


@pytest.mark.parametrize("how", ["folder", "best", "name", "id", "experiment"])
def test_a_run_means_its_best_checkpoint(trained, how, monkeypatch):
    monkeypatch.chdir(trained.runs.parent)
    named = {"folder": "runs/first", "best": str(trained.folder / "best"), "id": trained.run_id}.get(how, "first")
    found = candidate(named, experiment="post" if how == "experiment" else None)
    assert found.place == str(trained.folder / "checkpoints" / "step_00000002")
    assert (found.run_id, found.uri, found.step, found.score) == (trained.run_id, trained.uri, 2, 0.5)


def test_another_checkpoint_is_named(trained):
    newest = candidate(str(trained.folder / "latest"))
    assert (newest.step, newest.score) == (3, None)
    one = str(trained.folder / "checkpoints" / "step_00000001")
    assert candidate(one).place == one


def test_a_run_in_a_bucket(trained, bucket, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    address = f"s3://{bucket}/runs/first"
    for path in checkpoint.whole(trained.folder / "checkpoints"):
        checkpoint.publish(path, f"{address}/checkpoints/{path.name}")
    found = candidate(address)
    assert (found.place, found.run_id) == (f"{address}/checkpoints/step_00000002", trained.run_id)


def test_what_is_no_run_says_so(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(trained.runs.parent)
    with pytest.raises(PostError, match=r"no run 'frist'; did you mean first\?") as error:
        candidate("frist")
    assert "pipelines/register.py" in error.value.hint
    with pytest.raises(PostError, match=r"no run 'first'"):
        candidate("first", uri=Trained(tmp_path, name="other").uri)
    with pytest.raises(PostError, match=r"no experiment 'pots'; did you mean post\?"):
        candidate("first", experiment="pots")
    save_checkpoint(tmp_path / "imported")
    with pytest.raises(DataError, match=r"imported is not a checkpoint of a run in MLflow"):
        candidate(str(tmp_path / "imported"))
    save_run(tmp_path / "young", "0" * 32, trained.uri, {1: None})
    with pytest.raises(DataError, match=r"has no validated checkpoint"):
        candidate(str(tmp_path / "young"))
    monkeypatch.chdir(tmp_path / "imported")
    with pytest.raises(PostError, match=r"no MLflow database"):
        candidate("first")
    gone = Trained(tmp_path / "gone")
    gone.folder.rename(tmp_path / "gone" / "moved")
    with pytest.raises(DataError, match=r"run 'first': its folder .*/runs/first is not here") as error:
        candidate("first", uri=gone.uri)
    assert candidate(str(tmp_path / "gone" / "moved")).run_id == gone.run_id


@pytest.mark.parametrize(
    ("name", "alias", "reason"),
    [
        ("street", "latest", "--alias latest: "), ("street", "v3", "--alias v3: "), ("street", "a b", "--alias a b: "),
        ("street", "", "--alias : "), ("a/b", "champion", "--name a/b: "), (" ", "champion", "--name  : "),
    ],
)  # fmt: skip
def test_names_that_mlflow_would_refuse_at_the_end_are_refused_at_the_start(trained, name, alias, reason):
    with pytest.raises(ConfigError, match=f"^{reason}"):
        register(candidate(str(trained.folder)), name, alias)


def test_an_alias_moves_from_version_to_version(trained, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    client = MlflowClient(trained.uri)
    before = client.get_run(trained.run_id).info
    for version, place in (("1", trained.folder / "latest"), ("2", trained.folder)):
        made = register(candidate(str(place)), "street", "champion")
        assert made.version == version
        assert str(client.get_model_version_by_alias("street", "champion").version) == version
    found = client.get_model_version("street", "2")
    assert found.run_id == trained.run_id
    assert found.tags == {
        "post.checkpoint": str(trained.folder / "checkpoints" / "step_00000002"), "post.step": "2", "post.score": "0.5",
    }  # fmt: skip
    assert client.get_logged_model(made.model_id).status == "READY"
    run = client.get_run(trained.run_id)
    assert made.model_id in {output.model_id for output in run.outputs.model_outputs}
    assert (run.info.status, run.info.end_time) == (before.status, before.end_time), "the run itself is left as it is"
    mlflow.set_tracking_uri(trained.uri)
    try:
        model = mlflow.pyfunc.load_model("models:/street@champion")
    finally:
        mlflow.set_tracking_uri(None)
    (answer,) = model.predict(pd.DataFrame({"image": [encoded(frame(0))]}))
    best = trained.folder / "checkpoints" / "step_00000002"
    assert_answers(answer, Predictor.from_checkpoint(best)(frame(0)))


def test_a_damaged_checkpoint_leaves_what_is_served(tmp_path):
    trained = Trained(tmp_path)
    weights = trained.folder / "checkpoints" / "step_00000002" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"POST")
    with pytest.raises(DataError, match=r"model\.safetensors is damaged"):
        register(candidate(str(trained.folder)), "street", "champion")
    client = MlflowClient(trained.uri)
    assert client.search_registered_models() == []
    (left,) = client.search_logged_models([client.get_run(trained.run_id).info.experiment_id])
    assert left.status == "FAILED"


# --- over HTTP ------------------------------------------------------------------------------------------------------


class Served:
    """`mlflow models serve` over a registered model, with two workers."""

    def __init__(self, tracking: str, model: str, folder: Path):
        self.log = folder / "serve.log"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        env = {name: value for name, value in ENVIRONMENT.items() if name != "PYTHONPATH"}
        env |= {"MLFLOW_TRACKING_URI": tracking, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
        command = ["models", "serve", "-m", model, "--env-manager", "local", "--port", str(port), "--workers", "2"]
        with self.log.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", *command], cwd=folder, env=env | {"PATH": path()}, stdout=output,
                stderr=output, start_new_session=True,
            )  # fmt: skip

    def answers(self):
        assert self.process.poll() is None, self.log.read_text()
        try:
            urllib.request.urlopen(f"{self.address}/ping", timeout=5).close()
        except OSError:
            return False
        return True

    def __enter__(self):
        wait_for(self.answers, 300)
        return self

    def __exit__(self, *_):
        os.killpg(self.process.pid, 9)
        self.process.wait()


def path():
    """Where `uvicorn` is found, which MLflow starts by its name."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


@pytest.mark.slow
def test_a_video_over_http_through_the_registry_of_a_server(tmp_path):
    (tmp_path / "serve").mkdir()
    with Server(tmp_path) as server:
        trained = Trained(tmp_path, server.uri)
        done = subprocess.run(
            [sys.executable, ROOT / "pipelines" / "register.py", "first", "--name", "street", "--alias", "best",
             "--uri", server.uri, "--json", tmp_path / "registered.json"],
            cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "street version 1: " in done.stdout
        made = json.loads((tmp_path / "registered.json").read_text())
        assert (made["name"], made["version"], made["step"]) == ("street", "1", 2)
        client = MlflowClient(server.uri)
        assert str(client.get_model_version_by_alias("street", "best").version) == "1"

        copy = tmp_path / "copy"
        copy.mkdir()
        for entry in client.list_logged_model_artifacts(made["model_id"]):
            assert Path(entry.path).suffix not in PICKLES
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_URI", server.uri)
            mlflow.artifacts.download_artifacts("models:/street@best", dst_path=str(copy))
        files = [file for file in copy.rglob("*") if file.is_file()]
        assert "model.safetensors" in {file.name for file in files}
        assert [file for file in files if file.suffix in PICKLES or file.read_bytes()[:1] == b"\x80"] == []

        with Served(server.uri, "models:/street@best", tmp_path / "serve") as served:
            as_the_page_says(served.address, trained, tmp_path)
            refused(served.address)


def as_the_page_says(address, trained, folder, frames=6):
    """The page's own lines, on a video, against the predictor."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    function, _, loop = code.partition("\n\n\nstate = None")
    scope = {}
    exec(function, scope)
    names = [folder / f"{number:06d}.png" for number in range(frames)]
    for number, name in enumerate(names):
        Image.fromarray(frame(number)).save(name)
    predictor = Predictor.from_checkpoint(trained.folder / "checkpoints" / "step_00000002")
    state, tracks = None, []
    for number, name in enumerate(names):  # whichever of the two workers answers
        seen = scope["ask"](address, name, state)
        assert_answers(seen, predictor(frame(number)))
        state = seen["state"]
        tracks.append({segment["track"] for segment in seen["segments"]} - {0})
    assert tracks[0] & tracks[-1]
    assert tracks[-1] - tracks[0]
    loop = loop.replace("http://127.0.0.1:5001", address).replace('("000000.png', f'("{folder}/000000.png')
    exec("state = None" + loop.replace('"000001.png"', f'"{folder}/000001.png"'), scope)
    assert {segment["track"] for segment in scope["seen"]["segments"]} - {0} == tracks[1]


def refused(address):
    body = json.dumps({"dataframe_records": [{"image": encoded(frame(0)), "state": "AAAA"}]}).encode()
    request = urllib.request.Request(f"{address}/invocations", body, {"Content-Type": "application/json"})
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(request)
    assert error.value.code == 400
    assert json.load(error.value)["message"].startswith("row 0, state: is none of the format post-state/1; send the")
