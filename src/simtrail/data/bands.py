"""Chooses the bands of a file that reach the network, groups them by modality, and mixes them into new planes."""

from __future__ import annotations

import difflib
import math
from bisect import bisect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal

import numpy as np

from simtrail.errors import InputError
from simtrail.params import Bands
from simtrail.schema import BaseModel, ConfigDict, Field

Choice = Literal["all"] | list[int | str] | Bands
Wavelengths = Sequence[float | None] | None  # nm, one per band
Sample = Callable[[], np.ndarray]  # returns pixels of training images: (P pixels, C bands)

# First wavelength of each region, in nm. SWIR sensors with a nominal limit of 2500 nm measure slightly beyond it.
_REGIONS = {"uv": 0, "vis": 400, "nir": 700, "swir": 1000, "mwir": 3000, "lwir": 8000}
_MAX_DISTANCE = 50  # nm between a wavelength in `nearest` and its band


def regions(wavelengths: Wavelengths) -> dict[str, list[int]]:
    """The indices of the bands in each spectral region that has any: uv, vis, nir, swir, mwir, lwir.

    The regions begin at 0, 400, 700, 1000, 3000 and 8000 nm. Bands without a wavelength are in no region.
    """
    names, starts = list(_REGIONS), list(_REGIONS.values())
    band_regions = [None if nm is None else names[bisect(starts, nm) - 1] for nm in wavelengths or ()]
    return _grouped(band_regions, _REGIONS)


def modalities(
    names: Sequence[str],
    wavelengths: Wavelengths,
    declared: Mapping[str, Sequence[str]] | None = None,
    whole: str = "all",
) -> dict[str, list[int]]:
    """The indices of each modality's bands, in file order; every band is in exactly one group.

    `declared` gives the names of the bands in each group. Without it, red, green and blue form the group rgb if the
    file has all three. A band is in uv if its name starts with uv or its wavelength is below 400 nm. Any other band is
    in the group of its spectral region, or in `other` if it has no wavelength. If all bands are in `other`, this one
    group is named `whole`. Raises InputError if a declared group names an unknown band, if two of them share a band,
    or if a band is in none of them.
    """
    if declared is not None:
        return _declared(names, declared)
    lower = [name.lower() for name in names]
    region_of_band = {i: name for name, bands in regions(wavelengths).items() for i in bands}
    rgb = {"red", "green", "blue"} if {"red", "green", "blue"} <= set(lower) else set()
    group_of_band = [
        "rgb" if name in rgb else "uv" if name.startswith("uv") else region_of_band.get(i, "other")
        for i, name in enumerate(lower)
    ]
    groups = _grouped(group_of_band, ["rgb", *_REGIONS, "other"])
    return {whole: groups["other"]} if list(groups) == ["other"] else groups


def _grouped(group_of_band: Sequence[str | None], groups: Collection[str]) -> dict[str, list[int]]:
    """The band indices of each group, in the order of `groups`; bands whose group is None are left out."""
    return {group: [i for i, g in enumerate(group_of_band) if g == group] for group in groups if group in group_of_band}


def _declared(names: Sequence[str], declared: Mapping[str, Sequence[str]]) -> dict[str, list[int]]:
    groups = {group: _listed(f"dataset.yaml: modalities.{group}", bands, names) for group, bands in declared.items()}
    group_of_band: dict[int, str] = {}
    for group, indices in groups.items():
        for i in indices:
            if i in group_of_band:
                raise InputError(
                    f"dataset.yaml: modalities.{group} = {names[i]!r}: is also in modalities.{group_of_band[i]}; "
                    "keep it in one group"
                )
            group_of_band[i] = group
    if missing := [name for i, name in enumerate(names) if i not in group_of_band]:
        raise InputError(
            f"dataset.yaml: modalities: no group contains {_abbreviated(missing)}; put every band in a group"
        )
    return groups


def choose_bands(
    spec: Choice,
    names: Sequence[str],
    wavelengths: Wavelengths,
    good: Sequence[bool] | None,
    left_out: Collection[int],
    sample: Sample,
) -> list[int]:
    """Indices, in file order, of the bands that reach the network or are mixed into its input planes.

    `names`, `wavelengths` (nm) and `good` have one entry per band of the file. Bands in `left_out` (the mask) are never
    chosen. Bands that are not good are chosen only if `spec` lists them, by name or by number from 1. `sample` is
    called only for `variance` and `loading`; it returns pixels (P, C) with all bands of the file, in units that all
    bands share. Raises InputError, with a message of one line, if the choice is impossible.
    """
    if isinstance(spec, list):
        return _listed("prepare.bands", spec, names, left_out)
    if isinstance(spec, Bands) and spec.usml:
        cones = [_listed(f"prepare.bands.usml.{cone}", bands, names, left_out) for cone, bands in spec.usml]
        return sorted(set().union(*cones))
    usable = [i for i in range(len(names)) if i not in left_out and (good is None or good[i])]
    if not usable:
        raise InputError("prepare.bands: no band of the file is marked good; list the bands to use by name or number")
    noun = "good bands" if len(usable) < len(set(range(len(names))) - set(left_out)) else "bands"
    return usable if spec == "all" else _by_rule(spec, usable, noun, names, wavelengths, sample)


