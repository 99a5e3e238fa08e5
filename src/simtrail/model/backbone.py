"""The backbone: a model of timm that turns images of any number of bands into one vector of features each."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Any

import timm
import torch
from timm.layers.patch_embed import PatchEmbed, resample_patch_embed
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.resnet import ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from simtrail.errors import InputError
from simtrail.params import Architecture, Vit


class Backbone(nn.Module):
    """Maps normalised images to features, (B, bands, size, size) → (B, width), through `net`, a model of timm.

    A vision transformer with `architecture.vit` gives the class token and/or the mean of the patches of its last
    layers, each after the final normalisation (as DINO, arXiv 2104.14294, does); every other model what timm gives
    without a classifier. Raises InputError for a model that is unknown or can't take these images.
    """

    def __init__(self, architecture: Architecture, bands: int, size: int):
        super().__init__()
        self.bands, self.vit = bands, architecture.vit
        try:
            self.net: Any = _net(architecture, bands, size)
            _check(self.net, architecture, size)
            self.width = self._trial(bands, size)
        except InputError:
            raise
        except Exception as error:  # every model of timm refuses in its own way
            raise InputError(
                f"pretrain.encoder.model = {architecture.model!r}: can't take images of {bands} bands and "
                f"{size}×{size} pixels ({_brief(error)}); choose another model, or another prepare.size"
            ) from None

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return self.net(batch) if self.vit is None else self._transformed(batch, self.vit)[0]

    def with_map(self, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The features, and the last map, (B, channels, h, w): of a vision transformer its patches after the final
        normalisation. Raises ValueError where there is none."""
        if self.vit is None:
            found = self.net.forward_features(batch)
            return self.net.forward_head(found), _as_map(found, self.net)
        features, patches = self._transformed(batch, self.vit)
        return features, _as_map(self._normal(patches))

    def _transformed(self, batch: torch.Tensor, vit: Vit) -> tuple[torch.Tensor, torch.Tensor]:
        """Of a vision transformer, the features and the patches of the last layer, not yet normalised."""
        found = self.net.forward_intermediates(
            batch, vit.layers, return_prefix_tokens=True, output_fmt="NLC", intermediates_only=True, output_dict=True
        )
        patches, kinds = found["image_intermediates"], []
        if vit.features != "mean":
            kinds.append([self._normal(prefix[:, 0]) for prefix in found["image_intermediates_prefix"]])
        if vit.features != "token":
            kinds.append([self._normal(tokens).mean(1) for tokens in patches])
        layers = [torch.cat(layer, 1) for layer in zip(*kinds, strict=True)]
        return torch.cat(layers, 1) if vit.combine == "concat" else torch.stack(layers).mean(0), patches[-1]

    def _normal(self, tokens: torch.Tensor) -> torch.Tensor:
        """The final normalisation: `norm`, or `fc_norm` in models that pool the patches; the other is an identity."""
        return self.net.fc_norm(self.net.norm(tokens))

    def adopt(self, weights: Mapping[str, torch.Tensor]) -> list[str]:
        """One line for each tensor that did not fit as it was, after the weights of the same model were taken over.

        Filters of the first layer go through `adapt_bands`; patch filters and position embeddings of vision
        transformers are resampled. What has no counterpart stays as it is (random), and is named.
        """
        lines = []
        for name, own in self.state_dict().items():
            given = weights.get(name)
            if given is None:
                lines.append(f"{name} stays random: the weights have none")
                continue
            if isinstance(self.net, VisionTransformer) and name == "net.pos_embed":
                prefix = 0 if self.net.no_embed_class else self.net.num_prefix_tokens
                given = resample_abs_pos_embed(given, list(self.net.patch_embed.grid_size), num_prefix_tokens=prefix)
            if isinstance(self.net, VisionTransformer) and name == "net.patch_embed.proj.weight":
                given = resample_patch_embed(given, list(own.shape[2:]))
            if given.ndim == 4 and given.shape[1] != own.shape[1] == self.bands and given.shape[2:] == own.shape[2:]:
                lines.append(f"{name} adapted from {given.shape[1]} to {own.shape[1]} bands")
                given = adapt_bands(given, self.bands)
            if given.shape == own.shape:
                own.copy_(given)
            else:
                lines.append(f"{name} stays random: it is {_shape(own)}, in the weights {_shape(given)}")
        return lines

    def _trial(self, bands: int, size: int) -> int:
        with torch.no_grad():  # one image, so that the width is known and a misfit shows at once
            features = self.eval()(torch.zeros(1, bands, size, size))
        self.train()
        if features.ndim != 2:
            raise ValueError(f"it gives {_shape(features)} for an image, no vector")
        return features.shape[1]


def pretrained_weights(architecture: Architecture, size: int) -> dict[str, torch.Tensor]:
    """The weights that timm offers for a model, by their names in a Backbone; fetched, where not yet in its cache.

    Raises InputError where there are none, or they can't be fetched.
    """
    if architecture.width > 1:
        raise InputError(f"pretrain.weights = 'pretrained': needs pretrain.encoder.width: 1, not {architecture.width}")
    try:
        source: Any = timm.get_pretrained_cfg(architecture.model)
        standard = architecture.model_copy(update={"stem": "standard"})
        net = _net(standard, source.input_size[0], size, pretrained=True)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"pretrain.weights = 'pretrained': no weights for pretrain.encoder.model = {architecture.model!r} "
            f"({_brief(error)}); check the network, or that timm.list_models(pretrained=True) has it, or use random"
        ) from None
    return {f"net.{name}": value for name, value in net.state_dict().items()}


