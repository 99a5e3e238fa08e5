from __future__ import annotations

import pytest
import torch

from simtrail.augment import geometry
from simtrail.augment.background import Background
from simtrail.augment.draws import Draws
from simtrail.augment.views import LocalViews, TwoViews
from simtrail.data.recipe import Recipe

SEVEN = ["uv", "red", "nir", "green", "violet", "blue", "swir"]
AUGMENTATIONS = {
    "geometry.crop": {"min_area": 0.2},
    "geometry.horizontal_flip": {},
    "geometry.vertical_flip": {},
    "geometry.rotation": {"degrees": 90.0},
    "geometry.perspective": {"distortion": 0.5},
    "geometry.thin_plate_spline": {"displacement": 0.3},
    "spectral.shift": {"nm": 40.0},
    "spectral.gain": {"reach": 0.5, "width": 50.0},
    "spectral.gamma": {"reach": 0.5},
    "spectral.noise": {"std": 0.1},
    "spectral.band_dropout": {"share": 0.5},
    "spectral.group_dropout": {},
    "spectral.random_bands": {"n": 3},
    "color.jitter": {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2},
    "color.grayscale": {},
    "color.posterize": {"bits": 2},
    "texture.blur": {"sigma": 20.0},
    "texture.sharpness": {"factor": 2.0},
    "texture.erasing": {"max_area": 0.6},
}
EACH = pytest.mark.parametrize("name", AUGMENTATIONS)


def recipe(bands: list[str], background: float = 0.5, size: int = 16) -> Recipe:
    scale = {"low": [0.0] * len(bands), "high": [255.0] * len(bands)}
    packing = {"fit": "pad", "background": background, "composite": False, "dtype": "uint16", "mask_band": None}
    waves = [{"uv": 360.0, "violet": 420.0, "blue": 460.0, "green": 540.0, "red": 620.0}.get(b, 900.0) for b in bands]
    waves = [nm + 300 * (b == "swir") for nm, b in zip(waves, bands, strict=True)]
    groups = {"first": [0], "others": list(range(1, len(bands)))} if len(bands) > 1 else {}
    shape = {"size": size, "file_dtype": "uint16", "file_bands": len(bands), "bands": bands}
    return Recipe(**shape, wavelengths=waves, modalities=groups, **packing, **scale)


def on(names: list[str], p: float) -> dict[str, float]:
    return {f"{name}.{key}": value for name in names for key, value in ({"p": p} | AUGMENTATIONS[name]).items()}


def two_views(augment, names: list[str], p: float = 1.0, bands: list[str] = SEVEN, **more: float) -> TwoViews:
    return TwoViews(augment(on(names, p) | more), recipe(bands))


def pictures(images: int = 8, bands: int = 7, size: int = 16) -> torch.Tensor:
    return torch.rand(images, bands, size, size, generator=torch.Generator().manual_seed(0))


@EACH
def test_each_augmentation_changes_a_view_with_its_probability(augment, name):
    images = pictures(1000)
    changed = two_views(augment, [name], 0.3)(images, 0).nan_to_num(2) - images.repeat(2, 1, 1, 1)
    fractions = (changed.abs().amax((1, 2, 3)) > 1e-5).float().reshape(2, 1000).mean(1)
    assert ((fractions - 0.3).abs() < 0.06).all()


@EACH
def test_an_augmentation_changes_every_view_with_probability_1_and_none_with_0(augment, name):
    images = pictures(20)
    results = (two_views(augment, [name], p)(images, 0).nan_to_num(2) for p in (1.0, 0.0))  # bands left out are NaN
    changed, unchanged = ((views - images.repeat(2, 1, 1, 1)).abs() for views in results)
    assert (changed.amax((1, 2, 3)) > 1e-5).all()
    assert unchanged.max() < 1e-5


@pytest.mark.parametrize(
    "name",
    [k for k in AUGMENTATIONS if not any(part in k for part in ("flip", "grayscale", "dropout", "random_bands"))],
)
def test_every_view_has_different_draws(augment, name):
    views = two_views(augment, [name])(pictures(1, size=64).repeat(20, 1, 1, 1), 0)
    assert len(views.flatten(1).unique(dim=0)) == (6 if name == "color.posterize" else 40)


