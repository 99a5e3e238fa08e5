"""The projection head g(h): what the objective sees (section 4.2 of the paper)."""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from simtrail.params import Head


def projection_head(features: int, head: Head) -> nn.Sequential:
    """A head of `head.depth` layers, (V, features) → (V, head.output); of depth 0 the identity.

    Each hidden layer is linear, then batch-normalised if asked for, then rectified; the last is linear without bias.
    `g[:k]` is the head up to and with its layer k.
    """
    widths = [features, *[head.hidden] * (head.depth - 1), head.output]
    hidden = [
        nn.Sequential(
            nn.Linear(a, b, bias=not head.batch_norm),  # batch normalisation has a bias of its own
            *([nn.BatchNorm1d(b)] if head.batch_norm else []),
            nn.ReLU(inplace=True),
        )
        for a, b in pairwise(widths[:-1])
    ]
    last = [nn.Sequential(nn.Linear(widths[-2], head.output, bias=False))] if head.depth else []
    return nn.Sequential(*hidden, *last)
