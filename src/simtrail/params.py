"""The schema of params.yaml: one frozen class per stage, every key documented, all checked before work begins."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, field_validator, model_validator

from simtrail.errors import InputError

T = TypeVar("T", bound=BaseModel)
Settings = dict[str, Any]  # dotted key of params.yaml → value
Probability = Annotated[float, Field(ge=0, le=1)]


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
    min_mask_cover: float = Field(ge=0, le=1)
    """Smallest share of an image that its mask covers, where a mask band is declared."""
    max_mask_cover: float = Field(ge=0, le=1)
    """Largest share."""

    @model_validator(mode="after")
    def _ordered(self) -> Check:
        if self.min_side > self.max_side:
            raise ValueError(f"check.min_side = {self.min_side}: must not exceed check.max_side = {self.max_side}")
        if self.min_mask_cover > self.max_mask_cover:
            raise ValueError(
                f"check.min_mask_cover = {self.min_mask_cover}: must not exceed "
                f"check.max_mask_cover = {self.max_mask_cover}"
            )
        return self


class Cones(_Section):
    """The bands that stand for each cone of a UV-sensitive eye, by name; a cone's catch is their mean."""

    u: list[str] = Field(min_length=1)
    """Ultraviolet-sensitive cone: peak near 370 nm in songbirds."""
    s: list[str] = Field(min_length=1)
    """Short wavelengths: near 450 nm."""
    m: list[str] = Field(min_length=1)
    """Middle wavelengths: near 540 nm."""
    l: list[str] = Field(min_length=1)  # noqa: E741 - the field's name for it
    """Long wavelengths: near 600 nm."""


class Bands(_Section):
    """Bands by a rule instead of by name: exactly one of these keys. Bands marked bad are passed over."""

    nearest: list[Annotated[float, Field(gt=0)]] | None = Field(default=None, min_length=1)
    """The bands nearest to these wavelengths, in nm; each within 50 nm."""
    uniform: int | None = Field(default=None, ge=1)
    """So many bands at equal steps of wavelength, from the shortest to the longest; of position without wavelengths."""
    per_region: int | None = Field(default=None, ge=1)
    """So many bands of each spectral region (UV, visible, NIR, SWIR …), at equal steps; all where it has fewer."""
    variance: int | None = Field(default=None, ge=1)
    """So many bands, those that vary most over the pixels of the training images."""
    loading: int | None = Field(default=None, ge=1)
    """So many bands, n, with the largest absolute loadings on the first n principal components of those pixels, summed
    with each component's variance as its weight."""
    pca: int | None = Field(default=None, ge=1)
    """Not bands: so many principal components of the pixels of the training images, each one an input channel."""
    usml: Cones | None = None
    """Not bands: the tetrahedral colour space of UV-sensitive vision: x, y, z and luminance."""

    @property
    def rule(self) -> str:
        """The key that is given."""
        return next(name for name, value in self if value is not None)

    @model_validator(mode="after")
    def _one_rule(self) -> Bands:
        given = [name for name, value in self if value is not None]
        if len(given) != 1:
            raise ValueError(
                f"prepare.bands = {' and '.join(given) or None}: must have exactly one of the keys "
                f"{', '.join(type(self).model_fields)}"
            )
        return self