def test_augmentations_are_drawn_independently(augment):
    flips = [two_views(augment, [f"geometry.{name}_flip"], 0.5) for name in ("horizontal", "vertical")]
    images = pictures(500)
    flipped = [(views(images, 0) - images.repeat(2, 1, 1, 1)).abs().amax((1, 2, 3)) > 0.01 for views in flips]
    both = two_views(augment, ["geometry.horizontal_flip", "geometry.vertical_flip"], 0.5)(images, 0)
    turned = (both - images.flip(2, 3).repeat(2, 1, 1, 1)).abs().amax((1, 2, 3)) < 0.01
    assert turned.equal(flipped[0] & flipped[1])
    assert abs(turned.float().mean() - 0.25) < 0.06


def test_the_seed_decides_the_views_whatever_was_drawn_before(augment):
    views, images = two_views(augment, list(AUGMENTATIONS), 0.5), pictures()
    first = views(images, 1, 2).nan_to_num(2)
    torch.rand(3)
    other = views(images, 1, 3).nan_to_num(2)
    assert views(images, 1, 2).nan_to_num(2).equal(first)
    assert not other.equal(first)


def test_a_part_of_a_batch_has_the_same_views_as_in_the_whole_batch(augment):
    views, images = two_views(augment, list(AUGMENTATIONS), 0.5), pictures(9)
    whole = views(images, 5).reshape(2, 9, 7, 16, 16)
    for start, stop in ((0, 4), (4, 5), (5, 9)):
        part = views(images[start:stop], 5, start=start, total=9).reshape(2, -1, 7, 16, 16)
        torch.testing.assert_close(part, whole[:, start:stop], rtol=0, atol=1e-5, equal_nan=True)


def test_the_callers_batch_and_generator_stay_unchanged(augment):
    images = pictures()
    before = images.clone()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    two_views(augment, list(AUGMENTATIONS))(images, 0)
    assert images.equal(before)
    assert torch.rand(2).equal(expected)