def adapt_bands(filters: torch.Tensor, bands: int) -> torch.Tensor:
    """First-layer filters for another number of bands, (O, I, h, w) → (O, bands, h, w).

    Given and new bands are paired cyclically; a filter that goes to n bands is divided by n, filters that meet in one
    band are added. So an image that is the same in all bands gives the response it gave.
    """
    given = filters.shape[1]
    pairs = torch.zeros(given, bands, dtype=filters.dtype, device=filters.device)
    steps = torch.arange(max(given, bands), device=filters.device)
    pairs[steps % given, steps % bands] = 1
    return torch.einsum("oihw,ib->obhw", filters, pairs / pairs.sum(1, keepdim=True))


def _net(a: Architecture, bands: int, size: int, pretrained: bool = False) -> Any:
    if not timm.is_model(a.model):
        near = difflib.get_close_matches(a.model, timm.list_models(), n=3)
        raise InputError(
            f"pretrain.encoder.model = {a.model!r}: no model of timm; "
            + (f"did you mean {', '.join(near)}?" if near else "timm.list_models() names them")
        )
    options: dict[str, Any] = {"num_classes": 0, "in_chans": bands, "pretrained": pretrained}
    known = timm.get_pretrained_cfg(a.model)
    if known is not None and known.fixed_input_size:
        options["img_size"] = size
    plain: Any = None
    if a.width > 1 or a.vit is not None:
        with torch.device("meta"):
            plain = timm.create_model(a.model)
    if a.vit is not None and not isinstance(plain, VisionTransformer):
        raise InputError(
            f"pretrain.encoder.vit: has no effect on pretrain.encoder.model = {a.model!r}, which is no "
            "VisionTransformer of timm; set it to null"
        )
    if a.vit is not None and a.vit.patch_size is not None:
        options["patch_size"] = a.vit.patch_size
    if a.width > 1:
        _demand_resnet(plain, f"width = {a.width}: must be 1", a.model)
        stem, *stages = plain.feature_info
        options["channels"] = [
            stage["num_chs"] * a.width // getattr(plain, stage["module"])[0].expansion for stage in stages
        ]
        options["stem_width"] = stem["num_chs"] * a.width // 2
        if isinstance(plain.conv1, nn.Conv2d):
            # timm fixes the plain stem at 64 channels: build a deep one of the right width, to be replaced
            options["stem_type"] = "deep"
    net: Any = timm.create_model(a.model, **options)
    if a.vit is not None:
        net.attn_pool = None  # pools the last layer in some models; without a gradient it would break DDP
    if a.stem == "small":
        _demand_resnet(net, "stem = 'small': must be standard", a.model)
        # Appendix B.9 of the paper: a 3×3 convolution of stride 1 and no max-pooling, for CIFAR-sized images
        net.conv1 = _convolution(bands, net.feature_info[0]["num_chs"], 3, stride=1)
        net.maxpool = nn.Identity()
    elif options.get("stem_type"):
        net.conv1 = _convolution(bands, net.feature_info[0]["num_chs"], 7, stride=2)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)
    return net


def _check(net: Any, a: Architecture, size: int) -> None:
    patch = next((m.patch_size[0] for m in net.modules() if isinstance(m, PatchEmbed)), 1)
    if size % patch:  # timm would pass over the last rows and columns in some models
        raise InputError(
            f"prepare.size = {size}: must be a multiple of {patch}, the patch size of {a.model!r}"
            + ("; or set pretrain.encoder.vit.patch_size" if isinstance(net, VisionTransformer) else "")
        )
    reduction = max((info.get("reduction", 1) for info in getattr(net, "feature_info", [])), default=1)
    if a.stem == "standard" and size < reduction:
        # the last stage would stride over single pixels, where oneDNN's bf16 weight gradients hold uninitialised memory
        raise InputError(
            f"prepare.size = {size}: must be ≥ {reduction} with {a.model!r}, which reduces images {reduction} times"
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


def _as_map(found: Any, net: Any = None) -> torch.Tensor:
    """What timm gives as last features, as (B, channels, h, w)."""
    if not isinstance(found, torch.Tensor) or found.ndim not in (3, 4):
        raise ValueError("its last features are no map")
    if found.ndim == 4:
        return found.permute(0, 3, 1, 2) if getattr(net, "output_fmt", "NCHW") == "NHWC" else found
    tokens = found[:, getattr(net, "num_prefix_tokens", 0) :]
    side = math.isqrt(tokens.shape[1])
    if side**2 != tokens.shape[1]:
        raise ValueError(f"its last {tokens.shape[1]} tokens make no square")
    return tokens.mT.unflatten(2, (side, side))


def _demand_resnet(net: Any, error: str, model: str) -> None:
    if not isinstance(net, ResNet):
        raise InputError(f"pretrain.encoder.{error} with {model!r}, which is no ResNet of timm")


def _convolution(bands: int, channels: int, kernel: int, stride: int) -> nn.Conv2d:
    layer = nn.Conv2d(bands, channels, kernel, stride, kernel // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer


def _shape(tensor: torch.Tensor) -> str:
    return "×".join(map(str, tensor.shape))


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
