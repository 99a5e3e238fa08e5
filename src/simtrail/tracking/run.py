"""MLflow runs: what each of them records, how it is found again, and how it ends."""

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
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from simtrail.data.recipe import levels
from simtrail.params import CHOSEN, Params, load_params
from simtrail.tracking.store import VIEW, open_store

KEY, ENCODER, PARAMS, OWNER = "simtrail.key", "simtrail.encoder_sha256", "simtrail.params_hash", "simtrail.process"
EXPERIMENT = "dvc.experiment"


# The columns of the runs table in the MLflow UI: its default has no metric.
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
    """The origin of a result: its parameters, and what the prepare stage has recorded of its images."""

    params: Params
    prepared: Mapping[str, Any]

    @property
    def data_md5(self) -> str:
        """The version of the data."""
        return str(self.prepared["data_md5"])

    @property
    def known(self) -> dict[str, Any]:
        """All parameters by dotted key, without those that training has still to choose."""
        flat = {key: value for key, value in self.params.flat().items() if key not in CHOSEN or value != "auto"}
        if flat["prepare.background"] == "auto":
            flat["prepare.background"] = levels(self.prepared["recipe"]["background"])
        return flat

    @property
    def params_hash(self) -> str:
        """Identifies the parameters, except how the result is registered: this does not make another run."""
        return self.params.hash("data", "check", "prepare", "pretrain", "embed", "evaluate")

    def dataset(self) -> MetaDataset:
        """The dataset as MLflow records it, with DVC's md5 as digest."""
        name = self.params.data.name
        source = sources.LocalArtifactDatasetSource(f"data/{name}")  # type: ignore[attr-defined]  # created at run time
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

    Work with the same `key` (a training run), or on the same `encoder` with the same parameters, continues in its
    existing run. If the run of a `key` is FINISHED, a new one starts, unless the work is `resumed` from the results of
    that run: then the process was killed after the run ended and before its results were used. With a `parent`, the run
    is shown below that run. Exceptions of the `cut_short` types end the run as KILLED too, with a tag of their name.
    The run records all parameters, params.yaml, the dataset, and the git commit, with the diff if there are uncommitted
    changes. In an experiment of DVC, the name of the experiment is a tag of the run, and the name of a new run.
    """
    client = open_store()
    experiment = mlflow.set_experiment(trail.params.data.name).experiment_id
    client.set_experiment_tag(experiment, f"mlflow.sharedViewState.{VIEW}", json.dumps(_VIEW))
    _end_orphans(client, experiment)
    existing = find_run(client, experiment, key=key, finished=resumed, encoder=encoder, params=trail.params_hash)
    # set in the transaction that creates the run: a kill must not leave a run without its process and key
    tags = {OWNER: _this_process()} | ({KEY: key} if key else {}) | ({ENCODER: encoder} if encoder else {})
    tags |= {MLFLOW_PARENT_RUN_ID: parent} if parent else {}
    tags |= {EXPERIMENT: os.environ["DVC_EXP_NAME"]} if os.environ.get("DVC_EXP_NAME") else {}
    with _terminable():
        if system_metrics:
            mlflow.set_system_metrics_sampling_interval(5)
        active = mlflow.start_run(
            run_id=existing.info.run_id if existing else None,
            run_name=None if existing else name or run_name(trail.params),
            tags=tags,
            log_system_metrics=system_metrics,
        )
        status = "FAILED"
        try:
            if not existing or PARAMS not in existing.data.tags:
                _log_origin(trail)
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


def run_name(params: Params) -> str:
    """The name of a new run: that of DVC's experiment, or else the network and the time."""
    return os.environ.get("DVC_EXP_NAME") or f"{params.pretrain.encoder.model} {time.strftime('%m-%d %H:%M')}"


def find_run(
    client: MlflowClient,
    experiment: str,
    *,
    key: str | None,
    encoder: str | None,
    params: str | None,
    finished: bool = False,
) -> Run | None:
    """The latest run with the key, or on the encoder with the parameters; None without such a run.

    A FINISHED run with the key counts only if `finished`.
    """
    if key:
        query = f"tags.`{KEY}` = '{key}'" + ("" if finished else " AND attributes.status != 'FINISHED'")
    elif encoder:
        query = f"tags.`{ENCODER}` = '{encoder}'" + (f" AND tags.`{PARAMS}` = '{params}'" if params else "")
    else:
        return None
    runs = client.search_runs([experiment], query, max_results=1, order_by=["attributes.start_time DESC"])
    return runs[0] if runs else None


def curve_logger(run_id: str, objective: str | None = None) -> Callable[[list[dict[str, float]]], None]:
    """A function that logs those rows of a training history that the run does not have yet; steps are epochs.

    With an `objective`, the column of that name is also logged as the metric `objective`: its best value so far, or its
    last value if the column is the loss.
    """
    client, logged = MlflowClient(), -1

    def log(history: list[dict[str, float]]) -> None:
        nonlocal logged
        if logged < 0:
            logged = max((m.step for m in client.get_metric_history(run_id, "curves/loss")), default=0)
        now, best = int(time.time() * 1000), -math.inf
        for row in history:
            points = [(f"curves/{k}", v) for k, v in row.items() if k not in ("epoch", "step", "kept")]
            if objective in row and not math.isnan(row[objective]):
                best = row[objective] if objective == "loss" else max(best, row[objective])
                points.insert(0, ("objective", best))  # first, because MLflow compares runs by the first metric
            if (epoch := int(row["epoch"])) > logged:
                # one transaction logs a whole epoch or nothing; epochs without validation have NaN, which is not logged
                client.log_batch(run_id, [Metric(k, float(v), now, epoch) for k, v in points if not math.isnan(v)])
                logged = epoch

    return log


