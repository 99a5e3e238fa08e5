from __future__ import annotations

import numpy as np
import pytest
from conftest import blobs
from sklearn.linear_model import Ridge
from sklearn.svm import SVC, SVR

from simtrail.downstream.fitting import calibration, fit_head, groups_needed, next_to_label, threshold_for
from simtrail.downstream.head import softmax
from simtrail.errors import InputError


def brute_threshold(sure, right, groups, error):
    """The smallest of all possible thresholds that meets equation 4, by trying each."""
    kept = [np.inf]
    for candidate in [0.0, *sure]:
        wrong = [np.mean([(s >= candidate) and not r for s, r, g in zip(sure, right, groups, strict=True) if g == each])
                 for each in set(groups)]  # fmt: skip
        if (sum(wrong) + 1) / (len(wrong) + 1) <= error:
            kept.append(candidate)
    return min(kept)


@pytest.mark.parametrize("seed", range(12))
def test_the_threshold_is_the_lowest_that_keeps_the_promise(seed):
    rng = np.random.default_rng(seed)
    n = 60
    sure, groups = rng.integers(20, 100, n) / 100, rng.integers(0, 40, n)
    right = rng.random(n) < sure
    error = float(rng.choice([0.03, 0.05, 0.1, 0.3]))
    found, expected = threshold_for(sure, right, groups, error), brute_threshold(sure, right, groups, error)
    np.testing.assert_array_equal(sure >= found, sure >= expected)


def test_the_promise_needs_a_number_of_groups():
    for error in (0.05, 0.1, 0.02):
        n = groups_needed(error)
        assert np.isfinite(threshold_for(np.ones(n), np.ones(n, bool), np.arange(n), error))
        assert np.isinf(threshold_for(np.ones(n - 1), np.ones(n - 1, bool), np.arange(n - 1), error))


def test_over_many_draws_the_rate_of_wrong_labels_is_at_most_the_promised_one():
    wrong = []
    for seed in range(30):
        x, y = blobs(360, spread=1.5, seed=seed)
        fitted = fit_head(x[:60], y[:60], np.arange(60), 0.1, ("knn",))
        p = fitted.head.probabilities(x[60:])
        predicted = np.array(fitted.head.names)[p.argmax(1)]
        wrong.append(((p.max(1) >= fitted.head.threshold) & (predicted != y[60:])).mean())
    assert 0.03 < np.mean(wrong) < 0.1 + 2 * np.std(wrong) / np.sqrt(30)


def test_the_support_vectors_score_as_scikit_learn(tmp_path):
    x, y = blobs(150, classes=4)
    head = fit_head(x, y, np.arange(150), 0.05, ("svc",)).head
    z = x / np.linalg.norm(x, axis=1, keepdims=True)
    width = np.square(z[:, None] - z).sum(-1).mean()
    for c, name in enumerate(head.names):
        machine = SVC(C=head.strength, gamma=1 / width).fit(z, y == name)
        np.testing.assert_allclose(head.scores(x)[:, c], machine.decision_function(z), atol=2e-3)


def test_only_labels_drawn_at_random_decide_the_threshold():
    x, y = blobs(200, spread=1.5)
    fair = np.arange(200) < 60
    both = fit_head(x, y, np.arange(200), 0.1, ("linear",), fair=fair)
    assert both.fair == 60
    assert both.head.threshold != fit_head(x, y, np.arange(200), 0.1, ("linear",)).head.threshold
    assert np.isinf(fit_head(x, y, np.arange(200), 0.1, ("linear",), fair=fair & False).head.threshold)


def test_images_of_a_group_are_never_in_two_folds():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(40, 8)).astype(np.float32)  # every group is a cluster with a label at random
    labels = rng.choice(["a", "b"], 40)
    groups = np.repeat(np.arange(40), 5)
    x = centres[groups] + 0.01 * rng.normal(size=(200, 8)).astype(np.float32)
    assert fit_head(x, labels[groups], groups, kinds=("knn",)).score < 0.75
    assert fit_head(x, labels[groups], np.arange(200), kinds=("knn",)).score == 1


def test_scores_are_calibrated():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(4000, 3))
    labels = np.array([rng.choice(3, p=row) for row in softmax(scores)])
    assert abs(np.log(calibration(3 * scores, labels) / 3)) < 0.12


def test_too_few_labels_are_refused_with_what_is_missing():
    x, y = blobs(20)
    with pytest.raises(InputError, match="only c0: a classifier needs two classes"):
        fit_head(x, np.full(20, "c0"), np.arange(20))
    with pytest.raises(InputError, match="every class has images of one group only"):
        fit_head(x, y, y)


