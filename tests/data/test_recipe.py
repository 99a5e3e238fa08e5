from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from conftest import with_changes

from simtrail.data.dataset import Declaration
from simtrail.data.recipe import Recipe, conform, make_recipe

RNG = np.random.default_rng(0)


def recipe(bands: int = 3, dtype: str = "uint8", low=0.0, high=255.0, mask_band=None, **prepare) -> Recipe:
    table = pd.DataFrame({"bands": [bands], "dtype": [dtype], "min": [[low] * bands], "max": [[high] * bands]})
    names = [f"b{i}" for i in range(bands)]
    declaration = Declaration(bands=names, mask=None if mask_band is None else names[mask_band])
    settings = {f"prepare.{k}": v for k, v in {"size": 16, "background": 0.0, **prepare}.items()}
    return make_recipe(table, declaration, with_changes(settings).prepare)


def test_an_image_of_the_right_size_passes_unchanged():
    image = RNG.integers(0, 256, (3, 16, 16), dtype=np.uint8)
    np.testing.assert_array_equal(conform(image, recipe()), image)


@pytest.mark.parametrize(("dtype", "low", "high"), [("uint16", 0, 4095), ("int16", -224, 9000), ("uint16", 0, 65535)])
def test_integers_of_sixteen_bits_keep_their_precision(dtype, low, high):
    image = RNG.integers(low, high + 1, (2, 16, 16)).astype(dtype)
    r = recipe(2, dtype, low, high)
    packed = conform(image, r)
    assert packed.dtype == np.uint16
    back = np.array(r.low)[:, None, None] + packed / r.full_scale * (np.array(r.high) - r.low)[:, None, None]
    np.testing.assert_array_equal(np.rint(back).astype(dtype), image)


def test_every_band_of_a_deep_image_uses_its_own_range():
    image = np.stack([np.linspace(0, 100, 256).reshape(16, 16), np.linspace(-1, 1, 256).reshape(16, 16)]).astype(
        np.float32
    )
    table = pd.DataFrame({"bands": [2], "dtype": ["float32"], "min": [[0.0, -1.0]], "max": [[100.0, 1.0]]})
    r = make_recipe(table, Declaration(), with_changes({"prepare.size": 16}).prepare)
    packed = conform(image, r) / r.full_scale
    np.testing.assert_allclose(packed[0], packed[1], atol=1e-4)
    assert packed.min() == 0
    assert packed.max() == 1


@pytest.mark.parametrize(("shape", "inside"), [((8, 32), (4, 16)), ((32, 8), (16, 4)), ((1, 208), (1, 16))])
def test_padding_keeps_the_aspect_and_fills_with_background(shape, inside):
    image = np.full((3, *shape), 255, np.uint8)
    packed = conform(image, recipe(background=0.2))
    whole = (packed[0] == 255).sum()
    assert whole == inside[0] * inside[1]
    assert set(np.unique(packed)) == {51, 255}


def test_cropping_keeps_the_aspect_and_the_centre():
    image = np.zeros((3, 16, 48), np.uint8)
    image[:, :, 16:32] = 200
    assert (conform(image, recipe(fit="crop")) == 200).all()


def test_alpha_composites_on_the_background_or_is_dropped():
    image = np.full((4, 16, 16), 100, np.uint8)
    image[3, :, :8] = 0
    image[3, :, 8:] = 255
    packed = conform(image, recipe(background=1.0))
    assert (packed[:, :, :8] == 255).all()
    assert (packed[:, :, 8:] == 100).all()
    assert (conform(image, recipe(background=1.0, mask="ignore")) == 100).all()


def test_a_mask_band_is_applied_and_never_reaches_the_network():
    image = RNG.integers(1, 256, (7, 16, 16), dtype=np.uint8)
    image[6] = 0
    image[6, 4:12, 4:12] = 1
    r = recipe(7, mask_band=6)
    packed = conform(image, r)
    assert len(packed) == len(r.bands) == 6
    assert packed[:, 4:12, 4:12].min() > 0
    assert packed.sum() == packed[:, 4:12, 4:12].sum()


def test_other_band_counts_are_refused():
    with pytest.raises(ValueError, match=r"\(5, 16, 16\): must be .* 3 bands"):
        conform(np.zeros((5, 16, 16), np.uint8), recipe())


def test_another_type_is_refused_rather_than_clipped():
    with pytest.raises(ValueError, match="pixels are uint16: must be uint8"):
        conform(np.zeros((3, 16, 16), np.uint16), recipe())


def test_downscaling_averages_instead_of_picking_pixels():
    board = np.indices((64, 64)).sum(0) % 2 * 255
    packed = conform(np.stack([board] * 3).astype(np.uint8), recipe())
    assert abs(packed.astype(int) - 127).max() < 12
