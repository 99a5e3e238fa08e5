"""The model registry: one version per encoder, with its metrics and lineage; the best version is `champion`."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema, TensorSpec

from simtrail.errors import InputError
from simtrail.evaluation.names import TITLES
from simtrail.model import MANIFEST
from simtrail.params import Register
from simtrail.tracking import gate
from simtrail.tracking.bundle import PACKAGES, bundle, requirements, verify
from simtrail.tracking.evaluated import load_run
from simtrail.tracking.pull import ENCODER_TAG, HEAD_TAG, REASON_TAG, encoder_hash, fetch
from simtrail.tracking.run import Trail, curve_logger, git_state, log_result, run
from simtrail.tracking.store import open_store, store_lock

ALREADY = "it is the champion already"
EVALUATED = "evaluated_run"  # tag of a version: the run of its latest evaluation


@dataclass(frozen=True)
class Candidate:
    """An encoder to register, and everything that its version records."""

    encoder: Path  # the folder with its weights and configuration
    history: list[dict[str, float]]  # the training history
    metrics: dict[str, float]
    deciding: str  # the metric that decides which version is champion
    split_hash: str  # identifies the images of the splits
    predictions: pd.DataFrame | None  # of the test images of the main task; None without labels
    caveat: str  # a doubt about this encoder that its version mentions; may be empty
    checks: str  # the result of the data checks, in a few words
    signature: tuple[np.dtype, int]  # type and number of bands of the image files
    card: Callable[[str], str]  # run id → model card
    trail: Callable[[str], dict[str, Any]]  # run id → where it comes from


def register(trail: Trail, candidate: Candidate) -> dict[str, Any]:
    """Registers an encoder and returns name, version, alias, reason, encoder_sha256 and run_id.

    Registering the same encoder again updates its version. The version becomes `champion` if there is no champion, or
    if it passes the gate (`gate.decide`). Otherwise it becomes `challenger`.
    """
    evaluated = gate.Evaluated(
        trail.data_md5,
        candidate.split_hash,
        {key: str(value) for key, value in trail.params.flat().items()},
        candidate.metrics["features/effective_rank"],
        candidate.predictions,
    )
    gate.refuse_significant_without_labels(evaluated, trail.params.register_)
    name, sha = trail.params.register_.name, encoder_hash(candidate.encoder)
    client = open_store()
    with store_lock():
        create_model(client, name, "SimCLR encoder: each version has its metrics and lineage.")
        versions = client.search_model_versions(f"name = '{name}'")
        if any(HEAD_TAG in version.tags for version in versions):
            raise InputError(f"register.name = {name}: is the name of a classifier; choose another")
        existing = next((v for v in versions if v.tags.get(ENCODER_TAG) == sha), None)
        with run(trail, encoder=sha) as run_id:
            curve_logger(run_id)(candidate.history)  # only needed if the encoder came from DVC's cache, without a run
            log_result(candidate.metrics, [])
            version = existing or _create_version(client, name, trail, candidate, run_id)
        tags = _tags(trail, candidate, sha, run_id)
        for key, value in tags.items():
            if version.tags.get(key) != value and not (existing and key in ("git_commit", "params_hash")):
                client.set_model_version_tag(name, version.version, key, value)
        description = _description(tags, candidate.metrics, candidate.deciding)
        client.update_model_version(name, version.version, description)
        client.set_tag(run_id, "mlflow.note.content", description)
        alias, reason = _set_alias(client, version, evaluated, trail.params.register_)
        reason += f"; {candidate.caveat}" if candidate.caveat else ""
        if not reason.startswith(ALREADY):  # the tag keeps why it became champion
            client.set_model_version_tag(name, version.version, REASON_TAG, reason)
    return {
        "name": name,
        "version": int(version.version),
        "alias": alias,
        "reason": reason,
        "encoder_sha256": sha,
        "run_id": version.run_id,
    }


def create_model(client: MlflowClient, name: str, description: str) -> None:
    """Creates a registered model, if there is none of this name."""
    try:
        client.create_registered_model(name, description=description)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _create_version(client: MlflowClient, name: str, trail: Trail, candidate: Candidate, run_id: str) -> ModelVersion:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "encoder")
        bundle(candidate.encoder, candidate.card(run_id), candidate.trail(run_id), folder)
        model = log_model(folder, *candidate.signature)
    mlflow.log_metrics(candidate.metrics, model_id=model.model_id, dataset=trail.dataset())
    return add_version(client, name, model, run_id)


def add_version(client: MlflowClient, name: str, model: Any, run_id: str) -> ModelVersion:
    """A new version of a registered model, from what `log_model` returned."""
    version = client.create_model_version(name, model.model_uri, run_id, model_id=model.model_id)
    link = json.dumps([{"name": name, "version": version.version}])
    client.set_logged_model_tags(model.model_id, {"mlflow.modelVersions": link})  # for the link on the page of the run
    return version


def _tags(trail: Trail, candidate: Candidate, sha: str, run_id: str) -> dict[str, str]:
    """The tags of a version: its origin, and the metrics of the linear probe."""
    deciding = candidate.deciding
    return {
        ENCODER_TAG: sha,
        "data": trail.params.data.name,
        "data_md5": trail.data_md5,
        "git_commit": git_state()[0] or "not in git",
        "params_hash": trail.params_hash,
        EVALUATED: run_id,
        "checks": candidate.checks,
        **{
            f"metric.{key}": f"{value:.6g}"
            for key, value in candidate.metrics.items()
            if key == deciding or key.startswith("linear_probe/")
        },
    }


def log_model(folder: Path, dtype: np.dtype, bands: int, predictions: dict[str, str] | None = None) -> Any:
    """Logs the folder of an encoder to the active run as a pyfunc of arrays (N, bands, H, W); returns what MLflow does.

    With a head in it, `predictions` are the columns of the result with the types of MLflow.
    """
    images = Schema([TensorSpec(np.dtype(dtype), (-1, bands, -1, -1))])
    columns: list[Any] = [ColSpec(kind, name) for name, kind in (predictions or {}).items()]
    result = Schema(columns or [TensorSpec(np.dtype("float32"), (-1, -1))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # MLflow advises an input example, but the signature is enough
        return mlflow.pyfunc.log_model(
            name="encoder",
            python_model=str(Path(__file__).with_name("pyfunc.py")),
            artifacts={"encoder": str(folder)},
            signature=ModelSignature(images, result),
            # some compressions of TIFF need imagecodecs
            pip_requirements=requirements([*PACKAGES, "imagecodecs", "mlflow"]),
        )


def _set_alias(client: MlflowClient, version: ModelVersion, evaluated: gate.Evaluated, p: Register) -> tuple[str, str]:
    """Sets the alias of a version, once it is verified; returns the alias and the reason for it."""
    try:
        champion = client.get_model_version_by_alias(p.name, "champion")
    except MlflowException:
        champion = None
    if champion is None:
        passes, reason = True, "the first champion"
    elif str(champion.version) == str(version.version):
        return "champion", ALREADY
    else:
        try:
            best = gate.Evaluated.of_run(load_run(client, champion.tags.get(EVALUATED, str(champion.run_id))))
        except (InputError, MlflowException) as error:
            passes, reason = False, f"{gate.INCOMPARABLE} with champion version {champion.version}: {error}"
        else:
            passes, reason = gate.decide(evaluated, best, champion.version, p)
    alias = "champion" if passes else "challenger"
    folder = fetch(f"models:/{p.name}/{version.version}")
    if (folder / MANIFEST).exists():  # versions of earlier releases have nothing to verify
        verify(folder)  # an alias moves only to an encoder that works where it is kept
    client.set_registered_model_alias(p.name, alias, version.version)
    return alias, reason


def _description(tags: dict[str, str], metrics: dict[str, float], deciding: str) -> str:
    def cell(name: str, score: str) -> str:
        return f"{metrics[f'{name}/{score}']:.3f}"

    lines = [
        f"{deciding.replace('_', ' ').replace('/', ' ')} {metrics[deciding]:.3f}: the metric that decides the champion",
        "",
    ]
    if names := [name.removesuffix("/accuracy") for name in metrics if name.endswith("/accuracy")]:
        lines += ["| test split | accuracy | 95 % interval | balanced | F1 |", "|---|---|---|---|---|"]
        for name in names:
            interval = f"{cell(name, 'accuracy_low')} – {cell(name, 'accuracy_high')}"
            scores = f"{cell(name, 'accuracy')} | {interval} | {cell(name, 'balanced_accuracy')} | {cell(name, 'f1')}"
            lines.append(f"| {TITLES.get(name, name)} | {scores} |")
    measures = {k.removeprefix("features/"): v for k, v in metrics.items() if k.startswith("features/")}
    components = {k.removeprefix("components_"): measures.pop(k) for k in [*measures] if k.startswith("components_")}
    texts = [f"{name.replace('_', ' ')} {value:.3g}" for name, value in measures.items()]
    texts += [f"{percent} % of the variance in {count:.0f} components" for percent, count in components.items()]
    return "\n".join(
        [
            *lines,
            "",
            f"- features: {', '.join(texts)}",
            f"- data: `{tags['data']}` {tags['data_md5']}, checks {tags['checks']}",
            f"- code: commit {tags['git_commit']}, parameters {tags['params_hash']}",
            f"- encoder: sha256 {tags['encoder_sha256']}",
        ]
    )
