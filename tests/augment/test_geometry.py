from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.interpolate import RBFInterpolator
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as TF

from simtrail.augment.background import Background
from simtrail.augment.draws import Draws
from simtrail.augment.geometry import CORNERS, sampling_grid, warp

SIZE = 48
CENTRES = (torch.arange(SIZE) * 2 + 1) / SIZE - 1
BACKGROUND = 5.0  # a value that no image has
GROUND, GREY = Background([BACKGROUND], 255), Background([0.5], 255)


def ramps(views: int, size: int = SIZE) -> torch.Tensor:
    """Images whose two bands are the x and y of each pixel, so that a view shows which positions it has sampled."""
    centres = (torch.arange(size) * 2 + 1) / size - 1
    return torch.stack(torch.meshgrid(centres, centres, indexing="xy")).repeat(views, 1, 1, 1)


def pictures(views: int, bands: int = 3, size: int = SIZE) -> torch.Tensor:
    return torch.rand(views, bands, size, size, generator=torch.Generator().manual_seed(0))


def pixel_positions() -> torch.Tensor:
    """The x and y of the pixels of a view, (SIZE², 2)."""
    return ramps(1)[0].flatten(1).T.double()


def inside(positions: torch.Tensor) -> torch.Tensor:
    """Which positions are in the image, but not on its border."""
    return (positions.abs() < 1 - 1.01 / SIZE).all(1)


@pytest.mark.parametrize("size", [8, 9, 48])
def test_without_augmentation_the_images_stay_unchanged(augment, size):
    images = pictures(6, 4, size)
    torch.testing.assert_close(warp(images, augment({}).geometry, GREY, Draws((0,), 3)), images, rtol=0, atol=3e-6)


def test_at_strength_0_only_flips_change_the_images(augment):
    names = ("crop", "rotation", "perspective", "thin_plate_spline")
    settings = augment({"geometry.strength": 0.0} | {f"geometry.{name}.p": 1.0 for name in names})
    images = pictures(20)
    torch.testing.assert_close(warp(images, settings.geometry, GREY, Draws((0,), 10)), images, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "axis"), [("horizontal_flip", 3), ("vertical_flip", 2)])
def test_a_flip_mirrors_the_image(augment, name, axis):
    images = pictures(4)
    warped = warp(images, augment({f"geometry.{name}.p": 1.0}).geometry, GREY, Draws((0,), 2))
    torch.testing.assert_close(warped, images.flip(axis), rtol=0, atol=1e-5)


@pytest.mark.parametrize("u", [0.1, 0.5, 0.6])
def test_a_crop_shows_the_drawn_rectangle_at_full_size(augment, fixed_draws, u):
    warped = warp(
        ramps(1),
        augment({"geometry.crop.p": 1.0, "geometry.crop.min_area": 0.2}).geometry,
        Background([0.0], 255),
        fixed_draws(u),
    )[0]
    area, ratio = 0.2 + u * 0.8, 0.75 * (16 / 9) ** u
    width, height = math.sqrt(area * ratio), math.sqrt(area / ratio)
    assert max(width, height) <= 1
    left, top = -1 + 2 * (1 - width) * u, -1 + 2 * (1 - height) * u
    fractions = (CENTRES + 1) / 2
    border = 1 / SIZE
    torch.testing.assert_close(
        warped[0, 0], (left + 2 * width * fractions).clamp(-1 + border, 1 - border), rtol=0, atol=1e-5
    )
    torch.testing.assert_close(
        warped[1, :, 0], (top + 2 * height * fractions).clamp(-1 + border, 1 - border), rtol=0, atol=1e-5
    )


def test_crops_have_the_distribution_of_torchvision(augment):
    settings = augment({"geometry.crop.p": 1.0, "geometry.crop.min_area": 0.08})
    warped = warp(ramps(4000, 8), settings.geometry, Background([0.0], 255), Draws((0,), 2000))
    width, height = (warped[:, 0, 4, 4] - warped[:, 0, 4, 3]) * 4, (warped[:, 1, 4, 4] - warped[:, 1, 3, 4]) * 4
    left = warped[:, 0, 4, 3:5].mean(1) - width
    torch.manual_seed(0)
    image = torch.empty(1, 2000, 2000)
    drawn = [RandomResizedCrop.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(4000)]
    _, j, h, w = torch.tensor(drawn).T / 2000
    levels = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])
    for ours, expected in ((width * height, w * h), (width / height, w / h), (left, 2 * j - 1)):
        torch.testing.assert_close(ours.quantile(levels), expected.quantile(levels), rtol=0, atol=0.035)
        assert abs(ours.mean() - expected.mean()) < 0.02


