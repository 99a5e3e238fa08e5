"""Changes to the spectra of a view: shift and gain along the wavelength, gamma of a modality, noise, missing bands."""

from __future__ import annotations

import torch

from simtrail.augment.background import Background
from simtrail.augment.draws import Draws
from simtrail.data.loader import on_device
from simtrail.params import Spectral


def perturb(
    views: torch.Tensor,
    params: Spectral,
    wavelengths: list[float | None],
    modalities: dict[str, list[int]],
    background: Background,
    draws: Draws,
) -> torch.Tensor:
    """The views (V, C, S, S), in [0, 1]; those chosen are changed in place.

    A spectrum s(λ) becomes gain(λ) · s(λ + δ)^γ + noise(λ), clipped at 0 and 1.
    Pixels that are background in all bands do not change: otherwise their brightness would show how a view was changed.
    `wavelengths`: of each band, in nm, None if not known; `modalities`: the positions of the bands of each.
    """
    bands, strength, members = views.shape[1], params.strength, _members(modalities, views.shape[1])
    splines = _splines(wavelengths, params.gain.width)
    largest_shift = strength * params.shift.nm if _shiftable(wavelengths) else 0.0
    shift = _symmetric(largest_shift, 1, params.shift.p, draws)
    gain = 1 + _symmetric(strength * params.gain.reach, len(splines), params.gain.p, draws) @ splines
    logs = _symmetric(strength * params.gamma.reach, 2 * len(members), params.gamma.p, draws)
    gamma, exposure = (logs.reshape(-1, 2, len(members)) @ members).unbind(1)
    gamma, gain = gamma.exp(), gain * (exposure / 2).exp()
    noise = _noise(strength * params.noise.std, bands, params.noise.p, draws)
    changed = ((shift != 0) | (gain != 1) | (gamma != 1) | (noise != 0)).any(1)
    if changed.any():
        rows = changed.nonzero()[:, 0]
        rows_there = on_device(rows, views.device)
        pixels = values = views[rows_there]
        if shift.any():
            values = _shifted(values, shift[rows], wavelengths)
        gain, gamma, noise = (on_device(t[rows], views.device)[:, :, None, None] for t in (gain, gamma, noise))
        if params.gamma.p:
            values = values**gamma
        values = torch.addcmul(noise, values, gain).clamp_(0, 1)
        views[rows_there] = torch.where(background.mask(pixels), pixels, values)
    return views


def drop_bands(views: torch.Tensor, params: Spectral, modalities: dict[str, list[int]], draws: Draws) -> torch.Tensor:
    """The views (V, C, S, S), changed in place: the bands left out of a view are NaN, as encoders expect it."""
    dropped = _dropped(params, _members(modalities, views.shape[1]), draws)
    if dropped.any():
        views.masked_fill_(on_device(dropped, views.device)[:, :, None, None], torch.nan)
    return views


def without_effect(params: Spectral, wavelengths: list[float | None], modalities: dict[str, list[int]]) -> list[str]:
    """One line for each setting that can't have an effect on these bands."""
    strength, needs_wavelengths = params.strength, "needs two bands or more of known wavelength"
    settings = {
        "shift": (strength * params.shift.nm, _shiftable(wavelengths), f"{needs_wavelengths}, all of them different"),
        "gain": (strength * params.gain.reach, len(_splines(wavelengths, params.gain.width)) > 0, needs_wavelengths),
        "band_dropout": (strength * params.band_dropout.share, len(wavelengths) > 1, "needs two bands or more"),
        "group_dropout": (strength, len(modalities) > 1, "needs two modalities or more"),
        "random_bands": (strength, len(wavelengths) > params.random_bands.n, "needs more bands than n"),
    }
    return [
        f"pretrain.augment.spectral.{key}.p: no effect: {reason}"
        for key, (size, possible, reason) in settings.items()
        if getattr(params, key).p * size and not possible
    ]


def _symmetric(half_width: float, columns: int, p: float, draws: Draws) -> torch.Tensor:
    """Numbers from −half_width to half_width for the views that are chosen, 0 for the other views, (V, columns)."""
    rows, numbers = draws.chosen(p), draws.between(-half_width, half_width, columns)
    drawn = torch.zeros_like(numbers)
    drawn[rows] = numbers[rows]
    return drawn


