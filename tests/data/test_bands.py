from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
from sklearn.decomposition import PCA

from simtrail.data.bands import Mix, choose_bands, make_mix, modalities, regions, tetrahedral
from simtrail.errors import InputError
from simtrail.params import Bands, parse

RNG = np.random.default_rng(0)
NAMES = ["red", "green", "blue", "uv1", "uv2", "uv3", "mask"]
NM = [620.0, 540.0, 460.0, 395.0, 370.0, 345.0, None]
MASK = {6}
USML = {"u": ["uv1", "uv2"], "s": ["blue"], "m": ["green"], "l": ["red"]}
CUBE_NM = np.linspace(380, 2500, 40) + RNG.uniform(-20, 20, 40)
CUBE = [f"b{i}" for i in range(40)]


def rule(**keys) -> Bands:
    return parse(Bands, keys, "params.yaml")


def fails_if_called() -> np.ndarray:
    raise AssertionError("pixels are read although they are not needed")


def chosen(spec, names=NAMES, wavelengths=NM, good=None, left_out=MASK, sample=fails_if_called) -> list[int]:
    return choose_bands(spec, names, wavelengths, good, left_out, sample)


def chosen_of_cube(spec, good=None, sample=fails_if_called) -> list[int]:
    return choose_bands(spec, CUBE, CUBE_NM.tolist(), good, set(), sample)


