"""What a run and a registered version record about an encoder: metrics, checks, lineage and the model card."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from simtrail.data.recipe import Recipe, levels
from simtrail.errors import InputError
from simtrail.evaluation.names import beats_floors
from simtrail.params import Params
from simtrail.pipeline.workspace import CHOSEN, ENCODER, MANIFEST, PLAN, STATISTICS, VALIDATION, read_json, read_tables
from simtrail.report.card import model_card
from simtrail.report.wording import verdict
from simtrail.tracking import registry
from simtrail.tracking.pull import encoder_hash
from simtrail.tracking.run import Trail, lineage, log_result, run, tag_run
from simtrail.tracking.trace import parents

History = list[dict[str, float]]


def facts(params: Params, encoder: Path, history: History, metrics: dict[str, Any], run_id: str) -> dict[str, Any]:
    """What the report and the model card show about the encoder in a folder."""
    from simtrail.model.encoder import Encoder  # slow to import

    loaded = Encoder.load(encoder)
    return {
        "name": params.register_.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "params": params.model_dump(by_alias=True),
        "validation": read_json(VALIDATION, "check"),
        "statistics": read_json(STATISTICS, "prepare"),
        "history": history,
        "metrics": metrics,
        "width": loaded.width,
        "seen": loaded.config.size,
        "stamps": {"weights": loaded.config.first_weights, "teacher": loaded.config.teacher},
        "chosen": _chosen(params),
        "tables": read_tables() if encoder == ENCODER else {},  # they are of the pipeline's encoder
        "lineage": lineage(run_id) | {"encoder_sha256": encoder_hash(encoder)},
    }


def log_evaluation(params: Params, encoder: Path, metrics: dict[str, Any], files: list[Path]) -> None:
    """Logs metrics, and files such as scores.json and predictions.parquet, to the run of the encoder in a folder."""
    statistics = read_json(STATISTICS, "prepare")
    with run(Trail(params, statistics), encoder=encoder_hash(encoder)) as run_id:
        tag_run(run_id, "simtrail.split_hash", statistics["split_hash"])
        log_result(flat_metrics(metrics), files)


def register_encoder(
    params: Params, encoder: Path, history: History, metrics: dict[str, Any], predictions: pd.DataFrame
) -> dict[str, Any]:
    """Registers the encoder in a folder, trained on the prepared images with these parameters.

    Returns name, version, alias, reason, encoder_sha256 and run_id. Raises InputError if `register.beat_floors` refuses
    the encoder.
    """
    task = next(iter(metrics["tasks"]), None)
    weak = task is not None and not beats_floors(metrics["tasks"][task]["gains"])
    if weak and params.register_.beat_floors:
        raise InputError(
            f"register.beat_floors = true: the encoder is refused. {verdict(metrics['tasks'][task])} "
            "Train a better one, or set register.beat_floors: false"
        )
    flat, statistics = flat_metrics(metrics), read_json(STATISTICS, "prepare")
    manifest = pd.read_parquet(MANIFEST, columns=["dtype", "bands", "alpha", "rejected"])
    usual = manifest[manifest["rejected"].isna()].mode().iloc[0]
    candidate = registry.Candidate(
        encoder=encoder,
        history=history,
        metrics=flat,
        deciding="linear_probe/accuracy" if "linear_probe/accuracy" in flat else "features/effective_rank",
        split_hash=statistics["split_hash"],
        predictions=predictions[predictions["task"] == task] if task else None,
        caveat="its linear probe is not significantly better than all floors" if weak else "",
        checks=_checks(read_json(VALIDATION, "check")),
        signature=(np.dtype(usual["dtype"]), int(usual["bands"]) + int(usual["alpha"])),
        card=lambda run_id: model_card(facts(params, encoder, history, metrics, run_id)),
        trail=lambda run_id: _trail(params, encoder, flat, run_id),
    )
    return registry.register(Trail(params, statistics), candidate)


def flat_metrics(metrics: dict[str, Any]) -> dict[str, float]:
    """The metrics as MLflow shows them: a section per classifier of the main task, and one per other task.

    Only the accuracy has its interval.
    """
    rows = {f"features/{name}": value for name, value in metrics["features"].items()}
    modalities = metrics.get("modalities", {})
    rows |= {f"modalities/{name} alone": scores["accuracy"] for name, scores in modalities.get("alone", {}).items()}
    for pair, recalls in modalities.get("retrieval", {}).items():
        rows |= {f"modalities/{pair} {name}": value for name, value in recalls.items()}
    for number, (name, task) in enumerate(metrics["tasks"].items()):
        prefix = re.sub(r"[^\w. -]", "", f"{name} ") if number else ""
        rows |= {f"{prefix}geometry/{key}": value for key, value in task.get("geometry", {}).items()}
        for classifier, scores in task["scores"].items():
            rows |= {
                f"{prefix}{classifier}/{key}": value
                for key, value in scores.items()
                if not key.endswith(("_low", "_high")) or key.startswith("accuracy_")
            }
    return {name: value for name, value in rows.items() if value is not None}


def _trail(params: Params, encoder: Path, metrics: dict[str, float], run_id: str) -> dict[str, Any]:
    """Where an encoder comes from, for the file that travels with it."""
    validation, statistics, origin = read_json(VALIDATION, "check"), read_json(STATISTICS, "prepare"), lineage(run_id)
    return {
        "name": params.register_.name,
        "license": params.register_.license,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "run": run_id,
        "code": {"commit": origin["commit"], "uncommitted changes": origin["dirty"]},
        "data": {
            "dataset": validation["dataset"],
            "md5": statistics["data_md5"],
            "images": validation["images"],
            "checks": _checks(validation),
            "split hash": statistics["split_hash"],
        },
        "environment": origin["versions"],
        "parents": parents(run_id),
        "scores": {key: value for key, value in metrics.items() if key.startswith("linear_probe/accuracy")},
        "encoder_sha256": encoder_hash(encoder),
        "parameters": params.flat(),
    }


def _chosen(params: Params) -> dict[str, str]:
    """Value and reason of each setting that was auto, if these parameters have the value that was chosen."""
    records = [read_json(path, stage) for path, stage in ((PLAN, "plan"), (CHOSEN, "pretrain")) if path.exists()]
    flat, recipe = params.flat(), Recipe(**read_json(STATISTICS, "prepare")["recipe"])
    first = {"prepare.background": f"{levels(recipe.background)}: {recipe.origin}"}
    return {key: text for key, text in first.items() if flat[key] == "auto"} | {
        key: json.dumps(value).strip('"') + f": {record['reasons'][key]}"
        for record in records
        for key, value in record["values"].items()
        if flat[key] == value
    }


def _checks(validation: dict[str, Any]) -> str:
    """The result of the checks in a few words: `passed, 2 warnings`."""
    warnings = sum(not f["success"] for f in validation["findings"] if f["severity"] == "warning")
    passed = "passed" if validation["success"] else f"{len(validation['rejected'])} images quarantined"
    return f"{passed}, {warnings} warnings"
