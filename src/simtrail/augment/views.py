"""Two augmented views of a batch, on its device, for any number of bands (arXiv 2002.05709, section 3)."""

from __future__ import annotations

import kornia.augmentation as K
import numpy as np
import torch
from torch import nn

from simtrail.data.recipe import Recipe
from simtrail.params import Augment


class TwoViews:
    """Draws views of (B, C, S, S) float32 batches in [0, 1]; every sample has draws of its own."""

    def __init__(self, params: Augment, recipe: Recipe):
        self.params = params
        self.is_rgb = recipe.rgb == [0, 1, 2] and len(recipe.bands) == 3
        s = params.color_strength
        kernel = max(3, recipe.size // 10 | 1)
        self.background = recipe.background
        self.geometry = nn.Sequential(
            K.RandomRotation(params.rotation, p=float(params.rotation > 0)),
            K.RandomResizedCrop((recipe.size, recipe.size), scale=(params.crop_min_area, 1.0), ratio=(3 / 4, 4 / 3)),
            K.RandomHorizontalFlip(p=params.flip),
        )
        if self.is_rgb:
            jitter = K.ColorJitter(0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s, p=params.color)
            self.color: nn.Module = nn.Sequential(jitter, K.RandomGrayscale(p=params.grayscale))
        else:
            self.color = _PerBand(K.ColorJitter(0.8 * s, 0.8 * s, 0.0, 0.0, p=params.color))
        self.blur = K.RandomGaussianBlur((kernel, kernel), (0.1, 2.0), p=params.blur)

    def ineffective(self) -> list[str]:
        """One line for each setting that can't act on these bands."""
        if self.is_rgb:
            return []
        lines = []
        if self.params.color and self.params.color_strength:
            lines.append("pretrain.augment.color: the bands are not RGB: brightness and contrast, band by band, no hue")
        if self.params.grayscale:
            lines.append(f"pretrain.augment.grayscale = {self.params.grayscale}: no effect: the bands are not RGB")
        return lines

    def __call__(self, batch: torch.Tensor, *seed: int) -> torch.Tensor:
        """The views of a (B, C, S, S) batch as (2B, C, S, S): rows i and i + B are the two views of image i.

        `seed` (run, epoch, step, …) decides every draw, whatever was drawn before: the same seed, the same views.
        """
        views = []
        for view in (0, 1):
            # Kornia draws from torch's global generator alone
            with torch.random.fork_rng([batch.device] if batch.is_cuda else []):
                torch.manual_seed(int(np.random.SeedSequence((*seed, view)).generate_state(1, np.uint64)[0] >> 1))
                # what Kornia fills with 0 is then background
                moved = self.geometry(batch - self.background) + self.background
                views.append(self.blur(self.color(moved.clamp_(0, 1))).clamp_(0, 1))
        return torch.cat(views)


class _PerBand(nn.Module):
    """Applies an augmentation of one-band images to every band by itself, with draws of its own."""

    def __init__(self, augmentation: nn.Module):
        super().__init__()
        self.augmentation = augmentation

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return self.augmentation(batch.flatten(0, 1)[:, None]).reshape(batch.shape)
