"""An encoder as a transformer of scikit-learn: images in, features out."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin

from simtrail.errors import InputError
from simtrail.model.encoder import Encoder, Images
from simtrail.tracking.pull import fetch

IMAGE_DIMENSIONS = 4  # images, bands, height, width


class EncoderTransformer(TransformerMixin, BaseEstimator):  # type: ignore[misc]  # without types
    """Embeds images with a registered encoder, as a step of a scikit-learn pipeline; it learns nothing.

    `uri` is models:/NAME@champion, models:/NAME/VERSION or a folder; `modality` gives the features of one modality.
    Images are paths (a list, an array, or a DataFrame with a column `path`) or an array (N, C, H, W). It can be cloned,
    and is pickled by its parameters only, never with weights. In one process, estimators of the same URI share one
    encoder: an alias that has moved is followed in a new process.
    """

    def __init__(self, uri: str, modality: str | None = None, batch_size: int = 64):
        self.uri = uri
        self.modality = modality
        self.batch_size = batch_size

    def fit(self, X: Images, y: Any = None) -> EncoderTransformer:
        """Loads the encoder, so that a wrong URI or modality is an error here; learns nothing."""
        self.n_features_out_ = self._embed([]).shape[1]
        return self

    def transform(self, X: Images) -> np.ndarray:
        """The features, (N, width) float32. Raises InputError, which names each file that can't be read."""
        if not isinstance(X, np.ndarray) or X.ndim == IMAGE_DIMENSIONS:
            return self._embed(X)
        if X.dtype.kind not in "OU":
            raise InputError(f"array of shape {X.shape}: must be (images, bands, height, width), or paths")
        return self._embed([str(path) for path in X.ravel()])

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """feature0 … feature(width − 1)."""
        return np.array([f"feature{i}" for i in range(self._embed([]).shape[1])], dtype=object)

    def _embed(self, images: Images) -> np.ndarray:
        return _encoder(str(self.uri)).embed(images, self.batch_size, self.modality).to_numpy()

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        return tags


@lru_cache(maxsize=2)
def _encoder(uri: str) -> Encoder:
    return Encoder.load(fetch(uri) if uri.startswith("models:/") else Path(uri))
