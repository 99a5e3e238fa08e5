from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from simtrail.evaluation import label_efficiency
from simtrail.evaluation.label_efficiency import Settings, curve, draw, labels_needed, scored_rows, sizes, summarise

LABELS = np.random.default_rng(3).permutation(np.repeat([0, 1, 2, 3], [60, 25, 10, 2]))
SETTINGS = Settings(c=0.1, svc_c=1.0, knn_k=10, temperature=0.07)


def clusters(train: int = 60, test: int = 60, classes: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = np.arange(train + test) % classes
    features = 1.2 * rng.normal(size=(classes, 16))[labels] + rng.normal(size=(train + test, 16))
    return features.astype(np.float32), labels, np.repeat(["train", "test"], [train, test])


def table(points: dict[int, list[float]], classifier: str = "knn", how: str = "proportional") -> pd.DataFrame:
    rows = [(classifier, how, n, seed, a) for n, seeds in points.items() for seed, a in enumerate(seeds)]
    return pd.DataFrame(rows, columns=["classifier", "draw", "labels", "seed", "accuracy"])


@pytest.mark.parametrize("how", ["balanced", "proportional"])
def test_every_draw_has_its_size_each_image_once_and_every_class(how):
    for count in range(4, len(LABELS) + 1):
        rows = draw(LABELS, count, how, seed=0)
        assert len(rows) == len(set(rows)) == count
        assert set(LABELS[rows]) == {0, 1, 2, 3}


@pytest.mark.parametrize("how", ["balanced", "proportional"])
def test_smaller_draws_are_parts_of_larger_ones_with_the_same_seed_and_seeds_differ(how):
    draws = [draw(LABELS, count, how, seed=5) for count in (4, 9, 10, 31, 96, 97)]
    assert all(set(small) <= set(large) for small, large in pairwise(draws))
    assert set(draws[2]) != set(draw(LABELS, 10, how, seed=6))


@pytest.mark.parametrize("how", ["balanced", "proportional"])
def test_a_draw_of_fewer_images_than_classes_has_one_of_each_class(how):
    assert sorted(LABELS[draw(LABELS, 1, how, seed=0)]) == [0, 1, 2, 3]


@pytest.mark.parametrize(("count", "expected"), [(8, [2, 2, 2, 2]), (38, [13, 13, 10, 2]), (72, [35, 25, 10, 2])])
def test_a_balanced_draw_has_equally_many_of_each_class_until_all_images_are_used(count, expected):
    counts = np.bincount(LABELS[draw(LABELS, count, "balanced", seed=1)])
    assert counts.tolist() == expected or abs(counts - expected).max() == 1  # the remainder goes to random classes


def test_a_proportional_draw_is_within_one_image_of_the_fraction_of_each_class():
    for count in range(10, len(LABELS) + 1):
        counts = np.bincount(LABELS[draw(LABELS, count, "proportional", seed=1)])
        assert abs(counts - count * np.bincount(LABELS) / len(LABELS)).max() <= 1


def test_sizes_go_from_two_per_class_to_all_in_equal_factors():
    labels = np.arange(7500) % 30
    numbers = sizes(labels)
    assert (numbers[0], numbers[-1], len(numbers)) == (60, 7500, 7)
    assert np.diff(np.log(numbers)) == pytest.approx(np.log(125) / 6, rel=0.01)
    assert sizes(np.array([0, 1])) == [2]
    assert sizes(np.array([0, 1, 0, 1, 1])) == [4, 5]


def test_images_without_label_or_of_a_class_without_training_image_are_left_out():
    split = np.array(["train", "train", "test", "test", "val", "val", "train"])
    by_split = scored_rows(np.array([0, 2, 1, 2, 0, -1, -1]), split)
    assert {part: rows.tolist() for part, rows in by_split.items()} == {"train": [0, 1], "val": [4], "test": [3]}


def test_more_labels_give_higher_accuracy_and_all_labels_are_fitted_once():
    results = curve(*clusters()[:2], 3, clusters()[2], seeds=[0, 1, 2], settings=SETTINGS)
    assert set(results["classifier"]) == {"linear_probe", "svc", "knn"}
    assert sorted(set(results["labels"])) == sizes(clusters()[1][:60])
    all_seeds = results.groupby(["classifier", "draw", "labels"])["seed"].agg(list)
    assert all(seeds == ([0] if key[2] == 60 else [0, 1, 2]) for key, seeds in all_seeds.items())
    means = results.groupby(["classifier", "labels"])["accuracy"].mean()
    assert all(means[name, 60] > means[name, 6] + 0.05 and means[name, 60] > 0.9 for name in ("linear_probe", "svc"))


def test_a_fit_learns_only_from_the_drawn_training_images(monkeypatch):
    features, labels, split = clusters()
    split[50:60], fitted = "val", []
    features[50:60] = np.nan
    svc = label_efficiency.svc
    monkeypatch.setattr(label_efficiency, "svc", lambda x, *rest: fitted.append(x) or svc(x, *rest))
    curve(features, labels, 3, split, seeds=[4], settings=SETTINGS)
    expected = features[draw(labels[:50], 6, "balanced", seed=4)]
    assert np.array_equal(fitted[0], expected)
    assert max(map(len, fitted)) == 50


def test_the_same_images_are_fitted_once(monkeypatch):
    features, labels, split = clusters()
    fitted, svc = [], label_efficiency.svc
    monkeypatch.setattr(label_efficiency, "svc", lambda x, *rest: fitted.append(x) or svc(x, *rest))
    results = curve(features, labels, 3, split, seeds=[4], settings=SETTINGS)
    assert len(fitted) == results["labels"].nunique()
    of_draw = results.set_index(["classifier", "labels"]).groupby("draw")["accuracy"]
    pd.testing.assert_series_equal(*(part for _, part in of_draw))


def test_balanced_accuracy_is_the_mean_recall_and_accuracy_the_fraction_of_correct_images():
    features, labels, split = clusters()
    split[60:90:3] = "unused"  # fewer test images of class 0
    results = curve(features, labels, 3, split, seeds=[0], settings=SETTINGS)
    row = results[(results["classifier"] == "knn") & (results["labels"] == 60)].iloc[0]
    test = split == "test"
    predicted = label_efficiency.knn(features[:60], labels[:60], features[test], 10, 0.07)
    correct = predicted == labels[test]
    assert row["accuracy"] == pytest.approx(correct.mean())
    assert row["balanced_accuracy"] == pytest.approx(np.mean([correct[labels[test] == c].mean() for c in range(3)]))


def test_the_svc_is_left_out_above_its_limit_of_images_and_then_has_no_labels_needed(monkeypatch):
    monkeypatch.setattr(label_efficiency, "SVC_IMAGES", 40)
    features, labels, split = clusters()
    results = curve(features, labels, 3, split, seeds=[0, 1], settings=SETTINGS)
    assert results[results["classifier"] == "svc"]["labels"].max() <= 40
    needed = labels_needed(results)
    assert needed["svc"] is None
    assert 6 <= needed["linear_probe"] <= 60


def test_the_interval_is_the_t_interval_over_seeds_and_nan_for_one_seed():
    values = [0.5, 0.6, 0.64, 0.7]
    summary = summarise(table({10: values, 100: [0.9]}))
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert summary.iloc[0][["mean", "low", "high"]].tolist() == pytest.approx([np.mean(values), low, high])
    assert summary["seeds"].tolist() == [4, 1]
    assert summary.iloc[1][["low", "high"]].isna().all()


def test_labels_needed_is_interpolated_in_the_logarithm_on_the_proportional_curve():
    rising = table({10: [0.4, 0.6], 100: [0.7], 1000: [1.0]})
    assert labels_needed(pd.concat([rising, table({10: [1.0]}, how="balanced")])) == {"knn": 465}  # 10^(2 + 2/3)
    assert labels_needed(rising, share=0.7) == {"knn": 100}
    assert labels_needed(rising, share=0.5) == {"knn": 10}


def test_labels_needed_is_the_first_crossing_of_a_curve_that_falls_later():
    assert labels_needed(table({10: [0.0], 100: [1.0], 1000: [0.5], 10_000: [1.0]})) == {"knn": 80}  # 10^1.9
