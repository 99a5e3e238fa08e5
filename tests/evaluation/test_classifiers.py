from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from simtrail.evaluation import classifiers
from simtrail.evaluation.classifiers import knn, knn_probabilities, ridge_probe

RNG = np.random.default_rng(0)


def overlapping(n: int, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    labels = RNG.integers(0, classes, n)
    return (RNG.normal(size=(n, 12)) + np.eye(12)[labels]).astype(np.float32), labels


def test_knn_with_one_neighbour_equals_scikit_learn():
    (bank, labels), (queries, _) = overlapping(80), overlapping(40)
    expected = KNeighborsClassifier(1, metric="cosine").fit(bank, labels).predict(queries)
    np.testing.assert_array_equal(knn(bank, labels, queries, 1), expected)


@pytest.mark.parametrize(("k", "temperature"), [(5, 0.07), (20, 1.0), (20, 0.002), (999, 0.07)])
def test_knn_weighs_the_votes_of_k_neighbours_by_similarity(k, temperature, monkeypatch):
    monkeypatch.setattr(classifiers, "SIMILARITIES", 700)  # 7 queries at a time, of 60
    (bank, labels), (queries, _) = overlapping(100), overlapping(60)
    expected = []
    for query in queries.astype(np.float64):
        similarity = bank @ query / np.linalg.norm(bank.astype(np.float64), axis=1) / np.linalg.norm(query)
        nearest = np.argsort(-similarity)[:k]
        votes = [np.exp((similarity[nearest] - 1) / temperature)[labels[nearest] == c].sum() for c in range(4)]
        expected.append(np.argmax(votes))
    np.testing.assert_array_equal(knn(bank, labels, queries, k, temperature), expected)


def test_the_probabilities_of_a_query_sum_to_one_and_the_largest_is_its_class():
    (bank, labels), (queries, _) = overlapping(100), overlapping(60)
    probabilities = knn_probabilities(bank, labels, queries, 10, 0.07, 6)
    assert probabilities.shape == (60, 6)
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-6)
    np.testing.assert_array_equal(probabilities.argmax(1), knn(bank, labels, queries, 10))
    assert (probabilities[:, 4:] == 0).all()


def test_far_neighbours_do_not_outvote_a_near_one():
    bank = np.array([[1.0, 0.0], [0.0, 1.0], [0.05, 1.0]])
    assert knn(bank, np.array([0, 1, 1]), np.array([[1.0, 0.1]]), 3).tolist() == [0]


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("images", [5, 9, 300])  # fewer and more than features
def test_the_ridge_probe_equals_scikit_learn(classes, images):
    (bank, labels), (queries, _) = overlapping(images, classes), overlapping(200, classes)
    bank, queries = bank * 100 + 1000, queries * 100 + 1000
    bank[:, 3] = queries[:, 3] = 7  # constant
    oracle = make_pipeline(StandardScaler(), RidgeClassifier(alpha=0.1 * images)).fit(bank, labels)
    np.testing.assert_array_equal(ridge_probe(bank, labels, queries, penalty=0.1), oracle.predict(queries))


@pytest.mark.parametrize("classify", [lambda *a: knn(*a, k=5), ridge_probe])
def test_tensors_give_the_same_result_as_arrays_and_absent_classes_are_never_predicted(classify):
    (bank, labels), (queries, _) = overlapping(80), overlapping(40)
    labels = labels * 3  # classes 1, 2, 4, … have no image
    predicted = classify(bank, labels, queries)
    assert set(predicted) <= set(labels)
    np.testing.assert_array_equal(classify(torch.from_numpy(bank), labels, torch.from_numpy(queries)), predicted)
