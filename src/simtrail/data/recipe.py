"""The recipe that turns an image file into the square array of the network's input, for packing and for inference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from simtrail.data.bands import Mix, choose_bands, make_mix, modalities
from simtrail.data.reading.decoded import BandFacts, Reading
from simtrail.data.reading.readers import take_bands
from simtrail.data.tiles import cut
from simtrail.errors import listed
from simtrail.params import Bands, Prepare
from simtrail.schema import BaseModel, BeforeValidator, ConfigDict

if TYPE_CHECKING:  # not needed by a finished encoder
    from simtrail.data.dataset import Declaration

# older encoders stored one number
Background = Annotated[list[float], BeforeValidator(lambda v: [v] if isinstance(v, int | float) else v)]


class Border(NamedTuple):
    """What images usually show at their borders."""

    pixel: np.ndarray  # (bands of a file,), the median of opaque pixels, in the files' units
    opaque: bool  # whether at least half of the pixels there are opaque


class Recipe(BaseModel):
    """How image files become arrays of one shape; stored as JSON beside the packed arrays and inside every encoder."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")  # nodata may be NaN

    size: int
    fit: Literal["pad", "crop", "tile"]
    background: Background  # 0 to 1, one value per band in `bands`, or one for all
    composite: bool  # background replaces pixels that are transparent, outside the mask or without data
    cut: bool = False  # crop to the rectangle around all pixels that are not background
    file_dtype: str  # type of a file's pixels
    file_bands: int  # bands of a file, without alpha, with the mask
    alpha: bool = False  # whether any of the files has an alpha channel
    opaque: bool = False  # it does, but most of what is at the borders of images is opaque
    mask_band: int | None  # its index among file_bands; it never reaches the network
    nodata: float | None = None  # a pixel whose bands all have this value is background
    chosen: list[int] = []  # indices among file_bands of the bands that are read; empty: all except the mask
    mix: Mix | None = None  # how planes are computed from the bands that are read
    bands: list[str]  # names of the bands that reach the network
    wavelengths: list[float | None] = []  # nm, of `bands`; empty: unknown
    modalities: dict[str, list[int]] = {}  # groups, as indices among `bands`; empty: one group
    dtype: Literal["uint8", "uint16"]
    low: list[float]  # per band read: the file's value that becomes 0 …
    high: list[float]  # … and the value that becomes 1
    scale: float | None = None  # the file's value that means reflectance 1
    gains: list[float] = []  # reflectance = value × gain + offset, per band read; empty: see scale
    offsets: list[float] = []
    reading: Reading = Reading()  # how files are read where they leave a choice

    @property
    def full_scale(self) -> int:
        """The packed value that means 1."""
        return int(np.iinfo(self.dtype).max)

    @property
    def masked(self) -> bool:
        """Whether the background of images is known and replaced."""
        return self.composite and (self.alpha or self.mask_band is not None or self.nodata is not None)

    @property
    def cut_outs(self) -> bool:
        """Whether images show objects on a background that is nothing but the replaced one."""
        return self.masked and not self.opaque

    @property
    def origin(self) -> str:
        """Where the background is from if `prepare.background` is auto."""
        continued = not (self.cut_outs or self.fit == "tile")
        return "the usual value at the borders of the training images" if continued else "black"

    @property
    def packed_background(self) -> np.ndarray:
        """The background as packed values, float32 (bands or 1, 1, 1)."""
        return np.rint(np.array(self.background, np.float32) * self.full_scale)[:, None, None]

    @property
    def read_bands(self) -> list[int]:
        """The indices, among a file's bands, of the bands that are read."""
        return self.chosen or [i for i in range(self.file_bands) if i != self.mask_band]

    @property
    def needed(self) -> int | None:
        """The shortest side that files may be decoded to; None if every pixel counts: some are background, or tiles."""
        return self.size if self.fit != "tile" and self.mask_band is None and self.nodata is None else None

    @property
    def quantity(self) -> str:
        """What `bounds` are: reflectance if its scale is known, else pixel value."""
        return "reflectance" if self.scale or self.gains else "pixel value"

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """The reflectances, or else the values in the files, that become 0 and 1 in each band of the input."""
        if self.mix:
            return np.zeros(len(self.bands)), np.ones(len(self.bands))
        low, high = np.array(self.low), np.array(self.high)
        if self.gains:
            return low * self.gains + self.offsets, high * self.gains + self.offsets
        return low / (self.scale or 1), high / (self.scale or 1)

    @property
    def rgb(self) -> list[int] | None:
        """The indices of red, green and blue among `bands`; None if they are not declared."""
        names = [name.lower() for name in self.bands]
        if {"red", "green", "blue"} <= set(names):
            return [names.index(c) for c in ("red", "green", "blue")]
        declared = self.modalities.get("rgb", [])
        return declared if len(declared) == 3 else None

    def blank(self, squares: np.ndarray) -> np.ndarray:
        """Which packed images (T, bands, size, size) are tiles of nothing but background, (T,) of bool."""
        if self.fit != "tile":
            return np.zeros(len(squares), bool)
        return (squares == self.packed_background).all((1, 2, 3))

    def require_same_units(self, facts: BandFacts) -> None:
        """Raises ValueError if a file states another scale or offset of its bands than the files of this recipe."""
        for name, ours in (("gains", self.gains), ("offsets", self.offsets)):
            stated = getattr(facts, name) or []
            theirs = [stated[i] for i in self.read_bands if i < len(stated)]
            if ours and theirs != ours:
                raise ValueError(
                    f"{name} of its bands are {theirs[:3] or 'not stated'}: must be {ours[:3]}, as in the images this "
                    "was made for"
                )


