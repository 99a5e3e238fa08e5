"""The checks of a dataset: Great Expectations on its manifest. No other module imports that library."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from simtrail.data.dataset import Declaration
from simtrail.data.readers import BandFacts
from simtrail.params import Check

os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")

SATURATED = 0.01  # a larger fraction of a band's pixels at the maximum of their type gives a warning


@dataclass(frozen=True)
class Finding:
    """One expectation with its result; `offenders` are image paths (class names, for the size of classes)."""

    title: str
    severity: str  # critical | warning
    success: bool
    problem: str  # what is wrong, with the number of offenders; empty on success
    offenders: list[str]
    expectation: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Expectation:
    """One row of the table of checks."""

    title: str  # what is expected
    problem: str  # message on failure, with {n}, the number of offenders, and {s} and {have} for the plural
    table: pd.DataFrame  # the rows that are checked; its first column names an offender
    rule: str  # class of Great Expectations …
    arguments: dict[str, Any]  # … and its arguments
    reason: str = ""  # why an image is rejected, with values of its row; empty for a warning

    @property
    def severity(self) -> str:
        """critical if offenders are rejected, which needs a reason; else warning."""
        return "critical" if self.reason else "warning"


def validate(manifest: pd.DataFrame, params: Check, declaration: Declaration) -> tuple[list[Finding], dict[str, str]]:
    """Every finding about a manifest, and path → reasons for each image that must not be used.

    Facts about the bands that dataset.yaml does not declare are the most common ones among the files; so is the type
    of the pixels. Findings of severity `warning` never reject an image.
    """
    expectations = _expectations(manifest, params, declaration)
    findings, rejected = [], dict[str, list[str]]()
    for expected, (success, rows, configuration) in zip(expectations, _run(expectations), strict=True):
        offending = expected.table.loc[rows]
        offenders, n = offending.iloc[:, 0].tolist(), len(offending)
        problem = expected.problem.format(n=n, s="" if n == 1 else "s", have="has" if n == 1 else "have")
        findings.append(
            Finding(expected.title, expected.severity, success, "" if success else problem, offenders, configuration)
        )
        if expected.severity == "critical":
            for path, values in zip(offenders, offending.to_dict("records"), strict=True):
                rejected.setdefault(path, []).append(expected.reason.format(**values))
    return findings, {path: "; ".join(reasons) for path, reasons in sorted(rejected.items())}


def _expectations(manifest: pd.DataFrame, params: Check, declaration: Declaration) -> list[Expectation]:
    """The table of checks of a dataset, in the order in which they are reported."""
    images = _with_copies(manifest)
    readable = images[images["readable"]]
    if (facts := _most_common(manifest["facts"].dropna())) is not None:
        declaration = declaration.completed(BandFacts.model_validate_json(facts))
    bands = len(declaration.bands or ()) or _most_common(readable["bands"])
    labelled = declaration.label is not None or bool(manifest["label"].notna().any())
    return [
        *_file_checks(images, readable, params, bands),
        *_value_checks(readable, declaration, bands),
        *(_mask_checks(readable, params) if declaration.mask else []),
        *_wavelength_checks([nm for nm in declaration.wavelengths or () if nm is not None]),
        *(_group_checks(images) if declaration.group else []),
        *(_label_checks(images, params) if labelled else []),
    ]


def _file_checks(images: pd.DataFrame, readable: pd.DataFrame, params: Check, bands: Any) -> list[Expectation]:
    dtype, facts = _most_common(readable["dtype"]), _most_common(readable["facts"])
    least, most = params.min_side, params.max_side
    side = f"{least} to {most} px"
    same_bands = readable[readable["bands"] == bands]
    # fmt: off
    return [
        Expectation("every image can be read", "{n} image{s} can't be read",
                    images, *_in_set("readable", [True]), "{reason}"),
        Expectation(f"every image has {bands} bands", "{n} image{s} {have} another number of bands",
                    readable, *_in_set("bands", [bands]), f"{{bands}} bands, expected {bands}"),
        Expectation(f"the pixels of every image are {dtype}", "{n} image{s} {have} pixels of another type",
                    readable, *_in_set("dtype", [dtype]), f"pixels are {{dtype}}, expected {dtype}"),
        Expectation("all files agree on names, wavelengths, bad bands and scale of their bands",
                    "{n} file{s} {have} other names, wavelengths, bad bands or scale than most files",
                    same_bands, *_in_set("facts", [facts]),
                    "names, wavelengths, bad bands or scale in its header differ from those of most files"),
        Expectation(f"heights are {side}", "{n} image{s} {have} another height",
                    readable, *_between("height", least, most), f"height {{height}} px, must be {side}"),
        Expectation(f"widths are {side}", "{n} image{s} {have} another width",
                    readable, *_between("width", least, most), f"width {{width}} px, must be {side}"),
        Expectation("no image contains NaN or Inf", "{n} image{s} {have} pixels that are NaN or Inf",
                    readable, *_in_set("finite", [True]), "contains NaN or Inf"),
        Expectation("no image is constant", "{n} image{s} {have} the same value in every pixel",
                    readable, *_in_set("constant", [False]), "every pixel is {pixel}"),
        Expectation("no image has an exact copy under another label",
                    "{n} image{s} {have} an exact copy under another label",
                    readable, *_in_set("copy_elsewhere", [""]), "same bytes as {copy_elsewhere}, under another label"),
        Expectation("no image has an exact copy", "{n} images are exact copies", readable, *_in_set("copy", [""])),
    ]
    # fmt: on


def _value_checks(readable: pd.DataFrame, declaration: Declaration, bands: Any) -> list[Expectation]:
    dtype, expectations = str(_most_common(readable["dtype"])), []
    if dtype != "uint8":  # photographs of 8 bits are often saturated on purpose
        title = f"at most {SATURATED:.0%} of a band's pixels are saturated"
        problem = f"{{n}} image{{s}} {{have}} a band with more than {SATURATED:.0%} saturated pixels"
        expectations.append(Expectation(title, problem, readable, *_between("most_saturated", 0, SATURATED)))
    if dtype.startswith(("int", "uint")) and dtype not in ("int8", "uint8"):
        largest = readable["largest"].max()  # over all images, because a single one may be dark
        row = pd.DataFrame({"what": [f"the largest is {largest:g}"], "largest": [largest]})
        title, problem = (
            f"values use more than 8 bits of {dtype}",
            f"all values fit in 8 bits, although they are {dtype}",
        )
        expectations.append(Expectation(title, problem, row.dropna(), *_between("largest", 256, None)))
    if declaration.scale:
        title, problem = "no reflectance is above 2", "{n} image{s} {have} reflectance above 2"
        expectations.append(Expectation(title, problem, readable, *_between("largest", None, 2 * declaration.scale)))
    if (bands or 1) > 1:
        title, problem = "no band is constant", "{n} image{s} {have} a constant band"
        expectations.append(Expectation(title, problem, readable, *_in_set("constant_bands", [0])))
    return expectations


def _mask_checks(readable: pd.DataFrame, params: Check) -> list[Expectation]:
    low, high = params.min_mask_cover, params.max_mask_cover
    masked, allowed = readable[readable["mask_cover"].notna()], f"{100 * low:g} to {100 * high:g} % of the image"
    # fmt: off
    return [
        Expectation("every mask is binary", "{n} image{s} {have} a mask with more than two values",
                    masked, *_in_set("mask_binary", [True]), "the mask has more than two values"),
        Expectation(f"masks cover {allowed}", "{n} image{s} {have} a mask that covers too little or too much",
                    masked, *_between("mask_cover", low, high),
                    f"the mask covers {{mask_cover:.3%}} of the image, must be {allowed}"),
    ]
    # fmt: on


def _wavelength_checks(wavelengths: list[float]) -> list[Expectation]:
    if not wavelengths:
        return []
    sign = 1 if wavelengths[0] <= wavelengths[-1] else -1  # falling wavelengths are an order too
    table = pd.DataFrame({"wavelength": [f"{nm:g} nm" for nm in wavelengths], "nm": [sign * nm for nm in wavelengths]})
    rule = "ExpectColumnValuesToBeIncreasing", {"column": "nm", "strictly": True}
    title = "wavelengths rise, or fall, from band to band"
    return [Expectation(title, "wavelengths neither rise nor fall from band to band", table, *rule)]


def _group_checks(images: pd.DataFrame) -> list[Expectation]:
    reason = "no group: metadata.csv does not list it, or has no value for it in the declared group column"
    return [Expectation("every image has a group", "{n} image{s} {have} no group", images, *_not_null("group"), reason)]


def _label_checks(images: pd.DataFrame, params: Check) -> list[Expectation]:
    classes = images["label"].value_counts().rename_axis("class").reset_index(name="images")
    least = params.min_images_per_class
    size = f"{{n}} of the classes {{have}} fewer than {least} images"
    return [
        Expectation("every image has a label", "{n} image{s} {have} no label", images, *_not_null("label")),
        Expectation(f"every class has {least} images or more", size, classes, *_between("images", least, None)),
    ]


def _in_set(column: str, values: list[Any]) -> tuple[str, dict[str, Any]]:
    return "ExpectColumnValuesToBeInSet", {"column": column, "value_set": values}


def _between(column: str, low: float | None, high: float | None) -> tuple[str, dict[str, Any]]:
    return "ExpectColumnValuesToBeBetween", {"column": column, "min_value": low, "max_value": high}


def _not_null(column: str) -> tuple[str, dict[str, Any]]:
    return "ExpectColumnValuesToNotBeNull", {"column": column}


def _largest(values: list[float] | None, facts: str | None) -> float:
    """The largest value in an image's good bands; NaN for an unreadable image."""
    if values is None or facts is None:
        return np.nan
    good = _good(facts)
    return max((value for i, value in enumerate(values) if not good or good[i]), default=np.nan)