@pytest.mark.parametrize("u", [0.05, 0.5, 0.8])
def test_a_rotation_equals_torchvision(augment, fixed_draws, u):
    settings = augment({"geometry.rotation.p": 1.0, "geometry.rotation.degrees": 60.0})
    images = pictures(1)
    degrees = (2 * u - 1) * 60
    expected = TF.rotate(images, degrees, InterpolationMode.BILINEAR)
    well_inside = pixel_positions().norm(dim=1).reshape(SIZE, SIZE) < 0.95
    ours = warp(images, settings.geometry, Background([0.0], 255), fixed_draws(u))
    torch.testing.assert_close(ours[..., well_inside], expected[..., well_inside], rtol=0, atol=1e-4)


def test_everything_outside_the_image_is_background_without_a_seam(augment, fixed_draws):
    settings = augment({"geometry.rotation.p": 1.0, "geometry.rotation.degrees": 45.0})
    warped = warp(torch.ones(1, 3, 256, 256), settings.geometry, Background([0.2], 255), fixed_draws(0.0))
    assert warped.mul(1e6).round().unique().tolist() == [0.2e6, 1e6]
    # a unit square and the same square turned by 45° intersect in an octagon of this area
    assert abs((warped > 0.9).float().mean() - 2 * (math.sqrt(2) - 1)) < 0.005


def test_a_perspective_equals_torchvision(augment, fixed_draws):
    settings = augment({"geometry.perspective.p": 1.0, "geometry.perspective.distortion": 0.5})
    table, images = torch.rand(1, 10, generator=torch.Generator().manual_seed(0)), pictures(1)
    targets = CORNERS * (1 - 0.5 * table[0, :8].reshape(4, 2))
    pixels = [((points + 1) / 2 * SIZE).tolist() for points in (CORNERS, targets)]
    expected = TF.perspective(images, *pixels, InterpolationMode.BILINEAR)
    ours = warp(images, settings.geometry, GROUND, fixed_draws(table))
    shown = TF.perspective(torch.ones(1, 1, SIZE, SIZE), *pixels, InterpolationMode.BILINEAR)[0, 0] > 0.9999
    assert 0.3 < shown.float().mean() < 0.9
    torch.testing.assert_close(ours[..., shown], expected[..., shown], rtol=0, atol=1e-3)


def test_a_perspective_shows_nothing_from_behind_its_horizon(augment, fixed_draws):
    settings = augment({"geometry.perspective.p": 1.0, "geometry.perspective.distortion": 1.0})
    table = torch.rand(200, 10, generator=torch.Generator().manual_seed(0))
    warped = warp(torch.ones(200, 1, SIZE, SIZE), settings.geometry, Background([0.2], 255), fixed_draws(table))
    assert warped.mul(1e6).round().unique().tolist() == [0.2e6, 1e6]
    behind = 0
    for view, numbers in zip(warped, table.double().numpy(), strict=True):
        targets = CORNERS.double().numpy() * (1 - numbers[:8].reshape(4, 2))
        equations, values = [], []
        for (x, y), (u, v) in zip(targets, CORNERS.tolist(), strict=True):
            equations += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
            values += [u, v]
        homography = np.append(np.linalg.solve(equations, values), 1).reshape(3, 3)
        x, y, w = homography @ np.c_[pixel_positions().numpy(), np.ones(SIZE**2)].T
        with np.errstate(divide="ignore"):
            within = np.maximum(abs(x / w), abs(y / w)) <= 1
        assert ((view.flatten().numpy() > 0.9) != (within & (w > 0))).mean() < 0.002
        behind += (within & (w <= 0)).any()
    assert behind > 5  # otherwise nothing has been tested


def test_a_thin_plate_spline_moves_the_five_points_to_the_drawn_positions(augment, fixed_draws):
    settings = augment({"geometry.thin_plate_spline.p": 1.0, "geometry.thin_plate_spline.displacement": 0.2})
    table = torch.rand(4, 10, generator=torch.Generator().manual_seed(1))
    warped = warp(ramps(4), settings.geometry, GROUND, fixed_draws(table))
    points = torch.cat([CORNERS, torch.zeros(1, 2)])
    for view, numbers in zip(warped, table, strict=True):
        targets = points + (2 * numbers.reshape(5, 2) - 1) * 0.2
        expected = torch.tensor(
            RBFInterpolator(targets, points, kernel="thin_plate_spline", degree=1)(pixel_positions())
        )
        ours, shown = view.flatten(1).T.double(), inside(expected)
        # Kornia's spline goes through the same five points, but bends slightly differently between them
        torch.testing.assert_close(ours[shown], expected[shown], rtol=0, atol=0.05)
        nearest = (pixel_positions() - targets[4]).norm(dim=1).argmin()
        assert ours[nearest].norm() < 2.5 / SIZE


