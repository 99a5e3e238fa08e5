"""The encoder f(x) and its projection head, which carry their recipe and their normalisation with them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm import tqdm

from simtrail.data.loader import to_unit
from simtrail.data.readers import SUFFIXES, open_image
from simtrail.data.recipe import Recipe, conform
from simtrail.errors import InputError
from simtrail.model.backbone import Backbone, pretrained_weights
from simtrail.model.fusion import BranchInput, Fusion, branch_bands, unit
from simtrail.model.local import map_shape, patch_projections
from simtrail.model.projector import projection_head
from simtrail.params import Architecture, Head, Terms

WEIGHTS, CONFIG = "encoder.safetensors", "config.json"


class EncoderConfig(BaseModel):
    """All that is needed to rebuild an encoder around its weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: Architecture
    head: Head
    recipe: Recipe
    mean: list[float]  # per band, on the 0 to 1 scale, of the training split
    std: list[float]
    terms: Terms = Terms(fused=1.0, intra=0.0, cross=0.0)  # of the loss: only heads that one of them trains are there


class Encoder(nn.Module):
    """Maps images to features, (B, bands, size, size) float32 in [0, 1] → (B, width), of the bands that it uses.

    With `head_layers` = k the features are those after the first k layers of the projection head, from which
    SimCLRv2 fine-tunes (arXiv 2006.10029, section 2.3). `modalities` are the names of those that have a branch each,
    none with fusion concat; `branches` are the backbones by name, one with concat. Called with a `modality`, it gives
    the features of that one's bands alone, at unit length. Raises InputError for what can't be built or given.
    """

    def __init__(self, config: EncoderConfig, head_layers: int = 0):
        super().__init__()
        architecture, terms, size = config.architecture, config.terms, config.recipe.size
        # heads that no term of the loss trains are not there: they would be noise, and DDP waits for their gradient
        depth = config.head.depth if terms.fused else 0
        if not 0 <= head_layers <= depth:
            raise InputError(
                f"head_layers = {head_layers}: must be from 0 to {depth}, the layers of the projection head"
            )
        bands = branch_bands(architecture, config.recipe)
        self.config, self.head_layers, self.names = config, head_layers, list(bands)
        self.modalities = [] if architecture.fusion == "concat" else self.names
        self.inputs = nn.ModuleList(
            BranchInput(each, architecture.normalisation, config.mean, config.std) for each in bands.values()
        )
        counts = [len(each) for each in bands.values()]
        self.backbone: Any = (
            Fusion(architecture, counts, size) if self.modalities else Backbone(architecture, counts[0], size)
        )
        self.head = projection_head(self.backbone.width, config.head.model_copy(update={"depth": depth}))
        own = self.branches.values() if terms.intra or terms.cross else []
        self.heads = nn.ModuleList([projection_head(branch.width, config.head) for branch in own])
        local = self.branches.values() if terms.local else []
        self.map_shapes = [map_shape(branch, architecture, size, terms.local) for branch in local]
        self.local_heads = nn.ModuleList([projection_head(channels, config.head) for channels, *_ in self.map_shapes])
        widths = [self.backbone.width, *(m.out_features for m in self.head.modules() if isinstance(m, nn.Linear))]
        self.width = widths[head_layers]

    @property
    def branches(self) -> dict[str, Backbone]:
        return dict(zip(self.names, self.backbone.branches if self.modalities else [self.backbone], strict=True))

    def forward(self, batch: torch.Tensor, modality: str | None = None) -> torch.Tensor:
        if modality is None or (number := self._branch(modality)) is None:
            return self.head[: self.head_layers](self.backbone(*self._seen(batch)))
        return self.backbone.part(number, self.inputs[number](batch))

    def parts(self, batch: torch.Tensor) -> list[torch.Tensor]:
        """The features of each of `modalities`, (B, W) at unit length, of which the fused ones are made."""
        return self.backbone.parts(*self._seen(batch))

    def projections(self, batch: torch.Tensor) -> torch.Tensor:
        """The projections that the loss is made of, side by side, (B, Σ projection_widths).

        Those of the fused features stand first, where the term fused has a weight (the features themselves, where local
        alone has); those of each modality follow, where intra or cross has. Where local has, the batch has coordinates
        behind its bands, as TwoViews gives them, and (B, Π local_shape) columns follow, the patches of each branch.
        """
        if not self.local_heads:
            return self._projected([branch(seen) for branch, seen in self._branches(batch)])
        features, maps = zip(*(branch.with_map(seen) for branch, seen in self._branches(batch)), strict=True)
        coordinates = batch[:, len(self.config.recipe.bands) :]
        local = [patch_projections(*pair, coordinates) for pair in zip(self.local_heads, maps, strict=True)]
        return torch.cat([self._projected(features), *local], 1)

    def _projected(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """The projections of images, given the features of each branch."""
        parts = [unit(of_branch) for of_branch in features] if self.modalities else features
        own = [head(part) for head, part in zip(self.heads, parts, strict=False)]  # there may be none
        if not self.config.terms.whole:
            return torch.cat(own, 1)
        return torch.cat([self.head(self.backbone.fuse(parts) if self.modalities else parts[0]), *own], 1)

    @property
    def projection_widths(self) -> list[int]:
        """The widths of the projections of images, without those of patches."""
        head, own = self.config.head, self.branches.values() if self.heads else []
        whole = [head.output if len(self.head) else self.backbone.width] if self.config.terms.whole else []
        return whole + [head.output if head.depth else branch.width for branch in own]

    @property
    def local_shape(self) -> tuple[int, int, int]:
        """What the columns of patches are: branches, patches, and the width of one, of which 3 say where it lies."""
        if not self.map_shapes:
            return 0, 0, 0
        channels, height, width = self.map_shapes[0]  # branches are of one architecture
        head = self.config.head
        return len(self.map_shapes), height * width, (head.output if head.depth else channels) + 3

    def joined(self, projections: torch.Tensor) -> torch.Tensor:
        """What stands for an image among its projections: those of the fused features, or, where the loss has only
        terms of modalities, those of all modalities at unit length; the features, where it has only the local term."""
        heads = projections[:, : sum(self.projection_widths)].split(self.projection_widths, 1)
        return heads[0] if self.config.terms.whole else torch.cat([F.normalize(z, dim=1) for z in heads], 1)

    def project(self, batch: torch.Tensor) -> torch.Tensor:
        """The `joined` projections, (B, head.output), of images (B, bands, size, size) in [0, 1]; the features at depth
        0 and with the local term alone; with terms of modalities alone (B, modalities × head.output)."""
        return self.joined(self._projected([branch(seen) for branch, seen in self._branches(batch)]))

    def _branches(self, batch: torch.Tensor) -> list[tuple[Backbone, torch.Tensor]]:
        """Each backbone, with what it sees of a batch."""
        return list(zip(self.branches.values(), self._seen(batch), strict=True))

    def _seen(self, batch: torch.Tensor) -> list[torch.Tensor]:
        return [of_branch(batch) for of_branch in self.inputs]

    def _branch(self, modality: str) -> int | None:
        """The number of a modality's branch; None where it is all that the encoder sees."""
        known = self.config.architecture.modalities or list(self.config.recipe.modalities)
        if modality not in known:
            raise InputError(
                f"modality = {modality!r}: "
                + (f"must be among {', '.join(known)}" if known else "the images have none; leave it out")
            )
        if self.names == [modality]:
            return None
        if not self.modalities:
            raise InputError(
                f"modality = {modality!r}: the encoder was trained on all its bands at once; train with "
                f"pretrain.encoder.fusion: separate or attention, or pretrain.encoder.modalities: [{modality}]"
            )
        if self.head_layers:
            raise InputError(
                f"modality = {modality!r}: the projection head takes all modalities; load the encoder with "
                f"head_layers = 0, not {self.head_layers}"
            )
        return self.modalities.index(modality)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def aligned(self, batch: torch.Tensor, modality: str) -> torch.Tensor:
        """The projection of one modality, (B, head.output): what the cross term brings near that of another of the same
        image. InputError for an encoder that it did not train."""
        number = self._branch(modality)
        if number is None or not self.config.terms.cross:
            raise InputError(
                "aligned: the encoder was trained without a cross-modal term; set pretrain.terms.cross > 0"
            )
        return self.heads[number](self(batch, modality))

    @torch.inference_mode()
    def features(self, batches: Iterator[np.ndarray], modality: str | None = None, aligned: bool = False) -> np.ndarray:
        """The float32 features, (N, width), of batches of packed images (B, bands, size, size).

        With a `modality`, the features of its bands alone, at unit length, by its branch of the encoder; `aligned`, its
        projections, by which images of one modality are found among those of another. InputError where there are none.
        """
        self.eval()
        if aligned and modality is None:
            raise InputError(f"aligned: needs a modality: {', '.join(self.modalities) or 'this encoder has none'}")
        of = (lambda batch: self.aligned(batch, str(modality))) if aligned else (lambda batch: self(batch, modality))
        recipe = self.config.recipe
        nothing = np.zeros((1, len(recipe.bands), recipe.size, recipe.size), recipe.dtype)
        width = of(to_unit(nothing, 1, self.device)).shape[1]  # what can't be is refused before anything is read
        parts = [of(to_unit(batch, recipe.full_scale, self.device)).float().cpu().numpy() for batch in batches]
        return np.concatenate(parts) if parts else np.empty((0, width), np.float32)

    def embed(
        self,
        images: str | Path | Sequence[str | Path] | np.ndarray,
        batch_size: int = 64,
        modality: str | None = None,
        aligned: bool = False,
    ) -> pd.DataFrame:
        """One row per image: columns `0` … `width − 1`, indexed by path (by position, for arrays); of the bands of one
        `modality` alone, and `aligned` with those of others, as `features` gives them.

        `images` is a folder (searched through), one path, a list of paths, or an array (N, C, H, W) of any height and
        width in the bands and value range of the files the encoder was trained on. Raises InputError naming each file
        that can't be read or has other bands.
        """
        items, index = _listed(images)

        def load(item: Path | np.ndarray) -> np.ndarray | str:
            try:
                return conform(open_image(item).image if isinstance(item, Path) else item, self.config.recipe, modality)
            except (ValueError, OSError) as error:
                return f"{item if isinstance(item, Path) else 'array'}: {error}"

        def batches() -> Iterator[np.ndarray]:
            faults = []
            with (
                ThreadPoolExecutor(4) as pool,
                tqdm(total=len(items), desc="embed", unit="image", disable=None, leave=False) as bar,
            ):
                for start in range(0, len(items), batch_size):
                    loaded = list(pool.map(load, items[start : start + batch_size]))
                    faults += [x for x in loaded if isinstance(x, str)]
                    if not faults:
                        yield np.stack(loaded)
                    bar.update(len(loaded))
            if faults:
                raise InputError("\n".join(dict.fromkeys(faults)))

        return pd.DataFrame(self.features(batches(), modality, aligned), index=index)

    def save(self, folder: Path) -> None:
        """Writes encoder.safetensors and config.json."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, folder / WEIGHTS)
        (folder / CONFIG).write_text(self.config.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, head_layers: int = 0) -> Encoder:
        """The encoder saved in a folder, in evaluation mode, on the GPU if there is one. InputError if damaged."""
        try:
            config = EncoderConfig.model_validate(json.loads((folder / CONFIG).read_text(encoding="utf-8")))
            encoder = cls(config, head_layers)
            encoder.load_state_dict(load_file(folder / WEIGHTS))
        except FileNotFoundError as error:
            raise InputError(
                f"{error.filename or folder / WEIGHTS}: no such file; an encoder is {WEIGHTS} and {CONFIG}"
            ) from None
        except (SafetensorError, ValidationError, json.JSONDecodeError, RuntimeError) as error:
            raise InputError(f"{folder}: not a whole encoder: {' '.join(str(error).split())[:300]}") from None
        return encoder.to(best_device()).eval()


def best_device() -> torch.device:
    """The first GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_weights(encoder: Encoder, weights: str) -> list[str]:
    """One line for each part of the encoder that the weights did not fit as they were; the encoder has taken them.

    `weights` is pretrain.weights, a registry URI fetched before: `random` (nothing is done), `pretrained` (timm's) or
    the folder of an encoder, whose backbone must be of the same model, width and stem; other bands, image and patch
    sizes are adapted to (see Backbone.adopt). A branch takes the weights of the same modality, or those of the only
    branch there is. Projection heads are taken over where they have the same layers. Raises InputError for weights that
    are not there, or are for another model or other modalities.
    """
    if weights == "random":
        return []
    if weights == "pretrained":
        given = pretrained_weights(encoder.config.architecture, encoder.config.recipe.size)
        return _adopted(encoder, dict.fromkeys(encoder.names, given))
    if not Path(weights).is_dir():
        raise InputError(
            f"pretrain.weights = {weights!r}: must be random, pretrained, an encoder's folder, or models:/NAME@ALIAS"
        )
    source = Encoder.load(Path(weights))
    for key in ("model", "width", "stem"):
        theirs, ours = getattr(source.config.architecture, key), getattr(encoder.config.architecture, key)
        if theirs != ours:
            raise InputError(
                f"pretrain.encoder.{key} = {ours!r}: must be {theirs!r} with pretrain.weights = {weights!r}"
            )
    of_branch = {name: branch.state_dict() for name, branch in source.branches.items()}
    only = next(iter(of_branch.values())) if len(of_branch) == 1 else None
    found = {name: of_branch.get(name, only) for name in encoder.names}
    if not any(found.values()):
        raise InputError(
            f"pretrain.weights = {weights!r}: these are of a branch each for {', '.join(of_branch)}; name one of them "
            f"in pretrain.encoder.modalities, or set pretrain.encoder.fusion: {source.config.architecture.fusion}"
        )
    lines, theirs_above = _adopted(encoder, found), _above(source)
    for name, own in _above(encoder).items():
        new = theirs_above.get(name, {})
        if {k: v.shape for k, v in new.items()} == {k: v.shape for k, v in own.items()}:
            for key, value in own.items():
                value.copy_(new[key])
        else:
            lines.append(f"{name} begins anew: the weights have another one, or none")
    return lines


def _adopted(encoder: Encoder, weights: Mapping[str, Mapping[str, torch.Tensor] | None]) -> list[str]:
    """What each branch says of the weights it was given, by its name."""
    lines = []
    for name, branch in encoder.branches.items():
        given = weights[name]
        said = ["stays random: the weights have no such modality"] if given is None else branch.adopt(given)
        lines += [f"{name}: {line}" for line in said] if encoder.modalities else said
    return lines


def _above(encoder: Encoder) -> dict[str, dict[str, torch.Tensor]]:
    """The weights above the branches, by what they are; only such as there are."""
    parts = {"head": encoder.head.state_dict()}
    scores = encoder.backbone.scores if encoder.modalities else []
    for kind, modules in {"head": encoder.heads, "score": scores}.items():
        parts |= {f"{kind} of {name}": m.state_dict() for name, m in zip(encoder.modalities, modules, strict=False)}
    for name, head in zip(encoder.modalities or [""], encoder.local_heads, strict=False):
        parts["local head" + (name and f" of {name}")] = head.state_dict()
    return {name: weights for name, weights in parts.items() if weights}


def _listed(images: str | Path | Sequence[str | Path] | np.ndarray) -> tuple[list[Path] | list[np.ndarray], pd.Index]:
    if isinstance(images, np.ndarray):
        if images.ndim != 4:
            raise InputError(f"array of shape {images.shape}: must be (images, bands, height, width)")
        return list(images), pd.RangeIndex(len(images))
    if isinstance(images, str | Path):
        path = Path(images)
        if path.is_dir():
            paths = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and not p.is_dir())
            if not paths:
                raise InputError(f"{path}: no image in it; files must end in {', '.join(sorted(SUFFIXES))}")
        else:
            paths = [path]
    else:
        paths = [Path(p) for p in images]
    return paths, pd.Index([str(p) for p in paths], name="path")