def make_recipe(
    manifest: pd.DataFrame,
    declaration: Declaration,
    params: Prepare,
    sample: Callable[[int | None, float | None, list[int]], np.ndarray] | None = None,
    border: Border | None = None,
) -> Recipe:
    """The recipe for the images of a (checked) manifest.

    `sample(mask_band, nodata, data_bands)` returns pixels (P, file bands) of the organisms in training images, for the
    settings that depend on pixel values. `mask_band` (index) and `nodata` (value) are None if there is none, or if the
    background is kept. `data_bands` are the bands that have the value `nodata` in pixels without data: all good bands.
    `border` is what training images show at their borders, see `needs_border`.

    8-bit images keep their values. Integers of up to 16 bits, and reflectance with a declared scale, are packed as 16
    bits with one range for all bands, so that spectra keep their shape (integers lose nothing). Other types are packed
    with a separate range for each band. The ranges are those of the manifest; they start at zero if no value is
    negative.
    """
    files = _Files.of(manifest, declaration)
    declared, composite = files.declared, params.mask != "ignore"

    @cache
    def pixels() -> np.ndarray:
        if sample is None:
            raise ValueError("these settings depend on pixels of training images: `sample` is needed")
        background = (files.mask, declared.nodata) if composite else (None, None)
        return np.nan_to_num(sample(*background, files.data_bands), nan=0.0)  # as in `conform`

    left_out = [] if files.mask is None else [files.mask]
    chosen = choose_bands(params.bands, files.names, declared.wavelengths, files.facts.good, left_out, pixels)
    cone_catches = isinstance(params.bands, Bands) and params.bands.usml is not None  # they add up bands
    gains, offsets = files.reflectance(chosen)
    one_range = bool(declared.scale or gains) or cone_catches
    dtype, low, high = _packed_range(manifest, chosen, one_range, gains, offsets)

    def unit(values: np.ndarray) -> np.ndarray:
        return np.clip((values[:, chosen] - low) / (high - low), 0, 1)

    alpha = "alpha" in manifest and bool(manifest["alpha"].any())
    names = [files.names[i] for i in chosen]
    mix = make_mix(params.bands, names, lambda: unit(pixels()))
    if params.background == "mean":
        background = _mean(unit(pixels()), mix)
    elif params.background == "auto":
        usual = border.pixel if border and (border.opaque or not composite) else None
        background = [0.0] if usual is None else _mean(unit(usual[None]), mix)
    else:
        background = [params.background]
    return Recipe(
        size=params.size,
        fit=params.fit,
        background=background,
        composite=composite,
        cut=params.mask == "crop",
        file_dtype=str(manifest["dtype"].iloc[0]),
        file_bands=len(files.names),
        alpha=alpha,
        opaque=alpha and composite and border is not None and border.opaque,
        mask_band=files.mask,
        nodata=declared.nodata,
        chosen=chosen,
        mix=mix,
        bands=mix.names if mix else names,
        wavelengths=[declared.wavelengths[i] for i in chosen] if declared.wavelengths and not mix else [],
        modalities={mix.method: list(range(len(mix.names)))} if mix else files.modalities(chosen),
        dtype=dtype,
        low=low.tolist(),
        high=high.tolist(),
        scale=declared.scale,
        gains=gains,
        offsets=offsets,
        reading=declaration.reading,
    )


