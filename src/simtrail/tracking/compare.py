"""Runs side by side: their scores, whether they differ by more than chance, and what was different about them."""

from __future__ import annotations

import json
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from simtrail.data.page import render
from simtrail.errors import InputError
from simtrail.evaluation.difference import paired, unpaired
from simtrail.evaluation.page import interval, number, picture
from simtrail.evaluation.scores import TITLES
from simtrail.tracking.store import open_store

METRICS, PREDICTIONS = "metrics.json", "predictions.parquet"
VERSIONS = {  # tags that say what a run was made from
    "data version (DVC md5)": "simtrail.data_md5",
    "split": "simtrail.split_hash",
    "commit": "mlflow.source.git.commit",
    "changes not committed": "git.dirty",
}
JUDGED = ("prepare.", "evaluate.")  # parameters that decide what a score means
LOOKS = {"val_probe": "linear probe, validation", "val_knn": "kNN, validation"}
LOOKS |= {"val_effective_rank": "effective rank, validation"}


@dataclass(frozen=True)
class Evaluated:
    """A run with its evaluation, and the letter that it goes by."""

    letter: str
    run: Run
    metrics: dict[str, Any]
    predictions: pd.DataFrame  # task, path, sha256, block, truth, and a column per classifier; empty without labels

    def test(self, task: str) -> pd.DataFrame:
        """The test images of a task, in an order of their own."""
        return self.predictions[self.predictions["task"] == task].sort_values(["sha256", "path"], ignore_index=True)


def compare(names: list[str], folder: Path) -> str:
    """The comparison as a table for the terminal; compare.html and the training curves are written to `folder`.

    Each name is a run's id, the beginning of it, the run's name, models:/NAME/VERSION or models:/NAME@ALIAS. The first
    is what the others are compared with. Raises InputError for fewer than two different runs, more than 26, a name that
    fits no run or several, and a run without evaluation.
    """
    if not 2 <= len(names) <= len(ascii_uppercase):
        raise InputError(f"compare: {len(names)} runs given: name 2 to 26, as in simtrail compare RUN_A RUN_B")
    client = open_store()
    runs = [
        _load(client, find(client, name), name, letter) for name, letter in zip(names, ascii_uppercase, strict=False)
    ]
    ids = [run.run.info.run_id for run in runs]
    if twice := next((i for i, run_id in enumerate(ids) if run_id in ids[:i]), None):
        raise InputError(f"{names[twice]}: is run {ids[twice][:8]}, which is named already: name different runs")
    tasks = list(dict.fromkeys(task for run in runs for task in run.metrics["tasks"]))
    told = [_task(runs, task) for task in tasks]
    warnings = [line for other in runs[1:] for line in _warnings(runs[0], other)]
    warnings += list(dict.fromkeys(line for task in told for line in task["warnings"]))
    folder.mkdir(parents=True, exist_ok=True)
    drawn = _curves(client, runs, folder / "curves.png")
    measures = list(dict.fromkeys(key for run in runs for key in run.metrics["features"]))
    page = render(
        Path(__file__).with_name("compare.html.j2"),
        runs=runs,
        tasks=told,
        warnings=warnings,
        features={key.replace("_", " "): [number(r.metrics["features"].get(key)) for r in runs] for key in measures},
        differing=_differing(runs),
        curves=picture(folder / "curves") if drawn else None,
    )
    (folder / "compare.html").write_text(page, encoding="utf-8")
    return "\n".join(_text(runs, told, warnings, folder / "compare.html"))


def find(client: MlflowClient, name: str) -> Run:
    """The run of a run id, the beginning of one, a run name, or a registered version; InputError where not just one."""
    if name.startswith("models:/"):
        return client.get_run(_registered(client, name))
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    quote = '"' if "'" in name else "'"
    queries = [f"attributes.run_id LIKE '{name}%'"] if re.fullmatch("[0-9a-f]{1,32}", name) else []
    queries.append(f"attributes.run_name = {quote}{name.replace(quote, '')}{quote}")
    runs = {run.info.run_id: run for query in queries for run in client.search_runs(experiments, query, max_results=6)}
    found = [run for run in runs.values() if run.info.run_id.startswith(name) or run.info.run_name == name]
    if len(found) > 1:
        raise InputError(f"{name}: fits several runs: {_listed(found[:5])}; give the id of one")
    if found:
        return found[0]
    latest = client.search_runs(experiments, max_results=5)
    raise InputError(
        f"{name}: no such run; give a run's id, the beginning of it, its name, or models:/NAME/VERSION; the latest are "
        f"{_listed(list(latest)) or 'none'}"
    )