def test_images_to_label_next_are_uncertain_and_of_all_kinds():
    x, y = blobs(400, classes=4, spread=0.05)
    doubt = np.where(np.isin(y, ["c2", "c3"]), 1, 0.02)
    assert sorted(y[next_to_label(doubt, x, 2)]) == ["c2", "c3"]
    assert sorted(y[next_to_label(np.ones(400), x, 4)]) == ["c0", "c1", "c2", "c3"]
    assert len(next_to_label(doubt[:3], x[:3], 5)) == 3


def traits(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features (n, 8), and a number that four of them determine, with noise."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 8)).astype(np.float32)
    return x, 50 + x[:, :4] @ np.array([3, -2, 1, 1.5]) + 0.5 * rng.normal(size=n)


def tagged(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features (n, 8), and tags a, b, c, each of which one of them decides, with noise."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 8)).astype(np.float32)
    has = x[:, :3] + 0.3 * rng.normal(size=(n, 3)) > np.array([0, 0.5, 1])
    return x, np.array([";".join(np.array(["a", "b", "c"])[row]) or "-" for row in has])


def test_ridge_regression_is_that_of_scikit_learn():
    x, y = traits(80)
    head = fit_head(x, y, np.arange(80), kinds=("linear",), target="number").head
    z = (x - x.mean(0)) / x.std(0)
    expected = Ridge(alpha=80 / head.strength).fit(z, y).predict(z)
    np.testing.assert_allclose(head.scores(x)[:, 0], expected, rtol=1e-5)


def test_support_vector_regression_is_that_of_scikit_learn():
    x, y = traits(80)
    head = fit_head(x, y, np.arange(80), kinds=("svc",), target="number").head
    z = x / np.linalg.norm(x, axis=1, keepdims=True)
    machine = SVR(C=head.strength, gamma=1 / np.square(z[:, None] - z).sum(-1).mean())
    expected = machine.fit(z, (y - y.mean()) / y.std()).predict(z) * y.std() + y.mean()
    np.testing.assert_allclose(head.scores(x)[:, 0], expected, atol=0.05)


def test_the_interval_of_a_number_has_it_as_often_as_promised():
    outside = []
    for seed in range(30):
        x, y = traits(160, seed)
        fitted = fit_head(x[:60], y[:60], np.arange(60), 0.1, ("linear",), target="number")
        assert fitted.score > 0.9
        table = fitted.head.predict(x[60:])
        outside.append(1 - y[60:].clip(table["low"], table["high"]).__eq__(y[60:]).mean())
    assert 0.03 < np.mean(outside) < 0.1 + 2 * np.std(outside) / np.sqrt(30)


def test_of_the_decisions_about_tags_at_most_the_promised_part_is_wrong():
    wrong, used = [], []
    for seed in range(20):
        x, y = tagged(260, seed)
        fitted = fit_head(x[:60], y[:60], np.arange(60), 0.05, ("knn",), target="tags")
        assert fitted.head.names == ["a", "b", "c"]
        p = fitted.head.probabilities(x[60:])
        sure = np.maximum(p, 1 - p) >= fitted.head.threshold
        truth = np.array([[name in label.split(";") for name in "abc"] for label in y[60:]])
        wrong.append((sure & ((p >= 0.5) != truth)).mean())
        used.append(sure.mean())
    assert np.mean(wrong) < 0.05 + 2 * np.std(wrong) / np.sqrt(20)
    assert np.mean(used) > 0.4


@pytest.mark.parametrize("kind", ["linear", "svc", "knn"])
def test_every_kind_learns_tags_also_if_a_fold_has_only_images_with_one(kind):
    x, y = tagged(200)
    y[3:] = [label + ";rare" if i in (50, 120) else label for i, label in enumerate(y[3:], 3)]
    fitted = fit_head(x[:150], y[:150], np.arange(150), kinds=(kind,), target="tags")
    assert fitted.score > 0.85


def test_labels_that_are_no_classes_are_refused_with_the_right_target():
    x, y = traits(20)
    with pytest.raises(InputError, match="--target number"):
        fit_head(x, y, np.arange(20))
    with pytest.raises(InputError, match="numbers of two groups that differ"):
        fit_head(x, np.ones(20), np.arange(20), target="number")
    with pytest.raises(InputError, match="no tag is there in two groups and absent in two"):
        fit_head(x, np.full(20, "a;b"), np.arange(20), target="tags")
