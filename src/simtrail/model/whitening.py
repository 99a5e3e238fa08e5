"""Whitening of features: directions in which they vary much count less, so that cosines tell images apart better."""

from __future__ import annotations

import torch
from torch import nn

DIRECTIONS = 256  # whitened at most; with twice as many, neighbours were no better
SAMPLE = 5000  # images that it is fitted to, at most
IMAGES = 4  # for each direction, at least: of fewer, its variance would mostly be chance
ROWS = 8192  # whitened at a time
OVERSAMPLED = 10  # directions looked for beyond those that are used, so that the last of these are right
FLOOR = 1e-6  # of the largest variance: below it there is only rounding


class Whitening(nn.Module):
    """Maps features (…, width) to half-whitened ones of the same width, mean 0 and total variance.

    Whitening as a last layer (Kalapos and Gyires-Tóth 2024, arXiv 2408.07519) divides the features, along each
    principal direction, by their standard deviation. This divides by its square root, because weak directions are
    mostly noise. All directions beyond the first `directions` are scaled like the last of these: nothing is lost, and
    `undo` gives the features back. A new one, not yet `fitted`, changes nothing.
    """

    mean: torch.Tensor
    basis: torch.Tensor
    scale: torch.Tensor
    rest: torch.Tensor

    def __init__(self, width: int, directions: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("basis", torch.zeros(width, directions))  # orthonormal columns
        self.register_buffer("scale", torch.ones(directions))
        self.register_buffer("rest", torch.ones(()))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self._scaled(features.float() - self.mean, self.scale, self.rest)

    def undo(self, features: torch.Tensor) -> torch.Tensor:
        """The features from which these were made."""
        return self._scaled(features, 1 / self.scale, 1 / self.rest) + self.mean

    def _scaled(self, x: torch.Tensor, scale: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
        return x * rest + (x @ self.basis * (scale - rest)) @ self.basis.T


@torch.no_grad()
def fitted(features: torch.Tensor) -> Whitening | None:
    """The whitening of features (N, width) of training images; None for fewer than four images, or equal features.

    Principal directions are found by a randomised method with a fixed seed (Halko et al. 2011, arXiv 0909.4061).
    """
    n, width = min(len(features), SAMPLE), features.shape[1]
    x = features[torch.linspace(0, len(features) - 1, n).long()].float()
    mean = x.mean(0)
    x = x - mean
    count, variance = min(DIRECTIONS, n // IMAGES, width), x.square().sum(1).mean()
    if not count or variance <= 0:
        return None
    with torch.random.fork_rng([x.device] if x.is_cuda else []):
        torch.manual_seed(0)
        _, values, basis = torch.svd_lowrank(x, min(count + OVERSAMPLED, n, width), niter=4)
    of_direction = values[:count].square() / n
    whitening = Whitening(width, count).to(x.device)
    whitening.mean.copy_(mean)
    whitening.basis.copy_(basis[:, :count])
    whitening.scale.copy_(of_direction.clamp_min(FLOOR * of_direction[0]) ** -0.25)
    whitening.rest.copy_(whitening.scale[-1])
    factor = (variance / whitening(x + mean).square().sum(1).mean()).sqrt()
    whitening.scale.mul_(factor)
    whitening.rest.mul_(factor)
    return whitening


@torch.no_grad()
def whitened(features: torch.Tensor, train: torch.Tensor | slice) -> torch.Tensor:
    """The features, half-whitened as those of the `train` images need it; unchanged where `fitted` gives None."""
    whitening = fitted(features[train])
    return features if whitening is None else torch.cat([whitening(part) for part in features.split(ROWS)])
