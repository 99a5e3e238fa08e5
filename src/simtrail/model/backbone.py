"""The backbone: a timm model that turns each image, of any number of bands, into one vector of features."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers.patch_embed import PatchEmbed, resample_patch_embed
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.resnet import ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from simtrail.errors import InputError
from simtrail.model.first_layer import by_number
from simtrail.model.small_maps import with_small_maps
from simtrail.params import SIDE, Architecture, Vit


class Backbone(nn.Module):
    """Maps normalised images to features, (B, bands, size, size) → (B, width), with `net`, a timm model.

    It is trained on views of `view_size`, by default `size`.

    With `architecture.vit`, the features of a vision transformer are the class token and/or the mean of the patches of
    its last layers, each after the final normalisation (as in DINO, arXiv 2104.14294). Every other model gives what
    timm gives without a classifier: the mean of its last map. This vector is what the projection head is trained on.
    `features` gives (B, feature_width): with `architecture.features`, further maps, on grids. Raises InputError for a
    model that is unknown or can't take these images.
    """

    def __init__(self, architecture: Architecture, bands: int, size: int, view_size: int | None = None):
        super().__init__()
        self.bands, self.vit, self.grids = bands, architecture.vit, grids_of(architecture)
        try:
            self.net: Any = network(architecture, bands, size)
            _check(self.net, architecture, view_size or size)
            if self.grids != [1]:
                self._check_grids(architecture.model, size)
            self.width, self.feature_width = self._widths(bands, size)
        except InputError:
            raise
        except Exception as error:  # each timm model raises its own errors
            raise InputError(
                f"pretrain.encoder.model = {architecture.model!r}: can't take images of {bands} bands and "
                f"{size}×{size} pixels ({one_line(error)}); choose another model, or another {SIDE}"
            ) from None

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return self.net(batch) if self.vit is None else self._transformer_features(batch, self.vit)[0]

    def features(self, batch: torch.Tensor) -> torch.Tensor:
        """The features, (B, feature_width)."""
        return self.features_on([self.grids], batch)[0]

    def features_on(self, choices: Sequence[list[int]], batch: torch.Tensor) -> list[torch.Tensor]:
        """The features (B, width) for each choice of grids, as in `architecture.features`.

        For [1] they are the vector that the projection head gets. For other grids, the map of each stage is averaged on
        its grid, and these vectors, each at unit length, are put side by side: so the cosine of two images is the mean
        of the cosines of their stages.
        """
        maps = self._maps(batch, max(map(len, choices))) if any(grids != [1] for grids in choices) else []
        return [self(batch) if grids == [1] else _on_grids(maps, grids) for grids in choices]

    def with_map(self, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The features, and the last feature map, (B, channels, h, w).

        The map of a vision transformer is made of its patches after the final normalisation. Raises ValueError if the
        model has no map.
        """
        if self.vit is None:
            last = self.net.forward_features(batch)
            return self.net.forward_head(last), _as_map(last, self.net)
        features, patches = self._transformer_features(batch, self.vit)
        return features, _as_map(self._final_norm(patches))

    def _transformer_features(self, batch: torch.Tensor, vit: Vit) -> tuple[torch.Tensor, torch.Tensor]:
        """The features of a vision transformer, and the patches of its last layer before the final normalisation."""
        outputs = self.net.forward_intermediates(
            batch, vit.layers, return_prefix_tokens=True, output_fmt="NLC", intermediates_only=True, output_dict=True
        )
        patches, parts = outputs["image_intermediates"], []
        if vit.features != "mean":
            parts.append([self._final_norm(prefix[:, 0]) for prefix in outputs["image_intermediates_prefix"]])
        if vit.features != "token":
            parts.append([self._final_norm(tokens).mean(1) for tokens in patches])
        layers = [torch.cat(layer, 1) for layer in zip(*parts, strict=True)]
        return torch.cat(layers, 1) if vit.combine == "concat" else torch.stack(layers).mean(0), patches[-1]

    def _final_norm(self, tokens: torch.Tensor) -> torch.Tensor:
        """Normalises by `norm`, or by `fc_norm` in models that pool the patches; the other one is an identity."""
        return self.net.fc_norm(self.net.norm(tokens))

    def adopt(self, weights: Mapping[str, torch.Tensor], shares: torch.Tensor | None = None) -> list[str]:
        """Takes over weights of the same model; returns one line for each tensor that did not fit unchanged.

        Filters of the first layer become sums by `shares` (old bands, new bands), by default those of `by_number`, if
        their number or order differs. Patch filters and position embeddings of vision
        transformers are resampled. A tensor without a counterpart keeps its (random) values and is named.
        """
        lines, state = [], self.state_dict()
        first = next(name for name, current in state.items() if current.ndim == 4)
        for name, current in state.items():
            new = weights.get(name)
            if new is None and name.endswith("num_batches_tracked"):  # a counter of steps, which many files leave out
                continue
            if new is None:
                lines.append(f"{name} stays random: the weights do not contain it")
                continue
            if isinstance(self.net, VisionTransformer) and name == "net.pos_embed":
                prefix = 0 if self.net.no_embed_class else self.net.num_prefix_tokens
                new = resample_abs_pos_embed(new, list(self.net.patch_embed.grid_size), num_prefix_tokens=prefix)
            if isinstance(self.net, VisionTransformer) and name == "net.patch_embed.proj.weight":
                new = resample_patch_embed(new, list(current.shape[2:]))
            if new.ndim == 4 and current.shape[1] == self.bands and new.shape[2:] == current.shape[2:]:
                old = new.shape[1]
                known = shares if shares is not None and len(shares) == old else by_number(old, self.bands)
                if old != self.bands or (name == first and not known.equal(torch.eye(old, dtype=known.dtype))):
                    lines.append(f"{name} adapted from {old} to {self.bands} bands")
                    new = torch.einsum("oihw,ib->obhw", new, known.to(new))
            if new.shape == current.shape:
                current.copy_(new)
            else:
                lines.append(f"{name} stays random: its shape is {_shape(current)}, but {_shape(new)} in the weights")
        return lines

    def _maps(self, batch: torch.Tensor, stages: int) -> list[torch.Tensor]:
        """The maps of the last stages, the last one first."""
        return self.net.forward_intermediates(batch, stages, output_fmt="NCHW", intermediates_only=True)[::-1]

    def _check_grids(self, model: str, size: int) -> None:
        """Raises InputError unless the model has a map for each of the grids, at least as fine as its grid."""
        setting, stages = f"pretrain.encoder.features = {self.grids}: ", getattr(self.net, "feature_info", [])
        if isinstance(self.net, VisionTransformer) or not stages or not hasattr(self.net, "forward_intermediates"):
            raise InputError(f"{setting}must be [1] with {model!r}, which has no maps of several stages")
        if len(self.grids) > len(stages):
            raise InputError(f"{setting}must have at most {len(stages)} grids, one for each stage of {model!r}")
        self.eval()  # one image has no variance
        with torch.no_grad():
            sides = [m.shape[-1] for m in self._maps(torch.zeros(1, self.bands, size, size), len(self.grids))]
        for stage, (side, grid) in enumerate(zip(sides, self.grids, strict=True), 1):
            if grid > side:
                raise InputError(
                    f"{setting}grid {stage} must be ≤ {side}, the side of its map for images of {size} pixels; "
                    "the first grid is for the last map"
                )

    def _widths(self, bands: int, size: int) -> tuple[int, int]:
        with torch.no_grad():  # one image shows the widths, and whether the model takes such images
            image = torch.zeros(1, bands, size, size)
            pooled, features = self.eval()(image), self.features(image)
        self.train()
        if pooled.ndim != 2:
            raise ValueError(f"for one image it gives a tensor of {_shape(pooled)}, not a vector")
        return pooled.shape[1], features.shape[1]


