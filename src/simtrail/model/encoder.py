"""The encoder f(x): a timm ResNet for any number of bands that carries its recipe and its normalisation with it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import timm
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

WEIGHTS, CONFIG = "encoder.safetensors", "config.json"


class EncoderConfig(BaseModel):
    """All that is needed to rebuild an encoder around its weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    stem: str
    recipe: Recipe
    mean: list[float]  # per band, on the 0 to 1 scale, of the training split
    std: list[float]


class Encoder(nn.Module):
    """Maps images to features, (B, bands, size, size) float32 in [0, 1] → (B, width)."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config = config
        self.backbone: Any = _resnet(config)
        self.width = int(self.backbone.num_features)
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(config, name)).view(1, -1, 1, 1), persistent=False)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        normalised = (batch - self.mean) / self.std
        return self.backbone(normalised.contiguous(memory_format=torch.channels_last))

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
                raise InputError("\n".join(faults))

        return pd.DataFrame(self.features(batches()), index=index)

    def save(self, folder: Path) -> None:
        """Writes encoder.safetensors and config.json."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, folder / WEIGHTS)
        (folder / CONFIG).write_text(self.config.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Encoder:
        """The encoder saved in a folder, in evaluation mode, on the GPU if there is one. InputError if damaged."""
        try:
            config = EncoderConfig.model_validate(json.loads((folder / CONFIG).read_text(encoding="utf-8")))
            encoder = cls(config)
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


def _resnet(config: EncoderConfig) -> Any:
    if config.model not in timm.list_models("*resnet*"):
        near = ", ".join(timm.list_models("resnet*")[:5])
        raise InputError(f"pretrain.model = {config.model!r}: must be a ResNet of timm, such as {near}")
    backbone: Any = timm.create_model(config.model, pretrained=False, num_classes=0, in_chans=len(config.recipe.bands))
    if config.stem == "standard" and config.recipe.size < 32:
        # the last stage would stride over single pixels, where oneDNN's bf16 weight gradients hold uninitialised memory
        raise InputError(
            f"prepare.size = {config.recipe.size}: must be ≥ 32 with pretrain.stem: standard, which reduces images "
            "32 times; use pretrain.stem: small"
        )
    if config.stem == "small":
        if not isinstance(getattr(backbone, "conv1", None), nn.Conv2d):
            raise InputError(
                f"pretrain.stem = 'small': not possible with pretrain.model = {config.model!r}, "
                "whose first layer is no single convolution"
            )
        # Appendix B.9 of the paper: a 3×3 convolution of stride 1 and no max-pooling, for CIFAR-sized images
        backbone.conv1 = nn.Conv2d(len(config.recipe.bands), backbone.conv1.out_channels, 3, 1, 1, bias=False)
        nn.init.kaiming_normal_(backbone.conv1.weight, mode="fan_out", nonlinearity="relu")
        backbone.maxpool = nn.Identity()
    return backbone.to(memory_format=torch.channels_last)


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
