"""The background of a view, where there is no organism: one value for each band."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from simtrail.data.loader import on_device


class Background:
    """The background of images packed with this full scale: `values`, 0 to 1, one for each band, or one for all.

    The values are rounded as in packed images: 0.5 is 128/255 in 8 bits.
    """

    def __init__(self, values: Sequence[float], full_scale: int):
        self.values = (torch.tensor(values) * full_scale).round()[:, None, None] / full_scale
        self.near = 0.5 / full_scale  # less than one step, so that no other packed value counts as background

    def fill(self, views: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        """The views (V, C, S, S), changed in place: background where the mask `where` (V, 1, S, S) is true."""
        if len(self.values) == 1:
            return views.masked_fill_(where, float(self.values))
        return torch.where(where, on_device(self.values, views.device), views, out=views)

    def mask(self, views: torch.Tensor) -> torch.Tensor:
        """The mask (V, 1, S, S) of the pixels of the views (V, C, S, S) that are background in all bands."""
        return ((views - on_device(self.values, views.device)).abs() < self.near).all(1, keepdim=True)
