"""The optimisers and their learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import nn

from simtrail.params import Pretrain


def learning_rate(step: int, steps: int, peak: float, warmup: float) -> float:
    """The learning rate of step 0 … steps − 1: a linear rise over the fraction `warmup`, then a cosine to 0."""
    rise = round(warmup * steps)
    if step < rise:
        return peak * (step + 1) / rise
    return 0.5 * peak * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def peak_rate(params: Pretrain) -> float:
    """The peak learning rate, scaled with the batch size or its square root (arXiv 2002.05709, appendix B.1)."""
    ratio = params.batch_size / 256
    return params.learning_rate * (ratio if params.learning_rate_scaling == "linear" else math.sqrt(ratio))


def make_optimiser(modules: list[nn.Module], params: Pretrain) -> torch.optim.Optimizer:
    """The optimiser that `params` names, for the modules; its learning rate is 0 until the loop sets it in every group.

    Vectors (biases and normalisation layers) have no weight decay, and LARS does not adapt their learning rate.
    """
    weights = [w for module in modules for w in module.parameters()]
    groups = [
        {"params": [w for w in weights if w.ndim > 1], "weight_decay": params.weight_decay, "adapt": True},
        {"params": [w for w in weights if w.ndim <= 1], "weight_decay": 0.0, "adapt": False},
    ]
    return OPTIMISERS[params.optimiser](groups, lr=0.0)


class Lars(torch.optim.Optimizer):
    """LARS with the classic momentum of SimCLR's published code (You et al. 2017, arXiv 1708.03888).

    For each weight w with gradient g: g ← g + decay·w; v ← momentum·v + lr·r·g; w ← w − v. Here r = trust·‖w‖/‖g‖, or
    r = 1 if a norm is 0 or `adapt` of the group is False.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
        adapt: bool = True,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust, "adapt": adapt}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            weights = [w for w in group["params"] if w.grad is not None]
            if not weights:
                continue
            for w in weights:
                if not self.state[w]:
                    self.state[w]["velocity"] = torch.zeros_like(w)
            steps = torch._foreach_add([w.grad for w in weights], weights, alpha=group["weight_decay"])
            if group["adapt"]:
                w_norms = torch.stack(torch._foreach_norm(weights))
                g_norms = torch.stack(torch._foreach_norm(steps))
                ratios = torch.where((w_norms > 0) & (g_norms > 0), group["trust"] * w_norms / g_norms, 1.0)
                torch._foreach_mul_(steps, list(ratios.unbind()))
            velocities = [self.state[w]["velocity"] for w in weights]
            torch._foreach_mul_(velocities, group["momentum"])
            torch._foreach_add_(velocities, steps, alpha=group["lr"])
            torch._foreach_sub_(weights, velocities)


OPTIMISERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": partial(torch.optim.AdamW, fused=True),
    "sgd": partial(torch.optim.SGD, momentum=0.9),
    "lars": Lars,
}
