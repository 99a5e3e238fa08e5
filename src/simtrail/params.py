"""The schema of params.yaml: a frozen class per stage; every key has a default and a documentation, and is checked."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import sys
from collections.abc import Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml

from simtrail.errors import InputError
from simtrail.schema import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PrivateAttr,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

T = TypeVar("T", bound=BaseModel)
Settings = dict[str, Any]  # dotted key of params.yaml → value
NAME, MODEL_NAME = r"^[\w.-]+$", r"^[^/:]+$"
RENAMED = {  # key of an earlier version → its present name
    "pretrain.model": "pretrain.encoder.model",
    "pretrain.stem": "pretrain.encoder.stem",
    "pretrain.hidden": "pretrain.head.hidden",
    "pretrain.projection": "pretrain.head.output",
    "pretrain.seed": "pretrain.seeds",
    "pretrain.augment.crop_min_area": "pretrain.augment.geometry.crop.min_area",
    "pretrain.augment.color_strength": "pretrain.augment.color.strength",
    "evaluate.knn_k": "evaluate.knn.k",
}
AUTO = (  # keys that can be auto, which is their default: the plan stage chooses the value from the prepared images
    *("pretrain.recipe", "pretrain.encoder.model", "pretrain.encoder.stem", "pretrain.temperature", "pretrain.epochs"),
    *("pretrain.batch_size", "pretrain.micro_batch_size", "pretrain.learning_rate", "pretrain.precision"),
    *("pretrain.positives", "pretrain.view_size"),
)
FEATURES, WHITEN = "pretrain.encoder.features", "pretrain.whiten"
CHOSEN = (FEATURES, WHITEN)  # auto until the encoder is trained: its training chooses the values at its end
FILES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")  # of weights without their network
RECIPES = Path(__file__).parent / "augment" / "recipes"
PATTERNS = {NAME: "only letters, digits, _, . and -", MODEL_NAME: "no / and no :"}
Probability = Annotated[float, Field(ge=0, le=1)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


class Data(_Section):
    name: str = Field(pattern=NAME)
    """Name of the dataset, which is the folder data/NAME: letters, digits, `_`, `.` and `-`."""


class Check(_Section):
    on_fail: Literal["error", "quarantine"] = "error"
    """What a failed check does. error: stop the stage. quarantine: leave out the offending files, record them in
    quarantine.csv and continue."""
    min_side: int = Field(16, ge=1)
    """Shortest image side that is allowed, in pixels."""
    max_side: int = Field(16384, ge=1)
    """Longest image side that is allowed, in pixels; at least min_side."""
    min_images_per_class: int = Field(5, ge=1)
    """Classes with fewer images than this get a warning."""
    min_mask_cover: float = Field(0.01, ge=0, le=1)
    """Smallest fraction of an image, 0 to 1, that its mask may cover; only used if a mask band is declared."""
    max_mask_cover: float = Field(1.0, ge=0, le=1)
    """Largest fraction of an image, 0 to 1, that its mask may cover; at least min_mask_cover."""
    near_duplicates: Literal["group", "warn", "ignore"] = "group"
    """What is done with near copies: images of one scene, resized, compressed or edited. group: keep them in one part
    of the split, and warn. warn: only warn. ignore: nothing."""

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
    """Names of the bands for each cone of a UV-sensitive eye; the signal of a cone is the mean of its bands."""

    u: list[str] = Field(min_length=1)
    """Bands of the ultraviolet-sensitive cone: peak near 370 nm in songbirds."""
    s: list[str] = Field(min_length=1)
    """Bands of the cone for short wavelengths: near 450 nm."""
    m: list[str] = Field(min_length=1)
    """Bands of the cone for middle wavelengths: near 540 nm."""
    l: list[str] = Field(min_length=1)  # noqa: E741 - its usual name in vision science
    """Bands of the cone for long wavelengths: near 600 nm."""


class Bands(_Section):
    """A rule that chooses the bands: exactly one of these keys. Bands that are marked as bad are left out."""

    nearest: list[Annotated[float, Field(gt=0)]] | None = Field(default=None, min_length=1)
    """The bands nearest to these wavelengths, in nm; each band must be within 50 nm of its wavelength."""
    uniform: int | None = Field(default=None, ge=1)
    """This many bands at equal steps of wavelength, from the shortest to the longest. Without wavelengths, at equal
    steps of position."""
    per_region: int | None = Field(default=None, ge=1)
    """This many bands of each spectral region (UV, visible, NIR, SWIR …), at equal steps of wavelength; all bands of a
    region that has fewer."""
    variance: int | None = Field(default=None, ge=1)
    """This many bands: the ones with the largest variance over the pixels of the training images."""
    loading: int | None = Field(default=None, ge=1)
    """This many bands, n: the ones with the largest absolute loadings on the first n principal components of the pixels
    of the training images. Loadings are summed over components, weighted by the variance of each component."""
    pca: int | None = Field(default=None, ge=1)
    """This many principal components of the pixels of the training images, instead of bands; each is an input
    channel."""
    usml: Cones | None = None
    """The tetrahedral colour space of UV-sensitive vision, instead of bands; the input channels are x, y, z and
    luminance."""

    @property
    def rule(self) -> str:
        """The name of the key that is set."""
        return next(name for name, value in self if value is not None)

    @model_validator(mode="after")
    def _one_rule(self) -> Bands:
        rules = [name for name, value in self if value is not None]
        if len(rules) != 1:
            raise ValueError(
                f"prepare.bands = {' and '.join(rules) or None}: must have exactly one of the keys "
                f"{', '.join(type(self).model_fields)}"
            )
        return self


class Prepare(_Section):
    size: int = Field(64, ge=8, le=1024)
    """Side of the packed square images, in pixels: 8 to 1024."""
    fit: Literal["pad", "crop", "tile"] = "pad"
    """How a rectangular image becomes square, with its aspect ratio unchanged. pad: add background at the sides. crop:
    cut out the centre. tile: cut the image at its full resolution into tiles of `size`; for slides, scenes and
    scans."""
    bands: Annotated[
        Annotated[Literal["all"], Tag("=all")]
        | Annotated[list[int | str], Field(min_length=1), Tag("=list")]
        | Annotated[Bands, Tag("=rule")],
        Discriminator(lambda v: {list: "=list", dict: "=rule", Bands: "=rule"}.get(type(v), "=all")),
    ] = "all"
    """Which bands of a file the network gets: all (except bands that are marked as bad), a list of band numbers (from
    1) or names, or a rule."""
    mask: Literal["apply", "crop", "ignore"] = "apply"
    """What is done with the mask (the alpha channel, the declared mask band, or the pixels without data). apply:
    composite the image on the background. crop: the same, and cut the image to the area that the mask covers. ignore:
    leave the image unchanged."""
    background: float | Literal["auto", "mean"] = "auto"
    """Value of the background, of padding and of everything outside an image: a brightness from 0 (black) to 1 (white,
    or the highest value of files that are not 8-bit). auto: the usual value of each band at the borders of the training
    images (the median over a sample of them), so that padding and turned views show no false edges; black with a mask
    band, with pixels without data, where most borders are transparent, and for tiles. mean: each band's mean over the
    training images, without what is outside a mask (a sample of their pixels); after normalisation per band, it is
    close to 0."""
    val_fraction: float = Field(0.15, gt=0, lt=1)
    """Fraction of the images in the validation split, above 0 and below 1. Settings and weights are chosen on it."""
    test_fraction: float = Field(0.25, gt=0, lt=1)
    """Fraction of the images in the test split, above 0 and below 1. Only `evaluate` reads it. A `split` column in
    metadata.csv overrides both fractions."""
    seed: int = Field(0, ge=0)
    """Seed of the random split."""

    @field_validator("background", mode="before")
    @classmethod
    def _brightness_or_rule(cls, value: Any) -> Any:
        number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
        if not number and value not in ("auto", "mean"):
            raise ValueError(
                f"prepare.background = {value!r}: must be auto, mean, or a number from 0 (black) to 1 (white)"
            )
        return value

    @field_validator("bands", mode="before")
    @classmethod
    def _all_listed_or_by_rule(cls, value: Any) -> Any:
        entries = value if isinstance(value, list) else []
        if invalid := [entry for entry in entries if not isinstance(entry, int | str) or isinstance(entry, bool)]:
            raise ValueError(
                f"prepare.bands = [{invalid[0]!r}]: must be names of bands or their numbers, from 1; for wavelengths, "
                "set {nearest: [450, 550, 650]}"
            )
        if value != "all" and not isinstance(value, list | dict | Bands):
            raise ValueError(
                f"prepare.bands = {value!r}: must be all, a list of names or numbers, or a rule such as {{uniform: 24}}"
            )
        return value

    @model_validator(mode="after")
    def _tiles_are_whole(self) -> Prepare:
        if self.fit == "tile" and self.mask == "crop":
            raise ValueError(
                "prepare.mask = 'crop': can't be combined with prepare.fit: tile; set prepare.mask: apply, with which "
                "tiles of only background are left out"
            )
        return self

    @model_validator(mode="after")
    def _leaves_training_images(self) -> Prepare:
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"prepare.val_fraction + prepare.test_fraction = {self.val_fraction + self.test_fraction:g}: "
                "must be < 1, so that images are left to train on; lower one of them"
            )
        return self


class Crop(_Section):
    p: Probability = 1.0
    """Probability of a random resized crop."""
    min_area: float = Field(0.4, gt=0, le=1)
    """Smallest fraction of the image's area that a crop keeps, above 0, up to 1; aspect ratios are from 3/4 to 4/3."""
    max_area: float = Field(1.0, gt=0, le=1)
    """Largest fraction of the image's area that a crop keeps, min_area to 1."""
    min_cover: float = Field(0.0, ge=0, le=1)
    """Smallest fraction, 0 to 1, of the organism (the pixels that are not background) that a crop keeps. The view is
    the whole image if none of ten random crops keeps it."""

    @model_validator(mode="after")
    def _ordered(self) -> Crop:
        if self.max_area < self.min_area:
            raise ValueError(
                f"pretrain.augment.geometry.crop.max_area = {self.max_area}: must be ≥ min_area = {self.min_area}"
            )
        return self


