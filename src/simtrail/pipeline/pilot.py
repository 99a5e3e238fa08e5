"""The pilot: short trainings with each recipe of views, judged on the validation split, never on the test split.

It chooses `pretrain.recipe` and `pretrain.encoder.features` where they are auto.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from simtrail.augment.views import TwoViews
from simtrail.data.loader import TrainingData, to_unit
from simtrail.data.recipe import Recipe
from simtrail.errors import InputError
from simtrail.evaluation.classifiers import knn, ridge_probe
from simtrail.evaluation.geometry import lidar
from simtrail.model.encoder import Encoder
from simtrail.params import Params, Settings, changed
from simtrail.pipeline.training_run import encoder_config, training_run
from simtrail.pipeline.workspace import Prepared, prepared, project_folder
from simtrail.training.loop import plan_steps
from simtrail.training.monitors import BANK, NEIGHBOURS, VALIDATION

SHARE = 0.2  # of the steps of the whole training, for all trainings of the pilot together
STEPS = 20  # of each training at least: fewer say nothing about the recipe
GRIDS = [[1], [2], [1, 2, 3], [2, 3, 4]]
WITHOUT_PILOT = [1, 2, 3]
FOLDS, FEW = 5, 500  # with fewer labelled validation images, they and the training images are judged in folds
PAIRS = 512  # images whose views are compared without labels

Log = Callable[[str], None]


class Result(NamedTuple):
    """The values that the pilot chose, with reasons, and a row for each recipe and kind of features."""

    values: Settings
    reasons: dict[str, str]
    table: list[dict[str, Any]]


def run(params: Params, auto: Sequence[str], log: Log) -> Result:
    """Chooses the recipe and the features, those that are in `auto`; `params` have all other values."""
    wanted = {key for key in ("pretrain.recipe", "pretrain.encoder.features") if key in auto}
    source, p = prepared(), params.pretrain
    names = recipes_for(source.recipe) if "pretrain.recipe" in wanted else [p.recipe]
    grids = possible_grids(params, source) if "pretrain.encoder.features" in wanted else [p.encoder.features]
    if not wanted or len(names) * len(grids) == 1:
        return _fixed(wanted, names[0], grids[0], "the only one that these images and this network allow", log)
    steps = int(SHARE * plan_steps(len(source.pretraining_rows("train")), p)[1] / len(names))
    if steps < STEPS:
        reason = f"the usual one, because the training is too short for a pilot ({steps} steps for each recipe)"
        return _fixed(wanted, names[0], WITHOUT_PILOT if WITHOUT_PILOT in grids else grids[0], reason, log)
    log(f"pilot: {len(names)} trainings of {steps} steps, {SHARE:.0%} of the whole training")
    rows = [row for name in names for row in _short_run(params, name, grids, steps, source, log)]
    shutil.rmtree(project_folder() / ".simtrail" / "pilot", ignore_errors=True)  # only now: a killed pilot continues
    return _choose(rows, wanted, log)


def recipes_for(recipe: Recipe) -> list[str]:
    """The names of the recipes that can suit images of these bands, the usual one first."""
    known = [nm for nm in recipe.wavelengths or [] if nm is not None]
    if recipe.rgb or len(recipe.bands) == 1:
        return ["photograph", "specimen", "aerial", "microscopy", "sign"]
    spectral = ["spectral"] if len(set(known)) > 3 else []
    return [*spectral, "aerial", "specimen", "microscopy", "sign"]


def possible_grids(params: Params, source: Prepared) -> list[list[int]]:
    """The kinds of features that the network can give for these images."""
    possible = []
    for grids in GRIDS:
        try:
            Encoder(encoder_config(changed(params, {"pretrain.encoder.features": grids}, "plan").pretrain, source))
        except InputError:
            if grids == [1]:
                raise
        else:
            possible.append(grids)
    return possible


def judge(
    features: np.ndarray, labels: np.ndarray, split: np.ndarray, block: np.ndarray, folds: int
) -> dict[str, float]:
    """The accuracies val_probe and val_knn of labelled images.

    With one fold, the classifiers learn from the training images and are tested on the validation images. With more,
    each fold of all images is tested by classifiers that learn from the others; images of one block are in one fold.
    """
    if folds == 1:
        parts = [(split == "train", split == "val")]
    else:
        _, number = np.unique(block, return_inverse=True)
        fold = np.random.default_rng(0).permutation(number.max() + 1)[number] % folds
        parts = [(fold != f, fold == f) for f in range(folds)]
    hits = {"val_probe": 0, "val_knn": 0}
    for bank, queries in parts:
        x, y, q = features[bank], labels[bank], features[queries]
        hits["val_probe"] += int((ridge_probe(x, y, q) == labels[queries]).sum())
        hits["val_knn"] += int((knn(x, y, q, NEIGHBOURS) == labels[queries]).sum())
    tested = sum(int(queries.sum()) for _, queries in parts)
    return {name: count / tested for name, count in hits.items()}


def _short_run(
    params: Params, name: str | None, grids: list[list[int]], steps: int, source: Prepared, log: Log
) -> list[dict[str, Any]]:
    """Trains with a recipe for some steps, in an MLflow run of its own; a row for each kind of features."""
    from simtrail.tracking.run import Trail, curve_logger, log_result
    from simtrail.tracking.run import run as mlflow_run

    # one validation, at the end; the run measures more than that
    settings = {"pretrain.max_steps": steps, "pretrain.monitor.metric": "last", "pretrain.monitor.every": steps}
    settings |= {"pretrain.recipe": name} if name else {}
    short = changed(params, settings, "pilot")
    training = training_run(short.pretrain, "pilot")
    trail = Trail(short, training.data_md5)
    title, resumed = f"pilot {name or 'of the features'}", bool(training.checkpoints)
    with mlflow_run(trail, key=f"pilot {training.key}", resumed=resumed, name=title) as run_id:
        trained = training.fit(on_epoch=curve_logger(run_id))
        training.checkpoints.finish()
        rows = []
        for choice, measures in zip(grids, measure(trained.encoder, grids, short, source, training.data), strict=True):
            rows.append({"recipe": name, "features": choice, "steps": steps, "run": run_id, **measures})
            grid = " ".join(map(str, choice))  # no brackets in the names of MLflow's metrics
            log_result({f"pilot/{kind} {grid}": value for kind, value in measures.items()}, [])
    best = max(rows, key=_score)
    log(f"pilot: {name or 'present views'}: " + ", ".join(f"{k} {v:.3f}" for k, v in _measures(best).items()))
    return rows


@torch.inference_mode()
def measure(
    encoder: Encoder, grids: list[list[int]], params: Params, source: Prepared, data: TrainingData
) -> list[dict[str, float]]:
    """The measures of each kind of features: val_probe and val_knn with labels, val_lidar without."""
    rng, table = np.random.default_rng(params.pretrain.seed), source.table
    train, val = rng.permutation(data.train)[:BANK], rng.permutation(data.val)[:VALIDATION]
    scale = source.images.recipe.full_scale

    def features(rows: np.ndarray, views: TwoViews | None = None) -> list[np.ndarray]:
        """(N, width) for each kind of features; (N, 2, width) of two views of each image."""
        parts = []
        for number, start in enumerate(range(0, len(rows), 256)):
            batch = to_unit(source.images.rows(rows[start : start + 256]), scale, encoder.device)
            of_batch = encoder.features_on(grids, views(batch, params.pretrain.seed, number) if views else batch)
            of_batch = [torch.stack(each.chunk(2), 1) for each in of_batch] if views else of_batch
            parts.append([each.float().cpu().numpy() for each in of_batch])
        return [np.concatenate(part) for part in zip(*parts, strict=True)]

    labels = np.full(len(source.images), -1) if data.labels is None else data.labels
    train, val = train[labels[train] >= 0], val[labels[val] >= 0]
    if min(len(np.unique(labels[train])), len(np.unique(labels[val]))) >= 2:
        rows, folds = np.concatenate([train, val]), 1 if len(val) >= FEW else FOLDS
        split, block = table["split"].to_numpy(dtype=str)[rows], table["block"].to_numpy()[rows]
        return [judge(each, labels[rows], split, block, folds) for each in features(rows)]
    rows = rng.permutation(data.val if len(data.val) > 1 else data.train)[:PAIRS]
    views = TwoViews(params.pretrain.augment, source.recipe)
    return [{"val_lidar": lidar(pairs)} for pairs in features(rows, views)]


def _choose(rows: list[dict[str, Any]], wanted: set[str], log: Log) -> Result:
    """The best recipe over all kinds of features, and the best kind of features over all recipes.

    The means over the other axis vary less by chance than the best single row.
    """
    values: Settings = {}
    reasons: dict[str, str] = {}
    kind = "validation" if "val_probe" in rows[0] else "LiDAR of validation images, which have no labels"
    for key, column in (("pretrain.recipe", "recipe"), ("pretrain.encoder.features", "features")):
        if key not in wanted:
            continue
        scores: dict[str, list[float]] = {}
        for row in rows:
            scores.setdefault(str(row[column]), []).append(_score(row))
        means = {name: float(np.mean(of_name)) for name, of_name in scores.items()}
        order = sorted(means, key=lambda name: -means[name])
        values[key] = next(row[column] for row in rows if str(row[column]) == order[0])
        others = ", ".join(f"{name} {means[name]:.3f}" for name in order[1:])
        reasons[key] = f"pilot on {kind}: {means[order[0]]:.3f}" + (f"; {others}" if others else ", alone")
        log(f"{key} = {values[key]}: {reasons[key]}")
    return Result(values, reasons, rows)


def _fixed(wanted: set[str], name: str | None, grids: list[int], reason: str, log: Log) -> Result:
    values = {"pretrain.recipe": name, "pretrain.encoder.features": grids}
    values = {key: value for key, value in values.items() if key in wanted}
    for key, value in values.items():
        log(f"{key} = {value}: {reason}")
    return Result(values, dict.fromkeys(values, reason), [])


def _measures(row: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in row.items() if name.startswith("val_")}


def _score(row: dict[str, Any]) -> float:
    return float(np.mean(list(_measures(row).values())))
