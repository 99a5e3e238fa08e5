"""The first weights of an encoder: those of timm, of a file, or of another encoder."""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from simtrail.errors import InputError, listed
from simtrail.model.backbone import Backbone, network, one_line
from simtrail.model.encoder import Encoder
from simtrail.model.first_layer import RGB, Named, by_meaning
from simtrail.model.fusion import branch_bands
from simtrail.params import FILES, Architecture

SORTED = ".safetensors"  # has its tensors in an order of its own
HUB = "hf-hub:"
BETTER = ("teacher", "ema", "average")  # in the name of weights of which a file has others that fit as well
CHOICES = (
    "must be random, pretrained, an encoder's folder, a file of weights (.safetensors, .pth, …), hf-hub:NAME, or "
    "models:/NAME@ALIAS"
)

Tensors = Mapping[str, torch.Tensor]


def is_file(weights: str) -> bool:
    """Whether pretrain.weights is the path of a file of weights."""
    return Path(weights).suffix.lower() in FILES


def load_weights(encoder: Encoder, weights: str) -> list[str]:
    """Takes over weights; returns one line for each part of the encoder that they did not fit unchanged.

    `weights` is pretrain.weights, after a registry URI has been downloaded: `random` (does nothing), `pretrained`
    (timm's weights), hf-hub:NAME, a file of weights, or the folder of an encoder. That encoder must have the same
    model, width and stem; its weights are adapted to different bands, image sizes and patch sizes (see Backbone.adopt).
    Filters of the first layer go to bands by meaning (see `by_meaning`), and the encoder's configuration keeps from
    which. A branch takes the weights of the same modality, or the weights of the only branch. Projection heads are
    taken over if they have the same layers. Raises InputError for weights that do not exist, or that are for another
    model or other modalities.
    """
    if weights == "random":
        return []
    if weights == "pretrained":
        of_timm = pretrained_weights(encoder.config.architecture, encoder.config.size)
        return _adopt(encoder, dict.fromkeys(encoder.names, of_timm), dict.fromkeys(encoder.names, RGB))
    if weights.startswith(HUB) or is_file(weights):
        sets = hub_weights(weights) if weights.startswith(HUB) else read_weights(Path(weights))
        fitted = fit_weights(
            sets, next(iter(encoder.branches.values())), weights, ordered=not weights.lower().endswith(SORTED)
        )
        lines = _adopt(encoder, dict.fromkeys(encoder.names, fitted.tensors), dict.fromkeys(encoder.names, RGB))
        return [fitted.report, *lines]
    if not Path(weights).is_dir():
        raise InputError(f"pretrain.weights = {weights!r}: {CHOICES}")
    source = Encoder.load(Path(weights))
    for key in ("model", "width", "stem"):
        required, actual = getattr(source.config.architecture, key), getattr(encoder.config.architecture, key)
        if required != actual:
            raise InputError(
                f"pretrain.encoder.{key} = {actual!r}: must be {required!r} with pretrain.weights = {weights!r}"
            )
    of_branch, bands = {name: b.state_dict() for name, b in source.branches.items()}, _bands(source)
    only = next(iter(of_branch)) if len(of_branch) == 1 else None
    sources = {name: name if name in of_branch else only for name in encoder.names}
    if not any(name is not None for name in sources.values()):
        raise InputError(
            f"pretrain.weights = {weights!r}: has a branch for each of {', '.join(of_branch)}; name one of them "
            f"in pretrain.encoder.modalities, or set pretrain.encoder.fusion: {source.config.architecture.fusion}"
        )
    taken = {name: None if old is None else of_branch[old] for name, old in sources.items()}
    lines = _adopt(encoder, taken, {name: bands[old] for name, old in sources.items() if old is not None})
    source_parts = _parts_above_branches(source)
    for name, current in _parts_above_branches(encoder).items():
        new = source_parts.get(name, {})
        if {k: v.shape for k, v in new.items()} == {k: v.shape for k, v in current.items()}:
            for key, value in current.items():
                value.copy_(new[key])
        else:
            lines.append(f"{name} stays random: the weights have a different one, or none")
    return lines


