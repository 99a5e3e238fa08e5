"""Where a view looks: crop, flips, rotation, perspective and thin-plate spline, as one resampling of the image."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from simtrail.augment.background import Background
from simtrail.augment.draws import Draws
from simtrail.params import Geometry

CORNERS = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
TRIES = 10  # as in torchvision's RandomResizedCrop
POINTS = 12  # of a crop's side that are looked up for what it holds


def warp(views: torch.Tensor, params: Geometry, background: Background, draws: Draws) -> torch.Tensor:
    """The views (V, C, S, S), each resampled once, bilinearly; what lies outside the image is background."""
    return resample(views, sampling_grid(views, params, background, draws), background)


def sampling_grid(views: torch.Tensor, params: Geometry, background: Background, draws: Draws) -> torch.Tensor:
    """The place in the image that each pixel of a view shows, (V, 2, S, S): x and y, NaN where it lies outside.

    Coordinates run from −1 to 1 over the image. The image is rotated, warped, cropped, then mirrored; a point of the
    view is led back to the image in the opposite order.
    """
    n, size = len(views), views.shape[-1]
    crops, mirrored = _crops(n, params, draws)
    turn = (_rotation(n, params, draws) @ _perspective(n, params, draws)).to(views.device)
    if params.crop.min_cover:
        crops.fits &= _holds(crops, turn, views, background, params.crop.min_cover)
    crop = _framed(crops, mirrored).to(views.device)
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
    # a crop's edge may lie outside by rounding; behind the horizon of a perspective, coordinates come back mirrored
    outside = (places.abs() > 1 + 1e-5).any(1, keepdim=True) | (points[:, 2:] <= 0)
    return places.masked_fill(outside, torch.nan).reshape(n, 2, size, size)


def resample(views: torch.Tensor, places: torch.Tensor, background: Background) -> torch.Tensor:
    """The views (V, C, S, S) as seen at these places (V, 2, S, S), bilinearly; background where a place is NaN."""
    grid = places.permute(0, 2, 3, 1)
    moved = F.grid_sample(views, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return background.fill(moved, places[:, :1].isnan())


@dataclass
class _Crops:
    """Random resized crops, `TRIES` for each of n views: width and height, place of the centre, whether it will do."""

    sides: torch.Tensor  # (2, n, TRIES), 1 for the whole image
    places: torch.Tensor  # (2, n, TRIES)
    fits: torch.Tensor  # (n, TRIES)


def _crops(n: int, params: Geometry, draws: Draws) -> tuple[_Crops, torch.Tensor]:
    """The crops to choose from, and (n, 2) signs of the axes."""
    smallest = 1 - params.strength * (1 - params.crop.min_area)
    area = draws.between(smallest, 1, TRIES)
    ratio = draws.between(math.log(3 / 4), math.log(4 / 3), TRIES).exp()
    sides = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()])  # width, height
    fits = (sides <= 1).all(0) & (draws.uniform(1) < params.crop.p)
    places = (1 - sides) * draws.between(-1, 1, 2).T[..., None]
    mirrored = 1 - 2 * (draws.uniform(2) < torch.tensor([params.horizontal_flip.p, params.vertical_flip.p])).float()
    return _Crops(sides, places, fits), mirrored


def _holds(
    crops: _Crops, turn: torch.Tensor, views: torch.Tensor, background: Background, share: float
) -> torch.Tensor:
    """(n, TRIES) whether a crop holds that share of the pixels that are not background, by a grid of points in it."""
    _, n, tries = crops.sides.shape
    inside = (~background.mask(views)).float()
    centres = (torch.arange(POINTS) * 2 + 1) / POINTS - 1
    grid = torch.stack(torch.meshgrid(centres, centres, indexing="xy")).reshape(2, 1, 1, -1)
    points = crops.places[..., None] + crops.sides[..., None] * grid  # (2, n, TRIES, P)
    points = torch.cat([points, torch.ones_like(points[:1])]).permute(1, 0, 2, 3).reshape(n, 3, -1).to(views.device)
    points = turn @ points
    places = (points[:, :2] / points[:, 2:]).mT.reshape(n, tries, -1, 2)
    hit = F.grid_sample(inside, places, mode="nearest", padding_mode="zeros", align_corners=False)[:, 0].mean(2)
    held = hit * crops.sides.prod(0).to(views.device) / inside.mean((2, 3)).clamp_min(1e-9)
    return (held >= share).cpu()


def _framed(crops: _Crops, mirrored: torch.Tensor) -> torch.Tensor:
    """The first crop that will do, or else the whole image, and its flips, (n, 3, 3): the view's scale and place."""
    n = len(mirrored)
    first = crops.fits.int().argmax(1, keepdim=True).expand(2, n, 1)
    sides, places = (
        torch.where(crops.fits.any(1), of.gather(2, first)[..., 0], whole)
        for of, whole in ((crops.sides, 1.0), (crops.places, 0.0))
    )
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
