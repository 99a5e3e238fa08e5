from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simtrail.data.pack import PackedImages
from simtrail.data.recipe import Recipe
from simtrail.evaluation import bands
from simtrail.evaluation.assess import Embedded
from simtrail.evaluation.bands import band_groups, mean_spectra, occlusion, permutation
from simtrail.evaluation.tasks import Task

RNG = np.random.default_rng(0)
NAMES = ["red", "green", "uv"]
EACH = {name: [i] for i, name in enumerate(NAMES)}


def packed(folder, values: np.ndarray, shard: int = 1000, background: float | list[float] = 0) -> PackedImages:
    dtype, n = str(values.dtype), values.shape[1]
    recipe = Recipe(
        size=values.shape[-1], fit="pad", background=background, composite=True, file_dtype=dtype, file_bands=n,
        mask_band=None, bands=NAMES[:n], dtype=dtype, low=[0] * n, high=[255] * n,
    )  # fmt: skip
    for number, start in enumerate(range(0, len(values), shard)):
        np.save(folder / f"images-{number:04d}.npy", values[start : start + shard])
    return PackedImages(folder, recipe)


def flat(means: np.ndarray) -> np.ndarray:
    """Images (N, C, 4, 4) of one value in each band."""
    return np.repeat(means.astype(np.uint8), 16).reshape(*means.shape, 4, 4)


class Means:
    """An encoder whose features are the means of the first two bands; it ignores the third."""

    def __init__(self):
        self.encoded = 0

    def features(self, batches) -> np.ndarray:
        parts = [batch[:, :2].mean((2, 3), dtype=np.float32) for batch in batches]
        self.encoded += sum(map(len, parts))
        return np.concatenate(parts)


# groups of bands


def test_few_bands_are_hidden_separately_in_order_of_wavelength_and_so_are_modalities():
    names, nm = ["mask edge", "red", "blue", "uv"], [None, 620.0, 460.0, 365.0]
    each, modalities = band_groups(names, nm, {"rgb": [1, 2], "uv": [3]})
    assert list(each.items()) == [("uv", [3]), ("blue", [2]), ("red", [1]), ("mask edge", [0])]
    assert modalities == {"rgb": [1, 2], "uv": [3]}


def test_a_band_with_only_a_number_as_name_gets_its_wavelength_added():
    each, _ = band_groups(["band19", "band2", "band3", "uv"], [667.54, None, 1000.0, 365.0], {})
    assert list(each) == ["uv", "band19 (667.5 nm)", "band3 (1000 nm)", "band2"]


def test_a_modality_of_all_bands_is_not_hidden():
    assert band_groups(NAMES, None, {"all": [0, 1, 2], "uv": [2]}) == (EACH, {"uv": [2]})


def test_many_bands_are_hidden_in_runs_named_by_wavelength_or_number():
    names = [f"band{i + 1}" for i in range(408)]
    runs, _ = band_groups(names, np.linspace(400, 1000, 408).tolist(), {})
    assert next(iter(runs)) == "400–423.6 nm"
    assert {len(run) for run in runs.values()} == {17}
    runs, _ = band_groups(names, None, {})
    assert list(runs)[:2] == ["bands 1–17", "bands 18–34"]


@given(
    st.lists(
        st.none() | st.integers(300, 2500).map(float), min_size=1, max_size=120, unique_by=lambda w: w or object()
    ),
    st.integers(2, 30),
)
def test_every_band_is_in_one_run_of_neighbours_as_wide_as_the_others(nm, largest):
    runs, _ = band_groups([f"b{i}" for i in range(len(nm))], nm, {}, largest)
    assert len(runs) <= largest
    flat_order = [i for run in runs.values() for i in run]
    assert sorted(flat_order) == list(range(len(nm)))
    wavelengths = [nm[i] for i in flat_order if nm[i] is not None]
    assert wavelengths == sorted(wavelengths)
    assert [nm[i] is None for i in flat_order] == sorted(nm[i] is None for i in flat_order)
    for unknown in (True, False):
        widths = [len(run) for run in runs.values() if (nm[run[0]] is None) == unknown]
        assert not widths or max(widths) - min(widths) <= 1
    if len(nm) <= largest:
        assert len(runs) == len(nm)


# occlusion


