from __future__ import annotations

import math
from copy import deepcopy

import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline

from simtrail.augment.background import Background
from simtrail.augment.draws import Draws
from simtrail.augment.spectral import drop, ineffective, perturb
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
KINDS = ["shift", "gain", "gamma", "noise", "band_dropout", "group_dropout", "random_bands"]
NM = [620.0, 540.0, 460.0, 395.0, 370.0, 345.0, None]  # of seven bands, not in the order of wavelengths
GROUPS = {"rgb": [0, 1, 2], "uv": [3, 4, 5], "height": [6]}
CUBE = [400.0 + 1.5 * i for i in range(408)]
GREY, BLACK = Background([0.5], 65535), Background([0.0], 65535)
EACH = pytest.mark.parametrize("kind", KINDS)


def settings(*kinds: str, p: float = 1.0, **changes: float) -> Spectral:
    """Everything off but the kinds; changes as gain__reach=0.1."""
    tree = deepcopy(OFF)
    change(tree, {f"{kind}.p": p for kind in kinds} | {k.replace("__", "."): v for k, v in changes.items()})
    return Spectral(**tree)


def pictures(views: int = 6, bands: int = 7, size: int = 8, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
    return torch.empty(views, bands, size, size).uniform_(low, high, generator=torch.Generator().manual_seed(0))


def table(views: int = 6) -> torch.Tensor:
    """Numbers for told draws: below 0.9, so that rows are chosen with p = 0.9 too."""
    return torch.rand(views, 1024, generator=torch.Generator().manual_seed(1)) * 0.9


def perturbed(views, params, draws, nm=NM, groups=GROUPS, background=GREY) -> torch.Tensor:
    return drop(perturb(views.clone(), params, nm, groups, background, draws), params, groups, draws)


def changed_bands(before: torch.Tensor, after: torch.Tensor) -> list[int]:
    return (before != after).flatten(2).any(2).any(0).nonzero()[:, 0].tolist()


@pytest.mark.parametrize("nm", [NM, NM[::-1], [*CUBE[::60], None]])
def test_shift_reads_each_spectrum_so_many_nm_further_on(told, nm):
    images, u = pictures(bands=len(nm)), table()
    ours = perturbed(images, settings("shift", shift__nm=40.0), told(u), nm)
    order = sorted((i for i, w in enumerate(nm) if w is not None), key=lambda i: nm[i])
    known = [nm[i] for i in order]
    for view, number, got in zip(images.double().numpy(), u[:, 0].double().numpy(), ours.numpy(), strict=True):
        for y, x in np.ndindex(view.shape[1:]):
            oracle = view[:, y, x].copy()
            oracle[order] = np.interp(np.array(known) + 40 * (2 * number - 1), known, view[order, y, x])
            np.testing.assert_allclose(got[:, y, x], oracle, rtol=0, atol=1e-5)


def test_gain_is_a_cubic_spline_over_the_wavelength_within_its_reach(told):
    images, u = pictures(bands=408, size=2, low=0.1, high=0.6), table()
    ours = perturbed(images, settings("gain", gain__width=40.0), told(u), CUBE, {"vnir": list(range(408))}, BLACK)
    for view, numbers, got in zip(images.double(), 2 * u.double().numpy() - 1, ours, strict=True):
        knots = CUBE[0] + 40.0 * np.arange(-3, 21)  # scipy's splines begin two knots early
        spline = BSpline(knots, numbers[:20], 3)(CUBE)
        factors = got.double() / view
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


def test_gamma_is_one_power_and_one_factor_for_all_bands_of_a_modality(told):
    images, u = pictures(), table()
    ours = perturbed(images, settings("gamma"), told(u))
    for view, numbers, got in zip(images.double(), 2 * u.double() - 1, ours, strict=True):
        for group, bands in enumerate(GROUPS.values()):
            gamma, gain = (0.4 * numbers[group]).exp(), (0.4 / 2 * numbers[3 + group]).exp()
            oracle = (gain * view[bands] ** gamma).clamp(0, 1)
            torch.testing.assert_close(got[bands].double(), oracle, rtol=0, atol=1e-5)


def test_bands_of_no_modality_keep_their_gamma():
    images = pictures()
    after = perturbed(images, settings("gamma"), Draws((0,), 3), groups={"uv": [3, 4, 5]})
    assert changed_bands(images, after) == [3, 4, 5]


@pytest.mark.parametrize("kind", ["shift", "gain"])
def test_bands_of_no_wavelength_are_neither_shifted_nor_given_a_gain(kind):
    images = pictures()
    assert changed_bands(images, perturbed(images, settings(kind), Draws((0,), 3))) == [0, 1, 2, 3, 4, 5]
    one = [None, 500.0, *[None] * 5]
    assert perturbed(images, settings(kind), Draws((0,), 3), one).equal(images)


def test_noise_is_one_normal_offset_to_each_band_of_a_view():
    images = pictures(2000, size=2, low=0.4, high=0.6)
    offsets = perturbed(images, settings("noise", noise__std=0.02), Draws((0,), 1000), background=BLACK) - images
    torch.testing.assert_close(offsets, offsets[:, :, :1, :1].expand_as(offsets), rtol=0, atol=1e-6)
    offsets = offsets[:, :, 0, 0]
    assert offsets.mean().abs() < 0.0005
    # of normal numbers with standard deviations uniform up to 0.02: variance 0.02² / 3, kurtosis 3 · 9 / 5
    assert abs(offsets.std() - 0.02 / 3**0.5) < 0.0005
    assert abs((offsets**4).mean() / (offsets**2).mean() ** 2 - 5.4) < 0.6
    assert np.abs(np.corrcoef(offsets.T) - np.eye(7)).max() < 0.1


@pytest.mark.parametrize("u", [0.0, 1 - 2**-24])
def test_noise_is_finite_at_the_ends_of_its_draws(told, u):
    numbers = torch.full((6, 64), u)
    numbers[:, 0] = 0
    views = perturbed(pictures(), settings("noise", p=0.5, noise__std=0.5), told(numbers))
    assert views.isfinite().all()


@pytest.mark.parametrize(
    ("bands", "share", "most"), [(7, 0.5, 4), (7, 0.1, 1), (7, 1.0, 6), (408, 0.3, 123), (2, 1, 1)]
)
def test_bands_dropped_are_missing_up_to_a_share_of_them(bands, share, most):
    images = pictures(400, bands, 2, low=0.6)
    params = settings("band_dropout", band_dropout__share=float(share))
    after = perturbed(images, params, Draws((0,), 200), [None] * bands, {"all": list(range(bands))})
    gone = after.isnan().all(3).all(2)
    assert after[~gone].equal(images[~gone])
    counts = gone.sum(1)
    assert counts.min() >= 1
    assert counts.max() <= most
    assert abs(counts.double().mean() - (1 + most) / 2) < most / 12 + 0.01
    assert gone.double().mean(0).std() < 0.07  # each as often as the others


def test_a_modality_dropped_is_missing_and_the_others_stay():
    images = pictures(600, size=2, low=0.6)
    gone = perturbed(images, settings("group_dropout"), Draws((0,), 300)).isnan()
    dropped = [tuple(view.nonzero()[:, 0].tolist()) for view in gone[:, :, 0, 0]]
    assert gone.equal(gone[:, :, :1, :1].expand_as(gone))
    assert set(dropped) == {tuple(bands) for bands in GROUPS.values()}
    assert all(abs(dropped.count(tuple(bands)) / 600 - 1 / 3) < 0.08 for bands in GROUPS.values())


def test_the_only_modality_is_never_dropped():
    images = pictures()
    assert perturbed(images, settings("group_dropout"), Draws((0,), 3), groups={"all": list(range(7))}).equal(images)


@pytest.mark.parametrize(("bands", "n"), [(7, 3), (7, 1), (408, 24)])
def test_random_bands_are_exactly_so_many_other_ones_in_every_view(bands, n):
    images = pictures(400, bands, 2)
    params = settings("random_bands", random_bands__n=n)
    stay = ~perturbed(images, params, Draws((0,), 200), [None] * bands, {"all": list(range(bands))}).isnan()
    assert stay.equal(stay[:, :, :1, :1].expand_as(stay))
    stay = stay[:, :, 0, 0]
    assert (stay.sum(1) == n).all()
    assert len(stay[:200].unique(dim=0)) > min(200, math.comb(bands, n)) * 0.8
    assert (stay[:200] != stay[200:]).any(1).double().mean() > 0.8  # the two views of an image
    assert (stay.double().mean(0) - n / bands).abs().max() < 0.1


def test_random_bands_are_drawn_among_those_that_the_other_kinds_leave():
    params = settings("band_dropout", "group_dropout", "random_bands", band_dropout__share=0.15, random_bands__n=4)
    stay = ~perturbed(pictures(400), params, Draws((0,), 200)).isnan()[:, :, 0, 0]
    # a modality of three bands or of one is gone, one band or two of the others, and of those at most four stay
    assert set(stay.sum(1).tolist()) <= {2, 3, 4}
    assert torch.stack([~stay[:, bands].any(1) for bands in GROUPS.values()]).any(0).all()


def test_at_least_one_band_stays_where_bands_and_a_modality_are_dropped():
    images = pictures(400, size=2, low=0.6)
    params = settings("band_dropout", "group_dropout", band_dropout__share=1.0)
    stay = ~perturbed(images, params, Draws((0,), 200)).isnan().any(3).any(2)
    assert stay.any(1).all()
    assert stay.sum(1).min() == 1
    assert torch.stack([~stay[:, bands].any(1) for bands in GROUPS.values()]).any(0).all()  # a modality is gone


@pytest.mark.parametrize("kind", ["shift", "gain", "gamma", "noise"])
@pytest.mark.parametrize(
    ("values", "full"), [([0.5], 255), ([0.5], 65535), ([0.3], 65535), ([0.0], 255), ([i / 10 for i in range(7)], 255)]
)
def test_background_stays_background_and_what_is_like_it_in_some_bands_does_not(kind, values, full):
    stored = torch.tensor([round(value * full) / full for value in values])[:, None, None]
    images = pictures(40, low=0.6)
    images[:, :, :4] = stored
    images[:, 2:, 4] = stored.expand(7, 1, 1)[2:, 0]
    after = perturbed(images, settings(kind), Draws((0,), 20), background=Background(values, full))
    assert after[:, :, :4].equal(images[:, :, :4])
    assert (after[:, :, 4:] != images[:, :, 4:]).flatten(1).any(1).all()
    assert (after[:, :, 4] != images[:, :, 4]).any()


def test_a_dark_pixel_of_16_bits_is_not_taken_for_a_black_background():
    images = torch.full((40, 7, 2, 2), 2 / 65535)
    after = perturbed(images, settings("gamma"), Draws((0,), 20), background=BLACK)
    assert (after != images).all()


def test_all_together_are_gain_times_the_shifted_spectrum_to_gamma_plus_noise(told):
    images, u = pictures(low=0.3, high=0.6), table()
    whole = perturbed(images, settings("shift", "gain", "gamma", "noise"), told(u))
    steps = images
    for kind in ("shift", "gamma", "gain", "noise"):
        steps = perturbed(steps, settings(kind), told(u))
    torch.testing.assert_close(whole, steps, rtol=0, atol=1e-5)


@EACH
@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_each_changes_as_many_views_as_its_probability_says(kind, p):
    images = pictures(2000, size=2)
    changed = (perturbed(images, settings(kind, p=p), Draws((0,), 1000)) != images).flatten(1).any(1).double()
    assert abs(changed.mean() - p) < (0.03 if p == 0.3 else 1e-9)


@pytest.mark.parametrize("kind", ["shift", "gain", "gamma", "noise"])
def test_no_two_views_share_their_draws(kind):
    images = pictures(1).repeat(40, 1, 1, 1)
    assert len(perturbed(images, settings(kind), Draws((0,), 20)).flatten(1).unique(dim=0)) == 40


@pytest.mark.parametrize(("bands", "nm"), [(7, NM), (408, CUBE), (1, [550.0]), (3, [None] * 3)])
def test_a_share_of_a_batch_has_the_views_that_it_has_in_the_whole(bands, nm):
    half = list(range(bands // 2))
    groups = {"first": half, "second": [i for i in range(bands) if i not in half]}
    images, params = pictures(18, bands), settings(*KINDS, p=0.5)
    whole = perturbed(images, params, Draws((5,), 9), nm, groups).unflatten(0, (2, 9))
    assert not whole.isinf().any()
    assert whole.nan_to_num().min() >= 0
    assert whole.nan_to_num().max() <= 1
    for start, stop in ((0, 4), (4, 5), (5, 9)):
        rows = images.unflatten(0, (2, 9))[:, start:stop].flatten(0, 1)
        share = perturbed(rows, params, Draws((5,), stop - start, start, 9), nm, groups)
        torch.testing.assert_close(share.unflatten(0, (2, -1)), whole[:, start:stop], rtol=0, atol=1e-6, equal_nan=True)


def test_switching_one_kind_on_leaves_the_draws_of_the_others():
    images = pictures(40, low=0.6)
    alone = perturbed(images, settings("group_dropout", p=0.5), Draws((0,), 20)).isnan()
    beside = perturbed(images, settings("gamma", "noise", "group_dropout", p=0.5), Draws((0,), 20)).isnan()
    assert beside.equal(alone)


def test_views_not_chosen_are_not_even_cut_off_at_0_and_1():
    images = pictures(40) * 3 - 1
    after = perturbed(images, settings("noise", p=0.5), Draws((0,), 20))
    same = (after == images).flatten(1).all(1)
    assert 5 < same.sum() < 35
    assert after[~same].min() >= 0
    assert after[~same].max() <= 1


def test_strength_multiplies_all_reaches(told):
    kinds, images = KINDS[:5], pictures()
    reaches = {"shift__nm": 10.0, "gain__reach": 0.15, "gamma__reach": 0.2, "noise__std": 0.025}
    half = perturbed(images, settings(*kinds, strength=0.5, band_dropout__share=0.8), told(table()))
    full = perturbed(images, settings(*kinds, **reaches, band_dropout__share=0.4), told(table()))
    torch.testing.assert_close(half, full, rtol=0, atol=1e-6, equal_nan=True)
    assert perturbed(images, settings(*KINDS, strength=0.0), told(table())).equal(images)
    p = settings("group_dropout", "random_bands", strength=0.5)
    assert perturbed(pictures(400), p, Draws((0,), 200)).isnan().flatten(1).any(1).double().mean() == pytest.approx(
        0.75, abs=0.05
    )


def test_settings_that_no_band_can_follow_are_named_and_do_nothing():
    on = settings(*KINDS)
    assert ineffective(on, NM, GROUPS) == []
    two = "needs two bands or more of known wavelength"
    lines = {
        "shift": f"{two}, no two of them alike",
        "gain": two,
        "band_dropout": "needs two bands or more",
        "group_dropout": "needs two modalities or more",
        "random_bands": "needs more bands than n",
    }
    expected = [f"pretrain.augment.spectral.{key}.p: no effect: {why}" for key, why in lines.items()]
    assert ineffective(on, [550.0], {"grey": [0]}) == expected
    params, images = settings(*lines), pictures(6, 1)
    assert perturbed(images, params, Draws((0,), 3), [550.0], {"grey": [0]}).equal(images)


def test_the_same_wavelength_twice_leaves_nothing_to_shift_along():
    nm, images = [500.0, 550.0, 550.0, *[None] * 4], pictures()
    assert [line.split(".")[3] for line in ineffective(settings("shift", "gain"), nm, GROUPS)] == ["shift"]
    assert perturbed(images, settings("shift"), Draws((0,), 3), nm).equal(images)


def test_settings_that_are_off_are_not_named():
    assert ineffective(settings(), [550.0], {"grey": [0]}) == []
    assert ineffective(settings(*KINDS, strength=0.0), [550.0], {"grey": [0]}) == []
    assert ineffective(settings("shift", "gain", shift__nm=0.0, gain__reach=0.0), [None], {"grey": [0]}) == []


@pytest.mark.gpu
def test_a_gpu_draws_the_same_spectra():
    images, params = pictures(18), settings(*KINDS, p=0.5)
    on_gpu = perturbed(images.cuda(), params, Draws((5,), 9)).cpu()
    torch.testing.assert_close(on_gpu, perturbed(images, params, Draws((5,), 9)), rtol=0, atol=1e-5, equal_nan=True)
