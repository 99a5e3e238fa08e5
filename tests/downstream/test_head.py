from __future__ import annotations

import numpy as np
import pytest
from conftest import blobs
from sklearn.svm import SVC

from simtrail.downstream.head import (
    Head,
    calibration,
    evidence,
    fit_head,
    groups_needed,
    next_to_label,
    softmax,
    threshold_for,
)
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


@pytest.mark.parametrize("kind", ["linear", "svc", "knn"])
def test_each_kind_learns_saves_and_loads(kind, tmp_path):
    x, y = blobs(200, spread=0.7)
    fitted = fit_head(x[:120], y[:120], np.arange(120), 0.05, (kind,))
    assert fitted.head.kind == kind
    assert fitted.accuracy > 0.8
    p = fitted.head.probabilities(x[120:])
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)
    assert (np.array(fitted.head.names)[p.argmax(1)] == y[120:]).mean() > 0.8
    fitted.head.save(tmp_path)
    again = Head.load(tmp_path)
    np.testing.assert_array_equal(again.probabilities(x[120:]), p)
    assert vars(again).keys() == vars(fitted.head).keys()
    assert (again.threshold, again.names, again.error) == (fitted.head.threshold, fitted.head.names, 0.05)
    (tmp_path / "head.json").write_text("{")
    with pytest.raises(InputError, match="no head, or a damaged one"):
        Head.load(tmp_path)


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
    assert fit_head(x, labels[groups], groups, kinds=("knn",)).accuracy < 0.75
    assert fit_head(x, labels[groups], np.arange(200), kinds=("knn",)).accuracy == 1


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


def test_evidence_is_the_nearest_of_other_images_and_unlike_is_a_rank():
    bank = np.eye(8, dtype=np.float32)[[0, 0, 1, 1, 2, 2]] + 0.05 * np.random.default_rng(0).random((6, 8))
    groups = np.arange(6)
    queries = np.stack([np.eye(8)[1], np.eye(8)[7]]).astype(np.float32)
    rows, unlike = evidence(queries, bank.astype(np.float32), groups)
    assert set(rows[0, :2]) == {2, 3}
    assert rows.shape == (2, 3)
    assert unlike[0] < 0.9
    assert unlike[1] == 1


def test_images_to_label_next_are_uncertain_and_of_all_kinds():
    x, y = blobs(400, classes=4, spread=0.05)
    p = np.where(np.isin(y, ["c2", "c3"])[:, None], (0.5, 0.5), (0.99, 0.01))
    assert sorted(y[next_to_label(p, x, 2)]) == ["c2", "c3"]
    every = next_to_label(np.full((400, 2), 0.5), x, 4)
    assert sorted(y[every]) == ["c0", "c1", "c2", "c3"]
    assert len(next_to_label(p[:3], x[:3], 5)) == 3
