"""Two augmented views of a batch, on its device, for any number of bands (arXiv 2002.05709, section 3)."""

from __future__ import annotations

import torch

from simtrail.augment import spectral
from simtrail.augment.background import Background
from simtrail.augment.color import recolour
from simtrail.augment.draws import Draws
from simtrail.augment.geometry import resample, sampling_grid
from simtrail.augment.texture import retexture
from simtrail.data.recipe import Recipe
from simtrail.params import Augment

LOCAL_AREA = (0.05, 0.25)  # of the image that a local view shows
LOCAL = 11  # part of the seed of local views, so that the other views don't depend on their number
SPECTRAL = 7  # part of the seed of spectral draws, so that spectral settings don't change the other draws


class TwoViews:
    """Draws the views of (B, C, S, S) float32 batches in [0, 1]; every view of every image has its own draws.

    The views are `size` × `size`, by default S × S. Bands that are left out of a view are NaN. With `coordinates`,
    views have two more channels: x and y, from −1 to 1 over the image, of the position that each pixel shows, NaN where
    it shows background or lies outside the image.
    """

    def __init__(self, params: Augment, recipe: Recipe, size: int | None = None, *, coordinates: bool = False):
        self.params, self.recipe, self.size, self.coordinates = params, recipe, size, coordinates
        self.wavelengths = recipe.wavelengths or [None] * len(recipe.bands)
        self.modalities = recipe.modalities or {"all": list(range(len(recipe.bands)))}
        self.background = Background(recipe.background, recipe.full_scale)

    def without_effect(self) -> list[str]:
        """One line for each setting that can't have an effect on these bands."""
        lines = spectral.without_effect(self.params.spectral, self.wavelengths, self.modalities)
        color, strength = self.params.color, self.params.color.strength
        if self.recipe.rgb:
            return lines
        jitter = color.jitter.p * strength
        settings = {
            "jitter.saturation": jitter * color.jitter.saturation,
            "jitter.hue": jitter * color.jitter.hue,
            "grayscale.p": color.grayscale.p,
        }
        reason = "no effect: no bands are named red, green and blue; set it to 0"
        return lines + [f"pretrain.augment.color.{key}: {reason}" for key, value in settings.items() if value]

    @torch.no_grad()
    def __call__(self, batch: torch.Tensor, *seed: int, start: int = 0, total: int | None = None) -> torch.Tensor:
        """The views of a (B, C, S, S) batch as (2B, C, size, size), C + 2 channels with `coordinates`.

        Rows i and i + B are the two views of image i. `seed` (run, epoch, step, …) decides every draw: the same seed
        gives the same views, whatever was drawn before. A part of a batch gets the views that it has in the whole
        batch if `start` is the position of its first image among the `total` images.
        """
        draws, background = Draws(seed, len(batch), start, total), self.background
        images = batch.repeat(2, 1, 1, 1)
        positions = sampling_grid(images, self.params.geometry, background, draws, self.size)
        views = resample(images, positions, background)
        masked = background.mask(views) if self.recipe.cut_outs else None  # before values change
        if self.coordinates:
            positions.masked_fill_(background.mask(views), torch.nan)
        spectral_draws = Draws((*seed, SPECTRAL), len(batch), start, total)
        views = spectral.perturb(
            views, self.params.spectral, self.wavelengths, self.modalities, background, spectral_draws
        )
        views = recolour(views, self.params.color, self.recipe.rgb, draws)
        if masked is not None:  # a masked background keeps its value, whatever happens to colours
            views = background.fill(views, masked)
        views = retexture(views, self.params.texture, background, draws)
        views = spectral.drop_bands(views, self.params.spectral, self.modalities, spectral_draws)
        return torch.cat([views, positions], 1) if self.coordinates else views


class LocalViews:
    """Draws `count` small views of every image, at half the `size` of the two views (multi-crop, arXiv 2006.09882)."""

    def __init__(self, params: Augment, recipe: Recipe, size: int, count: int):
        smallest, largest = LOCAL_AREA
        crop = params.geometry.crop.model_copy(
            update={"p": 1.0, "min_area": smallest, "max_area": largest, "min_cover": 0.0}
        )
        geometry = params.geometry.model_copy(update={"crop": crop, "strength": 1.0})
        self.pair, self.count = TwoViews(params.model_copy(update={"geometry": geometry}), recipe, size // 2), count

    def __call__(self, batch: torch.Tensor, *seed: int, start: int = 0, total: int | None = None) -> torch.Tensor:
        """The views of a (B, C, S, S) batch as (count · B, C, size/2, size/2): rows i, i + B, … are of image i.

        Seed, start and total are as in TwoViews.
        """
        pairs = range((self.count + 1) // 2)
        views = [self.pair(batch, *seed, LOCAL, pair, start=start, total=total) for pair in pairs]
        return torch.cat(views)[: self.count * len(batch)]
