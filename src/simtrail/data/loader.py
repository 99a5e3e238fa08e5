"""Packed images as tensors, and the batches of an epoch in a seeded order."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

if TYPE_CHECKING:  # not needed by a finished encoder
    from simtrail.data.pack import PackedImages


class TrainingData(NamedTuple):
    """The data on which an encoder is trained and validated."""

    images: PackedImages
    train: np.ndarray  # rows of the training split
    val: np.ndarray  # rows of the validation split
    labels: np.ndarray | None = None  # class number of every packed row, −1 without a label; None if all are without
    block: np.ndarray | None = None  # of every packed row: images of one block are never split apart; None: all differ
    group: np.ndarray | None = None  # of every packed row: images of one group are positives; None: only views are
    weight: np.ndarray | None = None  # of every packed row: how often it is drawn, in proportion; None: all equally
    teacher: np.ndarray | None = None  # features of every packed row that are to be predicted; None: there are none


def on_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on the device; for a GPU, from pinned memory, because a copy from other memory waits for its work."""
    return tensor.contiguous().pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def to_unit(batch: np.ndarray, full_scale: int, device: torch.device) -> torch.Tensor:
    """Packed rows as float32 in [0, 1] on the device."""
    if batch.dtype == np.uint16:  # torch has few operations for uint16
        batch = batch.astype(np.int32)
    return on_device(torch.from_numpy(batch), device).float().div_(full_scale)


def epoch_rows(
    rows: np.ndarray,
    batch_size: int,
    seed: int,
    epoch: int,
    group: np.ndarray | None = None,
    weight: np.ndarray | None = None,
) -> np.ndarray:
    """The packed rows of each batch of one epoch, (batches, B), in an order drawn from (seed, epoch).

    Every batch is full. The images left over at the end of an epoch are used in later epochs, which have other orders.
    With the `group` of every packed row, images of a group are drawn in pairs, other pairs in every epoch. With the
    `weight` of every packed row, images are drawn in proportion to it, and none twice in a batch.
    """
    rng = np.random.default_rng((seed, epoch))
    order = rows[rng.permutation(len(rows))]
    if weight is not None:
        batches = len(rows) // batch_size
        drawn = np.repeat(order, _copies(weight[order], batches, batch_size, rng.random()))
        return drawn.reshape(batch_size, batches).T[rng.permutation(batches)]  # copies stand side by side: none meet
    if group is not None:
        order = order[np.argsort(group[order], kind="stable")]
        _, start, count = np.unique(group[order], return_index=True, return_counts=True)
        pair = (np.arange(len(order)) - np.repeat(start, count)) // 2  # within its group
        _, number = np.unique(np.stack([group[order], pair], 1), axis=0, return_inverse=True)
        order = order[np.argsort(rng.permutation(number.max() + 1)[number], kind="stable")]
    return order[: len(order) // batch_size * batch_size].reshape(-1, batch_size)


def draws(weight: np.ndarray, batches: int, batch_size: int) -> np.ndarray:
    """How often each image is drawn in an epoch on average: in proportion to its weight, at most once per batch.

    At least `batch_size` images must have a weight above 0.
    """
    total, capped = batches * batch_size, np.zeros(len(weight), bool)
    while True:
        free = np.where(capped, 0, weight)
        expected = np.where(capped, batches, free * ((total - batches * capped.sum()) / max(free.sum(), 1e-300)))
        if not (over := expected > batches).any():
            return expected
        capped |= over


def _copies(weight: np.ndarray, batches: int, batch_size: int, start: float) -> np.ndarray:
    """The number of copies of each image in an epoch, `batches` · `batch_size` in all (systematic sampling)."""
    ends = np.cumsum(draws(weight, batches, batch_size))
    ends[-1] = batches * batch_size  # without the error of the sum
    return np.diff(np.floor(ends + start), prepend=0).astype(int)


def batches(
    images: PackedImages, rows: np.ndarray, device: torch.device, shard: tuple[int, int] = (0, 1)
) -> Iterator[torch.Tensor]:
    """The batches (B, bands, size, size) float32 in [0, 1] of packed `rows` (batches, B).

    `shard` = (k, n) yields the k-th of n equal parts of each batch. The next batch is read in advance.
    """
    number, count = shard
    if not len(rows):
        return
    parts = np.array_split(rows, count, axis=1)[number]
    with ThreadPoolExecutor(1) as reader:
        reading = reader.submit(images.rows, parts[0])
        for next_rows in [*parts[1:], None]:
            batch = reading.result()
            if next_rows is not None:
                reading = reader.submit(images.rows, next_rows)
            yield to_unit(batch, images.recipe.full_scale, device)
