from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import silhouette_score

from simtrail.evaluation import angles as module
from simtrail.evaluation.angles import class_angles, examples, outliers

RNG = np.random.default_rng(0)


def true_angles(features: np.ndarray) -> np.ndarray:
    """The (N, N) true angles in degrees, computed pair by pair from distances, which are exact for small angles too."""
    z = features.astype(np.float64) / np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    return np.array([[np.degrees(2 * np.arcsin(min(1, np.linalg.norm(a - b) / 2))) for b in z] for a in z])


def overlapping(n: int = 90, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    labels = RNG.integers(0, classes, n)
    return (RNG.normal(size=(n, 6)) + 2 * np.eye(6)[labels]).astype(np.float32), labels


def around(degrees: list[float]) -> np.ndarray:
    """Vectors of different lengths at these angles from the first axis."""
    return np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], 1) * RNG.uniform(
        1, 9, (len(degrees), 1)
    )


@pytest.mark.parametrize("rows", [16, 256])
def test_mean_angles_equal_the_means_over_a_loop_of_pairs(rows, monkeypatch):
    monkeypatch.setattr(module, "ROWS", rows)
    features, labels = overlapping()
    pairs, measured = true_angles(features), class_angles(features, labels, 4)
    for i in range(len(labels)):
        for c in range(4):
            rest = (labels == c) & (np.arange(len(labels)) != i)
            assert measured.to_class[i, c] == pytest.approx(pairs[i, rest].mean(), abs=1e-6)
    distinct, same = ~np.eye(len(labels), dtype=bool), labels[:, None] == labels
    for a in range(4):
        for b in range(4):
            selected = (labels[:, None] == a) & (labels == b) & distinct
            assert measured.matrix[a, b] == pytest.approx(pairs[selected].mean(), abs=1e-6)
    assert measured.within == pytest.approx(pairs[same & distinct].mean(), abs=1e-6)
    assert measured.between == pytest.approx(pairs[~same].mean(), abs=1e-6)
    np.testing.assert_allclose(measured.matrix, measured.matrix.T, atol=1e-10)
    np.testing.assert_array_equal(measured.to_same_class, measured.to_class[np.arange(len(labels)), labels])


def test_the_silhouette_equals_scikit_learn_with_classes_of_one_image():
    features, labels = overlapping()
    labels[0], labels[1] = 4, 6  # classes of one image; class 5 has no image
    expected = silhouette_score(true_angles(features), labels, metric="precomputed")
    assert class_angles(features, labels, 8).silhouette == pytest.approx(expected, abs=1e-8)


def test_angles_are_true_angles_of_vectors_of_any_length():
    measured = class_angles(around([0, 30, 90, 180]), np.array([0, 0, 1, 1]), 2)
    np.testing.assert_allclose(measured.to_same_class, [30, 30, 90, 90])
    np.testing.assert_allclose(measured.matrix, [[30, (90 + 180 + 60 + 150) / 4], [120, 90]])


def test_small_angles_are_exact_for_single_precision_features():
    features = np.array([[1, 0], [1, 1e-4]], np.float32)
    assert class_angles(features, np.array([0, 0]), 1).within == pytest.approx(np.degrees(1e-4), abs=1e-6)


def test_classes_of_one_image_or_none_have_no_angle_within():
    measured = class_angles(around([0, 10, 50]), np.array([0, 0, 2]), 3)
    assert np.isnan(measured.to_same_class).tolist() == [False, False, True]
    assert np.isnan(measured.matrix).tolist() == [[False, True, False], [True, True, True], [False, True, True]]
    assert measured.within == pytest.approx(10)
    assert measured.silhouette == pytest.approx((40 / 50 + 30 / 40 + 0) / 3)


def test_two_images_are_enough():
    apart = class_angles(around([0, 40]), np.array([0, 1]), 2)
    assert np.isnan(apart.within)
    assert apart.between == pytest.approx(40)
    assert apart.silhouette == 0
    alike = class_angles(around([0, 40]), np.array([0, 0]), 1)
    assert alike.within == pytest.approx(40)
    assert np.isnan([alike.between, alike.silhouette]).all()


