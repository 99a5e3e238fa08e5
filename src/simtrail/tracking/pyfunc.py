"""The registered model as code: MLflow runs this file to load the model, so that nothing is pickled."""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel


class EncoderModel(PythonModel):
    """Embeds an array (N, C, H, W), with the bands, type and range of the image files, as (N, width) float32."""

    def load_context(self, context: Any) -> None:
        folder = Path(context.artifacts["encoder"])
        # any folder of this name has a spec, but only a package has an origin
        if getattr(find_spec("simtrail"), "origin", None) is None:
            sys.path.append(str(folder / "code"))
        from simtrail.model.encoder import Encoder  # not above: registering runs this file, and need not wait for torch

        self.encoder = Encoder.load(folder)

    def predict(self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None) -> np.ndarray:
        return self.encoder.embed(model_input).to_numpy()


set_model(EncoderModel())
