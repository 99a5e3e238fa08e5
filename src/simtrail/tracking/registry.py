"""The model registry: one version per encoder, its numbers and lineage attached, aliases moved through the gate."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import warnings
from collections.abc import Callable
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

import simtrail
from simtrail.errors import InputError
from simtrail.evaluation.scores import TITLES
from simtrail.model.encoder import CONFIG, WEIGHTS
from simtrail.tracking.run import Trail, curves, git_state, log_result, run
from simtrail.tracking.store import open_store, store_lock

CARD = "model_card.md"
REQUIREMENTS = ["torch", "torchvision", "timm", "safetensors", "numpy", "pandas", "pillow", "tifffile", "imagecodecs"]
REQUIREMENTS += ["pydantic", "pyyaml", "tqdm", "mlflow"]


def encoder_hash(folder: Path) -> str:
    """The sha256 that identifies an encoder: of its weights and its configuration."""
    return hashlib.sha256((folder / WEIGHTS).read_bytes() + (folder / CONFIG).read_bytes()).hexdigest()


def register(
    trail: Trail,
    encoder: Path,
    history: list[dict[str, float]],
    metrics: dict[str, float],
    comparable: str,
    deciding: str,
    checks: str,
    signature: tuple[np.dtype, int],
    card: Callable[[str], str],
) -> dict[str, Any]:
    """The registered version and its alias: name, version, alias, reason, encoder_sha256, run_id.

    The same encoder registered again is the same version, brought up to date. The version becomes `champion` when there
    is none, or when it beats the present one in `metrics[deciding]` on the same data version and with the same
    `comparable` settings; otherwise `challenger`. `signature` is the type and number of bands of the image files;
    `card` makes the model's card, which is kept with it, from the id of its run.
    """
    name, sha = trail.params.register_.name, encoder_hash(encoder)
    client = open_store()
    commit, _ = git_state()
    with store_lock():
        _create_model(client, name)
        found = [v for v in client.search_model_versions(f"name = '{name}'") if v.tags.get("encoder_sha256") == sha]
        with run(trail, encoder=sha) as run_id:
            curves(run_id)(history)  # nothing new, unless the encoder came from DVC's cache without its run
            log_result(metrics, [])
            if found:
                version = found[0]
            else:
                model = _log_model(encoder, signature, card(run_id))
                mlflow.log_metrics(metrics, model_id=model.model_id, dataset=trail.dataset())
                version = client.create_model_version(name, model.model_uri, run_id, model_id=model.model_id)
                versions = json.dumps([{"name": name, "version": version.version}])
                client.set_logged_model_tags(
                    model.model_id, {"mlflow.modelVersions": versions}
                )  # the run page links it
        facts = {
            "encoder_sha256": sha,
            "data": trail.params.data.name,
            "data_md5": trail.data_md5,
            "git_commit": commit or "not in git",
            "params_hash": trail.params.hash(),
            "comparable": comparable,
            "checks": checks,
            **{f"metric.{k}": f"{v:.6g}" for k, v in metrics.items() if k == deciding or k.startswith("linear_probe/")},
        }
        for key, value in facts.items():
            if version.tags.get(key) != value and not (found and key in ("git_commit", "params_hash")):
                client.set_model_version_tag(name, version.version, key, value)
        description = _description(facts, metrics, deciding)
        client.update_model_version(name, version.version, description)
        client.set_tag(run_id, "mlflow.note.content", description)
        alias, reason = _gate(client, name, version, facts, metrics, deciding)
    return {
        "name": name,
        "version": int(version.version),
        "alias": alias,
        "reason": reason,
        "encoder_sha256": sha,
        "run_id": version.run_id,
    }


def fetch(uri: str, out: Path | None = None) -> Path:
    """The folder with the encoder of a registry URI (models:/NAME@alias, models:/NAME/3): `out`, when it is given."""
    client = open_store()
    if not uri.startswith("models:/"):
        raise InputError(f"{uri}: must look like models:/NAME@champion or models:/NAME/VERSION")
    try:
        folder = Path(mlflow.artifacts.download_artifacts(f"{uri.rstrip('/')}/artifacts/encoder"))
    except (MlflowException, OSError, ValueError) as fault:
        known = ", ".join(sorted(f"models:/{model.name}" for model in client.search_registered_models())) or "no model"
        raise InputError(
            f"{uri}: {' '.join(str(fault).split())[:200].rstrip('.')}; the registry holds {known}"
        ) from None
    if out is None:
        return folder
    out.mkdir(parents=True, exist_ok=True)
    for file in (WEIGHTS, CONFIG, CARD):
        if (folder / file).exists():  # versions registered before cards were have none
            shutil.copy(folder / file, out)
    return out


def _create_model(client: MlflowClient, name: str) -> None:
    try:
        client.create_registered_model(
            name, description="SimCLR encoder: see each version for its numbers and lineage."
        )
    except MlflowException as fault:
        if fault.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _log_model(encoder: Path, signature: tuple[np.dtype, int], card: str) -> Any:
    dtype, bands = signature
    tensors = (
        TensorSpec(np.dtype(dtype), (-1, bands, -1, -1)),
        TensorSpec(np.dtype("float32"), (-1, -1)),
    )
    package = Path(simtrail.__file__).parent
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # advice to give an example: the signature says it all
        weights, code = Path(scratch, "encoder"), Path(scratch, "simtrail")
        weights.mkdir()
        for file in (WEIGHTS, CONFIG):
            shutil.copy(encoder / file, weights)
        (weights / CARD).write_text(card, encoding="utf-8")
        shutil.copytree(package, code, ignore=shutil.ignore_patterns("__pycache__"))
        return mlflow.pyfunc.log_model(
            name="encoder",
            python_model=str(code / "tracking" / "pyfunc.py"),
            artifacts={"encoder": str(weights)},
            code_paths=[str(code)],
            signature=ModelSignature(Schema([tensors[0]]), Schema([tensors[1]])),
            pip_requirements=[f"{p}=={installed(p).split('+')[0]}" for p in REQUIREMENTS],
        )


def _gate(
    client: MlflowClient,
    name: str,
    version: ModelVersion,
    facts: dict[str, str],
    metrics: dict[str, float],
    deciding: str,
) -> tuple[str, str]:
    mine = metrics[deciding]
    try:
        champion = client.get_model_version_by_alias(name, "champion")
    except MlflowException:
        champion = None
    if champion is None:
        alias, reason = "champion", "the first of its name"
    elif str(champion.version) == str(version.version):
        return "champion", "it is the present champion"
    elif champion.tags.get("data_md5") != facts["data_md5"] or champion.tags.get("comparable") != facts["comparable"]:
        alias, reason = (
            "challenger",
            f"not comparable with champion version {champion.version}: other data, split or evaluation settings",
        )
    else:
        theirs = float(champion.tags.get(f"metric.{deciding}", "nan"))
        alias = "champion" if mine > theirs else "challenger"
        reason = f"{deciding} {mine:.4f} against {theirs:.4f} of version {champion.version}"
    client.set_registered_model_alias(name, alias, version.version)
    return alias, reason


def _description(facts: dict[str, str], metrics: dict[str, float], deciding: str) -> str:
    def cell(name: str, score: str) -> str:
        return f"{metrics[f'{name}/{score}']:.3f}"

    lines = [
        f"{deciding.replace('_', ' ').replace('/', ' ')} {metrics[deciding]:.3f}, which decides between versions",
        "",
    ]
    if names := [name.removesuffix("/accuracy") for name in metrics if name.endswith("/accuracy")]:
        lines += ["| test split | accuracy | 95 % interval | balanced | F1 |", "|---|---|---|---|---|"]
        for name in names:
            interval = f"{cell(name, 'accuracy_low')} – {cell(name, 'accuracy_high')}"
            scores = f"{cell(name, 'accuracy')} | {interval} | {cell(name, 'balanced_accuracy')} | {cell(name, 'f1')}"
            lines.append(f"| {TITLES.get(name, name)} | {scores} |")
    free = ", ".join(
        f"{k.split('/')[1].replace('_', ' ')} {v:.3g}" for k, v in metrics.items() if k.startswith("features/")
    )
    return "\n".join(
        [
            *lines,
            "",
            f"- features: {free}",
            f"- data: `{facts['data']}` {facts['data_md5']}, checks {facts['checks']}",
            f"- code: commit {facts['git_commit']}, parameters {facts['params_hash']}",
            f"- encoder: sha256 {facts['encoder_sha256']}",
        ]
    )