def _noise(std: float, bands: int, p: float, draws: Draws) -> torch.Tensor:
    """Normal numbers, (V, bands), their standard deviation drawn from 0 to `std` for each view; 0 if not chosen."""
    rows, std_V1, uniform = draws.chosen(p), draws.between(0, std), draws.uniform(bands)
    noise = torch.zeros_like(uniform)
    middles = uniform[rows].double() + 2**-25  # the middles of float32 steps, because 0 would give −∞
    noise[rows] = std_V1[rows] * torch.special.ndtri(middles).float()
    return noise


def _members(modalities: dict[str, list[int]], bands: int) -> torch.Tensor:
    """1 where a band belongs to a modality, else 0, (modalities, bands)."""
    members = torch.zeros(len(modalities), bands)
    for row, positions in zip(members, modalities.values(), strict=True):
        row[positions] = 1
    return members


def _shiftable(wavelengths: list[float | None]) -> bool:
    """Whether the bands of known wavelength are a spectrum: two or more, and no two with the same wavelength."""
    known = [nm for nm in wavelengths if nm is not None]
    return 1 < len(known) == len(set(known))


def _shifted(values: torch.Tensor, shift: torch.Tensor, wavelengths: list[float | None]) -> torch.Tensor:
    """Spectra read at wavelengths `shift` (V, 1) nm longer: linear between bands, constant beyond the outermost."""
    known = sorted((nm, band) for band, nm in enumerate(wavelengths) if nm is not None)
    nm, order = torch.tensor([nm for nm, _ in known], dtype=torch.float64), torch.tensor([band for _, band in known])
    read_at = (nm + shift).clamp(nm[0], nm[-1])
    above = torch.searchsorted(nm, read_at).clamp(min=1)
    lower, weight = torch.arange(values.shape[1]).repeat(len(values), 1), torch.zeros(values.shape[:2])
    upper = lower.clone()
    lower[:, order], upper[:, order] = order[above - 1], order[above]
    weight[:, order] = ((read_at - nm[above - 1]) / (nm[above] - nm[above - 1])).float()
    # each value is read from two bands: at 400 bands, a matrix of all bands by all bands would do 200 times the work
    view = torch.arange(len(values), device=values.device)[:, None]
    lower, upper, weight = (on_device(t, values.device) for t in (lower, upper, weight))
    return values[view, lower].lerp_(values[view, upper], weight[:, :, None, None])


def _splines(wavelengths: list[float | None], width: float) -> torch.Tensor:
    """Cubic B-splines with knots `width` nm apart, at each band's wavelength, (splines, bands).

    They are positive and sum to 1, so that coefficients within ±1 give a curve within ±1. Bands of unknown wavelength
    have zeros. There are no splines if fewer than two different wavelengths are known.
    """
    known = [nm for nm in wavelengths if nm is not None]
    if len(set(known)) < 2:
        return torch.zeros(0, len(wavelengths))
    knots = min(known) + width * torch.arange(-1, (max(known) - min(known)) // width + 3, dtype=torch.float64)
    bands = torch.tensor([float("inf") if nm is None else nm for nm in wavelengths], dtype=torch.float64)
    distance = ((bands - knots[:, None]) / width).abs()
    outer = (2 - distance).clamp(min=0) ** 3 / 6
    return (outer - 2 / 3 * (1 - distance).clamp(min=0) ** 3).float()


def _dropped(params: Spectral, members: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Which bands are left out of each view, (V, bands); never all of them."""
    bands = members.shape[1]
    rows = draws.chosen(params.strength * params.group_dropout.p)
    modality = (draws.uniform(1)[:, 0] * len(members)).long()
    dropped = torch.zeros(len(modality), bands, dtype=torch.bool)
    if len(members) > 1:
        dropped[rows] = members[modality[rows]].bool()
    most = params.strength * params.band_dropout.share * bands
    rows, count = draws.chosen(params.band_dropout.p), 1 + draws.between(0, most).floor()
    kept = (~dropped).sum(1, keepdim=True) - count if most else torch.full_like(count, bands)
    _keep_at_most(dropped, rows, kept, draws.uniform(bands))
    rows = draws.chosen(params.strength * params.random_bands.p)
    _keep_at_most(dropped, rows, torch.full_like(count, params.random_bands.n), draws.uniform(bands))
    return dropped


def _keep_at_most(dropped: torch.Tensor, rows: torch.Tensor, kept: torch.Tensor, order: torch.Tensor) -> None:
    """Drops bands in these rows until at most `kept` (V, 1) are left, at least one: those with the lowest `order`."""
    rank = order[rows].masked_fill(dropped[rows], 2).argsort(1).argsort(1)  # bands already dropped come last
    dropped[rows] |= rank >= kept[rows].clamp(min=1)
