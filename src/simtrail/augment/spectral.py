"""What a view's spectra are: shift and gain along the wavelength, gamma of a modality, noise; and missing bands."""

from __future__ import annotations

import torch

from simtrail.augment.background import Background
from simtrail.augment.draws import Draws
from simtrail.params import Spectral


def perturb(
    views: torch.Tensor,
    params: Spectral,
    wavelengths: list[float | None],
    modalities: dict[str, list[int]],
    background: Background,
    draws: Draws,
) -> torch.Tensor:
    """The views (V, C, S, S), changed in place where drawn, in [0, 1].

    A spectrum s(λ) becomes gain(λ) · s(λ + δ)^γ + noise(λ), cut off at 0 and 1.
    Pixels that are background in all bands stay as they are, or their brightness would tell the views of one image.
    `wavelengths`: of each band, in nm, None where it has none; `modalities`: positions of the bands of each.
    """
    bands, strength, groups = views.shape[1], params.strength, _members(modalities, views.shape[1])
    splines = _splines(wavelengths, params.gain.width)
    largest_shift = strength * params.shift.nm if _shiftable(wavelengths) else 0.0
    shift = _within(largest_shift, 1, params.shift.p, draws)
    gain = 1 + _within(strength * params.gain.reach, len(splines), params.gain.p, draws) @ splines
    logs = _within(strength * params.gamma.reach, 2 * len(groups), params.gamma.p, draws)
    gamma, exposure = (logs.reshape(-1, 2, len(groups)) @ groups).unbind(1)
    gamma, gain = gamma.exp(), gain * (exposure / 2).exp()
    noise = _noise(strength * params.noise.std, bands, params.noise.p, draws)
    changed = ((shift != 0) | (gain != 1) | (gamma != 1) | (noise != 0)).any(1)
    if changed.any():
        rows = changed.nonzero()[:, 0]
        pixels = values = views[rows.to(views.device)]
        if shift.any():
            values = _shifted(values, shift[rows], wavelengths)
        gain, gamma, noise = (t[rows].to(views.device)[:, :, None, None] for t in (gain, gamma, noise))
        if params.gamma.p:
            values = values**gamma
        values = torch.addcmul(noise, values, gain).clamp_(0, 1)
        views[rows.to(views.device)] = torch.where(background.mask(pixels), pixels, values)
    return views


def drop_bands(views: torch.Tensor, params: Spectral, modalities: dict[str, list[int]], draws: Draws) -> torch.Tensor:
    """The views (V, C, S, S), changed in place: NaN in bands that a view goes without, as encoders take them."""
    view, band = _dropped(params, _members(modalities, views.shape[1]), draws).nonzero().T.to(views.device)
    views[view, band] = torch.nan
    return views


def without_effect(params: Spectral, wavelengths: list[float | None], modalities: dict[str, list[int]]) -> list[str]:
    """One line for each setting that can't act on these bands."""
    strength, apart = params.strength, "needs two bands or more of known wavelength"
    settings = {
        "shift": (strength * params.shift.nm, _shiftable(wavelengths), f"{apart}, no two of them alike"),
        "gain": (strength * params.gain.reach, len(_splines(wavelengths, params.gain.width)) > 0, apart),
        "band_dropout": (strength * params.band_dropout.share, len(wavelengths) > 1, "needs two bands or more"),
        "group_dropout": (strength, len(modalities) > 1, "needs two modalities or more"),
        "random_bands": (strength, len(wavelengths) > params.random_bands.n, "needs more bands than n"),
    }
    return [
        f"pretrain.augment.spectral.{key}.p: no effect: {why}"
        for key, (reach, acts, why) in settings.items()
        if getattr(params, key).p * reach and not acts
    ]


def _within(reach: float, columns: int, p: float, draws: Draws) -> torch.Tensor:
    """Numbers up to ±reach for the views that are chosen, 0 for the others, (V, columns)."""
    rows, numbers = draws.chosen(p), draws.between(-reach, reach, columns)
    drawn = torch.zeros_like(numbers)
    drawn[rows] = numbers[rows]
    return drawn


def _noise(std: float, bands: int, p: float, draws: Draws) -> torch.Tensor:
    """Normal numbers, their standard deviation drawn up to `std` for each view; 0 for views not chosen, (V, bands)."""
    rows, std_V1, uniform = draws.chosen(p), draws.between(0, std), draws.uniform(bands)
    noise = torch.zeros_like(uniform)
    middles = uniform[rows].double() + 2**-25  # of the steps of a float32: 0 would be minus infinity
    noise[rows] = std_V1[rows] * torch.special.ndtri(middles).float()
    return noise


