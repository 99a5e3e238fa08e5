"""Convolutions that give very small maps, as matrix products: the same result, several times as fast on a processor."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import nn

Pair: TypeAlias = tuple[int, ...]
Window: TypeAlias = tuple[slice, slice]

LARGEST = {torch.float32: 4, torch.bfloat16: 9}  # positions of a map for which this is faster


class SmallMapConv2d(nn.Conv2d):
    """A convolution that uses `small_map` in training on a processor, for maps of few positions.

    oneDNN has no fast way for these maps, of which a ResNet has several for images of 64 pixels, with most of its
    weights. After training, an encoder's features come from the usual convolution.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and x.device.type == "cpu":
            low = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
            rows, columns = _positions(x, self.weight, self.stride, self.padding)
            if len(rows) * len(columns) <= LARGEST.get(low, 0):
                weight, bias = self.weight.to(low), None if self.bias is None else self.bias.to(low)
                return small_map(x.to(low), weight, bias, self.stride, self.padding)
        return super().forward(x)


def with_small_maps(net: nn.Module) -> None:
    """Makes the plain convolutions of a network, in place, such that are fast for small maps; its weights stay."""
    for module in net.modules():
        plain = type(module) is nn.Conv2d and module.groups == 1 and module.dilation == (1, 1)
        if plain and module.padding_mode == "zeros" and not isinstance(module.padding, str):
            module.__class__ = SmallMapConv2d


def small_map(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, stride: Pair, padding: Pair | str
) -> torch.Tensor:
    """The convolution of x (B, C, H, W) with the weight (O, C, h, w), by one product for each position of the map.

    Each product has only the taps of the filter that lie in the image.
    """
    x_BHWC, weight_OhwC = x.permute(0, 2, 3, 1), weight.permute(0, 2, 3, 1)
    rows, columns = _positions(x, weight, stride, padding)
    products = [
        x_BHWC[:, top, left].flatten(1) @ weight_OhwC[:, tap_row, tap_column].flatten(1).T
        for top, tap_row in rows
        for left, tap_column in columns
    ]
    y = torch.stack(products, 1).unflatten(1, (len(rows), len(columns))).permute(0, 3, 1, 2)
    return y if bias is None else y + bias[:, None, None]


def _positions(x: torch.Tensor, weight: torch.Tensor, stride: Pair, padding: Pair | str) -> list[list[Window]]:
    """For each position along height and width of the map: the pixels that the filter covers, and its taps on them."""
    assert not isinstance(padding, str)
    return [_windows(x.shape[2 + i], weight.shape[2 + i], stride[i], padding[i]) for i in (0, 1)]


def _windows(size: int, kernel: int, stride: int, padding: int) -> list[Window]:
    starts = range(-padding, size + padding - kernel + 1, stride)
    return [
        (slice(max(start, 0), min(start + kernel, size)), slice(max(-start, 0), min(kernel, size - start)))
        for start in starts
    ]
