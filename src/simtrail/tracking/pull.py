"""Fetches registered encoders; from the project's own store without importing MLflow, which takes seconds."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from simtrail.errors import InputError
from simtrail.model import CONFIG, GOLDEN, HEAD, HEAD_CONFIG, MANIFEST, WEIGHTS
from simtrail.tracking.store import local_database, open_store

if TYPE_CHECKING:
    from mlflow.entities.model_registry import RegisteredModel

CARD, CODE, REQUIREMENTS, TRAIL = "model_card.md", "code", "requirements.txt", "trail.json"
OTHERS = (REQUIREMENTS, TRAIL)  # further files of a registered encoder
ENCODER_TAG, REASON_TAG = "encoder_sha256", "reason"  # tags of a version
HEAD_TAG = "head_sha256"  # of a version with a head: identifies its settings and labels
URI = re.compile(r"models:/([^/@]+)(?:/(\d+)|@([^/@]+))/?")


def fetch(uri: str, out: Path | None = None) -> Path:
    """The folder with the encoder of a registry URI (models:/NAME@alias, models:/NAME/3): a copy in `out`, if given."""
    if not re.fullmatch(r"models:/[^/@]+[/@].+", uri):
        raise InputError(f"{uri}: must look like models:/NAME@champion or models:/NAME/VERSION")
    folder = _local_folder(uri) or _download(uri)
    if out is None:
        return folder
    _make_room(out)
    shutil.copytree(folder, out, dirs_exist_ok=True)
    return out


def _make_room(out: Path) -> None:
    """Removes an encoder that was pulled to a folder before; InputError for files of somebody else with its names."""
    manifest = out / MANIFEST
    if manifest.is_file() and WEIGHTS in json.loads(manifest.read_text(encoding="utf-8")):
        for name in (WEIGHTS, CONFIG, GOLDEN, MANIFEST, CARD, HEAD, HEAD_CONFIG, *OTHERS):
            (out / name).unlink(missing_ok=True)
        shutil.rmtree(out / CODE, ignore_errors=True)
    elif out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; name a new folder")
    elif taken := [name for name in (MANIFEST, HEAD, HEAD_CONFIG, *OTHERS, CODE) if (out / name).exists()]:
        raise InputError(f"{out / taken[0]}: is not of an encoder that was pulled before; name a new folder")


def origin(uri: str) -> tuple[Path, dict[str, str]]:
    """The folder of an encoder, by its registry URI or as a folder, and what identifies the encoder."""
    folder = fetch(uri) if uri.startswith("models:/") else Path(uri)
    if not (folder / WEIGHTS).is_file():
        raise InputError(f"{uri}: must be models:/NAME@champion, models:/NAME/VERSION, or a folder with {WEIGHTS}")
    require_unchanged(folder)
    sha = encoder_hash(folder)
    return folder, {"model": uri, "version": _version(uri) or "", "encoder_sha256": sha}


def require_unchanged(folder: Path) -> None:
    """Raises InputError for a file of a registered encoder that is missing or has other bytes than it had then."""
    if not (folder / MANIFEST).is_file():  # of an earlier version
        return
    for name, sha256 in json.loads((folder / MANIFEST).read_text(encoding="utf-8")).items():
        if not (folder / name).is_file():
            raise InputError(f"{folder / name}: no such file; pull it again, or register it again")
        if file_hash(folder / name) != sha256:
            raise InputError(
                f"{folder / name}: changed since the encoder was registered; pull it again, or register it again"
            )


class Registered(NamedTuple):
    """A version in the registry."""

    version: int
    alias: str | None
    reason: str  # for the alias


def encoder_hash(folder: Path) -> str:
    """The sha256 of an encoder's weights and configuration, which identifies it."""
    return file_hash(folder / WEIGHTS, folder / CONFIG)


def file_hash(*files: Path) -> str:
    """The sha256 of the bytes of files, one after the other."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def registered(name: str, sha: str) -> Registered | None:
    """The version of a model that has this encoder; None without one. Looks into the project's own store only."""
    versions = _rows("version FROM model_version_tags", name=name, key=ENCODER_TAG, value=sha)
    if not versions:
        return None
    of_version = {"name": name, "version": versions[-1]}
    aliases = _rows("alias FROM registered_model_aliases", **of_version)
    alias = "champion" if "champion" in aliases else next(iter(aliases), None)
    reason = next(iter(_rows("value FROM model_version_tags", key=REASON_TAG, **of_version)), "")
    return Registered(int(versions[-1]), alias, reason)


def _local_folder(uri: str) -> Path | None:
    """The folder in the project's own store; None if it is not there, or if MLflow uses another store.

    Also None if the store has other tables than those of this version of MLflow: then MLflow itself is asked.
    """
    try:
        return _folder(uri)
    except sqlite3.OperationalError:
        return None


def _version(uri: str) -> str | None:
    """The number of the version that a URI means; None if only MLflow can tell."""
    if not (parts := URI.fullmatch(uri)):  # such as models:/NAME/latest
        return None
    name, version, alias = parts.groups()
    if not alias:
        return version
    versions = _rows("version FROM registered_model_aliases", name=name, alias=alias)
    return str(versions[0]) if versions else None


def _folder(uri: str) -> Path | None:
    if not (version := _version(uri)):
        return None
    name = URI.fullmatch(uri)[1]  # type: ignore[index]  # it has a version
    places = _rows("storage_location FROM model_versions", name=name, version=version)
    folder = Path(places[0] or "", "artifacts/encoder") if places else None
    return folder if folder and (folder / WEIGHTS).is_file() else None


def _rows(what: str, **where: object) -> list[str]:
    """The values of a column in the project's own store; none without that store."""
    if (database := local_database()) is None or not database.exists():
        return []
    condition = " AND ".join(f"{column} = ?" for column in where)
    with closing(sqlite3.connect(database, timeout=60)) as connection:
        rows = connection.execute(f"SELECT {what} WHERE {condition}", tuple(where.values())).fetchall()
    return [value for (value,) in rows]


def _download(uri: str) -> Path:
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    client = open_store()
    try:
        return Path(download_artifacts(f"{uri.rstrip('/')}/artifacts/encoder"))
    except (MlflowException, OSError, ValueError) as error:
        models = client.search_registered_models()
        wanted = [model for model in models if model.name == uri.split("/")[1].split("@")[0]] or models
        names = ", ".join(name for model in wanted for name in _names(model)) or "no model"
        raise InputError(
            f"{uri}: {' '.join(str(error).split())[:200].rstrip('.')}; the registry holds {names}"
        ) from None


def _names(model: RegisteredModel) -> list[str]:
    """How the aliases of a model are named, and its latest version."""
    latest = [f"models:/{model.name}/{version.version}" for version in model.latest_versions]
    return [*(f"models:/{model.name}@{alias}" for alias in sorted(model.aliases)), *latest]
