"""The bands that a branch of the encoder sees, their normalisation, and the fusion of branches into one vector."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from simtrail.data.recipe import Recipe
from simtrail.errors import InputError
from simtrail.model.backbone import Backbone, grids_of
from simtrail.params import Architecture

FLAT = 1e-4  # of full scale; added to a spectrum's standard deviation, so that rounding gives background no spectrum


def branch_bands(architecture: Architecture, recipe: Recipe) -> dict[str, list[int]]:
    """The branches of an encoder, name → positions of its bands among `recipe.bands`, in the order of the recipe.

    With fusion concat there is one branch, with its bands in the order of the files. If these are exactly the bands of
    one modality, the branch has the name of this modality; otherwise its name is empty. Raises InputError for unknown
    modalities, fewer than two modalities to fuse, and branches with too few bands for their normalisation.
    """
    known, chosen, fusion = recipe.modalities, architecture.modalities, architecture.fusion
    for name in chosen or []:
        if name not in known:
            raise InputError(
                f"pretrain.encoder.modalities: {name!r}: "
                + (f"must be one of {', '.join(known)}" if known else "dataset.yaml declares no modalities; set null")
            )
    groups = {name: bands for name, bands in known.items() if chosen is None or name in chosen}
    if fusion == "concat":
        used = sorted({band for bands in groups.values() for band in bands}) if chosen else range(len(recipe.bands))
        name = next((name for name, bands in groups.items() if sorted(bands) == list(used)), "")
        groups = {name: list(used)}
    elif len(groups) < 2:
        raise InputError(
            f"pretrain.encoder.fusion = {fusion!r}: needs two or more modalities, not {', '.join(groups) or 'none'}; "
            "declare modalities in dataset.yaml and name two or more in pretrain.encoder.modalities, or set concat"
        )
    for name, bands in groups.items():
        if architecture.normalisation == "pixel" and len(bands) < 3:
            raise InputError(
                "pretrain.encoder.normalisation = 'pixel': needs three bands or more, because two would only show "
                f"which is brighter; {name or 'an image'} has {len(bands)}; set band or none"
            )
    return groups


class BranchInput(nn.Module):
    """Maps images to the input of one branch, (B, all bands, size, size) in [0, 1] → (B, len(bands), size, size).

    `normalisation` band: (x − mean) / std of each band over the training split. pixel: each pixel's spectrum minus its
    mean, divided by its standard deviation over these bands (standard normal variate, Barnes et al. 1989, Applied
    Spectroscopy 43, 772), which keeps its shape and removes its brightness. none: the values unchanged.
    A band of NaN is missing and not part of the spectrum. After normalisation it is zero, and the present bands are
    multiplied by bands / present bands, as in dropout (Srivastava et al. 2014, JMLR 15, 1929). With none, a missing
    band has the value of its mean.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, bands: Sequence[int], normalisation: str, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.normalisation = normalisation
        # slices instead of an index tensor: adjacent bands are not copied, and no buffer is transferred or averaged
        cuts = [i for i in range(1, len(bands)) if bands[i] != bands[i - 1] + 1]
        self.runs = [slice(bands[a], bands[b - 1] + 1) for a, b in pairwise([0, *cuts, len(bands)])]
        for name, values in {"mean": mean, "std": std}.items():
            band_values = torch.tensor([values[band] for band in bands]).view(1, -1, 1, 1)
            self.register_buffer(name, band_values, persistent=False)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        parts = [batch[:, run] for run in self.runs]
        selected = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        missing = selected[:, :, :1, :1].isnan()
        present = (~missing).sum(1, keepdim=True).clamp(min=1)
        if self.normalisation == "pixel":
            values = selected.masked_fill(missing, 0)
            centred = (values - values.sum(1, keepdim=True) / present).masked_fill(missing, 0)
            spectrum_std = (centred.square().sum(1, keepdim=True) / present).sqrt()
            selected = centred / (spectrum_std + FLAT) * (selected.shape[1] / present)
        else:
            selected = torch.where(missing, self.mean, selected)
        if self.normalisation == "band":
            selected = (selected - self.mean) / (self.std * (present / selected.shape[1]))
        return selected.contiguous(memory_format=torch.channels_last)


def unit(features: torch.Tensor) -> torch.Tensor:
    """The features (B, W) at unit length, float32 or float64."""
    return F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=1)


class Fusion(nn.Module):
    """Maps the normalised images of M modalities, (B, bands, size, size) each, to features (B, width).

    Every modality has its own backbone. Its W features at unit length are called the part of the modality.
    `separate` puts the parts side by side, width M · W, so that the cosine of two images is the mean of the cosines of
    their modalities. `attention` is the weighted sum of the parts, width W. The weights are the softmax, over the
    modalities, of a linear score of each part (compare Ilse et al. 2018, arXiv 1802.04712, section 2.4); at the start
    they are equal.
    """

    def __init__(self, architecture: Architecture, bands: Sequence[int], size: int, view_size: int | None = None):
        super().__init__()
        backbones = [Backbone(architecture, count, size, view_size) for count in bands]
        self.branches = nn.ModuleList(backbones)
        width, attention = backbones[0].width, architecture.fusion == "attention"
        self.scores = nn.ModuleList(nn.Linear(width, 1) for _ in bands if attention)
        for weight in self.scores.parameters():
            nn.init.zeros_(weight)
        if attention and grids_of(architecture) != [1]:
            raise InputError(
                f"pretrain.encoder.features = {architecture.features}: must be [1] with pretrain.encoder.fusion: "
                "attention, whose weights are trained for these features"
            )
        self.width = width if attention else len(bands) * width
        self.feature_width = width if attention else len(bands) * backbones[0].feature_width

    def forward(self, *images: torch.Tensor) -> torch.Tensor:
        return self.fuse([unit(branch(x)) for branch, x in zip(self.branches, images, strict=True)])

    def features(self, *images: torch.Tensor) -> torch.Tensor:
        """The features, (B, feature_width); see Backbone."""
        return self.fuse(self.parts(*images))

    def features_on(self, choices: Sequence[list[int]], *images: torch.Tensor) -> list[torch.Tensor]:
        """The features (B, width) for each choice of grids; see Backbone."""
        of_branches = [branch.features_on(choices, x) for branch, x in zip(self._backbones, images, strict=True)]
        return [self.fuse([unit(part) for part in parts]) for parts in zip(*of_branches, strict=True)]

    @property
    def _backbones(self) -> list[Backbone]:
        return [branch for branch in self.branches if isinstance(branch, Backbone)]

    def parts(self, *images: torch.Tensor) -> list[torch.Tensor]:
        """The parts, M × (B, W)."""
        return [self.part(number, of_modality) for number, of_modality in enumerate(images)]

    def part(self, number: int, images: torch.Tensor) -> torch.Tensor:
        """The part of one modality, (B, W); with only this modality, `attention` would give the same features."""
        return unit(self._backbones[number].features(images))

    def fuse(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """The features, (B, width), from the parts of all modalities."""
        if not self.scores:
            return torch.cat(list(parts), 1)
        return (self.weights(parts)[:, :, None] * torch.stack(list(parts), 1)).sum(1)

    def weights(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """The weights of the modalities, (B, M), which sum to 1; only with `attention`."""
        scores = [score(part) for score, part in zip(self.scores, parts, strict=True)]
        return torch.cat(scores, 1).softmax(1, dtype=torch.promote_types(scores[0].dtype, torch.float32))
