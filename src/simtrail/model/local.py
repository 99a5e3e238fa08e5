"""The local objective: a contrastive loss between the patches of two views, paired by the place that they show.

Shapes: V = 2B views, rows i and i + B of one image; P patches of a view; D dimensions; K = V·P patches in all; R of
them at a time. Where a patch lies is three numbers: x and y of its centre, from −1 to 1 over the image, and its side,
0 for a patch that shows too little to count.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from timm.models.resnet import ResNet
from torch import nn
from torch.utils.checkpoint import checkpoint

from simtrail.errors import InputError
from simtrail.model.backbone import Backbone
from simtrail.params import Architecture

NEAR = 0.5  # sides of the larger patch: nearer than this, two show the same place
FAR = 2.0  # and further than this, two of one image show different places; in between, they are neither
SHOWN = 0.5  # of a patch's pixels must show some of the image


def map_shape(backbone: Backbone, architecture: Architecture, size: int, weight: float) -> tuple[int, int, int]:
    """Channels, height and width of the last map of images of this size; InputError where it has no patches to tell
    apart. `weight` is pretrain.terms.local."""
    fault = f"pretrain.terms.local = {weight}: needs a map of patches; "
    try:
        with torch.no_grad():
            _, found = backbone.eval().with_map(torch.zeros(1, backbone.bands, size, size))
    except (ValueError, AttributeError, NotImplementedError) as reason:
        raise InputError(
            f"{fault}{architecture.model!r} gives none ({reason}); choose another pretrain.encoder.model, or set 0"
        ) from None
    backbone.train()
    _, channels, height, width = found.shape
    if 1 < height * width < size**2:
        return channels, height, width
    small = "; or set pretrain.encoder.stem: small" if isinstance(backbone.net, ResNet) else ""
    pixels = size // math.isqrt(height * width)
    raise InputError(
        f"{fault}{architecture.model!r} gives {height}×{width} for images of {size}×{size} pixels; "
        + (f"raise prepare.size to {2 * size}{small}" if pixels > 1 else "raise pretrain.encoder.vit.patch_size")
    )


def patch_projections(head: nn.Module, feature_map: torch.Tensor, coordinates: torch.Tensor) -> torch.Tensor:
    """The projections of all patches and where they lie, (V, P · (D + 3)), of a map (V, channels, h, w).

    The head sees each place of the map by itself. `coordinates` (V, 2, S, S) are x and y of the place in the image
    that each pixel of a view shows, from −1 to 1, NaN where it shows none.
    """
    of_places = feature_map.flatten(2).mT
    z_VPD = head(of_places.flatten(0, 1)).unflatten(0, of_places.shape[:2])
    return torch.cat([z_VPD, _where(coordinates, (feature_map.shape[2], feature_map.shape[3]))], 2).flatten(1)


def patch_contrast(
    columns: torch.Tensor,
    shape: tuple[int, int, int],
    temperature: float,
    *,
    normalise: bool = True,
    decoupled: bool = False,
    rows: int = 1024,
) -> torch.Tensor:
    """The local loss, a scalar, the mean over branches; compare VADeR (arXiv 2011.05499) and PixPro (arXiv 2011.10043).

    `columns` is (V, branches · P · (D + 3)), `shape` (branches, P, D + 3). The positive of a patch is that of the other
    view of the same image whose centre lies nearest in the image, if nearer than half the side of the larger of the
    two. Patches without one are no queries; each other patch i, of positive j, contributes

        −log( exp(s(i, j)/τ) / ( exp(s(i, j)/τ) + Σ_k exp(s(i, k)/τ) ) ),

    without the first summand of the denominator if `decoupled`. Its negatives k are the patches of other images in both
    views, and those of the same image more than two sides away: without these, a map that is the same everywhere in an
    image, and so nothing local, would be the best. Without any query, the loss and its gradient are 0. `normalise`,
    precision and `rows` are as in `nt_xent`; pieces are computed again in the backward pass, not kept.
    """
    with torch.autocast(columns.device.type, enabled=False):
        patches = columns.to(torch.promote_types(columns.dtype, torch.float32)).unflatten(1, shape).unbind(1)
        return torch.stack([_contrast(each, temperature, normalise, decoupled, rows) for each in patches]).mean()


@torch.no_grad()
def positives(where_VP3: torch.Tensor, rows: int = 1024) -> torch.Tensor:
    """The number, from 0 to K − 1, of each patch's positive, (V, P); −1 where it has none."""
    views, count, _ = where_VP3.shape
    partner_V = torch.arange(views, device=where_VP3.device).roll(views // 2)
    at_once, found = max(1, rows // count), []
    for own, partner in zip(where_VP3.split(at_once), partner_V.split(at_once), strict=True):
        other = where_VP3[partner]
        away, side = _apart(own[:, :, None], other[:, None])
        away, nearest = away.masked_fill_(other[:, None, :, 2] == 0, torch.inf).min(2)
        near = away < NEAR * side.gather(2, nearest[:, :, None])[:, :, 0]
        found.append(torch.where(near & (own[:, :, 2] > 0), partner[:, None] * count + nearest, -1))
    return torch.cat(found)


def _contrast(
    patches_VPE: torch.Tensor, temperature: float, normalise: bool, decoupled: bool, rows: int
) -> torch.Tensor:
    z_KD, where_VP3 = patches_VPE[..., :-3].flatten(0, 1), patches_VPE[..., -3:].detach()
    z_KD = (F.normalize(z_KD, dim=1) if normalise else z_KD) * temperature**-0.5  # of these, dot products are s/τ
    counts = (where_VP3[..., 2] > 0).sum(1)
    others = counts.sum() - counts - counts.roll(len(counts) // 2)  # patches of other images
    positive_K = positives(where_VP3, rows).masked_fill(others[:, None] == 0, -1).flatten()
    losses = [
        checkpoint(
            _of_rows, here_R, z_KD, where_VP3, positive_K, decoupled, use_reentrant=False, preserve_rng_state=False
        )
        for here_R in torch.arange(len(z_KD), device=z_KD.device).split(rows)
    ]
    return torch.cat(losses).sum() / (positive_K >= 0).sum().clamp(min=1)


def _of_rows(
    here_R: torch.Tensor, z_KD: torch.Tensor, where_VP3: torch.Tensor, positive_K: torch.Tensor, decoupled: bool
) -> torch.Tensor:
    """The loss of some patches, (R,), 0 for those that are no queries."""
    views, count, _ = where_VP3.shape
    where_K3 = where_VP3.flatten(0, 1)
    views_R2 = torch.stack([here_R // count, (here_R // count + views // 2) % views], 1)  # of the same image
    same_RQ = (views_R2[:, :, None] * count + torch.arange(count, device=here_R.device)).flatten(1)
    away_RQ, side_RQ = _apart(where_K3[here_R, None], where_K3[same_RQ])
    lowest = torch.finfo(z_KD.dtype).min  # not −∞, of which the rows without negatives would make NaN
    s_RK = (z_KD[here_R] @ z_KD.T).masked_fill_(where_K3[:, 2] == 0, lowest)
    s_RK = s_RK.scatter(1, same_RQ, s_RK.gather(1, same_RQ).masked_fill(away_RQ <= FAR * side_RQ, lowest))
    against_R, positive_R = s_RK.logsumexp(1), positive_K[here_R]
    for_R = (z_KD[here_R] * z_KD[positive_R]).sum(1)
    loss_R = (against_R if decoupled else torch.logaddexp(against_R, for_R)) - for_R
    return loss_R.masked_fill(positive_R < 0, 0.0)


def _apart(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How far the centres of patches (…, 3) are apart, and the side of the larger one."""
    return (a[..., :2] - b[..., :2]).norm(dim=-1), torch.maximum(a[..., 2], b[..., 2])


def _where(coordinates: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """Where the patches of a map of this shape lie, (V, P, 3): a view is divided evenly among them.

    That is what ConvNeXt, vision transformers and ResNets whose shortcuts average (as resnet10t, resnet50d) look at, to
    a tenth of a patch; plain ResNets look up to half a patch further up and left, as each of their strides does.
    The centre is the mean place of the pixels that show some. Those of a square are spread about it with variances of
    side²/12 along x and y, whichever way it is turned, less what lies within pixels; so their sum tells the side.
    """
    shown = ~coordinates[:, :1].isnan()
    xy = coordinates.nan_to_num(0.0)
    means = F.adaptive_avg_pool2d(torch.cat([shown.to(xy.dtype), xy, xy.square()], 1), shape).flatten(2).mT
    share, first, second = means.split([1, 2, 2], 2)
    counts = share >= SHOWN
    centre, square = first / share.clamp(min=SHOWN), second / share.clamp(min=SHOWN)
    pixels = coordinates[0, 0].numel() / math.prod(shape)
    spread = (square - centre.square()).sum(2, keepdim=True).clamp(min=0)
    side = (6 * spread * pixels / (pixels - 1)).sqrt()
    return torch.cat([centre, side], 2) * counts
