from __future__ import annotations

import math
from copy import deepcopy

import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline

from simtrail.augment.background import Background
from simtrail.augment.draws import Draws
from simtrail.augment.spectral import drop_bands, perturb, without_effect
from simtrail.params import Spectral, change

OFF = {
    "strength": 1.0,
    "shift": {"p": 0.0, "nm": 20.0},
    "gain": {"p": 0.0, "reach": 0.3, "width": 50.0},
    "gamma": {"p": 0.0, "reach": 0.4},
    "noise": {"p": 0.0, "std": 0.05},
    "band_dropout": {"p": 0.0, "share": 0.5},
    "group_dropout": {"p": 0.0},
    "random_bands": {"p": 0.0, "n": 3},
}
AUGMENTATIONS = ["shift", "gain", "gamma", "noise", "band_dropout", "group_dropout", "random_bands"]
NM = [620.0, 540.0, 460.0, 395.0, 370.0, 345.0, None]  # of seven bands that are not in the order of their wavelengths
GROUPS = {"rgb": [0, 1, 2], "uv": [3, 4, 5], "height": [6]}
CUBE = [400.0 + 1.5 * i for i in range(408)]
GREY, BLACK = Background([0.5], 65535), Background([0.0], 65535)
EACH = pytest.mark.parametrize("name", AUGMENTATIONS)


def settings(*names: str, p: float = 1.0, **changes: float) -> Spectral:
    """Everything off except the named augmentations; changes have the form gain__reach=0.1."""
    tree = deepcopy(OFF)
    change(tree, {f"{name}.p": p for name in names} | {k.replace("__", "."): v for k, v in changes.items()})
    return Spectral(**tree)


