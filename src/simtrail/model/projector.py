"""The projection head g(h): what NT-Xent sees, and what is thrown away after training (section 4.2 of the paper)."""

from __future__ import annotations

from torch import nn


def projection_head(features: int, hidden: int, projection: int) -> nn.Module:
    """A two-layer head, (V, features) → (V, projection), with batch normalisation before its ReLU."""
    return nn.Sequential(
        nn.Linear(features, hidden, bias=False),
        nn.BatchNorm1d(hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, projection, bias=False),
    )