def needs_border(manifest: pd.DataFrame, declaration: Declaration, params: Prepare) -> bool:
    """Whether the recipe depends on the borders of images: on their usual value, or on whether they are transparent.

    Tiles have no borders, and those of images with a mask or with pixels without data are known.
    """
    files = _Files.of(manifest, declaration)
    known = files.mask is not None or files.declared.nodata is not None
    asked = params.background == "auto" or (manifest["alpha"].any() and params.mask != "ignore")
    return bool(asked) and params.fit != "tile" and not (known and params.mask != "ignore")


class _Files(NamedTuple):
    """What the files of a dataset, and dataset.yaml, say of their bands."""

    names: list[str]
    mask: int | None  # index of the mask band
    facts: BandFacts
    declared: Declaration  # completed by the facts

    @classmethod
    def of(cls, manifest: pd.DataFrame, declaration: Declaration) -> _Files:
        n = int(manifest["bands"].iloc[0])
        facts = BandFacts.model_validate_json(manifest["facts"].iloc[0])
        declared = declaration.completed(facts)
        usual = {1: ["grey"], 3: ["red", "green", "blue"]}.get(n) or [f"band{i + 1}" for i in range(n)]
        names = declared.bands or usual
        return cls(names, names.index(declared.mask) if declared.mask else None, facts, declared)

    @property
    def image_bands(self) -> list[int]:
        return [i for i in range(len(self.names)) if i != self.mask]

    @property
    def data_bands(self) -> list[int]:
        return [i for i in self.image_bands if self.facts.good is None or self.facts.good[i]]

    def reflectance(self, chosen: list[int]) -> tuple[list[float], list[float]]:
        """Gain and offset of each chosen band; empty without them, or if dataset.yaml declares a scale instead."""
        gains, offsets = self.facts.gains, self.facts.offsets
        if gains is None or offsets is None or self.declared.scale:
            return [], []
        return [gains[i] for i in chosen], [offsets[i] for i in chosen]

    def modalities(self, chosen: list[int]) -> dict[str, list[int]]:
        """The positions of each modality's bands among the chosen ones; only modalities that have any."""
        bands, nm = self.image_bands, self.declared.wavelengths
        groups = modalities(
            [self.names[i] for i in bands],
            [nm[i] for i in bands] if nm else None,
            self.declared.modalities,
            self.declared.modality or "all",
        )
        positions = {
            name: [chosen.index(bands[i]) for i in group if bands[i] in chosen] for name, group in groups.items()
        }
        return {name: group for name, group in positions.items() if group}


