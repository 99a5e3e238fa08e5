"""The checks of a dataset: Great Expectations on its manifest. No other module imports that library."""

from __future__ import annotations

import logging
import os
import warnings
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from simtrail.data.checking.curation import class_checks, image_checks
from simtrail.data.checking.expectation import Expectation, most_common
from simtrail.data.checking.file_checks import (
    file_checks,
    group_checks,
    label_checks,
    mask_checks,
    value_checks,
    wavelength_checks,
    with_copies,
)
from simtrail.data.dataset import Declaration
from simtrail.data.reading.decoded import BandFacts
from simtrail.params import Check

os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")


@dataclass(frozen=True)
class Finding:
    """One expectation with its result; `offenders` are image paths (class names, for the size of classes)."""

    title: str
    severity: str  # critical | warning
    success: bool
    problem: str  # what is wrong, with the number of offenders; empty on success
    offenders: list[str]
    expectation: dict[str, Any]
    advice: str = ""  # what to do; empty on success

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def validate(manifest: pd.DataFrame, params: Check, declaration: Declaration) -> tuple[list[Finding], dict[str, str]]:
    """Every finding about a manifest, and path → reasons for each image that must not be used.

    Facts about the bands that dataset.yaml does not declare are the most common ones among the files; so is the type
    of the pixels. Findings of severity `warning` never reject an image.
    """
    table = _expectations(manifest, params, declaration)
    findings, rejected = [], dict[str, list[str]]()
    for expected, (success, rows, configuration) in zip(table, _run(table), strict=True):
        offending = expected.table.loc[rows]
        offenders, n = offending.iloc[:, 0].tolist(), len(offending)
        problem = expected.problem.format(n=n, s="" if n == 1 else "s", have="has" if n == 1 else "have")
        findings.append(
            Finding(
                expected.title,
                expected.severity,
                success,
                "" if success else problem,
                offenders,
                configuration,
                "" if success else expected.advice,
            )
        )
        if expected.severity == "critical":
            for path, values in zip(offenders, offending.to_dict("records"), strict=True):
                rejected.setdefault(path, []).append(expected.reason.format(**values))
    return findings, {path: "; ".join(reasons) for path, reasons in sorted(rejected.items())}


def _expectations(manifest: pd.DataFrame, params: Check, declaration: Declaration) -> list[Expectation]:
    """The table of checks of a dataset, in the order in which they are reported."""
    images = with_copies(manifest)
    readable = images[images["readable"]]
    if (facts := most_common(manifest["facts"].dropna())) is not None:
        declaration = declaration.completed(BandFacts.model_validate_json(facts))
    bands = len(declaration.bands or ()) or most_common(readable["bands"])
    labelled = declaration.label is not None or bool(manifest["label"].notna().any())
    return [
        *file_checks(images, readable, params, bands),
        *value_checks(readable, declaration, bands),
        *(mask_checks(readable, params) if declaration.mask else []),
        *image_checks(images, readable, params),
        *wavelength_checks([nm for nm in declaration.wavelengths or () if nm is not None]),
        *(group_checks(images) if declaration.group else []),
        *(label_checks(images, params) + class_checks(images) if labelled else []),
    ]


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
            column = expected.table[[expected.arguments["column"]]]  # of the whole table, it would hash every value
            batch = definition.get_batch({"dataframe": column})
            result = batch.validate(expectation, result_format={"result_format": "COMPLETE"})
            if result.exception_info.get("raised_exception"):
                raise RuntimeError(f"Great Expectations failed on {expected.title}: {result.exception_info}")
            rows = result.result.get("unexpected_index_list") or []
            results.append((bool(result.success), list(rows), configuration))
    return results
