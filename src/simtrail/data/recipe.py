"""The recipe that turns an image file into the square array a network sees: the same for packing and for inference."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd
from PIL import Image
from pydantic import BaseModel, ConfigDict

from simtrail.data.dataset import Declaration
from simtrail.params import Prepare


class Recipe(BaseModel):
    """How images are conformed; stored as JSON beside the packed arrays and inside every encoder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int
    fit: Literal["pad", "crop"]
    background: float
    composite: bool  # on the background, where alpha or the mask band is zero
    file_dtype: str  # type of a file's pixels
    file_bands: int  # bands of a file, without alpha, with the mask
    mask_band: int | None  # its index among file_bands; it never reaches the network
    bands: list[str]  # names of the bands that reach the network
    dtype: Literal["uint8", "uint16"]
    low: list[float]  # per band: the file's value that becomes 0 …
    high: list[float]  # … and the one that becomes 1

    @property
    def full_scale(self) -> int:
        """The packed value that stands for 1."""
        return int(np.iinfo(self.dtype).max)

    @property
    def rgb(self) -> list[int] | None:
        """Positions of red, green and blue among `bands`, or None where they are not declared."""
        names = [name.lower() for name in self.bands]
        return [names.index(c) for c in ("red", "green", "blue")] if {"red", "green", "blue"} <= set(names) else None


def make_recipe(manifest: pd.DataFrame, declaration: Declaration, params: Prepare) -> Recipe:
    """The recipe for the images of a (checked) manifest.

    8-bit images keep their values. Other types are packed as 16 bits over each band's range in the manifest (from zero,
    where nothing is negative), so that integer types of up to 16 bits lose nothing.
    """
    n = int(manifest["bands"].iloc[0])
    names = declaration.bands or {1: ["grey"], 3: ["red", "green", "blue"]}.get(n) or [f"band{i + 1}" for i in range(n)]
    mask = names.index(declaration.mask) if declaration.mask else None
    kept = [i for i in range(n) if i != mask]
    if manifest["dtype"].iloc[0] == "uint8":
        dtype, low, high = "uint8", np.zeros(n), np.full(n, 255.0)
    else:
        dtype = "uint16"
        low = np.minimum(0, np.stack(manifest["min"].to_list()).min(0))
        high = np.stack(manifest["max"].to_list()).max(0)
        high = np.where(high > low, high, low + 1)
    return Recipe(
        size=params.size,
        fit=params.fit,
        background=params.background,
        composite=params.mask == "apply",
        file_dtype=manifest["dtype"].iloc[0],
        file_bands=n,
        mask_band=mask,
        bands=[names[i] for i in kept],
        dtype=dtype,
        low=low[kept].tolist(),
        high=high[kept].tolist(),
    )


def conform(image: np.ndarray, recipe: Recipe) -> np.ndarray:
    """A file's (C, H, W) array as the recipe's (len(bands), size, size) array of its dtype.

    C is `file_bands`, or one more for alpha. Raises ValueError for any other number of bands, and for another type,
    whose values would mean something else.
    """
    if str(image.dtype) != recipe.file_dtype:
        raise ValueError(f"pixels are {image.dtype}: must be {recipe.file_dtype}, as in the images this was made for")
    if image.ndim != 3 or len(image) not in (recipe.file_bands, recipe.file_bands + 1):
        raise ValueError(
            f"image of shape {image.shape}: must be (bands, height, width) with {recipe.file_bands} bands, "
            "or one more for alpha"
        )
    kept = [i for i in range(recipe.file_bands) if i != recipe.mask_band]
    low, high = (np.array(v, np.float32)[:, None, None] for v in (recipe.low, recipe.high))
    unit = np.clip((image[kept].astype(np.float32) - low) / (high - low), 0, 1)
    if recipe.composite:
        unit = _on_background(unit, image, recipe)
    square = _fit(unit, recipe)
    return np.rint(square * recipe.full_scale).astype(recipe.dtype)


def _on_background(unit: np.ndarray, image: np.ndarray, recipe: Recipe) -> np.ndarray:
    cover = None
    if len(image) > recipe.file_bands:
        alpha = image[-1]
        cover = alpha.astype(np.float32) / (np.iinfo(alpha.dtype).max if alpha.dtype.kind in "ui" else 1)
    if recipe.mask_band is not None:
        inside = (image[recipe.mask_band] > 0).astype(np.float32)
        cover = inside if cover is None else cover * inside
    return unit if cover is None else recipe.background + (unit - recipe.background) * cover


def _fit(unit: np.ndarray, recipe: Recipe) -> np.ndarray:
    size, (height, width) = recipe.size, unit.shape[1:]
    scale = size / (max if recipe.fit == "pad" else min)(height, width)
    h, w = max(1, round(height * scale)), max(1, round(width * scale))
    if (h, w) != (height, width):
        # Pillow's bilinear filter widens with the reduction, so that small images are not aliased
        bands = [Image.fromarray(np.ascontiguousarray(b)).resize((w, h), Image.Resampling.BILINEAR) for b in unit]
        unit = np.stack([np.asarray(band) for band in bands])
    if recipe.fit == "crop":
        top, left = (h - size) // 2, (w - size) // 2
        return unit[:, top : top + size, left : left + size]
    if (h, w) == (size, size):
        return unit
    square = np.full((len(unit), size, size), recipe.background, np.float32)
    top, left = (size - h) // 2, (size - w) // 2
    square[:, top : top + h, left : left + w] = unit
    return square