def correlated(p: int, c: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.uniform(0, 1, (p, 4)) @ rng.uniform(0, 1, (4, c)) / 4 + rng.normal(0, 0.01, (p, c))


def most_even(wavelengths, n: int) -> list[int]:
    """The n bands with the least sum of squared distances to n equal steps, by a search through all choices."""
    order = np.argsort(wavelengths)
    steps = np.linspace(min(wavelengths), max(wavelengths), n)
    cost = {c: sum((wavelengths[i] - s) ** 2 for i, s in zip(c, steps, strict=True)) for c in combinations(order, n)}
    return sorted(min(cost, key=cost.get))


# Groups of bands


def test_regions_begin_at_400_700_1000_and_3000_nm_and_hold_every_band_with_a_wavelength():
    nm = [399.9, 400, None, 699.9, 700, 999, 1000, 2506, 3000, 11000]
    assert regions(nm) == {"uv": [0], "vis": [1, 3], "nir": [4, 5], "swir": [6, 7], "mwir": [8], "lwir": [9]}
    assert regions(None) == regions([None]) == {}


@pytest.mark.parametrize(
    ("names", "wavelengths", "groups"),
    [
        (NAMES[:6], NM[:6], {"rgb": [0, 1, 2], "uv": [3, 4, 5]}),
        (NAMES[:6], None, {"rgb": [0, 1, 2], "uv": [3, 4, 5]}),
        (["UV", "Blue", "Green", "Red"], None, {"rgb": [1, 2, 3], "uv": [0]}),
        (["red", "green", "x"], [620, 540, 350], {"uv": [2], "vis": [0, 1]}),
        (["a", "b", "c", "d"], [1600, 800, None, 500], {"vis": [3], "nir": [1], "swir": [0], "other": [2]}),
        (["red", "green", "blue", "depth"], None, {"rgb": [0, 1, 2], "other": [3]}),
        (["band1", "band2"], None, {"all": [0, 1]}),
        (["grey"], [None], {"all": [0]}),
    ],
)
def test_modalities_follow_from_names_and_wavelengths(names, wavelengths, groups):
    assert modalities(names, wavelengths) == groups


def test_bands_without_names_or_wavelengths_to_group_them_are_one_group_named_by_the_caller():
    assert modalities(["band1", "band2"], None, whole="hyperspectral") == {"hyperspectral": [0, 1]}


def test_declared_modalities_are_used_unchanged():
    declared = {"near": ["blue", "green"], "far": ["uv2", "uv1", "uv3"], "one": ["red"]}
    assert modalities(NAMES[:6], NM[:6], declared) == {"near": [1, 2], "far": [3, 4, 5], "one": [0]}


@pytest.mark.parametrize(
    ("declared", "line"),
    [
        ({"rgb": ["red", "grean"]}, "modalities.rgb = 'grean': no such band; did you mean green?"),
        ({"rgb": ["red", "red"]}, "modalities.rgb = 'red': is the same band as 'red'; give it once"),
        ({"a": ["red"], "b": ["blue", "red"]}, "modalities.b = 'red': is also in modalities.a; keep it in one group"),
        ({"a": ["red", "blue"]}, "modalities: no group contains green; put every band in a group"),
        ({"a": ["red", "blue", "green"], "b": []}, "modalities.b = []: give at least one of red, green, blue"),
    ],
)
def test_errors_in_declared_modalities_are_named(declared, line):
    with pytest.raises(InputError) as error:
        modalities(["red", "green", "blue"], None, declared)
    assert str(error.value) == f"dataset.yaml: {line}"


# Choices


def test_all_means_every_good_band_except_the_mask():
    assert chosen("all") == [0, 1, 2, 3, 4, 5]
    assert chosen("all", good=[True, False, True, True, True, False, True]) == [0, 2, 3, 4]


def test_bands_listed_by_name_or_number_are_chosen_in_file_order_even_if_they_are_bad():
    assert chosen(["uv1", 2, "red"], good=[False] * 7) == [0, 1, 3]


@pytest.mark.parametrize("wavelengths", [[450, 550, 650], [1000.0], [2000, 700, 1200]])
def test_nearest_bands_are_the_result_of_a_full_search(wavelengths):
    expected = sorted(min(range(40), key=lambda i: abs(CUBE_NM[i] - nm)) for nm in wavelengths)
    assert chosen_of_cube(rule(nearest=wavelengths)) == expected


def test_nearest_ignores_bad_bands_and_bands_without_wavelength():
    good = [True, False, True, True, True, True, True]
    assert chosen(rule(nearest=[500]), good=good) == [2]
    assert chosen(rule(nearest=[50]), names=["a", "b"], wavelengths=[None, 60], left_out=set()) == [1]


@pytest.mark.parametrize("n", [1, 2, 3, 5, 9])
def test_uniform_bands_are_the_nearest_to_equal_steps_of_wavelength(n):
    nm = RNG.permutation([400, 404, 409, 420, 480, 490, 700, 760, 1500.0])
    result = choose_bands(rule(uniform=n), CUBE[:9], nm.tolist(), None, set(), fails_if_called)
    assert result == (most_even(nm, n) if n > 1 else [int(np.abs(nm - 950).argmin())])
    assert len(set(result)) == n


def test_uniform_bands_without_wavelengths_are_equal_steps_of_position():
    names = [f"band{i}" for i in range(408)]
    result = choose_bands(rule(uniform=12), names, None, None, set(), fails_if_called)
    assert result == [37 * i for i in range(12)]


def test_uniform_chooses_only_good_bands_with_a_wavelength():
    assert chosen(rule(uniform=5), good=[True, True, False, True, True, True, True]) == [0, 1, 3, 4, 5]


@pytest.mark.parametrize("n", [1, 3, 4])
def test_every_region_gives_the_given_number_of_bands_or_all_its_bands(n):
    result, expected = chosen_of_cube(rule(per_region=n)), []
    for low, high in pairwise([0, 400, 700, 1000, 3000]):
        inside = [i for i in range(40) if low <= CUBE_NM[i] < high]
        nm, m = [CUBE_NM[i] for i in inside], min(n, len(inside))
        middle = int(np.abs(np.array(nm) - (min(nm) + max(nm)) / 2).argmin())
        expected += [inside[i] for i in (most_even(nm, m) if m > 1 else [middle])]
    assert result == sorted(expected)


def test_variance_chooses_the_good_bands_with_the_largest_variance():
    pixels = correlated(500, 40)
    good = RNG.uniform(size=40) < 0.7
    expected = sorted(np.flatnonzero(good), key=lambda i: -np.std([float(v) for v in pixels[:, i]]))[:6]
    assert chosen_of_cube(rule(variance=6), good=good.tolist(), sample=lambda: pixels) == sorted(expected)


@pytest.mark.parametrize("n", [1, 3, 8])
def test_loading_chooses_the_bands_with_the_largest_loadings_weighted_by_variance(n):
    pixels = correlated(500, 40, seed=n)
    pca = PCA(n, svd_solver="full").fit(pixels)
    score = np.zeros(40)
    for ratio, component in zip(pca.explained_variance_ratio_, pca.components_, strict=True):
        score += ratio * abs(component)
    assert chosen_of_cube(rule(loading=n), sample=lambda: pixels) == sorted(np.argsort(-score)[:n])


def test_a_sample_has_all_bands_of_the_file_even_if_some_are_left_out():
    pixels = np.zeros((9, 7))
    pixels[:, 6] = 100 * np.arange(9)
    pixels[:, 4] = np.arange(9)
    assert chosen(rule(variance=1), sample=lambda: pixels) == [4]
    assert chosen(rule(loading=1), sample=lambda: pixels) == [4]


def test_principal_components_use_all_good_bands_and_cones_the_bands_they_name():
    good = [False, True, True, True, True, True, True]
    assert chosen(rule(pca=3), good=good) == [1, 2, 3, 4, 5]
    assert chosen(rule(usml=USML), good=good) == [0, 1, 2, 3, 4]


ALL_NAMES = "red, green, blue, uv1, uv2, uv3, mask"


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        (["rde"], "prepare.bands = 'rde': no such band; did you mean red?"),
        (["nir"], f"prepare.bands = 'nir': no such band; must be one of {ALL_NAMES}"),
        ([8], "prepare.bands = 8: must be from 1 to 7, the number of bands, or a band's name"),
        ([0], "prepare.bands = 0: must be from 1 to 7, the number of bands, or a band's name"),
        ([1, "red"], "prepare.bands = 'red': is the same band as 1; give it once"),
        (["red", "mask"], "prepare.bands = 'mask': the mask never reaches the network; remove it from the list"),
        ([], f"prepare.bands = []: give at least one of {ALL_NAMES}"),
        (rule(usml=USML | {"u": ["uv9"]}), "prepare.bands.usml.u = 'uv9': no such band; did you mean uv3?"),
        (
            rule(usml=USML | {"s": ["blue", "blue"]}),
            "prepare.bands.usml.s = 'blue': is the same band as 'blue'; give it once",
        ),
        (
            rule(usml=USML | {"l": ["mask"]}),
            "prepare.bands.usml.l = 'mask': the mask never reaches the network; remove it from the list",
        ),
        (
            rule(nearest=[560, 680]),
            "prepare.bands.nearest = 680: the nearest band, 'red', is at 620 nm; "
            "give a wavelength within 50 nm of a band",
        ),
        (
            rule(nearest=[550, 530]),
            "prepare.bands.nearest = 530: 'green' at 540 nm is also the nearest band to 550 nm; remove one of the two",
        ),
        (rule(uniform=7), "prepare.bands.uniform = 7: must be at most 6, the number of bands with a wavelength"),
        (
            rule(per_region=4),
            "prepare.bands.per_region = 4: must be at most 3, the number of bands in the largest spectral region",
        ),
        (rule(variance=7), "prepare.bands.variance = 7: must be at most 6, the number of bands to choose from"),
        (rule(loading=7), "prepare.bands.loading = 7: must be at most 6, the number of bands to choose from"),
        (rule(pca=7), "prepare.bands.pca = 7: must be at most 6, the number of bands to choose from"),
    ],
)
def test_an_impossible_choice_is_refused_before_any_pixel_is_read(spec, line):
    with pytest.raises(InputError) as error:
        chosen(spec)
    assert str(error.value) == line


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"uniform": 6}, "uniform = 6: must be at most 5, the number of good bands with a wavelength"),
        (
            {"per_region": 3},
            "per_region = 3: must be at most 2, the number of good bands in the largest spectral region",
        ),
        ({"variance": 6}, "variance = 6: must be at most 5, the number of good bands to choose from"),
        ({"pca": 6}, "pca = 6: must be at most 5, the number of good bands to choose from"),
    ],
)
def test_the_message_counts_good_bands_if_bad_bands_are_left_out(keys, line):
    with pytest.raises(InputError, match=f"^prepare.bands.{line}$"):
        chosen(rule(**keys), wavelengths=[620, 540, 450, 395, 370, 710, None], good=[False, *[True] * 6])