def _registered(client: MlflowClient, uri: str) -> str:
    parts = re.fullmatch(r"models:/([^/@]+)(?:/(\d+)|@(.+))", uri)
    if not parts:
        raise InputError(f"{uri}: must look like models:/NAME/VERSION or models:/NAME@champion")
    name, version, alias = parts.groups()
    try:
        found = client.get_model_version(name, version) if version else client.get_model_version_by_alias(name, alias)
    except MlflowException as fault:
        raise InputError(f"{uri}: {fault.message.rstrip('.')}; see the models in the MLflow UI: make ui") from None
    return str(found.run_id)


def _listed(runs: list[Run]) -> str:
    return ", ".join(f"{run.info.run_id[:8]} ({run.info.run_name})" for run in runs)


def _load(client: MlflowClient, run: Run, name: str, letter: str) -> Evaluated:
    run_id = run.info.run_id
    there = {file.path for file in client.list_artifacts(run_id)}
    if METRICS not in there:
        raise InputError(f"{name}: run {run_id[:8]} has no evaluation: name one that the evaluate stage has ended for")
    with tempfile.TemporaryDirectory() as scratch:
        metrics = json.loads(Path(client.download_artifacts(run_id, METRICS, scratch)).read_text(encoding="utf-8"))
        if "tasks" not in metrics or (metrics["tasks"] and PREDICTIONS not in there):
            raise InputError(f"{name}: run {run_id[:8]} was evaluated by an older simtrail: evaluate it again")
        if not metrics["tasks"]:
            return Evaluated(letter, run, metrics, pd.DataFrame())
        predictions = pd.read_parquet(client.download_artifacts(run_id, PREDICTIONS, scratch))
    return Evaluated(letter, run, metrics, predictions)


def _task(runs: list[Evaluated], task: str) -> dict[str, Any]:
    """What is told of a task: name, warnings, and a row per classifier with a cell per run."""
    names = {c for run in runs for c in run.metrics["tasks"].get(task, {"scores": {}})["scores"]}
    ordered = [c for c in TITLES if c in names]
    differences: dict[tuple[str, str], dict[str, Any]] = {}
    warnings = []
    for other in runs[1:]:
        if all(task in run.metrics["tasks"] for run in (runs[0], other)):
            found, lines = _differences(runs[0], other, task)
            differences |= {(other.letter, classifier): told for classifier, told in found.items()}
            warnings += lines
    rows = []
    for c in ordered:
        scores = [run.metrics["tasks"].get(task, {"scores": {}})["scores"].get(c, {}) for run in runs]
        cells = [
            {"letter": run.letter, "accuracy": interval(score, "accuracy"), **differences.get((run.letter, c), {})}
            for run, score in zip(runs, scores, strict=True)
        ]
        rows.append({"title": TITLES[c], "floor": TITLES[c].startswith("floor"), "cells": cells})
    return {"name": task, "warnings": warnings, "rows": rows}


def _differences(first: Evaluated, other: Evaluated, task: str) -> tuple[dict[str, dict[str, Any]], list[str]]:
    x, y = first.test(task), other.test(task)
    classifiers = [c for c in TITLES if c in x and c in y and x[c].notna().all() and y[c].notna().all()]
    right_x, right_y = (table[classifiers].eq(table["truth"], axis=0).to_numpy() for table in (x, y))
    block_x, block_y = x["block"].to_numpy(), y["block"].to_numpy()
    same, lines = x["sha256"].equals(y["sha256"]), []
    if not same:
        lines.append(
            f"{task}: test images of {other.letter} and {first.letter} differ ({len(y)} and {len(x)}), so that what is "
            "told apart is not encoders alone; not paired"
        )
    elif changed := int((x["truth"] != y["truth"]).sum()):
        lines.append(f"{task}: {changed} test images have another label in {other.letter} than in {first.letter}")
    found = paired(right_x, right_y, block_x) if same else unpaired(right_x, block_x, right_y, block_y)
    columns = zip(classifiers, *(part.tolist() for part in (*found, found.exceeds)), strict=True)
    return {
        c: {"difference": f"{value:+.3f} ({low:+.3f} – {high:+.3f})", "exceeds": exceeds}
        for c, value, low, high, exceeds in columns
    }, lines


