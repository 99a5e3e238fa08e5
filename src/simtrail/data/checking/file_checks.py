"""Checks of the files of a dataset and their values: what makes an image unusable, and what is suspicious."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from simtrail.data.checking.expectation import Expectation, between, in_set, most_common, not_null
from simtrail.data.dataset import Declaration
from simtrail.data.reading.decoded import BandFacts
from simtrail.params import Check

SATURATED = 0.01  # a larger fraction of a band's pixels at the maximum of their type gives a warning
_EXPOSURE = "their brightest values are lost: expose less"
_SCALE = "check the scale in dataset.yaml or in the files"


def file_checks(images: pd.DataFrame, readable: pd.DataFrame, params: Check, bands: Any) -> list[Expectation]:
    dtype, facts = most_common(readable["dtype"]), most_common(readable["facts"])
    least, most = params.min_side, params.max_side
    side = f"{least} to {most} px"
    readable = readable.assign(
        plural=["" if n == 1 else "s" for n in readable["bands"]],
        bands_hint=[
            _bands_hint(n, bands, alpha) for n, alpha in zip(readable["bands"], readable["alpha"], strict=True)
        ],
        type_hint=[_type_hint(each, dtype) for each in readable["dtype"]],
    )
    same_bands = readable[readable["bands"] == bands]
    # fmt: off
    return [
        Expectation("every image can be read", "{n} image{s} can't be read",
                    images, *in_set("readable", [True]), "{reason}"),
        Expectation(f"every image has {bands} bands", "{n} image{s} {have} another number of bands",
                    readable, *in_set("bands", [bands]), f"{{bands}} band{{plural}}, expected {bands}{{bands_hint}}"),
        Expectation(f"the pixels of every image are {dtype}", "{n} image{s} {have} pixels of another type",
                    readable, *in_set("dtype", [dtype]), f"pixels are {{dtype}}, expected {dtype}{{type_hint}}"),
        Expectation("all files agree on names, wavelengths, bad bands and scale of their bands",
                    "{n} file{s} {have} other names, wavelengths, bad bands or scale than most files",
                    same_bands, *in_set("facts", [facts]),
                    "names, wavelengths, bad bands or scale in its header differ from those of most files"),
        Expectation(f"heights are {side}", "{n} image{s} {have} another height",
                    readable, *between("height", least, most), f"height {{height}} px, must be {side}"),
        Expectation(f"widths are {side}", "{n} image{s} {have} another width",
                    readable, *between("width", least, most), f"width {{width}} px, must be {side}"),
        Expectation("no image contains NaN or Inf", "{n} image{s} {have} pixels that are NaN or Inf",
                    readable, *in_set("finite", [True]), "contains NaN or Inf"),
        Expectation("every image has something else than background",
                    "{n} image{s} {have} nothing but background", readable, *in_set("empty", [False]),
                    "nothing but background: every pixel is transparent or outside the mask"),
        Expectation("no image is constant", "{n} image{s} {have} the same value in every pixel",
                    readable, *in_set("constant", [False]), "every pixel is {pixel}"),
        Expectation("no image has an exact copy under another label",
                    "{n} image{s} {have} an exact copy under another label",
                    readable, *in_set("copy_elsewhere", [""]), "same bytes as {copy_elsewhere}, under another label"),
        Expectation("no image has an exact copy", "{n} images are exact copies", readable, *in_set("copy", [""]),
                    advice="they are kept in one part of the split; keep one of each"),
    ]
    # fmt: on


def _bands_hint(bands: int, expected: Any, alpha: bool) -> str:
    if {bands, expected} == {1, 3}:
        return "; to read grey images as RGB: grey_as_rgb: true in dataset.yaml"
    if alpha and bands + 1 == expected:
        return (
            f"; its last band is marked as alpha; to read it as a band, name all {expected} under bands in dataset.yaml"
        )
    return ""


def _type_hint(dtype: str, expected: Any) -> str:
    both = {dtype, expected} == {"uint8", "uint16"}
    return "; to read 8-bit images as 16-bit: as_uint16: true in dataset.yaml" if both else ""


def value_checks(readable: pd.DataFrame, declaration: Declaration, bands: Any) -> list[Expectation]:
    dtype, expectations = str(most_common(readable["dtype"])), []
    if dtype != "uint8":  # photographs of 8 bits are often saturated on purpose
        title = f"at most {SATURATED:.0%} of a band's pixels are saturated"
        problem = f"{{n}} image{{s}} {{have}} a band with more than {SATURATED:.0%} saturated pixels"
        expectations.append(
            Expectation(title, problem, readable, *between("most_saturated", 0, SATURATED), advice=_EXPOSURE)
        )
    if dtype.startswith(("int", "uint")) and dtype not in ("int8", "uint8"):
        largest = readable["largest"].max()  # over all images, because a single one may be dark
        row = pd.DataFrame({"what": [f"the largest is {largest:g}"], "largest": [largest]})
        title, problem = (
            f"values use more than 8 bits of {dtype}",
            f"all values fit in 8 bits, although they are {dtype}",
        )
        expectations.append(
            Expectation(title, problem, row.dropna(), *between("largest", 256, None), advice="save them as 8-bit files")
        )
    if declaration.scale:
        title, problem = "no reflectance is above 2", "{n} image{s} {have} reflectance above 2"
        expectations.append(
            Expectation(title, problem, readable, *between("largest", None, 2 * declaration.scale), advice=_SCALE)
        )
    if (bands or 1) > 1:
        title, problem = "no band is constant", "{n} image{s} {have} a constant band"
        advice = "list the bands to use in prepare.bands, if a band is empty in many images"
        expectations.append(Expectation(title, problem, readable, *in_set("constant_bands", [0]), advice=advice))
    return expectations


def mask_checks(readable: pd.DataFrame, params: Check) -> list[Expectation]:
    low, high = params.min_mask_cover, params.max_mask_cover
    masked, allowed = readable[readable["mask_cover"].notna()], f"{100 * low:g} to {100 * high:g} % of the image"
    # fmt: off
    return [
        Expectation("every mask is binary", "{n} image{s} {have} a mask with more than two values",
                    masked, *in_set("mask_binary", [True]), "the mask has more than two values"),
        Expectation(f"masks cover {allowed}", "{n} image{s} {have} a mask that covers too little or too much",
                    masked, *between("mask_cover", low, high),
                    f"the mask covers {{mask_cover:.3%}} of the image, must be {allowed}"),
    ]
    # fmt: on


def wavelength_checks(wavelengths: list[float]) -> list[Expectation]:
    if not wavelengths:
        return []
    sign = 1 if wavelengths[0] <= wavelengths[-1] else -1  # falling wavelengths are an order too
    table = pd.DataFrame({"wavelength": [f"{nm:g} nm" for nm in wavelengths], "nm": [sign * nm for nm in wavelengths]})
    rule = "ExpectColumnValuesToBeIncreasing", {"column": "nm", "strictly": True}
    title = "wavelengths rise, or fall, from band to band"
    advice = "check the header, or the wavelengths in dataset.yaml"
    return [Expectation(title, "wavelengths neither rise nor fall from band to band", table, *rule, advice=advice)]


def group_checks(images: pd.DataFrame) -> list[Expectation]:
    reason = "no group: metadata.csv does not list it, or has no value for it in the declared group column"
    return [Expectation("every image has a group", "{n} image{s} {have} no group", images, *not_null("group"), reason)]


def label_checks(images: pd.DataFrame, params: Check) -> list[Expectation]:
    classes = images["label"].value_counts().rename_axis("class").reset_index(name="images")
    least = params.min_images_per_class
    size = f"{{n}} of the classes {{have}} fewer than {least} images"
    return [
        Expectation(
            "every image has a label",
            "{n} image{s} {have} no label",
            images,
            *not_null("label"),
            advice="images without a label are used in training, not in the probe",
        ),
        Expectation(
            f"every class has {least} images or more",
            size,
            classes,
            *between("images", least, None),
            advice="collect more, or join classes: few test images say little",
        ),
    ]


def _largest(values: list[float] | None, facts: str | None) -> float:
    """The largest value in an image's good bands; NaN for an unreadable image."""
    if values is None or facts is None:
        return np.nan
    good = _good(facts)
    return max((value for i, value in enumerate(values) if not good or good[i]), default=np.nan)


