"""The recipe that turns an image file into the square array a network sees: the same for packing and for inference."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Annotated, Literal

import numpy as np
import pandas as pd
from PIL import Image
from pydantic import BaseModel, BeforeValidator, ConfigDict

from simtrail.data.bands import Mix, choose_bands, make_mix, modalities
from simtrail.data.dataset import Declaration
from simtrail.data.readers import BandFacts, take_bands
from simtrail.errors import listed
from simtrail.params import Bands, Prepare

# of older encoders a number
Background = Annotated[list[float], BeforeValidator(lambda v: [v] if isinstance(v, int | float) else v)]


class Recipe(BaseModel):
    """How images are conformed; stored as JSON beside the packed arrays and inside every encoder."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")  # nodata may be NaN

    size: int
    fit: Literal["pad", "crop"]
    background: Background  # 0 to 1, of each of `bands`, or one for all
    composite: bool  # on the background, where alpha or the mask band is zero, or there are no data
    cut: bool = False  # to the rectangle around what is not background
    file_dtype: str  # type of a file's pixels
    file_bands: int  # bands of a file, without alpha, with the mask
    alpha: bool = False  # some of the files have one
    mask_band: int | None  # its index among file_bands; it never reaches the network
    nodata: float | None = None  # a pixel whose bands all have this value is background
    chosen: list[int] = []  # indices among file_bands of the bands that are read; none: all but the mask
    mix: Mix | None = None  # what they are turned into
    bands: list[str]  # names of the bands that reach the network
    wavelengths: list[float | None] = []  # of those, in nm; none: not known
    modalities: dict[str, list[int]] = {}  # groups of them, by position among `bands`; none: all are one
    dtype: Literal["uint8", "uint16"]
    low: list[float]  # per band read: the file's value that becomes 0 …
    high: list[float]  # … and the one that becomes 1
    scale: float | None = None  # the file's value that stands for reflectance 1

    @property
    def full_scale(self) -> int:
        """The packed value that stands for 1."""
        return int(np.iinfo(self.dtype).max)

    @property
    def masked(self) -> bool:
        """Whether images have background that is told from the organism."""
        return self.composite and (self.alpha or self.mask_band is not None or self.nodata is not None)

    @property
    def packed_background(self) -> np.ndarray:
        """The background as it is packed, float32, (bands or 1, 1, 1)."""
        return np.rint(np.array(self.background, np.float32) * self.full_scale)[:, None, None]

    @property
    def read_bands(self) -> list[int]:
        """Indices among a file's bands of those that are read."""
        return self.chosen or [i for i in range(self.file_bands) if i != self.mask_band]

    @property
    def rgb(self) -> list[int] | None:
        """Positions of red, green and blue among `bands`, or None where they are not declared."""
        names = [name.lower() for name in self.bands]
        if {"red", "green", "blue"} <= set(names):
            return [names.index(c) for c in ("red", "green", "blue")]
        declared = self.modalities.get("rgb", [])
        return declared if len(declared) == 3 else None


