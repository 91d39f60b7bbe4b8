"""A served model answers as the predictor does, whoever answers; and a request that it cannot answer gets one line."""

import base64
import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.pyfunc import scoring_server
from packaging.requirements import Requirement
from served import encoded, frame, save_checkpoint

from post_model import tracker
from post_model.predictor import Predictor
from post_platform import serving
from post_platform.datasets.masks import decode_mask
from post_platform.errors import DataError, PostError
from post_platform.experiment_registry import LOCK, requirements, save_served
from post_platform.serving import Service
from post_platform.serving_state import pack

ROOT = Path(__file__).resolve().parent.parent
PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".joblib")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "checkpoint"
    save_checkpoint(folder)
    return folder


@pytest.fixture(scope="module")
def folder(checkpoint, tmp_path_factory):
    """An MLflow model as register.py writes it."""
    found = tmp_path_factory.mktemp("served") / "model"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
        patch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        (checkpoint / "MANIFEST.json").write_text(manifest(checkpoint))
        save_served(found, checkpoint)
    return found


@pytest.fixture
def service(checkpoint):
    return Service.open(checkpoint)


def manifest(checkpoint):
    from post_platform.training.checkpoint import sha256

    return json.dumps({"files": {path.name: sha256(path) for path in checkpoint.iterdir()}})


def maps(answer):
    """The panoptic map and the tracks that an answer describes, painted from its masks alone."""
    size = answer["height"], answer["width"]
    places, tracks = np.zeros(size, np.int32), np.zeros(size, np.int32)
    for place, segment in enumerate(answer["segments"], start=1):
        mask = decode_mask(segment["segmentation"], *size, "answer")
        assert mask.sum() == segment["area"]
        assert not places[mask].any(), "masks are disjoint"
        places[mask], tracks[mask] = place, segment["track"]
    return places, tracks


def assert_answers(answer, result):
    """An answer says exactly what the predictor does."""
    places, tracks = maps(answer)
    np.testing.assert_array_equal(places, result.panoptic.numpy())
    np.testing.assert_array_equal(tracks, result.tracks.numpy())
    for told, segment in zip(answer["segments"], result.segments, strict=True):
        y0, x0, y1, x1 = segment.box or (0, 0, 0, 0)
        assert told["bbox"] == ([x0, y0, x1 - x0, y1 - y0] if segment.box else None)
        assert (told["class"], told["thing"], told["score"]) == (segment.name, segment.thing, segment.score)


def tracks_of(answer):
    return {segment["track"] for segment in answer["segments"]} - {0}


def test_the_registered_model_tracks_as_the_predictor_does(folder, checkpoint):
    model, predictor = mlflow.pyfunc.load_model(str(folder)), Predictor.from_checkpoint(checkpoint)
    seen, state = [], None
    for number in range(5):
        image = frame(number)
        (answer,) = model.predict(pd.DataFrame({"image": [encoded(image)], "state": [state]}))
        assert_answers(answer, predictor(image))
        state = answer["state"]
        seen.append(tracks_of(answer))
    assert seen[0] & seen[-1], "some objects stay"
    assert seen[-1] - seen[0], "and some are new"
    (first,) = model.predict(pd.DataFrame({"image": [encoded(frame(4))]}))
    assert tracks_of(first) == set(range(1, len(tracks_of(first)) + 1)), "without a state a video begins"


def test_rows_are_videos_of_their_own(folder):
    model = mlflow.pyfunc.load_model(str(folder))
    (one,) = model.predict(pd.DataFrame({"image": [encoded(frame(0))], "state": [None]}))
    both = model.predict(pd.DataFrame({"image": [encoded(frame(1)), encoded(frame(1))], "state": [one["state"], None]}))
    assert maps(both[0])[0].tolist() == maps(both[1])[0].tolist()
    assert tracks_of(both[0]) != tracks_of(both[1])


