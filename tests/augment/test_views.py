from __future__ import annotations

import pytest
import torch
from conftest import with_changes

from simtrail.augment.views import TwoViews
from simtrail.data.recipe import Recipe


def recipe(bands: int = 3, background: float = 0.0, size: int = 32) -> Recipe:
    names = ["red", "green", "blue"] if bands == 3 else [f"b{i}" for i in range(bands)]
    return Recipe(
        size=size, fit="pad", background=background, composite=True, file_dtype="uint8", file_bands=bands,
        mask_band=None, bands=names, dtype="uint8", low=[0] * bands, high=[255] * bands,
    )  # fmt: skip


def views(bands: int = 3, background: float = 0.0, **augment) -> TwoViews:
    none = {"crop_min_area": 1.0, "flip": 0.0, "rotation": 0.0, "color": 0.0, "grayscale": 0.0, "blur": 0.0}
    changes = {f"pretrain.augment.{k}": v for k, v in {**none, **augment}.items()}
    return TwoViews(with_changes(changes).pretrain.augment, recipe(bands, background))


FULL = {
    "crop_min_area": 0.2,
    "flip": 0.5,
    "rotation": 90.0,
    "color": 0.8,
    "color_strength": 1.0,
    "grayscale": 0.2,
    "blur": 0.5,
}


@pytest.mark.parametrize("bands", [1, 3, 7, 408])
def test_any_band_count_gives_two_views_in_range(bands):
    batch = torch.rand(2, bands, 32, 32)
    before = batch.clone()
    result = views(bands, **FULL)(batch, 0, 0, 0)
    assert result.shape == (4, bands, 32, 32)
    assert result.dtype == torch.float32
    assert torch.isfinite(result).all()
    assert 0 <= result.min() <= result.max() <= 1
    assert torch.equal(batch, before)


def test_the_seed_replays_the_views_whatever_was_drawn_before():
    batch, two = torch.rand(4, 3, 32, 32), views(**FULL)
    first = two(batch, 5, 1, 2)
    torch.rand(100)
    assert torch.equal(first, two(batch, 5, 1, 2))
    for other in ((6, 1, 2), (5, 2, 2), (5, 1, 3)):
        assert not torch.equal(first, two(batch, *other))


def test_the_caller_s_random_state_is_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    views(**FULL)(torch.zeros(2, 3, 32, 32), 0)
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize("change", [{"crop_min_area": 0.1}, {"rotation": 90.0}, {"color": 1.0, "color_strength": 1.0}])
@pytest.mark.parametrize("bands", [3, 6])
def test_every_sample_and_every_view_has_its_own_draw(change, bands):
    one = torch.rand(1, bands, 32, 32)
    result = views(bands, **change)(one.expand(8, -1, -1, -1).contiguous(), 0)
    assert len({view.numpy().tobytes() for view in result}) == 16


def test_switched_off_only_the_aspect_of_the_crop_changes():
    batch = torch.rand(3, 6, 32, 32)
    result = views(6, crop_min_area=1.0)(batch, 0)
    assert result.mean().item() == pytest.approx(batch.mean().item(), abs=0.05)


def test_rotation_fills_with_the_background():
    result = views(background=1.0, rotation=45.0)(torch.ones(4, 3, 32, 32), 0)
    torch.testing.assert_close(result, torch.ones_like(result))


def test_bands_beyond_rgb_are_jittered_one_by_one():
    batch = torch.full((1, 6, 32, 32), 0.5)
    means = views(6, color=1.0, color_strength=1.0)(batch, 0)[0].mean((1, 2))
    assert len({round(m.item(), 4) for m in means}) == 6


def test_a_setting_without_effect_is_named():
    assert views(3, **FULL).ineffective() == []
    lines = views(6, **FULL).ineffective()
    assert any("pretrain.augment.grayscale = 0.2: no effect" in line for line in lines)
    assert any("pretrain.augment.color" in line for line in lines)
