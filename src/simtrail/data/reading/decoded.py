"""What a decoded image file is: its pixels, what it states about its bands, and what was decided in reading it."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from simtrail.schema import BaseModel, ConfigDict, Field

CLAIM = 2**28  # bytes of a decoded image that need no proof
RATIO = 1000  # of the bytes of an image to those of its file; compression of photographs reaches a tenth of it
_SPATIAL, _BANDS = "YX", "CS"
_AXES = {"Z": "z-planes", "T": "time points", "I": "pages", "Q": "pages"}


class Choices(BaseModel):
    """How files are read where they leave a choice; keys of dataset.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    array: str | None = None
    """Name of the array to read in .mat, .npz, HDF5 and NetCDF files; not needed if a file has only one."""
    axes: str | None = Field(None, pattern="^[A-Z]+$")
    """The axes of the files, in order, as letters: Y and X, C for the bands, any other letter for an axis of length 1:
    CYX, YXC. Needed to read z-planes or times as bands."""
    grey_as_rgb: bool = False
    """Images of one band become three equal bands."""
    as_uint16: bool = False
    """8-bit values are multiplied by 257, so that they span 16 bits."""


class Reading(Choices):
    """All that decides how a file is read."""

    count: int | None = None
    """Number of bands of every file, if known: so many bands are not alpha, even if the file marks the last so."""


class BandFacts(BaseModel):
    """What a file states about its bands; null for what it does not state."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")  # nodata may be NaN

    names: list[str] | None = None
    wavelengths: list[float | None] | None = None  # nm
    good: list[bool] | None = None  # False for a bad band
    scale: float | None = None  # the value that means reflectance 1
    gains: list[float] | None = None  # reflectance = value × gain + offset, of every band
    offsets: list[float] | None = None
    nodata: float | None = None  # the value of pixels without data


class DecodedImage(NamedTuple):
    """An image (C, H, W) in the file's type, and what was read with it."""

    image: np.ndarray
    alpha: bool = False  # whether the last band is alpha
    facts: BandFacts = BandFacts()
    notes: tuple[str, ...] = ()  # decisions that a user should know: "the first of 12 frames"


class Limits(NamedTuple):
    """The length of a file, and the longest side of an image that is still decoded if it is large."""

    file_bytes: int
    max_side: int | None = None

    def require(self, shape: tuple[int, ...], dtype: Any = np.uint8) -> None:
        """Raises ValueError, before memory is taken, for a large image that the file can't hold, or that is too large.

        A file whose image is a thousand times its size is truncated or a decompression bomb.
        """
        claimed = math.prod(shape) * np.dtype(dtype).itemsize
        if claimed <= CLAIM:
            return
        sides = " × ".join(map(str, shape))
        if claimed > RATIO * self.file_bytes:
            raise ValueError(
                f"claims {sides} values ({claimed / 1e9:.1f} GB) in {self.file_bytes:,} bytes: truncated, or a "
                "decompression bomb"
            )
        if self.max_side is not None and max(shape) > self.max_side:
            raise ValueError(f"{sides}: a side is longer than check.max_side = {self.max_side} px")


def arranged(array: np.ndarray, axes: str, reading: Reading) -> tuple[np.ndarray, tuple[str, ...]]:
    """The array as (C, H, W), a view, and notes; `axes` has one letter per dimension, unless the reading gives axes.

    Y and X are height and width, C or S the bands. Axes of length 1 are dropped. Pages without a stated meaning (I, Q)
    are bands; z-planes and times are not, unless the reading says so. Raises ValueError for anything else.
    """
    given = reading.axes if array.ndim > 2 else None
    if given and len(given) == array.ndim:
        axes = given
    array, axes = _squeezed(array, axes)
    if given and array.ndim > 2 and axes != given:
        if len(given) != array.ndim:
            raise ValueError(f"{array.ndim} axes ({axes}): axes = {given} in dataset.yaml has {len(given)}")
        axes = given
    if sorted(axis for axis in axes if axis in _SPATIAL) != ["X", "Y"]:
        raise ValueError(f"axes {axes} {array.shape}: must have one height Y and one width X; set axes in dataset.yaml")
    others = [axis for axis in axes if axis not in _SPATIAL]
    sizes = dict(zip(axes, array.shape, strict=True))
    if len(others) > 1 or (others and others[0] not in (*_BANDS, "I", "Q")):
        strange = [axis for axis in others if axis not in _BANDS] or others
        named = " and ".join(f"{sizes[axis]} {_AXES.get(axis, f'steps along {axis}')}" for axis in strange)
        bands = "".join("C" if axis == others[0] else axis for axis in axes) if len(others) == 1 else None
        way = f"set axes: {bands} in dataset.yaml to read them as bands, or " if bands else ""
        raise ValueError(f"{named} (axes {axes}), which are not bands unasked: {way}save one image per file")
    if not others:
        return array.transpose(axes.index("Y"), axes.index("X"))[None], ()
    notes = () if given or others[0] in _BANDS else (f"{sizes[others[0]]} pages are read as bands",)
    return array.transpose([axes.index(axis) for axis in (others[0], "Y", "X")]), notes


def _squeezed(array: np.ndarray, axes: str) -> tuple[np.ndarray, str]:
    """The array and its axes without those of length 1, except height and width."""
    kept = [i for i, axis in enumerate(axes) if axis in _SPATIAL or array.shape[i] > 1]
    return array.reshape([array.shape[i] for i in kept]), "".join(axes[i] for i in kept)


def upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """A view of an image (C, H, W) turned as the EXIF or TIFF orientation, 1 to 8, says."""
    if orientation in (5, 6, 7, 8):
        image = image.transpose(0, 2, 1)
    vertical, horizontal = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return image[:, :: -1 if vertical else 1, :: -1 if horizontal else 1]


def full_scale(dtype: np.dtype) -> int:
    """The alpha that means opaque: the largest value of an integer type, 1 for floats."""
    return int(np.iinfo(dtype).max) if dtype.kind in "ui" else 1