class Prepare(_Section):
    size: int = Field(ge=8, le=1024)
    """Side of the packed square images, in pixels."""
    fit: Literal["pad", "crop"]
    """How a rectangle becomes a square, its aspect kept: pad with background, or cut the centre."""
    bands: Annotated[
        Annotated[Literal["all"], Tag("=all")]
        | Annotated[list[int | str], Field(min_length=1), Tag("=list")]
        | Annotated[Bands, Tag("=rule")],
        Discriminator(lambda v: {list: "=list", dict: "=rule", Bands: "=rule"}.get(type(v), "=all")),
    ]
    """What of a file reaches the network: all its bands but bad ones, bands by number (from 1) or name, or a rule."""
    mask: Literal["apply", "crop", "ignore"]
    """Alpha channel, declared mask band, or pixels without data: composite the image on the background, the same and
    cut to what the mask covers, or leave the image as it is."""
    background: float | Literal["mean"]
    """What background, padding and all outside an image are: a brightness, 0 black to 1 white, or each band's mean over
    the organisms in training images (a sample of their pixels), which is nothing to a network that normalises."""
    val_fraction: float = Field(gt=0, lt=1)
    """Share of the images on which choices are made."""
    test_fraction: float = Field(gt=0, lt=1)
    """Share of the images that `evaluate` alone reads. A `split` column in the metadata overrides it."""
    seed: int = Field(ge=0)
    """Seed of the split."""

    @field_validator("background", mode="before")
    @classmethod
    def _brightness_or_mean(cls, value: Any) -> Any:
        number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
        if not number and value != "mean":
            raise ValueError(f"prepare.background = {value!r}: must be a number from 0 to 1, or mean")
        return value

    @field_validator("bands", mode="before")
    @classmethod
    def _all_listed_or_by_rule(cls, value: Any) -> Any:
        entries = value if isinstance(value, list) else []
        if wrong := [entry for entry in entries if not isinstance(entry, int | str) or isinstance(entry, bool)]:
            raise ValueError(
                f"prepare.bands = [{wrong[0]!r}]: must be names of bands or their numbers, from 1; for wavelengths set "
                "{nearest: [450, 550, 650]}"
            )
        if value != "all" and not isinstance(value, list | dict | Bands):
            raise ValueError(
                f"prepare.bands = {value!r}: must be all, a list of names or numbers, or a rule such as {{uniform: 24}}"
            )
        return value

    @model_validator(mode="after")
    def _leaves_training_images(self) -> Prepare:
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"prepare.val_fraction + prepare.test_fraction = {self.val_fraction + self.test_fraction:g}: "
                "must be < 1, or no image is left to train on"
            )
        return self


class Crop(_Section):
    p: Probability
    """Probability of a random resized crop."""
    min_area: float = Field(gt=0, le=1)
    """Smallest share of the image's area that is kept; aspect ratios from 3/4 to 4/3."""
    min_cover: float = Field(ge=0, le=1)
    """Smallest share of the organism (of what is not background) that is kept; the whole image where ten tries fail."""


class Flip(_Section):
    p: Probability
    """Probability of mirroring the image."""


class Rotation(_Section):
    p: Probability
    """Probability of a rotation."""
    degrees: float = Field(ge=0, le=180)
    """Largest rotation either way, in degrees."""


class Perspective(_Section):
    p: Probability
    """Probability of a perspective warp."""
    distortion: float = Field(ge=0, le=1)
    """How far a corner moves inwards at most, as a share of half the image's side."""


class ThinPlateSpline(_Section):
    p: Probability
    """Probability of a thin-plate spline warp of the four corners and the centre."""
    displacement: float = Field(ge=0, le=0.5)
    """How far each of the five points moves at most, as a share of half the image's side."""


class Geometry(_Section):
    """Where a view looks; everything outside the image is background."""

    strength: float = Field(ge=0, le=1)
    """Multiplies what this group does to the image, except flips: 0 the image as it is, 1 as given below."""
    crop: Crop
    horizontal_flip: Flip
    vertical_flip: Flip
    rotation: Rotation
    perspective: Perspective
    thin_plate_spline: ThinPlateSpline


class Jitter(_Section):
    p: Probability
    """Probability of colour jitter."""
    brightness: float = Field(ge=0, le=1)
    """A factor from 1 − brightness to 1 + brightness."""
    contrast: float = Field(ge=0, le=1)
    """Likewise, about the mean of the image."""
    saturation: float = Field(ge=0, le=1)
    """Likewise, about grey; only where red, green and blue are declared."""
    hue: float = Field(ge=0, le=0.5)
    """Largest turn of the hue either way, in turns; only where red, green and blue are declared."""


class Grayscale(_Section):
    p: Probability
    """Probability of turning red, green and blue to grey; only where they are declared."""


class Posterize(_Section):
    p: Probability
    """Probability of keeping only the upper bits of each value."""
    bits: int = Field(ge=1, le=8)
    """Bits kept at least, of 8."""


class Color(_Section):
    """What a view's values are; bands beyond red, green and blue are jittered one by one."""

    strength: float = Field(ge=0, le=1)
    """Multiplies jitter and posterize; with jitter 0.8, 0.8, 0.8, 0.2 it is the paper's s (appendix A)."""
    jitter: Jitter
    grayscale: Grayscale
    posterize: Posterize


