"""The checks a dataset must pass, stated as Great Expectations over its manifest. The only importer of that library."""

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

SATURATED = 0.01  # share of a band's pixels at its type's largest value that is warned of


@dataclass(frozen=True)
class Finding:
    """One expectation with its result; `offenders` are image paths (class names, for the size of classes)."""

    title: str
    severity: str  # critical | warning
    success: bool
    offenders: list[str]
    expectation: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def validate(
    manifest: pd.DataFrame, params: Check, *, declared: Declaration, labelled: bool, grouped: bool
) -> tuple[list[Finding], dict[str, str]]:
    """Every finding about a manifest, and path → reasons for each image that must not be used.

    `declared` is what dataset.yaml says, completed by what the files say of their bands; without a declared number of
    bands, and always for the type, what most images have is expected. Findings of severity `warning` never reject an
    image.
    """
    images = _evidence(manifest)
    readable = images[images["readable"]]
    expected_bands = len(declared.bands or ()) or _most_common(readable["bands"])
    expected_dtype = _most_common(readable["dtype"])
    classes = images["label"].value_counts().rename_axis("class").reset_index(name="images")
    side = f"{params.min_side} to {params.max_side} px"

    def among(column: str, values: list[Any], **kwargs: Any) -> tuple[str, dict[str, Any]]:
        return "ExpectColumnValuesToBeInSet", {"column": column, "value_set": values, **kwargs}

    def within(column: str, low: float | None, high: float | None) -> tuple[str, dict[str, Any]]:
        return "ExpectColumnValuesToBeBetween", {"column": column, "min_value": low, "max_value": high}

    # title, table, index column, expectation, severity, reason given for an offending row
    stated: list[tuple[str, pd.DataFrame, tuple[str, dict[str, Any]], str, str]] = [
        ("every image can be read", images, among("readable", [True]), "critical", "{reason}"),
        (
            f"every image has {expected_bands} bands",
            readable,
            among("bands", [expected_bands]),
            "critical",
            f"{{bands}} bands, expected {expected_bands}",
        ),
        (
            f"every image is {expected_dtype}",
            readable,
            among("dtype", [expected_dtype]),
            "critical",
            f"pixels are {{dtype}}, expected {expected_dtype}",
        ),
        (
            "every file says the same of its bands: names, wavelengths, bad bands, scale",
            readable[readable["bands"] == expected_bands],
            among("facts", [_most_common(readable["facts"])]),
            "critical",
            "names, wavelengths, bad bands or scale in its header differ from those of most files",
        ),
        (
            f"heights are {side}",
            readable,
            within("height", params.min_side, params.max_side),
            "critical",
            f"height {{height}} px, must be {side}",
        ),
        (
            f"widths are {side}",
            readable,
            within("width", params.min_side, params.max_side),
            "critical",
            f"width {{width}} px, must be {side}",
        ),
        ("no image holds NaN or Inf", readable, among("finite", [True]), "critical", "holds NaN or Inf"),
        ("no image is constant", readable, among("constant", [False]), "critical", "every pixel is {pixel}"),
        (
            "no image stands twice under different labels",
            readable,
            among("clash", [""]),
            "critical",
            "same bytes as {clash}, under another label",
        ),
        ("no image stands twice", readable, among("twin", [""]), "warning", "same bytes as {twin}"),
    ]
    if expected_dtype != "uint8":  # photographs of 8 bits are clipped by design
        rare = f"at most {SATURATED:.0%} of a band's pixels are saturated"
        stated.append((rare, readable, within("most_saturated", 0, SATURATED), "warning", ""))
    if str(expected_dtype).startswith(("int", "uint")) and expected_dtype not in ("int8", "uint8"):
        deep = images[["path"]].assign(largest=readable["largest"].max()).head(1)  # of all images: one may be dark
        wide = f"values use more than 8 bits of {expected_dtype}"
        stated.append((wide, deep, within("largest", 256, None), "warning", ""))
    if declared.scale:
        bright = "no reflectance is above 2"
        stated.append((bright, readable, within("largest", None, 2 * declared.scale), "warning", ""))
    if (expected_bands or 1) > 1:
        stated.append(("no band is constant", readable, among("constant_bands", [0]), "warning", ""))
    if declared.mask:
        cover = f"{params.min_mask_cover:g} to {params.max_mask_cover:g} of the image"
        masked = readable[readable["mask_cover"].notna()]
        stated += [
            (
                "every mask is binary",
                masked,
                among("mask_binary", [True]),
                "critical",
                "the mask has more than two values",
            ),
            (
                f"masks cover {cover}",
                masked,
                within("mask_cover", params.min_mask_cover, params.max_mask_cover),
                "critical",
                f"the mask covers {{mask_cover:.3g}} of the image, must be {cover}",
            ),
        ]
    if wavelengths := [nm for nm in declared.wavelengths or () if nm is not None]:
        rising = pd.DataFrame({"wavelength": [f"{nm:g} nm" for nm in wavelengths], "nm": wavelengths})
        rising["nm"] *= 1 if wavelengths[0] <= wavelengths[-1] else -1  # red before blue is an order too
        order = "ExpectColumnValuesToBeIncreasing", {"column": "nm", "strictly": True}
        stated.append(("wavelengths rise, or fall, from band to band", rising, order, "warning", ""))
    if grouped:
        stated.append(
            (
                "every image has its group",
                images,
                ("ExpectColumnValuesToNotBeNull", {"column": "group"}),
                "critical",
                "no group: the declared group column is empty",
            )
        )
    if labelled:
        stated.append(
            (
                "every image has its label",
                images,
                ("ExpectColumnValuesToNotBeNull", {"column": "label"}),
                "warning",
                "no label",
            )
        )
        stated.append(
            (
                f"every class has {params.min_images_per_class} images or more",
                classes,
                within("images", params.min_images_per_class, None),
                "warning",
                "",
            )
        )

    findings, rejected = [], dict[str, list[str]]()
    for (title, table, _, severity, reason), (success, rows, expectation) in zip(stated, _run(stated), strict=True):
        offenders = table.loc[rows].iloc[:, 0].tolist()
        findings.append(Finding(title, severity, success, offenders, expectation))
        if severity == "critical":
            for path, values in zip(offenders, table.loc[rows].to_dict("records"), strict=True):
                rejected.setdefault(path, []).append(reason.format(**values))
    return findings, {path: "; ".join(reasons) for path, reasons in sorted(rejected.items())}