def _packed_range(
    manifest: pd.DataFrame, chosen: list[int], one_range: bool, gains: list[float], offsets: list[float]
) -> tuple[Literal["uint8", "uint16"], np.ndarray, np.ndarray]:
    """The packed type, and for each chosen band the values of the files that become 0 and 1.

    With gains, 0 and 1 are the same reflectance in every band.
    """
    file_dtype = str(manifest["dtype"].iloc[0])
    if file_dtype == "uint8" and not gains:
        return "uint8", np.zeros(len(chosen)), np.full(len(chosen), 255.0)
    low, high = np.stack(manifest["min"].to_list()).min(0)[chosen], np.stack(manifest["max"].to_list()).max(0)[chosen]
    gain, offset = (np.array(gains), np.array(offsets)) if gains else (np.ones(len(chosen)), np.zeros(len(chosen)))
    low, high = low * gain + offset, high * gain + offset
    low, high = np.minimum(0, np.minimum(low, high)), np.maximum(low, high)  # a gain may be negative
    if one_range or file_dtype in ("int8", "int16", "uint16"):
        low, high = np.full(len(chosen), low.min()), np.full(len(chosen), high.max())
    high = np.where(high > low, high, low + 1)
    return "uint16", (low - offset) / gain, (high - offset) / gain


def _mean(unit: np.ndarray, mix: Mix | None) -> list[float]:
    """The mean of each plane that reaches the network, over pixels (P, C) in [0, 1]."""
    pixels = unit.T.astype(np.float32)[..., None]
    return (mix.apply(pixels) if mix else pixels).mean((1, 2), dtype=np.float64).tolist()


def levels(background: Sequence[float]) -> str:
    """A background in words: `0` or `0.52, 0.51, 0.46`, and of many bands `0.12 to 0.66`; black is 0, white is 1."""
    values = [f"{value:.2g}" for value in background]
    values = values[:1] if len(set(values)) == 1 else values
    return ", ".join(values) if len(values) <= 4 else f"{min(background):.2g} to {max(background):.2g}"


def without_effect(recipe: Recipe, facts: str) -> list[str]:
    """One line for each setting of `prepare` that has no effect, or that chooses bands marked as bad in the files.

    `facts` is the JSON of BandFacts in the manifest.
    """
    good, lines = BandFacts.model_validate_json(facts).good or [True] * recipe.file_bands, []
    if bad := [str(i + 1) for i in recipe.chosen if not good[i]]:
        lines.append(f"prepare.bands: the files mark these bands as bad: {listed(bad)}")
    if recipe.cut and not recipe.masked:
        lines.append("prepare.mask = 'crop': no effect: no mask band or value without data is declared")
    return lines


def conform(image: np.ndarray, recipe: Recipe, modality: str | None = None) -> np.ndarray:
    """A file's array (C, H, W) as the recipe's array (1, len(bands), size, size), in the recipe's dtype.

    With `fit: tile` it is (T, len(bands), size, size), with the T tiles in the order of `tiles.corners`.
    C is `file_bands`, or one more with alpha. Only the bands that are needed are read from a memory-mapped image. With
    a `modality`, C may also be the number of its bands, plus one for the mask if the recipe applies a mask band; all
    other bands are then black. Raises ValueError for any other number of bands, and for another type of pixels, because
    its values would have another meaning.
    """
    dtype = str(image.dtype.newbyteorder("="))
    if dtype != recipe.file_dtype:
        raise ValueError(f"pixels are {dtype}: must be {recipe.file_dtype}, as in the images this was made for")
    group = recipe.modalities[modality] if modality and recipe.mix is None else []
    masked = recipe.composite and recipe.mask_band is not None
    bands = len(group) + masked
    if group and image.ndim == 3 and len(image) == bands and bands not in (recipe.file_bands, recipe.file_bands + 1):
        full = np.zeros((recipe.file_bands, *image.shape[1:]), image.dtype)
        full[[recipe.read_bands[i] for i in group]] = image[: len(group)]
        if masked:
            full[recipe.mask_band] = image[-1]
        image = full
    group_names = [recipe.bands[i] for i in group] + ["the mask"] * masked
    if image.ndim != 3 or len(image) not in (recipe.file_bands, recipe.file_bands + 1):
        raise ValueError(
            f"image of shape {image.shape}: must be (bands, height, width) with {recipe.file_bands} bands, "
            "or one more for alpha" + (f", or only {modality}: {', '.join(group_names)}" if group else "")
        )
    mask = None if recipe.mask_band is None else image[recipe.mask_band]
    alpha = image[-1] if len(image) > recipe.file_bands else None
    chosen = recipe.read_bands
    read = take_bands(image, chosen) if isinstance(image, np.memmap) else [image[i] for i in chosen]
    return conform_bands(read, mask, alpha, recipe)