@cache
def _good(facts: str) -> list[bool] | None:
    return BandFacts.model_validate_json(facts).good


def with_copies(manifest: pd.DataFrame) -> pd.DataFrame:
    """The manifest with columns that the checks need.

    `copy` is the path of an exact copy of the image, `copy_elsewhere` that of a copy under another label; both are
    empty without a copy. `pixel` is the text of the smallest value of every band.
    """
    images = manifest.assign(
        pixel=["" if low is None else _pixel_text(low) for low in manifest["min"]],
        copy="",
        copy_elsewhere="",
        most_saturated=[np.nan if values is None else max(values) for values in manifest["saturated"]],
        largest=[_largest(values, facts) for values, facts in zip(manifest["max"], manifest["facts"], strict=True)],
    ).reset_index(drop=True)
    repeated = images[images["sha256"].notna() & images["sha256"].duplicated(keep=False)]
    for _, copies in repeated.groupby("sha256"):
        for i in copies.index:
            same = copies.drop(i)
            relabelled = same[
                same["label"].ne(copies.at[i, "label"]) & same["label"].notna() & pd.notna(copies.at[i, "label"])
            ]
            images.at[i, "copy"] = same["path"].iloc[0]
            images.at[i, "copy_elsewhere"] = relabelled["path"].iloc[0] if len(relabelled) else ""
    return images


def _pixel_text(pixel: Sequence[float]) -> str:
    """The values of a pixel; of more than three bands, the first three values."""
    few = ", ".join(f"{value:g}" for value in pixel[:3])
    return few + (f", … ({len(pixel)} bands)" if len(pixel) > 3 else "")
