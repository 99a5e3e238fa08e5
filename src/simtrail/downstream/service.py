"""Answers requests for an encoder or a predictor: images as numbers or as encoded files, in a list."""

from __future__ import annotations

import base64
import binascii
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from simtrail.data.recipe import Recipe
from simtrail.downstream.head import Head
from simtrail.errors import InputError
from simtrail.model.encoder import Encoder

SIDE = 16_384  # pixels of the longest side of an image that is still decoded
FORMATS = {b"\x93NUMPY": ".npy", b"PK\x03\x04": ".npz", b"MATLAB 5": ".mat", b"CDF": ".nc"}  # others tell
HDF5 = (b"\x89HDF", b"MATLAB 7")  # a damaged file can make its library wait for ever


class Service(NamedTuple):
    """What a request gets: features, or with a head predictions."""

    encoder: Encoder
    head: Head | None

    def answer(self, inputs: Any) -> np.ndarray | pd.DataFrame:
        """Features (N, width), or a table of predictions.

        `inputs` are files of any format, except ENVI and HDF5, as base64 strings (a list, or a table with one column),
        or an array (N, C, H, W) of numbers, with the bands and range of the encoder's image files. Raises InputError,
        which names each input by its position, from 0.
        """
        if isinstance(inputs, pd.DataFrame) and inputs.shape[1] == 1:
            inputs = inputs.iloc[:, 0].to_numpy()
        if isinstance(inputs, list):
            inputs = np.array(inputs, dtype=object)
        if not isinstance(inputs, np.ndarray) or not len(inputs):
            raise InputError("must be a list of base64 strings, or numbers (images, bands, height, width)")
        with tempfile.TemporaryDirectory() as scratch:
            items = _arrays(inputs, self.encoder.config.recipe) if inputs.ndim == 4 else _files(inputs, Path(scratch))
            found = list(self.encoder.stream(items, max_side=SIDE))
        if errors := [
            f"input {i}: {reason.removesuffix(', despite its name')}"
            for i, reason in enumerate(found)
            if isinstance(reason, str)
        ]:
            raise InputError("; ".join(errors[:10]))
        features = np.stack([row for row in found if not isinstance(row, str)])
        return features if self.head is None else self.head.predict(features)


def _arrays(numbers: np.ndarray, recipe: Recipe) -> list[np.ndarray]:
    """The images in the type of the files: JSON has only one type of numbers."""
    dtype = np.dtype(recipe.file_dtype)
    if numbers.dtype.kind not in "iuf":
        raise InputError("must be numbers, all images with the same number of bands, rows and columns")
    with np.errstate(invalid="ignore", over="ignore"):
        images = numbers.astype(dtype)
        same = np.array_equal(images, numbers) if dtype.kind in "iu" else np.isfinite(images).all()
    if not same:
        raise InputError(f"numbers must be {'integers ' if dtype.kind in 'iu' else ''}of the range of {dtype}")
    return list(images)


def _files(texts: np.ndarray, folder: Path) -> list[Path]:
    """The files that base64 strings encode, written to a folder."""
    if texts.ndim != 1 or not all(isinstance(text, str) for text in texts):
        raise InputError("must be a list of base64 strings, or numbers (images, bands, height, width)")
    paths = []
    for i, text in enumerate(texts):
        try:
            data = base64.b64decode(text.partition("base64,")[2] or text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise InputError(f"input {i}: no base64: {error}") from None
        if data.startswith(HDF5):
            raise InputError(f"input {i}: HDF5 (also MATLAB 7.3 and NetCDF 4) is not served; send the array of numbers")
        suffix = next((suffix for start, suffix in FORMATS.items() if data.startswith(start)), "")
        paths.append(folder / f"{i}{suffix}")
        paths[-1].write_bytes(data)
    return paths
