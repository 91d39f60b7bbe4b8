"""The script of a served model, which MLflow copies and runs instead of a pickle: a row per frame in, an answer out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from post_platform.errors import PostError
from post_platform.serving import Service


class Refusal(MlflowException):
    """What is wrong with a request: HTTP 400 and one line, before which MLflow would write the request's start."""

    def __init__(self, text: str) -> None:
        self._text = text
        super().__init__(text, INVALID_PARAMETER_VALUE)

    @property
    def message(self) -> str:
        """The line, whatever is assigned."""
        return self._text

    @message.setter
    def message(self, text: str) -> None:
        """Nothing: the line stays."""


class ServedPost(PythonModel):
    """Rows are frames of as many videos, each with the state of its own; columns `image` and `state`."""

    def load_context(self, context: PythonModelContext) -> None:
        """Open the checkpoint that the model carries, with `classes` and `device` of its configuration."""
        chosen = context.model_config
        self.service = Service.open(Path(context.artifacts["checkpoint"]), chosen["classes"], chosen["device"])

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """One answer to each row, or one refusal that names the first row that is wrong."""
        answers = []
        for number, row in enumerate(model_input.to_dict("records")):
            try:
                answers.append(self.service.answer(row["image"], row.get("state")))
            except PostError as error:
                raise Refusal(f"row {number}, {error}" + (f"; {error.hint}" if error.hint else "")) from error
        return answers


set_model(ServedPost())
