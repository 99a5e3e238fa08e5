"""One run in several processes, started by torchrun: DDP, negatives and batch statistics of the whole batch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from timm.layers.norm_act import BatchNormAct2d, convert_sync_batchnorm
from torch import nn

from simtrail.errors import TrainingError

T = TypeVar("T")


def rank() -> int:
    """The number of this process; process 0 writes the files."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """The number of processes of this run."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def processes() -> Iterator[None]:
    """Joins the processes that torchrun started, each with one GPU if there are any; does nothing in a single process.

    Raises TrainingError in the remaining processes when one has died.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield
    except RuntimeError as error:  # gloo has no exception class for a lost process
        if isinstance(error, dist.DistError) or "onnection" in str(error):
            raise TrainingError(
                f"process {rank()} of {world()} lost the connection to another one "
                f"({' '.join(str(error).split())[:120]}); see the first error above; to continue from "
                "the last checkpoint, run the same command again"
            ) from None
        raise
    finally:
        dist.destroy_process_group()


def from_first(value: T) -> T:
    """The value that the first process has, in every process."""
    if world() == 1:
        return value
    values: list[Any] = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def gathered(projections: torch.Tensor, images: int) -> torch.Tensor:
    """The projections of the whole batch, (2B, D), in its order, from the (2B/N, D) of each of N processes.

    `images` is B/N; there may be more than two views of each.

    Every process then has the same loss of the whole batch, and keeps N times the gradient of its rows. After DDP's
    mean over the processes, weights have the same gradient as in one process with the whole batch.
    """
    return projections if world() == 1 else _Gathered.apply(projections, images)


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: torch.Tensor, images: int) -> torch.Tensor:
        parts = [torch.empty_like(local) for _ in range(world())]
        dist.all_gather(parts, local.contiguous())
        ctx.images = images
        return torch.stack([part.unflatten(0, (-1, images)) for part in parts], 1).flatten(0, 2)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return world() * grads[0].unflatten(0, (-1, world(), ctx.images))[:, rank()].flatten(0, 1), None


class _Sum(torch.autograd.Function):
    """The sum over all processes: of values in the forward pass, of gradients in the backward pass."""

    @staticmethod
    def forward(ctx: Any, local: torch.Tensor) -> torch.Tensor:
        total = local.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        return _Sum.forward(ctx, grads[0].contiguous())


def synchronised(module: nn.Module) -> nn.Module:
    """The same module, now with batch normalisation over all processes; its state dict keeps its keys."""
    if next(module.parameters()).is_cuda:
        return convert_sync_batchnorm(module)
    for child in module.modules():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            child.__class__ = _SyncBatchNormAct if isinstance(child, BatchNormAct2d) else _SyncBatchNorm
    return module


class _SyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation with statistics over all processes, on the CPU, for which torch does not have it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return nn.functional.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        dims = [d for d in range(x.ndim) if d != 1]
        shape = [1, -1] + [1] * (x.ndim - 2)
        count = x.numel() // x.shape[1] * world()
        values = x.float()
        mean = _Sum.apply(values.sum(dims)) / count
        centred = values - mean.view(shape)
        variance = _Sum.apply(centred.square().sum(dims)) / count
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            self.num_batches_tracked += 1
            momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * count / (count - 1), momentum)
        normalised = centred * (variance + self.eps).rsqrt().view(shape)
        if self.weight is not None:
            normalised = normalised * self.weight.view(shape) + self.bias.view(shape)
        return normalised.to(x.dtype)

    def _check_input_dim(self, input: torch.Tensor) -> None:
        pass


class _SyncBatchNormAct(_SyncBatchNorm):
    """timm's batch normalisation, followed by an activation."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.drop(super().forward(x)))  # type: ignore[operator]
