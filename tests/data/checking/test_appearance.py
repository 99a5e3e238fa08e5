from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFilter

from simtrail.data.checking.appearance import appearance

RNG = np.random.default_rng(0)
PICTURE = Image.fromarray(RNG.integers(0, 256, (90, 120, 3), dtype=np.uint8))


def of(image: Image.Image) -> dict:
    return appearance(np.moveaxis(np.asarray(image), -1, 0))


def test_a_blurred_image_has_little_sharpness_whatever_its_contrast():
    sharp, blurred = of(PICTURE), of(PICTURE.filter(ImageFilter.GaussianBlur(12)))
    assert blurred["sharpness"] < sharp["sharpness"] / 4
    half = appearance(np.moveaxis(np.asarray(PICTURE), -1, 0) // 2)
    assert half["sharpness"] == pytest.approx(sharp["sharpness"], rel=0.02)


def test_brightness_is_known_only_for_8_bits():
    facts = appearance(np.full((1, 20, 20), 51, np.uint8))
    assert facts["darkest"] == facts["brightest"] == pytest.approx(0.2)
    assert facts["thumbnail"] is None
    assert np.isnan(appearance(RNG.normal(size=(3, 20, 20)).astype(np.float32))["darkest"])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_do_no_harm(value):
    image = RNG.normal(size=(3, 20, 20)).astype(np.float32)
    image[0, 3, 3] = value
    assert np.isfinite(appearance(image)["sharpness"])


def test_the_mask_band_is_not_looked_at():
    image = RNG.integers(0, 256, (2, 30, 30), dtype=np.uint8)
    assert appearance(image, mask=1) == appearance(image[:1])
