from __future__ import annotations

import pytest
import torch
from torch import nn

from simtrail.model.projector import projection_head
from simtrail.params import Head


def head(depth: int, batch_norm: bool = True) -> nn.Sequential:
    return projection_head(6, Head(depth=depth, hidden=5, output=4, batch_norm=batch_norm))


@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_head_has_depth_linear_layers_and_one_normalisation_before_each_relu(depth, batch_norm):
    g = head(depth, batch_norm)
    hidden = ["Linear", "BatchNorm1d", "ReLU"] if batch_norm else ["Linear", "ReLU"]
    types = [type(m).__name__ for m in g.modules() if not isinstance(m, nn.Sequential)]
    assert types == hidden * (depth - 1) + ["Linear"]
    assert len(g) == depth
    assert g(torch.rand(3, 6)).shape == (3, 4)


def test_depth_zero_is_the_identity():
    x = torch.rand(3, 6)
    assert torch.equal(head(0)(x), x)
    assert not list(head(0).parameters())


def test_a_layer_has_a_bias_if_no_batch_norm_follows_and_the_last_layer_has_none():
    def has_bias(g: nn.Sequential) -> list[bool]:
        return [m.bias is not None for m in g.modules() if isinstance(m, nn.Linear)]

    assert has_bias(head(3)) == [False, False, False]
    assert has_bias(head(3, batch_norm=False)) == [True, True, False]
