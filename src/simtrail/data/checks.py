"""The checks a dataset must pass, stated as Great Expectations over its manifest. The only importer of that library."""

from __future__ import annotations

import logging
import os
import warnings
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from simtrail.params import Check

os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")


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
    manifest: pd.DataFrame, params: Check, *, bands: int | None, labelled: bool, grouped: bool
) -> tuple[list[Finding], dict[str, str]]:
    """Every finding about a manifest, and path → reasons for each image that must not be used.

    `bands` is the declared number of bands; without one, and always for the type, what most images have is expected.
    Findings of severity `warning` never reject an image.
    """
    images = _evidence(manifest)
    readable = images[images["readable"]]
    expected_bands = bands or _most_common(readable["bands"])
    expected_dtype = _most_common(readable["dtype"])
    classes = images["label"].value_counts().rename_axis("class").reset_index(name="images")
    side = f"{params.min_side} to {params.max_side} px"

    def among(column: str, values: list[Any], **kwargs: Any) -> tuple[str, dict[str, Any]]:
        return "ExpectColumnValuesToBeInSet", {"column": column, "value_set": values, **kwargs}

    def within(column: str, low: int, high: int | None) -> tuple[str, dict[str, Any]]:
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
        ("no image is constant", readable, among("constant", [False]), "critical", "every pixel is {min}"),
        (
            "no image stands twice under different labels",
            readable,
            among("clash", [""]),
            "critical",
            "same bytes as {clash}, under another label",
        ),
        ("no image stands twice", readable, among("twin", [""]), "warning", "same bytes as {twin}"),
    ]
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


def _evidence(manifest: pd.DataFrame) -> pd.DataFrame:
    """The manifest with the path of each exact duplicate's `twin`, and of one labelled otherwise, its `clash`."""
    images = manifest.assign(twin="", clash="").reset_index(drop=True)
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


def _most_common(column: pd.Series) -> Any:
    return column.mode().iloc[0] if len(column) else None
