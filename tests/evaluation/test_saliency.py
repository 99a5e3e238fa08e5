from __future__ import annotations

import numpy as np
import pytest
import torch

from simtrail.data.recipe import Recipe
from simtrail.evaluation.saliency import occlusion
from simtrail.model.encoder import Encoder, EncoderConfig
from simtrail.params import Architecture, Head

RNG = np.random.default_rng(0)


def config(dtype: str, size: int = 32) -> EncoderConfig:
    recipe = Recipe(
        size=size, fit="pad", background=0, composite=True, file_dtype=dtype, file_bands=2, mask_band=None,
        bands=["a", "b"], dtype=dtype, low=[0] * 2, high=[255] * 2,
    )  # fmt: skip
    head = Head(depth=1, hidden=8, output=8, batch_norm=True)
    return EncoderConfig(
        architecture=Architecture(model="test_resnet", width=1, stem="standard", vit=None),
        head=head, recipe=recipe, mean=[0.4] * 2, std=[0.2] * 2,
    )  # fmt: skip


class Corner:
    """An encoder with two features: the mean of the upper left 8 × 8 pixels, and a constant."""

    def features(self, batches) -> np.ndarray:
        return np.concatenate([np.stack([b[:, 0, :8, :8].mean((1, 2)), np.full(len(b), 100.0)], 1) for b in batches])


def image(side: int = 32) -> np.ndarray:
    picture = np.zeros((1, 2, side, side), np.uint8)
    picture[..., 2:8, 2:8] = 200
    return picture


def test_pixels_that_the_encoder_ignores_do_not_turn_the_features():
    angles = occlusion(Corner(), image(), patch=4, stride=2)[0]
    assert angles[12:, :].max() == angles[:, 12:].max() == 0
    assert angles[4, 4] > 1


def test_the_value_of_a_pixel_is_the_true_angle_in_degrees_averaged_over_the_squares():
    picture = image(16)
    slow = np.zeros((2, 16, 16))
    mean = picture[0, 0, :8, :8].mean()
    for y in range(0, 13, 2):
        for x in range(0, 13, 2):
            hidden = picture[0, 0].copy()
            hidden[y : y + 4, x : x + 4] = 0
            angle = np.degrees(np.arctan2(mean, 100) - np.arctan2(hidden[:8, :8].mean(), 100))
            slow[:, y : y + 4, x : x + 4] += np.array([angle, 1])[:, None, None]
    np.testing.assert_allclose(occlusion(Corner(), picture, patch=4, stride=2)[0], slow[0] / slow[1], atol=1e-9)


@pytest.mark.parametrize(("dtype", "batch_size"), [("uint8", 7), ("uint16", 64)])
def test_every_pixel_of_every_image_is_covered_and_images_stay_unchanged(dtype, batch_size):
    torch.manual_seed(0)
    encoder = Encoder(config(dtype))
    images = RNG.integers(0, 256, (2, 2, 32, 32)).astype(dtype)
    before = images.copy()
    angles = occlusion(encoder, images, patch=10, stride=9, batch_size=batch_size)  # neither divides the side
    assert angles.shape == (2, 32, 32)
    assert np.isfinite(angles).all()
    assert angles.min() >= 0
    assert angles.max() > 0
    assert np.array_equal(images, before)


def test_a_uniform_image_has_nothing_to_hide():
    assert occlusion(Encoder(config("uint8")), np.full((1, 2, 32, 32), 90, np.uint8)).max() < 1e-3
