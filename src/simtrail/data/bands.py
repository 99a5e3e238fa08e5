"""Which bands of a file reach the network, how they are grouped, and what they are turned into."""

from __future__ import annotations

import difflib
import math
from bisect import bisect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from simtrail.errors import InputError
from simtrail.params import Bands

Choice = Literal["all"] | list[int | str] | Bands
Wavelengths = Sequence[float | None] | None  # nm, one per band
Sample = Callable[[], np.ndarray]  # pixels of training images: (P pixels, C bands)

# First wavelength of each region, in nm. SWIR sensors that are said to end at 2500 nm go a little beyond.
_REGIONS = {"uv": 0, "vis": 400, "nir": 700, "swir": 1000, "mwir": 3000, "lwir": 8000}
_REACH = 50  # nm between a wavelength asked for and its band, at most


def regions(wavelengths: Wavelengths) -> dict[str, list[int]]:
    """The bands of each spectral region that has any, by wavelength: uv, vis, nir, swir, mwir, lwir.

    They begin at 0, 400, 700, 1000, 3000 and 8000 nm. Bands without a wavelength are in none.
    """
    places = [None if nm is None else list(_REGIONS)[bisect([*_REGIONS.values()], nm) - 1] for nm in wavelengths or ()]
    return _grouped(places, _REGIONS)


def modalities(
    names: Sequence[str],
    wavelengths: Wavelengths,
    declared: Mapping[str, Sequence[str]] | None = None,
    whole: str = "all",
) -> dict[str, list[int]]:
    """The positions of each modality's bands, in file order; every band is in exactly one group.

    The groups are those declared, by band names. Else: rgb, where red, green and blue are all there; uv, for names
    that begin so and wavelengths below 400 nm; the spectral region for others; `other` without a wavelength. Where
    nothing tells bands apart there is one group, named `whole`. InputError where declared groups name an unknown band,
    share one, or leave one out.
    """
    if declared is not None:
        return _declared(names, declared)
    lower = [name.lower() for name in names]
    region = {i: name for name, bands in regions(wavelengths).items() for i in bands}
    rgb = {"red", "green", "blue"} if {"red", "green", "blue"} <= set(lower) else set()
    places = [
        "rgb" if name in rgb else "uv" if name.startswith("uv") else region.get(i, "other")
        for i, name in enumerate(lower)
    ]
    groups = _grouped(places, ["rgb", *_REGIONS, "other"])
    return {whole: groups["other"]} if list(groups) == ["other"] else groups


def _grouped(places: Sequence[str | None], order: Collection[str]) -> dict[str, list[int]]:
    return {place: [i for i, p in enumerate(places) if p == place] for place in order if place in places}


def _declared(names: Sequence[str], declared: Mapping[str, Sequence[str]]) -> dict[str, list[int]]:
    groups = {group: _listed(f"dataset.yaml: modalities.{group}", bands, names) for group, bands in declared.items()}
    home: dict[int, str] = {}
    for group, positions in groups.items():
        for i in positions:
            if i in home:
                raise InputError(
                    f"dataset.yaml: modalities.{group} = {names[i]!r}: is in modalities.{home[i]} too; keep it in one"
                )
            home[i] = group
    if missing := [name for i, name in enumerate(names) if i not in home]:
        raise InputError(f"dataset.yaml: modalities: no group holds {_some(missing)}; put every band in one")
    return groups


def choose_bands(
    spec: Choice,
    names: Sequence[str],
    wavelengths: Wavelengths,
    good: Sequence[bool] | None,
    left_out: Collection[int],
    sample: Sample,
) -> list[int]:
    """Positions in the file, in its order, of the bands that reach the network or are mixed into what does.

    `names`, `wavelengths` (nm) and `good` have one entry per band of the file. Bands in `left_out` (the mask) are never
    chosen; those not good only where they are listed, by name or by number from 1. `sample` is called for `variance`
    and `loading` alone: pixels (P, C) with all the file's bands, in units that all bands share. InputError, in one
    line, where the bands can't be had.
    """
    if isinstance(spec, list):
        return _listed("prepare.bands", spec, names, left_out)
    if isinstance(spec, Bands) and spec.usml:
        cones = [_listed(f"prepare.bands.usml.{cone}", bands, names, left_out) for cone, bands in spec.usml]
        return sorted(set().union(*cones))
    free = [i for i in range(len(names)) if i not in left_out and (good is None or good[i])]
    if not free:
        raise InputError("prepare.bands: no band of the file is marked good; list those wanted by name or number")
    kind = "good bands" if len(free) < len(set(range(len(names))) - set(left_out)) else "bands"
    return free if spec == "all" else _by_rule(spec, free, kind, names, wavelengths, sample)