def _by_rule(
    spec: Bands, usable: list[int], noun: str, names: Sequence[str], wavelengths: Wavelengths, sample: Sample
) -> list[int]:
    key, all_nm = f"prepare.bands.{spec.rule}", dict(enumerate(wavelengths or ()))
    band_nm = {i: float(value) for i in usable if (value := all_nm.get(i)) is not None}
    if spec.rule in ("nearest", "per_region") and not band_nm:
        raise InputError(f"{key}: needs wavelengths in dataset.yaml or the ENVI header")
    if spec.nearest is not None:
        return _nearest(spec.nearest, band_nm, names)
    n: int = getattr(spec, spec.rule)
    if spec.per_region is not None:
        by_region = regions([band_nm.get(i) for i in range(len(names))])
        _at_most(key, n, max(map(len, by_region.values())), f"{noun} in the largest spectral region")
        return sorted(i for bands in by_region.values() for i in _evenly_spaced({i: band_nm[i] for i in bands}, n))
    if spec.uniform is not None:
        _at_most(key, n, len(band_nm or usable), f"{noun} {'with a wavelength' if band_nm else 'to choose from'}")
        return _evenly_spaced(band_nm or {i: float(i) for i in usable}, n)
    _at_most(key, n, len(usable), f"{noun} to choose from")
    if spec.pca is not None:
        return usable
    pixels = np.asarray(sample(), np.float64)[:, usable]
    if spec.variance is not None:
        score = pixels.var(0)
    else:
        _, components, variances = _principal(pixels, n)
        score = variances @ np.abs(components)
    return sorted(usable[i] for i in np.argsort(-score, kind="stable")[:n])


def _at_most(key: str, n: int, available: int, what: str) -> None:
    """Raises InputError if n is above `available`, the number of `what`."""
    if n > available:
        raise InputError(f"{key} = {n}: must be at most {available}, the number of {what}")


def _nearest(wavelengths: Sequence[float], band_nm: dict[int, float], names: Sequence[str]) -> list[int]:
    chosen: dict[int, float] = {}  # each band's wavelength in `nearest`
    for nm in wavelengths:
        band = min(band_nm, key=lambda i: abs(band_nm[i] - nm))
        if abs(band_nm[band] - nm) > _MAX_DISTANCE:
            raise InputError(
                f"prepare.bands.nearest = {nm:g}: the nearest band, {names[band]!r}, is at {band_nm[band]:g} nm; "
                f"give a wavelength within {_MAX_DISTANCE} nm of a band"
            )
        if band in chosen:
            raise InputError(
                f"prepare.bands.nearest = {nm:g}: {names[band]!r} at {band_nm[band]:g} nm is also the nearest band "
                f"to {chosen[band]:g} nm; remove one of the two"
            )
        chosen[band] = nm
    return sorted(chosen)


def _evenly_spaced(positions: dict[int, float], n: int) -> list[int]:
    """n different bands (all, if there are fewer), as near as possible to equal steps from the first to the last.

    The bands are those with the least sum of squared distances to the steps.
    """
    from scipy.optimize import linear_sum_assignment

    x, n = np.array([*positions.values()]), min(n, len(positions))
    steps = np.linspace(x.min(), x.max(), n) if n > 1 else np.array([(x.min() + x.max()) / 2])
    return sorted([*positions][i] for i in linear_sum_assignment((steps[:, None] - x) ** 2)[1])


def _listed(key: str, entries: Sequence[int | str], names: Sequence[str], left_out: Collection[int] = ()) -> list[int]:
    """The sorted indices of bands given by name or by number from 1; InputErrors name the key and the entry."""
    chosen: dict[int, int | str] = {}
    for entry in entries:
        i = _band_index(key, entry, names)
        if i in left_out:
            raise InputError(f"{key} = {entry!r}: the mask never reaches the network; remove it from the list")
        if i in chosen:
            raise InputError(f"{key} = {entry!r}: is the same band as {chosen[i]!r}; give it once")
        chosen[i] = entry
    if not chosen:
        raise InputError(f"{key} = []: give at least one of {_abbreviated(names)}")
    return sorted(chosen)


def _band_index(key: str, entry: int | str, names: Sequence[str]) -> int:
    if isinstance(entry, int):
        if not 1 <= entry <= len(names):
            raise InputError(f"{key} = {entry}: must be from 1 to {len(names)}, the number of bands, or a band's name")
        return entry - 1
    matches = [i for i, name in enumerate(names) if name == entry]
    if len(matches) > 1:
        numbers = " and ".join(str(i + 1) for i in matches)
        raise InputError(f"{key} = {entry!r}: bands {numbers} have this name; give them different names")
    if not matches:
        near = difflib.get_close_matches(entry, names, n=1, cutoff=0.6)
        hint = f"did you mean {near[0]}?" if near else f"must be one of {_abbreviated(names)}"
        raise InputError(f"{key} = {entry!r}: no such band; {hint}")
    return matches[0]


