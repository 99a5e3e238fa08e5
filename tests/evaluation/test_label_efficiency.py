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
def test_smaller_draws_of_a_seed_are_parts_of_larger_ones_and_seeds_differ(how):
    draws = [draw(LABELS, count, how, seed=5) for count in (4, 9, 10, 31, 96, 97)]
    assert all(set(small) <= set(large) for small, large in pairwise(draws))
    assert set(draws[2]) != set(draw(LABELS, 10, how, seed=6))


@pytest.mark.parametrize("how", ["balanced", "proportional"])
def test_a_draw_below_one_image_a_class_has_one_of_each(how):
    assert sorted(LABELS[draw(LABELS, 1, how, seed=0)]) == [0, 1, 2, 3]


@pytest.mark.parametrize(("count", "expected"), [(8, [2, 2, 2, 2]), (38, [13, 13, 10, 2]), (72, [35, 25, 10, 2])])
def test_a_balanced_draw_fills_classes_evenly_until_they_are_used_up(count, expected):
    found = np.bincount(LABELS[draw(LABELS, count, "balanced", seed=1)])
    assert found.tolist() == expected or abs(found - expected).max() == 1  # the remainder goes to any class


def test_a_proportional_draw_is_within_one_image_of_the_share_of_each_class():
    for count in range(10, len(LABELS) + 1):
        found = np.bincount(LABELS[draw(LABELS, count, "proportional", seed=1)])
        assert abs(found - count * np.bincount(LABELS) / len(LABELS)).max() <= 1


def test_sizes_run_from_two_a_class_to_all_in_even_steps():
    labels = np.arange(7500) % 30
    found = sizes(labels)
    assert (found[0], found[-1], len(found)) == (60, 7500, 7)
    assert np.diff(np.log(found)) == pytest.approx(np.log(125) / 6, rel=0.01)
    assert sizes(np.array([0, 1])) == [2]
    assert sizes(np.array([0, 1, 0, 1, 1])) == [4, 5]


def test_images_without_label_or_of_a_class_without_training_image_are_left_out():
    split = np.array(["train", "train", "test", "test", "val", "val", "train"])
    rows = scored_rows(np.array([0, 2, 1, 2, 0, -1, -1]), split)
    assert {part: some.tolist() for part, some in rows.items()} == {"train": [0, 1], "val": [4], "test": [3]}


def test_more_labels_give_higher_accuracy_and_all_labels_are_fitted_once():
    found = curve(*clusters()[:2], 3, clusters()[2], seeds=[0, 1, 2], settings=SETTINGS)
    assert set(found["classifier"]) == {"linear_probe", "svc", "knn"}
    assert sorted(set(found["labels"])) == sizes(clusters()[1][:60])
    every = found.groupby(["classifier", "draw", "labels"])["seed"].agg(list)
    assert all(seeds == ([0] if key[2] == 60 else [0, 1, 2]) for key, seeds in every.items())
    means = found.groupby(["classifier", "labels"])["accuracy"].mean()
    assert all(means[name, 60] > means[name, 6] + 0.05 and means[name, 60] > 0.9 for name in ("linear_probe", "svc"))


def test_a_fit_sees_the_drawn_training_images_alone(monkeypatch):
    features, labels, split = clusters()
    split[50:60], seen = "val", []
    features[50:60] = np.nan
    inner = label_efficiency.svc
    monkeypatch.setattr(label_efficiency, "svc", lambda x, *rest: seen.append(x) or inner(x, *rest))
    curve(features, labels, 3, split, seeds=[4], settings=SETTINGS)
    expected = features[draw(labels[:50], 6, "balanced", seed=4)]
    assert np.array_equal(seen[0], expected)
    assert max(map(len, seen)) == 50


def test_balanced_accuracy_is_the_mean_recall_and_the_accuracy_the_share_that_is_right():
    features, labels, split = clusters()
    split[60:90:3] = "unused"  # fewer test images of class 0
    found = curve(features, labels, 3, split, seeds=[0], settings=SETTINGS)
    mine = found[(found["classifier"] == "knn") & (found["labels"] == 60)].iloc[0]
    test = split == "test"
    guess = label_efficiency.knn(features[:60], labels[:60], features[test], 10, 0.07)
    right = guess == labels[test]
    assert mine["accuracy"] == pytest.approx(right.mean())
    assert mine["balanced_accuracy"] == pytest.approx(np.mean([right[labels[test] == c].mean() for c in range(3)]))


def test_the_svc_ends_where_its_kernel_would_be_too_large_and_then_needs_no_number(monkeypatch):
    monkeypatch.setattr(label_efficiency, "SVC_IMAGES", 40)
    features, labels, split = clusters()
    found = curve(features, labels, 3, split, seeds=[0, 1], settings=SETTINGS)
    assert found[found["classifier"] == "svc"]["labels"].max() <= 40
    needed = labels_needed(found)
    assert needed["svc"] is None
    assert 6 <= needed["linear_probe"] <= 60


def test_the_interval_is_the_t_interval_over_seeds_and_absent_for_one():
    values = [0.5, 0.6, 0.64, 0.7]
    found = summarise(table({10: values, 100: [0.9]}))
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert found.iloc[0][["mean", "low", "high"]].tolist() == pytest.approx([np.mean(values), low, high])
    assert found["seeds"].tolist() == [4, 1]
    assert found.iloc[1][["low", "high"]].isna().all()


def test_labels_needed_is_interpolated_in_the_logarithm_on_the_proportional_curve():
    rising = table({10: [0.4, 0.6], 100: [0.7], 1000: [1.0]})
    assert labels_needed(pd.concat([rising, table({10: [1.0]}, how="balanced")])) == {"knn": 465}  # 10^(2 + 2/3)
    assert labels_needed(rising, share=0.7) == {"knn": 100}
    assert labels_needed(rising, share=0.5) == {"knn": 10}


def test_labels_needed_is_the_first_crossing_of_a_curve_that_falls_again():
    assert labels_needed(table({10: [0.0], 100: [1.0], 1000: [0.5], 10_000: [1.0]})) == {"knn": 80}  # 10^1.9
