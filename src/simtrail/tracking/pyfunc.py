"""The registered model, as code: MLflow runs this file when the model is loaded, so that nothing is pickled."""

from pathlib import Path

from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

from simtrail.model.encoder import Encoder


class EncoderModel(PythonModel):
    """Embeds an array (N, C, H, W), in the bands, type and range of the image files, as (N, width) float32."""

    def load_context(self, context):  # type: ignore[no-untyped-def]
        self.encoder = Encoder.load(Path(context.artifacts["encoder"]))

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        return self.encoder.embed(model_input).to_numpy()


set_model(EncoderModel())