class QuarterTurns(_Section):
    p: Probability = 0.0
    """Probability of a turn by 90°, 180° or 270°, which leaves every pixel as it is."""


class HorizontalFlip(_Section):
    p: Probability = 0.5
    """Probability of mirroring left and right."""


class VerticalFlip(_Section):
    p: Probability = 0.0
    """Probability of mirroring top and bottom."""


class Rotation(_Section):
    p: Probability = 1.0
    """Probability of a rotation."""
    degrees: float = Field(45.0, ge=0, le=180)
    """Largest rotation in either direction, in degrees: 0 to 180."""


class Perspective(_Section):
    p: Probability = 0.0
    """Probability of a perspective warp."""
    distortion: float = Field(0.3, ge=0, le=1)
    """Largest distance that a corner moves inwards, as a fraction of half the image's side: 0 to 1."""


class ThinPlateSpline(_Section):
    p: Probability = 0.0
    """Probability of a thin-plate spline warp of the four corners and the centre."""
    displacement: float = Field(0.1, ge=0, le=0.5)
    """Largest distance that each of the five points moves, as a fraction of half the image's side: 0 to 0.5."""


class Geometry(_Section):
    """Which part of the image a view shows; everything outside the image is background."""

    strength: float = Field(1.0, ge=0, le=1)
    """Multiplies the strength of all augmentations below, except flips and quarter turns: 0 leaves the image unchanged,
    1 uses the values below."""
    crop: Crop = Crop()
    horizontal_flip: HorizontalFlip = HorizontalFlip()
    vertical_flip: VerticalFlip = VerticalFlip()
    quarter_turns: QuarterTurns = QuarterTurns()
    rotation: Rotation = Rotation()
    perspective: Perspective = Perspective()
    thin_plate_spline: ThinPlateSpline = ThinPlateSpline()


