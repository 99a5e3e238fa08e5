"""Changes to the values of a view: colour jitter, grayscale, posterize."""

from __future__ import annotations

import math

import torch

from simtrail.augment.draws import Draws
from simtrail.data.loader import on_device
from simtrail.params import Color

# NTSC luma and chroma (YIQ). The first row is the grey of ITU-R BT.601; hue is an angle in the plane of the other two
YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])


def recolour(views: torch.Tensor, params: Color, rgb: list[int] | None, draws: Draws) -> torch.Tensor:
    """The views (V, C, S, S), changed in place, in [0, 1]; `rgb`: the positions of red, green and blue, if any."""
    jittered = torch.zeros(len(views), 1)
    jittered[draws.chosen(params.jitter.p)] = 1
    other_bands = [i for i in range(views.shape[1]) if i not in (rgb or [])]
    for bands, jitter in ((rgb, _jitter_rgb), (other_bands, _jitter_bands)):
        if bands:
            span = slice(bands[0], bands[-1] + 1)
            index = span if bands == list(range(span.start, span.stop)) else bands  # indexing by a slice makes no copy
            views[:, index] = jitter(views[:, index], params, jittered, draws)
    return _posterize(views.clamp_(0, 1), params, draws)


def _jitter_rgb(views: torch.Tensor, params: Color, jittered: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Brightness multiplies, contrast scales about the mean grey of the image, saturation scales chroma, hue turns it.

    Without clipping in between, the four can be applied in any order, so the random order of the paper (appendix A)
    would have no effect. All four together with grayscale are one affine map of the three bands.
    """
    n, jitter = len(views), params.jitter
    brightness, contrast, saturation = (
        _factors(params, half_width, 1, jittered, draws)
        for half_width in (jitter.brightness, jitter.contrast, jitter.saturation)
    )
    angle = draws.between(-1, 1) * (2 * math.pi * params.strength * jitter.hue) * jittered
    cos, sin = saturation * angle.cos(), saturation * angle.sin()
    yiq_matrix = torch.zeros(n, 3, 3)
    yiq_matrix[:, 0, 0] = 1
    yiq_matrix[:, 1:, 1:] = torch.stack([cos, -sin, sin, cos], 2).reshape(n, 2, 2)
    matrix = (brightness * contrast)[:, :, None] * (torch.linalg.inv(YIQ) @ yiq_matrix @ YIQ)
    grey_rows = draws.chosen(params.grayscale.p)
    matrix[grey_rows] = YIQ[0].expand(3, 3) @ matrix[grey_rows]
    pixels = views.flatten(2)
    mean_grey = on_device(YIQ[0], views.device) @ pixels.mean(2, keepdim=True)
    matrix, offset = on_device(matrix, views.device), on_device(brightness * (1 - contrast), views.device) * mean_grey
    return torch.baddbmm(offset[:, :, None].expand(n, 3, 1), matrix, pixels).reshape(views.shape)


def _jitter_bands(views: torch.Tensor, params: Color, jittered: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Brightness and contrast of every band separately, each about the mean of that band."""
    bands = views.shape[1]
    brightness = _factors(params, params.jitter.brightness, bands, jittered, draws)
    contrast = _factors(params, params.jitter.contrast, bands, jittered, draws)
    factors = (brightness * contrast, brightness * (1 - contrast))
    scale, shift = (on_device(t, views.device)[:, :, None, None] for t in factors)
    return torch.addcmul(views.mean((2, 3), keepdim=True) * shift, views, scale)


def _factors(params: Color, half_width: float, columns: int, jittered: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Factors from 1 − strength × half_width to 1 + strength × half_width; 1 for views that are not jittered."""
    return 1 + params.strength * half_width * draws.between(-1, 1, columns) * jittered


def _posterize(views: torch.Tensor, params: Color, draws: Draws) -> torch.Tensor:
    """The views; those chosen keep only the upper bits, of 8, and for each view their number is drawn."""
    most_dropped = int(params.strength * (8 - params.posterize.bits) + 0.5)
    rows, bits = draws.chosen(params.posterize.p), 1 + draws.between(0, most_dropped)[:, 0].floor()
    if most_dropped and len(rows):
        step = on_device(2 ** bits[rows] / 255, views.device)[:, None, None, None]
        rows = on_device(rows, views.device)
        # 8-bit values are exactly on a step: without 1e-4, rounding errors could take them one step down
        views[rows] = (views[rows] / step + 1e-4).floor_() * step
    return views
