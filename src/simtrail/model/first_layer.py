"""From which bands of other weights the first layer takes its filters: by meaning where it is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch


class Named(NamedTuple):
    """Bands by name, and their wavelengths in nm, None where unknown."""

    names: Sequence[str]
    wavelengths: Sequence[float | None]


RGB = Named(("red", "green", "blue"), (620.0, 540.0, 460.0))  # of weights that were trained on photographs


class Filters(NamedTuple):
    """The filters of new bands as sums of old ones, and for each new band the text of its sources."""

    shares: torch.Tensor  # (old bands, new bands) float64; a row sums to 1, or to 0 if the old band is not used
    sources: dict[str, str]


def by_number(old: int, new: int) -> torch.Tensor:
    """The shares (old, new) if nothing is known of the bands: old and new ones are paired cyclically."""
    pairs = torch.zeros(old, new, dtype=torch.float64)
    steps = torch.arange(max(old, new))
    pairs[steps % old, steps % new] = 1
    return pairs / pairs.sum(1, keepdim=True)


def by_meaning(old: Named, new: Named) -> Filters:
    """The filters of each new band: those of the band of the same name, or else of the nearest wavelengths.

    Between two known wavelengths they are interpolated. Old bands named red, green and blue have those of `RGB` if they
    say none. Bands of which neither is known are paired cyclically. A filter that goes to n bands is divided by n, so
    that an image that is the same in all bands gives the same response as before, if every old band is used.
    """
    names, of_rgb = [name.lower() for name in old.names], dict(zip(*RGB, strict=True))
    old_nm = [of_rgb.get(name) if nm is None else nm for name, nm in zip(names, old.wavelengths, strict=True)]
    known = sorted((nm, i) for i, nm in enumerate(old_nm) if nm is not None)
    weights = torch.zeros(len(old.names), len(new.names), dtype=torch.float64)
    sources: dict[str, str] = {}
    for b, (name, nm) in enumerate(zip(new.names, new.wavelengths, strict=True)):
        if name.lower() in names:
            weights[names.index(name.lower()), b] = 1
            sources[name] = old.names[names.index(name.lower())]
        elif nm is not None and known:
            parts = _nearest(nm, known)
            for i, share in parts:
                weights[i, b] = share
            texts = [f"{share:.2f} {old.names[i]}" if share < 1 else old.names[i] for i, share in parts]
            sources[name] = " + ".join(texts)
    cyclic = by_number(len(old.names), len(new.names))
    for b, name in enumerate(new.names):
        if name not in sources:
            weights[:, b] = (cyclic[:, b] > 0).double()
            of_band = [old.names[i] for i in cyclic[:, b].nonzero()[:, 0].tolist()]
            sources[name] = f"{' + '.join(of_band)} (by number)"
    total = weights.sum(1, keepdim=True)
    return Filters(weights / torch.where(total > 0, total, 1), sources)


def _nearest(nm: float, known: Sequence[tuple[float, int]]) -> list[tuple[int, float]]:
    """The bands on either side of a wavelength with their shares; the outermost band beyond it."""
    above = next((k for k, (other, _) in enumerate(known) if other >= nm), len(known))
    if above == len(known) or above == 0 or known[above][0] == nm:
        return [(known[min(above, len(known) - 1)][1], 1.0)]
    (low, i), (high, j) = known[above - 1], known[above]
    share = (nm - low) / (high - low)
    return [(i, 1 - share), (j, share)]