class Jitter(_Section):
    p: Probability = 0.8
    """Probability of colour jitter."""
    brightness: float = Field(0.8, ge=0, le=1)
    """The image is multiplied by a factor from 1 − brightness to 1 + brightness; 0 to 1."""
    contrast: float = Field(0.8, ge=0, le=1)
    """Differences to the mean of the image are multiplied by a factor from 1 − contrast to 1 + contrast; 0 to 1."""
    saturation: float = Field(0.8, ge=0, le=1)
    """Differences to grey are multiplied by a factor from 1 − saturation to 1 + saturation; 0 to 1. Only if bands are
    named red, green and blue."""
    hue: float = Field(0.2, ge=0, le=0.5)
    """Largest rotation of the hue in either direction, in full turns: 0 to 0.5. Only if bands are named red, green and
    blue."""


class Grayscale(_Section):
    p: Probability = 0.0
    """Probability of turning red, green and blue to grey; only if bands have these names."""


class Posterize(_Section):
    p: Probability = 0.0
    """Probability of keeping only the upper bits of each value."""
    bits: int = Field(4, ge=1, le=8)
    """Smallest number of bits that are kept, 1 to 8."""


class Color(_Section):
    """Changes of brightness and colour; bands other than red, green and blue are jittered separately."""

    strength: float = Field(0.8, ge=0, le=1)
    """Multiplies the strength of jitter and posterize, 0 to 1. With brightness, contrast and saturation 0.8 and hue
    0.2, it is the paper's strength s (appendix A)."""
    jitter: Jitter = Jitter()
    grayscale: Grayscale = Grayscale()
    posterize: Posterize = Posterize()


class Blur(_Section):
    p: Probability = 0.2
    """Probability of Gaussian blur; the side of its kernel is a tenth of the image's side."""
    sigma: float = Field(2.0, ge=0.1, le=20)
    """Largest standard deviation of the blur, in pixels: 0.1 to 20; the smallest is 0.1."""


class Sharpness(_Section):
    p: Probability = 0.0
    """Probability of sharpening."""
    factor: float = Field(1.0, ge=0, le=10)
    """The difference to the smoothed image is added, multiplied by a number from 0 to this factor (0 to 10)."""


class Erasing(_Section):
    p: Probability = 0.0
    """Probability that a rectangle of the view is replaced by background."""
    max_area: float = Field(0.2, gt=0.02, le=0.9)
    """Largest fraction of the image that is erased, above 0.02, up to 0.9; the smallest is 0.02. Aspect ratios are from
    0.3 to 3.3."""


class Texture(_Section):
    """Blur, sharpening, and erased rectangles."""

    strength: float = Field(1.0, ge=0, le=1)
    """Multiplies the strength of the augmentations below: 0 leaves the image unchanged, 1 uses the values below."""
    blur: Blur = Blur()
    sharpness: Sharpness = Sharpness()
    erasing: Erasing = Erasing()


class Shift(_Section):
    p: Probability = 0.0
    """Probability of a shift of the spectrum along the wavelength."""
    nm: float = Field(10.0, ge=0, le=100)
    """Largest shift in either direction, in nm: 0 to 100. Only bands of known wavelength are shifted, and only if no
    two of them have the same wavelength."""


class Gain(_Section):
    p: Probability = 0.0
    """Probability of a smooth gain along the wavelength, as if with another lamp or white reference."""
    reach: float = Field(0.2, ge=0, le=1)
    """Values are multiplied by factors from 1 − reach to 1 + reach; 0 to 1. Only bands of known wavelength are
    changed."""
    width: float = Field(100.0, ge=1)
    """Distance over which the gain changes, at least 1 nm: the spacing of the knots of a cubic spline."""


class Gamma(_Section):
    p: Probability = 0.0
    """Probability that values become gain · value^γ, with one gain and one γ for all bands of a modality, as if with
    another exposure."""
    reach: float = Field(0.3, ge=0, le=2)
    """γ is from exp(−reach) to exp(reach), the gain from exp(−reach / 2) to exp(reach / 2); 0 to 2."""


class Noise(_Section):
    p: Probability = 0.0
    """Probability of noise in the spectrum: a random offset is added to each band, the same offset in all pixels."""
    std: float = Field(0.02, ge=0, le=0.5)
    """Largest standard deviation of the offsets, as a fraction of the full scale: 0 to 0.5; the smallest is 0."""


class BandDropout(_Section):
    p: Probability = 0.0
    """Probability of leaving some bands out. The encoder replaces them by their mean and scales the other bands up, as
    dropout does."""
    share: float = Field(0.3, ge=0, le=1)
    """Largest fraction of the bands that is left out, 0 to 1, rounded up to a whole number of bands. At least one band
    is left out, and at least one is kept."""


class GroupDropout(_Section):
    p: Probability = 0.0
    """Probability of leaving out all bands of one modality, chosen at random."""


class RandomBands(_Section):
    p: Probability = 0.0
    """Probability that a view has only n bands, chosen at random, as if another camera had taken it."""
    n: int = Field(8, ge=1)
    """How many bands the view keeps; fewer, if band_dropout and group_dropout have left fewer."""


class Spectral(_Section):
    """Changes of the spectra; background is unchanged, unless bands are left out."""

    strength: float = Field(1.0, ge=0, le=1)
    """Multiplies the strength of the augmentations below, and the probabilities of group_dropout and random_bands: 0
    leaves the image unchanged, 1 uses the values below."""
    shift: Shift = Shift()
    gain: Gain = Gain()
    gamma: Gamma = Gamma()
    noise: Noise = Noise()
    band_dropout: BandDropout = BandDropout()
    group_dropout: GroupDropout = GroupDropout()
    random_bands: RandomBands = RandomBands()


