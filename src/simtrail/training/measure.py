"""What a training step costs on this machine: seconds in each precision, and memory for each image."""

from __future__ import annotations

import time

import torch

from simtrail.model.encoder import Encoder
from simtrail.params import Pretrain
from simtrail.training.distributed import world
from simtrail.training.learner import LOW
from simtrail.training.machine import ready_for
from simtrail.training.memory import batch_too_large, is_out_of_memory

REPEATS, IMAGES, FEW = 5, 32, 4
HOPELESS = 4  # times the fastest of few images: not measured on more; without units, bf16 takes ten times as long


def step_seconds(encoder: Encoder, precisions: list[str], images: int = IMAGES) -> dict[str, float]:
    """The seconds per image of a forward and a backward pass of two views, by precision: the fastest of five.

    The encoder is on its device; its weights and its mode don't change. The precisions take turns, so that another
    program that slows the machine down slows all of them.
    """
    few = images if encoder.device.type == "cuda" else min(images, FEW)

    def seconds(precision: str, images: int) -> float:
        _synchronise(encoder)
        start = time.perf_counter()
        _passes(encoder, precision, images)
        _synchronise(encoder)
        return (time.perf_counter() - start) / images

    with ready_for(encoder.device):
        of_few = {precision: min(seconds(precision, few) for _ in range(3)) for precision in precisions}  # 1st compiles
        hopeful = [p for p in precisions if of_few[p] <= HOPELESS * min(of_few.values())]
        rounds = [{p: seconds(p, images) for p in hopeful} for _ in range(1 + REPEATS)][1:]  # the first allocates
    return of_few | {p: min(each[p] for each in rounds) for p in hopeful}


def check_memory(encoder: Encoder, params: Pretrain) -> None:
    """Raises OutOfMemory if the memory does not allow a step with the encoder's largest views.

    The encoder is on its device; its weights and its mode don't change.
    """
    batch = params.batch_size // world()
    at_once = min(params.micro_batch_size or batch, batch)

    def attempt(images: int) -> None:
        _passes(encoder, params.precision, images, params.local_views)

    try:
        return attempt(at_once)
    except RuntimeError as error:
        if world() > 1 or not is_out_of_memory(error):
            raise
    raise batch_too_large(params.batch_size, at_once, attempt)  # outside the handler, which keeps the memory


def bytes_per_image(encoder: Encoder, precision: str, local_views: int = 0, images: int = 4) -> float:
    """The bytes that the backward pass of one image needs, all its views: all that the forward pass stores for it.

    Weights are not counted, because their number does not depend on the batch.
    """
    weights = {w.data_ptr() for w in encoder.parameters()}
    stored: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in weights:
            stored[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        _passes(encoder, precision, images, local_views)
    return sum(stored.values()) / images


def _passes(encoder: Encoder, precision: str, images: int, local_views: int = 0) -> None:
    """The forward and backward pass of two views of grey images, and of smaller ones."""
    config, device, side = encoder.config, encoder.device, encoder.config.view_side
    channels = len(config.recipe.bands) + (2 if config.terms.local else 0)
    shapes = [(2 * images, channels, side, side)]
    shapes += [(local_views * images, channels, side // 2, side // 2)] if local_views else []
    state = {name: value.clone() for name, value in encoder.named_buffers()}
    with torch.autocast(device.type, LOW[precision], enabled=precision != "fp32"):
        projections = torch.cat([encoder.projections(torch.full(shape, 0.5, device=device)) for shape in shapes])
    projections.float().square().mean().backward()
    encoder.zero_grad(set_to_none=True)
    for name, value in encoder.named_buffers():
        value.copy_(state[name])  # the statistics of batch normalisation


def _synchronise(encoder: Encoder) -> None:
    if encoder.device.type == "cuda":
        torch.cuda.synchronize()
