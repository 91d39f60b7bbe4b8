"""A run's best checkpoint as a model of MLflow's registry, to be served; with `experiment_log` what knows mlflow.

A registered model carries all that it runs with: weights, both packages, and the versions of what they import.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

import post_model
from post_platform import storage
from post_platform.errors import ConfigError, DataError, PostError
from post_platform.experiment_buffer import first_line
from post_platform.experiment_reader import ExperimentReader
from post_platform.training import checkpoint
from post_platform.training.imported import save_weights_alone

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.models import ModelSignature
    from mlflow.models.model import Model

PACKAGES = (Path(__file__).parent, Path(post_model.__file__).parent)
LOCK = PACKAGES[0].parents[1] / "requirements.lock"
IMPORTED = (  # by `serving_model.py`, and by what of both packages it imports
    "mlflow", "numpy", "pandas", "pillow", "pycocotools", "pydantic", "pyyaml", "safetensors", "scipy", "torch",
    "torchvision",
)  # fmt: skip
ARTIFACT = "checkpoint"
NEXT = "python pipelines/register.py RUN --name NAME --uri URI"


@dataclass(frozen=True)
class Candidate:
    """A checkpoint to register: where it is, whose it is, and the store that knows that run."""

    place: str
    run_id: str
    uri: str
    step: int
    score: float | None


@dataclass(frozen=True)
class Registered:
    """A version of a model in the registry."""

    name: str
    version: str
    alias: str
    model_id: str


def candidate(run: str, uri: str | None = None, experiment: str | None = None) -> Candidate:
    """The best checkpoint of a run, which is named by MLflow's id or name, or given as the run's folder.

    A folder may also be a checkpoint itself, and `RUN/latest` the newest one.

    Args:
        run: id, name or folder.
        uri: the store that knows the run; None: the one that a folder's checkpoint names, or runs/mlflow.db.
        experiment: where a name is looked up; None: in all.

    Raises: PostError when there is no such run, its folder is not on this machine, or no checkpoint is validated.
    """
    place = storage.absolute(run)
    if not _is_place(place):
        uri = uri or f"sqlite:///{Path('runs').resolve()}/mlflow.db"
        params = ExperimentReader(uri, Path("runs"), NEXT).find(run, experiment).params
        if not {"run.dir", "run.name"} <= params.keys():
            raise PostError(f"run {run!r} is no training: it has no folder", "name a run that train.py made")
        place = storage.join(params["run.dir"], params["run.name"])
        if not _is_place(place):
            raise DataError(f"run {run!r}: its folder {place} is not here", "name where its copy is: register.py DIR")
    if not storage.exists(storage.join(place, "model.json")):
        place = checkpoint.resolve(place if re.search("/(best|latest)$", place) else storage.join(place, "best"))
    folder = checkpoint.fetch(place)
    try:
        state = checkpoint.read_state(folder)
        return Candidate(place, state["mlflow_run_id"], uri or state["mlflow_uri"], state["step"], state["score"])
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{place} is not a checkpoint of a run in MLflow", "name a run that train.py made") from error


def _is_place(place: str) -> bool:
    """Whether there is a checkpoint, or a run with checkpoints."""
    checkpoints = storage.join(re.sub("/(best|latest)$", "", place), checkpoint.FOLDER)
    return storage.exists(storage.join(place, "model.json")) or bool(storage.list_names(checkpoints))


def register(found: Candidate, name: str, alias: str) -> Registered:
    """Make the next version of a model out of a checkpoint, and let the alias mean it.

    The alias is set last: until then `name@alias` is what it was before.

    Raises: PostError when the name or the alias is not allowed, the checkpoint is damaged, or MLflow refuses.
    """
    if not re.fullmatch(r"[\w-]{1,255}", alias, re.ASCII) or re.fullmatch(r"(?i)latest|v\d+", alias):
        raise ConfigError(f"--alias {alias}: must be of letters, digits, _ and -, and neither latest nor v1, v2, ...")
    if not name.strip() or {"/", ":"} & set(name):
        raise ConfigError(f"--name {name}: must be a name without / and :")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "120")  # seconds: weights take their time
    run = ExperimentReader(found.uri, Path("runs"), NEXT).find(found.run_id)
    facts = {"post.checkpoint": found.place, "post.step": str(found.step), "post.score": str(found.score)}
    with tempfile.TemporaryDirectory() as scratch, _registry_errors(found.uri):
        from mlflow import MlflowClient
        from mlflow.entities import LoggedModelOutput
        from mlflow.models.model import Model

        client, folder = MlflowClient(found.uri), Path(scratch) / "model"
        model = client.create_logged_model(run.experiment_id, "post", run.run_id, tags=facts)
        try:
            known = Model(artifact_path=model.artifact_location, run_id=run.run_id, model_id=model.model_id)
            save_served(folder, found.place, known)
            client.log_model_artifacts(model.model_id, str(folder))
        except BaseException:
            client.finalize_logged_model(model.model_id, "FAILED")
            raise
        client.finalize_logged_model(model.model_id, "READY")
        client.log_outputs(run.run_id, [LoggedModelOutput(model.model_id, found.step)])
        version = _new_version(client, name, model, facts)
        client.set_registered_model_alias(name, alias, version)
    return Registered(name, version, alias, model.model_id)


def _new_version(client: MlflowClient, name: str, model: LoggedModel, facts: dict[str, str]) -> str:
    """Enter a stored model in the registry. Its place is given, since `models:/<id>` is looked up in a global store."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    made = client.create_model_version(
        name, model.artifact_location, model.source_run_id, tags=facts, model_id=model.model_id
    )
    link = json.dumps([{"name": name, "version": made.version}])
    client.set_logged_model_tags(model.model_id, {"mlflow.modelVersions": link})  # MLflow's pages link by it
    return str(made.version)


