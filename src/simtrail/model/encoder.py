"""The encoder f(x) and its projection head, stored together with their recipe and their normalisation."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm import tqdm

from simtrail.data.area import shrunk
from simtrail.data.loader import to_unit
from simtrail.data.recipe import Recipe
from simtrail.data.sources import image_files
from simtrail.data.stream import conformed
from simtrail.errors import InputError, listed
from simtrail.model import CONFIG, WEIGHTS
from simtrail.model.backbone import Backbone
from simtrail.model.fusion import BranchInput, Fusion, branch_bands, unit
from simtrail.model.local import map_shape, patch_projections
from simtrail.model.projector import projection_head
from simtrail.model.whitening import Whitening, fitted
from simtrail.params import Architecture, Head, Terms
from simtrail.schema import BaseModel, ConfigDict, ValidationError

Images: TypeAlias = str | Path | Sequence[str | Path] | pd.DataFrame | np.ndarray


class EncoderConfig(BaseModel):
    """All that is needed, besides its weights, to rebuild an encoder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: Architecture
    head: Head
    recipe: Recipe
    mean: list[float]  # per band, on the 0 to 1 scale, of the training split
    std: list[float]
    view_size: int | None = None  # side of the views in training; null: that of the packed images
    reduced: bool = True  # whether it sees whole images at this side, too; false: at that of the packed images
    first_weights: str | None = None  # that the training started from: random, a name, or a sha256; null: not recorded
    filters_from: dict[str, str] = {}  # for bands whose first filters are adapted from other weights, of which bands
    teacher: str | None = None  # whose features it learned to predict: the name or sha256 of the weights; null: none
    teacher_width: int = 0  # of the teacher's features, which a head of its own learns to predict; 0: no teacher
    whitened: int = 0  # directions in which the features are whitened; 0: they are as the network gives them
    terms: Terms = Terms(fused=1.0, intra=0.0, cross=0.0)  # of the loss: the encoder has only the heads that they train

    @property
    def size(self) -> int:
        """The side, in pixels, at which the network sees whole images."""
        return self.view_side if self.reduced else self.recipe.size

    @property
    def view_side(self) -> int:
        """The side of the views in training."""
        return self.view_size or self.recipe.size