def _abbreviated(names: Sequence[str]) -> str:
    """The names, separated by commas; of more than 12 names, the first ten, the last and their number."""
    return ", ".join(names) if len(names) <= 12 else f"{', '.join(names[:10])} … {names[-1]} ({len(names)})"


class Mix(BaseModel):
    """How planes are computed from the chosen bands; JSON in the recipe. K planes, C bands, R rows of weights."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_by_name=True, serialize_by_alias=True)

    method: Literal["pca", "usml"] = Field(alias="kind")  # as encoders store it
    mean: list[float]  # (C,) subtracted from the bands first
    weights: list[list[float]]  # (R, C) principal components, or the weight of each band in the four cone catches
    low: list[float]  # (K,) the value of each plane that becomes 0 …
    high: list[float]  # … and the value that becomes 1

    @property
    def names(self) -> list[str]:
        """Names of the K planes: pc1, pc2, …, or x, y, z, luminance."""
        return (
            ["x", "y", "z", "luminance"] if self.method == "usml" else [f"pc{i + 1}" for i in range(len(self.weights))]
        )

    def apply(self, unit: np.ndarray) -> np.ndarray:
        """The planes (K, H, W), float32 in [0, 1], of the chosen bands (C, H, W), float32 in [0, 1].

        Values outside `low` to `high` are clipped. Luminance is the mean of the four cone catches.
        """
        mean, weights, low, high = (np.array(v, np.float32) for v in (self.mean, self.weights, self.low, self.high))
        planes = weights @ (unit.reshape(len(mean), -1) - mean[:, None])
        if self.method == "usml":
            planes = np.vstack([tetrahedral(planes), planes.mean(0)])
        planes = np.clip((planes - low[:, None]) / (high - low)[:, None], 0, 1)
        return planes.reshape(-1, *unit.shape[1:])


def make_mix(spec: Choice, names: Sequence[str], sample: Sample) -> Mix | None:
    """The mix of the chosen bands for the rules `pca` and `usml`; None if the bands reach the network unchanged.

    `names` are the names of the chosen bands. `sample` is called only for `pca`; it returns pixels (P, C) of training
    images, the chosen bands in [0, 1]. The 0.1 and 99.9 percentiles of each component over these pixels become 0 and 1.
    Raises InputError if the pixels have fewer components. Cone catches are meaningful only if 0 to 1 is the same range
    of reflectance, on a linear scale, in every band.
    """
    if not isinstance(spec, Bands) or spec.rule not in ("pca", "usml"):
        return None
    if spec.usml is not None:
        weights = [[bands.count(name) / len(bands) for name in names] for _, bands in spec.usml]
        corners = tetrahedral(np.eye(4))
        low, high = [*corners.min(1).tolist(), 0.0], [*corners.max(1).tolist(), 1.0]
        return Mix(method="usml", mean=[0.0] * len(names), weights=weights, low=low, high=high)
    n, pixels = int(spec.pca or 0), np.asarray(sample(), np.float64)
    mean, components, _ = _principal(pixels, n)
    bounds = np.percentile((pixels - mean) @ components.T, (0.1, 99.9), axis=0)
    available = int((np.ptp(bounds, axis=0) > 1e-6).sum())  # a narrower range is a rounding error of float32
    if available < n:
        raise InputError(
            f"prepare.bands.pca = {n}: must be at most {available}, the number of components along which the pixels "
            "of the training images vary"
        )
    low, high = bounds.tolist()
    return Mix(method="pca", mean=mean.tolist(), weights=components.tolist(), low=low, high=high)


def _principal(pixels: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mean (C,), the first n principal components (n, C) and their variances (n,), of pixels (P, C).

    The largest loading of each component is positive, so that the same pixels give the same signs on every machine.
    """
    variances, vectors = np.linalg.eigh(np.atleast_2d(np.cov(pixels.T)))  # in ascending order
    components = vectors.T[::-1][:n]
    largest = np.take_along_axis(components, np.abs(components).argmax(1, keepdims=True), 1)
    return pixels.mean(0), components * np.sign(largest), variances[::-1][:n]


def tetrahedral(catches: np.ndarray) -> np.ndarray:
    """Coordinates x, y, z (3, …) in the tetrahedral colour space, of cone catches u, s, m, l ≥ 0 (4, …).

    The catches are divided by their sum. The pure cones are the corners of a regular tetrahedron, at a distance of 0.75
    from the achromatic centre (0, 0, 0). Black is at the centre too. Endler & Mielke 2005 (Biol. J. Linn. Soc. 86:405);
    Stoddard & Prum 2008 (Am. Nat. 171:755).
    """
    total = catches.sum(0)
    u, s, m, _ = np.divide(catches, total, where=total > 0, out=np.full_like(catches, 1 / 4))
    return np.stack([(1 - 2 * s - m - u) / 2 * math.sqrt(3 / 2), (-1 + 3 * m + u) / (2 * math.sqrt(2)), u - 1 / 4])