def test_who_answers_makes_no_difference(checkpoint, service, monkeypatch):
    """A worker that has just started continues a video from its state alone; so does one that is asked again."""
    states, answers = [None], []
    for number in range(4):
        answers.append(service.answer(encoded(frame(number)), states[-1]))
        states.append(answers[-1]["state"])
    for number, (state, answer) in enumerate(zip(states, answers, strict=False)):
        assert Service.open(checkpoint).answer(encoded(frame(number)), state) == answer
        assert service.answer(encoded(frame(number)), state) == answer
    recalled = []
    monkeypatch.setattr(service.predictor, "recall", lambda *arguments: recalled.append(arguments))
    last = service.answer(encoded(frame(4)), answers[-1]["state"])
    service.answer(encoded(frame(5)), last["state"])
    assert not recalled, "the worker that made a state does not encode its frame again"


def test_a_dataset_s_classes_are_asked_for_in_the_server_s_environment(folder, checkpoint, monkeypatch):
    monkeypatch.setenv(scoring_server.SERVING_MODEL_CONFIG, '{"classes": "kitti_step"}')  # as docs/serving.md says
    model = scoring_server.load_model_with_mlflow_config(str(folder))
    (answer,) = model.predict(pd.DataFrame({"image": [encoded(frame(0))]}))
    result = Predictor.from_checkpoint(checkpoint, "kitti_step")(frame(0))
    assert_answers(answer, result)
    own = Service.open(checkpoint)
    with pytest.raises(DataError, match=r"^state: was made by another model or version$"):
        own.answer(encoded(frame(1)), answer["state"])


def test_features_between_requests_are_bounded(service, monkeypatch):
    states = [service.answer(encoded(frame(number)))["state"] for number in range(2)]
    (size, other) = (sum(map_.nbytes for map_ in kept.features.values()) for kept in service._kept.values())
    assert size == other > 0
    monkeypatch.setattr(serving, "KEPT_BYTES", 3 * size)
    states += [service.answer(encoded(frame(number)))["state"] for number in range(2, 6)]
    assert list(service._kept) == states[-3:]
    monkeypatch.setattr(serving, "KEPT_BYTES", 0)
    states.append(service.answer(encoded(frame(6)))["state"])
    assert list(service._kept) == states[-1:]


# --- what is refused ------------------------------------------------------------------------------------------------


def other_state(service):
    return pack("another", base64.b64decode(encoded(frame(0))), tracker.start()._replace(size=torch.tensor([64, 128])))


@pytest.mark.parametrize(
    ("image", "state", "reason"),
    [
        (None, None, r"image: is missing"),
        ("", None, r"image: is missing"),
        (b"bytes", None, r"image: is missing"),
        ("§", None, r"image: is not base64, or not all of it"),
        (encoded(frame(0))[:-3], None, r"image: is not base64, or not all of it: "),
        (encoded(frame(0))[:200], None, r"frame: image cannot be read: image file is truncated"),
        (base64.b64encode(b"GIF89a" + bytes(50)).decode(), None, r"frame: image cannot be read"),
        (encoded(np.zeros((8, 1 << 21, 3), np.uint8)), None, r"frame: is 8x2097152, more than 8388608 pixels"),
        (encoded(frame(1)), 5, r"state: is of type int, must be a text or null"),
        (encoded(frame(1)), "§", r"state: is not base64, or not all of it"),
        (encoded(frame(1)), "AAAA", r"state: is none of the format post-state/1"),
        (encoded(frame(1)), lambda state: state[:-4], r"state: is damaged: its SHA-256 is another"),
        (encoded(frame(1)), lambda state: state[:-5], r"state: is not base64, or not all of it"),
        (encoded(frame(1)), other_state, r"state: was made by another model or version"),
        (encoded(frame(1, 65, 128)), lambda state: state, r"frame: is 65x128, the frames of this video are 64x128"),
    ],
)
def test_a_request_that_is_wrong_gets_one_line(service, image, state, reason):
    if callable(state):
        state = state(service if state is other_state else service.answer(encoded(frame(0)))["state"])
    with pytest.raises(DataError, match=rf"^{reason}") as error:
        service.answer(image, state)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([{"image": encoded(frame(0))}, {"image": "§"}], "^row 1, image: is not base64"),
        ([{"image": encoded(frame(0)), "state": "AAAA"}], "^row 0, state: is none of the format .*; send the state of"),
        ([{"image": None}], "^row 0, image: is missing; send the file's bytes .BMP, .*WEBP. as a text in base64$"),
        ([{"state": None}], r"Model is missing inputs \['image'\]"),
        ([], r"Model is missing inputs \['image'\]"),
        ("text", "must be a list of records"),
    ],
)  # fmt: skip
def test_the_server_answers_400(folder, rows, reason):
    model = mlflow.pyfunc.load_model(str(folder))
    with pytest.raises(mlflow.MlflowException) as error:
        scoring_server.invocations(
            json.dumps({"dataframe_records": rows}), "application/json", model, model.metadata.get_input_schema()
        )
    assert error.value.get_http_status_code() == 400
    answer = json.loads(error.value.serialize_as_json())
    assert re.search(reason, answer["message"])
    assert "Traceback" not in answer["message"]
    assert "stack_trace" not in answer