class Blur(_Section):
    p: Probability
    """Probability of Gaussian blur, its kernel a tenth of the image's side."""
    sigma: float = Field(ge=0.1, le=20)
    """Largest standard deviation, in pixels; the smallest is 0.1."""


class Sharpness(_Section):
    p: Probability
    """Probability of sharpening."""
    factor: float = Field(ge=0, le=10)
    """Largest share of the difference to the smoothed image that is added."""


class Erasing(_Section):
    p: Probability
    """Probability of a rectangle filled with background."""
    max_area: float = Field(gt=0.02, le=0.9)
    """Largest share of the image erased; the smallest is 0.02, aspect ratios from 0.3 to 3.3."""


class Texture(_Section):
    """How sharp a view is, and how much of it is missing."""

    strength: float = Field(ge=0, le=1)
    """Multiplies what this group does to the image: 0 the image as it is, 1 as given below."""
    blur: Blur
    sharpness: Sharpness
    erasing: Erasing


class Shift(_Section):
    p: Probability
    """Probability of reading the spectrum a little beside its wavelengths."""
    nm: float = Field(ge=0, le=100)
    """Largest shift either way, in nm; only bands of known wavelength, no two of them alike."""


class Gain(_Section):
    p: Probability
    """Probability of a smooth gain along the wavelength, as of another lamp or white reference."""
    reach: float = Field(ge=0, le=1)
    """Factors from 1 − reach to 1 + reach; only bands of known wavelength."""
    width: float = Field(ge=1)
    """Distance in nm over which the gain changes: the spacing of the knots of a cubic spline."""


class Gamma(_Section):
    p: Probability
    """Probability of gain · value^γ, one gain and one γ for all bands of a modality, as of another exposure."""
    reach: float = Field(ge=0, le=2)
    """γ from exp(−reach) to exp(reach), gain from exp(−reach / 2) to exp(reach / 2)."""


class Noise(_Section):
    p: Probability
    """Probability of noise in the spectrum: an offset to each band, the same in all pixels."""
    std: float = Field(ge=0, le=0.5)
    """Largest standard deviation of the offsets, as a share of the full scale; the smallest is 0."""


class BandDropout(_Section):
    p: Probability
    """Probability of leaving some bands out: the encoder takes their mean, and scales the others up as dropout does."""
    share: float = Field(ge=0, le=1)
    """Largest share of the bands, rounded up to whole ones; one band at least is left out, and one stays."""


class GroupDropout(_Section):
    p: Probability
    """Probability of leaving out all bands of one modality."""


class RandomBands(_Section):
    p: Probability
    """Probability that a view has a draw of the bands alone, as if another camera had taken it."""
    n: int = Field(ge=1)
    """How many of them; fewer, where the other two have left fewer."""


class Spectral(_Section):
    """What a view's spectra are; background stays as it is, unless bands are left out."""

    strength: float = Field(ge=0, le=1)
    """Multiplies what this group does to the image, and the probabilities of group_dropout and random_bands: 0 the
    image as it is, 1 as given below."""
    shift: Shift
    gain: Gain
    gamma: Gamma
    noise: Noise
    band_dropout: BandDropout
    group_dropout: GroupDropout
    random_bands: RandomBands


class Augment(_Section):
    """The two views: every image and every view has its own draws. Each `p` is a probability."""

    geometry: Geometry
    spectral: Spectral
    color: Color
    texture: Texture


class Vit(_Section):
    """Vision transformers only."""

    patch_size: int | None = Field(default=None, ge=1)
    """Side of a patch in pixels; null: as in the model's name."""
    features: Literal["token", "mean", "both"] = "token"
    """What the features are: the class token, the mean of the patches, or both side by side."""
    layers: int = Field(default=1, ge=1)
    """How many of the last layers give features."""
    combine: Literal["concat", "mean"] = "concat"
    """How the features of several layers become one vector."""