def _warnings(first: Evaluated, other: Evaluated) -> list[str]:
    lines = []
    for title in ("data version (DVC md5)", "split"):
        mine, theirs = (run.run.data.tags.get(VERSIONS[title]) or "not noted" for run in (first, other))
        if mine != theirs:
            lines.append(f"{other.letter} has another {title} than {first.letter}: {theirs} against {mine}")
    a, b = first.run.data.params, other.run.data.params
    keys = sorted(k for k in a.keys() | b.keys() if k.startswith(JUDGED) and a.get(k) != b.get(k))
    if keys:
        lines.append(
            f"{other.letter} was prepared or evaluated with other settings than {first.letter}: {', '.join(keys)}"
        )
    return lines


def _differing(runs: list[Evaluated]) -> dict[str, list[str]]:
    """Parameters and versions that are not the same in all runs: a value per run."""
    keys = dict.fromkeys(key for run in runs for key in run.run.data.params)
    rows = {title: [run.run.data.tags.get(tag, "–") for run in runs] for title, tag in VERSIONS.items()}
    rows |= {key: [run.run.data.params.get(key, "–") for run in runs] for key in keys}
    return {key: values for key, values in rows.items() if len(set(values)) > 1}


def _curves(client: MlflowClient, runs: list[Evaluated], path: Path) -> bool:
    """Draws the loss and a validation measure of the runs; False where no run has any."""

    def history(name: str) -> dict[str, list[Any]]:
        found = {run.letter: client.get_metric_history(run.run.info.run_id, f"curves/{name}") for run in runs}
        return {letter: points for letter, points in found.items() if points}

    panels = {"loss": history("loss")}
    for name, title in LOOKS.items():
        if len(panels) < 2 and (found := history(name)):
            panels[title] = found
    if not any(panels.values()):
        return False
    import matplotlib.pyplot as plt

    from simtrail.evaluation.figures.style import WIDTH, mark, write

    figure, axes = plt.subplots(1, len(panels), figsize=(WIDTH, 2.6), squeeze=False)
    for axis, (title, lines) in zip(axes[0], panels.items(), strict=True):
        for i, run in enumerate(runs):
            if points := lines.get(run.letter):
                colour, marker = mark(i)
                x, y = [p.step for p in points], [p.value for p in points]
                axis.plot(x, y, color=colour, marker=marker if len(x) < 15 else "", markersize=4, label=run.letter)
        axis.set(xlabel="epoch", ylabel=title)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend()
    write(figure, path)
    return True


def _text(runs: list[Evaluated], tasks: list[dict[str, Any]], warnings: list[str], page: Path) -> list[str]:
    lines = [f"{run.letter}  {run.run.info.run_id[:8]}  {run.run.info.run_name}" for run in runs]
    lines += [f"warning: {line}" for line in warnings]
    for task in tasks:
        lines += ["", f"{task['name']:<28}{'accuracy':<25}against {runs[0].letter}, with 95 % intervals"]
        for row in task["rows"]:
            for i, cell in enumerate(row["cells"]):
                start = f"{'' if i else row['title']:<26}{cell['letter']} {cell['accuracy']:<25}"
                verdict = "exceeds it" if cell.get("exceeds") else "does not exceed it"
                lines.append(start + (f"{cell['difference']}  {verdict}" if "difference" in cell else "").rstrip())
    if not tasks:
        lines += ["", f"{'no labels':<28}effective rank"]
        lines += [f"{run.letter:<28}{run.metrics['features']['effective_rank']:.1f}" for run in runs]
    return [*(line.rstrip() for line in lines), "", str(page)]