def grids_of(architecture: Architecture) -> list[int]:
    """The grids of the features; while they are not chosen, the mean of the last map."""
    return [1] if isinstance(architecture.features, str) else architecture.features


def is_resnet(model: str) -> bool:
    """Whether a name is that of a ResNet of timm, which can have a small stem."""
    with torch.device("meta"):
        return timm.is_model(model) and isinstance(timm.create_model(model), ResNet)


def takes_one_size(model: str) -> bool:
    """Whether a network of timm is built for images of one size, as most vision transformers are."""
    config = timm.get_pretrained_cfg(model) if timm.is_model(model) else None
    return config is not None and bool(config.fixed_input_size)


def network(a: Architecture, bands: int, size: int, pretrained: bool = False) -> Any:
    if not timm.is_model(a.model):
        similar = difflib.get_close_matches(a.model, timm.list_models(), n=3)
        raise InputError(
            f"pretrain.encoder.model = {a.model!r}: not a model of timm; "
            + (f"did you mean {', '.join(similar)}?" if similar else "timm.list_models() lists them")
        )
    options: dict[str, Any] = {"num_classes": 0, "in_chans": bands, "pretrained": pretrained}
    if takes_one_size(a.model):
        options["img_size"] = size
    default: Any = None
    if a.width > 1 or a.vit is not None:
        with torch.device("meta"):
            default = timm.create_model(a.model)
    if a.vit is not None and not isinstance(default, VisionTransformer):
        raise InputError(
            f"pretrain.encoder.vit: has no effect on pretrain.encoder.model = {a.model!r}, which is not a "
            "VisionTransformer of timm; set it to null"
        )
    if a.vit is not None and a.vit.patch_size is not None:
        options["patch_size"] = a.vit.patch_size
    if a.width > 1:
        _require_resnet(default, f"width = {a.width}: must be 1", a.model)
        stem, *stages = default.feature_info
        options["channels"] = [
            stage["num_chs"] * a.width // getattr(default, stage["module"])[0].expansion for stage in stages
        ]
        options["stem_width"] = stem["num_chs"] * a.width // 2
        if isinstance(default.conv1, nn.Conv2d):
            # timm's plain stem always has 64 channels: build a deep one of the right width, and replace it below
            options["stem_type"] = "deep"
    net: Any = timm.create_model(a.model, **options)
    if a.vit is not None:
        net.attn_pool = None  # some models pool with it; unused here, it would get no gradient and break DDP
    if a.stem == "small":
        _require_resnet(net, "stem = 'small': must be standard", a.model)
        # Appendix B.9 of the paper: a 3×3 convolution of stride 1 and no max-pooling, for CIFAR-sized images
        net.conv1 = _convolution(bands, net.feature_info[0]["num_chs"], 3, stride=1)
        net.maxpool = nn.Identity()
    elif options.get("stem_type"):
        net.conv1 = _convolution(bands, net.feature_info[0]["num_chs"], 7, stride=2)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)
    with_small_maps(net)
    return net