def log_result(metrics: dict[str, float], files: list[Path]) -> None:
    """Logs final metrics that are new or changed to the active run, and files and figures as artifacts."""
    active = mlflow.active_run()
    logged = MlflowClient().get_run(active.info.run_id).data.metrics if active else {}
    mlflow.log_metrics({k: v for k, v in metrics.items() if logged.get(k) != v})
    for file in files:
        mlflow.log_artifact(str(file), "figures" if file.suffix == ".png" else None)


def tag_encoder(encoder: str, first_weights: str, teacher: str | None) -> None:
    """Tags the active run with the sha256 of the encoder it trained, its initial weights and those of its teacher."""
    tags = {ENCODER: encoder, "simtrail.first_weights": first_weights, "simtrail.teacher": teacher}
    mlflow.set_tags({key: value for key, value in tags.items() if value})


def log_chosen(trail: Trail, run_id: str) -> None:
    """Logs the parameters of a run again, when its training has chosen the values of those that were auto."""
    client, values = open_store(), trail.known
    for key in CHOSEN:
        client.log_param(run_id, key, values[key])
    client.log_dict(run_id, trail.params.model_dump(by_alias=True), "params.yaml")
    client.set_tag(run_id, PARAMS, trail.params_hash)


def tag_run(run_id: str, key: str, value: str) -> None:
    """Sets a tag of a run, which need not be active."""
    open_store().set_tag(run_id, key, value)


def adopt(run_ids: Sequence[str], parent: str) -> None:
    """Shows runs below a parent, those that have none yet and that this store knows."""
    client = open_store()
    for run_id in dict.fromkeys(run_ids):
        try:
            known = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            continue  # a run of another machine: DVC brought the plan
        if MLFLOW_PARENT_RUN_ID not in known.data.tags:
            client.set_tag(run_id, MLFLOW_PARENT_RUN_ID, parent)


def lineage(run_id: str) -> dict[str, Any]:
    """The origin of a result, for the report: commit, dirty, run_id, run_url, and versions of the software."""
    commit, diff = git_state()
    client = open_store()
    experiment, server = client.get_run(run_id).info.experiment_id, mlflow.get_tracking_uri()
    url = f"{server}/#/experiments/{experiment}/runs/{run_id}" if server.startswith("http") else None
    changed = {line.removeprefix("+++ b/") for line in diff.splitlines() if line.startswith("+++ b/")}
    dirty = bool(changed - {"params.yaml"})  # the report lists the parameters separately
    return {"commit": commit, "dirty": dirty, "run_id": run_id, "run_url": url, "versions": software()}


def software() -> dict[str, str]:
    """The versions of the software that decides a result."""
    packages = ("simtrail", "torch", "timm", "kornia", "numpy", "scikit-learn", "mlflow", "dvc")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def git_state() -> tuple[str | None, str]:
    """The commit that is checked out, and the diff of tracked files against it; (None, "") outside git."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, errors="replace").stdout

    try:
        return git("rev-parse", "HEAD").strip(), git("diff", "HEAD", "--", ".", ":!dvc.lock", ":!metrics.json")
    except (OSError, subprocess.CalledProcessError):
        return None, ""


def _log_origin(trail: Trail) -> None:
    commit, diff = git_state()
    mlflow.log_params(trail.known)
    if trail.params.tree == load_params().tree:
        mlflow.log_artifact("params.yaml")
    else:  # those of a trial of a sweep, or of a plan, are not those of params.yaml
        mlflow.log_dict(trail.params.model_dump(by_alias=True), "params.yaml")
    mlflow.log_input(trail.dataset(), context="training")
    tags: dict[str, Any] = {PARAMS: trail.params_hash, "simtrail.data_md5": trail.data_md5}
    if commit:
        tags |= {"mlflow.source.git.commit": commit, "git.dirty": bool(diff)}
    if diff:
        mlflow.log_text(diff, "git.diff")
    mlflow.set_tags(tags)  # last: the tags show that the origin is logged completely


def _this_process() -> str:
    return f"{socket.gethostname()} {os.getpid()} {psutil.Process().create_time():.0f}"


def _end_orphans(client: MlflowClient, experiment: str) -> None:
    """Ends runs as KILLED whose process no longer exists: after kill -9, a process can't end its run."""
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
    """Turns SIGTERM into SystemExit, so that open runs and files are closed."""

    def exit_on_signal(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        print(
            f"ended by {name}; to continue from the last checkpoint, run the same command again",
            file=sys.stderr,
            flush=True,
        )
        raise SystemExit(128 + number)

    previous = signal.signal(signal.SIGTERM, exit_on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
