"""What a view's values are: colour jitter, grayscale, posterize."""

from __future__ import annotations

import math

import torch

from simtrail.augment.draws import Draws
from simtrail.params import Color

# NTSC luma and chroma (YIQ): the first row is the grey of ITU-R BT.601, and hue is an angle in the plane of the others
YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])


def recolour(views: torch.Tensor, params: Color, rgb: list[int] | None, draws: Draws) -> torch.Tensor:
    """The views (V, C, S, S), changed in place, in [0, 1]; `rgb`: which bands are red, green and blue, if any are."""
    jittered = torch.zeros(len(views), 1)
    jittered[draws.chosen(params.jitter.p)] = 1
    others = [i for i in range(views.shape[1]) if i not in (rgb or [])]
    for bands, jitter in ((rgb, _jitter_rgb), (others, _jitter_bands)):
        if bands:
            span = slice(bands[0], bands[-1] + 1)
            picked = span if bands == list(range(span.start, span.stop)) else bands  # a slice is picked without a copy
            views[:, picked] = jitter(views[:, picked], params, jittered, draws)
    return _posterize(views.clamp_(0, 1), params, draws)


def _jitter_rgb(views: torch.Tensor, params: Color, jittered: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Brightness multiplies, contrast scales about the image's mean grey, saturation scales chroma, hue turns it.

    Without clipping in between, the four commute, so that the paper's random order (appendix A) would have no effect,
    and all of them together with grayscale are one affine map of the three bands.
    """
    n, jitter = len(views), params.jitter
    brightness, contrast, saturation = (
        _factors(params, reach, 1, jittered, draws) for reach in (jitter.brightness, jitter.contrast, jitter.saturation)
    )
    turn = draws.between(-1, 1) * (2 * math.pi * params.strength * jitter.hue) * jittered
    cos, sin = saturation * turn.cos(), saturation * turn.sin()
    chroma = torch.zeros(n, 3, 3)
    chroma[:, 0, 0] = 1
    chroma[:, 1:, 1:] = torch.stack([cos, -sin, sin, cos], 2).reshape(n, 2, 2)
    matrix = (brightness * contrast)[:, :, None] * (torch.linalg.inv(YIQ) @ chroma @ YIQ)
    grey = draws.chosen(params.grayscale.p)
    matrix[grey] = YIQ[0].expand(3, 3) @ matrix[grey]
    pixels = views.flatten(2)
    mean_grey = YIQ[0].to(views.device) @ pixels.mean(2, keepdim=True)
    offset = (brightness * (1 - contrast)).to(views.device) * mean_grey
    return torch.baddbmm(offset[:, :, None].expand(n, 3, 1), matrix.to(views.device), pixels).reshape(views.shape)


def _jitter_bands(views: torch.Tensor, params: Color, jittered: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Brightness and contrast of every band by itself, about its own mean."""
    bands = views.shape[1]
    brightness = _factors(params, params.jitter.brightness, bands, jittered, draws)
    contrast = _factors(params, params.jitter.contrast, bands, jittered, draws)
    scale, shift = (t.to(views.device)[:, :, None, None] for t in (brightness * contrast, brightness * (1 - contrast)))
    return torch.addcmul(views.mean((2, 3), keepdim=True) * shift, views, scale)


def _factors(params: Color, reach: float, columns: int, jittered: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Factors about 1, up to strength × reach away, for the views that are jittered; 1 for the others."""
    return 1 + params.strength * reach * draws.between(-1, 1, columns) * jittered


def _posterize(views: torch.Tensor, params: Color, draws: Draws) -> torch.Tensor:
    """Some views cut to the upper bits of 8, as many as are drawn for each."""
    dropped = int(params.strength * (8 - params.posterize.bits) + 0.5)
    rows, bits = draws.chosen(params.posterize.p), 1 + draws.between(0, dropped)[:, 0].floor()
    if dropped and len(rows):
        step = (2 ** bits[rows] / 255).to(views.device)[:, None, None, None]
        rows = rows.to(views.device)
        views[rows] = (views[rows] / step + 1e-4).floor_() * step  # 1e-4: 8-bit values lie on the steps
    return views
