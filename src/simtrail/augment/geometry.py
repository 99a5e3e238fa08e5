"""Where a view looks: crop, flips, rotation, perspective and thin-plate spline, as one resampling of the image."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from simtrail.augment.draws import Draws
from simtrail.params import Geometry

CORNERS = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
TRIES = 10  # as in torchvision's RandomResizedCrop


def move(views: torch.Tensor, params: Geometry, background: float, draws: Draws) -> torch.Tensor:
    """The views (V, C, S, S), each resampled once, bilinearly; what lies outside the image is background.

    Coordinates run from −1 to 1 over the image. The image is rotated, warped, cropped, then mirrored; a point of the
    view is led back to the image in the opposite order.
    """
    n, size = len(views), views.shape[-1]
    crop = _crop(n, params, draws).to(views.device)
    turn = (_rotation(n, params, draws) @ _perspective(n, params, draws)).to(views.device)
    spline = _thin_plate_spline(params, draws)
    centres = (torch.arange(size, device=views.device) * 2 + 1) / size - 1
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    pixels = torch.stack([x, y, torch.ones_like(x)]).reshape(3, -1).expand(n, 3, size**2)
    if spline:
        from kornia.geometry.transform import warp_points_tps  # slow to import, and few use it

        rows, *weights = (t.to(views.device) for t in spline)
        points = crop @ pixels
        points[rows, :2] = warp_points_tps(points[rows, :2].mT, *weights).mT
        points = turn @ points
    else:
        points = (turn @ crop) @ pixels
    places = points[:, :2] / points[:, 2:]
    grid = places.mT.reshape(n, size, size, 2)
    moved = F.grid_sample(views, grid, mode="bilinear", padding_mode="border", align_corners=False)
    # a crop's edge may lie outside by rounding; behind the horizon of a perspective, coordinates come back mirrored
    outside = (places.abs() > 1 + 1e-5).any(1) | (points[:, 2] <= 0)
    return moved.masked_fill_(outside.reshape(n, 1, size, size), background)


def _crop(n: int, params: Geometry, draws: Draws) -> torch.Tensor:
    """Random resized crops and flips, (n, 3, 3): scale and place of the view in the image."""
    smallest = 1 - params.strength * (1 - params.crop.min_area)
    area = draws.between(smallest, 1, TRIES)
    ratio = draws.between(math.log(3 / 4), math.log(4 / 3), TRIES).exp()
    sides = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()])  # width, height
    fits = (sides <= 1).all(0) & (draws.uniform(1) < params.crop.p)
    first = fits.int().argmax(1, keepdim=True).expand(2, n, 1)
    sides = torch.where(fits.any(1), sides.gather(2, first)[..., 0], 1.0)
    places = (1 - sides) * draws.between(-1, 1, 2).T
    mirrored = 1 - 2 * (draws.uniform(2) < torch.tensor([params.horizontal_flip.p, params.vertical_flip.p])).float()
    matrix = torch.zeros(n, 3, 3)
    matrix[:, :2, :2] = torch.diag_embed((sides * mirrored.T).T)
    matrix[:, :2, 2] = places.T
    matrix[:, 2, 2] = 1
    return matrix


def _rotation(n: int, params: Geometry, draws: Draws) -> torch.Tensor:
    reach = math.radians(params.strength * params.rotation.degrees)
    angle = torch.zeros(n)
    rows, angles = draws.chosen(params.rotation.p), draws.between(-reach, reach)[:, 0]
    angle[rows] = angles[rows]
    matrix = torch.eye(3).repeat(n, 1, 1)
    matrix[:, 0, 0] = matrix[:, 1, 1] = angle.cos()
    matrix[:, 1, 0] = angle.sin()
    matrix[:, 0, 1] = -angle.sin()
    return matrix


def _perspective(n: int, params: Geometry, draws: Draws) -> torch.Tensor:
    """The homographies that lead the moved corners back to the corners; the identity for rows not chosen."""
    matrix = torch.eye(3).repeat(n, 1, 1)
    reach = params.strength * params.perspective.distortion
    rows, inwards = draws.chosen(params.perspective.p), draws.between(0, reach, 8).reshape(n, 4, 2)
    if len(rows) and reach:
        from kornia.geometry.transform import get_perspective_transform  # slow to import, and few use it

        corners = CORNERS.expand(len(rows), 4, 2)
        matrix[rows] = get_perspective_transform(corners * (1 - inwards[rows]), corners)
    return matrix


def _thin_plate_spline(params: Geometry, draws: Draws) -> tuple[torch.Tensor, ...] | None:
    """Rows chosen, and centres and weights of their splines; None where there is none."""
    reach = params.strength * params.thin_plate_spline.displacement
    rows, moved = draws.chosen(params.thin_plate_spline.p), draws.between(-reach, reach, 10)
    if not len(rows) or not reach:
        return None
    from kornia.geometry.transform import get_tps_transform  # slow to import, and few use it

    points = torch.cat([CORNERS, torch.zeros(1, 2)]).expand(len(rows), 5, 2)
    kernel, affine = get_tps_transform(points + moved[rows].reshape(-1, 5, 2), points)
    return rows, points, kernel, affine