class Architecture(_Section):
    model: str
    """Any model of timm by name: ResNets, ConvNeXt, EfficientNet, ViT, …"""
    width: Literal[1, 2, 4]
    """Multiplies the channels of a ResNet (the paper's 1×, 2×, 4×)."""
    stem: Literal["standard", "small"]
    """First layers of any ResNet: as in the ImageNet model, or 3×3 with stride 1 and no max-pooling, for images up to
    64 px (appendix B.9)."""
    vit: Vit | None
    """Settings of a vision transformer; null: the model's own pooling and patches, and for every other model."""
    # with defaults, as encoders saved without these keys are read too
    modalities: list[str] | None = Field(default=None, min_length=1)
    """Which modalities (groups of bands that dataset.yaml declares) the encoder sees, as [rgb]; null: all bands."""
    fusion: Literal["concat", "separate", "attention"] = "concat"
    """How modalities become one vector: one network over all bands; a network for each, their features (of unit length)
    side by side; or a network for each, and the sum of their features by weights that are learnt for every image."""
    normalisation: Literal["band", "pixel", "none"] = "band"
    """What is done to values from 0 to 1 first: less their band's mean over the training split, divided by its standard
    deviation; likewise within the bands of every pixel, which leaves a spectrum's shape without its brightness; or
    nothing."""


class Head(_Section):
    depth: int = Field(ge=0, le=3)
    """Layers of the projection head: 0 none (projections are the features), 1 linear, 2 the paper's, 3 SimCLRv2's."""
    hidden: int = Field(ge=1)
    """Width of its hidden layers."""
    output: int = Field(ge=2)
    """Width of the projections."""
    batch_norm: bool
    """Batch normalisation before each ReLU."""


class Terms(_Section):
    """Weights of what the loss is the sum of: the objective between the two views of an image as seen …"""

    fused: float = Field(ge=0)
    """… by the whole encoder (SimCLR)."""
    intra: float = Field(ge=0)
    """… each by the same modality, the mean over modalities; needs fusion separate or attention."""
    cross: float = Field(ge=0)
    """… each by another modality, the mean over pairs of modalities: what they share; needs fusion likewise."""
    local: float = Field(0.0, ge=0)
    """… patch by patch: between the patches of the last feature map that show the same place of the image, the mean
    over modalities that have a branch. Against the patches of other images, and those further off in the same."""

    @property
    def whole(self) -> bool:
        """Whether features of the whole encoder are projected: for their term, or as no others stand for an image."""
        return self.fused > 0 or not (self.intra or self.cross)

    @model_validator(mode="after")
    def _one_at_least(self) -> Terms:
        if not any(self.model_dump().values()):
            raise ValueError("pretrain.terms: fused, intra, cross and local are 0: one at least must be > 0")
        return self


class Monitor(_Section):
    every: int = Field(ge=1)
    """Epochs between looks at the validation split; the last epoch is always looked at."""
    metric: Literal["auto", "knn", "probe", "effective_rank", "last"]
    """Which validation measure chooses the weights that are kept: kNN or probe accuracy, effective rank, or none (the
    last weights). auto: probe where images of the validation split are labelled, effective_rank elsewhere."""
    patience: int | None = Field(ge=1)
    """Stop after so many looks without a better value; null: train to the end."""


class Checkpoint(_Section):
    every_steps: int | None = Field(ge=1)
    """Save the state after so many steps …"""
    every_minutes: float = Field(gt=0)
    """… or minutes, whichever comes first. Without influence on the result."""
    keep: int = Field(ge=1)
    """Checkpoints kept: an older one stands in for one that can't be read."""


