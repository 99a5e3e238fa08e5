"""An encoder and a head: images in, classes, tags or numbers out."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pandas as pd

from simtrail.downstream.head import Head
from simtrail.model.encoder import Encoder, Images


class Predictor(NamedTuple):
    """Predicts what a few labelled images taught."""

    encoder: Encoder
    head: Head

    def predict(self, images: Images) -> pd.DataFrame:
        """The predictions of `Head.predict`, one row per image, indexed as by `Encoder.embed`, which takes the same."""
        features = self.encoder.embed(images)
        return self.head.predict(features.to_numpy()).set_index(features.index)

    @classmethod
    def load(cls, folder: Path) -> Predictor:
        """The predictor in a folder, on the GPU if any. Raises InputError if it is damaged or has no head."""
        return cls(Encoder.load(folder), Head.load(folder))
