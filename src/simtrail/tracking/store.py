"""The MLflow store: SQLite under mlruns/, created once, with paths that are updated when the project folder moves."""

from __future__ import annotations

import logging
import os
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

from filelock import FileLock

if TYPE_CHECKING:
    from mlflow import MlflowClient

STORE = Path("mlruns/mlflow.db")
VIEW = "simtrail"  # name of the view of the runs table that shows metrics

# tables and columns in which MLflow stores absolute artifact paths
_LOCATIONS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
)


def project_root() -> Path | None:
    """The project's folder, or None outside a project.

    Inside a DVC stage (also in `dvc exp run --temp`) it is DVC's root, otherwise the nearest folder with a dvc.yaml,
    from the current one upwards.
    """
    if root := os.environ.get("DVC_ROOT"):
        return Path(root)
    current = Path.cwd()
    return next((folder for folder in (current, *current.parents) if (folder / "dvc.yaml").exists()), None)


def open_store() -> MlflowClient:
    """A client of the store; `mlflow` itself then uses the same store.

    MLFLOW_TRACKING_URI names another store or a server. A relative sqlite:/// path in it is relative to the project, as
    is the default. Outside a project, MLflow's own setting applies.
    """
    import mlflow
    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    root, uri = project_root(), os.environ.get("MLFLOW_TRACKING_URI")
    if uri and root and uri.startswith("sqlite:///"):
        uri = f"sqlite:///{root / uri.removeprefix('sqlite:///')}"
    elif not uri and root:
        uri = f"sqlite:///{_prepared(root / STORE)}"
    if uri:
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
    return MlflowClient()


def local_database() -> Path | None:
    """The database of the project's own store, with its paths up to date; None if MLflow uses another store."""
    if (root := project_root()) is None:
        return None
    database = (root / STORE).resolve()
    if os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{database}") != f"sqlite:///{database}":
        return None
    return _prepared(database) if database.exists() else database


def serve(port: int) -> NoReturn:
    """Replaces this process by the MLflow UI of the store, on 127.0.0.1."""
    import mlflow

    runs = open_store().search_runs([e.experiment_id for e in open_store().search_experiments()], max_results=1)
    # links to the experiment of the latest run, because MLflow's start page is about language models
    page = (
        f"/#/experiments/{runs[0].info.experiment_id}/runs?workflowType=machine_learning&viewStateShareKey={VIEW}"
        if runs
        else ""
    )
    print(f"MLflow UI: http://127.0.0.1:{port}{page}\n(stop with Ctrl-C)", flush=True)
    arguments = [
        "--backend-store-uri",
        mlflow.get_tracking_uri(),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", "ui", *arguments])


def store_lock() -> FileLock:
    """A lock for steps that only one process at a time may do, for this project on this machine."""
    folder = (project_root() or Path.cwd()) / "mlruns"
    folder.mkdir(exist_ok=True)
    return FileLock(folder / ".lock", is_singleton=True)  # so that a step can call another one


def _prepared(database: Path) -> Path:
    """The database, created if it does not exist, with the paths of the present folder."""
    database = database.resolve()
    with store_lock():
        if not database.exists():
            _create(database, database.parent)
        _update_paths(database, database.parent)
    return database


def _create(database: Path, folder: Path) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    new = database.with_suffix(".new")  # a kill during the migrations must not leave an incomplete database
    new.unlink(missing_ok=True)
    SqlAlchemyStore(f"sqlite:///{new}", str(folder)).engine.dispose()
    with closing(sqlite3.connect(new)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")  # several processes can read and write at the same time
    new.replace(database)


def _update_paths(database: Path, folder: Path) -> None:
    """Replaces the old folder in the artifact paths if the project has moved."""
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
