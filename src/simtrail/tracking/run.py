"""Runs: what every one of them carries, how it is found again, and how it ends."""

from __future__ import annotations

import json
import math
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

import mlflow
import psutil
from mlflow import MlflowClient
from mlflow.data import sources
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import Metric, Run
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from simtrail.params import Params, load_params
from simtrail.tracking.store import VIEW, open_store

KEY, ENCODER, PARAMS, OWNER = "simtrail.key", "simtrail.encoder_sha256", "simtrail.params_hash", "simtrail.process"


# The runs table as a user first wants it: MLflow's own has no metric in it.
_VIEW = {
    "searchFilter": "",
    "orderByKey": "attributes.start_time",
    "orderByAsc": False,
    "startTime": "ALL",
    "lifecycleFilter": "Active",
    "datasetsFilter": [],
    "modelVersionFilter": "All Runs",
    "selectedColumns": ["attributes.`Models`"]
    + [
        f"metrics.`{name}`"
        for name in ("objective", "linear_probe/accuracy", "knn/accuracy", "features/effective_rank", "curves/loss")
    ],
}


@dataclass(frozen=True)
class Trail:
    """Where a result comes from: its parameters, and the version of its data."""

    params: Params
    data_md5: str

    def dataset(self) -> MetaDataset:
        """The dataset as MLflow records it, with DVC's md5 as digest."""
        name = self.params.data.name
        source = sources.LocalArtifactDatasetSource(f"data/{name}")  # type: ignore[attr-defined]  # made at run time
        return MetaDataset(source, name=name, digest=self.data_md5)  # type: ignore[abstract]


@contextmanager
def run(
    trail: Trail,
    *,
    key: str | None = None,
    resumed: bool = False,
    encoder: str | None = None,
    system_metrics: bool = False,
    name: str | None = None,
    parent: str | None = None,
    cut_short: tuple[type[Exception], ...] = (),
) -> Iterator[str]:
    """The id of the active MLflow run for one piece of work; it ends FINISHED, FAILED, or KILLED (Ctrl-C, SIGTERM).

    Work with the same `key` (a training run) or about the same `encoder` under the same parameters goes on in the run
    it already has; a `key` whose run is FINISHED gets a new one, unless the work is `resumed` from what that run left
    (it was killed after its end, before its results were used). A `parent` shows it below another run; exceptions
    that mean that the work is `cut_short` end it as KILLED too, tagged by their name. The run carries all parameters,
    params.yaml, the dataset, and the git commit with the diff where the tree is dirty.
    """
    client = open_store()
    experiment = mlflow.set_experiment(trail.params.data.name).experiment_id
    client.set_experiment_tag(experiment, f"mlflow.sharedViewState.{VIEW}", json.dumps(_VIEW))
    _end_orphans(client, experiment)
    found = find_run(client, experiment, key=key, finished=resumed, encoder=encoder, params=trail.params.hash())
    # with the run itself, in one transaction: a kill leaves no run that nobody owns or finds again
    tags = {OWNER: _this_process()} | ({KEY: key} if key else {}) | ({ENCODER: encoder} if encoder else {})
    tags |= {MLFLOW_PARENT_RUN_ID: parent} if parent else {}
    with _terminable():
        if system_metrics:
            mlflow.set_system_metrics_sampling_interval(5)
        active = mlflow.start_run(
            run_id=found.info.run_id if found else None,
            run_name=None if found else name or f"{trail.params.pretrain.encoder.model} {time.strftime('%m-%d %H:%M')}",
            tags=tags,
            log_system_metrics=system_metrics,
        )
        status = "FAILED"
        try:
            if not found or PARAMS not in found.data.tags:
                _describe(trail)
            yield active.info.run_id
            status = "FINISHED"
        except (KeyboardInterrupt, SystemExit):
            status = "KILLED"
            raise
        except cut_short as end:
            status = "KILLED"
            mlflow.set_tag(type(end).__name__.removeprefix("Trial").lower(), True)
            raise
        finally:
            mlflow.end_run(status)


def find_run(
    client: MlflowClient,
    experiment: str,
    *,
    key: str | None,
    encoder: str | None,
    params: str | None,
    finished: bool = False,
) -> Run | None:
    """The latest run with the key (that did not finish, unless `finished`), or about the encoder under the parameters,
    or None."""
    if key:
        query = f"tags.`{KEY}` = '{key}'" + ("" if finished else " AND attributes.status != 'FINISHED'")
    elif encoder:
        query = f"tags.`{ENCODER}` = '{encoder}'" + (f" AND tags.`{PARAMS}` = '{params}'" if params else "")
    else:
        return None
    runs = client.search_runs([experiment], query, max_results=1, order_by=["attributes.start_time DESC"])
    return runs[0] if runs else None