def _by_rule(
    spec: Bands, free: list[int], kind: str, names: Sequence[str], wavelengths: Wavelengths, sample: Sample
) -> list[int]:
    key, nm = f"prepare.bands.{spec.rule}", dict(enumerate(wavelengths or ()))
    place = {i: float(value) for i in free if (value := nm.get(i)) is not None}
    if spec.rule in ("nearest", "per_region") and not place:
        raise InputError(f"{key}: needs wavelengths in dataset.yaml or the ENVI header")
    if spec.nearest is not None:
        return _nearest(spec.nearest, place, names)
    n: int = getattr(spec, spec.rule)
    if spec.per_region is not None:
        present = regions([place.get(i) for i in range(len(names))])
        _enough(key, n, max(map(len, present.values())), f"{kind} in the largest spectral region")
        return sorted(i for bands in present.values() for i in _even({i: place[i] for i in bands}, n))
    if spec.uniform is not None:
        _enough(key, n, len(place or free), f"{kind} {'with a wavelength' if place else 'to choose from'}")
        return _even(place or {i: float(i) for i in free}, n)
    _enough(key, n, len(free), f"{kind} to choose from")
    if spec.pca is not None:
        return free
    pixels = np.asarray(sample(), np.float64)[:, free]
    if spec.variance is not None:
        score = pixels.var(0)
    else:
        _, components, variances = _principal(pixels, n)
        score = variances @ np.abs(components)
    return sorted(free[i] for i in np.argsort(-score, kind="stable")[:n])


def _enough(key: str, n: int, there: int, what: str) -> None:
    if n > there:
        raise InputError(f"{key} = {n}: must be at most {there}, the number of {what}")


def _nearest(wanted: Sequence[float], place: dict[int, float], names: Sequence[str]) -> list[int]:
    taken: dict[int, float] = {}
    for nm in wanted:
        band = min(place, key=lambda i: abs(place[i] - nm))
        if abs(place[band] - nm) > _REACH:
            raise InputError(
                f"prepare.bands.nearest = {nm:g}: the nearest band, {names[band]!r}, lies at {place[band]:g} nm; "
                f"ask for a wavelength within {_REACH} nm of a band"
            )
        if band in taken:
            raise InputError(
                f"prepare.bands.nearest = {nm:g}: {names[band]!r} at {place[band]:g} nm is the nearest band to "
                f"{taken[band]:g} nm too; remove one"
            )
        taken[band] = nm
    return sorted(taken)


def _even(place: dict[int, float], n: int) -> list[int]:
    """n different bands (all, if fewer), those with the least squared distance to equal steps from end to end."""
    from scipy.optimize import linear_sum_assignment

    at, n = np.array([*place.values()]), min(n, len(place))
    steps = np.linspace(at.min(), at.max(), n) if n > 1 else np.array([(at.min() + at.max()) / 2])
    return sorted([*place][i] for i in linear_sum_assignment((steps[:, None] - at) ** 2)[1])


def _listed(key: str, entries: Sequence[int | str], names: Sequence[str], left_out: Collection[int] = ()) -> list[int]:
    """The positions, sorted, of bands given by name or by number from 1; InputError with the key and the entry."""
    taken: dict[int, int | str] = {}
    for entry in entries:
        i = _position(key, entry, names)
        if i in left_out:
            raise InputError(f"{key} = {entry!r}: the mask never reaches the network; remove it here")
        if i in taken:
            raise InputError(f"{key} = {entry!r}: is the same band as {taken[i]!r}; give it once")
        taken[i] = entry
    if not taken:
        raise InputError(f"{key} = []: give at least one of {_some(names)}")
    return sorted(taken)


def _position(key: str, entry: int | str, names: Sequence[str]) -> int:
    if isinstance(entry, int):
        if not 1 <= entry <= len(names):
            raise InputError(f"{key} = {entry}: must be from 1 to {len(names)}, the number of bands, or a band's name")
        return entry - 1
    found = [i for i, name in enumerate(names) if name == entry]
    if len(found) > 1:
        numbers = " and ".join(str(i + 1) for i in found)
        raise InputError(f"{key} = {entry!r}: bands {numbers} have that name; give them different ones")
    if not found:
        near = difflib.get_close_matches(entry, names, n=1, cutoff=0.6)
        hint = f"did you mean {near[0]}?" if near else f"must be one of {_some(names)}"
        raise InputError(f"{key} = {entry!r}: no such band; {hint}")
    return found[0]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 12 else f"{', '.join(names[:10])} … {names[-1]} ({len(names)})"