class Augment(_Section):
    """Random augmentations of the two views, drawn separately for every image and view. Each `p` is a probability."""

    geometry: Geometry = Geometry()
    spectral: Spectral = Spectral()
    color: Color = Color()
    texture: Texture = Texture()


class Vit(_Section):
    """Settings that only vision transformers have."""

    patch_size: int | None = Field(default=None, ge=1)
    """Side of a patch in pixels; null: the patch size in the model's name."""
    features: Literal["token", "mean", "both"] = "token"
    """What the features are. token: the class token. mean: the mean of the patches. both: the two, concatenated."""
    layers: int = Field(default=1, ge=1)
    """How many of the last layers the features come from."""
    combine: Literal["concat", "mean"] = "concat"
    """How the features of several layers become one vector: concatenated, or averaged (mean)."""


class Architecture(_Section):
    model: str = "resnet10t"
    """Name of the network, any model of timm: ResNets, ConvNeXt, EfficientNet, ViT, …"""
    width: Literal[1, 2, 4] = 1
    """Factor for the number of channels of a ResNet: 1, 2 or 4 (the paper's 1×, 2×, 4×); other models need 1."""
    stem: Literal["standard", "small"] = "standard"
    """First layers of a ResNet. standard: as in the ImageNet model. small: a 3×3 convolution with stride 1 and no
    max-pooling, for images up to 64 px (appendix B.9)."""
    features: Annotated[
        Annotated[Literal["auto"], Tag("=auto")]
        | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1), Tag("=list")],
        Discriminator(lambda v: "=list" if isinstance(v, list) else "=auto"),
    ] = "auto"
    """What the features are made of: the grids on which the maps of the last stages are averaged, the last map first.
    [1]: the mean of the last map, as in the paper. [2]: its means over 2×2 parts of the image, which keep where things
    are. [1, 2, 3]: the last map averaged, the map before on 2×2, the one before that on 3×3, side by side, each at unit
    length. 0 leaves a map out. The loss always compares means of the last map. auto: chosen after the training, which
    does not depend on it, on validation images with labels; [1] without labels."""
    vit: Vit | None = None
    """Settings of a vision transformer; null: pooling and patches as in the model of timm. Other models need null."""
    modalities: list[str] | None = Field(default=None, min_length=1)
    """Names of the modalities (groups of bands that dataset.yaml declares) that the encoder gets, such as [rgb]; null:
    all bands."""
    fusion: Literal["concat", "separate", "attention"] = "concat"
    """How modalities become one feature vector. concat: one network over all bands. separate: a network for each
    modality, with their features (of unit length) concatenated. attention: a network for each modality, and the sum of
    their features, with weights that the encoder learns to choose for every image."""
    normalisation: Literal["band", "pixel", "none"] = "band"
    """How input values (from 0 to 1) are normalised. band: minus the mean of the band over the training split, divided
    by its standard deviation. pixel: the same with the mean and standard deviation over the bands of each pixel, which
    keeps the shape of a spectrum and removes its brightness. none: unchanged."""

    @field_validator("features")
    @classmethod
    def _some_map(cls, value: list[int] | str) -> list[int] | str:
        if value != "auto" and not any(value):
            raise ValueError(f"pretrain.encoder.features = {value}: must have a grid above 0")
        return value


class Head(_Section):
    depth: int = Field(2, ge=0, le=3)
    """Number of layers of the projection head. 0: no head (the projections are the features); 1: linear; 2: as in the
    paper; 3: as in SimCLRv2."""
    hidden: int = Field(512, ge=1)
    """Width of the hidden layers of the head."""
    output: int = Field(128, ge=2)
    """Width of the projections, at least 2."""
    batch_norm: bool = True
    """Whether the head has batch normalisation before each ReLU."""


class Terms(_Section):
    """Weights of the terms of the loss, each 0 or more; at least one is above 0. The loss is the weighted sum."""

    fused: float = Field(1.0, ge=0)
    """Weight of the objective between the two views as the whole encoder represents them (SimCLR)."""
    intra: float = Field(0.0, ge=0)
    """Weight of the objective between the two views of the same modality, the mean over modalities; needs fusion
    separate or attention."""
    cross: float = Field(0.0, ge=0)
    """Weight of the objective between one view in one modality and the other view in another modality, the mean over
    pairs of modalities: it teaches what modalities have in common. Needs fusion separate or attention."""
    local: float = Field(0.0, ge=0)
    """Weight of the objective between patches: positives are patches of the last feature map that show the same place
    of the image in the two views; negatives are patches of other images and distant patches of the same image. The mean
    over the modalities that have a branch."""

    @property
    def whole(self) -> bool:
        """Whether the features of the whole encoder are projected: for the term fused, or because intra and cross are 0
        and images would have no projections."""
        return self.fused > 0 or not (self.intra or self.cross)

    @model_validator(mode="after")
    def _at_least_one(self) -> Terms:
        if not any(self.model_dump().values()):
            raise ValueError("pretrain.terms: fused, intra, cross and local are 0: at least one must be > 0")
        return self


class Teacher(_Section):
    """A frozen encoder whose features of the whole image the encoder learns to predict from every view (distillation):
    a further term of the loss."""

    weights: str | None = None
    """Its weights, with the choices of pretrain.weights except random; null: there is no teacher."""
    model: str | None = None
    """Its network, any model of timm; not for the folder of an encoder and a registered model, which have their own."""
    weight: float = Field(5.0, gt=0)
    """Weight of the term, above 0; the term is 1 minus the cosine similarity, which the objective divides by its
    temperature of about 1/5."""

    @model_validator(mode="after")
    def _of_a_network(self) -> Teacher:
        if self.weights == "random":
            raise ValueError("pretrain.teacher.weights = 'random': teaches nothing; set null, or trained weights")
        text = self.weights or ""
        alone = text == "pretrained" or text.startswith("hf-hub:") or Path(text).suffix.lower() in FILES
        if alone and self.model is None:
            raise ValueError(
                f"pretrain.teacher.model = null: does not say of which network pretrain.teacher.weights = {text!r} "
                "are; set it to the name of a model of timm, such as resnet50"
            )
        return self


