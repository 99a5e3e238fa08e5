"""Which bands a branch of the encoder sees, normalised how; and a branch for each modality, fused into one vector."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from simtrail.data.recipe import Recipe
from simtrail.errors import InputError
from simtrail.model.backbone import Backbone
from simtrail.params import Architecture

FLAT = 1e-4  # of full scale; added to a spectrum's deviation, so that background has no spectrum made of rounding


def branch_bands(architecture: Architecture, recipe: Recipe) -> dict[str, list[int]]:
    """The branches of an encoder, name → positions of its bands among `recipe.bands`, in the order of the recipe.

    With fusion concat it is one, of the bands in the order of the files; its name is that of the modality, where it
    holds just one, else empty. Raises InputError for unknown modalities, fewer than two to fuse, and branches of too
    few bands for their normalisation.
    """
    known, chosen, fusion = recipe.modalities, architecture.modalities, architecture.fusion
    for name in chosen or []:
        if name not in known:
            raise InputError(
                f"pretrain.encoder.modalities: {name!r}: "
                + (f"must be among {', '.join(known)}" if known else "dataset.yaml declares no modalities; set null")
            )
    groups = {name: bands for name, bands in known.items() if chosen is None or name in chosen}
    if fusion == "concat":
        used = sorted({band for bands in groups.values() for band in bands}) if chosen else range(len(recipe.bands))
        name = next((name for name, bands in groups.items() if sorted(bands) == list(used)), "")
        groups = {name: list(used)}
    elif len(groups) < 2:
        raise InputError(
            f"pretrain.encoder.fusion = {fusion!r}: needs two modalities, here {', '.join(groups) or 'none'}; declare "
            "modalities in dataset.yaml and name two or more in pretrain.encoder.modalities, or set concat"
        )
    for name, bands in groups.items():
        if architecture.normalisation == "pixel" and len(bands) < 3:
            raise InputError(
                "pretrain.encoder.normalisation = 'pixel': needs three bands or more, as of two only the order would "
                f"be left; {name or 'an image'} has {len(bands)}; set band or none"
            )
    return groups


class BranchInput(nn.Module):
    """Maps images to what one branch sees, (B, all bands, size, size) in [0, 1] → (B, len(bands), size, size).

    `normalisation` band: (x − mean) / std of each band over the training split. pixel: each pixel's spectrum less its
    mean and divided by its standard deviation over these bands (standard normal variate, Barnes et al. 1989, Applied
    Spectroscopy 43, 772), which leaves its shape and takes out its brightness. none: the values as they are.
    A band of NaN is missing, and no part of the spectrum: once normalised it is zero, and as in dropout (Srivastava et
    al. 2014, JMLR 15, 1929) the others are multiplied by bands / bands there; with none it is the mean.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, bands: Sequence[int], normalisation: str, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.normalisation = normalisation
        # slices, not an index: no copy of bands in a row, no transfer, and nothing that a moving average could change
        cuts = [i for i in range(1, len(bands)) if bands[i] != bands[i - 1] + 1]
        self.runs = [slice(bands[a], bands[b - 1] + 1) for a, b in pairwise([0, *cuts, len(bands)])]
        for name, values in {"mean": mean, "std": std}.items():
            of_bands = torch.tensor([values[band] for band in bands]).view(1, -1, 1, 1)
            self.register_buffer(name, of_bands, persistent=False)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        parts = [batch[:, run] for run in self.runs]
        seen = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        missing = seen[:, :, :1, :1].isnan()
        there = (~missing).sum(1, keepdim=True).clamp(min=1)
        if self.normalisation == "pixel":
            values = seen.masked_fill(missing, 0)
            away = (values - values.sum(1, keepdim=True) / there).masked_fill(missing, 0)
            spread = (away.square().sum(1, keepdim=True) / there).sqrt()
            seen = away / (spread + FLAT) * (seen.shape[1] / there)
        else:
            seen = torch.where(missing, self.mean, seen)
        if self.normalisation == "band":
            seen = (seen - self.mean) / (self.std * (there / seen.shape[1]))
        return seen.contiguous(memory_format=torch.channels_last)


def unit(features: torch.Tensor) -> torch.Tensor:
    """The features (B, W) at unit length, float32 or float64."""
    return F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=1)


class Fusion(nn.Module):
    """Maps the normalised images of M modalities, (B, bands, size, size) each, to features (B, width).

    Every modality has a backbone of its own, of W features, brought to unit length: its part. `separate` lays the parts
    side by side, width M · W, so that the cosine of two images is the mean of their modalities' cosines. `attention` is
    the sum of the parts by weight, width W; the weights are the softmax, over the modalities, of a linear score of each
    part (compare Ilse et al. 2018, arXiv 1802.04712, section 2.4), and begin equal.
    """

    def __init__(self, architecture: Architecture, bands: Sequence[int], size: int):
        super().__init__()
        backbones = [Backbone(architecture, count, size) for count in bands]
        self.branches = nn.ModuleList(backbones)
        width, attention = backbones[0].width, architecture.fusion == "attention"
        self.scores = nn.ModuleList(nn.Linear(width, 1) for _ in bands if attention)
        for weight in self.scores.parameters():
            nn.init.zeros_(weight)
        self.width = width if attention else len(bands) * width

    def forward(self, *images: torch.Tensor) -> torch.Tensor:
        return self.fuse(self.parts(*images))

    def parts(self, *images: torch.Tensor) -> list[torch.Tensor]:
        """The parts, M × (B, W)."""
        return [self.part(number, seen) for number, seen in enumerate(images)]

    def part(self, number: int, images: torch.Tensor) -> torch.Tensor:
        """The part of one modality, (B, W), of its normalised images; of these alone, `attention` gives the same."""
        return unit(self.branches[number](images))

    def fuse(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """The features, (B, width), that the parts make."""
        if not self.scores:
            return torch.cat(list(parts), 1)
        return (self.weights(parts)[:, :, None] * torch.stack(list(parts), 1)).sum(1)

    def weights(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """The weights of the modalities, (B, M), sum 1; with `attention` only."""
        scores = [score(part) for score, part in zip(self.scores, parts, strict=True)]
        return torch.cat(scores, 1).softmax(1, dtype=torch.promote_types(scores[0].dtype, torch.float32))