def curve_logger(run_id: str, objective: str | None = None) -> Callable[[list[dict[str, float]]], None]:
    """A function that logs the rows of a training history that the run does not have yet, at their epoch.

    With an `objective`, the column of that name is logged as the metric `objective` too, as the best so far (of a loss,
    the last).
    """
    client, logged = MlflowClient(), -1

    def log(history: list[dict[str, float]]) -> None:
        nonlocal logged
        if logged < 0:
            logged = max((m.step for m in client.get_metric_history(run_id, "curves/loss")), default=0)
        now, best = int(time.time() * 1000), -math.inf
        for row in history:
            points = [(f"curves/{k}", v) for k, v in row.items() if k not in ("epoch", "step")]
            if objective in row and not math.isnan(row[objective]):
                best = row[objective] if objective == "loss" else max(best, row[objective])
                points.insert(0, ("objective", best))  # first: MLflow compares runs by their first metric
            if (epoch := int(row["epoch"])) > logged:
                # one transaction: an epoch is logged whole or not at all; no look, no value
                client.log_batch(run_id, [Metric(k, float(v), now, epoch) for k, v in points if not math.isnan(v)])
                logged = epoch

    return log


def log_result(metrics: dict[str, float], files: list[Path]) -> None:
    """Logs final metrics that the active run does not have with that value, and files and figures as artifacts."""
    active = mlflow.active_run()
    known = MlflowClient().get_run(active.info.run_id).data.metrics if active else {}
    mlflow.log_metrics({k: v for k, v in metrics.items() if known.get(k) != v})
    for file in files:
        mlflow.log_artifact(str(file), "figures" if file.suffix == ".png" else None)


def tag_encoder(encoder: str, first_weights: str) -> None:
    """Marks the active run as the one that made the encoder of this sha256, from these first weights."""
    mlflow.set_tags({ENCODER: encoder, "simtrail.first_weights": first_weights})


def tag_run(run_id: str, key: str, value: str) -> None:
    """Tags a run, active or not."""
    open_store().set_tag(run_id, key, value)


def lineage(run_id: str) -> dict[str, Any]:
    """Where a result comes from, as the report tells it: commit, dirty, run_id, run_url, versions of what made it."""
    commit, diff = git_state()
    client = open_store()
    experiment, server = client.get_run(run_id).info.experiment_id, mlflow.get_tracking_uri()
    url = f"{server}/#/experiments/{experiment}/runs/{run_id}" if server.startswith("http") else None
    versions = {name: version(name) for name in ("torch", "timm", "kornia", "numpy", "scikit-learn", "mlflow", "dvc")}
    versions = {"python": platform.python_version(), "simtrail": version("simtrail"), **versions}
    touched = {line.removeprefix("+++ b/") for line in diff.splitlines() if line.startswith("+++ b/")}
    dirty = bool(touched - {"params.yaml"})  # parameters are told by themselves
    return {"commit": commit, "dirty": dirty, "run_id": run_id, "run_url": url, "versions": versions}


def git_state() -> tuple[str | None, str]:
    """The commit checked out, None where there is none, and the diff of tracked files against it."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=True, errors="replace").stdout

    try:
        return git("rev-parse", "HEAD").strip(), git("diff", "HEAD", "--", ".", ":!dvc.lock")
    except (OSError, subprocess.CalledProcessError):
        return None, ""


def _describe(trail: Trail) -> None:
    commit, diff = git_state()
    mlflow.log_params(trail.params.flat())
    if trail.params == load_params():
        mlflow.log_artifact("params.yaml")
    else:  # a trial has values of its own
        mlflow.log_dict(trail.params.model_dump(by_alias=True), "params.yaml")
    mlflow.log_input(trail.dataset(), context="training")
    tags: dict[str, Any] = {PARAMS: trail.params.hash(), "simtrail.data_md5": trail.data_md5}
    if commit:
        tags |= {"mlflow.source.git.commit": commit, "git.dirty": bool(diff)}
    if diff:
        mlflow.log_text(diff, "git.diff")
    mlflow.set_tags(tags)  # last: says that the description is whole


def _this_process() -> str:
    return f"{socket.gethostname()} {os.getpid()} {psutil.Process().create_time():.0f}"


def _end_orphans(client: MlflowClient, experiment: str) -> None:
    """Ends as KILLED the runs whose process is gone: kill -9 leaves nobody to say so."""
    for orphan in client.search_runs([experiment], "attributes.status = 'RUNNING'"):
        host, pid, started = (orphan.data.tags.get(OWNER, "") + "  ").split(" ")[:3]
        if host == socket.gethostname():
            try:
                alive = abs(psutil.Process(int(pid)).create_time() - float(started)) < 2
            except psutil.NoSuchProcess:
                alive = False
            if not alive:
                client.set_terminated(orphan.info.run_id, "KILLED")


@contextmanager
def _terminable() -> Iterator[None]:
    """Turns SIGTERM into SystemExit, so that what is open gets closed."""

    def leave(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        print(f"ended by {name}; the same command goes on from the last checkpoint", file=sys.stderr, flush=True)
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