class Encoder(nn.Module):
    """Maps images to features, (B, bands, S, S) float32 in [0, 1] → (B, width), from the bands that it uses.

    S is `config.size` (packed images, of a larger `config.recipe.size`, are reduced to it), or `config.view_side` for
    views; a convolutional network takes both. The features are whitened if
    `config.whitened`, see Whitening; projections are not made from these. With `head_layers` = k, the features are
    taken after the first k layers of the projection head, where SimCLRv2 starts to fine-tune (arXiv 2006.10029, section
    2.3). `modalities` are the names of the modalities that have a branch each; with fusion concat
    there are none. `branches` are the backbones by name; with concat there is one. Called with a `modality`, the
    encoder gives the features of only its bands, at unit length. Raises InputError for settings that are not possible,
    and for a modality that it can't use.
    """

    def __init__(self, config: EncoderConfig, head_layers: int = 0):
        super().__init__()
        architecture, terms, sides = config.architecture, config.terms, (config.size, config.view_side)
        # no heads that no term of the loss trains: they would be noise, and DDP would wait for their gradient
        depth = config.head.depth if terms.fused else 0
        if not 0 <= head_layers <= depth:
            raise InputError(
                f"head_layers = {head_layers}: must be from 0 to {depth}, the layers of the projection head"
            )
        bands = branch_bands(architecture, config.recipe)
        self.config, self.head_layers, self.names = config, head_layers, list(bands)
        self.modalities = [] if architecture.fusion == "concat" else self.names
        self.inputs = nn.ModuleList(
            BranchInput(positions, architecture.normalisation, config.mean, config.std) for positions in bands.values()
        )
        counts = [len(positions) for positions in bands.values()]
        self.backbone: Any = (
            Fusion(architecture, counts, *sides) if self.modalities else Backbone(architecture, counts[0], *sides)
        )
        self.head = projection_head(self.backbone.width, config.head.model_copy(update={"depth": depth}))
        with_head = self.branches.values() if terms.intra or terms.cross else []
        self.heads = nn.ModuleList([projection_head(branch.width, config.head) for branch in with_head])
        with_local_head = self.branches.values() if terms.local else []
        self.map_shapes = [map_shape(branch, architecture, config.view_side, terms.local) for branch in with_local_head]
        self.local_heads = nn.ModuleList([projection_head(channels, config.head) for channels, *_ in self.map_shapes])
        of_teacher = config.head.model_copy(update={"depth": 2, "output": config.teacher_width})
        self.teacher_head = projection_head(self.backbone.width, of_teacher) if config.teacher_width else None
        widths = [
            self.backbone.feature_width,
            *(m.out_features for m in self.head.modules() if isinstance(m, nn.Linear)),
        ]
        self.width = widths[head_layers]
        self.whitening = Whitening(widths[0], config.whitened) if config.whitened else None

    @property
    def branches(self) -> dict[str, Backbone]:
        return dict(zip(self.names, self.backbone.branches if self.modalities else [self.backbone], strict=True))

    def forward(self, batch: torch.Tensor, modality: str | None = None) -> torch.Tensor:
        if modality is None or (index := self._branch_index(modality)) is None:
            inputs = self._branch_inputs(batch)
            if not self.head_layers:
                features = self.backbone.features(*inputs)
                return features if self.whitening is None else self.whitening(features)
            return self.head[: self.head_layers](self.backbone(*inputs))
        return self.backbone.part(index, self.inputs[index](self._seen(batch)))

    def features_on(self, choices: Sequence[list[int]], batch: torch.Tensor) -> list[torch.Tensor]:
        """The features (B, width) with each choice of `architecture.features`, without whitening."""
        return self.backbone.features_on(choices, *self._branch_inputs(batch))

    def with_features(self, grids: list[int]) -> Encoder:
        """An encoder with the same weights and other `architecture.features`, not whitened, in evaluation mode.

        Raises InputError if they are not possible.
        """
        architecture = self.config.architecture.model_copy(update={"features": grids})
        config = self.config.model_copy(update={"architecture": architecture, "whitened": 0})
        with torch.random.fork_rng([]):  # its first weights are of no use
            encoder = Encoder(config, self.head_layers)
        encoder.load_state_dict({k: v for k, v in self.state_dict().items() if not k.startswith("whitening.")})
        return encoder.to(self.device).eval()

    def whiten(self, features: torch.Tensor | np.ndarray) -> None:
        """From now on the features are whitened, as those (N, width) of training images need it; see `fitted`.

        These must be features without whitening. With fewer than four images, or equal features, nothing changes.
        """
        self.whitening = fitted(torch.as_tensor(features, device=self.device))
        directions = 0 if self.whitening is None else len(self.whitening.scale)
        self.config = self.config.model_copy(update={"whitened": directions})

    @torch.no_grad()
    def unwhitened(self, features: np.ndarray) -> np.ndarray:
        """The features as the network gives them, from those of the encoder, (N, width)."""
        if self.whitening is None or self.head_layers:
            return features
        return self.whitening.undo(torch.as_tensor(features, device=self.device)).cpu().numpy()

    def parts(self, batch: torch.Tensor) -> list[torch.Tensor]:
        """The features of each of `modalities`, (B, W) at unit length; the fused features are made of them."""
        return self.backbone.parts(*self._branch_inputs(batch))

    def projections(self, batch: torch.Tensor) -> torch.Tensor:
        """The projections that the loss compares, side by side, (B, Σ projection_widths).

        First come the projections of the fused features if the term fused has a weight, or the fused features
        themselves if only local has one. The projections of each modality follow if intra or cross has a weight, then
        with a teacher its features as predicted, (B, teacher_width). If local has a weight, the batch has coordinates
        behind its bands, as TwoViews adds them, and (B, Π local_shape) more columns follow: the patches of each branch.
        """
        if not self.local_heads:
            return self._projected([branch(x) for branch, x in self._branches_with_inputs(batch)])
        features, maps = zip(*(branch.with_map(x) for branch, x in self._branches_with_inputs(batch)), strict=True)
        coordinates = batch[:, len(self.config.recipe.bands) :]
        local = [patch_projections(*pair, coordinates) for pair in zip(self.local_heads, maps, strict=True)]
        return torch.cat([self._projected(features), *local], 1)

    def _projected(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """The projections of images, from the features of each branch."""
        parts = [unit(branch_features) for branch_features in features] if self.modalities else features
        of_modalities = [head(part) for head, part in zip(self.heads, parts, strict=False)]  # there may be no heads
        whole = [self.head] if self.config.terms.whole else []
        teacher = [self.teacher_head] if self.teacher_head is not None else []
        if not whole + teacher:
            return torch.cat(of_modalities, 1)
        fused = self.backbone.fuse(parts) if self.modalities else parts[0]
        of_whole, predicted = ([head(fused) for head in heads] for heads in (whole, teacher))
        return torch.cat([*of_whole, *of_modalities, *predicted], 1)

    @property
    def projection_widths(self) -> list[int]:
        """The widths of the projections of images, without the columns for a teacher and those of patches."""
        head, with_head = self.config.head, self.branches.values() if self.heads else []
        whole = [head.output if len(self.head) else self.backbone.width] if self.config.terms.whole else []
        return whole + [head.output if head.depth else branch.width for branch in with_head]

    @property
    def local_shape(self) -> tuple[int, int, int]:
        """Branches, patches, and columns of one patch; the last 3 of these are its position and side."""
        if not self.map_shapes:
            return 0, 0, 0
        channels, height, width = self.map_shapes[0]  # all branches have the same architecture
        head = self.config.head
        return len(self.map_shapes), height * width, (head.output if head.depth else channels) + 3

    def joined(self, projections: torch.Tensor) -> torch.Tensor:
        """One vector for each image, from its projections.

        It is the projection of the fused features; with only the local term in the loss, the features; with only terms
        of modalities, the projections of all modalities, each at unit length.
        """
        heads = projections[:, : sum(self.projection_widths)].split(self.projection_widths, 1)
        return heads[0] if self.config.terms.whole else torch.cat([F.normalize(z, dim=1) for z in heads], 1)

    def project(self, batch: torch.Tensor) -> torch.Tensor:
        """The `joined` projections, (B, head.output), of images (B, bands, size, size) in [0, 1].

        With a head of depth 0, or only the local term, they are the features; with only terms of modalities, they are
        (B, modalities × head.output).
        """
        return self.joined(self._projected([branch(x) for branch, x in self._branches_with_inputs(batch)]))

    def _branches_with_inputs(self, batch: torch.Tensor) -> list[tuple[Backbone, torch.Tensor]]:
        return list(zip(self.branches.values(), self._branch_inputs(batch), strict=True))

    def _branch_inputs(self, batch: torch.Tensor) -> list[torch.Tensor]:
        """For each branch its bands, normalised."""
        batch = self._seen(batch)
        return [branch_input(batch) for branch_input in self.inputs]

    def _seen(self, batch: torch.Tensor) -> torch.Tensor:
        """What the network sees of packed images; views stay as they are."""
        return shrunk(batch, self.config.size) if batch.shape[-1] == self.config.recipe.size else batch

    def _branch_index(self, modality: str) -> int | None:
        """The index of a modality's branch; None if the encoder sees only this modality."""
        allowed = self.config.architecture.modalities or list(self.config.recipe.modalities)
        if modality not in allowed:
            raise InputError(
                f"modality = {modality!r}: "
                + (f"must be one of {', '.join(allowed)}" if allowed else "the images have no modalities; leave it out")
            )
        if self.names == [modality]:
            return None
        if not self.modalities:
            raise InputError(
                f"modality = {modality!r}: the encoder was trained on all its bands together; train with "
                f"pretrain.encoder.fusion: separate or attention, or pretrain.encoder.modalities: [{modality}]"
            )
        if self.head_layers:
            raise InputError(
                f"modality = {modality!r}: the projection head needs all modalities; load the encoder with "
                f"head_layers = 0, not {self.head_layers}"
            )
        return self.modalities.index(modality)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def aligned(self, batch: torch.Tensor, modality: str) -> torch.Tensor:
        """The projection of one modality, (B, head.output).

        The cross term trains it to be near the projections of the other modalities of the same image. Raises InputError
        for an encoder that was trained without this term.
        """
        index = self._branch_index(modality)
        if index is None or not self.config.terms.cross:
            raise InputError(
                "aligned: the encoder was trained without a cross-modal term; set pretrain.terms.cross > 0"
            )
        return self.heads[index](self(batch, modality))

    def features(self, batches: Iterator[np.ndarray], modality: str | None = None, aligned: bool = False) -> np.ndarray:
        """The float32 features, (N, width), of batches of packed images (B, bands, size, size).

        With a `modality`, they are the features that its branch gives for only its bands, at unit length. With
        `aligned`, they are its projections, by which images of one modality can be compared with images of another.
        Raises InputError if the encoder does not have them.
        """
        if aligned and modality is None:
            raise InputError(f"aligned: needs a modality: {', '.join(self.modalities) or 'this encoder has none'}")
        recipe = self.config.recipe
        empty_image = np.zeros((1, len(recipe.bands), recipe.size, recipe.size), recipe.dtype)
        none = self._encode(empty_image, modality, aligned)[:0]  # errors must come before any file is read
        return np.concatenate([none, *(self._encode(batch, modality, aligned) for batch in batches)])

    @torch.inference_mode()
    def _encode(self, batch: np.ndarray, modality: str | None, aligned: bool) -> np.ndarray:
        self.eval()
        x = to_unit(batch, self.config.recipe.full_scale, self.device)
        return (self.aligned(x, str(modality)) if aligned else self(x, modality)).float().cpu().numpy()

    def embed(
        self,
        images: Images,
        batch_size: int = 64,
        modality: str | None = None,
        aligned: bool = False,
    ) -> pd.DataFrame:
        """One row of features per image: columns `0` … `width − 1`, indexed by path (by position, for arrays).

        With `fit: tile`, the features of an image are the mean over its tiles, without those of only background.
        `images` is a folder (with its subfolders), a file, a pattern, a list or table of files (see `image_files`), a
        list of paths, a DataFrame with a column `path`, or an array (N, C, H, W) of any height and width, with the
        bands and value range of the files that the encoder was trained on. `modality` and `aligned` are as in
        `features`. Raises InputError, which names each file that can't be read or has different bands.
        """
        items, index = _items_and_index(images)
        result, errors = [], []
        with tqdm(total=len(items), desc="embed", unit="image", disable=None, leave=False) as bar:
            for item, found in zip(items, self.stream(items, batch_size, modality, aligned), strict=True):
                if isinstance(found, str):
                    errors.append(f"{item if isinstance(item, Path) else 'array'}: {found}")
                else:
                    result.append(found)
                bar.update()
        if errors:
            raise InputError("\n".join(dict.fromkeys(errors)))
        features = np.stack(result) if result else self.features(iter(()), modality, aligned)
        return pd.DataFrame(features, index=index)

    def stream(
        self,
        items: Sequence[Path] | Sequence[np.ndarray],
        batch_size: int = 64,
        modality: str | None = None,
        aligned: bool = False,
        max_side: int | None = None,
    ) -> Iterator[np.ndarray | str]:
        """For each path, or array (C, H, W), in order: its features (width,), or why there are none.

        Only a few batches of images are in memory. Images 0 … batch_size − 1 are a batch, and so on: the features are
        the same whether a list is embedded at once or in parts that begin at multiples of `batch_size`. Large files
        with a side above `max_side` are not decoded.
        """
        none = self.features(iter(()), modality, aligned)  # errors come before any file is read
        loaded = conformed(items, self.config.recipe, modality, max_side)
        size = 1 if self.config.recipe.fit == "tile" else batch_size
        while batch := list(islice(loaded, size)):
            squares = [found for found in batch if not isinstance(found, str)]
            rows = np.concatenate(squares) if squares else np.empty(0)
            parts = (rows[i : i + batch_size] for i in range(0, len(rows), batch_size))
            features = np.concatenate([none, *(self._encode(part, modality, aligned) for part in parts)])
            of_image = iter(np.split(features, np.cumsum([len(found) for found in squares])[:-1]))
            for found in batch:
                yield found if isinstance(found, str) else next(of_image).mean(0)

    def save(self, folder: Path) -> None:
        """Writes encoder.safetensors and config.json."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, folder / WEIGHTS)
        (folder / WEIGHTS).chmod(0o644)  # safetensors makes it unreadable for others
        (folder / CONFIG).write_text(self.config.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, head_layers: int = 0) -> Encoder:
        """The encoder saved in a folder, in evaluation mode, on the GPU if any. Raises InputError if it is damaged."""
        try:
            config = EncoderConfig.model_validate(json.loads((folder / CONFIG).read_text(encoding="utf-8")))
            encoder = cls(config, head_layers)
            encoder.load_state_dict(load_file(folder / WEIGHTS))
        except FileNotFoundError as error:
            raise InputError(
                f"{error.filename or folder / WEIGHTS}: no such file; an encoder's folder has {WEIGHTS} and {CONFIG}"
            ) from None
        except (SafetensorError, ValidationError, json.JSONDecodeError, RuntimeError) as error:
            raise InputError(f"{folder}: damaged or incomplete encoder: {' '.join(str(error).split())[:300]}") from None
        return encoder.to(best_device()).eval()


def best_device() -> torch.device:
    """The first GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _items_and_index(images: Images) -> tuple[list[Path] | list[np.ndarray], pd.Index]:
    if isinstance(images, np.ndarray):
        if images.ndim != 4:
            raise InputError(f"array of shape {images.shape}: must be (images, bands, height, width)")
        return list(images), pd.RangeIndex(len(images))
    if isinstance(images, pd.DataFrame):
        if "path" not in images:
            raise InputError(f"table with columns {listed([str(c) for c in images])}: must have a column path")
        images = images["path"].to_list()
    if isinstance(images, str | Path):
        sources = image_files(images)
        return [source.path for source in sources], pd.Index([source.name for source in sources], name="path")
    if others := [type(image).__name__ for image in images if not isinstance(image, str | Path)]:
        raise InputError(
            f"images: {len(others)} of {len(images)} are of type {others[0]}; give paths, or one array (N, C, H, W), "
            "for images of PIL np.stack([np.moveaxis(np.asarray(image), -1, 0) for image in images])"
        )
    paths = [Path(p) for p in images]
    return paths, pd.Index([str(p) for p in paths], name="path")
