"""Comparison of runs: their scores, whether these differ significantly, and the differences in settings and data."""

from __future__ import annotations

from pathlib import Path
from string import ascii_uppercase
from typing import Any

from simtrail.errors import InputError
from simtrail.evaluation.difference import correct, paired, unpaired
from simtrail.evaluation.names import TITLES
from simtrail.report.html import picture, render
from simtrail.report.wording import interval, number
from simtrail.tracking.evaluated import EvaluatedRun, load_runs

VERSIONS = {  # title → tag with the version of a run's data, split or code
    "data version (DVC md5)": "simtrail.data_md5",
    "split": "simtrail.split_hash",
    "commit": "mlflow.source.git.commit",
    "uncommitted changes": "git.dirty",
}
SCORING = ("prepare.", "evaluate.")  # parameters that change the meaning of a score
VALIDATION_CURVES = {
    "val_probe": "linear probe, validation",
    "val_knn": "kNN, validation",
    "val_effective_rank": "effective rank, validation",
}
Runs = dict[str, EvaluatedRun]  # run by its letter: A, B, C …


def compare(names: list[str], folder: Path) -> str:
    """The comparison as a table for the terminal; compare.html and the training curves are written to `folder`.

    Each name is a run's id, the beginning of an id, the run's name, models:/NAME/VERSION or models:/NAME@ALIAS. Every
    other run is compared with the first. Raises InputError for fewer than two different runs, for more than 26, for a
    name that matches no run or several, and for a run without evaluation.
    """
    if not 2 <= len(names) <= len(ascii_uppercase):
        raise InputError(f"compare: {len(names)} runs given: name 2 to 26, as in simtrail compare RUN_A RUN_B")
    runs: Runs = dict(zip(ascii_uppercase, load_runs(names), strict=False))
    task_names = dict.fromkeys(name for run in runs.values() for name in run.metrics["tasks"])
    tasks = [_compare_task(runs, name) for name in task_names]
    warnings = [warning for letter in list(runs)[1:] for warning in _warnings(runs, letter)]
    warnings += list(dict.fromkeys(warning for task in tasks for warning in task["warnings"]))
    folder.mkdir(parents=True, exist_ok=True)
    has_curves = _draw_curves(runs, folder / "curves.png")
    measures = dict.fromkeys(key for run in runs.values() for key in run.metrics["features"])
    page = render(
        "compare.html.j2",
        runs=runs,
        tasks=tasks,
        warnings=warnings,
        features={
            key.replace("_", " "): [number(run.metrics["features"].get(key)) for run in runs.values()]
            for key in measures
        },
        differing=_different_values(list(runs.values())),
        curves=picture(folder / "curves") if has_curves else None,
    )
    (folder / "compare.html").write_text(page, encoding="utf-8")
    return "\n".join(_terminal_lines(runs, tasks, warnings, folder / "compare.html"))


def _compare_task(runs: Runs, name: str) -> dict[str, Any]:
    """A task's name, warnings, and a row per classifier with a cell per run."""
    first = next(iter(runs))
    results = {letter: run.metrics["tasks"].get(name, {"scores": {}})["scores"] for letter, run in runs.items()}
    differences: dict[tuple[str, str], dict[str, Any]] = {}
    warnings = []
    for letter in list(runs)[1:]:
        if results[first] and results[letter]:
            by_classifier, new_warnings = _differences(runs, first, letter, name)
            differences |= {(letter, classifier): difference for classifier, difference in by_classifier.items()}
            warnings += new_warnings
    rows = []
    for classifier in (c for c in TITLES if any(c in scores for scores in results.values())):
        cells = [
            {
                "letter": letter,
                "accuracy": interval(scores.get(classifier, {}), "accuracy"),
                **differences.get((letter, classifier), {}),
            }
            for letter, scores in results.items()
        ]
        rows.append({"title": TITLES[classifier], "floor": TITLES[classifier].startswith("floor"), "cells": cells})
    return {"name": name, "warnings": warnings, "rows": rows}


