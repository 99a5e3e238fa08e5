"""The report of a run as one self-contained HTML page, and the card of its model."""

from __future__ import annotations

import base64
import re
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from simtrail.data.page import render
from simtrail.evaluation.bands import band_title
from simtrail.evaluation.scores import FEW_GROUPS, FLOORS, TITLES
from simtrail.evaluation.tasks import UNSEEN

MAIN = "linear_probe"  # fixed beforehand: the best of all classifiers would be chosen on the test split
SCORES = ("accuracy", "balanced_accuracy", "precision", "f1", "top5", "calibration_error")  # macro recall is the second
ROWS = 20  # of a table; the rest are in its CSV file
LARGEST_SVG, LARGEST_MAP = 300_000, 5_000_000  # bytes
HEADINGS = {"r2": "R²", "f1": "F1", "q": "q (false discovery rate)", "angle": "angle, °", "limit": "limit, °"}
HEADINGS |= {"top5": "top 5", "same_group": "same group", "drop": "accuracy lost"}


def report_page(facts: dict[str, Any], folder: Path) -> str:
    """The page as text, without anything from the network; what there are no data for is left out.

    `facts` holds name, created (ISO), params, validation, statistics, history (list of rows), metrics, tables (name →
    DataFrame) and lineage (commit, dirty, run_id, run_url, versions). `folder` holds what the stages wrote:
    pretrain/*.png and evaluate/figures/*; the page is meant to lie in a folder inside it, from which it links a map too
    big to embed.
    """
    drawn = folder / "evaluate/figures"
    map_page = folder / "evaluate/map.html"
    size = map_page.stat().st_size if map_page.exists() else 0
    examples = sorted(path.stem for path in drawn.glob("class_examples-*.png"))
    return render(
        Path(__file__).with_name("report.html.j2"),
        **facts,
        **_story(facts),
        picture=lambda name: picture(folder / name),
        grid=partial(_grid, facts["tables"]),
        examples=sorted(examples, key=lambda stem: int(stem.rpartition("-")[2])),
        map_text=map_page.read_text(encoding="utf-8") if 0 < size <= LARGEST_MAP else None,
        map_is_big=size > LARGEST_MAP,
        headings=partial(re.findall, r'<h2 id="(.+?)">(.+?)</h2>'),
    )


def model_card(facts: dict[str, Any]) -> str:
    """The card of the model in Markdown, after Mitchell et al. 2019 (arXiv 1810.03993); `facts` as of report_page."""
    return render(Path(__file__).with_name("card.md.j2"), **facts, **_story(facts))


def verdict(task: dict[str, Any]) -> str:
    """One sentence that says whether the task's linear probe beats every floor: whether the 95 % interval of the
    difference on the same test images leaves out 0."""
    closest = min(task["gains"], key=lambda name: task["gains"][name]["low"])
    gain = task["gains"][closest]
    floor = f"{_title(closest).removeprefix('floor: ')}, {interval(task['scores'][closest], 'accuracy')}"
    by = f"by {number(gain['value'])} (95 % interval {number(gain['low'])} – {number(gain['high'])})"
    if beats_floors(task):
        return f"It beats every floor; the closest of them, {floor}, {by}."
    if gain["value"] <= 0:
        return f"It does not beat its floor, {floor}: nothing here shows that this encoder is of use for it."
    return (
        f"It is above its floor, {floor}, {by}, but that interval reaches 0: the difference may be chance, or a matter "
        "of too few test groups."
    )


def beats_floors(task: dict[str, Any]) -> bool:
    """Whether the linear probe is more accurate than every floor, beyond the interval of the difference."""
    return all(gain["low"] > 0 for gain in task["gains"].values())


def interval(scores: dict[str, float], score: str) -> str:
    """A score with its 95 % interval, as `0.881 (0.851 – 0.907)`; a dash where there is none."""
    if scores.get(score) is None:
        return "–"
    value, low, high = (scores.get(score + bound) for bound in ("", "_low", "_high"))
    return number(value) if low is None else f"{number(value)} ({number(low)} – {number(high)})"