class Pretrain(_Section):
    encoder: Architecture
    weights: str
    """First weights: random, pretrained (timm's, for ImageNet), the folder of an encoder, or models:/NAME@ALIAS."""
    head: Head
    objective: Literal["nt_xent", "dcl"]
    """NT-Xent (the paper's), or the decoupled contrastive loss, for small batches."""
    terms: Terms
    normalise: bool
    """Whether projections are brought to unit length: cosine or dot-product similarity (Table 5 of the paper)."""
    temperature: float = Field(gt=0)
    """Temperature τ of the objective."""
    epochs: int = Field(ge=1)
    """Passes over the training split."""
    max_steps: int | None = Field(ge=1)
    """Stop after so many optimiser steps, the schedule shortened to fit; null: no limit."""
    batch_size: int = Field(ge=2)
    """Images per step, over all processes; twice as many views, all each other's negatives."""
    micro_batch_size: int | None = Field(ge=1)
    """Images that go through the encoder at once in one process, where a batch exceeds memory: gradients are cached
    (GradCache), so that the batch keeps all its negatives, at the price of a second forward pass. null: all."""
    optimiser: Literal["adamw", "sgd", "lars"]
    """AdamW, SGD with momentum 0.9, or the paper's LARS."""
    learning_rate: float = Field(gt=0)
    """Peak learning rate per 256 images: AdamW 0.0005 to 0.005, SGD 0.03 to 0.5, LARS 0.3 (the paper's) to 5."""
    learning_rate_scaling: Literal["linear", "sqrt"]
    """How it grows with batch_size: × batch_size / 256, or × √(batch_size / 256) (appendix B.1)."""
    weight_decay: float = Field(ge=0)
    """Weight decay; biases and normalisation layers are exempt."""
    warmup: float = Field(ge=0, lt=1)
    """Share of the steps over which the learning rate rises linearly; a cosine takes it to zero over the rest."""
    clip: float | None = Field(gt=0)
    """Largest norm of the gradient; null: not clipped."""
    ema: float | None = Field(gt=0, lt=1)
    """Decay of an exponential moving average of the weights, which is then what is monitored and kept; null: none."""
    precision: Literal["bf16", "fp16", "fp32"]
    """Arithmetic of encoder and projection head; the loss is always float32."""
    compile: bool
    """Compile the encoder (torch.compile): a minute at the start, faster steps on a GPU."""
    gradient_checkpointing: bool
    """Compute activations again in the backward pass instead of keeping them: less memory, a third more work."""
    sync_batch_norm: bool
    """Several processes: batch normalisation over the whole batch, as in one process, instead of each its share."""
    monitor: Monitor
    checkpoint: Checkpoint
    seeds: list[Annotated[int, Field(ge=0)]] = Field(min_length=1, strict=False)
    """Seeds of the weights, the order of images and the views: one encoder is trained from each. The first goes on
    through the pipeline; the others tell how much the scores owe to chance (mean ± standard deviation)."""
    augment: Augment

    @property
    def seed(self) -> int:
        """The seed of this run, the first of the seeds."""
        return self.seeds[0]

    def each_seed(self) -> list[Pretrain]:
        """The settings of one run for each seed."""
        return [self.model_copy(update={"seeds": [seed]}) for seed in self.seeds]

    @model_validator(mode="after")
    def _whole_micro_batches(self) -> Pretrain:
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"pretrain.micro_batch_size = {self.micro_batch_size}: must divide "
                f"pretrain.batch_size = {self.batch_size}"
            )
        return self

    @model_validator(mode="after")
    def _terms_of_modalities(self) -> Pretrain:
        for name, weight in self.terms.model_dump(include={"intra", "cross"}).items():
            if weight and self.encoder.fusion == "concat":
                raise ValueError(
                    f"pretrain.terms.{name} = {weight}: needs pretrain.encoder.fusion: separate or attention"
                )
        if (self.terms.intra or self.terms.cross) and (p := self.augment.spectral.group_dropout.p):
            raise ValueError(
                f"pretrain.augment.spectral.group_dropout.p = {p}: leaves nothing of a modality for "
                "pretrain.terms.intra and cross to compare; set it or both of them to 0"
            )
        if not self.terms.fused and self.encoder.fusion == "attention":
            raise ValueError(
                f"pretrain.terms.fused = {self.terms.fused}: must be > 0 with pretrain.encoder.fusion: attention, "
                "whose weights learn from nothing else; or set separate"
            )
        return self


class Embed(_Section):
    batch_size: int = Field(ge=1)
    """Images per forward pass; has no influence on the result."""


class Knn(_Section):
    k: int = Field(ge=1)
    """Neighbours that vote."""
    temperature: float = Field(gt=0)
    """A vote weighs exp(cosine / temperature); lower listens to the nearest alone."""


class FineTune(_Section):
    fractions: list[Annotated[float, Field(gt=0, le=1)]] = Field(strict=False)
    """Shares of the training labels to fine-tune with, beside the same network from scratch; [] for none."""
    epochs: int = Field(ge=1)


