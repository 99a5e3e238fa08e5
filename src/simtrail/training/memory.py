"""The error for a batch that does not fit in memory, with the size that does."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch

from simtrail.errors import OutOfMemory
from simtrail.params import SIDE


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error means that the GPU's memory, or the machine's, is used up."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def batch_too_large(batch_size: int, images: int, attempt: Callable[[int], Any]) -> OutOfMemory:
    """The error that names the batch size, and a number of images at once that fits, which is found by trying.

    `images` is the number that went through the encoder at once and did not fit; `attempt(n)` tries n images.
    """
    size = images
    while smaller := [n for n in range(2, size // 2 + 1) if images % n == 0]:
        size = smaller[-1]
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        try:
            attempt(size)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        else:
            return OutOfMemory(
                f"pretrain.batch_size = {batch_size}: out of memory with the views of {images} images at once; "
                f"{size} fit: set pretrain.micro_batch_size: {size} to keep the batch and its negatives, "
                f"or pretrain.batch_size: {size}"
            )
    return OutOfMemory(
        f"pretrain.batch_size = {batch_size}: out of memory with the views of {size} images at once; "
        f"lower {SIDE}, or choose a smaller pretrain.encoder.model"
    )
