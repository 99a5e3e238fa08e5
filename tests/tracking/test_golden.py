from __future__ import annotations

import numpy as np
import pytest
from conftest import rgb_recipe

from simtrail.data.recipe import conform
from simtrail.tracking.golden import golden_images


@pytest.mark.parametrize("size", [32, 64, 224])
def test_golden_images_are_those_of_every_machine(size):
    images = golden_images(rgb_recipe(size))
    assert images.dtype == np.uint8
    assert images.shape == (4, 3, size + size // 4, size)
    if size == 32:
        assert images.astype(int).sum(axis=(1, 2, 3)).tolist() == SUMS
    assert len(np.unique(images.reshape(4, -1), axis=0)) == 4
    assert images.std(axis=(2, 3)).min() > 20


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "int16"])
def test_golden_images_fill_the_range_of_the_files_and_have_mask_and_alpha(dtype):
    low, high = (0, 255) if dtype == "uint8" else (-0.5, 3.5) if dtype == "float32" else (10, 3000)
    recipe = rgb_recipe().model_copy(
        update={
            "file_dtype": dtype,
            "file_bands": 5,
            "mask_band": 3,
            "alpha": True,
            "chosen": [0, 2, 4],
            "low": [low] * 3,
            "high": [high] * 3,
            "dtype": "uint16",
            "composite": True,
        }
    )
    images = golden_images(recipe)
    assert images.shape[1] == 6
    chosen = images[:, [0, 2, 4]]
    assert chosen.min() >= low
    assert chosen.max() <= high
    assert chosen.max() > low + 0.9 * (high - low)
    assert set(np.unique(images[:, 3])) == {0, 1}
    packed = conform(images[0], recipe)
    assert 0 < (packed == 0).all((0, 1)).mean() < 0.9  # some background


SUMS = [465113, 498809, 473721, 495151]  # pixels of each image