def _members(modalities: dict[str, list[int]], bands: int) -> torch.Tensor:
    """1 where a band belongs to a modality, else 0, (modalities, bands)."""
    members = torch.zeros(len(modalities), bands)
    for row, positions in zip(members, modalities.values(), strict=True):
        row[positions] = 1
    return members


def _shiftable(wavelengths: list[float | None]) -> bool:
    """Whether the bands of known wavelength are a spectrum: with two alike, no value at a wavelength is the one."""
    known = [nm for nm in wavelengths if nm is not None]
    return 1 < len(known) == len(set(known))


def _shifted(values: torch.Tensor, shift: torch.Tensor, wavelengths: list[float | None]) -> torch.Tensor:
    """Spectra read `shift` (V, 1) nm further on, linearly between bands, the outermost bands held."""
    known = sorted((nm, band) for band, nm in enumerate(wavelengths) if nm is not None)
    nm, order = torch.tensor([nm for nm, _ in known], dtype=torch.float64), torch.tensor([band for _, band in known])
    places = (nm + shift).clamp(nm[0], nm[-1])
    above = torch.searchsorted(nm, places).clamp(min=1)
    lower, weight = torch.arange(values.shape[1]).repeat(len(values), 1), torch.zeros(values.shape[:2])
    upper = lower.clone()
    lower[:, order], upper[:, order] = order[above - 1], order[above]
    weight[:, order] = ((places - nm[above - 1]) / (nm[above] - nm[above - 1])).float()
    # two bands of each view are picked for each: a matrix of all bands by all would do 200 times the work at 400 bands
    view = torch.arange(len(values), device=values.device)[:, None]
    lower, upper, weight = (t.to(values.device) for t in (lower, upper, weight))
    return values[view, lower].lerp_(values[view, upper], weight[:, :, None, None])


def _splines(wavelengths: list[float | None], width: float) -> torch.Tensor:
    """Cubic B-splines with knots `width` nm apart, at each band's wavelength, (splines, bands).

    They are positive and sum to 1, so that coefficients within ±1 give a curve within ±1. Bands of no wavelength have
    zeros; there are no splines where fewer than two wavelengths are known.
    """
    known = [nm for nm in wavelengths if nm is not None]
    if len(set(known)) < 2:
        return torch.zeros(0, len(wavelengths))
    knots = min(known) + width * torch.arange(-1, (max(known) - min(known)) // width + 3, dtype=torch.float64)
    bands = torch.tensor([float("inf") if nm is None else nm for nm in wavelengths], dtype=torch.float64)
    away = ((bands - knots[:, None]) / width).abs()
    outer = (2 - away).clamp(min=0) ** 3 / 6
    return (outer - 2 / 3 * (1 - away).clamp(min=0) ** 3).float()


def _dropped(params: Spectral, groups: torch.Tensor, draws: Draws) -> torch.Tensor:
    """The bands that each view goes without, (V, bands): never all of them."""
    bands = groups.shape[1]
    rows, which = draws.chosen(params.strength * params.group_dropout.p), (draws.uniform(1)[:, 0] * len(groups)).long()
    dropped = torch.zeros(len(which), bands, dtype=torch.bool)
    if len(groups) > 1:
        dropped[rows] = groups[which[rows]].bool()
    most = params.strength * params.band_dropout.share * bands
    rows, count = draws.chosen(params.band_dropout.p), 1 + draws.between(0, most).floor()
    stay = (~dropped).sum(1, keepdim=True) - count if most else torch.full_like(count, bands)
    _thin(dropped, rows, stay, draws.uniform(bands))
    rows = draws.chosen(params.strength * params.random_bands.p)
    _thin(dropped, rows, torch.full_like(count, params.random_bands.n), draws.uniform(bands))
    return dropped


def _thin(dropped: torch.Tensor, rows: torch.Tensor, stay: torch.Tensor, order: torch.Tensor) -> None:
    """Of the bands that these views still have, so many (V, 1) stay, one at least: those first in a random order."""
    place = order.masked_fill(dropped, 2).argsort(1).argsort(1)  # those gone are behind all others
    dropped[rows] |= (place >= stay.clamp(min=1))[rows]
