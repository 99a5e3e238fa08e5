"""The schema of params.yaml: one frozen class per stage, every key documented, all checked before work begins."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from simtrail.errors import InputError

T = TypeVar("T", bound=BaseModel)


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


class Data(_Section):
    name: str = Field(pattern=r"^[\w.-]+$")
    """The dataset: a folder of that name under data/."""


class Check(_Section):
    on_fail: Literal["error", "quarantine"]
    """What a failed check does: stop the stage, or drop the offending files, record them and go on."""
    min_side: int = Field(ge=1)
    """Shortest side allowed, in pixels."""
    max_side: int = Field(ge=1)
    """Longest side allowed, in pixels."""
    min_images_per_class: int = Field(ge=1)
    """Classes with fewer images are warned of."""

    @model_validator(mode="after")
    def _ordered(self) -> Check:
        if self.min_side > self.max_side:
            raise ValueError(f"check.min_side = {self.min_side}: must not exceed check.max_side = {self.max_side}")
        return self


class Prepare(_Section):
    size: int = Field(ge=8, le=1024)
    """Side of the packed square images, in pixels."""
    fit: Literal["pad", "crop"]
    """How a rectangle becomes a square, its aspect kept: pad with background, or cut the centre."""
    mask: Literal["apply", "ignore"]
    """Alpha channel or declared mask band: composite the image on the background, or leave the image as it is."""
    background: float = Field(ge=0, le=1)
    """Brightness of the background and of the padding: 0 black, 1 white."""
    val_fraction: float = Field(gt=0, lt=1)
    """Share of the images on which choices are made."""
    test_fraction: float = Field(gt=0, lt=1)
    """Share of the images that `evaluate` alone reads. A `split` column in the metadata overrides it."""
    seed: int = Field(ge=0)
    """Seed of the split."""

    @model_validator(mode="after")
    def _leaves_training_images(self) -> Prepare:
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"prepare.val_fraction + prepare.test_fraction = {self.val_fraction + self.test_fraction:g}: "
                "must be < 1, or no image is left to train on"
            )
        return self


class Augment(_Section):
    crop_min_area: float = Field(gt=0, le=1)
    """Smallest share of the image's area that a random resized crop keeps."""
    flip: float = Field(ge=0, le=1)
    """Probability of a horizontal flip."""
    rotation: float = Field(ge=0, le=180)
    """Largest rotation either way, in degrees; 0 for none. Corners are filled with the background."""
    color: float = Field(ge=0, le=1)
    """Probability of colour jitter."""
    color_strength: float = Field(ge=0, le=1)
    """Strength s of colour jitter: brightness, contrast and saturation 0.8 s, hue 0.2 s (appendix A of the paper)."""
    grayscale: float = Field(ge=0, le=1)
    """Probability of turning RGB to grey; without effect on other band counts, and said so."""
    blur: float = Field(ge=0, le=1)
    """Probability of Gaussian blur, kernel a tenth of the image's side."""


class Pretrain(_Section):
    model: str
    """Encoder: any ResNet of timm by name."""
    stem: Literal["standard", "small"]
    """First layers: as in the ImageNet model, or 3×3 with stride 1 and no max-pooling, for images up to 64 px."""
    hidden: int = Field(ge=1)
    """Width of the projection head's hidden layer."""
    projection: int = Field(ge=2)
    """Width of the projection head's output."""
    temperature: float = Field(gt=0)
    """Temperature τ of NT-Xent."""
    epochs: int = Field(ge=1)
    """Passes over the training split."""
    max_steps: int | None = Field(ge=1)
    """Stop after so many optimiser steps, the schedule shortened to fit; null: no limit."""
    batch_size: int = Field(ge=2)
    """Images per step; twice as many views."""
    learning_rate: float = Field(gt=0)
    """Peak learning rate of AdamW per 256 images, scaled linearly with batch_size."""
    weight_decay: float = Field(ge=0)
    """Weight decay; biases and normalisation layers are exempt."""
    warmup: float = Field(ge=0, lt=1)
    """Share of the steps over which the learning rate rises linearly; a cosine takes it to zero over the rest."""
    precision: Literal["bf16", "fp32"]
    """Arithmetic of encoder and projection head; the loss is always float32."""
    seed: int = Field(ge=0)
    """Seed of the weights, the order of images and the views."""
    augment: Augment


class Embed(_Section):
    batch_size: int = Field(ge=1)
    """Images per forward pass; has no influence on the result."""


class Evaluate(_Section):
    knn_k: int = Field(ge=1)
    """Neighbours of the cosine-weighted kNN classifier."""
    bootstrap: int = Field(ge=100)
    """Resamples of the groups behind every 95 % confidence interval."""
    seed: int = Field(ge=0)
    """Seed of the bootstrap, of the random-weight encoder and of the map."""


class Register(_Section):
    name: str = Field(pattern=r"^[^/:]+$")
    """Name of the model in the MLflow registry."""


class Params(_Section):
    data: Data
    check: Check
    prepare: Prepare
    pretrain: Pretrain
    embed: Embed
    evaluate: Evaluate
    register_: Register = Field(alias="register")  # pydantic models already have a `register` (from ABCMeta)

    def flat(self) -> dict[str, Any]:
        """Dotted key → value for every parameter, as in params.yaml."""
        return dict(_flatten(self.model_dump(by_alias=True)))

    def hash(self, *sections: str) -> str:
        """Sixteen hex digits that identify the values of the given sections (all, when none is given)."""
        tree = self.model_dump(by_alias=True)
        chosen = {k: v for k, v in tree.items() if k in sections or not sections}
        return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:16]


class _Loader(yaml.SafeLoader):
    """YAML 1.2 floats: `1e-3` is a number, as DVC reads it, not the text that YAML 1.1 takes it for."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def load_params(path: str | Path = "params.yaml") -> Params:
    """The checked parameters of a params.yaml file.

    Raises InputError with one line per fault, each naming the key, the value and what is allowed.
    """
    try:
        tree = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; run simtrail in the project's folder") from None
    except (yaml.YAMLError, UnicodeDecodeError) as fault:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(fault).split())}") from None
    return parse(Params, tree, path)


def parse(schema: type[T], tree: Any, source: str | Path) -> T:
    """The tree of a YAML file as an instance of `schema`, or InputError naming every key at fault."""
    try:
        return schema.model_validate(tree if tree is not None else {})
    except ValidationError as fault:
        raise InputError("\n".join(f"{source}: {_line(error, schema)}" for error in fault.errors())) from None


def _line(error: Any, schema: type[BaseModel]) -> str:
    key = ".".join(str(part) for part in error["loc"])
    match error["type"]:
        case "missing":
            return f"{key}: missing; add it"
        case "extra_forbidden":
            near = difflib.get_close_matches(key, _keys(schema), n=1, cutoff=0.6)
            return f"{key}: unknown key" + (f"; did you mean {near[0]}?" if near else "; remove it")
        case "value_error":
            return str(error["ctx"]["error"])
    wanted = error["msg"].removeprefix("Input should be ").removeprefix("a valid ")
    wanted = wanted.replace("greater than or equal to", "≥").replace("less than or equal to", "≤")
    wanted = wanted.replace("greater than", ">").replace("less than", "<")
    return f"{key} = {error['input']!r}: must be {wanted}" if key else f"must be {wanted}"


def _keys(schema: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in schema.model_fields.items():
        key = prefix + (field.alias or name)
        keys.append(key)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += _keys(field.annotation, key + ".")
    return keys


def _flatten(tree: dict[str, Any], prefix: str = "") -> Any:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
