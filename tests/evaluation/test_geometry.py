from __future__ import annotations

import numpy as np
import pytest
import torch

from simtrail.evaluation.geometry import alignment, effective_rank, feature_std, uniformity

RNG = np.random.default_rng(0)


def test_effective_rank_counts_orthogonal_directions():
    assert effective_rank(np.eye(7)) == pytest.approx(7)
    assert effective_rank(np.ones((9, 4))) == pytest.approx(1)
    p = np.array([3, 1]) / 4
    assert effective_rank(np.diag([3.0, 1.0])) == pytest.approx(np.exp(-(p * np.log(p)).sum()))


def test_uniformity_of_known_sets():
    assert uniformity(np.full((2000, 3), 0.1, np.float32)) == pytest.approx(0, abs=1e-12)  # identical
    assert uniformity(np.array([[1.0, 0], [-2.0, 0]])) == pytest.approx(-8)  # antipodal: d² = 4
    assert uniformity(np.eye(600, dtype=np.float32)) == pytest.approx(-4)  # orthogonal: d² = 2


def test_uniformity_is_the_mean_over_every_pair_of_distinct_images():
    vectors = RNG.normal(size=(1100, 3))
    z = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    pairs = np.concatenate([((z[i] - z[i + 1 :]) ** 2).sum(1) for i in range(len(z))])
    assert uniformity(vectors) == pytest.approx(np.log(np.exp(-2 * pairs).mean()), abs=1e-12)


def test_uniformity_of_many_images_is_measured_on_a_seeded_sample():
    vectors = RNG.normal(size=(3000, 4))
    sampled = uniformity(vectors, seed=1, largest=1000)
    assert sampled == pytest.approx(uniformity(vectors), abs=0.05)
    assert sampled == uniformity(vectors, seed=1, largest=1000) != uniformity(vectors, seed=2, largest=1000)


def test_alignment_is_0_for_equal_2_for_orthogonal_and_4_for_opposite_views():
    x, y = np.array([[1.0, 0], [0, 3.0]]), np.array([[0, 1.0], [2.0, 0]])
    assert alignment(x, 5 * x) == pytest.approx(0)
    assert alignment(x, y) == pytest.approx(2)
    assert alignment(x, -x) == pytest.approx(4)
    assert alignment(x, np.stack([x[0], -x[1]])) == pytest.approx(2)  # the mean of 0 and 4


def test_feature_std_is_0_for_collapsed_and_largest_for_isotropic_features():
    assert feature_std(np.ones((5, 3))) == pytest.approx(0)
    assert feature_std(RNG.normal(size=(20000, 16))) == pytest.approx(1 / 4, rel=0.02)


@pytest.mark.parametrize("measure", [effective_rank, uniformity, feature_std, lambda x: alignment(x, x**2)])
def test_tensors_and_arrays_of_half_precision_give_the_same_result(measure):
    vectors = RNG.normal(size=(50, 8)).astype(np.float16)
    assert measure(torch.from_numpy(vectors)) == measure(vectors)


def test_zero_vectors_can_be_measured():
    zeros = np.zeros((4, 3))
    assert effective_rank(zeros) == pytest.approx(1)
    assert feature_std(zeros) == alignment(zeros, zeros) == 0
