"""Learning rate and weight decay."""

from __future__ import annotations

import math

import torch
from torch import nn


def learning_rate(step: int, steps: int, peak: float, warmup: float) -> float:
    """The learning rate of step 0 … steps − 1: a linear rise over the first share `warmup`, then a cosine to 0."""
    rise = round(warmup * steps)
    if step < rise:
        return peak * (step + 1) / rise
    return 0.5 * peak * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def adamw(modules: list[nn.Module], weight_decay: float) -> torch.optim.AdamW:
    """AdamW over the modules; biases and normalisation layers (every vector) are not decayed."""
    weights = [w for module in modules for w in module.parameters()]
    decayed, exempt = [w for w in weights if w.ndim > 1], [w for w in weights if w.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": exempt, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0.0)