def _adopt(encoder: Encoder, weights: Mapping[str, Tensors | None], bands: Mapping[str, Named]) -> list[str]:
    """Gives each branch its weights, which are for `bands`; one line for each part that they did not fit unchanged."""
    lines, own, table = [], _bands(encoder), dict[str, str]()
    for name, branch in encoder.branches.items():
        new = weights[name]
        if new is None:
            messages = ["stays random: the weights have no such modality"]
        else:
            filters = by_meaning(bands[name], own[name])
            messages = branch.adopt(new, filters.shares)
            if any(" adapted from " in message for message in messages):
                table |= filters.sources
                texts = [f"{band} ← {source}" for band, source in filters.sources.items()]
                messages.append(f"filters of bands: {listed(texts)}")
        lines += [f"{name}: {message}" for message in messages] if encoder.modalities else messages
    encoder.config = encoder.config.model_copy(update={"filters_from": table})
    return lines


def _bands(encoder: Encoder) -> dict[str, Named]:
    """The bands of each branch."""
    recipe = encoder.config.recipe
    wavelengths = recipe.wavelengths or [None] * len(recipe.bands)
    return {
        name: Named([recipe.bands[i] for i in positions], [wavelengths[i] for i in positions])
        for name, positions in branch_bands(encoder.config.architecture, recipe).items()
    }


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


def hub_weights(name: str) -> dict[str, dict[str, torch.Tensor]]:
    """The weights of a model of timm on the Hugging Face hub, hf-hub:OWNER/NAME, as from `read_weights`."""
    try:
        return {"": timm.create_model(name, pretrained=True, num_classes=0).state_dict()}
    except Exception as error:  # the hub, the network and timm raise their own errors
        raise InputError(
            f"pretrain.weights = {name!r}: can't be downloaded ({one_line(error)}); check the name and the network"
        ) from None


class Fitted(NamedTuple):
    """The tensors of a file by their names in a Backbone, and a line that says what fits."""

    tensors: dict[str, torch.Tensor]
    report: str


class _Fit(NamedTuple):
    pairs: dict[str, str]  # the name of each tensor of the network → its name in the file
    prefix: str
    by_name: bool


def fit_weights(sets: Mapping[str, Tensors], backbone: Backbone, source: str, *, ordered: bool = True) -> Fitted:
    """The weights for the network of a backbone, from dictionaries of tensors as `read_weights` returns them.

    Names may have any prefix (`module.encoder_q.`, `backbone.`, …): it and the dictionary are those with which the most
    tensors fit by name and shape. If not all do, and they are `ordered` as in the model they are from, they are also
    paired by their order, if all of the network have a counterpart with the same shape and the same last part of the
    name. Raises InputError, which names the `source`, if less than half of the tensors fit.
    """
    net = {name: value for name, value in backbone.net.state_dict().items() if _counts(name)}
    fits = [(title, _best(tensors, net, ordered)) for title, tensors in sets.items()]
    title, fit = max(fits, key=lambda item: (len(item[1].pairs), any(word in item[0] for word in BETTER)))
    names = [name for name in sets[title] if _counts(name)]
    missing = [name for name in net if name not in fit.pairs]
    text = f"pretrain.weights = {source!r}: {len(fit.pairs)} of {len(net)} tensors of the network fit"
    if 2 * len(fit.pairs) < len(net):
        raise InputError(
            f"{text}, less than half: are they of another network than pretrain.encoder.model? Given are "
            f"{listed(names, 3)}; the network has {listed(list(net), 3)}"
        )
    where = f", in {title}" * bool(title) + f", after the prefix {fit.prefix}" * bool(fit.prefix)
    where += "" if fit.by_name else ", paired by their order, because their names differ"
    missed = f"; stay random: {listed(missing, 3)}" if missing else ""
    of_no_use = [name for name in names if name not in fit.pairs.values()]
    unused = f"; of no use: {listed(of_no_use, 3)}" if of_no_use else ""
    return Fitted({f"net.{own}": sets[title][name] for own, name in fit.pairs.items()}, text + where + missed + unused)


