"""The local objective: a contrastive loss between the patches of two views, paired by the position that they show.

Shapes: V = 2B views, rows i and i + B of one image; P patches of a view; D dimensions, E = D + 3; K = V·P patches in
all, R of them at a time; Q = 2P patches of one image. The position of a patch is three numbers: x and y of its centre,
from −1 to 1 over the image, and its side, which is 0 for a patch that shows too little of the image to count.
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
from simtrail.params import SIDE, Architecture

NEAR = 0.5  # in sides of the larger patch: two patches nearer than this show the same position
FAR = 2.0  # two patches of one image further apart than this show different positions; in between, neither is true
SHOWN = 0.5  # the fraction of a patch's pixels that must show some of the image


def map_shape(backbone: Backbone, architecture: Architecture, size: int, weight: float) -> tuple[int, int, int]:
    """Channels, height and width of the last feature map of images of this size; `weight` is pretrain.terms.local.

    Raises InputError if the model has no map, or if a map has only one patch, or a patch only one pixel.
    """
    prefix = f"pretrain.terms.local = {weight}: needs a map of patches; "
    try:
        with torch.no_grad():
            _, feature_map = backbone.eval().with_map(torch.zeros(1, backbone.bands, size, size))
    except (ValueError, AttributeError, NotImplementedError) as reason:
        raise InputError(
            f"{prefix}{architecture.model!r} gives none ({reason}); choose another pretrain.encoder.model, or set 0"
        ) from None
    backbone.train()
    _, channels, height, width = feature_map.shape
    if 1 < height * width < size**2:
        return channels, height, width
    small = "; or set pretrain.encoder.stem: small" if isinstance(backbone.net, ResNet) else ""
    pixels = size // math.isqrt(height * width)
    raise InputError(
        f"{prefix}{architecture.model!r} gives {height}×{width} for images of {size}×{size} pixels; "
        + (f"raise {SIDE} to {2 * size}{small}" if pixels > 1 else "raise pretrain.encoder.vit.patch_size")
    )


def patch_projections(head: nn.Module, feature_map: torch.Tensor, coordinates: torch.Tensor) -> torch.Tensor:
    """The projections and positions of all patches, (V, P · (D + 3)), of a feature map (V, channels, h, w).

    The head is applied to each position of the map separately. `coordinates` (V, 2, S, S) are x and y of the position
    in the image that each pixel of a view shows, from −1 to 1, NaN where it shows nothing of the image.
    """
    features_VPC = feature_map.flatten(2).mT
    z_VPD = head(features_VPC.flatten(0, 1)).unflatten(0, features_VPC.shape[:2])
    return torch.cat([z_VPD, _positions(coordinates, (feature_map.shape[2], feature_map.shape[3]))], 2).flatten(1)


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

    `columns` is (V, branches · P · (D + 3)), `shape` (branches, P, D + 3). The positive of a patch is the patch of the
    other view of the same image whose centre is nearest in the image, if it is nearer than half the side of the larger
    of the two patches. A patch without a positive is not a query. Every query i, with its positive j, contributes

        −log( exp(s(i, j)/τ) / ( exp(s(i, j)/τ) + Σ_k exp(s(i, k)/τ) ) ),

    without the first summand of the denominator if `decoupled`. Its negatives k are the patches of other images in both
    views, and the patches of the same image that are more than two sides away. Without the latter, the best map would
    be constant in each image, and so not local. Without any query, the loss and its gradient are 0. `normalise`,
    precision and `rows` are as in `nt_xent`. Pieces of the similarity matrix are computed again in the backward pass
    instead of being kept.
    """
    with torch.autocast(columns.device.type, enabled=False):
        patches = columns.to(torch.promote_types(columns.dtype, torch.float32)).unflatten(1, shape).unbind(1)
        return torch.stack(
            [_contrast(patches_VPE, temperature, normalise, decoupled, rows) for patches_VPE in patches]
        ).mean()


