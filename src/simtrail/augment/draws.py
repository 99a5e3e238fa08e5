"""Random numbers of a batch of views, decided by a seed and by an image's place in its batch alone."""

from __future__ import annotations

import numpy as np
import torch


class Draws:
    """Uniform numbers for the 2B views of images `start` … `start + images` − 1 of a batch of `total`.

    Drawn on the CPU and for the whole batch, so that every device and every share of a batch (of a process, of a micro
    batch) sees the same numbers for the same image.
    """

    def __init__(self, seed: tuple[int, ...], images: int, start: int = 0, total: int | None = None):
        self.total = total or images
        self.rows = slice(start, start + images)
        states = [np.random.SeedSequence((*seed, view)).generate_state(1, np.uint64)[0] >> 1 for view in (0, 1)]
        self.generators = [torch.Generator().manual_seed(int(state)) for state in states]

    def uniform(self, columns: int) -> torch.Tensor:
        """The next numbers in [0, 1) of every view, (2B, columns) float32."""
        return torch.cat([torch.rand(self.total, columns, generator=g)[self.rows] for g in self.generators])

    def between(self, low: float, high: float, columns: int = 1) -> torch.Tensor:
        """Numbers in [low, high), (2B, columns)."""
        return low + (high - low) * self.uniform(columns)

    def chosen(self, p: float) -> torch.Tensor:
        """The rows, each with probability p, that an augmentation acts on: a (rows,) index."""
        return (self.uniform(1)[:, 0] < p).nonzero()[:, 0]