class Evaluate(_Section):
    labels: list[str]
    """Further columns of metadata.csv to evaluate as the label is."""
    held_out_classes: list[str]
    """Classes of the label that pretraining never sees; evaluated as a task of their own."""
    balanced: bool
    """Weigh classes equally in the probes, and choose their regularisation by balanced accuracy."""
    knn: Knn
    probe_views: int = Field(ge=0)
    """Augmented views of every image that the probe on views learns from too; 0 for none."""
    label_efficiency_seeds: int = Field(ge=0)
    """Draws of labelled images at every size of the label-efficiency curve; 0 for no curve."""
    fine_tune: FineTune
    pretrained: str | None
    """A model of timm whose pretrained features are one more floor (downloaded)."""
    bootstrap: int = Field(ge=100)
    """Resamples of the groups behind every 95 % confidence interval."""
    seed: int = Field(ge=0)
    """Seed of the bootstrap, of the random-weight encoder, of draws and of the map."""


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

    Raises InputError with one line per error, each naming the key, the value and what is allowed.
    """
    try:
        text = Path(path).read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; run simtrail in the project's folder") from None
    return parse(Params, read_yaml(text, path), path)


def read_yaml(text: str | bytes, source: str | Path) -> Any:
    """The tree of a YAML text, in which `1e-3` is a number; InputError names the source where it is not valid."""
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from None


def parse(schema: type[T], tree: Any, source: str | Path) -> T:
    """The tree of a YAML file as an instance of `schema`, or InputError naming every key at error."""
    try:
        return schema.model_validate(tree if tree is not None else {})
    except ValidationError as error:
        raise InputError("\n".join(f"{source}: {_line(error, schema)}" for error in error.errors())) from None


def changed(params: Params, settings: Settings, source: str | Path) -> Params:
    """The parameters with dotted keys changed; InputError names `source` and each key at error."""
    tree = params.model_dump(by_alias=True)
    change(tree, settings)
    return parse(Params, tree, source)


def change(tree: dict[str, Any], settings: Settings) -> None:
    """Sets dotted keys in the tree of a params.yaml, whatever stands there."""
    for key, value in settings.items():
        *path, last = key.split(".")
        node = tree
        for part in path:
            if not isinstance(node.get(part), dict):
                node[part] = {}  # what can't be there is found when the tree is checked
            node = node[part]
        node[last] = deepcopy(value)  # a later key may lie inside it


def _line(error: Any, schema: type[BaseModel]) -> str:
    key = ".".join(str(part) for part in error["loc"] if not str(part).startswith("="))  # tags of a union's members
    match error["type"]:
        case "missing":
            return f"{key}: missing; add it"
        case "extra_forbidden" if "accum" in key:
            return (
                f"{key}: unknown key; accumulated gradients would contrast each small batch with itself alone and lose "
                "most negatives; set pretrain.micro_batch_size, which keeps them all"
            )
        case "extra_forbidden":
            keys = _keys(schema)
            near = [k for k in keys if k.endswith(f".{key}")] or difflib.get_close_matches(key, keys, n=1, cutoff=0.6)
            return f"{key}: unknown key" + (f"; did you mean {near[0]}?" if near else "; remove it")
        case "value_error":
            return str(error["ctx"]["error"])
    if error["type"] == "too_short":
        return f"{key} = {error['input']!r}: must have {error['ctx']['min_length']} entry at least"
    wanted = error["msg"].removeprefix("Input should be ").removeprefix("a valid ")
    if error["type"] == "model_type":
        wanted = "a mapping of keys to values"
    wanted = wanted.replace("greater than or equal to", "≥").replace("less than or equal to", "≤")
    wanted = wanted.replace("greater than", ">").replace("less than", "<")
    return f"{key} = {error['input']!r}: must be {wanted}" if key else f"must be {wanted}"


def _keys(schema: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in schema.model_fields.items():
        key = prefix + (field.alias or name)
        keys.append(key)
        for kind in _types(field.annotation):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                keys += _keys(kind, key + ".")
    return keys


def _types(annotation: Any) -> list[Any]:
    """The annotation, and all that it is made of."""
    return [annotation, *(part for argument in get_args(annotation) for part in _types(argument))]


def _flatten(tree: dict[str, Any], prefix: str = "") -> Any:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
