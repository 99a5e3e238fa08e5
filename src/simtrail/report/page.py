"""The report of a run as one self-contained HTML page."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from simtrail.report.card import content
from simtrail.report.html import picture, render
from simtrail.report.wording import interval, title

ROWS = 20  # rows shown of a table; all rows are in its CSV file
LARGEST_MAP = 5_000_000  # bytes
HEADINGS = {"r2": "R²", "f1": "F1", "q": "q (false discovery rate)", "angle": "angle, °", "limit": "limit, °"}
HEADINGS |= {"top5": "top 5", "same_group": "same group", "drop": "accuracy lost"}


def report_page(facts: dict[str, Any], folder: Path) -> str:
    """The page as text. It loads nothing from the network; sections without data are left out.

    `facts` holds name, created (ISO), params, validation, statistics, history (list of rows), metrics, tables (name →
    DataFrame) and lineage (commit, dirty, run_id, run_url, versions). `folder` holds the files of the stages:
    pretrain/*.png and evaluate/figures/*. Save the page in a subfolder of `folder`: it links a map that is too big to
    embed as ../evaluate/map.html.
    """
    map_page = folder / "evaluate/map.html"
    size = map_page.stat().st_size if map_page.exists() else 0
    examples = [path.stem for path in (folder / "evaluate/figures").glob("class_examples-*.png")]
    return render(
        "report.html.j2",
        **facts,
        **content(facts),
        picture=lambda name: picture(folder / name),
        grid=partial(_grid, facts["tables"]),
        examples=sorted(examples, key=lambda stem: int(stem.rpartition("-")[2])),
        map_text=map_page.read_text(encoding="utf-8") if 0 < size <= LARGEST_MAP else None,
        map_is_big=size > LARGEST_MAP,
        headings=partial(re.findall, r'<h2 id="(.+?)">(.+?)</h2>'),
    )


def _grid(
    tables: dict[str, pd.DataFrame],
    name: str,
    task: str | None = None,
    by: str | None = None,
    descending: bool = False,
    rows: int = ROWS,
    kind: str | None = None,
) -> dict[str, Any] | None:
    """The first rows of a table for the template, each value with its interval in one cell; None without rows."""
    table = tables.get(name)
    if table is not None and task is not None:
        table = table[table["task"] == task].drop(columns="task")
    if table is not None and kind is not None:  # columns that another kind needs are left out
        table = table[table["kind"] == kind].drop(columns="kind").dropna(axis=1, how="all")
    if table is None or table.empty:
        return None
    if by:
        table = table.sort_values(by, ascending=not descending, kind="stable")
    table = table.rename(columns={"low": "mean_low", "high": "mean_high"})
    columns = [c for c in table if not c.endswith(("_low", "_high"))]
    numeric = {c: is_numeric_dtype(table[c]) and not is_bool_dtype(table[c]) for c in columns}
    return {
        "name": name,
        "columns": [(HEADINGS.get(c, c.replace("_", " ")), numeric[c]) for c in columns],
        "rows": [[(_cell(row, c), numeric[c]) for c in columns] for row in table.head(rows).to_dict("records")],
        "more": max(0, len(table) - rows),
    }


def _cell(row: dict[str, Any], column: str) -> str:
    value = row[column]
    if column == "classifier":
        return title(value)
    if column in ("p", "q") and value < 0.001:
        return "< 0.001"
    return interval(row, column) if value == value else "–"