def conform_bands(
    bands: np.ndarray | list[np.ndarray], mask: np.ndarray | None, alpha: np.ndarray | None, recipe: Recipe
) -> np.ndarray:
    """As `conform`, but from the bands that the recipe reads, the mask band or None, and the alpha channel or None."""
    background = np.broadcast_to(recipe.packed_background / recipe.full_scale, (len(recipe.bands), 1, 1))
    cover = _cover(bands, mask, alpha, recipe) if recipe.composite else None
    area = _area(cover) if cover is not None and recipe.cut and cover.any() else (slice(None), slice(None))
    limits = zip(recipe.low, recipe.high, strict=True)
    units = (_unit(band, low, high) for band, (low, high) in zip(bands, limits, strict=True))
    planes = recipe.mix.apply(np.stack(list(units))) if recipe.mix else units
    squares = []
    for i, plane in enumerate(planes):  # one at a time: a photograph of floats takes four times its memory
        if cover is not None:
            plane -= background[i]
            plane *= cover
            plane += background[i]
        fitted = _fit(plane[area], background[i], recipe) * np.float32(recipe.full_scale)
        squares.append(np.rint(fitted, out=fitted).astype(recipe.dtype))
    return np.stack(squares, 1)


def _unit(band: np.ndarray, low: float, high: float) -> np.ndarray:
    """A band as float32 from 0 to 1."""
    unit = band.astype(np.float32)
    if band.dtype.kind == "f":
        np.nan_to_num(unit, copy=False, nan=0.0)
    unit -= np.float32(low)
    unit /= np.float32(high) - np.float32(low)
    return np.clip(unit, 0, 1, out=unit)


def _area(cover: np.ndarray) -> tuple[slice, slice]:
    """The rectangle around all pixels that are not background."""
    rows, columns = (np.flatnonzero(cover.any(axis)) for axis in (1, 0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _cover(
    bands: np.ndarray | list[np.ndarray], mask: np.ndarray | None, alpha: np.ndarray | None, recipe: Recipe
) -> np.ndarray | None:
    """How much of each pixel is not background, (H, W) from 0 to 1; None if the image has no background."""
    covers = []
    if alpha is not None:
        covers.append(alpha.astype(np.float32) / (np.iinfo(alpha.dtype).max if alpha.dtype.kind in "ui" else 1))
    if mask is not None:
        covers.append((mask > 0).astype(np.float32))
    if recipe.nodata is not None:
        nan = np.isnan(recipe.nodata)
        empty = np.logical_and.reduce([np.isnan(band) if nan else band == recipe.nodata for band in bands])
        covers.append((~empty).astype(np.float32))
    return np.prod(covers, axis=0) if covers else None


def _fit(unit: np.ndarray, background: np.ndarray, recipe: Recipe) -> np.ndarray:
    """A band (H, W) resized, and padded or cropped, to (1, size, size), or its tiles (T, size, size)."""
    size, (height, width) = recipe.size, unit.shape
    if recipe.fit == "tile":
        return cut(unit, background, size)
    scale = size / (max if recipe.fit == "pad" else min)(height, width)
    h, w = max(1, round(height * scale)), max(1, round(width * scale))
    if (h, w) != (height, width):
        # Pillow's bilinear filter becomes wider when an image is reduced, which avoids aliasing
        resized = Image.fromarray(np.ascontiguousarray(unit)).resize((w, h), Image.Resampling.BILINEAR)
        unit = np.asarray(resized)
    if recipe.fit == "crop":
        top, left = (h - size) // 2, (w - size) // 2
        return unit[None, top : top + size, left : left + size]
    if (h, w) == (size, size):
        return unit[None]
    square = np.full((size, size), background, np.float32)
    top, left = (size - h) // 2, (size - w) // 2
    square[top : top + h, left : left + w] = unit
    return square[None]