class Monitor(_Section):
    every: int = Field(5, ge=1)
    """Number of epochs between validations; the last epoch is always validated."""
    metric: Literal["auto", "knn", "probe", "effective_rank", "last"] = "auto"
    """Which validation measure chooses the weights that are kept: kNN accuracy, accuracy of the linear probe, or
    effective rank. The latest weights are kept that are not more than a standard error below the best, in the means of
    three validations. last: keep the
    weights of the last epoch. auto: probe if images of the validation split have labels, else last."""
    patience: int | None = Field(None, ge=1)
    """Stop after this many validations without a better value; null: train to the end."""


class Checkpoint(_Section):
    every_steps: int | None = Field(None, ge=1)
    """Save the state after this many steps, or after every_minutes, whichever comes first; null: only by minutes. Has
    no influence on the result."""
    every_minutes: float = Field(0.5, gt=0)
    """Save the state after this many minutes, above 0. Has no influence on the result."""
    keep: int = Field(2, ge=1)
    """How many checkpoints are kept: if the newest can't be read, an older one is used."""


SIDE = "prepare.size (or pretrain.view_size, if it is set)"  # in messages: the side that a network must take


class Pretrain(_Section):
    encoder: Architecture = Architecture()
    view_size: int | list[int] | None = None
    """Side of the views in training, in pixels: 8 to prepare.size. They are cropped from the packed image, below
    three quarters of it without aliasing. A list, such as [32, 48], has one side after the other, for equal numbers of
    steps: small views cost less. Whole images are seen at prepare.size, or at view_size by networks of one
    size, such as vision transformers. auto: half of prepare.size, then about three quarters of it, at which whole
    images show things as large as views did, where that leaves enough to see (one side with terms.local), else null.
    null: prepare.size."""
    local_views: int = Field(0, ge=0, le=16)
    """Number of further views of each image: small crops of 5 to 25 % of it, at half the size (multi-crop). They are
    compared with the two views of all images, not with each other."""
    whiten: Literal["auto", True, False] = "auto"
    """Whether the features are half-whitened: divided, along their principal directions over the training images, by
    the square root of their standard deviation, so that the cosine of two images depends less on the directions that
    vary most. auto: chosen with encoder.features, after the training; false without labels."""
    weights: str = "random"
    """Initial weights: random, pretrained (timm's, usually for ImageNet), hf-hub:OWNER/NAME, a file of weights
    (.safetensors, .pth, …) of timm, torchvision, DINO, MoCo or others, the folder of an encoder, or the registered
    model models:/NAME@ALIAS."""
    teacher: Teacher = Teacher()
    positives: Literal["view", "group"] = "view"
    """Which views are positives of a view. view: the other view of the same image. group: also all views of the other
    images of its group (`group` in dataset.yaml: a specimen, a place); batches then hold pairs of a group. auto: group
    if nearly all pairs of training images of a group have the same label."""
    sampling: str = "uniform"
    """How often an image is drawn. uniform: once in every epoch. balanced: every class equally often, and an image
    without a label once. COLUMN: in proportion to the numbers, 0 or more, in this column of metadata.csv. An epoch has
    as many draws as there are images; with frequent images, some are left out of it."""
    head: Head = Head()
    objective: Literal["nt_xent", "dcl"] = "nt_xent"
    """The contrastive loss. nt_xent: NT-Xent, as in the paper. dcl: the decoupled contrastive loss, for small
    batches."""
    terms: Terms = Terms()
    normalise: bool = True
    """Whether projections are scaled to unit length. true: cosine similarity; false: dot product (table 5 of the
    paper)."""
    temperature: float = Field(0.2, gt=0)
    """Temperature τ of the objective, above 0."""
    epochs: int = Field(40, ge=1)
    """Number of passes over the training split."""
    max_steps: int | None = Field(None, ge=1)
    """Stop after this many optimiser steps; the learning rate schedule is shortened to fit. null: no limit."""
    batch_size: int = Field(64, ge=2)
    """Number of images per step, over all processes, at least 2. They give twice as many views; the negatives of a view
    are all views of the other images."""
    micro_batch_size: int | None = Field(None, ge=1)
    """Number of images that go through the encoder at once in one process, for batches that do not fit in memory; must
    divide batch_size. Gradients are cached (GradCache): the batch keeps all its negatives, but needs a second forward
    pass. null: all images at once."""
    optimiser: Literal["adamw", "sgd", "lars"] = "adamw"
    """AdamW, SGD with momentum 0.9, or LARS, the optimiser of the paper."""
    learning_rate: float = Field(0.004, gt=0)
    """Peak learning rate per 256 images: AdamW 0.0005 to 0.005, SGD 0.03 to 0.5, LARS 0.3 (the paper's) to 5."""
    learning_rate_scaling: Literal["linear", "sqrt"] = "linear"
    """How learning_rate is scaled with batch_size. linear: × batch_size / 256. sqrt: × √(batch_size / 256) (appendix
    B.1)."""
    weight_decay: float = Field(0.0001, ge=0)
    """Weight decay, 0 or more; it is not applied to biases and normalisation layers."""
    warmup: float = Field(0.1, ge=0, lt=1)
    """Fraction of the steps, 0 to below 1, over which the learning rate increases linearly. Over the other steps it
    decreases to zero along a cosine."""
    clip: float | None = Field(None, gt=0)
    """Largest norm of the gradient, above 0; null: the gradient is not clipped."""
    ema: float | None = Field(None, gt=0, lt=1)
    """Decay of an exponential moving average of the weights, above 0 and below 1. The averaged weights are validated
    and kept. null: no average."""
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    """Number format in which the encoder and the projection head compute; the loss is always float32."""
    compile: bool = False
    """Whether the encoder is compiled (torch.compile): a minute more at the start, faster steps on a GPU."""
    gradient_checkpointing: bool = False
    """Whether activations are computed again in the backward pass instead of being stored: less memory, a third more
    computation."""
    sync_batch_norm: bool = True
    """With several processes, whether batch normalisation uses the whole batch, as with one process. false: each
    process uses only its part of the batch."""
    monitor: Monitor = Monitor()
    checkpoint: Checkpoint = Checkpoint()
    seeds: list[Annotated[int, Field(ge=0)]] = Field([0], min_length=1, strict=False)
    """Seeds of the weights, the order of images and the views, each 0 or more. One encoder is trained for each seed.
    The later stages use the first encoder; the others show how much the scores vary by chance (mean ± standard
    deviation)."""
    recipe: str | None = Field(None, pattern=NAME)
    """The named set of augmentations that `augment` starts from: photograph, specimen, aerial, microscopy, sign,
    spectral, or NAME for a file recipes/NAME.yaml of the project. auto: the one whose encoders are best on validation
    after short runs. null: none. A file with `augment` and without this key means null, as in earlier versions."""
    augment: Augment = Augment()
    """Single augmentations: they replace those of the recipe."""

    @model_validator(mode="before")
    @classmethod
    def _recipe_below_augment(cls, tree: Any) -> Any:
        name, given = (tree.get("recipe"), tree.get("augment")) if isinstance(tree, dict) else (None, None)
        if not isinstance(name, str) or not re.match(NAME, name) or not isinstance(given, dict | None):
            return tree
        return {**tree, "augment": _merged(recipe(name), given or {})}

    @property
    def seed(self) -> int:
        """The seed of this run, the first of the seeds."""
        return self.seeds[0]

    @property
    def view_sides(self) -> list[int | None]:
        """The sides of the views, one after the other; None: that of the packed images."""
        return list(self.view_size) if isinstance(self.view_size, list) else [self.view_size]

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
    def _pairs_of_groups_or_weights(self) -> Pretrain:
        if self.positives == "group" and self.sampling != "uniform":
            raise ValueError(
                f"pretrain.sampling = {self.sampling!r}: not possible with pretrain.positives: group, which draws "
                "pairs of a group; set pretrain.positives: view, or sampling: uniform"
            )
        return self

    @model_validator(mode="after")
    def _patches_of_one_size(self) -> Pretrain:
        if self.local_views and self.terms.local:
            raise ValueError(
                f"pretrain.local_views = {self.local_views}: not possible with pretrain.terms.local, which pairs the "
                "patches of two views; set one of them to 0"
            )
        return self

    @field_validator("view_size", mode="before")
    @classmethod
    def _sides_that_rise(cls, value: Any) -> Any:
        sides = value if isinstance(value, list) else [value]
        whole = all(isinstance(side, int) and not isinstance(side, bool) and side >= 8 for side in sides)
        if value is not None and not (sides and whole and sides == sorted(set(sides))):
            raise ValueError(
                f"pretrain.view_size = {value!r}: must be an integer ≥ 8, a list of such that rise, as [32, 48], null, "
                "or auto"
            )
        return value

    @model_validator(mode="after")
    def _maps_of_one_size(self) -> Pretrain:
        if self.terms.local and len(self.view_sides) > 1:
            raise ValueError(
                f"pretrain.view_size = {self.view_size}: not possible with pretrain.terms.local, whose maps have one "
                "size; set one number"
            )
        return self

    @model_validator(mode="after")
    def _terms_of_modalities(self) -> Pretrain:
        for name, weight in self.terms.model_dump(include={"intra", "cross"}).items():
            if weight and self.encoder.fusion == "concat":
                raise ValueError(
                    f"pretrain.terms.{name} = {weight}: needs pretrain.encoder.fusion: separate or attention; "
                    "set one of them, or set the weight to 0"
                )
        if (self.terms.intra or self.terms.cross) and (p := self.augment.spectral.group_dropout.p):
            raise ValueError(
                f"pretrain.augment.spectral.group_dropout.p = {p}: leaves nothing of a modality for "
                "pretrain.terms.intra and cross to compare; set the probability to 0, or both terms to 0"
            )
        if not self.terms.fused and self.encoder.fusion == "attention":
            raise ValueError(
                f"pretrain.terms.fused = {self.terms.fused}: must be > 0 with pretrain.encoder.fusion: attention, "
                "because only this term trains the weights of modalities; or set pretrain.encoder.fusion: separate"
            )
        return self


