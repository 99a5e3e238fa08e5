from __future__ import annotations

import numpy as np
import pytest
import torch

from simtrail.evaluation.classifiers import knn
from simtrail.model import whitening
from simtrail.model.whitening import Whitening, fitted, whitened


def features(n: int = 300, width: int = 40, seed: int = 0) -> torch.Tensor:
    """Gaussian features with very different variances, in directions that are not those of the axes, and a mean."""
    rng = np.random.default_rng(seed)
    turned = np.linalg.qr(rng.normal(size=(width, width)))[0]
    return torch.from_numpy(rng.normal(size=(n, width)) * 2.0 ** -(np.arange(width) ** 0.5) @ turned + 3).float()


def oracle(x: np.ndarray, directions: int) -> np.ndarray:
    """Half-whitened features in float64, by a whole eigendecomposition of the covariance."""
    x = x.astype(np.float64) - x.mean(0, dtype=np.float64)
    variance, basis = np.linalg.eigh(x.T @ x / len(x))
    variance, basis = variance[::-1], basis[:, ::-1]
    scale = np.maximum(variance, variance[directions - 1]) ** -0.25  # 1 / √(standard deviation)
    result = x @ basis * scale @ basis.T
    return result * np.sqrt(np.square(x).sum() / np.square(result).sum())


@pytest.mark.parametrize(("n", "directions"), [(300, 40), (100, 25), (30, 7)])
def test_features_are_divided_by_the_root_of_their_standard_deviation_in_each_direction(n, directions):
    x = features(n)
    found = fitted(x)
    assert len(found.scale) == directions  # four images for each, at least
    np.testing.assert_allclose(found(x), oracle(x.numpy(), directions), atol=2e-3)


def test_nothing_is_lost():
    x = features(60)
    found = fitted(x)
    torch.testing.assert_close(found.undo(found(x)), x, atol=1e-4, rtol=1e-4)
    other = features(20, seed=1)  # also of images that it has not seen
    torch.testing.assert_close(found.undo(found(other)), other, atol=1e-4, rtol=1e-4)


def test_neighbours_are_no_longer_decided_by_what_varies_most():
    rng = np.random.default_rng(0)
    classes = np.arange(400) % 4
    x = np.concatenate([np.eye(4)[classes] + 0.2 * rng.normal(size=(400, 4)), 20 * rng.normal(size=(400, 2))], 1)
    x = torch.from_numpy(x + 1).float()
    plain, white = (
        (knn(f[:300], classes[:300], f[300:], 10) == classes[300:]).mean() for f in (x, whitened(x, slice(300)))
    )
    assert white > plain + 0.2


def test_it_is_fitted_to_the_training_images_only_and_the_same_every_time():
    x = features(200)
    changed = torch.cat([x[:100], 5 * x[100:]])
    assert whitened(x, slice(100))[:100].equal(whitened(changed, slice(100))[:100])
    state = torch.get_rng_state()
    assert fitted(x)(x).equal(fitted(x)(x))
    assert torch.get_rng_state().equal(state)


@pytest.mark.parametrize("x", [features(3), torch.ones(50, 8), torch.zeros(0, 8)])
def test_too_few_or_equal_features_stay(x):
    assert fitted(x) is None
    assert whitened(x, slice(None)).equal(x)


def test_dead_dimensions_do_not_become_strong():
    x = features(200)
    x[:, 7] = 0.25
    assert fitted(x)(x)[:, 7].abs().max() < 1e-2


def test_a_large_set_is_fitted_to_a_part_that_represents_it(monkeypatch):
    x = features(4000)
    whole = fitted(x)
    monkeypatch.setattr(whitening, "SAMPLE", 1000)
    assert torch.nn.functional.cosine_similarity(fitted(x)(x), whole(x)).min() > 0.95


def test_before_it_is_fitted_it_changes_nothing():
    x = features(10)
    assert Whitening(40, 8)(x).equal(x)
