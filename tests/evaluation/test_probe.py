from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from simtrail.errors import InputError, TrainingError
from simtrail.evaluation import probe
from simtrail.evaluation.probe import C_VALUES, Views, class_weight, fit_logistic, linear_probe, svc, svc_probe

RNG = np.random.default_rng(0)


def overlapping(n: int, classes: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    scale = np.linspace(0.1, 10, 12)
    return ((rng.normal(size=(n, 12)) + np.eye(12)[labels] + 2) * scale).astype(np.float32), labels


def parts(n: int) -> np.ndarray:
    return np.array(["train", "train", "train", "val", "test"])[np.arange(n) % 5]


@pytest.mark.parametrize("weighted", [False, True])
def test_logistic_regression_has_the_coefficients_of_scikit_learn(weighted):
    features, labels = overlapping(400)
    scaler = StandardScaler().fit(features.astype(np.float64))
    weight = RNG.uniform(0.1, 3, 400) if weighted else None
    for c, fit in zip(C_VALUES, fit_logistic(features, labels, 4, C_VALUES, weight=weight), strict=True):
        oracle = LogisticRegression(C=c, tol=1e-10, max_iter=100_000)
        oracle.fit(scaler.transform(features.astype(np.float64)), labels, sample_weight=weight)
        np.testing.assert_allclose(fit.weights * scaler.scale_[:, None], oracle.coef_.T, atol=1e-3)
        expected = oracle.predict_proba(scaler.transform(features))
        np.testing.assert_allclose(fit.probabilities(features), expected, atol=1e-3)


def test_more_features_than_images_have_the_coefficients_of_scikit_learn():
    rng, rows = np.random.default_rng(0), np.arange(40) * 2  # each second image
    labels = np.arange(80) % 3
    features = (rng.normal(size=(80, 100)) + 3 * np.eye(3, 100)[labels] + 5).astype(np.float32)
    scaler = StandardScaler().fit(features[rows])
    for c, fit in zip((0.01, 1.0), fit_logistic(features, labels, 3, (0.01, 1.0), rows=rows), strict=True):
        oracle = LogisticRegression(C=c, tol=1e-10, max_iter=100_000)
        oracle.fit(scaler.transform(features[rows]), labels[rows])
        np.testing.assert_allclose(fit.weights * scaler.scale_[:, None], oracle.coef_.T, atol=1e-3)
        np.testing.assert_allclose(
            fit.probabilities(features), oracle.predict_proba(scaler.transform(features)), atol=2e-3
        )


def test_chunks_computed_again_give_the_same_result_as_kept_ones(monkeypatch):
    features, labels = overlapping(100)
    kept = next(fit_logistic(features, labels, 4, (0.1,)))
    monkeypatch.setattr(probe, "KEPT", 0)
    monkeypatch.setattr(probe, "CHUNK", 12 * 7)  # 7 images at a time, of 100
    np.testing.assert_allclose(next(fit_logistic(features, labels, 4, (0.1,))).weights, kept.weights, atol=2e-3)


def test_a_constant_feature_and_a_class_without_image_change_nothing():
    features, labels = overlapping(100)
    plain = next(fit_logistic(features, labels, 4, (1.0,))).probabilities(features)
    wider = np.concatenate([features, np.full((100, 1), 1e3, np.float32)], 1)
    np.testing.assert_allclose(next(fit_logistic(wider, labels, 4, (1.0,))).probabilities(wider), plain, atol=1e-3)
    more = next(fit_logistic(features, labels, 6, (1.0,))).probabilities(features)
    assert more[:, 4:].max() < 0.01  # the bias, which has no penalty, holds how rare the classes are


def test_a_probe_that_does_not_converge_raises_an_error(monkeypatch):
    monkeypatch.setattr(probe, "LIMITS", {"max_iter": 1, "max_eval": 20})
    with pytest.raises(TrainingError, match="not converged after 1 iterations"):
        next(fit_logistic(*overlapping(100), 4, (10.0,)))


def test_the_penalty_is_chosen_only_on_validation_and_the_test_split_has_no_influence():
    features, labels = overlapping(500)
    split = parts(500)
    chosen = linear_probe(features, labels, split, 4)
    other_labels, other_features = np.where(split == "test", 0, labels), features.copy()
    other_features[split == "test"] += 100
    assert linear_probe(features, other_labels, split, 4).c == chosen.c
    np.testing.assert_array_equal(linear_probe(features, other_labels, split, 4).probabilities, chosen.probabilities)
    assert linear_probe(other_features, labels, split, 4).c == chosen.c
    train, val = split == "train", split == "val"
    found = [fit.probabilities(features[val]) for fit in fit_logistic(features[train], labels[train], 4, C_VALUES)]
    scores = [((p.argmax(1) == labels[val]).mean(), np.log(p[np.arange(val.sum()), labels[val]]).mean()) for p in found]
    assert chosen.c == C_VALUES[scores.index(max(scores))]
    fit_rows = train | val
    fit = next(fit_logistic(features[fit_rows], labels[fit_rows], 4, (chosen.c,)))
    np.testing.assert_allclose(chosen.probabilities, fit.probabilities(features[~fit_rows]), atol=4e-4)


def test_few_images_that_any_penalty_separates_do_not_get_the_strongest():
    """It leaves little but the sizes of the classes, which are equal in train, but not in train and val together."""
    labels = np.concatenate([np.repeat(np.arange(3), sizes) for sizes in ([10, 10, 10], [6, 3, 1], [10, 10, 10])])
    split = np.repeat(["train", "val", "test"], [30, 10, 30])
    noise = np.random.default_rng(0).normal(size=(70, 300))
    features = (noise + np.repeat(np.eye(3), 100, 1)[labels]).astype(np.float32)
    assert linear_probe(features, labels, split, 3).c > C_VALUES[0]
    assert (linear_probe(features, labels, split, 3).probabilities.argmax(1) == labels[split == "test"]).all()


def test_balanced_weights_raise_the_recall_of_a_rare_class():
    features, labels = overlapping(1000, 2)
    keep = (labels == 0) | (RNG.random(1000) < 0.05)  # class 1 is rare
    features, labels, split = features[keep], labels[keep], parts(keep.sum())
    truth = labels[split == "test"]
    recall = {
        balanced: (linear_probe(features, labels, split, 2, balanced=balanced).probabilities.argmax(1) == truth)[
            truth == 1
        ].mean()
        for balanced in (False, True)
    }
    assert recall[True] > recall[False] + 0.2
    weight = class_weight(labels)
    assert weight[labels == 0].sum() == pytest.approx(weight[labels == 1].sum())
    assert weight.mean() == pytest.approx(1)


def test_the_probe_learns_from_views_but_not_from_views_of_test_images():
    features, labels = overlapping(200)
    split = parts(200)
    views = Views(features + RNG.normal(size=features.shape).astype(np.float32), np.arange(200))
    probabilities = linear_probe(features, labels, split, 4, views=views).probabilities
    assert not np.array_equal(probabilities, linear_probe(features, labels, split, 4).probabilities)
    views.features[split == "test"] = 1e6
    again = linear_probe(features, labels, split, 4, views=views).probabilities
    np.testing.assert_array_equal(again, probabilities)


def test_views_equal_to_their_images_change_nothing_at_the_same_penalty():
    features, labels = overlapping(200)
    same = Views(np.tile(features, (3, 1)), np.tile(np.arange(200), 3))
    plain = linear_probe(features, labels, parts(200), 4)
    with_views = linear_probe(features, labels, parts(200), 4, views=same, like=plain)
    assert with_views.c == plain.c
    np.testing.assert_allclose(with_views.probabilities, plain.probabilities, atol=2e-3)


@pytest.mark.parametrize("images", [400, 8])
def test_a_fit_from_other_weights_ends_at_the_same_ones(images):
    features, labels = overlapping(400)
    near, rows = features + RNG.normal(size=features.shape).astype(np.float32), np.arange(images)
    start = next(fit_logistic(near, labels, 4, (10.0,)))
    found = next(fit_logistic(features, labels, 4, (0.1,), rows=rows, start=start))
    expected = next(fit_logistic(features, labels, 4, (0.1,), rows=rows))
    np.testing.assert_allclose(found.probabilities(features), expected.probabilities(features), atol=2e-3)


def test_the_svc_equals_scikit_learn_and_learns_from_a_limited_number_of_images(monkeypatch):
    (bank, labels), (queries, _) = overlapping(150), overlapping(60, seed=1)
    scaler = StandardScaler().fit(bank)
    for c, predicted in zip((1.0, 10.0), svc(bank, labels, queries, (1.0, 10.0)), strict=True):
        oracle = SVC(C=c, gamma=1 / 12).fit(scaler.transform(bank), labels)
        assert (predicted == oracle.predict(scaler.transform(queries))).mean() > 0.97
    features, labels = np.concatenate([bank, queries]), np.concatenate([labels, overlapping(60, seed=1)[1]])
    split = np.array(["train"] * 100 + ["val"] * 50 + ["test"] * 60)
    of_all, penalty = svc_probe(features, labels, split)
    assert penalty in probe.SVC_C_VALUES
    monkeypatch.setattr(probe, "SVC_IMAGES", 40)
    of_fewer, _ = svc_probe(features, labels, split)
    assert len(of_fewer) == 60
    assert not np.array_equal(of_fewer, of_all)


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (np.ones((5, 2)), np.array(list("ababa")), "np.unique"),
        (np.ones((5, 0)), np.zeros(5, int), r"shape \(5, 0\): the array is empty"),
        (np.where(np.eye(5, 2, -2), np.nan, 1.0), np.zeros(5, int), "row 2 is not finite"),
    ],
)
def test_labels_that_are_no_numbers_and_features_that_are_not_finite_raise_an_error(features, labels, message):
    with pytest.raises(InputError, match=message):
        linear_probe(features, labels, np.array(["train", "train", "val", "val", "test"]), 2)