@pytest.mark.parametrize("wavelengths", [None, [None] * 7])
@pytest.mark.parametrize("keys", [{"nearest": [450]}, {"per_region": 2}])
def test_rules_based_on_wavelengths_need_wavelengths(keys, wavelengths):
    with pytest.raises(
        InputError, match=r"^prepare\.bands\.\w+: needs wavelengths in dataset\.yaml or the ENVI header$"
    ):
        chosen(rule(**keys), wavelengths=wavelengths)


def test_uniform_without_wavelengths_counts_all_bands():
    with pytest.raises(InputError, match="must be at most 6, the number of bands to choose from"):
        chosen(rule(uniform=7), wavelengths=None)


@pytest.mark.parametrize("spec", ["all", rule(uniform=1)])
def test_a_file_without_a_good_band_is_refused(spec):
    with pytest.raises(InputError, match=r"^prepare\.bands: no band of the file is marked good; list the bands to use"):
        chosen(spec, good=[False] * 6 + [True])


def test_a_name_that_two_bands_share_is_refused():
    with pytest.raises(InputError, match="'a': bands 1 and 3 have this name; give them different names"):
        chosen(["a"], names=["a", "b", "a"], wavelengths=None, left_out=set())


def test_the_message_about_an_unknown_band_is_short_even_for_hundreds_of_bands():
    with pytest.raises(InputError, match=r"\(408\)$") as error:
        choose_bands(["x"], [f"band{i + 1}" for i in range(408)], None, None, set(), fails_if_called)
    assert len(str(error.value)) < 160


