"""The encoder f(x) and its projection head, which carry their recipe and their normalisation with them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm import tqdm

from simtrail.data.loader import to_unit
from simtrail.data.readers import SUFFIXES, read_image
from simtrail.data.recipe import Recipe, conform
from simtrail.errors import InputError
from simtrail.model.backbone import Backbone, pretrained_weights
from simtrail.model.projector import projection_head
from simtrail.params import Architecture, Head

WEIGHTS, CONFIG = "encoder.safetensors", "config.json"


class EncoderConfig(BaseModel):
    """All that is needed to rebuild an encoder around its weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: Architecture
    head: Head
    recipe: Recipe
    mean: list[float]  # per band, on the 0 to 1 scale, of the training split
    std: list[float]


class Encoder(nn.Module):
    """Maps images to features, (B, bands, size, size) float32 in [0, 1] → (B, width).

    With `head_layers` = k the features are those after the first k layers of the projection head, from which
    SimCLRv2 fine-tunes (arXiv 2006.10029, section 2.3). Raises InputError for what can't be built.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, config: EncoderConfig, head_layers: int = 0):
        super().__init__()
        if not 0 <= head_layers <= config.head.depth:
            raise InputError(
                f"head_layers = {head_layers}: must be from 0 to {config.head.depth}, the layers of the projection head"
            )
        self.config, self.head_layers = config, head_layers
        self.backbone = Backbone(config.architecture, len(config.recipe.bands), config.recipe.size)
        self.head = projection_head(self.backbone.width, config.head)
        widths = [self.backbone.width, *(m.out_features for m in self.head.modules() if isinstance(m, nn.Linear))]
        self.width = widths[head_layers]
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(config, name)).view(1, -1, 1, 1), persistent=False)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        normalised = (batch - self.mean) / self.std
        return self.head[: self.head_layers](self.backbone(normalised.contiguous(memory_format=torch.channels_last)))

    def project(self, batch: torch.Tensor) -> torch.Tensor:
        """The projections, (B, head.output), of images (B, bands, size, size) in [0, 1]; the features at depth 0."""
        return self.head[self.head_layers :](self(batch))

    @property
    def device(self) -> torch.device:
        return self.mean.device

    @torch.inference_mode()
    def features(self, batches: Iterator[np.ndarray]) -> np.ndarray:
        """The float32 features, (N, width), of batches of packed images (B, bands, size, size)."""
        self.eval()
        parts = [
            self(to_unit(batch, self.config.recipe.full_scale, self.device)).float().cpu().numpy() for batch in batches
        ]
        return np.concatenate(parts) if parts else np.empty((0, self.width), np.float32)

    def embed(self, images: str | Path | Sequence[str | Path] | np.ndarray, batch_size: int = 64) -> pd.DataFrame:
        """One row per image: columns `0` … `width − 1`, indexed by path (by position, for arrays).

        `images` is a folder (searched through), one path, a list of paths, or an array (N, C, H, W) of any height and
        width in the bands and value range of the files the encoder was trained on. Raises InputError naming each file
        that can't be read or has other bands.
        """
        items, index = _listed(images)

        def load(item: Path | np.ndarray) -> np.ndarray | str:
            try:
                return conform(read_image(item) if isinstance(item, Path) else item, self.config.recipe)
            except (ValueError, OSError) as fault:
                return f"{item if isinstance(item, Path) else 'array'}: {fault}"

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

        return pd.DataFrame(self.features(batches()), index=index)

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
        except FileNotFoundError as fault:
            raise InputError(
                f"{fault.filename or folder / WEIGHTS}: no such file; an encoder is {WEIGHTS} and {CONFIG}"
            ) from None
        except (SafetensorError, ValidationError, json.JSONDecodeError, RuntimeError) as fault:
            raise InputError(f"{folder}: not a whole encoder: {' '.join(str(fault).split())[:300]}") from None
        return encoder.to(best_device()).eval()


def best_device() -> torch.device:
    """The first GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_weights(encoder: Encoder, weights: str) -> list[str]:
    """One line for each part of the encoder that the weights did not fit as they were; the encoder has taken them.

    `weights` is pretrain.weights, a registry URI fetched before: `random` (nothing is done), `pretrained` (timm's) or
    the folder of an encoder, whose backbone must be of the same model, width and stem; other bands, image and patch
    sizes are adapted to (see Backbone.adopt). The projection head is taken over where it has the same layers.
    Raises InputError for weights that are not there or are for another model.
    """
    if weights == "random":
        return []
    if weights == "pretrained":
        return encoder.backbone.adopt(pretrained_weights(encoder.config.architecture, encoder.config.recipe.size))
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
    lines = encoder.backbone.adopt(source.backbone.state_dict())
    theirs, ours = source.head.state_dict(), encoder.head.state_dict()
    if {k: v.shape for k, v in theirs.items()} == {k: v.shape for k, v in ours.items()}:
        encoder.head.load_state_dict(theirs)
    else:
        lines.append("head stays random: the weights have another one")
    return lines


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
