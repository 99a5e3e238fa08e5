from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms import functional as TF

from simtrail.augment.color import recolour
from simtrail.augment.draws import Draws

RGB = [0, 1, 2]
GREY = torch.tensor([0.299, 0.587, 0.114])[:, None, None]


def pictures(views: int = 4, bands: int = 3, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
    return torch.empty(views, bands, 16, 16).uniform_(low, high, generator=torch.Generator().manual_seed(0))


def jitter(**half_widths: float) -> dict[str, float]:
    return {"color.jitter.p": 1.0} | {f"color.jitter.{key}": value for key, value in half_widths.items()}


@pytest.mark.parametrize("u", [0.0, 0.3, 0.9])
@pytest.mark.parametrize(
    ("name", "adjust"),
    [("brightness", TF.adjust_brightness), ("contrast", TF.adjust_contrast), ("saturation", TF.adjust_saturation)],
)
def test_brightness_contrast_and_saturation_equal_torchvision(augment, fixed_draws, name, adjust, u):
    images = pictures()
    ours = recolour(images.clone(), augment(jitter(**{name: 0.8})).color, RGB, fixed_draws(u, 4))
    # the grey of torchvision has one more digit
    torch.testing.assert_close(ours, adjust(images, 1 + 0.8 * (2 * u - 1)), rtol=0, atol=5e-4)


def test_without_clipping_the_random_order_of_the_paper_makes_no_difference(augment, fixed_draws):
    images = pictures(low=0.4, high=0.6)
    ours = recolour(
        images.clone(), augment(jitter(brightness=0.3, contrast=0.4, saturation=0.5)).color, RGB, fixed_draws(0.9, 4)
    )
    steps = [(TF.adjust_brightness, 1.24), (TF.adjust_contrast, 1.32), (TF.adjust_saturation, 1.4)]
    for order in permutations(steps):
        expected = images
        for step, factor in order:
            expected = step(expected, factor)
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-3)


def test_hue_turns_chroma_and_keeps_grey(augment, fixed_draws):
    images = pictures(low=0.4, high=0.6)
    grey = (images * GREY).sum(1, keepdim=True)
    settings = augment(jitter(hue=0.5)).color
    half_a_turn = recolour(images.clone(), settings, RGB, fixed_draws(0.0, 4))
    torch.testing.assert_close(half_a_turn, 2 * grey - images, rtol=0, atol=1e-5)
    turned = images.clone()
    for _ in range(3):
        turned = recolour(turned, settings, RGB, fixed_draws(5 / 6, 4))  # a third of a turn
        torch.testing.assert_close((turned * GREY).sum(1, keepdim=True), grey, rtol=0, atol=1e-5)
    torch.testing.assert_close(turned, images, rtol=0, atol=1e-5)


def test_hue_turns_as_far_as_in_torchvision(augment, fixed_draws):
    colours = (0.45 + 0.1 * torch.eye(3))[:, :, None, None].expand(3, 3, 2, 2)
    # both directions are equally likely
    ours = recolour(colours.clone(), augment(jitter(hue=0.5)).color, RGB, fixed_draws(1 / 6, 3))
    assert ours.argmax(1).equal(TF.adjust_hue(colours, 1 / 3).argmax(1))
    assert ours.argmax(1)[:, 0, 0].tolist() == [1, 2, 0]


def test_grayscale_equals_pil(augment):
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    views = torch.tensor(image).permute(2, 0, 1)[None] / 255
    grey = recolour(views.repeat(2, 1, 1, 1), augment({"color.grayscale.p": 1.0}).color, RGB, Draws((0,), 1))
    pil = torch.tensor(np.array(Image.fromarray(image).convert("L"))) / 255
    torch.testing.assert_close(grey, pil.expand(2, 3, 16, 16), rtol=0, atol=1 / 255)
    assert grey[:, 0].equal(grey[:, 1])


