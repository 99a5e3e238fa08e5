"""Registers what was not trained by the pipeline here: a head on an encoder, or an encoder of another registry."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from simtrail.errors import InputError
from simtrail.model import CONFIG, HEAD_CONFIG, MANIFEST
from simtrail.params import MODEL_NAME
from simtrail.tracking.bundle import bundle, verify
from simtrail.tracking.pull import CARD, ENCODER_TAG, HEAD_TAG, REASON_TAG, TRAIL, encoder_hash, require_unchanged
from simtrail.tracking.registry import add_version, create_model, log_model
from simtrail.tracking.run import curve_logger, git_state, software
from simtrail.tracking.store import open_store, store_lock


@dataclass(frozen=True)
class Derived:
    """A head on an encoder, and what its version records."""

    name: str  # of the registered model
    encoder: Path  # the folder of the encoder
    head: Path  # the folder with the head
    parent: Path  # the folder of the registered encoder that this is, or was fine-tuned from
    origin: dict[str, str]  # where that comes from
    card: str
    settings: dict[str, Any]  # how it was made
    metrics: dict[str, float]
    labels: dict[str, Any]  # which labels it learned from
    predictions: dict[str, str]  # columns of a prediction, with the types of MLflow
    table: str  # of the labels, CSV
    files: Sequence[Path]
    history: Sequence[dict[str, float]] = ()  # of fine-tuning


def register_head(derived: Derived) -> int:
    """Registers a head with its encoder as one model that stands alone; returns the number of its version.

    The same head is registered once.
    """
    # not from the weights: fitted again, their last digits may differ
    made_from = (derived.head / HEAD_CONFIG).read_text(encoding="utf-8") + str(derived.labels["sha256"])
    sha = hashlib.sha256(made_from.encode()).hexdigest()
    tags = {HEAD_TAG: sha, ENCODER_TAG: encoder_hash(derived.encoder), "encoder": derived.origin["model"]}

    def folder(run_id: str, scratch: Path) -> Path:
        mlflow.log_text(derived.table, "labels.csv")
        curve_logger(run_id)([*derived.history])
        commit, diff = git_state()
        own = derived.parent / TRAIL
        trail = {
            "name": derived.name,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "run": run_id,
            "code": {"commit": commit, "uncommitted changes": bool(diff)},
            "environment": software(),
            "labels": derived.labels,
            "settings": derived.settings,
            "scores": derived.metrics,
            "head_sha256": sha,
            "encoder": {**derived.origin, **(json.loads(own.read_text(encoding="utf-8")) if own.is_file() else {})},
        }
        bundle(derived.encoder, derived.card, trail, scratch / "encoder", derived.head)
        return scratch / "encoder"

    about = f"Predictions from the features of {derived.origin['model']}; each version has its scores and lineage."
    return _register(
        derived.name, about, folder, tags, derived.settings, derived.metrics, derived.predictions, derived.files
    )


def import_folder(folder: Path, name: str | None) -> tuple[str, int, str]:
    """Registers the folder of a pulled or exported encoder here, with its trail; returns name, version and alias.

    The alias of an encoder is `champion` if there is none, else `challenger`: it can't be compared, because its test
    predictions stay in the registry that it comes from. A head has none. Raises InputError for a folder that is not
    complete, was changed, or does not give its golden features here.
    """
    if not (folder / MANIFEST).is_file() or not (folder / TRAIL).is_file():
        raise InputError(f"{folder}: must be a folder that simtrail pull, or simtrail export --format folder, wrote")
    require_unchanged(folder)
    verify(folder)
    trail = json.loads((folder / TRAIL).read_text(encoding="utf-8"))
    name = name or str(trail["name"])
    tags = {ENCODER_TAG: encoder_hash(folder), "imported": str(folder), "trained_in_run": str(trail.get("run", ""))}
    if (folder / HEAD_CONFIG).is_file() != (HEAD_TAG in trail):
        raise InputError(f"{folder / HEAD_CONFIG}: is not of this encoder; pull it again to a new folder")
    if HEAD_TAG in trail:
        tags[HEAD_TAG] = trail[HEAD_TAG]
        number = json.loads((folder / HEAD_CONFIG).read_text(encoding="utf-8"))["target"] == "number"
        columns = {"predicted": "double" if number else "string"}
    else:
        data, code = trail["data"], trail["code"]
        tags |= {"data": data["dataset"], "data_md5": data["md5"], "checks": data["checks"]}
        tags |= {"git_commit": code["commit"] or "not in git"}
        columns = {}
    parameters = trail.get("parameters") or trail.get("settings") or {}
    files = [folder / CARD, folder / TRAIL]
    text = "Imported: its trail is in trail.json."
    version = _register(name, text, lambda run, _: folder, tags, parameters, trail["scores"], columns, files)
    if HEAD_TAG in tags:
        return name, version, ""
    client = open_store()
    with store_lock():
        present = client.get_model_version(name, str(version)).aliases
        if present:
            return name, version, present[0]
        try:
            champion = client.get_model_version_by_alias(name, "champion").version
            alias, reason = "challenger", f"imported: not comparable with champion version {champion}"
        except MlflowException:
            alias, reason = "champion", "the first champion; imported"
        client.set_registered_model_alias(name, alias, str(version))
        client.set_model_version_tag(name, str(version), REASON_TAG, reason)
    return name, version, alias


def _register(
    name: str,
    about: str,
    folder: Callable[[str, Path], Path],
    tags: dict[str, str],
    parameters: dict[str, Any],
    metrics: dict[str, float],
    predictions: dict[str, str],
    files: Sequence[Path],
) -> int:
    """A version of a model, from the folder that is made for a run; an existing one if it has the same hashes."""
    client = open_store()
    same = HEAD_TAG if HEAD_TAG in tags else ENCODER_TAG
    with store_lock():
        versions = versions_of(name, heads=HEAD_TAG in tags)
        if existing := next((v for v in versions if v.tags.get(same) == tags[same]), None):
            return int(existing.version)
        create_model(client, name, about)
        mlflow.set_experiment(name)
        with (
            mlflow.start_run(run_name=f"{name} {time.strftime('%m-%d %H:%M')}") as active,
            tempfile.TemporaryDirectory() as scratch,
        ):
            run_id = active.info.run_id
            mlflow.log_params(parameters)
            mlflow.log_metrics(metrics)
            mlflow.set_tags({f"simtrail.{key}": value for key, value in tags.items()})
            for file in files:
                mlflow.log_artifact(str(file))
            made = folder(run_id, Path(scratch))
            recipe = json.loads((made / CONFIG).read_text(encoding="utf-8"))["recipe"]
            bands = int(recipe["file_bands"]) + int(recipe.get("alpha", False))
            model = log_model(made, np.dtype(recipe["file_dtype"]), bands, predictions)
            mlflow.log_metrics(metrics, model_id=model.model_id)
            version = add_version(client, name, model, run_id)
            for key, value in tags.items():
                client.set_model_version_tag(name, version.version, key, value)
            for key, score in metrics.items():
                client.set_model_version_tag(name, version.version, f"metric.{key}", f"{score:.6g}")
            client.update_model_version(name, version.version, (made / CARD).read_text(encoding="utf-8"))
    return int(version.version)


def versions_of(name: str, heads: bool) -> list[ModelVersion]:
    """The versions of a registered model. Raises InputError for a name that none can have, or that is of another kind.

    Versions of a model are encoders or, with `heads`, classifiers.
    """
    if not re.fullmatch(MODEL_NAME, name):
        raise InputError(f"{name!r}: a name of a model has no / and no :")
    versions = [*open_store().search_model_versions(f"name = '{name}'")]
    if any((HEAD_TAG in version.tags) != heads for version in versions):
        kinds = ("classifiers", "encoders") if heads else ("encoders", "classifiers")
        raise InputError(f"{name}: is the name of {kinds[1]}, not of {kinds[0]}; choose another name")
    return versions
