"""Evaluated runs: finds them by name in the store and loads their results."""

from __future__ import annotations

import json
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from simtrail.errors import InputError
from simtrail.tracking.run import EXPERIMENT
from simtrail.tracking.store import open_store

SCORES, OLD_SCORES, PREDICTIONS = "scores.json", "metrics.json", "predictions.parquet"  # old: of earlier versions


@dataclass(frozen=True)
class EvaluatedRun:
    """A run with the results of its evaluation."""

    run_id: str
    name: str
    params: dict[str, str]
    tags: dict[str, str]
    metrics: dict[str, Any]  # scores.json
    predictions: pd.DataFrame  # task, path, sha256, block, truth, and a column per classifier; empty without labels

    def test_images(self, task: str) -> pd.DataFrame:
        """The predictions of a task, sorted by image, so that runs with the same test images have the same order."""
        return sorted_images(self.predictions[self.predictions["task"] == task])

    def curve(self, name: str) -> tuple[list[int], list[float]]:
        """The epochs and values of a training curve, such as loss or val_knn; empty where it was not logged."""
        points = open_store().get_metric_history(self.run_id, f"curves/{name}")
        return [p.step for p in points], [p.value for p in points]


def sorted_images(predictions: pd.DataFrame) -> pd.DataFrame:
    """The rows in an order that depends only on the images."""
    return predictions.sort_values(["sha256", "path"], ignore_index=True)


def load_run(client: MlflowClient, run_id: str) -> EvaluatedRun:
    """The evaluated run with this id; InputError if it has no evaluation."""
    return _load(client, client.get_run(run_id), run_id)


def load_runs(names: list[str]) -> list[EvaluatedRun]:
    """The evaluated runs of these names, each as for `find`.

    Raises InputError for a run that is named twice or has no evaluation.
    """
    client = open_store()
    runs: list[EvaluatedRun] = []
    for name in names:
        run = _load(client, find(client, name), name)
        if run.run_id in (other.run_id for other in runs):
            raise InputError(f"{name}: is run {run.run_id[:8]}, which is given already: name different runs")
        runs.append(run)
    return runs


def find(client: MlflowClient, name: str) -> Run:
    """The run of a run id, the beginning of an id, a run name, an experiment of DVC, or a registered version.

    Raises InputError unless exactly one run matches.
    """
    if name.startswith("models:/"):
        return client.get_run(_run_of_version(client, name))
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    quote = '"' if "'" in name else "'"
    queries = [f"attributes.run_id LIKE '{name}%'"] if re.fullmatch("[0-9a-f]{1,32}", name) else []
    quoted = f"{quote}{name.replace(quote, '')}{quote}"
    queries += [f"attributes.run_name = {quoted}", f"tags.`{EXPERIMENT}` = {quoted}"]
    matches: list[Run] = []
    for query in queries:
        matches = matches or [run for run in client.search_runs(experiments, query, max_results=6) if _is(run, name)]
    if len(matches) > 1:
        raise InputError(f"{name}: matches several runs: {_short_list(matches[:5])}; give the id of one")
    if matches:
        return matches[0]
    latest = client.search_runs(experiments, max_results=5)
    if not latest:
        raise InputError(f"{name}: no such run; there are no runs yet")
    raise InputError(
        f"{name}: no such run; give a run's id, the beginning of it, its name, or models:/NAME/VERSION; the latest "
        f"runs are {_short_list(list(latest))}"
    )


def _is(run: Run, name: str) -> bool:
    """Whether a run has this name; queries can't hold every quote."""
    return run.info.run_id.startswith(name) or name in (run.info.run_name, run.data.tags.get(EXPERIMENT))


def _run_of_version(client: MlflowClient, uri: str) -> str:
    parts = re.fullmatch(r"models:/([^/@]+)(?:/(\d+)|@(.+))", uri)
    if not parts:
        raise InputError(f"{uri}: must look like models:/NAME/VERSION or models:/NAME@champion")
    name, number, alias = parts.groups()
    try:
        version = client.get_model_version(name, number) if number else client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        raise InputError(f"{uri}: {error.message.rstrip('.')}; see the models in the MLflow UI: simtrail ui") from None
    return str(version.run_id)


def _short_list(runs: list[Run]) -> str:
    return ", ".join(f"{run.info.run_id[:8]} ({run.info.run_name})" for run in runs)


def _load(client: MlflowClient, run: Run, name: str) -> EvaluatedRun:
    run_id, predictions = run.info.run_id, pd.DataFrame()
    files = {file.path for file in client.list_artifacts(run_id)}
    scores = SCORES if SCORES in files else OLD_SCORES
    if scores not in files:
        raise InputError(f"{name}: run {run_id[:8]} has no evaluation: name a run that the evaluate stage has finished")
    with tempfile.TemporaryDirectory() as scratch:
        metrics = json.loads(Path(client.download_artifacts(run_id, scores, scratch)).read_text(encoding="utf-8"))
        if "tasks" not in metrics or (metrics["tasks"] and PREDICTIONS not in files):
            raise InputError(f"{name}: run {run_id[:8]} was evaluated by an older simtrail: evaluate it again")
        if metrics["tasks"]:
            predictions = pd.read_parquet(client.download_artifacts(run_id, PREDICTIONS, scratch))
    return EvaluatedRun(run_id, run.info.run_name, run.data.params, run.data.tags, metrics, predictions)