def test_the_image_is_rotated_warped_cropped_then_mirrored(augment, fixed_draws):
    names, u = ("rotation", "perspective", "thin_plate_spline", "crop", "horizontal_flip"), 0.3
    draws, all_on = (
        fixed_draws(u),
        augment({f"geometry.{name}.p": 1.0 for name in names} | {"geometry.rotation.degrees": 20.0}),
    )
    warped = warp(ramps(1), all_on.geometry, GROUND, draws)[0].flatten(1).T.double()
    cropped = (
        warp(ramps(1), augment({"geometry.crop.p": 1.0}).geometry, Background([0.0], 255), draws)
        .flip(3)[0]
        .flatten(1)
        .T.double()
    )
    geometry = all_on.geometry
    # if all points move by the same amount, the spline is a shift and the perspective a scaling
    shift, scale = (2 * u - 1) * geometry.thin_plate_spline.displacement, 1 - u * geometry.perspective.distortion
    turn = torch.tensor((2 * u - 1) * math.radians(20)).double()
    rotation = torch.stack([turn.cos(), -turn.sin(), turn.sin(), turn.cos()]).reshape(2, 2)
    expected = (cropped - shift) / scale @ rotation.T
    shown = inside(expected) & inside(cropped)
    assert shown.double().mean() > 0.5
    torch.testing.assert_close(warped[shown], expected[shown], rtol=0, atol=1e-4)


def test_the_image_is_rotated_before_its_perspective(augment, fixed_draws):
    perspective = {"geometry.perspective.p": 1.0, "geometry.perspective.distortion": 0.6}
    rotation = {"geometry.rotation.p": 1.0, "geometry.rotation.degrees": 40.0}
    draws = fixed_draws(torch.rand(1, 10, generator=torch.Generator().manual_seed(4)))
    first, both = (
        warp(ramps(1), augment(changes).geometry, GROUND, draws)[0].flatten(1).T.double()
        for changes in (perspective, perspective | rotation)
    )
    turn = (2 * draws.table[0, 0].double() - 1) * math.radians(40)
    expected = first @ torch.stack([turn.cos(), -turn.sin(), turn.sin(), turn.cos()]).reshape(2, 2).T
    shown = inside(first) & inside(expected)
    assert shown.double().mean() > 0.2
    torch.testing.assert_close(both[shown], expected[shown], rtol=0, atol=1e-4)


def test_a_crop_contains_the_required_fraction_of_the_organism(augment):
    x, y = ramps(1)[0]
    organism = ((x - 0.25).abs() < 0.3) & ((y + 0.5).abs() < 0.25)
    settings = {"geometry.crop.p": 1.0, "geometry.crop.min_area": 0.1, "geometry.rotation.p": 1.0}
    covers = {}
    for min_cover in (0.0, 0.7):
        params = augment(settings | {"geometry.rotation.degrees": 30.0, "geometry.crop.min_cover": min_cover}).geometry
        views = warp(
            torch.stack([organism.float(), x, y]).repeat(400, 1, 1, 1), params, Background([0.0], 255), Draws((0,), 200)
        )
        middle = SIZE // 2
        right, down = (
            views[:, 1:, *to] - views[:, 1:, middle, middle] for to in ((middle, middle + 1), (middle + 1, middle))
        )
        pixel = right.norm(dim=1) * down.norm(dim=1) * (SIZE / 2) ** 2  # of the view, in pixels of the image
        covers[min_cover] = views[:, 0].sum((1, 2)) * pixel / organism.sum()
    assert (covers[0.0] < 0.6).float().mean() > 0.2
    assert (covers[0.7] < 0.6).float().mean() < 0.01


EVERY = {f"geometry.{k}.p": 1.0 for k in ("crop", "rotation", "perspective", "thin_plate_spline", "horizontal_flip")}


@pytest.mark.parametrize(
    "changes",
    [{}, {"geometry.vertical_flip.p": 1.0}, {"geometry.crop.p": 1.0, "geometry.rotation.p": 1.0}, EVERY],
    ids=["still", "flipped", "turned crop", "everything"],
)
def test_the_sampling_grid_has_the_positions_that_views_of_ramps_show(augment, changes):
    geometry, images = augment(changes | {"geometry.rotation.degrees": 60.0}).geometry, ramps(40)
    places = sampling_grid(images, geometry, GROUND, Draws((0,), 20))
    shown = warp(images, geometry, GROUND, Draws((0,), 20))
    outside = places.isnan()
    assert outside[:, :1].equal(outside[:, 1:])
    assert outside.equal(shown == BACKGROUND)
    assert outside.any() == ("geometry.rotation.p" in changes)
    assert places[~outside].abs().max() <= 1 + 1e-5
    border = 1 - 1 / SIZE  # beyond the centres of the outermost pixels, ramps are constant
    expected = places.clamp(-border, border)
    torch.testing.assert_close(shown[~outside], expected[~outside], rtol=0, atol=1e-4)