# --- what the model carries -----------------------------------------------------------------------------------------


def test_nothing_in_the_model_is_a_pickle(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {"MLmodel", "serving_model.py", "model.safetensors"} <= {path.name for path in files}
    for path in files:
        assert path.suffix not in PICKLES, path
        assert path.read_bytes()[:1] != b"\x80", path  # how every pickle since protocol 2 begins


def test_signature_and_example_are_there(folder):
    model = mlflow.models.Model.load(folder)
    assert model.get_input_schema().required_input_names() == ["image"]
    assert model.get_output_schema().input_names() == ["height", "width", "segments", "state"]
    example = json.loads((folder / "serving_input_example.json").read_text())
    assert example["dataframe_split"]["columns"] == ["image", "state"]


def test_requirements_are_the_lock_s(folder, tmp_path):
    lines = (folder / "requirements.txt").read_text().splitlines()
    locked = [line for line in LOCK.read_text().splitlines() if not line.startswith("#")]
    assert lines[-1] == "-c constraints.txt"
    assert set(lines[:-1]) <= set(locked)
    assert {re.split("==", line)[0] for line in lines[:-1]} & {"ray", "boto3", "webdataset", "av", "optuna"} == set()
    assert (folder / "constraints.txt").read_text().splitlines() == locked
    with pytest.raises(PostError, match=r"no requirements\.lock beside the packages"):
        requirements(tmp_path / "requirements.lock")


def closure(names):
    """The distributions that these need, themselves included."""
    found, waiting = set(), list(names)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name not in found:
            found.add(name)
            try:
                needed = importlib.metadata.requires(name) or []
            except importlib.metadata.PackageNotFoundError:
                continue  # of another platform
            parsed = map(Requirement, needed)
            waiting += [one.name for one in parsed if not one.marker or one.marker.evaluate({"extra": ""})]
    return found


ALONE = """
import importlib.metadata, json, re, sys
from importlib.machinery import PathFinder
folder, allowed, request = json.load(sys.stdin)
providers = importlib.metadata.packages_distributions()

class Bare(PathFinder):
    # Finds nothing of what is not allowed, as if it were not installed.
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        owners = {re.sub(r"[-_.]+", "-", owner).lower() for owner in providers.get(name.split(".")[0], [])}
        return None if owners and not owners & set(allowed) else PathFinder.find_spec(name, path, target)

sys.meta_path = [Bare if finder is PathFinder else finder for finder in sys.meta_path]
import mlflow, pandas
model = mlflow.pyfunc.load_model(folder)
(answer,) = model.predict(pandas.DataFrame({"image": [request]}))
import post_model, post_platform
assert post_platform.__file__.startswith(folder) and post_model.__file__.startswith(folder)
print(json.dumps([answer["segments"], sorted(name for name in ("ray", "av", "boto3") if name in sys.modules)]))
"""


def test_a_machine_that_has_only_what_the_model_names_runs_it(folder, checkpoint):
    lines = (folder / "requirements.txt").read_text().splitlines()[:-1]
    allowed = sorted(closure([line.split("==")[0] for line in lines]))
    assert "ray" not in allowed
    done = subprocess.run(
        [sys.executable, "-I", "-c", ALONE],
        input=json.dumps([str(folder), allowed, encoded(frame(0))]),
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        | {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"},
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    segments, strangers = json.loads(done.stdout.splitlines()[-1])
    assert segments == Service.open(checkpoint).answer(encoded(frame(0)))["segments"]
    assert strangers == []
