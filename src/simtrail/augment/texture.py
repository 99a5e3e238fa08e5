"""How sharp a view is, and how much of it is missing: Gaussian blur, sharpness, erasing."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from simtrail.augment.draws import Draws
from simtrail.params import Texture

# PIL's smoothing filter, which its sharpness goes away from
SMOOTH = torch.tensor([[1.0, 1.0, 1.0], [1.0, 5.0, 1.0], [1.0, 1.0, 1.0]]) / 13


def retexture(views: torch.Tensor, params: Texture, background: float, draws: Draws) -> torch.Tensor:
    """The views (V, C, S, S), changed in place where drawn, in [0, 1]."""
    strength, sharpness = params.strength, params.sharpness
    widest = strength * params.blur.sigma
    rows, sigma = draws.chosen(params.blur.p), draws.between(0.1, widest)
    if len(rows) and widest > 0.1:
        views[rows.to(views.device)] = _blurred(views[rows.to(views.device)], sigma[rows].to(views.device))
    rows, share = draws.chosen(sharpness.p), draws.between(0, strength * sharpness.factor)[:, :, None, None]
    if len(rows) and strength * sharpness.factor > 0:
        soft = views[rows.to(views.device)]
        bands = soft.shape[1]
        kernel = SMOOTH.to(views.device).expand(bands, 1, 3, 3)
        smooth = F.conv2d(F.pad(soft, (1, 1, 1, 1), mode="replicate"), kernel, groups=bands)
        views[rows.to(views.device)] = soft.add_((soft - smooth).mul_(share[rows].to(views.device))).clamp_(0, 1)
    return _erased(views, params, background, draws)


def _blurred(views: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Each view under its own separable Gaussian, kernel a tenth of the side (appendix A), edges mirrored."""
    n, bands, size, _ = views.shape
    reach = max(3, size // 10 | 1) // 2
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=views.device) / sigma) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(bands, 0)[:, None, None]
    planes = F.pad(views.reshape(1, n * bands, size, size), (reach,) * 4, mode="reflect")
    planes = F.conv2d(F.conv2d(planes, kernel, groups=n * bands), kernel.mT, groups=n * bands)
    return planes.reshape(views.shape)


def _erased(views: torch.Tensor, params: Texture, background: float, draws: Draws) -> torch.Tensor:
    """Some views with a rectangle of background (arXiv 1708.04896)."""
    largest = params.strength * params.erasing.max_area
    rows = draws.chosen(params.erasing.p)
    area, ratio = draws.between(0.02, largest), draws.between(math.log(0.3), math.log(3.3)).exp()
    place = draws.between(-1, 1, 2)
    if not len(rows) or largest <= 0.02:
        return views
    half = torch.cat([(area * ratio).sqrt(), (area / ratio).sqrt()], 1).clamp(max=1)  # of the width, the height
    centre = (1 - half) * place
    size = views.shape[-1]
    pixels = (torch.arange(size) * 2 + 1) / size - 1
    covered = (pixels - centre[rows, :, None]).abs() < half[rows, :, None]  # (rows, 2, S)
    mask = (covered[:, 0, None, :] & covered[:, 1, :, None])[:, None].to(views.device)
    rows = rows.to(views.device)
    views[rows] = torch.where(mask, background, views[rows])
    return views