def save_served(folder: Path, place: storage.Location, known: Model | None = None) -> None:
    """Write a checkpoint as an MLflow model, and see that it answers its own example.

    Args:
        folder: is made.
        place: the checkpoint; its averaged weights, where it has such.
        known: what MLflow knows of the model already.

    Raises: DataError for a damaged checkpoint, PostError where no lock tells the versions.
    """
    import mlflow
    import pandas as pd

    example = pd.DataFrame({"image": [_scene()], "state": [None]})
    with tempfile.TemporaryDirectory() as scratch:
        weights = Path(scratch) / ARTIFACT
        save_weights_alone(weights, place)
        mlflow.pyfunc.save_model(
            folder,
            python_model=PACKAGES[0] / "serving_model.py",
            artifacts={ARTIFACT: str(weights)},
            code_paths=[str(path) for path in PACKAGES],
            model_config={"classes": None, "device": None},
            signature=_signature(),
            input_example=example,
            pip_requirements=requirements(LOCK),
            mlflow_model=known,
        )
    mlflow.pyfunc.load_model(str(folder)).predict(example)


def requirements(lock: Path) -> list[str]:
    """What a served model imports, in the versions of a lock, and the lock as pip's constraints for what that needs.

    Raises: PostError when there is no lock.
    """
    try:
        pins = [line for line in lock.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    except OSError as error:
        raise PostError(f"no {lock.name} beside the packages", "register from a checkout of this repository") from error
    version = {pin.partition("==")[0].lower().replace("_", "-"): pin for pin in pins}
    return [*(version[name] for name in IMPORTED), f"-c {lock}"]


def _signature() -> ModelSignature:
    from mlflow.models import ModelSignature
    from mlflow.types import DataType
    from mlflow.types.schema import Array, ColSpec, Object, Property, Schema

    text, whole, real, truth = DataType.string, DataType.long, DataType.double, DataType.boolean
    mask = Object([Property("size", Array(whole)), Property("counts", text)])
    segment = Object([
        Property("class", text), Property("thing", truth), Property("track", whole), Property("area", whole),
        Property("score", real, required=False), Property("bbox", Array(whole), required=False),
        Property("segmentation", mask),
    ])  # fmt: skip
    frame = Schema([ColSpec(text, "image"), ColSpec(text, "state", required=False)])
    size = [ColSpec(whole, "height"), ColSpec(whole, "width")]
    return ModelSignature(frame, Schema([*size, ColSpec(Array(segment), "segments"), ColSpec(text, "state")]))


def _scene() -> str:
    """A small picture for the example: a street, a sky and something on it, as a PNG in base64."""
    image = np.full((64, 128, 3), (170, 200, 230), np.uint8)
    image[32:] = (90, 90, 95)
    image[28:44, 40:76] = (180, 40, 40)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


@contextlib.contextmanager
def _registry_errors(uri: str) -> Iterator[None]:
    """Turn what MLflow reports into one line. Raises: PostError."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        raise PostError(f"MLflow at {uri}: {first_line(error)}", "nothing that was served has changed") from error