@pytest.mark.parametrize(
    ("tree", "line"),
    [
        ({}, "prepare.bands = None: must have exactly one of the keys nearest, uniform, per_region,"),
        ({"uniform": 3, "pca": 2}, "prepare.bands = uniform and pca: must have exactly one of the keys nearest,"),
        ({"uniform": 0}, "uniform = 0: must be ≥ 1"),
        ({"nearest": [-450]}, "nearest[0] = -450: must be > 0"),
        ({"unifrom": 3}, "unifrom: unknown key; did you mean uniform?"),
        ({"usml": {"u": ["a"], "s": ["b"], "m": ["c"]}}, "usml.l: missing; add it"),
    ],
)
def test_a_section_of_bands_holds_exactly_one_valid_rule(tree, line):
    with pytest.raises(InputError) as error:
        rule(**tree)
    assert str(error.value).startswith(f"params.yaml: {line}")


# Mixtures


def unit_image(c: int, size: int = 9, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 1, (c, size, size)).astype(np.float32)


@pytest.mark.parametrize("spec", ["all", ["red"], rule(uniform=3), rule(variance=2)])
def test_rules_that_only_choose_bands_give_no_mix(spec):
    assert make_mix(spec, NAMES[:6], fails_if_called) is None


@pytest.mark.parametrize(("c", "n"), [(7, 3), (60, 5), (1, 1)])
def test_components_are_those_of_scikit_learn_scaled_by_their_percentiles(c, n):
    pixels = np.clip(correlated(2000, c), 0, 1)
    mix = make_mix(rule(pca=n), [f"b{i}" for i in range(c)], lambda: pixels)
    image = pixels[:100].T.reshape(c, 10, 10).astype(np.float32)
    planes = mix.apply(image)
    pca = PCA(n, svd_solver="full").fit(pixels)
    signs = np.sign([v[np.abs(v).argmax()] for v in pca.components_])
    scores = pca.transform(pixels) * signs
    low, high = np.percentile(scores, [0.1, 99.9], axis=0)
    expected = np.clip((scores[:100] - low) / (high - low), 0, 1).T.reshape(n, 10, 10)
    np.testing.assert_allclose(planes, expected, atol=1e-4)
    np.testing.assert_allclose(np.abs(np.dot(mix.weights, pca.components_.T)), np.eye(n), atol=1e-6)
    assert mix.names == [f"pc{i + 1}" for i in range(n)]


