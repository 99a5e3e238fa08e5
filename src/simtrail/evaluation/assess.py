"""The metrics of an encoder: classifiers and floors for every task, and label-free measures of its features."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from simtrail.augment.views import TwoViews
from simtrail.data.loader import to_unit
from simtrail.data.pack import PackedImages
from simtrail.errors import InputError
from simtrail.evaluation.geometry import alignment, effective_rank, feature_std, uniformity
from simtrail.evaluation.probe import Views
from simtrail.evaluation.structure import retrieval_between
from simtrail.evaluation.tasks import Result, Task, classify, small_pixels, tasks
from simtrail.model.encoder import Encoder
from simtrail.model.fusion import branch_bands
from simtrail.model.weights import load_weights
from simtrail.model.whitening import whitened
from simtrail.params import Augment, Evaluate

BATCH = 64  # on a processor, larger ones are slower: their maps leave the cache
HELD = 2**25  # image values that go through an encoder at a time: 128 MiB
PROBE = "linear_probe"


@dataclass(frozen=True)
class Embedded:
    """An encoder, the packed images, and their features."""

    encoder: Encoder
    images: PackedImages
    table: pd.DataFrame  # the split table: one row per packed image
    features: np.ndarray  # (N, D)

    @property
    def test(self) -> np.ndarray:
        """The rows of the test split."""
        return np.flatnonzero(self.table["split"] == "test")


@dataclass(frozen=True)
class Assessment:
    """The tasks with their results, and the metrics: {"features": …, "tasks": {TASK: {"scores": …, …}}}."""

    tasks: list[Task]
    results: list[Result]
    metrics: dict[str, Any]


def assess(
    embedded: Embedded,
    augment: Augment,
    p: Evaluate,
    log: Callable[[str], None] = lambda line: None,
    first_weights: str = "random",
    teacher: np.ndarray | None = None,
) -> Assessment:
    """The metrics of the test split; hyperparameters are chosen on the validation split.

    `first_weights`, as `load_weights` takes them, are those that the training started from: a floor, unless they are
    random. The features (N, W) of a `teacher` get a linear probe, too. `log` gets a line for each step. Raises
    InputError for features that are not finite.
    """
    features, table, test = embedded.features, embedded.table, embedded.test
    if len(not_finite := np.flatnonzero(~np.isfinite(features).all(1))):
        raise InputError(
            f"features: row {not_finite[0]} ({table['path'].iloc[not_finite[0]]}): not finite ({len(not_finite)} of "
            f"{len(features)} rows); train again with a lower pretrain.learning_rate, or precision: fp32"
        )
    encoder, images = embedded.encoder, embedded.images
    test_features = encoder.unwhitened(features[test])  # whitening would hide a collapse
    all_tasks = tasks(table, p.labels)
    log("features of augmented views")
    pair = _views(encoder, images, test, TwoViews(augment, images.recipe, encoder.config.view_side), p.seed)
    first, second = map(encoder.unwhitened, pair)
    metrics: dict[str, Any] = {
        "features": {
            "effective_rank": effective_rank(test_features),
            "uniformity": uniformity(test_features, p.seed),
            "alignment": alignment(first, second),
            "feature_std": feature_std(test_features),
        },
        "tasks": {},
    }
    if not all_tasks:
        return Assessment([], [], metrics)
    log("features of the floors")
    floors = _floors(embedded, p, first_weights) | ({} if teacher is None else {"teacher": teacher})
    views = (
        _probe_views(encoder, images, np.flatnonzero(table["split"] != "test"), augment, p) if p.probe_views else None
    )
    results = []
    for task in all_tasks:
        log(f"{task.name}: classifiers and floors, {len(task.names)} classes, {len(task.rows)} images")
        results.append(classify(task, features, floors, p, views))
    for task, result in zip(all_tasks, results, strict=True):
        metrics["tasks"][task.name] = {
            "classes": len(task.names),
            "images": int(task.test.sum()),
            "groups": len(np.unique(task.group[task.test])),
            "unknown": task.unknown,
            "C": result.c,
            "svc_C": result.svc_c,
            "scores": result.scores,
            "gains": result.gains,
        }
    return Assessment(all_tasks, results, metrics)


def over_seeds(
    assessment: Assessment, others: Iterable[Encoder], images: PackedImages, p: Evaluate
) -> dict[str, dict[str, float]]:
    """Mean and standard deviation of the main task's accuracies over encoders that differ only in their seed.

    The encoder of the assessment is one of them, `others` are the rest. Without labels, the dict is empty.
    """
    if not assessment.tasks:
        return {}
    scores = [assessment.results[0].scores]
    scores += [classify(assessment.tasks[0], features_of(other, images), {}, p).scores for other in others]
    values = {name: np.array([score[name]["accuracy"] for score in scores]) for name in ("linear_probe", "knn", "svc")}
    return {name: {"mean": v.mean(), "sd": v.std(ddof=1), "seeds": len(v)} for name, v in values.items()}


def by_modality(assessment: Assessment, embedded: Embedded, p: Evaluate) -> dict[str, dict[str, Any]]:
    """The scores of each modality, for an encoder with a branch per modality; empty for other encoders.

    `alone`: the linear probe's scores on the main task, from the features of one modality only. `retrieval`: recalls
    between the modalities of the test images, with keys like 'vis to uv'; only for an encoder trained with
    pretrain.terms.cross.
    """
    encoder, images = embedded.encoder, embedded.images
    by_name = {name: features_of(encoder, images, modality=name) for name in encoder.modalities}
    if not by_name:
        return {}
    aligned = {
        name: encoder.features((images.rows(rows) for rows in _batches(embedded.test, images)), name, aligned=True)
        for name in encoder.modalities
        if encoder.config.terms.cross
    }
    return {
        "alone": {
            name: classify(assessment.tasks[0], features, {}, p).scores[PROBE]
            for name, features in by_name.items()
            if assessment.tasks
        },
        "retrieval": {
            f"{first} to {second}": retrieval_between(aligned[first], aligned[second], seed=p.seed)
            for first, second in combinations(aligned, 2)
        },
    }


def features_of(
    encoder: Encoder, images: PackedImages, batch_size: int = BATCH, modality: str | None = None
) -> np.ndarray:
    """The (N, D) features of all packed images; with `modality`, from the bands of that modality only."""
    return encoder.features(
        (images.rows(rows) for rows in _batches(np.arange(len(images)), images, batch_size)), modality
    )


def _batches(rows: np.ndarray, images: PackedImages, batch_size: int = BATCH) -> Iterable[np.ndarray]:
    """The rows in batches, with a progress bar on a terminal."""
    step = max(1, min(batch_size, HELD // (len(images.recipe.bands) * images.recipe.size**2)))
    batches = [rows[start : start + step] for start in range(0, len(rows), step)]
    return tqdm(batches, "images", unit="batch", disable=None, leave=False)


def _floor(encoder: Encoder, embedded: Embedded) -> np.ndarray:
    """The (N, D) features of an encoder that learnt nothing from the images, whitened if those of `embedded` are."""
    features, train = features_of(encoder, embedded.images), np.flatnonzero(embedded.table["split"] == "train")
    if not embedded.encoder.config.whitened:
        return features
    return whitened(torch.from_numpy(features), torch.from_numpy(train)).numpy()


def _floors(embedded: Embedded, p: Evaluate, first_weights: str) -> dict[str, np.ndarray]:
    """Features that learnt nothing from these images: pixels, random weights, those that training started from."""
    encoder, images, recipe = embedded.encoder, embedded.images, embedded.images.recipe
    config = encoder.config.model_copy(update={"whitened": 0})
    bands = sorted({band for branch in branch_bands(config.architecture, recipe).values() for band in branch})
    batches = _batches(np.arange(len(images)), images)
    pixels = [small_pixels(images.rows(rows)[:, bands], recipe.full_scale) for rows in batches]
    with torch.random.fork_rng([]):
        torch.manual_seed(p.seed)
        untrained = Encoder(config).to(encoder.device)
        floors = {"raw_pixels": np.concatenate(pixels), "random_encoder": _floor(untrained, embedded)}
        if first_weights != "random":
            load_weights(untrained, first_weights)
            floors["first_weights"] = _floor(untrained, embedded)
        if p.pretrained:
            architecture = config.architecture.model_copy(
                update={"model": p.pretrained, "width": 1, "stem": "standard", "vit": None}
            )
            try:
                pretrained = Encoder(config.model_copy(update={"architecture": architecture}))
                load_weights(pretrained, "pretrained")
            except InputError as error:
                raise InputError(f"evaluate.pretrained = {p.pretrained!r}: {error}") from None
            floors["pretrained"] = _floor(pretrained.to(encoder.device), embedded)
    return floors


def _probe_views(encoder: Encoder, images: PackedImages, rows: np.ndarray, augment: Augment, p: Evaluate) -> Views:
    """Features of `probe_views` views of every image of `rows`; only their geometry is augmented."""
    groups = ("color", "texture", "spectral")
    off = {group: getattr(augment, group).model_copy(update={"strength": 0.0}) for group in groups}
    two_views = TwoViews(augment.model_copy(update=off), images.recipe, encoder.config.size)
    counts = enumerate([2] * (p.probe_views // 2) + [1] * (p.probe_views % 2))
    pairs = [_views(encoder, images, rows, two_views, p.seed, pair, count=count) for pair, count in counts]
    views = [view for pair in pairs for view in pair]
    return Views(np.concatenate(views), np.tile(rows, len(views)))


@torch.inference_mode()
def _views(
    encoder: Encoder, images: PackedImages, rows: np.ndarray, two_views: TwoViews, *seed: int, count: int = 2
) -> list[np.ndarray]:
    """The features of two views of every image, or of the first one."""

    def pairs() -> Iterator[torch.Tensor]:
        for number, batch_rows in enumerate(_batches(rows, images)):
            batch = to_unit(images.rows(batch_rows), images.recipe.full_scale, encoder.device)
            yield encoder(two_views(batch, *seed, number)[: count * len(batch)]).float().cpu()

    encoder.eval()
    return [torch.cat(view).numpy() for view in zip(*(pair.chunk(count) for pair in pairs()), strict=True)]
