"""simtrail: from a folder of images to a registered SimCLR encoder whose whole trail can be read back."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simtrail.data.reading.readers import read_image
    from simtrail.model.encoder import Encoder
    from simtrail.params import load_params
    from simtrail.pipeline.transformer import EncoderTransformer

__all__ = ["EncoderTransformer", "load_encoder", "load_params", "read_image"]
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

    if str(uri).startswith("models:/"):
        from simtrail.tracking.pull import fetch

        return Encoder.load(fetch(str(uri)), head_layers)
    return Encoder.load(Path(uri), head_layers)