def _largest(values: list[float] | None, facts: str | None) -> float:
    """The largest value of an image's good bands."""
    if values is None or facts is None:
        return np.nan
    good = _good(facts)
    return max((value for i, value in enumerate(values) if not good or good[i]), default=np.nan)


@cache
def _good(facts: str) -> list[bool] | None:
    return BandFacts.model_validate_json(facts).good


def _evidence(manifest: pd.DataFrame) -> pd.DataFrame:
    """The manifest with the path of each exact duplicate's `twin`, and of one labelled otherwise, its `clash`."""
    images = manifest.assign(
        pixel=["" if low is None else _brief(low) for low in manifest["min"]],
        twin="",
        clash="",
        most_saturated=[np.nan if values is None else max(values) for values in manifest["saturated"]],
        largest=[_largest(values, facts) for values, facts in zip(manifest["max"], manifest["facts"], strict=True)],
    ).reset_index(drop=True)
    repeated = images[images["sha256"].notna() & images["sha256"].duplicated(keep=False)]
    for _, copies in repeated.groupby("sha256"):
        for i in copies.index:
            other = copies.drop(i)
            differs = other[
                other["label"].ne(copies.at[i, "label"]) & other["label"].notna() & pd.notna(copies.at[i, "label"])
            ]
            images.at[i, "twin"] = other["path"].iloc[0]
            images.at[i, "clash"] = differs["path"].iloc[0] if len(differs) else ""
    return images


def _run(stated: list[Any]) -> list[tuple[bool, list[int], dict[str, Any]]]:
    """For each statement: whether it holds, the index of every row that breaks it, and its configuration."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import great_expectations as gx

        logging.getLogger("great_expectations").setLevel(logging.ERROR)
        context = gx.get_context(mode="ephemeral")
        context.variables.progress_bars = {"globally": False, "metric_calculations": False}  # type: ignore[assignment]
        asset = context.data_sources.add_pandas("manifest")
        results: list[tuple[bool, list[int], dict[str, Any]]] = []
        for number, (_, table, (kind, arguments), severity, _) in enumerate(stated):
            batch = (
                asset.add_dataframe_asset(str(number))
                .add_batch_definition_whole_dataframe("all")
                .get_batch({"dataframe": table})
            )
            expectation = getattr(gx.expectations, kind)(**arguments, severity=severity)
            if table.empty:  # nothing there to break it, and GE would call an empty table a failure of set membership
                results.append((True, [], expectation.configuration.to_json_dict()))
                continue
            result = batch.validate(expectation, result_format={"result_format": "COMPLETE"})
            if result.exception_info.get("raised_exception"):
                raise RuntimeError(f"Great Expectations failed on {kind} {arguments}: {result.exception_info}")
            rows = result.result.get("unexpected_index_list") or []
            results.append((bool(result.success), list(rows), expectation.configuration.to_json_dict()))
    return results


def _brief(pixel: Sequence[float]) -> str:
    """The values of a pixel, the first few of many."""
    few = ", ".join(f"{value:g}" for value in pixel[:3])
    return few + (f", … ({len(pixel)} bands)" if len(pixel) > 3 else "")


def _most_common(column: pd.Series) -> Any:
    return column.mode().iloc[0] if len(column) else None