def _differences(runs: Runs, first: str, other: str, task: str) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The difference in accuracy of each classifier between two runs, and warnings about their test images."""
    x, y = (runs[letter].test_images(task) for letter in (first, other))
    classifiers = [c for c in TITLES if c in x and c in y and x[c].notna().all() and y[c].notna().all()]
    correct_x, correct_y = correct(x, classifiers), correct(y, classifiers)
    block_x, block_y = x["block"].to_numpy(), y["block"].to_numpy()
    same_images, warnings = x["sha256"].equals(y["sha256"]), []
    if not same_images:
        warnings.append(
            f"{task}: {other} and {first} have different test images ({len(y)} and {len(x)}): the images may cause "
            "part of the difference in accuracy, and the intervals are not paired"
        )
    elif changed := int((x["truth"] != y["truth"]).sum()):
        warnings.append(f"{task}: the labels of {changed} test images differ between {other} and {first}")
    result = paired(correct_x, correct_y, block_x) if same_images else unpaired(correct_x, block_x, correct_y, block_y)
    columns = zip(classifiers, *(part.tolist() for part in (*result, result.significant)), strict=True)
    return {
        c: {"difference": f"{value:+.3f} ({low:+.3f} – {high:+.3f})", "significant": significant}
        for c, value, low, high, significant in columns
    }, warnings


def _warnings(runs: Runs, other: str) -> list[str]:
    """One warning for each difference between a run and the first run that makes their scores hard to compare."""
    first, warnings = next(iter(runs)), []
    for title in ("data version (DVC md5)", "split"):
        before, after = (runs[letter].tags.get(VERSIONS[title]) or "not recorded" for letter in (first, other))
        if before != after:
            warnings.append(f"{other} and {first} differ in the {title}: {after} and {before}")
    a, b = runs[first].params, runs[other].params
    keys = sorted(k for k in a.keys() | b.keys() if k.startswith(SCORING) and a.get(k) != b.get(k))
    if keys:
        warnings.append(f"{other} and {first} differ in the settings of prepare or evaluate: {', '.join(keys)}")
    return warnings


def _different_values(runs: list[EvaluatedRun]) -> dict[str, list[str]]:
    """Parameters and versions that are not the same in all runs, with a value per run."""
    keys = dict.fromkeys(key for run in runs for key in run.params)
    rows = {title: [run.tags.get(tag, "–") for run in runs] for title, tag in VERSIONS.items()}
    rows |= {key: [run.params.get(key, "–") for run in runs] for key in keys}
    return {key: values for key, values in rows.items() if len(set(values)) > 1}


def _draw_curves(runs: Runs, path: Path) -> bool:
    """Draws the loss and a validation measure of the runs; False if no run has either of them."""

    def curves(name: str) -> dict[str, tuple[list[int], list[float]]]:
        points = {letter: run.curve(name) for letter, run in runs.items()}
        return {letter: curve for letter, curve in points.items() if curve[0]}

    panels = {"loss": curves("loss")}
    for name, title in VALIDATION_CURVES.items():
        if len(panels) < 2 and (lines := curves(name)):
            panels[title] = lines
    if not any(panels.values()):
        return False
    from simtrail.report.figures.charts import run_curves

    run_curves(panels, list(runs), path)
    return True


def _terminal_lines(runs: Runs, tasks: list[dict[str, Any]], warnings: list[str], page: Path) -> list[str]:
    lines = [f"{letter}  {run.run_id[:8]}  {run.name}" for letter, run in runs.items()]
    lines += [f"warning: {warning}" for warning in warnings]
    for task in tasks:
        lines += ["", f"{task['name']:<28}{'accuracy':<25}difference to {next(iter(runs))}, with 95 % intervals"]
        for row in task["rows"]:
            for i, cell in enumerate(row["cells"]):
                start = f"{'' if i else row['title']:<26}{cell['letter']} {cell['accuracy']:<25}"
                significance = "significant" if cell.get("significant") else "not significant"
                lines.append(start + (f"{cell['difference']}  {significance}" if "difference" in cell else "").rstrip())
    if not tasks:
        lines += ["", f"{'no labels':<28}effective rank"]
        lines += [f"{letter:<28}{run.metrics['features']['effective_rank']:.1f}" for letter, run in runs.items()]
    return [*(line.rstrip() for line in lines), "", str(page)]
