from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from conftest import with_changes

from simtrail.data import recipe as recipes
from simtrail.data.dataset import Declaration
from simtrail.data.reading.decoded import BandFacts
from simtrail.data.recipe import Border, Recipe, levels, make_recipe, needs_border
from simtrail.errors import InputError

RNG = np.random.default_rng(0)


def manifest(dtype: str, low: list[float], high: list[float], **facts) -> pd.DataFrame:
    facts_json = BandFacts(**facts).model_dump_json()
    return pd.DataFrame({"bands": [len(low)], "dtype": [dtype], "min": [low], "max": [high], "facts": [facts_json]})


def recipe(bands: int = 3, dtype: str = "uint8", low=0.0, high=255.0, mask_band=None, **prepare) -> Recipe:
    table = manifest(dtype, [low] * bands, [high] * bands)
    names = [f"b{i}" for i in range(bands)]
    declaration = Declaration(bands=names, mask=None if mask_band is None else names[mask_band])
    settings = {f"prepare.{k}": v for k, v in {"size": 16, "background": 0.0, **prepare}.items()}
    return make_recipe(table, declaration, with_changes(settings).prepare)


def conform(image: np.ndarray, r: Recipe, modality: str | None = None) -> np.ndarray:
    """The only square of an image that is not cut into tiles."""
    (square,) = recipes.conform(image, r, modality)
    return square


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


def test_every_band_of_floats_has_a_separate_range():
    image = np.stack([np.linspace(0, 100, 256).reshape(16, 16), np.linspace(-1, 1, 256).reshape(16, 16)]).astype(
        np.float32
    )
    r = make_recipe(
        manifest("float32", [0.0, -1.0], [100.0, 1.0]), Declaration(), with_changes({"prepare.size": 16}).prepare
    )
    packed = conform(image, r) / r.full_scale
    np.testing.assert_allclose(packed[0], packed[1], atol=1e-4)
    assert packed.min() == 0
    assert packed.max() == 1


@pytest.mark.parametrize(("shape", "inside"), [((8, 32), (4, 16)), ((32, 8), (16, 4)), ((1, 208), (1, 16))])
def test_padding_keeps_the_aspect_and_fills_with_background(shape, inside):
    image = np.full((3, *shape), 255, np.uint8)
    packed = conform(image, recipe(background=0.2))
    image_pixels = (packed[0] == 255).sum()
    assert image_pixels == inside[0] * inside[1]
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


def test_another_type_is_refused_instead_of_clipped():
    with pytest.raises(ValueError, match="pixels are uint16: must be uint8"):
        conform(np.zeros((3, 16, 16), np.uint16), recipe())


def test_downscaling_averages_pixels():
    board = np.indices((64, 64)).sum(0) % 2 * 255
    packed = conform(np.stack([board] * 3).astype(np.uint8), recipe())
    assert abs(packed.astype(int) - 127).max() < 12


def test_integers_share_one_range_so_that_spectra_keep_their_shape():
    r = make_recipe(manifest("uint16", [10, 5], [100, 4000]), Declaration(), with_changes({"prepare.size": 16}).prepare)
    assert (r.low, r.high) == ([0, 0], [4000, 4000])
    floats = manifest("float32", [0.0, 0.1], [0.5, 0.9], scale=1.0)
    r = make_recipe(floats, Declaration(), with_changes({"prepare.size": 16}).prepare)
    assert r.high == [0.9, 0.9]


def test_facts_in_files_are_used_for_keys_that_dataset_yaml_does_not_set():
    facts = {
        "names": ["a", "b", "c"],
        "wavelengths": [380.0, 550.0, 800.0],
        "good": [True, False, True],
        "nodata": -9.0,
    }
    r = make_recipe(manifest("int16", [0] * 3, [9] * 3, **facts), Declaration(), with_changes({}).prepare)
    assert (r.bands, r.wavelengths, r.chosen, r.nodata) == (["a", "c"], [380.0, 800.0], [0, 2], -9.0)
    assert r.modalities == {"uv": [0], "nir": [1]}
    declared = Declaration(bands=["x", "y", "z"], modalities={"one": ["x", "y"], "two": ["z"]})
    r = make_recipe(manifest("int16", [0] * 3, [9] * 3, **facts), declared, with_changes({}).prepare)
    assert (r.bands, r.modalities) == (["x", "z"], {"one": [0], "two": [1]})
    wrong = Declaration(bands=["x", "y", "z"], modalities={"one": ["x", "yy"], "two": ["z"]})
    with pytest.raises(InputError, match="yy"):
        make_recipe(manifest("int16", [0] * 3, [9] * 3, **facts), wrong, with_changes({}).prepare)