def number(value: Any) -> str:
    """A value as tables show it: three decimals, whole numbers without, a dash for what is missing."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or value != value or value is pd.NA:
        return "–"
    return f"{value:.3f}".replace("-", "−") if isinstance(value, float) else str(value)


def picture(path: Path) -> str | None:
    """A figure, named without suffix, as a data URI: the SVG, unless the PNG is there and the SVG is big; or None."""
    svg, png = path.with_name(f"{path.name}.svg"), path.with_name(f"{path.name}.png")
    if svg.exists() and not (png.exists() and svg.stat().st_size > LARGEST_SVG):
        return f"data:image/svg+xml;base64,{base64.b64encode(svg.read_bytes()).decode()}"
    return f"data:image/png;base64,{base64.b64encode(png.read_bytes()).decode()}" if png.exists() else None


def _story(facts: dict[str, Any]) -> dict[str, Any]:
    """What page and card both tell."""
    tasks, recipe = facts["metrics"]["tasks"], facts["statistics"]["recipe"]
    nm = recipe.get("wavelengths") or [None] * len(recipe["bands"])
    return {
        "bands": [band_title(*band) for band in zip(recipe["bands"], nm, strict=True)],
        "tasks": tasks,
        "seen": {name: task for name, task in tasks.items() if not name.endswith(UNSEEN)},
        "unseen": {name: task for name, task in tasks.items() if name.endswith(UNSEEN)},
        "seeds": {
            _title(name): f"{number(each['mean'])} ± {number(each['sd'])} (standard deviation of {each['seeds']})"
            for name, each in facts["metrics"].get("seeds", {}).items()
        },
        "main": next(iter(tasks), None),
        "score_names": [
            s for s in SCORES if any(s in row for task in tasks.values() for row in task["scores"].values())
        ],
        "failed_checks": [f for f in facts["validation"]["findings"] if not f["success"]],
        "terms": [f"{w:g} × {name}" for name, w in facts["params"]["pretrain"]["terms"].items() if w],
        "limits": _limits(facts),
        "parameters": _flat(facts["params"]),
        "floors": FLOORS,
        "probe": MAIN,
        "interval": interval,
        "number": number,
        "title": _title,
        "verdict": verdict,
    }


def _limits(facts: dict[str, Any]) -> list[str]:
    tasks, checks, params = facts["metrics"]["tasks"], facts["validation"], facts["params"]
    lines = []
    for name, task in tasks.items():
        if not beats_floors(task):
            lines.append(f"{name}: the encoder is not shown to beat its floors.")
        if task["groups"] == task["images"]:
            lines.append(
                f"{name}: every test image counts as a group of its own. Where several images show one specimen, the "
                "intervals are too narrow and the scores too high: declare a group column."
            )
        if task["groups"] < FEW_GROUPS:
            lines.append(f"{name}: only {task['groups']} test groups, too few for the intervals to be trusted.")
        if task.get("unknown"):
            lines.append(f"{name}: {task['unknown']} test images of classes without a training image are not scored.")
    if not tasks:
        lines.append("No labels: the measures say how the features are spread, not whether they mean anything.")
    else:
        lines.append("Intervals speak of other test groups of the same kind, not of other cameras, places or years.")
    if len(seeds := params["pretrain"]["seeds"]) == 1:
        lines.append(f"One training run (seed {seeds[0]}): how much another seed changes is not known.")
    if checks["rejected"]:
        lines.append(f"{len(checks['rejected'])} of {checks['images']} images failed the checks and were left out.")
    if facts["lineage"].get("dirty"):
        lines.append("The code had changes that are not committed; they are kept with the run as git.diff.")
    return [
        *lines,
        "Every model chosen by these test scores makes them a little too good; choose on the validation split.",
    ]


def _grid(
    tables: dict[str, pd.DataFrame],
    name: str,
    task: str | None = None,
    by: str | None = None,
    descending: bool = False,
    rows: int = ROWS,
) -> dict[str, Any] | None:
    """A table to show, or None where there are no rows: columns with bounds become one, the first rows are kept."""
    table = tables.get(name)
    if table is not None and task is not None:
        table = table[table["task"] == task].drop(columns="task")
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
        return _title(value)
    if column in ("p", "q") and value < 0.001:
        return "< 0.001"
    return interval(row, column) if value == value else "–"


def _title(name: str) -> str:
    return TITLES.get(name, name.replace("_", " "))


def _flat(tree: dict[str, Any]) -> dict[str, Any]:
    return dict(pd.json_normalize(tree).to_dict("records")[0])
