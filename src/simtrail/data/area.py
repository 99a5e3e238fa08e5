"""Resampling without aliasing: a new pixel is the mean of the image over the area that it shows."""

from __future__ import annotations

import math
from itertools import product

import torch
import torch.nn.functional as F


def area_means(images: torch.Tensor, centres: torch.Tensor, sides: torch.Tensor) -> torch.Tensor:
    """The means (N, C, h, h) of images (N, C, S, S) over upright rectangles, one for each new pixel.

    `centres` (N, 2, h, h) and `sides` (N, 2, 1, 1) of the rectangles are in x and y, in which the image runs from −1 to
    1. A pixel of the image is a square of one value, and those at its edge go on beyond it. A side shorter than a pixel
    counts as a pixel, which gives bilinear interpolation; one longer than ⌈S / h⌉ pixels counts as so many.
    """
    size, parts = images.shape[-1], math.ceil(images.shape[-1] / centres.shape[-1])
    middle = (centres + 1) * (size / 2)  # in pixels
    length = (sides * (size / 2)).clamp(1, parts) / parts  # of a part of a side: at most a pixel, so it touches two

    def position(part: int) -> torch.Tensor:
        """Where bilinear interpolation gives the mean over a part of each side."""
        start = middle + (part - parts / 2) * length
        first = start.floor()
        in_second = ((start + length - first - 1) / length).clamp_min(0)  # the fraction of the part
        return (first + 0.5 + in_second) * (2 / size) - 1

    positions = [position(part) for part in range(parts)]
    grids = (torch.stack([x[:, 0], y[:, 1]], -1) for x, y in product(positions, positions))
    samples = [F.grid_sample(images, grid, "bilinear", "border", align_corners=False) for grid in grids]
    return sum(samples[1:], samples[0]) / len(samples)


def shrunk(images: torch.Tensor, size: int) -> torch.Tensor:
    """The whole images (N, C, S, S) as (N, C, size, size), with size ≤ S; unchanged if they have this size."""
    if images.shape[-1] == size:
        return images
    centres = pixel_centres(size, images.device).expand(len(images), 2, size, size)
    return area_means(images, centres, torch.full((1, 2, 1, 1), 2 / size, device=images.device))


def pixel_centres(size: int, device: torch.device) -> torch.Tensor:
    """x and y of the centres of the pixels of an image that runs from −1 to 1, (2, size, size)."""
    centres = (torch.arange(size, device=device) * 2 + 1) / size - 1
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    return torch.stack([x, y])