def make_recipe(
    manifest: pd.DataFrame,
    declaration: Declaration,
    params: Prepare,
    sample: Callable[[int | None, float | None, list[int]], np.ndarray] | None = None,
) -> Recipe:
    """The recipe for the images of a (checked) manifest.

    `sample` gives pixels (P, file bands) of the organisms in training images, for the settings that look at them, told
    the index of the mask band and the value without data (None where there is none, or the background is left in), and
    the bands that have it where there are no data: all that are good.

    8-bit images keep their values. Integers of up to 16 bits, and reflectance of a declared scale, are packed as 16
    bits over one range for all bands, so that spectra keep their shape (integers lose nothing). Other types are packed
    over each band's own range. Ranges are those of the manifest, from zero where nothing is negative.
    """
    n = int(manifest["bands"].iloc[0])
    facts = BandFacts.model_validate_json(manifest["facts"].iloc[0])
    said = declaration.completed(facts)
    names = said.bands or {1: ["grey"], 3: ["red", "green", "blue"]}.get(n) or [f"band{i + 1}" for i in range(n)]
    mask = names.index(said.mask) if said.mask else None
    apart = params.mask != "ignore"
    left_out = [] if mask is None else [mask]

    @cache
    def raw() -> np.ndarray:
        if sample is None:
            raise ValueError("these settings depend on the pixels of training images: a sample of them is needed")
        told = [i for i in range(n) if i != mask and (facts.good is None or facts.good[i])]
        pixels = sample(mask if apart else None, said.nodata if apart else None, told)
        return np.nan_to_num(pixels, nan=0.0)  # as `conform`

    chosen = choose_bands(params.bands, names, said.wavelengths, facts.good, left_out, raw)
    mixed_colours = isinstance(params.bands, Bands) and params.bands.usml is not None  # catches are sums over bands
    dtype, file_dtype = "uint16", str(manifest["dtype"].iloc[0])
    low = np.minimum(0, np.stack(manifest["min"].to_list()).min(0))[chosen]
    high = np.stack(manifest["max"].to_list()).max(0)[chosen]
    if file_dtype == "uint8":
        dtype, low, high = "uint8", np.zeros(len(chosen)), np.full(len(chosen), 255.0)
    elif said.scale or mixed_colours or file_dtype in ("int8", "int16", "uint16"):
        low, high = np.full(len(chosen), low.min()), np.full(len(chosen), high.max())
    high = np.where(high > low, high, low + 1)

    def unit() -> np.ndarray:
        return np.clip((raw()[:, chosen] - low) / (high - low), 0, 1)

    mix = make_mix(params.bands, [names[i] for i in chosen], unit)
    if params.background == "mean":
        pixels = unit().T.astype(np.float32)[..., None]
        background = (mix.apply(pixels) if mix else pixels).mean((1, 2), dtype=np.float64).tolist()
    else:
        background = [params.background]
    bands = mix.names if mix else [names[i] for i in chosen]
    wavelengths = [said.wavelengths[i] for i in chosen] if said.wavelengths and not mix else []
    every = [i for i in range(n) if i != mask]
    lengths = [said.wavelengths[i] for i in every] if said.wavelengths else None
    whole = modalities([names[i] for i in every], lengths, said.modalities, said.modality or "all")
    places = {name: [chosen.index(every[i]) for i in group if every[i] in chosen] for name, group in whole.items()}
    groups = {mix.kind: list(range(len(bands)))} if mix else {name: group for name, group in places.items() if group}
    return Recipe(
        size=params.size,
        fit=params.fit,
        background=background,
        composite=apart,
        cut=params.mask == "crop",
        file_dtype=file_dtype,
        file_bands=n,
        alpha="alpha" in manifest and bool(manifest["alpha"].any()),
        mask_band=mask,
        nodata=said.nodata,
        chosen=chosen,
        mix=mix,
        bands=bands,
        wavelengths=wavelengths,
        modalities=groups,
        dtype=dtype,
        low=low.tolist(),
        high=high.tolist(),
        scale=said.scale,
    )


def without_effect(recipe: Recipe, facts: str) -> list[str]:
    """One line for each setting of `prepare` that has no effect, or asks for bands that the files mark as bad.

    `facts` is the JSON of BandFacts in the manifest.
    """
    good, lines = BandFacts.model_validate_json(facts).good or [True] * recipe.file_bands, []
    if bad := [str(i + 1) for i in recipe.chosen if not good[i]]:
        lines.append(f"prepare.bands: the files mark these bands as bad: {listed(bad)}")
    if recipe.cut and not recipe.masked:
        lines.append("prepare.mask = 'crop': no effect: no mask band or value without data is declared")
    return lines