def _check(net: Any, a: Architecture, size: int) -> None:
    patch = next((m.patch_size[0] for m in net.modules() if isinstance(m, PatchEmbed)), 1)
    if size % patch:  # some timm models would ignore the last rows and columns
        raise InputError(
            f"{SIDE} = {size}: must be a multiple of {patch}, the patch size of {a.model!r}"
            + ("; or set pretrain.encoder.vit.patch_size" if isinstance(net, VisionTransformer) else "")
        )
    reduction = max((info.get("reduction", 1) for info in getattr(net, "feature_info", [])), default=1)
    if a.stem == "standard" and size < reduction:
        # the last stage would stride over single pixels; there, oneDNN's bf16 weight gradients are uninitialised memory
        raise InputError(
            f"{SIDE} = {size}: must be ≥ {reduction} with {a.model!r}, whose map is {reduction} times smaller"
            + ("; or use pretrain.encoder.stem: small" if isinstance(net, ResNet) else "")
        )
    if a.vit is None:
        return
    if a.vit.features != "mean" and not net.has_class_token:
        raise InputError(
            f"pretrain.encoder.vit.features = {a.vit.features!r}: must be mean with {a.model!r}, "
            "which has no class token"
        )
    if a.vit.layers > len(net.blocks):
        raise InputError(
            f"pretrain.encoder.vit.layers = {a.vit.layers}: must be ≤ {len(net.blocks)}, the layers of {a.model!r}"
        )


def _on_grids(maps: Sequence[torch.Tensor], grids: Sequence[int]) -> torch.Tensor:
    """The maps (B, channels, h, w), each averaged on its grid, at unit length, side by side; grid 0 leaves one out."""
    parts = [F.adaptive_avg_pool2d(m.float(), g).flatten(1) for m, g in zip(maps, grids, strict=False) if g]
    return torch.cat([F.normalize(part, dim=1) for part in parts], 1)


def _as_map(last: Any, net: Any = None) -> torch.Tensor:
    """The last features that timm gives, as a map (B, channels, h, w)."""
    if not isinstance(last, torch.Tensor) or last.ndim not in (3, 4):
        raise ValueError("its last features are not a map")
    if last.ndim == 4:
        return last.permute(0, 3, 1, 2) if getattr(net, "output_fmt", "NCHW") == "NHWC" else last
    tokens = last[:, getattr(net, "num_prefix_tokens", 0) :]
    side = math.isqrt(tokens.shape[1])
    if side**2 != tokens.shape[1]:
        raise ValueError(f"its last {tokens.shape[1]} tokens don't form a square")
    return tokens.mT.unflatten(2, (side, side))


def _require_resnet(net: Any, error: str, model: str) -> None:
    if not isinstance(net, ResNet):
        raise InputError(f"pretrain.encoder.{error} with {model!r}, which is not a ResNet of timm")


def _convolution(bands: int, channels: int, kernel: int, stride: int) -> nn.Conv2d:
    layer = nn.Conv2d(bands, channels, kernel, stride, kernel // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer


def _shape(tensor: torch.Tensor) -> str:
    return "×".join(map(str, tensor.shape))


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