def _best(tensors: Tensors, net: Tensors, ordered: bool) -> _Fit:
    """The fit with the prefix with which the most tensors fit; of equals, the first, and by name before by order."""
    prefixes = {"": None} | {prefix: None for name in tensors for prefix in _prefixes(name)}
    by_name = [_Fit(_by_name(tensors, net, prefix), prefix, True) for prefix in prefixes]
    best = max(by_name, key=lambda fit: len(fit.pairs))
    if len(best.pairs) == len(net) or not ordered:
        return best
    by_order = (_Fit(_by_order(tensors, net, prefix), prefix, False) for prefix in prefixes)
    return max([best, *by_order], key=lambda fit: len(fit.pairs))


def _prefixes(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[:depth]) + "." for depth in range(1, len(parts)))


def _by_name(tensors: Tensors, net: Tensors, prefix: str) -> dict[str, str]:
    return {own: prefix + own for own in net if prefix + own in tensors and _fits(tensors[prefix + own], own, net)}


def _by_order(tensors: Tensors, net: Tensors, prefix: str) -> dict[str, str]:
    names = [name for name in tensors if name.startswith(prefix) and _counts(name)][: len(net)]
    pairs = dict(zip(net, names, strict=False))
    last_part = all(own.split(".")[-1] == name.split(".")[-1] for own, name in pairs.items())
    same = len(names) == len(net) and last_part and all(_fits(tensors[name], own, net) for own, name in pairs.items())
    return pairs if same else {}


def _fits(new: torch.Tensor, own: str, net: Tensors) -> bool:
    """Whether a tensor fits in the place of `own`, or Backbone.adopt makes it fit."""
    shape = net[own].shape
    if new.ndim != len(shape) or own == "pos_embed":
        return new.ndim == len(shape) and new.shape[-1] == shape[-1]
    if own == "patch_embed.proj.weight" and "pos_embed" in net:
        return new.shape[0] == shape[0]
    if own == next(name for name, value in net.items() if value.ndim == 4):  # the first layer: any number of bands
        return new.shape[:1] + new.shape[2:] == shape[:1] + shape[2:]
    return new.shape == shape


def _counts(name: str) -> bool:
    """Whether a tensor is more than a counter of steps, which many files leave out."""
    return not name.endswith("num_batches_tracked")


def read_weights(file: Path) -> dict[str, dict[str, torch.Tensor]]:
    """The dictionaries of tensors in a file, by the keys that lead to them; no code of the file is run.

    Raises InputError for a file that can't be read, or has Python objects besides tensors.
    """
    try:
        if file.suffix.lower() == SORTED:
            content: Any = load_file(file)
        else:
            with torch.serialization.safe_globals([argparse.Namespace]):  # settings, in many checkpoints
                content = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"pretrain.weights = {str(file)!r}: no such file") from None
    except pickle.UnpicklingError as error:
        if not (found := re.search(r"GLOBAL (\S+)", str(error))):
            raise InputError(f"{file}: not a file of weights, or damaged") from None
        raise InputError(
            f"{file}: has Python objects besides tensors ({found[1]}), which could run code when they are loaded; save "
            "only its state_dict, with safetensors or torch.save"
        ) from None
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise InputError(f"{file}: not a file of weights, or damaged ({one_line(error)})") from None
    sets = dict(_dictionaries(content, ""))
    if not sets:
        raise InputError(f"{file}: has no tensors with names; a state_dict is needed")
    return sets


def _dictionaries(content: Any, title: str) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    if not isinstance(content, Mapping):
        return
    if tensors := {str(k): v for k, v in content.items() if isinstance(v, torch.Tensor)}:
        yield title, tensors
    for key, value in content.items():
        yield from _dictionaries(value, f"{title}.{key}".lstrip("."))
