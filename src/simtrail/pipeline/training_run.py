"""A training run on the prepared images, ready to start: what the pretrain stage, sweeps and ablations share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from simtrail.augment.views import TwoViews
from simtrail.data.loader import TrainingData
from simtrail.errors import InputError, listed
from simtrail.model import CONFIG, WEIGHTS
from simtrail.model.backbone import one_line, takes_one_size
from simtrail.model.encoder import Encoder, EncoderConfig
from simtrail.model.weights import CHOICES, HUB, is_file
from simtrail.params import Params, Pretrain, changed, recipe, shown, value_of
from simtrail.pipeline.workspace import Prepared, code_hash, prepared, project_folder
from simtrail.training.features import Chosen
from simtrail.training.loop import Trained, fit
from simtrail.training.state import Checkpoints

# the code that decides the result of training: after a change, no run resumes from an older checkpoint
CODE = (
    *("augment", "data/area.py", "data/loader.py", "data/pack.py", "data/recipe.py"),
    *("evaluation/classifiers.py", "evaluation/difference.py", "evaluation/geometry.py", "model", "training"),
)


class TrainingRun(NamedTuple):
    """A training run, ready to start."""

    key: str  # identifies everything that decides the result: data, split, settings, first weights, code
    origin: str  # the same without the settings
    prepared: dict[str, Any]  # the statistics of the prepared images
    first_weights: str  # random, pretrained, or the sha256 of an encoder
    data: TrainingData
    warnings: list[str]  # settings that have no effect
    checkpoints: Checkpoints
    fit: Callable[..., Trained]  # takes on_epoch and log


def training_run(p: Pretrain, group: str = "") -> TrainingRun:
    """The training run of these settings on the prepared images; InputError where there are none.

    Runs of a `group` have their own checkpoints, which no other run with the same settings uses.
    """
    p = p.each_seed()[0]
    statistics, _, bands, images = source = prepared()
    config = encoder_config(p, source)
    weights, code = first_weights(p.weights), code_hash(*CODE)
    of_teacher = first_weights(p.teacher.weights, "pretrain.teacher.weights") if p.teacher.weights else None
    stamps = [weights.stamp, *([of_teacher.stamp] if of_teacher else [])]
    origins = {"first_weights": weights.stamp, "teacher": of_teacher.stamp if of_teacher else None}
    config = config.model_copy(update=origins)
    settings = p.model_dump(exclude={"checkpoint"})  # how often a run is saved does not change its result
    key, origin = (
        hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
        for parts in ([statistics, settings, *stamps, code], [statistics, *stamps, code])
    )
    with torch.random.fork_rng([]):
        encoder = Encoder(config)  # errors in the encoder's settings must come before any file is replaced
        _check_views(encoder, p)
    train, val = (source.pretraining_rows(part) for part in ("train", "val"))
    labels, block = pd.factorize(source.table["label"])[0], source.table["block"].to_numpy()
    of_group, weight = _groups(p, source.table["group"], train), _weights(p, source.table, train)
    data = TrainingData(images, train, val, labels, block, of_group, weight)
    checkpoints = Checkpoints(project_folder() / ".simtrail" / group, key, p.checkpoint.keep)
    teacher = p.teacher.model_copy(update={"weights": of_teacher and of_teacher.location})
    p = p.model_copy(update={"weights": weights.location, "teacher": teacher})
    warnings = [*without_effect(TwoViews(p.augment, bands, config.view_side), p.recipe), *_without_effect(p)]
    start = partial(_fit, data, config, p, checkpoints=checkpoints)
    return TrainingRun(key, origin, statistics, weights.stamp, data, warnings, checkpoints, start)


def _fit(data: TrainingData, config: EncoderConfig, p: Pretrain, **options: Any) -> Trained:
    """As `fit`, with the features of a teacher if there is one."""
    if p.teacher.weights:
        from simtrail.model.teacher import teacher_features

        log = options.get("log", lambda line: None)
        with torch.random.fork_rng([]):  # the teacher's first weights are replaced
            features = teacher_features(p.teacher, config, data.images, data.train, log)
        data = data._replace(teacher=features)
    return fit(data, config, p, **options)


def encoder_config(p: Pretrain, source: Prepared) -> EncoderConfig:
    """The configuration of an encoder of the prepared images."""
    return EncoderConfig(
        architecture=p.encoder,
        head=p.head,
        recipe=source.recipe,
        mean=source.statistics["mean"],
        std=source.statistics["std"],
        terms=p.terms,
        view_size=p.view_sides[-1],
        reduced=takes_one_size(p.encoder.model),
    )


def with_features(params: Params, chosen: Chosen | None) -> Params:
    """The parameters with what a training chose that the features are made of, if that was auto."""
    return changed(params, chosen.values, "the training") if chosen else params


def without_effect(views: TwoViews, recipe_name: str | None) -> list[str]:
    """One line for each setting of the views that has no effect, unless it has the value of the recipe."""
    of_recipe, present = recipe(recipe_name) if recipe_name else {}, views.params.model_dump()
    lines = {line.split(":")[0].removeprefix("pretrain.augment."): line for line in views.without_effect()}
    return [line for key, line in lines.items() if value_of(of_recipe, key) != value_of(present, key)]


def _check_views(encoder: Encoder, p: Pretrain) -> None:
    """Raises InputError unless the network takes views of each side, and local views of half the side."""
    for side in (side or encoder.config.view_side for side in p.view_sides):
        half = side // 2
        if side != encoder.config.size and (reason := refusal(encoder, side)):
            raise InputError(
                f"pretrain.view_size = {shown(p.view_size)}: {p.encoder.model!r} does not take views of {side}×{side} "
                f"({reason}); choose another size or another network, or set null"
            )
        if p.local_views and (reason := refusal(encoder, half)):
            one = f"pretrain.view_size: {p.view_sides[-1]}, which now is {p.view_size}, or " * (len(p.view_sides) > 1)
            raise InputError(
                f"pretrain.local_views = {p.local_views}: {p.encoder.model!r} does not take views of half its size, "
                f"{half}×{half} ({reason}); set {one}a larger size, another network, or local_views: 0"
            )


@torch.no_grad()
def refusal(encoder: Encoder, side: int) -> str:
    """Why the network does not take views of this side; empty if it does. Sets evaluation mode."""
    try:
        Encoder(encoder.config.model_copy(update={"view_size": side}))
        encoder.eval()(torch.zeros(1, len(encoder.config.recipe.bands), side, side))
    except (AssertionError, InputError, RuntimeError, ValueError) as error:
        return one_line(error)
    return ""


def _groups(p: Pretrain, names: pd.Series, train: np.ndarray) -> np.ndarray | None:
    """The number of each image's group, if positives are those of groups; an image without a group is its own."""
    if p.positives == "view":
        return None
    number, _ = pd.factorize(names)
    group = np.where(number < 0, len(names) + np.arange(len(names)), number)
    largest = names.iloc[train].value_counts()
    if not (largest > 1).any():
        raise InputError(
            "pretrain.positives = 'group': no two training images are of one group; name the column of groups in "
            "dataset.yaml (group: COLUMN), or set view"
        )
    if p.objective == "dcl" and largest.iloc[0] >= p.batch_size:
        raise InputError(
            f"pretrain.objective = 'dcl': {largest.iloc[0]} training images are of the group {largest.index[0]!r}, and "
            f"fill a batch of {p.batch_size} without negatives; set nt_xent, or a larger pretrain.batch_size"
        )
    return group


