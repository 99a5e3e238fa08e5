from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from simtrail.model.objectives import dcl, nt_xent
from simtrail.training.gradient import backward

OFF = torch.amp.GradScaler("cpu", enabled=False)


def network(norm: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 16), norm, nn.ReLU(), nn.Linear(16, 8)).double()


def two_views(images: torch.Tensor, start: int) -> torch.Tensor:
    """Views that depend on the position of an image in the batch, as drawn views do."""
    positions = torch.arange(start, start + len(images))[:, None, None, None]
    return torch.cat([images + 0.1 * positions, images * 2 - 0.1 * positions])


def three_views(images: torch.Tensor, start: int) -> torch.Tensor:
    return torch.cat([two_views(images, start), images.square()])


def gradients(norm: nn.Module, micro: int | None, objective, draw=two_views) -> tuple[float, list, nn.Module]:
    net = network(norm)
    batch = torch.rand(12, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    batch = batch.double()

    def loss_and_terms(z):
        value = objective(z, 0.2, images=12)
        return value, {"one": value.detach()}

    loss, term_values, projections = backward(net, batch, draw, loss_and_terms, OFF, nullcontext(), micro)
    assert term_values["one"] == loss
    assert projections.shape == (24 if draw is two_views else 36, 8)
    return loss.item(), [p.grad for p in net.parameters()], net


@pytest.mark.parametrize("objective", [nt_xent, dcl])
@pytest.mark.parametrize("micro", [1, 3, 4, 6])
@pytest.mark.parametrize("draw", [two_views, three_views])
def test_cached_gradients_equal_the_gradients_of_the_whole_batch(micro, objective, draw):
    loss, expected, _ = gradients(nn.LayerNorm(16), None, objective, draw)
    cached_loss, cached, _ = gradients(nn.LayerNorm(16), micro, objective, draw)
    assert cached_loss == pytest.approx(loss, rel=1e-6)  # the loss is computed from float32 projections
    for a, b in zip(cached, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_batch_statistics_count_every_image_once():
    _, _, net = gradients(nn.BatchNorm1d(16), 4, nt_xent)
    norm = net[2]
    assert norm.momentum == 0.1
    mean = torch.zeros(16, dtype=torch.float64)
    batch = torch.rand(12, 3, 2, 2, generator=torch.Generator().manual_seed(1)).double()
    for start in (0, 4, 8):
        with torch.no_grad():
            mean = 0.9 * mean + 0.1 * net[:2](two_views(batch[start : start + 4], start)).mean(0)
    torch.testing.assert_close(norm.running_mean, mean)
