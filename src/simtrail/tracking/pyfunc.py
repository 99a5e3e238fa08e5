"""The registered model as code: MLflow runs this file to load the model, so that nothing is pickled."""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel


class EncoderModel(PythonModel):
    """Features (N, width) float32 of an array (N, C, H, W), with the bands, type and range of the image files.

    With a head in its folder: a table with what this predicts.
    """

    def load_context(self, context: Any) -> None:
        folder = Path(context.artifacts["encoder"])
        # any folder of this name has a spec, but only a package has an origin
        if getattr(find_spec("simtrail"), "origin", None) is None:
            sys.path.append(str(folder / "code"))
        # not above: registering runs this file, and need not wait for torch
        if (folder / "head.json").exists():
            from simtrail.downstream.predictor import Predictor

            self.answer = Predictor.load(folder).predict
        else:
            from simtrail.model.encoder import Encoder

            embed = Encoder.load(folder).embed
            self.answer = lambda images: embed(images).to_numpy()

    def predict(self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None) -> Any:
        return self.answer(model_input)


set_model(EncoderModel())
