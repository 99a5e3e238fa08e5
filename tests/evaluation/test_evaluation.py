from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from conftest import with_changes
from sklearn import metrics as sk

from simtrail.errors import InputError
from simtrail.evaluation.report import classify, labelled, small_pixels
from simtrail.evaluation.scores import classification, confusion, with_intervals

RNG = np.random.default_rng(0)


def test_scores_equal_scikit_learn():
    truth, predicted = RNG.integers(0, 5, 200), RNG.integers(0, 5, 200)
    ours = classification(confusion(truth, predicted, 5))
    precision, recall, f1, _ = sk.precision_recall_fscore_support(truth, predicted, average="macro", zero_division=0)
    expected = {
        "accuracy": sk.accuracy_score(truth, predicted),
        "balanced_accuracy": sk.balanced_accuracy_score(truth, predicted),
        "precision": precision,
        "recall": recall,
        "f1": f1,
    }
    assert ours == pytest.approx(expected, abs=1e-12)


def test_the_interval_counts_groups_not_images():
    truth = np.zeros(400, int)
    predicted = np.repeat(RNG.random(20) < 0.3, 20).astype(int)  # 20 specimens, each all right or all wrong
    of_images = with_intervals(truth, predicted, np.arange(400), 2, 1000, 0)
    of_groups = with_intervals(truth, predicted, np.repeat(np.arange(20), 20), 2, 1000, 0)
    width = lambda s: s["accuracy_high"] - s["accuracy_low"]  # noqa: E731
    p = of_groups["accuracy"]
    assert width(of_images) == pytest.approx(2 * 1.96 * np.sqrt(p * (1 - p) / 400), rel=0.15)
    assert width(of_groups) == pytest.approx(2 * 1.96 * np.sqrt(p * (1 - p) / 20), rel=0.2)
    assert of_groups["accuracy_low"] <= p <= of_groups["accuracy_high"]


def table(labels: list[str | None], split: list[str]) -> pd.DataFrame:
    return pd.DataFrame({"label": pd.Series(labels, dtype="object"), "split": split})


def test_unlabelled_images_are_left_out_and_unlabelled_sets_are_none():
    data = labelled(table(["a", None, "b", "a", "b"], ["train", "train", "train", "val", "test"]), np.arange(5))
    assert data is not None
    assert data.rows.tolist() == [0, 2, 3, 4]
    assert data.names == ["a", "b"]
    assert labelled(table([None] * 3, ["train", "val", "test"]), np.arange(3)) is None
    assert labelled(table(["a"] * 3, ["train", "val", "test"]), np.arange(3)) is None
    with pytest.raises(InputError, match="no labelled image in the test split"):
        labelled(table(["a", "b", "a", None], ["train", "train", "val", "test"]), np.arange(4))


def test_every_classifier_and_floor_is_scored():
    labels = np.arange(300) % 3
    split = np.array(["train", "train", "train", "val", "test"])[(np.arange(300) // 3) % 5]
    features = RNG.normal(size=(300, 10)) + 4 * np.eye(10)[labels]
    data = labelled(table([f"c{x}" for x in labels], split.tolist()), np.arange(len(labels)))
    noise = RNG.normal(size=(300, 5))
    scores, predictions = classify(
        features, lambda: noise, lambda: noise, data, with_changes({"evaluate.bootstrap": 100}).evaluate
    )
    assert list(scores) == ["linear_probe", "knn", "raw_pixels", "random_encoder", "majority"]
    assert scores["linear_probe"]["accuracy"] > 0.95 > 0.6 > scores["raw_pixels"]["accuracy"]
    assert scores["majority"]["accuracy"] == pytest.approx(1 / 3)
    assert all(len(p) == (split == "test").sum() for p in predictions.values())


def test_small_pixels_are_means_of_blocks():
    images = RNG.integers(0, 256, (2, 3, 32, 32), dtype=np.uint8)
    small = small_pixels(images, 255).reshape(2, 3, 16, 16)
    assert small[1, 2, 3, 4] == pytest.approx(images[1, 2, 6:8, 8:10].mean() / 255)
