"""The projection head g(h), whose output the objective compares (section 4.2 of the paper)."""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from simtrail.params import Head


def projection_head(features: int, head: Head) -> nn.Sequential:
    """A head of `head.depth` layers, (V, features) → (V, head.output); the identity for depth 0.

    Each hidden layer is linear, then batch normalisation if `head.batch_norm`, then ReLU. The last layer is linear
    without bias. `g[:k]` is the first k layers of a head g.
    """
    widths = [features, *[head.hidden] * (head.depth - 1), head.output]
    hidden = [
        nn.Sequential(
            nn.Linear(a, b, bias=not head.batch_norm),  # batch normalisation adds its own bias
            *([nn.BatchNorm1d(b)] if head.batch_norm else []),
            nn.ReLU(inplace=True),
        )
        for a, b in pairwise(widths[:-1])
    ]
    last = [nn.Sequential(nn.Linear(widths[-2], head.output, bias=False))] if head.depth else []
    return nn.Sequential(*hidden, *last)
