"""The pilot: short trainings with each recipe of views, judged on the validation split, never on the test split.

It chooses `pretrain.recipe` where it is auto.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from simtrail.augment.views import TwoViews
from simtrail.data.recipe import Recipe
from simtrail.evaluation.difference import paired
from simtrail.model.backbone import grids_of
from simtrail.params import FEATURES, Params, Pretrain, Settings, changed
from simtrail.pipeline.training_run import training_run
from simtrail.pipeline.workspace import prepared, project_folder
from simtrail.training.features import Judge
from simtrail.training.loop import plan_steps
from simtrail.training.monitors import Monitor

SHARE = 0.25  # of the pixels that the whole training sees, for all trainings of the pilot together
STANDARD_ERROR = 0.68  # the level of an interval of one standard error on either side
STEPS = 40  # of each training at least: fewer say little about the recipe

Log = Callable[[str], None]


class Result(NamedTuple):
    """The recipe that the pilot chose, the reason, and a row for each recipe that was tried."""

    recipe: str
    reason: str
    table: list[dict[str, Any]]


class _Tried(NamedTuple):
    row: dict[str, Any]
    hits: np.ndarray  # (N, 2) of probe and kNN
    speed: float  # images per second of its last epoch


def choose_recipe(params: Params, log: Log) -> Result:
    """Chooses the recipe; `params` have the values of all other settings.

    It is the usual one, the first of `recipes_for`, unless the best is clearly better. Without labels it is the usual
    one: measures that need none were not good enough at choosing.
    """
    source = prepared()
    data = training_run(params.pretrain, "pilot").data
    p = params.pretrain
    monitor = Monitor(data, TwoViews(p.augment, source.recipe, p.view_sides[-1]), p.seed)
    names = recipes_for(source.recipe)
    steps = steps_each(len(data.train), p, source.recipe.size, len(names))
    if not monitor.labelled:
        return Result(names[0], "the usual one, because there are no labels on which others can be compared", [])
    if steps < STEPS:
        reason = f"the usual one, because the training is too short for a pilot ({steps} steps for each recipe)"
        return Result(names[0], reason, [])
    log(f"pilot: {len(names)} trainings of {steps} steps, with {SHARE:.0%} of the pixels of the whole training")
    judge = Judge(monitor)
    tried = [_short_run(params, name, steps, judge, log) for name in names]
    shutil.rmtree(project_folder() / ".simtrail" / "pilot", ignore_errors=True)  # only now: a killed pilot continues
    number = usual_or_best([each.hits for each in tried], judge.block)
    whole = in_first_views(len(data.train), p, source.recipe.size)
    seconds = whole * p.batch_size * len(p.seeds) / float(np.median([each.speed for each in tried]))
    log(f"pilot: at this speed, pretrain takes about {math.ceil(seconds / 60)} min")
    scores = [f"{name} {each.hits.mean():.3f}" for name, each in zip(names, tried, strict=True)]
    reason = "the best" if number else "the usual one, and no other is clearly better"
    reason += f"; mean accuracy of probe and kNN on {judge.what}: " + "; ".join([scores.pop(number), *scores])
    return Result(names[number], reason, [each.row for each in tried])


def steps_each(images: int, p: Pretrain, size: int, recipes: int) -> int:
    """The steps of each training of the pilot: a share of the pixels of the whole training, but no more steps."""
    return min(int(SHARE * in_first_views(images, p, size) / recipes), plan_steps(images, p)[1])


def in_first_views(images: int, p: Pretrain, size: int) -> float:
    """The length of the whole training, in steps with the first, smallest views that see as many pixels."""
    sides = [side or size for side in p.view_sides]
    return plan_steps(images, p)[1] * float(np.mean(np.square(sides))) / sides[0] ** 2


def usual_or_best(hits: list[np.ndarray], block: np.ndarray) -> int:
    """The position of the best hits, or 0, the usual recipe, if that is not worse by more than a standard error.

    The error is that of the paired difference over blocks of images, in the mean of the accuracies of probe and kNN.
    """
    scores = [each.mean(1, keepdims=True) for each in hits]
    best = max(range(len(hits)), key=lambda number: scores[number].mean())
    return best if paired(scores[0], scores[best], block, STANDARD_ERROR).low[0] > 0 else 0


def recipes_for(recipe: Recipe) -> list[str]:
    """The names of the recipes that can suit images of these bands, the usual one first."""
    known = [nm for nm in recipe.wavelengths or [] if nm is not None]
    if recipe.rgb or len(recipe.bands) == 1:
        return ["photograph", "specimen", "aerial", "microscopy", "sign"]
    spectral = ["spectral"] if len(set(known)) > 3 else []
    return [*spectral, "aerial", "specimen", "microscopy", "sign"]


def _short_run(params: Params, name: str, steps: int, judge: Judge, log: Log) -> _Tried:
    """Trains with a recipe for some steps, in an MLflow run of its own, and measures the encoder."""
    from simtrail.tracking.run import Trail, curve_logger, log_result
    from simtrail.tracking.run import run as mlflow_run

    first = params.pretrain.view_sides[0]
    settings: Settings = {"pretrain.recipe": name, "pretrain.max_steps": steps, "pretrain.view_size": first}
    if params.pretrain.encoder.features == "auto":
        settings[FEATURES] = [1]  # what is trained; the choice comes after the whole training
    short = changed(params, settings, "pilot")
    training = training_run(short.pretrain, "pilot")
    with mlflow_run(
        Trail(short, training.prepared),
        key=f"pilot {training.key}",
        resumed=bool(training.checkpoints),
        name=f"pilot {name}",
    ) as run_id:
        trained = training.fit(validate=False, on_epoch=curve_logger(run_id))
        encoder = trained.encoder
        training.checkpoints.finish()
        hits = judge.hits(judge.features(encoder, [grids_of(encoder.config.architecture)])[0])
        measures = dict(zip(("val_probe", "val_knn"), hits.mean(0).tolist(), strict=True))
        log_result({f"pilot/{kind}": value for kind, value in measures.items()}, [])
    log(f"pilot: {name}: " + ", ".join(f"{kind} {value:.3f}" for kind, value in measures.items()))
    row = {"recipe": name, "steps": steps, "run": run_id, **measures}
    return _Tried(row, hits, trained.history[-1]["images_per_second"])