def _weights(p: Pretrain, table: pd.DataFrame, train: np.ndarray) -> np.ndarray | None:
    """How often each image is drawn, in proportion; None if all are equally often."""
    if p.sampling == "uniform":
        return None
    weight, of_training = np.ones(len(table)), table.iloc[train]
    if p.sampling == "balanced":
        counts = of_training["label"].value_counts()
        if len(counts) < 2:
            raise InputError(
                "pretrain.sampling = 'balanced': needs training images of two classes or more; set uniform"
            )
        weight = (counts.sum() / len(counts) / table["label"].map(counts)).fillna(1.0).to_numpy()
    elif (column := f"meta.{p.sampling}") in table:
        numbers = pd.to_numeric(of_training[column], errors="coerce")
        if len(wrong := of_training[~(numbers.ge(0) & np.isfinite(numbers))]):
            first = wrong.iloc[0]
            raise InputError(
                f"pretrain.sampling = {p.sampling!r}: {len(wrong)} of {len(train)} training images have no number ≥ 0 "
                f"in this column, such as {first['path']}: {first[column]!r}; correct them in the table of metadata"
            )
        weight[train] = numbers
    else:
        columns = [name.removeprefix("meta.") for name in table if name.startswith("meta.")]
        raise InputError(
            f"pretrain.sampling = {p.sampling!r}: must be uniform, balanced or a column of metadata.csv"
            + (f": {listed(columns)}" if columns else ", which has no further columns")
        )
    if (drawn := int((weight[train] > 0).sum())) < p.batch_size:
        raise InputError(
            f"pretrain.sampling = {p.sampling!r}: only {drawn} training images have a number above 0, fewer than "
            f"pretrain.batch_size = {p.batch_size}; set a smaller batch"
        )
    return weight