class Embed(_Section):
    batch_size: int = Field(64, ge=1)
    """Number of images per forward pass; has no influence on the result."""


class Knn(_Section):
    k: int = Field(10, ge=1)
    """Number of nearest neighbours that vote for a class."""
    temperature: float = Field(0.07, gt=0)
    """Temperature, above 0: the weight of a vote is exp(cosine / temperature). With a low one, only the nearest
    count."""


class FineTune(_Section):
    fractions: list[Annotated[float, Field(gt=0, le=1)]] = Field([0.01, 0.1], strict=False)
    """Fractions of the training labels to fine-tune with, above 0, up to 1; the same network from random weights is
    trained for comparison. []: no fine-tuning."""
    epochs: int = Field(30, ge=1)
    """Number of passes over these labelled images; with few images more, so that there are at least 150 steps."""


class Evaluate(_Section):
    labels: list[str] = []
    """Further columns of metadata.csv that are evaluated in the same way as the label."""
    held_out_classes: list[str] = []
    """Classes of the label that pretraining never sees; they are evaluated as a separate task."""
    balanced: bool = False
    """Whether all classes have equal weight in the probes, and balanced accuracy chooses the regularisation."""
    knn: Knn = Knn()
    probe_views: int = Field(1, ge=0)
    """Number of augmented views of every image that the probe on views learns from, besides the image; 0: no such
    probe."""
    label_efficiency_seeds: int = Field(5, ge=0)
    """Number of random draws of labelled images for every size in the label-efficiency curve; 0: no curve."""
    fine_tune: FineTune = FineTune()
    pretrained: str | None = None
    """Name of a model of timm; the scores of its pretrained features (downloaded) are a further floor, which the
    encoder should exceed. null: no such floor."""
    bootstrap: int = Field(1000, ge=100)
    """Number of bootstrap resamples of the groups for every 95 % confidence interval, at least 100."""
    seed: int = Field(0, ge=0)
    """Seed of the bootstrap, of the encoder with random weights, of the draws of labelled images and of the map."""


