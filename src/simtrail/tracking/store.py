"""The MLflow store: SQLite under mlruns/, created once, found again after the project folder has moved."""

from __future__ import annotations

import logging
import os
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import NoReturn

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

import mlflow
from filelock import FileLock
from mlflow import MlflowClient

VIEW = "simtrail"  # name of the view of an experiment's runs that shows their metrics

# where MLflow keeps absolute artifact paths
_LOCATIONS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
)


def project_root() -> Path | None:
    """The project's folder: DVC's root inside a stage (also in `dvc exp run --temp`), else the nearest one upwards with
    a dvc.yaml; None outside any project."""
    if root := os.environ.get("DVC_ROOT"):
        return Path(root)
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / "dvc.yaml").exists()), None)


def open_store() -> MlflowClient:
    """A client of the store, which `mlflow` itself then uses too.

    MLFLOW_TRACKING_URI names another store or a server; a relative sqlite:/// path in it is relative to the project, as
    is the default. Outside a project, MLflow's own setting stands.
    """
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    root, uri = project_root(), os.environ.get("MLFLOW_TRACKING_URI")
    if uri and root and uri.startswith("sqlite:///"):
        uri = f"sqlite:///{root / uri.removeprefix('sqlite:///')}"
    elif not uri and root:
        uri = f"sqlite:///{_local_store(root / 'mlruns')}"
    if uri:
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
    return MlflowClient()


def serve(port: int) -> NoReturn:
    """Becomes the MLflow UI of the store, on 127.0.0.1."""
    runs = open_store().search_runs([e.experiment_id for e in open_store().search_experiments()], max_results=1)
    # straight to the latest run's experiment: MLflow's front page is about language models
    page = (
        f"/#/experiments/{runs[0].info.experiment_id}/runs?workflowType=machine_learning&viewStateShareKey={VIEW}"
        if runs
        else ""
    )
    print(f"MLflow UI: http://127.0.0.1:{port}{page}\n(stop with Ctrl-C)", flush=True)
    where = [
        "--backend-store-uri",
        mlflow.get_tracking_uri(),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", "ui", *where])


def store_lock() -> FileLock:
    """A lock that one process at a time holds, for what must not be done twice; of this project on this machine."""
    folder = (project_root() or Path.cwd()) / "mlruns"
    folder.mkdir(exist_ok=True)
    return FileLock(folder / ".lock")


def _local_store(folder: Path) -> Path:
    folder = folder.resolve()
    database = folder / "mlflow.db"
    with store_lock():
        if not database.exists():
            _create(database, folder)
        _follow_move(database, folder)
    return database


def _create(database: Path, folder: Path) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    fresh = database.with_suffix(".new")  # a kill half-way through the migrations must leave no half database
    fresh.unlink(missing_ok=True)
    SqlAlchemyStore(f"sqlite:///{fresh}", str(folder)).engine.dispose()
    with closing(sqlite3.connect(fresh)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")  # readers and writers of several processes side by side
    fresh.replace(database)


def _follow_move(database: Path, folder: Path) -> None:
    with closing(sqlite3.connect(database, timeout=60)) as connection, connection:
        (default,) = connection.execute("SELECT artifact_location FROM experiments WHERE experiment_id = 0").fetchone()
        old, new = default.rsplit("/", 1)[0], str(folder)
        if old == new:
            return
        for table, column in _LOCATIONS:
            connection.execute(
                f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                (new, len(old) + 1, len(old) + 1, old + "/"),
            )
