"""One row of the table of checks, and the rules of Great Expectations that it uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd


@dataclass(frozen=True)
class Expectation:
    """One row of the table of checks."""

    title: str  # what is expected
    problem: str  # message on failure, with {n}, the number of offenders, and {s} and {have} for the plural
    table: pd.DataFrame  # the rows that are checked; its first column names an offender
    rule: str  # class of Great Expectations …
    arguments: dict[str, Any]  # … and its arguments
    reason: str = ""  # why an image is rejected, with values of its row; empty for a warning
    advice: str = ""  # what to do about a warning

    @property
    def severity(self) -> str:
        """critical if offenders are rejected, which needs a reason; else warning."""
        return "critical" if self.reason else "warning"


def in_set(column: str, values: list[Any]) -> tuple[str, dict[str, Any]]:
    return "ExpectColumnValuesToBeInSet", {"column": column, "value_set": values}


def between(column: str, low: float | None, high: float | None) -> tuple[str, dict[str, Any]]:
    return "ExpectColumnValuesToBeBetween", {"column": column, "min_value": low, "max_value": high}


def not_null(column: str) -> tuple[str, dict[str, Any]]:
    return "ExpectColumnValuesToNotBeNull", {"column": column}


def most_common(column: pd.Series) -> Any:
    return column.mode().iloc[0] if len(column) else None