@pytest.mark.parametrize("bits", range(1, 9))
def test_posterize_equals_pil(augment, fixed_draws, bits):
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    settings = augment({"color.posterize.p": 0.9999, "color.posterize.bits": bits}).color
    ours = recolour(torch.tensor(levels)[None, None] / 255, settings, None, fixed_draws(0.999))
    pil = np.array(ImageOps.posterize(Image.fromarray(levels), bits))
    assert (ours[0, 0] * 255).round().numpy().astype(np.uint8).tolist() == pil.tolist()


def test_posterize_keeps_the_number_of_bits_drawn_for_each_image(augment):
    views = (torch.arange(256.0) / 255).reshape(1, 1, 16, 16).repeat(3000, 1, 1, 1)
    settings = augment({"color.posterize.p": 1.0, "color.posterize.bits": 3, "color.strength": 0.5}).color
    kept = torch.tensor([len(view.unique()) for view in recolour(views, settings, None, Draws((0,), 1500))])
    fractions = {int(n): (kept == n).float().mean() for n in kept.unique()}
    assert fractions.keys() == {32, 64, 128}
    assert all(abs(fraction - 1 / 3) < 0.04 for fraction in fractions.values())


def test_bands_that_are_not_rgb_are_jittered_separately(augment, fixed_draws):
    images, table = pictures(4, 5), torch.rand(4, 8, generator=torch.Generator().manual_seed(1))
    table[:, 0] *= 0.7
    settings = augment(jitter(brightness=0.4, contrast=0.6, saturation=1.0, hue=0.5) | {"color.grayscale.p": 1.0}).color
    ours = recolour(images.clone(), settings, None, fixed_draws(table))
    for view, factors, result in zip(images.double(), 2 * table.double() - 1, ours, strict=True):
        for band, u, band_result in zip(view, factors, result, strict=False):
            expected = (1 + 0.4 * u) * ((1 + 0.6 * u) * band + (1 - (1 + 0.6 * u)) * band.mean())
            torch.testing.assert_close(band_result.double(), expected.clamp(0, 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("rgb", [[0, 1, 2], [4, 5, 6], [2, 1, 0], [5, 0, 3]])
def test_red_green_and_blue_change_the_same_with_and_without_other_bands(augment, fixed_draws, rgb):
    images, table = pictures(4, 7), torch.rand(4, 8, generator=torch.Generator().manual_seed(1))
    table[:, 0] *= 0.7
    colour = {"saturation": 0.8, "hue": 0.2}
    full = augment(jitter(brightness=0.5, contrast=0.5, **colour) | {"color.grayscale.p": 0.3}).color
    alone = recolour(images[:, rgb], full, RGB, fixed_draws(table))
    together = recolour(images.clone(), full, rgb, fixed_draws(table))
    torch.testing.assert_close(together[:, rgb], alone, rtol=0, atol=1e-6)
    other_bands = [i for i in range(7) if i not in rgb]
    only_colour = recolour(
        images.clone(), augment(jitter(**colour) | {"color.grayscale.p": 0.3}).color, rgb, fixed_draws(table)
    )
    assert only_colour[:, other_bands].equal(images[:, other_bands])
    assert not only_colour[:, rgb].equal(images[:, rgb])


def test_at_strength_0_jitter_and_posterize_change_nothing(augment):
    settings = augment(
        jitter(brightness=1.0, contrast=1.0, saturation=1.0, hue=0.5)
        | {"color.strength": 0.0, "color.posterize.p": 1.0, "color.posterize.bits": 1}
    )
    images = pictures(6, 5)
    torch.testing.assert_close(recolour(images.clone(), settings.color, RGB, Draws((0,), 3)), images, rtol=0, atol=1e-6)


def test_strength_multiplies_the_range_of_jitter(augment, fixed_draws):
    half = augment(jitter(brightness=0.8, contrast=0.4, saturation=0.6, hue=0.2) | {"color.strength": 0.5}).color
    full = augment(jitter(brightness=0.4, contrast=0.2, saturation=0.3, hue=0.1)).color
    images, draws = pictures(), fixed_draws(0.8, 4)
    torch.testing.assert_close(recolour(images.clone(), half, RGB, draws), recolour(images.clone(), full, RGB, draws))