def test_a_line_search_that_rounding_ends_is_accepted_only_near_the_minimum():
    def problem(curvature: float, of_bias: float) -> str:
        # the loss never falls, as if rounded: every line search ends early
        loss_and_gradient = lambda u: (torch.tensor(1.0), torch.tensor([[0.002], [of_bias]]))  # noqa: E731
        return probe._minimum(loss_and_gradient, torch.zeros(2, 1), 1e-5, curvature)[1]

    assert problem(curvature=4000, of_bias=1e-4) == ""  # 0.002² / 8000 above the minimum at most
    assert "iterations" in problem(curvature=1e-3, of_bias=1e-4)  # with a flatter penalty it may be far
    assert "iterations" in problem(curvature=4000, of_bias=0.5)  # biases have no penalty


def test_a_fit_that_rounding_ends_too_early_is_continued_in_float64(monkeypatch):
    rng, labels = np.random.default_rng(0), np.arange(30) % 3
    features = rng.normal(size=(30, 8)).astype(np.float32) + 2 * np.eye(3, 8)[labels]
    expected = next(probe.fit_logistic(features, labels, 3, (0.1,)))
    kinds = []

    def noisy(self, weights, c, original=probe._Objective.loss_and_gradient):
        kinds.append(self.dtype)
        loss, gradient = original(self, weights, c)
        return (loss if self.dtype == torch.float64 else torch.tensor(1.0)), gradient  # as if it never fell

    monkeypatch.setattr(probe._Objective, "loss_and_gradient", noisy)
    found = next(probe.fit_logistic(features, labels, 3, (0.1,)))
    assert kinds[0] == torch.float32
    assert kinds[-1] == torch.float64
    assert np.allclose(found.weights, expected.weights, atol=1e-3)