@pytest.mark.parametrize("value", [0.1, 0.0])
def test_constant_features_have_no_structure(value):
    features = np.full((40, 7), value, np.float32)
    labels = np.arange(40) % 2
    measured = class_angles(features, labels, 2)
    # equal images are at exactly 0°; zero vectors are at 90° to all vectors
    assert [measured.within, measured.between] == ([0, 0] if value else pytest.approx([90, 90]))
    assert measured.silhouette == 0
    assert outliers(measured, labels).empty


def test_a_seeded_sample_of_many_images_keeps_two_of_every_class():
    features, labels = overlapping(3000, 3)
    labels[[5, 6, 7]] = [3, 3, 4]
    measured = class_angles(features, labels, 5, largest=100, seed=1)
    assert len(np.unique(measured.rows)) == len(measured.to_same_class) == len(measured.to_class) == 100
    assert set(measured.rows) >= {5, 6, 7}
    assert measured.within == pytest.approx(class_angles(features, labels, 5).within, abs=4)
    np.testing.assert_array_equal(measured.rows, class_angles(features, labels, 5, largest=100, seed=1).rows)
    assert set(measured.rows) != set(class_angles(features, labels, 5, largest=100, seed=2).rows)
    np.testing.assert_allclose(
        measured.to_class, class_angles(features[measured.rows], labels[measured.rows], 5).to_class, atol=1e-9
    )


def test_outliers_are_far_from_their_class_compared_with_its_deviation():
    degrees = RNG.normal(0, 3, 30)
    features = around([*degrees, 25, 60, *(90 + degrees), 0, 0, 0, 170])
    labels = np.array([0] * 32 + [1] * 30 + [2] * 4)  # class 2 has too few images for outliers
    measured = class_angles(features, labels, 3)
    table = outliers(measured, labels)
    assert table["row"].tolist() == [31, 30]
    assert table["label"].tolist() == [0, 0]
    angle = measured.to_same_class[:32]
    limit = np.median(angle) + 3.5 * 1.4826 * np.median(np.abs(angle - np.median(angle)))
    assert table["limit"].tolist() == pytest.approx([limit, limit])
    assert table["angle"].tolist() == pytest.approx(measured.to_same_class[[31, 30]].tolist())


def test_among_copies_of_one_image_only_the_different_image_is_an_outlier():
    features = np.concatenate([np.repeat(RNG.normal(size=(1, 50)), 9, axis=0), RNG.normal(size=(1, 50))])
    labels = np.zeros(10, int)
    assert outliers(class_angles(features, labels, 1), labels)["row"].tolist() == [9]


def test_outliers_of_a_sample_have_their_row_among_all_images():
    features, labels = around([*RNG.normal(0, 2, 200), 90]), np.zeros(201, int)
    samples = [outliers(class_angles(features, labels, 1, largest=150, seed=s), labels)["row"] for s in range(4)]
    assert {200} <= set(np.concatenate(samples)) <= set(range(201))
    assert all(rows.iloc[0] == 200 for rows in samples if 200 in set(rows))


def test_examples_are_ranked_by_mean_angle_to_the_class():
    features, labels = around([0, 1, 2, 10, 30, 14, 90]), np.array([0, 0, 0, 0, 0, 1, 1])
    by_kind = examples(class_angles(features, labels, 3), labels, 0, count=2)
    assert {kind: rows.tolist() for kind, rows in by_kind.items()} == {
        "nearest": [2, 1],
        "farthest": [4, 3],
        "others": [5, 6],
    }


def test_a_class_of_one_image_or_none_has_fewer_examples():
    features, labels = around([0, 5, 50]), np.array([0, 1, 1])
    measured = class_angles(features, labels, 3)
    assert [rows.tolist() for rows in examples(measured, labels, 0).values()] == [[0], [0], [1, 2]]
    assert [rows.tolist() for rows in examples(measured, labels, 2).values()] == [[], [], []]
