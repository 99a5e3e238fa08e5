"""Packed images as tensors, and the batches of an epoch in a seeded order."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch

from simtrail.data.pack import PackedImages


class TrainingData(NamedTuple):
    """The data on which an encoder is trained and validated."""

    images: PackedImages
    train: np.ndarray  # rows of the training split
    val: np.ndarray  # rows of the validation split
    labels: np.ndarray | None = None  # class number of every packed row, −1 without a label; None if all are without
    block: np.ndarray | None = None  # of every packed row: images of one block are never split apart; None: all differ


def to_unit(batch: np.ndarray, full_scale: int, device: torch.device) -> torch.Tensor:
    """Packed rows as float32 in [0, 1] on the device."""
    if batch.dtype == np.uint16:  # torch has few operations for uint16
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

    Every batch is full. The images left over at the end of an epoch are used in later epochs, which have other orders.
    `skip` leaves out the first batches. `shard` = (k, n) yields the k-th of n equal parts of each batch. The next batch
    is read in advance.
    """
    order = indices[np.random.default_rng((seed, epoch)).permutation(len(indices))]
    number, count = shard
    size = batch_size // count
    starts = range(skip * batch_size, len(order) - batch_size + 1, batch_size)
    batches = [order[i + number * size : i + (number + 1) * size] for i in starts]
    if not batches:
        return
    with ThreadPoolExecutor(1) as reader:
        reading = reader.submit(images.rows, batches[0])
        for next_rows in [*batches[1:], None]:
            batch = reading.result()
            if next_rows is not None:
                reading = reader.submit(images.rows, next_rows)
            yield to_unit(batch, images.recipe.full_scale, device)