class Mix(BaseModel):
    """Planes made of the chosen bands; stored as JSON with the recipe. K planes, C bands, R rows of weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["pca", "usml"]
    mean: list[float]  # (C,) what is taken from the bands first
    weights: list[list[float]]  # (R, C) principal components, or the share of each band in the four cones' catches
    low: list[float]  # (K,) the plane's value that becomes 0 …
    high: list[float]  # … and the one that becomes 1

    @property
    def names(self) -> list[str]:
        """Names of the K planes: pc1, pc2, …, or x, y, z, luminance."""
        return ["x", "y", "z", "luminance"] if self.kind == "usml" else [f"pc{i + 1}" for i in range(len(self.weights))]

    def apply(self, unit: np.ndarray) -> np.ndarray:
        """(K, H, W) float32 planes in [0, 1] of the chosen bands, (C, H, W) float32 in [0, 1].

        Values of a component beyond `low` and `high` are clipped. Luminance is the mean of the four catches.
        """
        mean, weights, low, high = (np.array(v, np.float32) for v in (self.mean, self.weights, self.low, self.high))
        planes = weights @ (unit.reshape(len(mean), -1) - mean[:, None])
        if self.kind == "usml":
            planes = np.vstack([tetrahedral(planes), planes.mean(0)])
        planes = np.clip((planes - low[:, None]) / (high - low)[:, None], 0, 1)
        return planes.reshape(-1, *unit.shape[1:])


def make_mix(spec: Choice, names: Sequence[str], sample: Sample) -> Mix | None:
    """What the chosen bands are turned into, for `pca` and `usml`; None where they reach the network as they are.

    `names` are those of the chosen bands. `sample`, for `pca`: pixels (P, C) of training images, the chosen bands in
    [0, 1]; a component's 0.1 and 99.9 percentiles over them become 0 and 1. InputError where these pixels hold fewer
    components. Cone catches mean something only if [0, 1] is the same range of reflectance, linearly, in every band.
    """
    if not isinstance(spec, Bands) or spec.rule not in ("pca", "usml"):
        return None
    if spec.usml is not None:
        weights = [[bands.count(name) / len(bands) for name in names] for _, bands in spec.usml]
        corners = tetrahedral(np.eye(4))
        low, high = [*corners.min(1).tolist(), 0.0], [*corners.max(1).tolist(), 1.0]
        return Mix(kind="usml", mean=[0.0] * len(names), weights=weights, low=low, high=high)
    n, pixels = int(spec.pca or 0), np.asarray(sample(), np.float64)
    mean, components, _ = _principal(pixels, n)
    ends = np.percentile((pixels - mean) @ components.T, (0.1, 99.9), axis=0)
    there = int((np.ptp(ends, axis=0) > 1e-6).sum())  # narrower ones are the rounding of float32
    if there < n:
        raise InputError(
            f"prepare.bands.pca = {n}: must be at most {there}, the number of components along which the pixels of the "
            "training images vary"
        )
    low, high = ends.tolist()
    return Mix(kind="pca", mean=mean.tolist(), weights=components.tolist(), low=low, high=high)


def _principal(pixels: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean (C,), first n principal components (n, C) and their variances (n,), of (P, C) pixels.

    Each component's largest loading is positive, so that the same pixels give the same signs everywhere.
    """
    variances, vectors = np.linalg.eigh(np.atleast_2d(np.cov(pixels.T)))  # in ascending order
    components = vectors.T[::-1][:n]
    largest = np.take_along_axis(components, np.abs(components).argmax(1, keepdims=True), 1)
    return pixels.mean(0), components * np.sign(largest), variances[::-1][:n]


def tetrahedral(catches: np.ndarray) -> np.ndarray:
    """(3, …) coordinates x, y, z in the tetrahedral colour space, of (4, …) cone catches u, s, m, l ≥ 0.

    The catches count relative to their sum. The pure cones are the corners of a regular tetrahedron, 0.75 from the
    achromatic centre (0, 0, 0), where black lies too. Endler & Mielke 2005 (Biol. J. Linn. Soc. 86:405); Stoddard &
    Prum 2008 (Am. Nat. 171:755).
    """
    total = catches.sum(0)
    u, s, m, _ = np.divide(catches, total, where=total > 0, out=np.full_like(catches, 1 / 4))
    return np.stack([(1 - 2 * s - m - u) / 2 * math.sqrt(3 / 2), (-1 + 3 * m + u) / (2 * math.sqrt(2)), u - 1 / 4])
