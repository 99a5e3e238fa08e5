from __future__ import annotations

import pytest
import torch
from torchvision.transforms import RandomErasing
from torchvision.transforms import functional as TF

from simtrail.augment.background import Background
from simtrail.augment.draws import Draws
from simtrail.augment.texture import retexture

BACKGROUND = 0.2
GROUND = Background([BACKGROUND], 255)


def pictures(views: int = 4, bands: int = 3, size: int = 32) -> torch.Tensor:
    return torch.rand(views, bands, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("size", "kernel"), [(8, 3), (33, 3), (64, 7), (96, 9)])
@pytest.mark.parametrize("u", [0.0, 0.3, 0.9])
def test_blur_equals_torchvision_with_a_kernel_of_a_tenth_of_the_side(augment, fixed_draws, size, kernel, u):
    images = pictures(2, 4, size)
    ours = retexture(images.clone(), augment({"texture.blur.p": 1.0}).texture, GROUND, fixed_draws(u, 2))
    expected = TF.gaussian_blur(images, [kernel, kernel], [0.1 + u * 1.9] * 2)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)


def test_every_view_has_its_own_blur(augment, fixed_draws):
    images, sigmas = pictures(1, 2, 64).repeat(3, 1, 1, 1), torch.tensor([[0.2], [0.5], [0.9]])
    ours = retexture(images.clone(), augment({"texture.blur.p": 1.0}).texture, GROUND, fixed_draws(sigmas.expand(3, 8)))
    for view, image, u in zip(ours, images, sigmas[:, 0], strict=True):
        torch.testing.assert_close(view, TF.gaussian_blur(image, [7, 7], [0.1 + float(u) * 1.9] * 2), rtol=0, atol=1e-6)


@pytest.mark.parametrize("u", [0.1, 0.9])
def test_sharpness_equals_torchvision(augment, fixed_draws, u):
    images = pictures()
    settings = augment({"texture.sharpness.p": 1.0, "texture.sharpness.factor": 2.0}).texture
    ours, expected = (
        retexture(images.clone(), settings, GROUND, fixed_draws(u, 4)),
        TF.adjust_sharpness(images, 1 + 2 * u),
    )
    inner = slice(1, -1)  # torchvision and PIL leave the outermost pixels unchanged
    torch.testing.assert_close(ours[..., inner, inner], expected[..., inner, inner], rtol=0, atol=1e-5)


def test_erasing_fills_one_rectangle_with_background_in_all_bands(augment):
    images = pictures(400, 3).clamp(min=0.3)
    settings = augment({"texture.erasing.p": 1.0, "texture.erasing.max_area": 0.4}).texture
    erased = retexture(images.clone(), settings, GROUND, Draws((0,), 200))
    background = erased == BACKGROUND
    assert background.equal(background[:, :1].expand_as(background))
    rows, columns = background[:, 0].any(2), background[:, 0].any(1)
    assert background[:, 0].equal(rows[:, :, None] & columns[:, None, :])
    assert (rows.int().diff(dim=1).abs().sum(1) <= 2).all()
    assert (columns.int().diff(dim=1).abs().sum(1) <= 2).all()
    assert erased[~background].equal(images[~background])


def test_erased_rectangles_have_the_distribution_of_torchvision(augment):
    settings = augment({"texture.erasing.p": 1.0, "texture.erasing.max_area": 0.3}).texture
    background = (
        retexture(torch.ones(2000, 1, 128, 128), settings, Background([0.0], 255), Draws((0,), 1000))[:, 0] == 0
    )
    height, width = (background.any(axis).float().sum(1) / 128 for axis in (2, 1))
    torch.manual_seed(0)
    image = torch.ones(1, 1000, 1000)
    drawn = [RandomErasing.get_params(image, (0.02, 0.3), (0.3, 3.3), [0.0])[2:4] for _ in range(2000)]
    h, w = torch.tensor(drawn).T / 1000
    levels = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])
    torch.testing.assert_close((height * width).quantile(levels), (h * w).quantile(levels), rtol=0, atol=0.02)
    torch.testing.assert_close(
        (width / height).log().quantile(levels), (w / h).log().quantile(levels), rtol=0, atol=0.15
    )
    assert background.float().mean(0).std() < 0.15  # everywhere equally often
    assert background.any(0)[[0, -1]].any(1).all()
    assert background.any(0)[:, [0, -1]].any(0).all()


def test_at_strength_0_the_images_stay_unchanged(augment):
    probabilities = {f"texture.{name}.p": 1.0 for name in ("blur", "sharpness", "erasing")}
    images = pictures()
    settings = augment(probabilities | {"texture.strength": 0.0}).texture
    assert retexture(images.clone(), settings, GROUND, Draws((0,), 2)).equal(images)


def test_strength_multiplies_sigma_factor_and_area(augment, fixed_draws):
    probabilities = {f"texture.{name}.p": 1.0 for name in ("blur", "sharpness", "erasing")}
    limits = {"texture.blur.sigma": 4.0, "texture.sharpness.factor": 2.0, "texture.erasing.max_area": 0.4}
    half = augment(probabilities | limits | {"texture.strength": 0.5}).texture
    full = augment(probabilities | {key: value / 2 for key, value in limits.items()}).texture
    ours, expected = (retexture(pictures(), settings, GROUND, fixed_draws(0.7, 4)) for settings in (half, full))
    assert ours.equal(expected)