def test_an_error_in_an_augmentation_is_raised_not_hidden(augment, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("broken")

    monkeypatch.setattr(geometry.F, "grid_sample", broken)
    with pytest.raises(RuntimeError, match="broken"):
        two_views(augment, [])(pictures(), 0)


@pytest.mark.parametrize(("bands", "size"), [(1, 8), (3, 15), (7, 32), (408, 16)])
def test_all_augmentations_work_for_any_number_of_bands(augment, bands, size):
    names = SEVEN if bands == 7 else [f"band{i}" for i in range(bands)]
    images = pictures(4, bands, size)
    views = two_views(augment, list(AUGMENTATIONS), bands=names)(images, 0)
    assert views.shape == (8, bands, size, size)
    assert views.dtype == torch.float32
    missing = views.isnan().flatten(2)
    assert missing.equal(missing[:, :, :1].expand_as(missing))
    assert bands == 1 or missing.any()
    assert not missing.all(2).all(1).any()
    present = views.flatten(2)[~missing[:, :, 0]]
    assert present.isfinite().all()
    assert present.min() >= 0
    assert present.max() <= 1
    assert (present.std(1) > 0).all()


def test_16_bit_values_are_kept_without_augmentation(augment):
    values = (pictures() * 65535).round() / 65535
    views = two_views(augment, [])(values, 0)
    assert (views * 65535).round().equal((values * 65535).round().repeat(2, 1, 1, 1))


def test_outside_the_image_a_view_has_the_background_of_the_data_set(augment):
    views = two_views(augment, ["geometry.rotation"], **{"geometry.rotation.degrees": 45.0})
    corners = views(torch.ones(50, 7, 16, 16), 0)[:, :, 0, 0]
    assert set(corners.mul(1e6).round().unique().tolist()) == {500008.0, 1e6}  # 32768/65535


def test_settings_without_effect_on_these_bands_are_named(augment):
    settings = on(["color.jitter", "color.grayscale"], 0.5)
    assert TwoViews(augment(settings), recipe(SEVEN)).without_effect() == []
    lines = TwoViews(augment(settings), recipe(["uv", "nir"])).without_effect()
    assert [line.split(":")[0].removeprefix("pretrain.augment.color.") for line in lines] == [
        "jitter.saturation",
        "jitter.hue",
        "grayscale.p",
    ]
    assert TwoViews(augment({}), recipe(["uv", "nir"])).without_effect() == []


@pytest.mark.gpu
def test_a_gpu_draws_the_same_views(augment):
    views, images = (
        two_views(augment, [name for name in AUGMENTATIONS if name != "color.posterize"]),
        pictures(16, 7, 32),
    )
    torch.testing.assert_close(views(images.cuda(), 0).cpu(), views(images, 0), rtol=0, atol=1e-3, equal_nan=True)


def test_coordinates_are_added_to_the_views_and_change_nothing_else(augment):
    settings, images = augment(on([*AUGMENTATIONS], 0.7)), pictures(20)
    plain = TwoViews(settings, recipe(SEVEN))(images, 3)
    views = TwoViews(settings, recipe(SEVEN), coordinates=True)(images, 3)
    torch.testing.assert_close(views[:, :7], plain, rtol=0, atol=0, equal_nan=True)
    draws = Draws((3,), 20)
    positions = geometry.sampling_grid(images.repeat(2, 1, 1, 1), settings.geometry, Background([0.5], 65535), draws)
    torch.testing.assert_close(views[:, 7:], positions, rtol=0, atol=0, equal_nan=True)
    assert 0 < positions.isnan().float().mean() < 0.5


def test_masked_background_keeps_its_value_when_colours_and_spectra_change(augment):
    images = pictures(20)
    images[:, :, :, 8:] = 32768 / 65535
    changing = ("color", "spectral.shift", "spectral.gain", "spectral.gamma", "spectral.noise")
    names = [name for name in AUGMENTATIONS if name.startswith(changing)]
    settings, plain = augment(on(names, 1.0)), recipe(SEVEN)
    masked = plain.model_copy(update={"composite": True, "mask_band": 7, "file_bands": 8})
    assert (plain.masked, masked.masked) == (False, True)
    views = TwoViews(settings, masked)(images, 0)
    assert (views[..., 8:] == images[0, 0, 0, 8]).all()
    unmasked = TwoViews(settings, plain)(images, 0)
    assert views[..., :8].equal(unmasked[..., :8])
    assert (unmasked[..., 8:] != images[0, 0, 0, 8]).any()
    opaque = masked.model_copy(update={"mask_band": None, "alpha": True, "opaque": True})
    assert TwoViews(settings, opaque)(images, 0).equal(unmasked)  # what happens to be of the background's value changes


def test_background_of_the_image_has_no_coordinates_even_if_its_values_change(augment):
    images = pictures(6)
    images[:, :, :, 8:] = 32768 / 65535
    settings = on(["geometry.horizontal_flip", "color.jitter", "spectral.noise", "texture.erasing"], 1.0)
    positions = TwoViews(augment(settings), recipe(SEVEN), coordinates=True)(images, 0)[:, 7:]
    assert positions[..., :8].isnan().all()
    x = (15 - 2 * torch.arange(8.0, 16.0)) / 16
    torch.testing.assert_close(positions[:, 0, :, 8:], x.expand(12, 16, 8), rtol=0, atol=1e-5)


def test_local_views_show_small_parts_at_half_the_size_and_change_no_other_draws(augment):
    settings, size = augment({"geometry.crop.p": 1.0, "color.strength": 0.0, "texture.strength": 0.0}), 32
    centres = (torch.arange(size) + 0.5) / size
    ramps = torch.stack([centres.expand(size, size), centres[:, None].expand(size, size)]).expand(60, 2, -1, -1)
    xy = recipe(["x", "y"])
    views = LocalViews(settings, xy, size, 3)(ramps, 5)
    assert views.shape == (180, 2, 16, 16)
    width, height = views[:, 0, 8, -1] - views[:, 0, 8, 0], views[:, 1, -1, 8] - views[:, 1, 0, 8]
    area = (width * height).abs() * (16 / 15) ** 2
    assert 0.04 < area.min() < 0.09
    assert 0.2 < area.max() < 0.26
    first, second, third = views.chunk(3)
    assert not first.equal(second)
    assert not first.equal(third)
    assert views[:120].equal(LocalViews(settings, xy, size, 2)(ramps, 5))
    part = LocalViews(settings, xy, size, 3)(ramps[20:30], 5, start=20, total=60)
    assert part.equal(views.unflatten(0, (3, 60))[:, 20:30].flatten(0, 1))