class Register(_Section):
    name: str = Field("simtrail-encoder", pattern=MODEL_NAME)
    """Name of the model in the MLflow registry, without `/` and `:`."""
    gate: Literal["higher", "significant"] = "higher"
    """When a version becomes champion in place of a comparable champion. higher: its accuracy is higher by more than
    `margin`. significant: the same, and the 95 % interval of the difference on the same test images is above
    `margin`."""
    margin: float = Field(0.0, ge=0)
    """By how much the deciding score (accuracy; effective rank without labels) must be higher than the champion's, 0 or
    more."""
    beat_floors: bool = False
    """Whether an encoder is refused whose linear probe is not significantly more accurate than every floor. false: it
    is registered, with a warning."""
    license: str | None = None
    """License of the model, for its card and trail, as hubs name it, such as mit or cc-by-4.0. null: none is stated."""


class Params(_Section):
    data: Data
    check: Check = Check()
    prepare: Prepare = Prepare()
    pretrain: Pretrain = Pretrain()
    embed: Embed = Embed()
    evaluate: Evaluate = Evaluate()
    # the underscore: pydantic models already have an attribute `register` (from ABCMeta)
    register_: Register = Field(Register(), alias="register")
    _tree: dict[str, Any] = PrivateAttr(default_factory=dict)

    @model_validator(mode="wrap")
    @classmethod
    def _without_auto(cls, tree: Any, validate: Any) -> Params:
        """Validates the tree without the keys that are auto, which have a value of some use in its place."""
        if not isinstance(tree, dict):
            return validate(tree)
        given = {k: v.model_dump(exclude_unset=True) if isinstance(v, BaseModel) else v for k, v in tree.items()}
        params = validate(_pruned(given, AUTO))
        params._tree = given
        return params

    @model_validator(mode="after")
    def _views_of_packed_images(self) -> Params:
        if (self.pretrain.view_sides[-1] or 0) > self.prepare.size:
            raise ValueError(
                f"pretrain.view_size = {self.pretrain.view_size}: must be ≤ prepare.size = {self.prepare.size}; "
                "lower it, or raise prepare.size"
            )
        return self

    @property
    def tree(self) -> dict[str, Any]:
        """The tree that these parameters were read from: without defaults, and with auto."""
        return deepcopy(self._tree)

    @property
    def auto(self) -> list[str]:
        """The keys that are auto: those of `AUTO` that are, or that are left out."""
        keys = [key for key in AUTO if value_of(self._tree, key, "auto") == "auto"]
        pretrain = self._tree.get("pretrain") or {}
        if "recipe" not in pretrain and pretrain.get("augment"):
            keys.remove("pretrain.recipe")
        return keys

    def flat(self) -> dict[str, Any]:
        """The value of every parameter by its dotted key, as in params.yaml."""
        return dict(_flatten(self.model_dump(by_alias=True))) | dict.fromkeys(self.auto, "auto")

    def not_default(self) -> list[str]:
        """A text for each parameter that has not its default: `prepare.size: 48 (default 64)`."""
        usual = Params(data=self.data).flat()
        return [f"{k}: {shown(v)} (default {shown(usual[k])})" for k, v in self.flat().items() if v != usual.get(k)]

    def hash(self, *sections: str) -> str:
        """Sixteen hex digits that identify the values of these sections."""
        selected = {k: v for k, v in self.model_dump(by_alias=True).items() if k in sections}
        return hashlib.sha256(json.dumps(selected, sort_keys=True).encode()).hexdigest()[:16]


class _Loader(yaml.SafeLoader):
    """Reads `1e-3` as a number, as YAML 1.2 and DVC do (in YAML 1.1 it is a text); refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if key.value in lines:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key.value} is there twice, first in line {lines[key.value]}; remove one of them",
                    problem_mark=key.start_mark,
                )
            lines[key.value] = key.start_mark.line + 1
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def load_params(path: str | Path = "params.yaml", settings: Sequence[str] = ()) -> Params:
    """The checked parameters of a params.yaml file; keys that are missing have their defaults.

    `settings` are texts KEY=VALUE that replace values of the file. Keys of earlier versions are understood, with a
    warning on standard error. Raises InputError with one line per error, each naming the key, the value and what is
    allowed.
    """
    try:
        text = Path(path).read_bytes()
    except FileNotFoundError:
        raise InputError(
            f"{path}: no such file; run simtrail in the project's folder, or start a project: simtrail init FOLDER"
        ) from None
    tree = read_yaml(text, path)
    if isinstance(tree, dict):
        tree = {key: {} if section is None else section for key, section in tree.items()}
        change(tree, dict(assignment(text) for text in settings))
        _rename(tree, path)
    return parse(Params, tree, " --set ".join([str(path), *settings]))


def assignment(text: str) -> tuple[str, Any]:
    """Key and value of a text KEY=VALUE; the value is read as YAML."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise InputError(f"--set {text}: must be KEY=VALUE, such as pretrain.epochs=10")
    return key, read_yaml(value, f"--set {text}")