@cache
def _good(facts: str) -> list[bool] | None:
    return BandFacts.model_validate_json(facts).good


def _with_copies(manifest: pd.DataFrame) -> pd.DataFrame:
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


def load_library() -> Any:
    """Great Expectations, imported at the first call."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import great_expectations
    logging.getLogger("great_expectations").setLevel(logging.ERROR)
    return great_expectations


def _run(expectations: list[Expectation]) -> list[tuple[bool, list[int], dict[str, Any]]]:
    """For each expectation: whether it holds, the index of every row that breaks it, and its configuration."""
    gx = load_library()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        context = gx.get_context(mode="ephemeral")
        context.variables.progress_bars = {"globally": False, "metric_calculations": False}
        asset = context.data_sources.add_pandas("manifest")
        results: list[tuple[bool, list[int], dict[str, Any]]] = []
        for number, expected in enumerate(expectations):
            expectation = getattr(gx.expectations, expected.rule)(**expected.arguments, severity=expected.severity)
            configuration = expectation.configuration.to_json_dict()
            if expected.table.empty:  # no row can fail, but Great Expectations fails _in_set on an empty table
                results.append((True, [], configuration))
                continue
            definition = asset.add_dataframe_asset(str(number)).add_batch_definition_whole_dataframe("all")
            batch = definition.get_batch({"dataframe": expected.table})
            result = batch.validate(expectation, result_format={"result_format": "COMPLETE"})
            if result.exception_info.get("raised_exception"):
                raise RuntimeError(f"Great Expectations failed on {expected.title}: {result.exception_info}")
            rows = result.result.get("unexpected_index_list") or []
            results.append((bool(result.success), list(rows), configuration))
    return results


def _pixel_text(pixel: Sequence[float]) -> str:
    """The values of a pixel; of more than three bands, the first three values."""
    few = ", ".join(f"{value:g}" for value in pixel[:3])
    return few + (f", … ({len(pixel)} bands)" if len(pixel) > 3 else "")


def _most_common(column: pd.Series) -> Any:
    return column.mode().iloc[0] if len(column) else None