def pictures(views: int = 6, bands: int = 7, size: int = 8, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
    return torch.empty(views, bands, size, size).uniform_(low, high, generator=torch.Generator().manual_seed(0))


def table(views: int = 6) -> torch.Tensor:
    """Numbers for fixed draws, below 0.9, so that rows are also chosen with p = 0.9."""
    return torch.rand(views, 1024, generator=torch.Generator().manual_seed(1)) * 0.9


def perturbed(views, params, draws, nm=NM, groups=GROUPS, background=GREY) -> torch.Tensor:
    return drop_bands(perturb(views.clone(), params, nm, groups, background, draws), params, groups, draws)


def changed_bands(before: torch.Tensor, after: torch.Tensor) -> list[int]:
    return (before != after).flatten(2).any(2).any(0).nonzero()[:, 0].tolist()


@pytest.mark.parametrize("nm", [NM, NM[::-1], [*CUBE[::60], None]])
def test_shift_reads_each_spectrum_at_wavelengths_that_are_longer_by_the_shift(fixed_draws, nm):
    images, u = pictures(bands=len(nm)), table()
    ours = perturbed(images, settings("shift", shift__nm=40.0), fixed_draws(u), nm)
    order = sorted((i for i, w in enumerate(nm) if w is not None), key=lambda i: nm[i])
    known = [nm[i] for i in order]
    for view, number, result in zip(images.double().numpy(), u[:, 0].double().numpy(), ours.numpy(), strict=True):
        for y, x in np.ndindex(view.shape[1:]):
            expected = view[:, y, x].copy()
            expected[order] = np.interp(np.array(known) + 40 * (2 * number - 1), known, view[order, y, x])
            np.testing.assert_allclose(result[:, y, x], expected, rtol=0, atol=1e-5)


def test_gain_is_a_cubic_spline_over_the_wavelength_within_its_range(fixed_draws):
    images, u = pictures(bands=408, size=2, low=0.1, high=0.6), table()
    ours = perturbed(
        images, settings("gain", gain__width=40.0), fixed_draws(u), CUBE, {"vnir": list(range(408))}, BLACK
    )
    for view, numbers, result in zip(images.double(), 2 * u.double().numpy() - 1, ours, strict=True):
        knots = CUBE[0] + 40.0 * np.arange(-3, 21)  # scipy's splines start two knots earlier
        spline = BSpline(knots, numbers[:20], 3)(CUBE)
        factors = result.double() / view
        np.testing.assert_allclose(factors, np.broadcast_to((1 + 0.3 * spline)[:, None, None], (408, 2, 2)), atol=1e-5)
        assert (factors - 1).abs().max() <= 0.3
        assert factors.std() > 0.03


def test_a_wide_gain_changes_less_from_band_to_band_than_a_narrow_one():
    images = torch.full((200, 408, 1, 1), 0.4)
    steps = []
    for width in (20.0, 100.0):
        params = settings("gain", gain__width=width)
        views = perturbed(images, params, Draws((0,), 100), CUBE, {"vnir": list(range(408))})
        steps.append(float(views.diff(dim=1).abs().mean()))
        assert (views.mean((1, 2, 3)) - 0.4).abs().max() <= 0.4 * 0.3
    assert 4 < steps[0] / steps[1] < 6


def test_gamma_is_one_power_and_one_factor_for_all_bands_of_a_modality(fixed_draws):
    images, u = pictures(), table()
    ours = perturbed(images, settings("gamma"), fixed_draws(u))
    for view, numbers, result in zip(images.double(), 2 * u.double() - 1, ours, strict=True):
        for group, bands in enumerate(GROUPS.values()):
            gamma, gain = (0.4 * numbers[group]).exp(), (0.4 / 2 * numbers[3 + group]).exp()
            expected = (gain * view[bands] ** gamma).clamp(0, 1)
            torch.testing.assert_close(result[bands].double(), expected, rtol=0, atol=1e-5)


def test_bands_of_no_modality_have_no_gamma():
    images = pictures()
    after = perturbed(images, settings("gamma"), Draws((0,), 3), groups={"uv": [3, 4, 5]})
    assert changed_bands(images, after) == [3, 4, 5]


@pytest.mark.parametrize("name", ["shift", "gain"])
def test_bands_of_unknown_wavelength_have_no_shift_and_no_gain(name):
    images = pictures()
    assert changed_bands(images, perturbed(images, settings(name), Draws((0,), 3))) == [0, 1, 2, 3, 4, 5]
    one = [None, 500.0, *[None] * 5]
    assert perturbed(images, settings(name), Draws((0,), 3), one).equal(images)


def test_noise_is_one_normal_offset_for_each_band_of_a_view():
    images = pictures(2000, size=2, low=0.4, high=0.6)
    offsets = perturbed(images, settings("noise", noise__std=0.02), Draws((0,), 1000), background=BLACK) - images
    torch.testing.assert_close(offsets, offsets[:, :, :1, :1].expand_as(offsets), rtol=0, atol=1e-6)
    offsets = offsets[:, :, 0, 0]
    assert offsets.mean().abs() < 0.0005
    # normal numbers with standard deviations uniform up to 0.02 have variance 0.02² / 3 and kurtosis 3 · 9 / 5
    assert abs(offsets.std() - 0.02 / 3**0.5) < 0.0005
    assert abs((offsets**4).mean() / (offsets**2).mean() ** 2 - 5.4) < 0.6
    assert np.abs(np.corrcoef(offsets.T) - np.eye(7)).max() < 0.1


@pytest.mark.parametrize("u", [0.0, 1 - 2**-24])
def test_noise_is_finite_for_the_smallest_and_the_largest_draw(fixed_draws, u):
    numbers = torch.full((6, 64), u)
    numbers[:, 0] = 0
    views = perturbed(pictures(), settings("noise", p=0.5, noise__std=0.5), fixed_draws(numbers))
    assert views.isfinite().all()


@pytest.mark.parametrize(
    ("bands", "fraction", "most"), [(7, 0.5, 4), (7, 0.1, 1), (7, 1.0, 6), (408, 0.3, 123), (2, 1, 1)]
)
def test_dropped_bands_are_missing_and_at_most_a_fraction_of_all(bands, fraction, most):
    images = pictures(400, bands, 2, low=0.6)
    params = settings("band_dropout", band_dropout__share=float(fraction))
    after = perturbed(images, params, Draws((0,), 200), [None] * bands, {"all": list(range(bands))})
    missing = after.isnan().all(3).all(2)
    assert after[~missing].equal(images[~missing])
    counts = missing.sum(1)
    assert counts.min() >= 1
    assert counts.max() <= most
    assert abs(counts.double().mean() - (1 + most) / 2) < most / 12 + 0.01
    assert missing.double().mean(0).std() < 0.07  # all bands equally often


def test_a_dropped_modality_is_missing_and_the_other_modalities_stay():
    images = pictures(600, size=2, low=0.6)
    missing = perturbed(images, settings("group_dropout"), Draws((0,), 300)).isnan()
    dropped = [tuple(view.nonzero()[:, 0].tolist()) for view in missing[:, :, 0, 0]]
    assert missing.equal(missing[:, :, :1, :1].expand_as(missing))
    assert set(dropped) == {tuple(bands) for bands in GROUPS.values()}
    assert all(abs(dropped.count(tuple(bands)) / 600 - 1 / 3) < 0.08 for bands in GROUPS.values())


def test_the_only_modality_is_never_dropped():
    images = pictures()
    assert perturbed(images, settings("group_dropout"), Draws((0,), 3), groups={"all": list(range(7))}).equal(images)


@pytest.mark.parametrize(("bands", "n"), [(7, 3), (7, 1), (408, 24)])
def test_random_bands_are_exactly_n_and_differ_between_views(bands, n):
    images = pictures(400, bands, 2)
    params = settings("random_bands", random_bands__n=n)
    kept = ~perturbed(images, params, Draws((0,), 200), [None] * bands, {"all": list(range(bands))}).isnan()
    assert kept.equal(kept[:, :, :1, :1].expand_as(kept))
    kept = kept[:, :, 0, 0]
    assert (kept.sum(1) == n).all()
    assert len(kept[:200].unique(dim=0)) > min(200, math.comb(bands, n)) * 0.8
    assert (kept[:200] != kept[200:]).any(1).double().mean() > 0.8  # the two views of an image
    assert (kept.double().mean(0) - n / bands).abs().max() < 0.1


def test_random_bands_are_drawn_from_the_bands_that_both_dropouts_leave():
    params = settings("band_dropout", "group_dropout", "random_bands", band_dropout__share=0.15, random_bands__n=4)
    kept = ~perturbed(pictures(400), params, Draws((0,), 200)).isnan()[:, :, 0, 0]
    # a modality of three bands or of one is dropped, then one or two other bands; at most four of the rest are kept
    assert set(kept.sum(1).tolist()) <= {2, 3, 4}
    assert torch.stack([~kept[:, bands].any(1) for bands in GROUPS.values()]).any(0).all()


def test_at_least_one_band_stays_if_bands_and_a_modality_are_dropped():
    images = pictures(400, size=2, low=0.6)
    params = settings("band_dropout", "group_dropout", band_dropout__share=1.0)
    kept = ~perturbed(images, params, Draws((0,), 200)).isnan().any(3).any(2)
    assert kept.any(1).all()
    assert kept.sum(1).min() == 1
    assert torch.stack([~kept[:, bands].any(1) for bands in GROUPS.values()]).any(0).all()  # a modality is missing


@pytest.mark.parametrize("name", ["shift", "gain", "gamma", "noise"])
@pytest.mark.parametrize(
    ("values", "full"), [([0.5], 255), ([0.5], 65535), ([0.3], 65535), ([0.0], 255), ([i / 10 for i in range(7)], 255)]
)
def test_pixels_that_are_background_in_all_bands_stay_and_in_some_bands_do_not(name, values, full):
    stored = torch.tensor([round(value * full) / full for value in values])[:, None, None]
    images = pictures(40, low=0.6)
    images[:, :, :4] = stored
    images[:, 2:, 4] = stored.expand(7, 1, 1)[2:, 0]
    after = perturbed(images, settings(name), Draws((0,), 20), background=Background(values, full))
    assert after[:, :, :4].equal(images[:, :, :4])
    assert (after[:, :, 4:] != images[:, :, 4:]).flatten(1).any(1).all()
    assert (after[:, :, 4] != images[:, :, 4]).any()


def test_a_dark_pixel_of_16_bits_does_not_count_as_black_background():
    images = torch.full((40, 7, 2, 2), 2 / 65535)
    after = perturbed(images, settings("gamma"), Draws((0,), 20), background=BLACK)
    assert (after != images).all()


def test_all_together_are_gain_times_the_shifted_spectrum_to_gamma_plus_noise(fixed_draws):
    images, u = pictures(low=0.3, high=0.6), table()
    whole = perturbed(images, settings("shift", "gain", "gamma", "noise"), fixed_draws(u))
    steps = images
    for name in ("shift", "gamma", "gain", "noise"):
        steps = perturbed(steps, settings(name), fixed_draws(u))
    torch.testing.assert_close(whole, steps, rtol=0, atol=1e-5)


@EACH
@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_each_augmentation_changes_a_view_with_its_probability(name, p):
    images = pictures(2000, size=2)
    changed = (perturbed(images, settings(name, p=p), Draws((0,), 1000)) != images).flatten(1).any(1).double()
    assert abs(changed.mean() - p) < (0.03 if p == 0.3 else 1e-9)


@pytest.mark.parametrize("name", ["shift", "gain", "gamma", "noise"])
def test_every_view_has_different_draws(name):
    images = pictures(1).repeat(40, 1, 1, 1)
    assert len(perturbed(images, settings(name), Draws((0,), 20)).flatten(1).unique(dim=0)) == 40


@pytest.mark.parametrize(("bands", "nm"), [(7, NM), (408, CUBE), (1, [550.0]), (3, [None] * 3)])
def test_a_part_of_a_batch_has_the_same_views_as_in_the_whole_batch(bands, nm):
    half = list(range(bands // 2))
    groups = {"first": half, "second": [i for i in range(bands) if i not in half]}
    images, params = pictures(18, bands), settings(*AUGMENTATIONS, p=0.5)
    whole = perturbed(images, params, Draws((5,), 9), nm, groups).unflatten(0, (2, 9))
    assert not whole.isinf().any()
    assert whole.nan_to_num().min() >= 0
    assert whole.nan_to_num().max() <= 1
    for start, stop in ((0, 4), (4, 5), (5, 9)):
        rows = images.unflatten(0, (2, 9))[:, start:stop].flatten(0, 1)
        part = perturbed(rows, params, Draws((5,), stop - start, start, 9), nm, groups)
        torch.testing.assert_close(part.unflatten(0, (2, -1)), whole[:, start:stop], rtol=0, atol=1e-6, equal_nan=True)


def test_switching_one_augmentation_on_does_not_change_the_draws_of_the_others():
    images = pictures(40, low=0.6)
    alone = perturbed(images, settings("group_dropout", p=0.5), Draws((0,), 20)).isnan()
    together = perturbed(images, settings("gamma", "noise", "group_dropout", p=0.5), Draws((0,), 20)).isnan()
    assert together.equal(alone)


def test_views_that_are_not_chosen_are_not_clipped():
    images = pictures(40) * 3 - 1
    after = perturbed(images, settings("noise", p=0.5), Draws((0,), 20))
    same = (after == images).flatten(1).all(1)
    assert 5 < same.sum() < 35
    assert after[~same].min() >= 0
    assert after[~same].max() <= 1


def test_strength_multiplies_all_ranges(fixed_draws):
    names, images = AUGMENTATIONS[:5], pictures()
    ranges = {"shift__nm": 10.0, "gain__reach": 0.15, "gamma__reach": 0.2, "noise__std": 0.025}
    half = perturbed(images, settings(*names, strength=0.5, band_dropout__share=0.8), fixed_draws(table()))
    full = perturbed(images, settings(*names, **ranges, band_dropout__share=0.4), fixed_draws(table()))
    torch.testing.assert_close(half, full, rtol=0, atol=1e-6, equal_nan=True)
    assert perturbed(images, settings(*AUGMENTATIONS, strength=0.0), fixed_draws(table())).equal(images)
    p = settings("group_dropout", "random_bands", strength=0.5)
    assert perturbed(pictures(400), p, Draws((0,), 200)).isnan().flatten(1).any(1).double().mean() == pytest.approx(
        0.75, abs=0.05
    )


def test_settings_without_effect_on_these_bands_are_named_and_do_nothing():
    all_on = settings(*AUGMENTATIONS)
    assert without_effect(all_on, NM, GROUPS) == []
    needs_wavelengths = "needs two bands or more of known wavelength"
    lines = {
        "shift": f"{needs_wavelengths}, all of them different",
        "gain": needs_wavelengths,
        "band_dropout": "needs two bands or more",
        "group_dropout": "needs two modalities or more",
        "random_bands": "needs more bands than n",
    }
    expected = [f"pretrain.augment.spectral.{key}.p: no effect: {reason}" for key, reason in lines.items()]
    assert without_effect(all_on, [550.0], {"grey": [0]}) == expected
    params, images = settings(*lines), pictures(6, 1)
    assert perturbed(images, params, Draws((0,), 3), [550.0], {"grey": [0]}).equal(images)


def test_bands_with_the_same_wavelength_have_no_shift():
    nm, images = [500.0, 550.0, 550.0, *[None] * 4], pictures()
    assert [line.split(".")[3] for line in without_effect(settings("shift", "gain"), nm, GROUPS)] == ["shift"]
    assert perturbed(images, settings("shift"), Draws((0,), 3), nm).equal(images)


def test_settings_that_are_off_are_not_named():
    assert without_effect(settings(), [550.0], {"grey": [0]}) == []
    assert without_effect(settings(*AUGMENTATIONS, strength=0.0), [550.0], {"grey": [0]}) == []
    assert without_effect(settings("shift", "gain", shift__nm=0.0, gain__reach=0.0), [None], {"grey": [0]}) == []


@pytest.mark.gpu
def test_a_gpu_draws_the_same_spectra():
    images, params = pictures(18), settings(*AUGMENTATIONS, p=0.5)
    on_gpu = perturbed(images.cuda(), params, Draws((5,), 9)).cpu()
    torch.testing.assert_close(on_gpu, perturbed(images, params, Draws((5,), 9)), rtol=0, atol=1e-5, equal_nan=True)