def test_features_turn_by_the_true_angle_and_not_at_all_for_a_band_that_the_encoder_ignores(tmp_path):
    means = RNG.integers(1, 256, (150, 3))
    rows, fill = RNG.permutation(150)[:100], np.array([100.2, 30.0, 7.0])
    table = occlusion(Means(), packed(tmp_path, flat(means), 70), rows, {**EACH, "rg": [0, 1]}, fill, np.arange(100))
    red, green = means[rows, 0], means[rows, 1]
    turned = [np.arctan2(green, 100), np.arctan2(30, red), np.arctan2(green, red), np.arctan2(30, 100)]
    slow = [np.degrees(np.abs(angle - np.arctan2(green, red))).mean() for angle in turned]
    assert table["group"].tolist() == ["red", "green", "uv", "rg"]
    np.testing.assert_allclose(table["angle"], slow, atol=1e-4)
    assert table.iloc[2, 1:].tolist() == [0, 0, 0]
    assert (table["angle_low"] <= table["angle"]).all()
    assert (table["angle"] <= table["angle_high"]).all()


def test_the_interval_of_an_angle_is_over_blocks_not_images(tmp_path):
    block = np.repeat(np.arange(6), 20)
    images = packed(tmp_path, flat(np.repeat(RNG.integers(1, 256, (6, 3)), 20, 0)))
    fill, rows = np.full(3, 90.0), np.arange(120)
    by_block, by_image = (occlusion(Means(), images, rows, EACH, fill, b).loc[0] for b in (block, rows))
    assert by_block["angle"] == by_image["angle"]
    assert by_block["angle_high"] - by_block["angle_low"] > 2 * (by_image["angle_high"] - by_image["angle_low"])


def test_the_size_of_a_batch_changes_nothing(tmp_path, monkeypatch):
    images = packed(tmp_path, RNG.integers(0, 256, (9, 3, 4, 4)).astype(np.uint16))
    args = np.array([8, 1, 5]), EACH, np.full(3, 128.0), np.arange(3)
    whole = occlusion(Means(), images, *args)
    monkeypatch.setattr(bands, "HELD_BYTES", 1)
    assert occlusion(Means(), images, *args).equals(whole)


# permutation


def labelled(labels: np.ndarray, block: np.ndarray, classes: int) -> Task:
    n = len(labels) // 3
    split = np.repeat(["train", "val", "test"], n)
    names = [f"class {c}" for c in range(classes)]
    return Task("label", np.arange(len(labels)), labels, names, split, block, 0)


def two_classes(folder, n: int = 120) -> tuple[PackedImages, Task, np.ndarray]:
    """Red depends on the class, green and uv are noise; each block has three images."""
    labels = np.repeat(RNG.integers(0, 2, n), 3)
    means = RNG.integers(0, 256, (len(labels), 3))
    means[:, 0] = 60 + 120 * labels + RNG.integers(0, 30, len(labels))
    images = packed(folder, flat(means))
    return images, labelled(labels, np.repeat(np.arange(n) * 5, 3), 2), means[:, :2].astype(np.float32)


def measured(images: PackedImages, task: Task, features: np.ndarray, groups, c: float, **options) -> pd.DataFrame:
    return permutation(Embedded(Means(), images, pd.DataFrame(), features), task, groups, c, **options)


def test_accuracy_drops_to_chance_without_the_informative_band_and_not_at_all_without_the_others(tmp_path):
    images, task, features = two_classes(tmp_path)
    table = measured(images, task, features, EACH, 1.0).set_index("group")
    fraction = task.labels[task.test].mean()
    assert table.loc["red", "drop"] == pytest.approx(1 - fraction**2 - (1 - fraction) ** 2, abs=0.1)
    assert table.loc["red", "drop_low"] > 0.2
    assert table.loc["green", "drop_low"] <= 0 <= table.loc["green", "drop_high"]
    assert table.loc["uv"].tolist() == [0, 0, 0]


def test_a_noisy_band_that_the_probe_uses_is_not_important(tmp_path):
    images, task, features = two_classes(tmp_path, 60)
    noise = labelled(np.repeat(RNG.integers(0, 2, 60), 3), task.group, 2)  # no band depends on these classes
    table = measured(images, noise, features, EACH, 10.0)
    assert (table["drop_low"] <= 0).all()
    assert (table["drop_high"] >= 0).all()


def test_no_image_gets_bands_from_an_image_of_the_same_specimen(tmp_path):
    species = np.repeat(np.arange(4), 5)  # one specimen per species in a split: another specimen is of another species
    labels, block = np.tile(species, 3), np.repeat(np.arange(12), 5)
    means = np.stack([40 + 60 * labels, 90 + 80 * (labels % 2), labels * 0], 1)
    images, features = packed(tmp_path, flat(means)), means[:, :2].astype(np.float32)
    task = labelled(labels, block, 4)
    table = measured(images, task, features, {"all": [0, 1, 2]}, 10.0)
    assert table.loc[0, "drop"] == table.loc[0, "drop_low"] == 1


@given(st.lists(st.integers(0, 6), min_size=1, max_size=60), st.integers(0, 99))
def test_every_image_gives_its_bands_once_and_to_another_block_where_possible(block, seed):
    block = np.array(block)
    donors = bands._donors(block, np.random.default_rng(seed))
    assert sorted(donors) == list(range(len(block)))
    if 2 * np.bincount(block).max() <= len(block):
        assert (block[donors] != block).all()


