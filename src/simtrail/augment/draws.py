"""Random numbers for a batch of views, which depend only on a seed and on an image's position in its batch."""

from __future__ import annotations

import numpy as np
import torch


class Draws:
    """Uniform random numbers for the 2B views of images `start` … `start + images` − 1 of a batch of `total`.

    They are drawn on the CPU and for the whole batch. So an image has the same numbers on every device and in every
    part of a batch (of a process, of a micro batch).
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
        """The indices (rows,) of the views that an augmentation changes: each view with probability p."""
        return (self.uniform(1)[:, 0] < p).nonzero()[:, 0]