def test_a_grey_background_of_8_bits_does_not_count_as_organism_in_a_crop(augment):
    images = torch.full((200, 1, SIZE, SIZE), 128 / 255)
    images[:, :, :8, :8] = 0.9
    settings = {"geometry.crop.p": 1.0, "geometry.crop.min_area": 0.1, "geometry.crop.min_cover": 0.9}
    views = warp(images, augment(settings).geometry, GREY, Draws((0,), 100))
    assert ((views > 0.7).sum((1, 2, 3)) > 0).all()


def test_quarter_turns_are_exact_and_each_is_as_frequent(augment):
    images = torch.rand(1, 3, 8, 8).repeat(400, 1, 1, 1)
    recipe = augment({"geometry.quarter_turns.p": 0.75}).geometry
    views = warp(images.repeat(2, 1, 1, 1), recipe, Background([0.0], 1), Draws((0,), 400))
    counts = [sum(torch.allclose(v, images[0].rot90(turns, (1, 2)), atol=1e-5) for v in views) for turns in range(4)]
    assert sum(counts) == 800
    assert min(counts) > 150


def overlaps(middles: np.ndarray, side: float, size: int) -> np.ndarray:
    """The parts (h, size) of h intervals of this length, in pixels, that lie in each pixel of a row; float64."""
    edges = np.arange(size + 1, dtype=np.float64)
    edges[[0, -1]] = -np.inf, np.inf  # the outermost pixels go on
    low, high = middles[:, None] - side / 2, middles[:, None] + side / 2
    return np.clip(np.minimum(high, edges[1:]) - np.maximum(low, edges[:-1]), 0, None) / side


@pytest.mark.parametrize("u", [0.1, 0.5, 0.6])
@pytest.mark.parametrize("times", [1.5, 2, 3])
def test_a_crop_from_a_larger_image_is_the_mean_over_the_area_of_each_pixel(augment, fixed_draws, u, times):
    large = int(SIZE * times)
    images = torch.rand(1, 3, large, large)
    settings = augment({"geometry.crop.p": 1.0, "geometry.crop.min_area": 0.2}).geometry
    places = sampling_grid(images, settings, GREY, fixed_draws(u), SIZE)[0].double().numpy()
    pixels = (places + 1) * large / 2
    x, y = pixels[0, 0], pixels[1, :, 0]
    across, down = (overlaps(line, max(1, line[1] - line[0]), large) for line in (x, y))
    expected = np.einsum("ij,ncjk,lk->ncil", down, images.double().numpy(), across)
    views = warp(images, settings, GREY, fixed_draws(u), SIZE)
    assert np.abs(views.numpy() - expected).max() < 0.1 / 255


def test_views_of_the_size_of_the_images_are_the_same_bit_for_bit_as_without_a_size(augment):
    geometry, images = augment(EVERY).geometry, pictures(20)
    views = warp(images, geometry, GREY, Draws((0,), 10), SIZE)
    assert views.equal(warp(images, geometry, GREY, Draws((0,), 10)))


def test_turned_and_mirrored_views_of_larger_images_are_turned_means(augment):
    images = torch.rand(1, 3, 16, 16).repeat(200, 1, 1, 1)
    settings = augment({"geometry.quarter_turns.p": 0.75, "geometry.horizontal_flip.p": 0.5}).geometry
    views = warp(images, settings, Background([0.0], 1), Draws((0,), 100), 8)
    small = F.avg_pool2d(images[0], 2)
    expected = [mirrored.rot90(turns, (1, 2)) for mirrored in (small, small.flip(2)) for turns in range(4)]
    matches = torch.stack([(views - each).abs().amax((1, 2, 3)) < 1e-5 for each in expected])
    assert (matches.sum(0) == 1).all()
    assert matches.any(1).all()


def test_fine_stripes_become_grey_in_turned_views(augment):
    stripes = (torch.arange(2 * SIZE) % 2).float().expand(40, 1, 2 * SIZE, 2 * SIZE)
    settings = augment({"geometry.rotation.p": 1.0, "geometry.rotation.degrees": 60.0}).geometry
    middle = slice(SIZE // 4, -SIZE // 4)
    views = warp(stripes, settings, GREY, Draws((0,), 20), SIZE)[..., middle, middle]
    aliased = warp(stripes, settings, GREY, Draws((0,), 20))[..., ::2, ::2][..., middle, middle]
    assert views.std((1, 2, 3)).mean() < 0.3 * aliased.std((1, 2, 3)).mean()
    assert (views.mean((1, 2, 3)) - 0.5).abs().max() < 0.02