def test_pixels_without_data_are_background():
    for nodata, value in ((np.nan, np.nan), (-9999.0, -9999.0)):
        image = np.full((2, 16, 16), 0.5, np.float32)
        image[:, :4] = value
        table = manifest("float32", [0.0] * 2, [1.0] * 2)
        r = make_recipe(
            table, Declaration(nodata=nodata), with_changes({"prepare.size": 16, "prepare.background": 0.25}).prepare
        )
        packed = conform(image, r) / r.full_scale
        np.testing.assert_allclose(packed[:, :4], 0.25, atol=1e-4)
        np.testing.assert_allclose(packed[:, 4:], 0.5, atol=1e-4)


@pytest.mark.parametrize("bands", ["all", {"pca": 2}])
def test_the_background_can_be_the_mean_of_the_organisms(bands):
    pixels = RNG.integers(0, 256, (500, 3)).astype(float)
    calls = []

    def sample(*arguments: object) -> np.ndarray:
        calls.append(arguments)
        return pixels

    table, names = manifest("uint8", [0] * 3, [255] * 3, nodata=7.0), ["a", "b", "mask"]
    settings = {"prepare.size": 16, "prepare.background": "mean", "prepare.bands": bands}
    r = make_recipe(table, Declaration(bands=names, mask="mask"), with_changes(settings).prepare, sample)
    assert calls == [(2, 7.0, [0, 1])]
    planes = (pixels[:, :2] / 255).astype(np.float32).T[..., None]
    expected = (r.mix.apply(planes) if r.mix else planes).mean((1, 2))
    np.testing.assert_allclose(r.background, expected, atol=1e-5)
    assert len(set(r.background)) == 2
    image = RNG.integers(8, 256, (3, 8, 16), dtype=np.uint8)
    image[2], image[2, :, 8:] = 1, 0
    packed = conform(image, r)
    background = np.broadcast_to(r.packed_background, (2, 16, 16))
    assert (packed[:, :4] == background[:, :4]).all()  # padding
    assert (packed[:, :, 8:] == background[:, :, 8:]).all()  # outside the mask
    assert (packed[:, 4:12, :8] != background[:, 4:12, :8]).any()
    make_recipe(table, Declaration(bands=names), with_changes(settings | {"prepare.mask": "ignore"}).prepare, sample)
    assert calls[1][:2] == (None, None)
    noisy = manifest("uint8", [0] * 3, [255] * 3, nodata=7.0, good=[True, False, True])
    make_recipe(noisy, Declaration(), with_changes(settings | {"prepare.bands": "all"}).prepare, sample)
    assert calls[2] == (None, 7.0, [0, 2])  # a bad band is not used to find pixels without data


def test_an_automatic_background_is_the_usual_border_in_the_units_of_the_network():
    table, declaration = manifest("uint16", [100] * 3, [2000] * 3, nodata=None), Declaration()
    prepare = with_changes({"prepare.size": 16, "prepare.background": "auto"}).prepare
    r = make_recipe(table, declaration, prepare, border=Border(np.array([500.0, 1000.0, 2000.0]), opaque=True))
    np.testing.assert_allclose(r.background, [0.25, 0.5, 1.0], atol=1e-6)
    image = RNG.integers(100, 2000, (3, 8, 16), dtype=np.uint16)
    assert (conform(image, r)[:, :4] == r.packed_background).all()
    assert make_recipe(table, declaration, prepare).background == [0.0]


@pytest.mark.parametrize(
    ("mask", "opaque", "background", "cut_outs"),
    [("apply", False, 0.0, True), ("apply", True, 0.5, False), ("ignore", False, 0.5, False)],
)
def test_images_are_cut_outs_only_if_most_of_their_borders_are_transparent(mask, opaque, background, cut_outs):
    table = manifest("uint8", [0] * 3, [255] * 3).assign(alpha=True)
    prepare = with_changes({"prepare.size": 16, "prepare.background": "auto", "prepare.mask": mask}).prepare
    r = make_recipe(table, Declaration(), prepare, border=Border(np.full(3, 127.5), opaque))
    assert r.background == pytest.approx([background] * len(r.background))
    assert r.cut_outs == cut_outs


