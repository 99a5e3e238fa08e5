"""How sharp a view is, and which part of it is missing: Gaussian blur, sharpness, erasing."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from simtrail.augment.background import Background
from simtrail.augment.draws import Draws
from simtrail.data.loader import on_device
from simtrail.params import Texture


def retexture(views: torch.Tensor, params: Texture, background: Background, draws: Draws) -> torch.Tensor:
    """The views (V, C, S, S), in [0, 1]; those chosen are changed in place."""
    largest_sigma, largest_factor = params.strength * params.blur.sigma, params.strength * params.sharpness.factor
    rows, sigma = draws.chosen(params.blur.p), draws.between(0.1, largest_sigma)
    if len(rows) and largest_sigma > 0.1:
        sigma, rows = on_device(sigma[rows], views.device), on_device(rows, views.device)
        views[rows] = _blurred(views[rows], sigma)
    rows, factor = draws.chosen(params.sharpness.p), draws.between(0, largest_factor)
    if len(rows) and largest_factor:
        factor, rows = on_device(factor[rows], views.device), on_device(rows, views.device)
        views[rows] = _sharpened(views[rows], factor)
    return _erased(views.clamp_(0, 1), params, background, draws)


def _blurred(views: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Each view blurred by its own separable Gaussian; kernel a tenth of the side (appendix A), edges mirrored."""
    n, bands, size, _ = views.shape
    half_width = max(3, size // 10 | 1) // 2
    kernel = torch.exp(-0.5 * (torch.arange(-half_width, half_width + 1, device=views.device) / sigma) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(bands, 0)[:, None, None]
    planes = F.pad(views.reshape(1, n * bands, size, size), (half_width,) * 4, mode="reflect")
    planes = F.conv2d(F.conv2d(planes, kernel, groups=n * bands), kernel.mT, groups=n * bands)
    return planes.reshape(views.shape)


def _sharpened(views: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Each view plus `factor` times its difference from its smoothed version, as PIL and torchvision sharpen.

    Their filter, 1 around a 5, over 13, is 9/13 of the mean of 3×3 pixels and 4/13 of the pixel itself.
    """
    mean = F.avg_pool2d(F.pad(views, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return torch.lerp(views, mean, -9 / 13 * factor[:, :, None, None])


def _erased(views: torch.Tensor, params: Texture, background: Background, draws: Draws) -> torch.Tensor:
    """The views; those chosen get a rectangle of background (arXiv 1708.04896)."""
    largest = params.strength * params.erasing.max_area
    rows = draws.chosen(params.erasing.p)
    area, ratio = draws.between(0.02, largest), draws.between(math.log(0.3), math.log(3.3)).exp()
    position = draws.between(-1, 1, 2)
    if not len(rows) or largest <= 0.02:
        return views
    half_sides = torch.cat([(area * ratio).sqrt(), (area / ratio).sqrt()], 1).clamp(max=1)  # of width and height
    centre = (1 - half_sides) * position
    size = views.shape[-1]
    pixels = (torch.arange(size) * 2 + 1) / size - 1
    covered = (pixels - centre[rows, :, None]).abs() < half_sides[rows, :, None]  # (rows, 2, S)
    covered, rows = on_device(covered, views.device), on_device(rows, views.device)
    mask = (covered[:, 0, None, :] & covered[:, 1, :, None])[:, None]
    views[rows] = background.fill(views[rows], mask)
    return views
