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


def unread() -> np.ndarray:
    raise AssertionError("pixels are read where nothing needs them")


def chosen(spec, names=NAMES, wavelengths=NM, good=None, left_out=MASK, sample=unread) -> list[int]:
    return choose_bands(spec, names, wavelengths, good, left_out, sample)


def of_cube(spec, good=None, sample=unread) -> list[int]:
    return choose_bands(spec, CUBE, CUBE_NM.tolist(), good, set(), sample)


def correlated(p: int, c: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.uniform(0, 1, (p, 4)) @ rng.uniform(0, 1, (4, c)) / 4 + rng.normal(0, 0.01, (p, c))


def evenest(wavelengths, n: int) -> list[int]:
    """The least sum of squared distances to n equal steps, of all the ways to choose n bands."""
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


def test_bands_that_nothing_tells_apart_are_one_group_named_by_the_caller():
    assert modalities(["band1", "band2"], None, whole="hyperspectral") == {"hyperspectral": [0, 1]}


def test_declared_modalities_stand_as_they_are_declared():
    declared = {"near": ["blue", "green"], "far": ["uv2", "uv1", "uv3"], "one": ["red"]}
    assert modalities(NAMES[:6], NM[:6], declared) == {"near": [1, 2], "far": [3, 4, 5], "one": [0]}


@pytest.mark.parametrize(
    ("declared", "line"),
    [
        ({"rgb": ["red", "grean"]}, "modalities.rgb = 'grean': no such band; did you mean green?"),
        ({"rgb": ["red", "red"]}, "modalities.rgb = 'red': is the same band as 'red'; give it once"),
        ({"a": ["red"], "b": ["blue", "red"]}, "modalities.b = 'red': is in modalities.a too; keep it in one"),
        ({"a": ["red", "blue"]}, "modalities: no group holds green; put every band in one"),
        ({"a": ["red", "blue", "green"], "b": []}, "modalities.b = []: give at least one of red, green, blue"),
    ],
)
def test_declared_modalities_at_fault_are_named(declared, line):
    with pytest.raises(InputError) as fault:
        modalities(["red", "green", "blue"], None, declared)
    assert str(fault.value) == f"dataset.yaml: {line}"


# Choices


def test_all_means_every_good_band_but_the_mask():
    assert chosen("all") == [0, 1, 2, 3, 4, 5]
    assert chosen("all", good=[True, False, True, True, True, False, True]) == [0, 2, 3, 4]


def test_listed_bands_come_in_file_order_by_name_or_number_from_one_even_where_they_are_bad():
    assert chosen(["uv1", 2, "red"], good=[False] * 7) == [0, 1, 3]


@pytest.mark.parametrize("wanted", [[450, 550, 650], [1000.0], [2000, 700, 1200]])
def test_nearest_bands_are_those_of_a_search(wanted):
    slow = sorted(min(range(40), key=lambda i: abs(CUBE_NM[i] - nm)) for nm in wanted)
    assert of_cube(rule(nearest=wanted)) == slow


def test_nearest_passes_over_bad_bands_and_those_without_wavelength():
    good = [True, False, True, True, True, True, True]
    assert chosen(rule(nearest=[500]), good=good) == [2]
    assert chosen(rule(nearest=[50]), names=["a", "b"], wavelengths=[None, 60], left_out=set()) == [1]


@pytest.mark.parametrize("n", [1, 2, 3, 5, 9])
def test_uniform_bands_are_the_nearest_to_equal_steps_of_wavelength(n):
    nm = RNG.permutation([400, 404, 409, 420, 480, 490, 700, 760, 1500.0])
    found = choose_bands(rule(uniform=n), CUBE[:9], nm.tolist(), None, set(), unread)
    assert found == (evenest(nm, n) if n > 1 else [int(np.abs(nm - 950).argmin())])
    assert len(set(found)) == n


def test_uniform_bands_without_wavelengths_are_equal_steps_of_position():
    names = [f"band{i}" for i in range(408)]
    found = choose_bands(rule(uniform=12), names, None, None, set(), unread)
    assert found == [37 * i for i in range(12)]


def test_uniform_bands_are_good_ones_with_a_wavelength():
    assert chosen(rule(uniform=5), good=[True, True, False, True, True, True, True]) == [0, 1, 3, 4, 5]


@pytest.mark.parametrize("n", [1, 3, 4])
def test_every_region_gives_as_many_bands_or_all_it_has(n):
    found, slow = of_cube(rule(per_region=n)), []
    for low, high in pairwise([0, 400, 700, 1000, 3000]):
        inside = [i for i in range(40) if low <= CUBE_NM[i] < high]
        nm, m = [CUBE_NM[i] for i in inside], min(n, len(inside))
        middle = int(np.abs(np.array(nm) - (min(nm) + max(nm)) / 2).argmin())
        slow += [inside[i] for i in (evenest(nm, m) if m > 1 else [middle])]
    assert found == sorted(slow)


def test_variance_takes_the_bands_that_vary_most_of_the_good_ones():
    pixels = correlated(500, 40)
    good = RNG.uniform(size=40) < 0.7
    slow = sorted(np.flatnonzero(good), key=lambda i: -np.std([float(v) for v in pixels[:, i]]))[:6]
    assert of_cube(rule(variance=6), good=good.tolist(), sample=lambda: pixels) == sorted(slow)


@pytest.mark.parametrize("n", [1, 3, 8])
def test_loading_takes_the_bands_with_the_largest_loadings_weighted_by_variance(n):
    pixels = correlated(500, 40, seed=n)
    pca = PCA(n, svd_solver="full").fit(pixels)
    score = np.zeros(40)
    for ratio, component in zip(pca.explained_variance_ratio_, pca.components_, strict=True):
        score += ratio * abs(component)
    assert of_cube(rule(loading=n), sample=lambda: pixels) == sorted(np.argsort(-score)[:n])


def test_a_sample_counts_by_the_bands_of_the_file_whatever_is_left_out():
    pixels = np.zeros((9, 7))
    pixels[:, 6] = 100 * np.arange(9)
    pixels[:, 4] = np.arange(9)
    assert chosen(rule(variance=1), sample=lambda: pixels) == [4]
    assert chosen(rule(loading=1), sample=lambda: pixels) == [4]


def test_principal_components_need_all_good_bands_and_cones_those_they_name():
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
        (["red", "mask"], "prepare.bands = 'mask': the mask never reaches the network; remove it here"),
        ([], f"prepare.bands = []: give at least one of {ALL_NAMES}"),
        (rule(usml=USML | {"u": ["uv9"]}), "prepare.bands.usml.u = 'uv9': no such band; did you mean uv3?"),
        (
            rule(usml=USML | {"s": ["blue", "blue"]}),
            "prepare.bands.usml.s = 'blue': is the same band as 'blue'; give it once",
        ),
        (
            rule(usml=USML | {"l": ["mask"]}),
            "prepare.bands.usml.l = 'mask': the mask never reaches the network; remove it here",
        ),
        (
            rule(nearest=[560, 680]),
            "prepare.bands.nearest = 680: the nearest band, 'red', lies at 620 nm; "
            "ask for a wavelength within 50 nm of a band",
        ),
        (
            rule(nearest=[550, 530]),
            "prepare.bands.nearest = 530: 'green' at 540 nm is the nearest band to 550 nm too; remove one",
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
def test_a_choice_that_cannot_be_had_is_refused_before_any_pixel_is_read(spec, line):
    with pytest.raises(InputError) as fault:
        chosen(spec)
    assert str(fault.value) == line


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
def test_where_bad_bands_are_left_out_the_good_ones_are_counted(keys, line):
    with pytest.raises(InputError, match=f"^prepare.bands.{line}$"):
        chosen(rule(**keys), wavelengths=[620, 540, 450, 395, 370, 710, None], good=[False, *[True] * 6])


@pytest.mark.parametrize("wavelengths", [None, [None] * 7])
@pytest.mark.parametrize("keys", [{"nearest": [450]}, {"per_region": 2}])
def test_rules_of_wavelength_need_wavelengths(keys, wavelengths):
    with pytest.raises(
        InputError, match=r"^prepare\.bands\.\w+: needs wavelengths in dataset\.yaml or the ENVI header$"
    ):
        chosen(rule(**keys), wavelengths=wavelengths)


def test_uniform_without_wavelengths_names_the_bands_there_are():
    with pytest.raises(InputError, match="must be at most 6, the number of bands to choose from"):
        chosen(rule(uniform=7), wavelengths=None)


@pytest.mark.parametrize("spec", ["all", rule(uniform=1)])
def test_a_file_without_a_good_band_is_refused(spec):
    with pytest.raises(InputError, match=r"^prepare\.bands: no band of the file is marked good; list those wanted"):
        chosen(spec, good=[False] * 6 + [True])


def test_a_name_that_two_bands_share_is_refused():
    with pytest.raises(InputError, match="'a': bands 1 and 3 have that name; give them different ones"):
        chosen(["a"], names=["a", "b", "a"], wavelengths=None, left_out=set())


def test_an_unknown_band_of_hundreds_is_told_in_one_short_line():
    with pytest.raises(InputError, match=r"\(408\)$") as fault:
        choose_bands(["x"], [f"band{i + 1}" for i in range(408)], None, None, set(), unread)
    assert len(str(fault.value)) < 160


@pytest.mark.parametrize(
    ("tree", "line"),
    [
        ({}, "prepare.bands = None: must have exactly one of the keys nearest, uniform, per_region,"),
        ({"uniform": 3, "pca": 2}, "prepare.bands = uniform and pca: must have exactly one of the keys nearest,"),
        ({"uniform": 0}, "uniform = 0: must be ≥ 1"),
        ({"nearest": [-450]}, "nearest.0 = -450: must be > 0"),
        ({"unifrom": 3}, "unifrom: unknown key; did you mean uniform?"),
        ({"usml": {"u": ["a"], "s": ["b"], "m": ["c"]}}, "usml.l: missing; add it"),
    ],
)
def test_a_section_of_bands_holds_exactly_one_valid_rule(tree, line):
    with pytest.raises(InputError) as fault:
        rule(**tree)
    assert str(fault.value).startswith(f"params.yaml: {line}")


# Mixtures


def unit_image(c: int, size: int = 9, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 1, (c, size, size)).astype(np.float32)


@pytest.mark.parametrize("spec", ["all", ["red"], rule(uniform=3), rule(variance=2)])
def test_bands_that_are_only_chosen_are_not_mixed(spec):
    assert make_mix(spec, NAMES[:6], unread) is None


@pytest.mark.parametrize(("c", "n"), [(7, 3), (60, 5), (1, 1)])
def test_components_are_those_of_scikit_learn_between_their_percentiles(c, n):
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


def test_the_scale_of_a_component_spares_one_pixel_in_a_thousand_at_either_end():
    pixels = correlated(5000, 7)
    planes = make_mix(rule(pca=2), NAMES, lambda: pixels).apply(pixels.T[:, :, None].astype(np.float32))
    for plane in planes:
        assert 4 <= (plane == 0).sum() <= 6
        assert 4 <= (plane == 1).sum() <= 6


def test_more_components_than_the_images_hold_are_refused():
    pixels = RNG.uniform(0, 1, (300, 2)) @ RNG.uniform(0, 1, (2, 7))
    line = "prepare.bands.pca = 4: must be at most 2, the number of components along which the pixels of the training"
    with pytest.raises(InputError, match=line):
        make_mix(rule(pca=4), NAMES, lambda: pixels)


@pytest.mark.parametrize("spec", [rule(pca=3), rule(usml=USML)])
def test_planes_are_float32_in_the_unit_interval_and_survive_json(spec):
    mix = make_mix(spec, NAMES[:5], lambda: correlated(400, 5))
    again = Mix.model_validate_json(mix.model_dump_json())
    assert again == mix
    planes = again.apply(unit_image(5))
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


def test_planes_of_an_eye_are_colour_by_the_bounds_of_the_tetrahedron_and_luminance():
    names = NAMES[:5]
    mix = make_mix(rule(usml=USML), names, unread)
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


def test_black_lies_at_the_achromatic_centre_without_luminance():
    mix = make_mix(rule(usml=USML), NAMES[:5], unread)
    black, grey = mix.apply(np.zeros((5, 2, 2), np.float32)), mix.apply(np.full((5, 2, 2), 0.5, np.float32))
    np.testing.assert_allclose(black[:3], grey[:3], atol=1e-6)
    assert (black[3] == 0).all()
    np.testing.assert_allclose(grey[3], 0.5)