@pytest.mark.parametrize(
    ("settings", "declared", "alpha", "needed"),
    [
        ({}, {}, [False, False], True),
        ({}, {}, [True, True], True),
        ({"background": 1.0}, {}, [True, False], True),
        ({"background": 1.0, "mask": "ignore"}, {}, [True, False], False),
        ({}, {"mask": "c"}, [False, False], False),
        ({"mask": "ignore"}, {"mask": "c"}, [True, True], True),
        ({}, {"nodata": 0.0}, [False, False], False),
        ({"fit": "tile"}, {}, [False, False], False),
        ({"background": 0.3}, {}, [False, False], False),
        ({"background": "mean"}, {}, [False, False], False),
    ],
)
def test_borders_are_looked_at_only_where_the_recipe_depends_on_them(settings, declared, alpha, needed):
    table = pd.concat([manifest("uint8", [0] * 3, [255] * 3)] * len(alpha), ignore_index=True).assign(alpha=alpha)
    prepare = with_changes({f"prepare.{k}": v for k, v in {"background": "auto", **settings}.items()}).prepare
    assert needs_border(table, Declaration(bands=["a", "b", "c"], **declared), prepare) == needed


@pytest.mark.parametrize(
    ("background", "text"),
    [([0.0], "0"), ([0.5] * 3, "0.5"), ([1.0, 0.524, 0.5], "1, 0.52, 0.5"), ([0.1, 0.9, 0.2, 0.3, 0.4], "0.1 to 0.9")],
)
def test_a_background_is_shown_in_few_words(background, text):
    assert levels(background) == text


def test_a_background_stored_as_one_number_is_still_read():
    stored = recipe().model_dump() | {"background": 0.5}
    assert Recipe.model_validate(stored).background == [0.5]


def test_a_mask_can_crop_the_image_to_the_organism():
    image = np.full((2, 64, 64), 40, np.uint8)
    image[0, 8:24, 8:24], image[1] = 200, 0
    image[1, 8:24, 8:24] = 1
    assert (conform(image, recipe(2, mask_band=1, mask="crop")) == 200).all()


def test_principal_components_and_the_colours_of_uv_vision_replace_the_bands():
    image = RNG.integers(0, 256, (4, 16, 16), dtype=np.uint8)
    table, names = manifest("uint8", [0] * 4, [255] * 4), ["u", "s", "m", "l"]
    pixels = RNG.integers(0, 256, (500, 4)).astype(float)
    prepare = with_changes({"prepare.size": 16, "prepare.bands": {"pca": 2}}).prepare
    r = make_recipe(table, Declaration(bands=names), prepare, lambda *_: pixels)
    assert r.bands == ["pc1", "pc2"]
    assert conform(image, r).shape == (2, 16, 16)
    cones = {"usml": {name: [name] for name in names}}
    r = make_recipe(table, Declaration(bands=names), with_changes({"prepare.size": 16, "prepare.bands": cones}).prepare)
    pure = np.zeros((4, 16, 16), np.uint8)
    pure[0] = 255
    assert conform(pure, r)[:, 0, 0].tolist() == [128, 85, 255, 64]  # x ½, y ⅓, z 1, luminance ¼


def test_the_bands_of_one_modality_are_placed_where_they_are_in_a_full_image():
    image = RNG.integers(1, 256, (4, 16, 16), dtype=np.uint8)
    names = ["red", "uv1", "uv2", "mask"]
    declared = Declaration(bands=names, mask="mask", modalities={"vis": ["red"], "uv": ["uv1", "uv2"]})
    r = make_recipe(manifest("uint8", [0] * 4, [255] * 4), declared, with_changes({"prepare.size": 16}).prepare)
    only_uv = conform(image[1:4], r, "uv")
    np.testing.assert_array_equal(only_uv[1:], conform(image, r, "uv")[1:])
    assert (only_uv[0] == 0).all()
    with pytest.raises(ValueError, match="or only uv: uv1, uv2, the mask"):
        conform(image[1:3], r, "uv")
    with pytest.raises(ValueError, match="must be"):
        conform(image[1:3], r)
