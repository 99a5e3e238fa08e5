"""The pilot: short trainings with each recipe of views, judged on the validation split, never on the test split.

It chooses `pretrain.recipe` where it is auto.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from simtrail.augment.views import TwoViews
from simtrail.data.loader import TrainingData
from simtrail.data.recipe import Recipe
from simtrail.evaluation.geometry import lidar
from simtrail.model.backbone import grids_of
from simtrail.params import FEATURES, Params, changed
from simtrail.pipeline.training_run import training_run
from simtrail.pipeline.workspace import prepared, project_folder
from simtrail.training.features import FEW, Judge
from simtrail.training.loop import Trained, plan_steps
from simtrail.training.monitors import Monitor

SHARE = 0.2  # of the steps of the whole training, for all trainings of the pilot together
STEPS = 20  # of each training at least: fewer say nothing about the recipe
PAIRS = 512  # images whose views are compared without labels

Log = Callable[[str], None]


class Result(NamedTuple):
    """The recipe that the pilot chose, the reason, and a row for each recipe that was tried."""

    recipe: str
    reason: str
    table: list[dict[str, Any]]


def choose_recipe(params: Params, log: Log) -> Result:
    """Chooses the recipe; `params` have the values of all other settings."""
    source = prepared()
    names = recipes_for(source.recipe)
    steps = int(SHARE * plan_steps(len(source.pretraining_rows("train")), params.pretrain)[1] / len(names))
    if steps < STEPS:
        reason = f"the usual one, because the training is too short for a pilot ({steps} steps for each recipe)"
        return Result(names[0], reason, [])
    log(f"pilot: {len(names)} trainings of {steps} steps, {SHARE:.0%} of the whole training")
    rows = [_short_run(params, name, steps, log) for name in names]
    shutil.rmtree(project_folder() / ".simtrail" / "pilot", ignore_errors=True)  # only now: a killed pilot continues
    rows.sort(key=_score, reverse=True)
    kind = "accuracy on validation" if "val_probe" in rows[0] else "LiDAR of validation images, which have no labels"
    scores = "; ".join(f"{row['recipe']} {_score(row):.3f}" for row in rows)
    return Result(rows[0]["recipe"], f"pilot, {kind}: {scores}", rows)


def recipes_for(recipe: Recipe) -> list[str]:
    """The names of the recipes that can suit images of these bands, the usual one first."""
    known = [nm for nm in recipe.wavelengths or [] if nm is not None]
    if recipe.rgb or len(recipe.bands) == 1:
        return ["photograph", "specimen", "aerial", "microscopy", "sign"]
    spectral = ["spectral"] if len(set(known)) > 3 else []
    return [*spectral, "aerial", "specimen", "microscopy", "sign"]


def _short_run(params: Params, name: str, steps: int, log: Log) -> dict[str, Any]:
    """Trains with a recipe for some steps, in an MLflow run of its own, and measures the encoder."""
    from simtrail.tracking.run import Trail, curve_logger, log_result
    from simtrail.tracking.run import run as mlflow_run

    settings = {"pretrain.recipe": name, "pretrain.max_steps": steps, "pretrain.monitor.metric": "last"}
    settings |= {"pretrain.monitor.every": steps}  # one validation, at the end
    if params.pretrain.encoder.features == "auto":
        settings[FEATURES] = [1]  # what is trained; the choice comes after the whole training
    short = changed(params, settings, "pilot")
    training = training_run(short.pretrain, "pilot")
    with mlflow_run(
        Trail(short, training.data_md5),
        key=f"pilot {training.key}",
        resumed=bool(training.checkpoints),
        name=f"pilot {name}",
    ) as run_id:
        trained = training.fit(on_epoch=curve_logger(run_id))
        training.checkpoints.finish()
        views = TwoViews(short.pretrain.augment, training.data.images.recipe)
        measures = measure(trained, training.data, Monitor(training.data, views, short.pretrain.seed))
        log_result({f"pilot/{kind}": value for kind, value in measures.items()}, [])
    log(f"pilot: {name}: " + ", ".join(f"{kind} {value:.3f}" for kind, value in measures.items()))
    return {"recipe": name, "steps": steps, "run": run_id, **measures}


@torch.inference_mode()
def measure(trained: Trained, data: TrainingData, monitor: Monitor) -> dict[str, float]:
    """The accuracies val_probe and val_knn with labels, val_lidar without."""
    encoder, names = trained.encoder, ("val_probe", "val_knn")
    if monitor.labelled and len(monitor.queries) >= FEW:
        return {name: trained.history[-1][name] for name in names}
    if monitor.labelled:
        judge = Judge(monitor)
        (features,) = judge.features(encoder, [grids_of(encoder.config.architecture)])
        return dict(zip(names, judge.hits(features).mean(0).tolist(), strict=True))
    rows = monitor.val[:PAIRS] if len(monitor.val) > 1 else data.train[:PAIRS]
    batches = enumerate(monitor.batches(rows, encoder.device))
    pairs = [torch.stack(encoder(monitor.two_views(b, monitor.seed, i)).float().chunk(2), 1) for i, b in batches]
    return {"val_lidar": lidar(torch.cat(pairs).cpu().numpy())}


def _score(row: dict[str, Any]) -> float:
    return float(np.mean([value for name, value in row.items() if name.startswith("val_")]))