def test_the_same_seed_gives_the_same_table_and_another_seed_another(tmp_path):
    images, task, features = two_classes(tmp_path, 30)
    first, same, other = (measured(images, task, features, EACH, 1.0, seed=s) for s in (1, 1, 2))
    assert first.equals(same)
    assert not first.equals(other)


def test_only_a_sample_of_many_test_images_is_encoded(tmp_path, monkeypatch):
    images, task, features = two_classes(tmp_path, 30)
    monkeypatch.setattr(bands, "LARGEST", 10)
    encoder = Means()
    permutation(Embedded(encoder, images, pd.DataFrame(), features), task, EACH, 1.0)
    assert encoder.encoded == 10 * len(EACH) * bands.PERMUTATIONS


def test_the_probe_learns_from_no_test_image_and_weighs_classes_if_balanced(tmp_path, monkeypatch):
    images, task, features = two_classes(tmp_path, 30)
    fits, fit = [], bands.fit_logistic
    monkeypatch.setattr(bands, "fit_logistic", lambda *a, **k: fits.append(k) or fit(*a, **k))
    for balanced in (False, True):
        measured(images, task, features, EACH, 1.0, balanced=balanced)
    assert [task.split[k["rows"]].tolist() for k in fits] == [["train"] * 30 + ["val"] * 30] * 2
    weights, counts = fits[1]["weight"], np.bincount(task.labels[:60])
    assert fits[0]["weight"] is None
    np.testing.assert_allclose(weights * counts[task.labels[:60]], 30)


def test_a_task_of_a_part_of_the_images_reads_only_these(tmp_path):
    images, task, features = two_classes(tmp_path, 60)
    rows = np.flatnonzero(np.arange(180) % 3 != 1)
    part = Task("label", rows, task.labels[rows], task.names, task.split[rows], task.group[rows], 0)
    table = measured(images, part, features, EACH, 1.0).set_index("group")
    assert table.loc["red", "drop"] > 0.3
    assert table.loc["uv", "drop"] == 0


# spectra


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_spectra_equal_a_plain_loop_over_images_and_pixels(tmp_path, dtype, monkeypatch):
    full = np.iinfo(dtype).max
    values = RNG.integers(0, full, (14, 3, 4, 4)).astype(dtype)
    background = [0.5, 0.2, 0.8]
    packed_background = np.rint(np.array(background) * full).astype(dtype)
    values = np.where(RNG.random((14, 1, 4, 4)) < 0.4, packed_background[:, None, None], values)
    values[3] = packed_background[:, None, None]  # background only
    values[4, 0] = packed_background[0]  # no background: its other bands differ
    rows, labels = np.array([0, 2, 3, 4, 7, 9, 13]), np.array([2, 0, 0, 2, 0, 2, 3])
    low, high = np.array([0.0, 0.1, -1.0]), np.array([1.0, 0.9, 5.0])
    monkeypatch.setattr(bands, "HELD_BYTES", 2 * values[0].nbytes)
    table = mean_spectra(packed(tmp_path, values, 5, background), rows, labels, list("abcd"), (low, high))
    slow = []
    for c in (0, 2, 3):
        each = []
        for row in rows[labels == c]:
            pixels = [p for p in values[row].reshape(3, -1).T.astype(float) if not (p == packed_background).all()]
            if pixels:
                each.append(low + np.mean(pixels, axis=0) / full * (high - low))
        for b in range(3):
            column = [spectrum[b] for spectrum in each]
            sd = np.std(column, ddof=1) if len(column) > 1 else np.nan
            slow.append(["abcd"[c], NAMES[b], np.mean(column), sd, len(each)])
    assert table.columns.tolist() == ["class", "band", "mean", "sd", "images"]
    assert table[["class", "band", "images"]].to_numpy().tolist() == [[r[0], r[1], r[4]] for r in slow]
    np.testing.assert_allclose(table[["mean", "sd"]].to_numpy(float), [r[2:4] for r in slow], rtol=1e-12)


def test_spectra_of_many_images_come_from_a_seeded_sample_with_every_class(tmp_path):
    images = packed(tmp_path, RNG.integers(1, 256, (60, 3, 4, 4)).astype(np.uint8))
    labels = np.array([0] * 57 + [1, 1, 2])
    args = images, np.arange(60), labels, list("abc"), (np.zeros(3), np.ones(3))
    first, same, other = (mean_spectra(*args, largest=12, seed=s) for s in (0, 0, 1))
    assert first["images"].tolist() == [9] * 3 + [2] * 3 + [1] * 3
    assert first.equals(same)
    assert not first.equals(other)
