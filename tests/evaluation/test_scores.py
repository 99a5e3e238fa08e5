from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sk

from simtrail.evaluation.scores import scores_with_intervals

RNG = np.random.default_rng(0)


def overlapping(n: int = 300, classes: int = 8) -> tuple[np.ndarray, np.ndarray]:
    truth = RNG.integers(0, classes, n)
    probabilities = RNG.dirichlet(np.ones(classes), n) + 0.5 * np.eye(classes)[truth] * RNG.random((n, 1))
    return truth, probabilities / probabilities.sum(1, keepdims=True)


def test_scores_equal_scikit_learn():
    truth, probabilities = overlapping()
    predicted = probabilities.argmax(1)
    scores_of_all, per_class = scores_with_intervals(truth, predicted, np.arange(300), 8, 100, 0, probabilities)
    each = sk.precision_recall_fscore_support(truth, predicted, zero_division=0)
    precision, recall, f1 = (scores.mean() for scores in each[:3])
    expected = {
        "accuracy": sk.accuracy_score(truth, predicted),
        "balanced_accuracy": sk.balanced_accuracy_score(truth, predicted),
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "top5": sk.top_k_accuracy_score(truth, probabilities, k=5),
    }
    assert {name: scores_of_all[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    for column, values in zip(("precision", "recall", "f1", "images"), each, strict=True):
        np.testing.assert_allclose(per_class[column], values, atol=1e-6)


def test_the_calibration_error_is_the_gap_between_confidence_and_accuracy():
    truth, probabilities = overlapping()
    oracle = 0.0
    for i in range(15):
        inside = (probabilities.max(1) > i / 15) & (probabilities.max(1) <= (i + 1) / 15)
        if inside.any():
            accuracy = (probabilities.argmax(1) == truth)[inside].mean()
            oracle += inside.mean() * abs(accuracy - probabilities.max(1)[inside].mean())
    scores, _ = scores_with_intervals(truth, probabilities.argmax(1), np.arange(300), 8, 100, 0, probabilities)
    assert scores["calibration_error"] == pytest.approx(oracle, abs=1e-6)
    certain = np.eye(8)[truth]
    assert scores_with_intervals(truth, truth, np.arange(300), 8, 100, 0, certain)[0]["calibration_error"] == 0


def test_the_interval_equals_a_plain_bootstrap_over_groups():
    truth, probabilities = overlapping(60, 3)
    predicted, group = probabilities.argmax(1), RNG.integers(0, 15, 60)
    scores, per_class = scores_with_intervals(truth, predicted, group, 3, 200, 7)
    rng, draws, of_class = np.random.default_rng(7), [], []
    names = np.unique(group)
    for _ in range(200):
        rows = np.concatenate([np.flatnonzero(group == names[i]) for i in rng.integers(0, len(names), len(names))])
        draws.append(sk.balanced_accuracy_score(truth[rows], predicted[rows]))
        of_class.append(sk.f1_score(truth[rows], predicted[rows], average=None, labels=[0, 1, 2]))
    low, high = np.percentile(draws, [2.5, 97.5])
    assert (scores["balanced_accuracy_low"], scores["balanced_accuracy_high"]) == pytest.approx((low, high), abs=1e-6)
    np.testing.assert_allclose(per_class["f1_high"], np.percentile(of_class, 97.5, axis=0), atol=1e-6)


def test_the_width_of_the_interval_depends_on_the_number_of_groups_not_of_images():
    truth = np.zeros(400, int)
    predicted = np.repeat(RNG.random(20) < 0.3, 20).astype(int)  # 20 specimens, each all correct or all wrong
    of_images = scores_with_intervals(truth, predicted, np.arange(400), 2, 1000, 0)[0]
    of_groups = scores_with_intervals(truth, predicted, np.repeat(np.arange(20), 20), 2, 1000, 0)[0]
    width = lambda s: s["accuracy_high"] - s["accuracy_low"]  # noqa: E731
    p = of_groups["accuracy"]
    assert width(of_images) == pytest.approx(2 * 1.96 * np.sqrt(p * (1 - p) / 400), rel=0.15)
    assert width(of_groups) == pytest.approx(2 * 1.96 * np.sqrt(p * (1 - p) / 20), rel=0.2)
    assert of_groups["accuracy_low"] <= p <= of_groups["accuracy_high"]


def test_classes_without_a_true_image_are_left_out():
    truth, predicted = np.array([0, 0, 1, 1]), np.array([0, 2, 1, 1])
    scores, per_class = scores_with_intervals(truth, predicted, np.arange(4), 4, 100, 0)
    assert scores["balanced_accuracy"] == pytest.approx(0.75)
    assert per_class["f1"].isna().tolist() == [False, False, True, True]
    assert per_class["images"].tolist() == [2, 2, 0, 0]