@torch.no_grad()
def positives(where_VP3: torch.Tensor, rows: int = 1024) -> torch.Tensor:
    """The index, from 0 to K − 1, of each patch's positive, (V, P); −1 if it has none."""
    views, count, _ = where_VP3.shape
    partner_V = torch.arange(views, device=where_VP3.device).roll(views // 2)
    views_at_once, indices = max(1, rows // count), []
    for queries, partner in zip(where_VP3.split(views_at_once), partner_V.split(views_at_once), strict=True):
        candidates = where_VP3[partner]
        distance, side = _distance_and_side(queries[:, :, None], candidates[:, None])
        distance, nearest = distance.masked_fill_(candidates[:, None, :, 2] == 0, torch.inf).min(2)
        near = distance < NEAR * side.gather(2, nearest[:, :, None])[:, :, 0]
        indices.append(torch.where(near & (queries[:, :, 2] > 0), partner[:, None] * count + nearest, -1))
    return torch.cat(indices)


def _contrast(
    patches_VPE: torch.Tensor, temperature: float, normalise: bool, decoupled: bool, rows: int
) -> torch.Tensor:
    z_KD, where_VP3 = patches_VPE[..., :-3].flatten(0, 1), patches_VPE[..., -3:].detach()
    z_KD = (F.normalize(z_KD, dim=1) if normalise else z_KD) * temperature**-0.5  # so that dot products are s/τ
    counts_V = (where_VP3[..., 2] > 0).sum(1)
    negatives_V = counts_V.sum() - counts_V - counts_V.roll(len(counts_V) // 2)  # patches of other images
    positive_K = positives(where_VP3, rows).masked_fill(negatives_V[:, None] == 0, -1).flatten()
    losses = [
        checkpoint(
            _row_losses, row_R, z_KD, where_VP3, positive_K, decoupled, use_reentrant=False, preserve_rng_state=False
        )
        for row_R in torch.arange(len(z_KD), device=z_KD.device).split(rows)
    ]
    return torch.cat(losses).sum() / (positive_K >= 0).sum().clamp(min=1)


def _row_losses(
    row_R: torch.Tensor, z_KD: torch.Tensor, where_VP3: torch.Tensor, positive_K: torch.Tensor, decoupled: bool
) -> torch.Tensor:
    """The losses of the patches `row_R`, (R,); 0 for patches that are not queries."""
    views, count, _ = where_VP3.shape
    where_K3 = where_VP3.flatten(0, 1)
    view_R2 = torch.stack([row_R // count, (row_R // count + views // 2) % views], 1)  # both of the same image
    patch_RQ = (view_R2[:, :, None] * count + torch.arange(count, device=row_R.device)).flatten(1)
    distance_RQ, side_RQ = _distance_and_side(where_K3[row_R, None], where_K3[patch_RQ])
    lowest = torch.finfo(z_KD.dtype).min  # not −∞, which would become NaN in rows without negatives
    s_RK = (z_KD[row_R] @ z_KD.T).masked_fill_(where_K3[:, 2] == 0, lowest)
    s_RK = s_RK.scatter(1, patch_RQ, s_RK.gather(1, patch_RQ).masked_fill(distance_RQ <= FAR * side_RQ, lowest))
    logsumexp_R, positive_R = s_RK.logsumexp(1), positive_K[row_R]
    similarity_R = (z_KD[row_R] * z_KD[positive_R]).sum(1)
    loss_R = (logsumexp_R if decoupled else torch.logaddexp(logsumexp_R, similarity_R)) - similarity_R
    return loss_R.masked_fill(positive_R < 0, 0.0)


def _distance_and_side(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The distance between the centres of patches (…, 3), and the side of the larger patch."""
    return (a[..., :2] - b[..., :2]).norm(dim=-1), torch.maximum(a[..., 2], b[..., 2])


def _positions(coordinates: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """The positions of the patches of a map of this shape, (V, P, 3): a view is divided evenly among them.

    These are the parts of the view that ConvNeXt, vision transformers and ResNets whose shortcuts average (such as
    resnet10t, resnet50d) respond to, to a tenth of a patch. Plain ResNets respond to parts up to half a patch further
    up and left, because each of their strides shifts them.
    The centre is the mean position of the pixels that show some of the image. In a square, whichever way it is turned,
    these positions have variances of side²/12 along x and y, minus the variance within a pixel. So the sum of both
    variances gives the side.
    """
    shown = ~coordinates[:, :1].isnan()
    xy = coordinates.nan_to_num(0.0)
    means = F.adaptive_avg_pool2d(torch.cat([shown.to(xy.dtype), xy, xy.square()], 1), shape).flatten(2).mT
    fraction, first, second = means.split([1, 2, 2], 2)
    enough = fraction >= SHOWN
    centre, square = first / fraction.clamp(min=SHOWN), second / fraction.clamp(min=SHOWN)
    pixels = coordinates[0, 0].numel() / math.prod(shape)
    variance = (square - centre.square()).sum(2, keepdim=True).clamp(min=0)
    side = (6 * variance * pixels / (pixels - 1)).sqrt()
    return torch.cat([centre, side], 2) * enough
