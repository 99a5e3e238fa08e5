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
from simtrail.params import FEATURES, Params, Settings, changed
from simtrail.pipeline.training_run import training_run
from simtrail.pipeline.workspace import prepared, project_folder
from simtrail.training.features import Judge, first_good
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


class _Hits(NamedTuple):
    right: np.ndarray  # (N, 2) of probe and kNN
    block: np.ndarray
    what: str  # the images


def choose_recipe(params: Params, log: Log) -> Result:
    """Chooses the recipe; `params` have the values of all other settings.

    With labels it is the first, in the order of `recipes_for`, that is not clearly worse than the best.
    """
    source = prepared()
    names = recipes_for(source.recipe)
    steps = int(SHARE * plan_steps(len(source.pretraining_rows("train")), params.pretrain)[1] / len(names))
    if steps < STEPS:
        reason = f"the usual one, because the training is too short for a pilot ({steps} steps for each recipe)"
        return Result(names[0], reason, [])
    log(f"pilot: {len(names)} trainings of {steps} steps, {SHARE:.0%} of the whole training")
    rows, hits = zip(*(_short_run(params, name, steps, log) for name in names), strict=True)
    shutil.rmtree(project_folder() / ".simtrail" / "pilot", ignore_errors=True)  # only now: a killed pilot continues
    if hits[0] is None:
        number = int(np.argmax([row["val_lidar"] for row in rows]))
        kind = "LiDAR of validation images, which have no labels"
    else:
        number = first_good([of_recipe.right for of_recipe in hits], hits[0].block)
        kind = f"accuracy on {hits[0].what}"
    scores = [f"{row['recipe']} {_score(row):.3f}" for row in rows]
    return Result(names[number], f"pilot, {kind}: " + "; ".join([scores.pop(number), *scores]), list(rows))


def recipes_for(recipe: Recipe) -> list[str]:
    """The names of the recipes that can suit images of these bands, the usual one first."""
    known = [nm for nm in recipe.wavelengths or [] if nm is not None]
    if recipe.rgb or len(recipe.bands) == 1:
        return ["photograph", "specimen", "aerial", "microscopy", "sign"]
    spectral = ["spectral"] if len(set(known)) > 3 else []
    return [*spectral, "aerial", "specimen", "microscopy", "sign"]


def _short_run(params: Params, name: str, steps: int, log: Log) -> tuple[dict[str, Any], _Hits | None]:
    """Trains with a recipe for some steps, in an MLflow run of its own, and measures the encoder."""
    from simtrail.tracking.run import Trail, curve_logger, log_result
    from simtrail.tracking.run import run as mlflow_run

    settings: Settings = {"pretrain.recipe": name, "pretrain.max_steps": steps}
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
        trained = training.fit(validate=False, on_epoch=curve_logger(run_id))
        training.checkpoints.finish()
        views = TwoViews(short.pretrain.augment, training.data.images.recipe)
        measures, hits = measure(trained, training.data, Monitor(training.data, views, short.pretrain.seed))
        log_result({f"pilot/{kind}": value for kind, value in measures.items()}, [])
    log(f"pilot: {name}: " + ", ".join(f"{kind} {value:.3f}" for kind, value in measures.items()))
    return {"recipe": name, "steps": steps, "run": run_id, **measures}, hits


def measure(trained: Trained, data: TrainingData, monitor: Monitor) -> tuple[dict[str, float], _Hits | None]:
    """The accuracies val_probe and val_knn with labels, and which images are right; val_lidar without."""
    encoder = trained.encoder
    if monitor.labelled:
        judge = Judge(monitor)
        right = judge.hits(judge.features(encoder, [grids_of(encoder.config.architecture)])[0])
        probe, neighbours = right.mean(0).tolist()
        return {"val_probe": probe, "val_knn": neighbours}, _Hits(right, judge.block, judge.what)
    rows = monitor.val[:PAIRS] if len(monitor.val) > 1 else data.train[:PAIRS]
    with torch.no_grad():
        batches = enumerate(monitor.batches(rows, encoder.device))
        pairs = [torch.stack(encoder(monitor.two_views(b, monitor.seed, i)).float().chunk(2), 1) for i, b in batches]
    return {"val_lidar": lidar(torch.cat(pairs).cpu().numpy())}, None


def _score(row: dict[str, Any]) -> float:
    return float(np.mean([value for name, value in row.items() if name.startswith("val_")]))
