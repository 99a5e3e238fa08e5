"""The gradient of one step, over all processes, and in parts if the batch does not fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from simtrail.training.distributed import gathered

Objective = Callable[[torch.Tensor], tuple[torch.Tensor, dict[str, torch.Tensor]]]
Draw = Callable[[torch.Tensor, int], Any]


def backward(
    network: nn.Module,
    batch: torch.Tensor,
    draw: Draw,
    objective: Objective,
    scaler: torch.amp.GradScaler,
    autocast: AbstractContextManager,
    micro_batch: int | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
    """The loss, its terms, and the projections (2B, D) of the whole batch; the weights keep the scaled gradient.

    `batch` is the part of this process. `draw(images, start)` gives the views of some of its images, `network` turns
    them into projections (2B, D), with more rows if there are local views, and `objective` turns projections into a
    loss and its terms by name. With a `micro_batch`, all projections are first computed without a graph, and the
    gradient of the loss with respect to them is stored. Then each part is computed again, and its backward pass starts
    from this gradient (GradCache, arXiv 2101.06983). The result is the same as for the whole batch, except that batch
    normalisation sees one part at a time.
    """
    if micro_batch is None or micro_batch >= len(batch):
        views = draw(batch, 0)  # in float32, because warps lose accuracy in lower precision
        with autocast:
            local = network(views)
        projections = gathered(local.float(), len(batch))
        loss, terms = objective(projections)
        scaler.scale(loss).backward()
        return loss.detach(), terms, projections.detach()

    starts = range(0, len(batch), micro_batch)

    def part(start: int) -> torch.Tensor:
        images = batch[start : start + micro_batch]
        views = draw(images, start)
        with autocast:
            return network(views).float().unflatten(0, (-1, len(images)))

    with torch.no_grad(), _unchanged_statistics(network):
        cached = torch.cat([part(start) for start in starts], 1)
    cached.requires_grad_()
    projections = gathered(cached.flatten(0, 1), len(batch))
    loss, terms = objective(projections)
    scaler.scale(loss).backward()
    assert cached.grad is not None
    for start in starts:
        last = start == starts[-1]
        # processes exchange their gradients once, with the last part
        with network.no_sync() if not last and isinstance(network, DistributedDataParallel) else nullcontext():
            part(start).backward(cached.grad[:, start : start + micro_batch])
    return loss.detach(), terms, projections.detach()


@contextmanager
def _unchanged_statistics(network: nn.Module) -> Iterator[None]:
    """Keeps the running statistics of batch normalisation unchanged, so that no image counts twice."""
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    yield
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
