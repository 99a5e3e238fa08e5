"""simtrail: from a folder of images to a registered SimCLR encoder whose whole trail can be read back."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simtrail.data.reading.readers import read_image
    from simtrail.downstream.predictor import Predictor
    from simtrail.model.encoder import Encoder
    from simtrail.params import load_params
    from simtrail.pipeline.transformer import EncoderTransformer

__all__ = ["EncoderTransformer", "load_encoder", "load_params", "load_predictor", "read_image"]
# `simtrail --help` needs none of them
_LAZY = {
    "EncoderTransformer": "simtrail.pipeline.transformer",
    "read_image": "simtrail.data.reading.readers",
    "load_params": "simtrail.params",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def load_encoder(uri: str | Path, head_layers: int = 0) -> Encoder:
    """The encoder of a registry URI (`models:/NAME@champion`, `models:/NAME/3`) or of a local folder.

    Its `embed(paths_or_folder)` returns a DataFrame with one row of features per image. It is in evaluation mode, on
    the GPU if there is one. With `head_layers` = k the features are those after the first k layers of the projection
    head, a better start for fine-tuning on few labels (SimCLRv2). Raises InputError for an unknown name or a damaged
    folder.
    """
    from simtrail.model.encoder import Encoder

    return Encoder.load(_folder(uri), head_layers)


def load_predictor(uri: str | Path) -> Predictor:
    """What `simtrail classify` or `simtrail finetune` made: from a registry URI, or a local folder.

    Its `predict(paths_or_folder)` returns a DataFrame with one row of predictions per image. Raises InputError for an
    unknown name, a damaged folder, and an encoder without a head.
    """
    from simtrail.downstream.predictor import Predictor

    return Predictor.load(_folder(uri))


def _folder(uri: str | Path) -> Path:
    if not str(uri).startswith("models:/"):
        return Path(uri)
    from simtrail.tracking.pull import fetch

    return fetch(str(uri))