class _FirstWeights(NamedTuple):
    location: str  # random, pretrained, or a folder
    stamp: str  # identifies the weights: a name may come to mean others


def first_weights(weights: str, setting: str = "pretrain.weights") -> _FirstWeights:
    """The weights of a setting as the training core takes them; a registered model is downloaded."""
    if weights in ("random", "pretrained") or weights.startswith(HUB):
        return _FirstWeights(weights, weights)
    folder = Path(weights)
    if is_file(weights) and folder.is_file():
        return _FirstWeights(str(folder), hashlib.sha256(folder.read_bytes()).hexdigest())
    if weights.startswith("models:/"):
        from simtrail.tracking.pull import fetch

        try:
            folder = fetch(weights)
        except InputError as error:
            raise InputError(f"{setting}: {error}") from None
    files = [folder / WEIGHTS, folder / CONFIG]
    if missing := [file for file in files if not file.is_file()]:
        choices = CHOICES.replace("random, ", "") if setting != "pretrain.weights" else CHOICES
        raise InputError(
            f"{setting} = {weights!r}: {choices}; {folder if is_file(weights) else missing[0]}: no such file"
        )
    return _FirstWeights(str(folder), hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest())


def _without_effect(p: Pretrain) -> list[str]:
    """One line for each setting of `pretrain` that has no effect because of the other settings."""
    lines = []
    if p.head.depth < 2 and p.head.batch_norm:
        lines.append(f"head.hidden, head.batch_norm: no effect: a head of depth {p.head.depth} has no hidden layer")
    if p.head.depth == 0:
        lines.append("head.output: no effect: without a head, the features are the projections")
    if p.teacher.model and (not p.teacher.weights or Path(p.teacher.weights).is_dir()):
        reason = "the teacher has its own" if p.teacher.weights else "teacher.weights is not set"
        lines.append(f"teacher.model = {p.teacher.model}: no effect: {reason}")
    if p.optimiser == "lars" and p.learning_rate < 0.05:
        lines.append(f"learning_rate = {p.learning_rate}: almost no effect with LARS, which needs 0.3 to 5")
    if p.monitor.metric == "last" and p.monitor.patience:
        lines.append(f"monitor.patience = {p.monitor.patience}: no effect: monitor.metric is last")
    return [f"pretrain.{line}" for line in lines]