def test_the_scale_of_a_component_clips_one_pixel_in_a_thousand_at_each_end():
    pixels = correlated(5000, 7)
    planes = make_mix(rule(pca=2), NAMES, lambda: pixels).apply(pixels.T[:, :, None].astype(np.float32))
    for plane in planes:
        assert 4 <= (plane == 0).sum() <= 6
        assert 4 <= (plane == 1).sum() <= 6


def test_more_components_than_the_images_have_are_refused():
    pixels = RNG.uniform(0, 1, (300, 2)) @ RNG.uniform(0, 1, (2, 7))
    line = "prepare.bands.pca = 4: must be at most 2, the number of components along which the pixels of the training"
    with pytest.raises(InputError, match=line):
        make_mix(rule(pca=4), NAMES, lambda: pixels)


@pytest.mark.parametrize("spec", [rule(pca=3), rule(usml=USML)])
def test_planes_are_float32_in_the_unit_interval_and_survive_json(spec):
    mix = make_mix(spec, NAMES[:5], lambda: correlated(400, 5))
    restored = Mix.model_validate_json(mix.model_dump_json())
    assert restored == mix
    planes = restored.apply(unit_image(5))
    assert planes.dtype == np.float32
    assert planes.shape == (len(mix.names), 9, 9)
    assert planes.min() >= 0
    assert planes.max() <= 1
    np.testing.assert_array_equal(planes, mix.apply(unit_image(5)))


def test_pure_cones_are_the_corners_of_a_regular_tetrahedron_about_the_achromatic_centre():
    corners = tetrahedral(np.eye(4)).T
    np.testing.assert_allclose(np.linalg.norm(corners, axis=1), 0.75)
    np.testing.assert_allclose([np.linalg.norm(a - b) for a, b in combinations(corners, 2)], np.sqrt(1.5))
    np.testing.assert_allclose(corners.sum(0), 0, atol=1e-12)
    np.testing.assert_allclose(tetrahedral(np.full((4, 1), 0.3)), 0, atol=1e-12)


def test_colours_are_the_means_of_the_corners_weighted_by_relative_catch_whatever_the_brightness():
    catches = RNG.dirichlet(np.full(4, 0.3), 500).T
    expected = [
        sum(c * corner for c, corner in zip(catch, tetrahedral(np.eye(4)).T, strict=True)) for catch in catches.T
    ]
    np.testing.assert_allclose(tetrahedral(catches).T, expected, atol=1e-12)
    np.testing.assert_allclose(tetrahedral(catches * 0.01), tetrahedral(catches), atol=1e-12)
    assert np.linalg.norm(tetrahedral(catches), axis=0).max() <= 0.75


def test_planes_of_usml_are_colour_scaled_by_the_bounds_of_the_tetrahedron_and_luminance():
    names = NAMES[:5]
    mix = make_mix(rule(usml=USML), names, fails_if_called)
    image = unit_image(5)
    planes = mix.apply(image)
    for y, x in np.ndindex(9, 9):
        value = dict(zip(names, image[:, y, x].astype(float), strict=True))
        catch = {cone: np.mean([value[b] for b in bands]) for cone, bands in USML.items()}
        u, s, m, l = (v / sum(catch.values()) for v in catch.values())  # noqa: E741
        # x from −√6/4 to √6/4, y from −√2/4 to √2/2, z from −1/4 to 3/4
        expected = [(l - s) / 2 + 1 / 2, u / 3 + m, u, sum(catch.values()) / 4]
        np.testing.assert_allclose(planes[:, y, x], expected, atol=1e-5)
    assert mix.names == ["x", "y", "z", "luminance"]


def test_black_is_at_the_achromatic_centre_without_luminance():
    mix = make_mix(rule(usml=USML), NAMES[:5], fails_if_called)
    black, grey = mix.apply(np.zeros((5, 2, 2), np.float32)), mix.apply(np.full((5, 2, 2), 0.5, np.float32))
    np.testing.assert_allclose(black[:3], grey[:3], atol=1e-6)
    assert (black[3] == 0).all()
    np.testing.assert_allclose(grey[3], 0.5)