def conform(image: np.ndarray, recipe: Recipe, modality: str | None = None) -> np.ndarray:
    """A file's (C, H, W) array as the recipe's (len(bands), size, size) array of its dtype.

    C is `file_bands`, or one more for alpha; of a memory-mapped image only the bands that are needed are read. With a
    `modality`, C may also be the number of its bands, and one more for the mask, where images are masked by a band of
    theirs: then the other bands are black. Raises ValueError for any other number of bands, and for another type, whose
    values would mean something else.
    """
    dtype = str(image.dtype.newbyteorder("="))
    if dtype != recipe.file_dtype:
        raise ValueError(f"pixels are {dtype}: must be {recipe.file_dtype}, as in the images this was made for")
    alone = recipe.modalities[modality] if modality and recipe.mix is None else []
    masked = recipe.composite and recipe.mask_band is not None
    bands = len(alone) + masked
    if alone and image.ndim == 3 and len(image) == bands and bands not in (recipe.file_bands, recipe.file_bands + 1):
        whole = np.zeros((recipe.file_bands, *image.shape[1:]), image.dtype)
        whole[[recipe.read_bands[i] for i in alone]] = image[: len(alone)]
        if masked:
            whole[recipe.mask_band] = image[-1]
        image = whole
    own = [recipe.bands[i] for i in alone] + ["the mask"] * masked
    if image.ndim != 3 or len(image) not in (recipe.file_bands, recipe.file_bands + 1):
        raise ValueError(
            f"image of shape {image.shape}: must be (bands, height, width) with {recipe.file_bands} bands, "
            "or one more for alpha" + (f", or {modality} alone: {', '.join(own)}" if alone else "")
        )
    mask = None if recipe.mask_band is None else image[recipe.mask_band]
    alpha = image[-1] if len(image) > recipe.file_bands else None
    return conform_bands(take_bands(image, recipe.read_bands), mask, alpha, recipe)


def conform_bands(bands: np.ndarray, mask: np.ndarray | None, alpha: np.ndarray | None, recipe: Recipe) -> np.ndarray:
    """As `conform`, from the bands that the recipe reads, and the mask band and alpha channel where there are any."""
    low, high = (np.array(v, np.float32)[:, None, None] for v in (recipe.low, recipe.high))
    unit = bands.astype(np.float32)
    if bands.dtype.kind == "f":
        np.nan_to_num(unit, copy=False, nan=0.0)
    unit -= low
    unit /= high - low
    np.clip(unit, 0, 1, out=unit)
    cover, ground = (
        _cover(bands, mask, alpha, recipe) if recipe.composite else None,
        recipe.packed_background / recipe.full_scale,
    )
    if recipe.mix:
        unit = recipe.mix.apply(unit)
    if cover is not None:
        unit = ground + (unit - ground) * cover
    if cover is not None and recipe.cut and cover.any():
        rows, columns = (np.flatnonzero(cover.any(axis)) for axis in (1, 0))
        unit = unit[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    square = _fit(unit, recipe) * np.float32(recipe.full_scale)
    return np.rint(square, out=square).astype(recipe.dtype)


def _cover(bands: np.ndarray, mask: np.ndarray | None, alpha: np.ndarray | None, recipe: Recipe) -> np.ndarray | None:
    """(H, W) from 0, background, to 1; None where the whole image counts."""
    covers = []
    if alpha is not None:
        covers.append(alpha.astype(np.float32) / (np.iinfo(alpha.dtype).max if alpha.dtype.kind in "ui" else 1))
    if mask is not None:
        covers.append((mask > 0).astype(np.float32))
    if recipe.nodata is not None:
        empty = np.isnan(bands) if np.isnan(recipe.nodata) else bands == recipe.nodata
        covers.append((~empty.all(0)).astype(np.float32))
    return np.prod(covers, axis=0) if covers else None


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
    square = np.empty((len(unit), size, size), np.float32)
    square[:] = recipe.packed_background / recipe.full_scale
    top, left = (size - h) // 2, (size - w) // 2
    square[:, top : top + h, left : left + w] = unit
    return square
