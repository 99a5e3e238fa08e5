"""The first weights of an encoder: those of timm, or of another encoder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch

from simtrail.errors import InputError
from simtrail.model.backbone import network, one_line
from simtrail.model.encoder import Encoder
from simtrail.params import Architecture


def load_weights(encoder: Encoder, weights: str) -> list[str]:
    """Takes over weights; returns one line for each part of the encoder that they did not fit unchanged.

    `weights` is pretrain.weights, after a registry URI has been downloaded: `random` (does nothing), `pretrained`
    (timm's weights) or the folder of an encoder. That encoder must have the same model, width and stem; its weights are
    adapted to different bands, image sizes and patch sizes (see Backbone.adopt). A branch takes the weights of the same
    modality, or the weights of the only branch. Projection heads are taken over if they have the same layers. Raises
    InputError for weights that do not exist, or that are for another model or other modalities.
    """
    if weights == "random":
        return []
    if weights == "pretrained":
        of_timm = pretrained_weights(encoder.config.architecture, encoder.config.size)
        return _adopt(encoder, dict.fromkeys(encoder.names, of_timm))
    if not Path(weights).is_dir():
        raise InputError(
            f"pretrain.weights = {weights!r}: must be random, pretrained, an encoder's folder, or models:/NAME@ALIAS"
        )
    source = Encoder.load(Path(weights))
    for key in ("model", "width", "stem"):
        required, actual = getattr(source.config.architecture, key), getattr(encoder.config.architecture, key)
        if required != actual:
            raise InputError(
                f"pretrain.encoder.{key} = {actual!r}: must be {required!r} with pretrain.weights = {weights!r}"
            )
    source_branches = {name: branch.state_dict() for name, branch in source.branches.items()}
    only_branch = next(iter(source_branches.values())) if len(source_branches) == 1 else None
    branch_weights = {name: source_branches.get(name, only_branch) for name in encoder.names}
    if not any(branch_weights.values()):
        raise InputError(
            f"pretrain.weights = {weights!r}: has a branch for each of {', '.join(source_branches)}; name one of them "
            f"in pretrain.encoder.modalities, or set pretrain.encoder.fusion: {source.config.architecture.fusion}"
        )
    lines, source_parts = _adopt(encoder, branch_weights), _parts_above_branches(source)
    for name, current in _parts_above_branches(encoder).items():
        new = source_parts.get(name, {})
        if {k: v.shape for k, v in new.items()} == {k: v.shape for k, v in current.items()}:
            for key, value in current.items():
                value.copy_(new[key])
        else:
            lines.append(f"{name} stays random: the weights have a different one, or none")
    return lines


def _adopt(encoder: Encoder, weights: Mapping[str, Mapping[str, torch.Tensor] | None]) -> list[str]:
    """Gives each branch its weights, by name; returns one line for each part that they did not fit unchanged."""
    lines = []
    for name, branch in encoder.branches.items():
        new = weights[name]
        messages = ["stays random: the weights have no such modality"] if new is None else branch.adopt(new)
        lines += [f"{name}: {message}" for message in messages] if encoder.modalities else messages
    return lines


def _parts_above_branches(encoder: Encoder) -> dict[str, dict[str, torch.Tensor]]:
    """The state dicts of the heads and of the scores of attention, by name; those without weights are left out."""
    parts = {"head": encoder.head.state_dict()}
    scores = encoder.backbone.scores if encoder.modalities else []
    for part, modules in {"head": encoder.heads, "score": scores}.items():
        parts |= {f"{part} of {name}": m.state_dict() for name, m in zip(encoder.modalities, modules, strict=False)}
    for name, head in zip(encoder.modalities or [""], encoder.local_heads, strict=False):
        parts["local head" + (name and f" of {name}")] = head.state_dict()
    return {name: weights for name, weights in parts.items() if weights}


def pretrained_weights(architecture: Architecture, size: int) -> dict[str, torch.Tensor]:
    """The weights that timm offers for a model, by their names in a Backbone; downloaded if not yet in timm's cache.

    Raises InputError if there are none, or they can't be downloaded.
    """
    if architecture.width > 1:
        raise InputError(f"pretrain.weights = 'pretrained': needs pretrain.encoder.width: 1, not {architecture.width}")
    try:
        pretrained_config: Any = timm.get_pretrained_cfg(architecture.model)
        standard = architecture.model_copy(update={"stem": "standard"})
        net = network(standard, pretrained_config.input_size[0], size, pretrained=True)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"pretrain.weights = 'pretrained': no weights for pretrain.encoder.model = {architecture.model!r} "
            f"({one_line(error)}); check the network, and timm.list_models(pretrained=True), or set random"
        ) from None
    return {f"net.{name}": value for name, value in net.state_dict().items()}