def read_yaml(text: str | bytes, source: str | Path) -> Any:
    """The tree of a YAML text; `1e-3` is a number. Raises InputError that names the source if the YAML is not valid."""
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise InputError(f"{source}: not valid YAML: {where}{error.problem}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from None


def parse(schema: type[T], tree: Any, source: str | Path) -> T:
    """The tree of a YAML file as an instance of `schema`. Raises InputError that names every key with an error."""
    try:
        return schema.model_validate(tree if tree is not None else {})
    except ValidationError as error:
        raise InputError("\n".join(f"{source}: {_message(error, schema)}" for error in error.errors())) from None


def changed(params: Params, settings: Settings, source: str | Path) -> Params:
    """The parameters with dotted keys changed. Raises InputError that names `source` and every key with an error."""
    tree = params.tree
    change(tree, settings)
    return parse(Params, tree, source)


def recipe(name: str) -> dict[str, Any]:
    """The tree of `pretrain.augment` of a recipe: recipes/NAME.yaml of the project, or else simtrail's own."""
    own = Path("recipes") / f"{name}.yaml"
    path = own if own.is_file() else RECIPES / f"{name}.yaml"
    if not path.is_file():
        raise ValueError(f"pretrain.recipe = {name!r}: no such recipe; there are {', '.join(recipe_names())}")
    tree = read_yaml(path.read_bytes(), path)
    return parse(Augment, tree, path).model_dump(exclude_unset=True)


def recipe_names() -> list[str]:
    """The names of simtrail's recipes and of those in recipes/ of the project."""
    return sorted({path.stem for folder in (RECIPES, Path("recipes")) for path in folder.glob("*.yaml")})


def value_of(tree: Any, key: str, default: Any = None) -> Any:
    """The value of a dotted key, `default` if the tree does not have it."""
    for part in key.split("."):
        tree = tree.get(part, default) if isinstance(tree, dict) else default
    return tree


def change(tree: dict[str, Any], settings: Settings) -> None:
    """Sets dotted keys in the tree of a params.yaml, whatever the tree holds under these keys."""
    for key, value in settings.items():
        *path, last = key.split(".")
        node = tree
        for part in path:
            if not isinstance(node.get(part), dict):
                node[part] = {}  # if the key is not valid, the check of the tree will report it
            node = node[part]
        node[last] = deepcopy(value)  # a later key may change a part of the value


def _merged(tree: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """The tree with the values of another one in place of its own."""
    merged = dict(tree)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(tree.get(key), dict)
        merged[key] = _merged(tree[key], value) if both else value
    return merged


def shown(value: Any) -> str:
    """A value as in params.yaml."""
    return json.dumps(value).strip('"')


def _pruned(tree: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    """The tree without those of the dotted keys that are auto."""
    pruned = {}
    for name, value in tree.items():
        below = tuple(key.removeprefix(f"{name}.") for key in keys if key.startswith(f"{name}."))
        if not (name in keys and value == "auto"):
            pruned[name] = _pruned(value, below) if below and isinstance(value, dict) else value
    return pruned


def _rename(tree: dict[str, Any], source: str | Path) -> None:
    """Gives the keys of earlier versions their present names, unless these are there too."""
    for old, new in RENAMED.items():
        *path, last = old.split(".")
        node: Any = tree
        for part in path:
            node = node.get(part) if isinstance(node, dict) else None
        if isinstance(node, dict) and last in node and new not in dict(_flatten(tree)):
            value = node.pop(last)
            change(tree, {new: [value] if old == "pretrain.seed" else value})
            _warn(f"{source}: {old} is now called {new}")


@cache  # parameters are loaded several times in a command
def _warn(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr, flush=True)


def _message(error: Any, schema: type[BaseModel]) -> str:
    """The message for one error of pydantic: its key and value, and what is allowed."""
    # parts that start with = are not keys but tags of union members; numbers are positions in a list
    parts = [part for part in error["loc"] if not str(part).startswith("=")]
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).removeprefix(".")
    match error["type"]:
        case "missing":
            return f"{key}: missing; add it" + (", such as data: {name: moths}" if key.startswith("data") else "")
        case "extra_forbidden" if "accum" in key:
            return (
                f"{key}: unknown key; accumulated gradients would contrast each small batch only with itself and "
                "lose most negatives; set pretrain.micro_batch_size, which keeps them all"
            )
        case "extra_forbidden":
            keys = _keys(schema)
            close = [k for k in keys if k.endswith(f".{key}")] or difflib.get_close_matches(key, keys, n=1, cutoff=0.6)
            return f"{key}: unknown key" + (f"; did you mean {close[0]}?" if close else "; remove it")
        case "invalid_key":
            return f"{key}: not a key; in {{a: 1, b: 2}} a comma starts the next key, so write 0.25, not 0,25"
        case "value_error":
            return str(error["ctx"]["error"])
    if error["type"] == "too_short":
        return f"{key} = {error['input']!r}: must have at least {error['ctx']['min_length']} entry"
    if error["type"] == "string_pattern_mismatch":
        return f"{key} = {error['input']!r}: must not be empty, and must have {PATTERNS[error['ctx']['pattern']]}"
    allowed = error["msg"].removeprefix("Input should be ").replace("a valid integer", "an integer")
    allowed = allowed.replace("a valid boolean", "true or false").replace("True or False", "true or false")
    allowed = allowed.replace("a valid ", "a ")
    if error["type"] == "model_type":
        allowed = "a mapping of keys to values"
    allowed = allowed.replace("greater than or equal to", "≥").replace("less than or equal to", "≤")
    allowed = allowed.replace("greater than", ">").replace("less than", "<")
    if key in AUTO:
        allowed += ", or auto"
    if re.fullmatch(r"-?\d+,\d+", str(error["input"])):
        allowed += f"; write {str(error['input']).replace(',', '.')}"
    return f"{key} = {error['input']!r}: must be {allowed}" if key else f"must be {allowed}"


def _keys(schema: type[BaseModel], prefix: str = "") -> list[str]:
    """The dotted keys of a schema and of all schemas in it."""
    keys = []
    for name, field in schema.model_fields.items():
        key = prefix + (field.alias or name)
        keys.append(key)
        for part in _types(field.annotation):
            if isinstance(part, type) and issubclass(part, BaseModel):
                keys += _keys(part, key + ".")
    return keys


def _types(annotation: Any) -> list[Any]:
    """The annotation and all types that it is made of."""
    return [annotation, *(part for argument in get_args(annotation) for part in _types(argument))]


def _flatten(tree: dict[str, Any], prefix: str = "") -> Any:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
