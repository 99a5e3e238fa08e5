"""Packed images as tensors: the seeded stream of training batches."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from simtrail.data.pack import PackedImages


def to_unit(batch: np.ndarray, full_scale: int, device: torch.device) -> torch.Tensor:
    """Packed rows as float32 in [0, 1] on the device."""
    if batch.dtype == np.uint16:  # torch has few operations for uint16: int32 carries it over
        batch = batch.astype(np.int32)
    return torch.from_numpy(batch).to(device, non_blocking=True).float().div_(full_scale)


def epoch_batches(
    images: PackedImages,
    indices: np.ndarray,
    batch_size: int,
    seed: int,
    epoch: int,
    device: torch.device,
    skip: int = 0,
    shard: tuple[int, int] = (0, 1),
) -> Iterator[torch.Tensor]:
    """The batches of one epoch, (B, bands, size, size) float32 in [0, 1], in an order drawn from (seed, epoch).

    Every batch is full: images left over at the end of an epoch wait for the next one's order. `skip` leaves out the
    first batches; `shard` = (k, n) yields the k-th of n equal shares of each. One batch is read ahead.
    """
    order = indices[np.random.default_rng((seed, epoch)).permutation(len(indices))]
    number, shares = shard
    part = batch_size // shares
    starts = range(skip * batch_size, len(order) - batch_size + 1, batch_size)
    batches = [order[i + number * part : i + (number + 1) * part] for i in starts]
    if not batches:
        return
    with ThreadPoolExecutor(1) as reader:
        ahead = reader.submit(images.rows, batches[0])
        for following in [*batches[1:], None]:
            batch = ahead.result()
            if following is not None:
                ahead = reader.submit(images.rows, following)
            yield to_unit(batch, images.recipe.full_scale, device)
