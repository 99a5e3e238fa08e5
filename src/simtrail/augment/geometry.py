"""Which part of the image a view shows: crop, flips, rotation, perspective, thin-plate spline, as one resampling."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from simtrail.augment.background import Background
from simtrail.augment.draws import Draws
from simtrail.data.area import area_means, pixel_centres
from simtrail.data.loader import on_device
from simtrail.params import Geometry

CORNERS = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
TRIES = 10  # crops drawn for each view, as in torchvision's RandomResizedCrop
POINTS = 12  # along each side of a crop: they measure how much of the organism the crop contains


def warp(
    images: torch.Tensor, params: Geometry, background: Background, draws: Draws, size: int | None = None
) -> torch.Tensor:
    """A view (V, C, size, size) of each of the images (V, C, S, S), resampled once; outside the image is background.

    With a `size` below three quarters of S, it is without aliasing.
    """
    return resample(images, sampling_grid(images, params, background, draws, size), background)


def sampling_grid(
    images: torch.Tensor, params: Geometry, background: Background, draws: Draws, size: int | None = None
) -> torch.Tensor:
    """The position in the image that each pixel of a view shows, (V, 2, size, size): x and y, NaN outside the image.

    Coordinates run from −1 to 1 over the image. The image is rotated, warped, cropped, then mirrored. So a point of the
    view is mapped back to the image in the opposite order.
    """
    n, device, size = len(images), images.device, size or images.shape[-1]
    crops, signs = _crops(n, params, draws, device)
    homography = on_device(_rotation(n, params, draws) @ _perspective(n, params, draws), device)
    if params.crop.min_cover:
        crops.valid &= _cover_enough(crops, homography, images, background, params.crop.min_cover)
    crop = _crop_matrix(crops, signs)
    spline = _thin_plate_spline(params, draws)
    centres = pixel_centres(size, device)
    pixels = torch.cat([centres, torch.ones_like(centres[:1])]).reshape(3, -1).expand(n, 3, size**2)
    if spline:
        from kornia.geometry.transform import warp_points_tps  # slow to import, and rarely used

        rows, *weights = (on_device(t, device) for t in spline)
        points = crop @ pixels
        points[rows, :2] = warp_points_tps(points[rows, :2].mT, *weights).mT
        points = homography @ points
    else:
        points = (homography @ crop) @ pixels
    positions = points[:, :2] / points[:, 2:]
    # rounding may put the edge of a crop outside; behind the horizon of a perspective, coordinates come back mirrored
    outside = (positions.abs() > 1 + 1e-5).any(1, keepdim=True) | (points[:, 2:] <= 0)
    return positions.masked_fill(outside, torch.nan).reshape(n, 2, size, size)


def resample(images: torch.Tensor, places: torch.Tensor, background: Background) -> torch.Tensor:
    """The images (V, C, S, S) at the positions `places` (V, 2, size, size); background where these are NaN.

    Bilinear, or the mean over the area that a pixel of the view shows if size is below three quarters of S.
    """
    if 4 * places.shape[-1] >= 3 * images.shape[-1]:  # then a pixel shows few more than one, in most crops less
        grid = places.permute(0, 2, 3, 1)
        views = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    else:
        views = area_means(images, places, _sides(places))
    return background.fill(views, places[:, :1].isnan())


def _sides(places: torch.Tensor) -> torch.Tensor:
    """Width and height of what a pixel of each view shows, the mean over the view, (V, 2, 1, 1).

    A turned pixel becomes an upright one with the same variance along x and y.
    """
    across, down = (places.diff(dim=axis).nanmean((2, 3), keepdim=True) for axis in (3, 2))
    return torch.hypot(across, down)


@dataclass
class _Crops:
    """Random resized crops, `TRIES` for each of n views."""

    sides: torch.Tensor  # (2, n, TRIES) width and height, 1 for the whole image
    centres: torch.Tensor  # (2, n, TRIES) x and y
    valid: torch.Tensor  # (n, TRIES) whether the crop may be used


def _crops(n: int, params: Geometry, draws: Draws, device: torch.device) -> tuple[_Crops, torch.Tensor]:
    """The crops to choose from, and the signs of the axes, (n, 2): −1 if mirrored; on the device."""
    smallest, largest = (1 - params.strength * (1 - area) for area in (params.crop.min_area, params.crop.max_area))
    area = draws.between(smallest, largest, TRIES)
    ratio = draws.between(math.log(3 / 4), math.log(4 / 3), TRIES).exp()
    sides = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()])  # width, height
    valid = (sides <= 1).all(0) & (draws.uniform(1) < params.crop.p)
    centres = (1 - sides) * draws.between(-1, 1, 2).T[..., None]
    signs = 1 - 2 * (draws.uniform(2) < torch.tensor([params.horizontal_flip.p, params.vertical_flip.p])).float()
    return _Crops(*(on_device(t, device) for t in (sides, centres, valid))), on_device(signs, device)


def _cover_enough(
    crops: _Crops, homography: torch.Tensor, images: torch.Tensor, background: Background, min_cover: float
) -> torch.Tensor:
    """Whether each crop contains this fraction of all pixels that are not background, (n, TRIES).

    It is estimated from a grid of points in the crop.
    """
    _, n, tries = crops.sides.shape
    organism = (~background.mask(images)).float()
    steps = (torch.arange(POINTS, device=images.device) * 2 + 1) / POINTS - 1
    grid = torch.stack(torch.meshgrid(steps, steps, indexing="xy")).reshape(2, 1, 1, -1)
    points = crops.centres[..., None] + crops.sides[..., None] * grid  # (2, n, TRIES, P)
    points = torch.cat([points, torch.ones_like(points[:1])]).permute(1, 0, 2, 3).reshape(n, 3, -1)
    points = homography @ points
    positions = (points[:, :2] / points[:, 2:]).mT.reshape(n, tries, -1, 2)
    hits = F.grid_sample(organism, positions, mode="nearest", padding_mode="zeros", align_corners=False)[:, 0].mean(2)
    cover = hits * crops.sides.prod(0) / organism.mean((2, 3)).clamp_min(1e-9)
    return cover >= min_cover


def _crop_matrix(crops: _Crops, signs: torch.Tensor) -> torch.Tensor:
    """The map from a view to its crop, flips included, (n, 3, 3): the first valid crop, or else the whole image."""
    n = len(signs)
    first = crops.valid.int().argmax(1, keepdim=True).expand(2, n, 1)
    sides, centres = (
        torch.where(crops.valid.any(1), values.gather(2, first)[..., 0], whole_image)
        for values, whole_image in ((crops.sides, 1.0), (crops.centres, 0.0))
    )
    matrix = torch.zeros(n, 3, 3, device=signs.device)
    matrix[:, :2, :2] = torch.diag_embed((sides * signs.T).T)
    matrix[:, :2, 2] = centres.T
    matrix[:, 2, 2] = 1
    return matrix


def _rotation(n: int, params: Geometry, draws: Draws) -> torch.Tensor:
    """The rotation matrices, (n, 3, 3); the identity for rows not chosen."""
    largest = math.radians(params.strength * params.rotation.degrees)
    angle = torch.zeros(n)
    rows, angles = draws.chosen(params.rotation.p), draws.between(-largest, largest)[:, 0]
    angle[rows] = angles[rows]
    if params.quarter_turns.p:  # else no numbers are drawn, so that all further draws are those of earlier versions
        rows, turns = draws.chosen(params.quarter_turns.p), draws.uniform(1)[:, 0]
        angle[rows] += (1 + (turns[rows] * 3).floor()) * (math.pi / 2)
    matrix = torch.eye(3).repeat(n, 1, 1)
    matrix[:, 0, 0] = matrix[:, 1, 1] = angle.cos()
    matrix[:, 1, 0] = angle.sin()
    matrix[:, 0, 1] = -angle.sin()
    return matrix


def _perspective(n: int, params: Geometry, draws: Draws) -> torch.Tensor:
    """The homographies that map the moved corners back to the corners, (n, 3, 3); the identity for rows not chosen."""
    matrix = torch.eye(3).repeat(n, 1, 1)
    largest = params.strength * params.perspective.distortion
    rows, inwards = draws.chosen(params.perspective.p), draws.between(0, largest, 8).reshape(n, 4, 2)
    if len(rows) and largest:
        from kornia.geometry.transform import get_perspective_transform  # slow to import, and rarely used

        corners = CORNERS.expand(len(rows), 4, 2)
        matrix[rows] = get_perspective_transform(corners * (1 - inwards[rows]), corners)
    return matrix


def _thin_plate_spline(params: Geometry, draws: Draws) -> tuple[torch.Tensor, ...] | None:
    """The rows chosen, and the centres and weights of their splines; None if no view has a spline."""
    largest = params.strength * params.thin_plate_spline.displacement
    rows, moves = draws.chosen(params.thin_plate_spline.p), draws.between(-largest, largest, 10)
    if not len(rows) or not largest:
        return None
    from kornia.geometry.transform import get_tps_transform  # slow to import, and rarely used

    points = torch.cat([CORNERS, torch.zeros(1, 2)]).expand(len(rows), 5, 2)
    kernel, affine = get_tps_transform(points + moves[rows].reshape(-1, 5, 2), points)
    return rows, points, kernel, affine
