from __future__ import annotations

import math

import pytest
import torch

from simtrail.model.objectives import contrastive_top1, nt_xent


def oracle(z: torch.Tensor, temperature: float) -> float:
    """Equation 1 of arXiv 2002.05709 with nested loops."""
    rows = [[float(x) for x in row] for row in z]
    views, images = len(rows), len(rows) // 2

    def similarity(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))

    total = 0.0
    for i in range(views):
        j = (i + images) % views
        denominator = sum(math.exp(similarity(rows[i], rows[k]) / temperature) for k in range(views) if k != i)
        total -= math.log(math.exp(similarity(rows[i], rows[j]) / temperature) / denominator)
    return total / views


@pytest.mark.parametrize("images", [2, 3, 8])
@pytest.mark.parametrize("temperature", [0.07, 0.5, 1.0])
def test_nt_xent_equals_the_equation(images, temperature):
    z = torch.randn(2 * images, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(images))
    assert nt_xent(z, temperature).item() == pytest.approx(oracle(z, temperature), rel=1e-12)


@pytest.mark.parametrize("images", [2, 7, 64])
def test_equal_vectors_give_the_log_of_the_other_views(images):
    loss = nt_xent(torch.ones(2 * images, 3, dtype=torch.float64), 0.1)
    assert loss.item() == pytest.approx(math.log(2 * images - 1), rel=1e-12)


def test_gradient():
    z = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: nt_xent(z, 0.3), z)


def test_length_does_not_matter_and_half_precision_is_computed_in_float32():
    z = torch.randn(8, 16)
    scaled = z * torch.rand(8, 1).add(0.1)
    torch.testing.assert_close(nt_xent(z, 0.2), nt_xent(scaled, 0.2))
    assert nt_xent(z.bfloat16(), 0.05).dtype == torch.float32


@pytest.mark.parametrize("shape", [(2, 4), (5, 4), (4,)])
def test_shapes_without_two_views_of_two_images_are_refused(shape):
    with pytest.raises(ValueError, match="must be"):
        nt_xent(torch.zeros(shape), 0.1)


def test_top1_counts_the_partners_found():
    a, b, c = torch.eye(3)
    assert contrastive_top1(torch.stack([a, b, c, a, b, c])) == 1
    assert contrastive_top1(torch.stack([a, a + 0.1 * b, b, b + 0.1 * a])) == 0
