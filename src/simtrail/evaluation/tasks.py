"""Tasks: the classification of every label column, with the scores of the classifiers and of the floors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from tqdm import tqdm

from simtrail.errors import InputError
from simtrail.evaluation.classifiers import knn_probabilities
from simtrail.evaluation.difference import paired
from simtrail.evaluation.names import FLOORS, UNSEEN
from simtrail.evaluation.probe import ProbeResult, Views, linear_probe, svc_probe
from simtrail.evaluation.scores import Scores, scores_with_intervals
from simtrail.params import Evaluate


@dataclass(frozen=True)
class Task:
    """The images with a label that can be learnable: arrays with one value per image of the task."""

    name: str
    rows: np.ndarray  # in the split table
    labels: np.ndarray  # class numbers: indices of `names`
    names: list[str]
    split: np.ndarray
    group: np.ndarray
    unknown: int  # test images left out because their class has no training image

    @property
    def test(self) -> np.ndarray:
        """Whether each image of the task is in the test split."""
        return self.split == "test"


def main_task(table: pd.DataFrame) -> Task | None:
    """The task of the dataset's label, without held-out classes; None with fewer than two classes.

    Raises InputError if the validation or the test split has no labelled image of a class with training images.
    """
    labels = table["label"].where(~_held_out(table))
    return _task(_name(table), labels, table) if _classes(labels, table) > 1 else None


def tasks(table: pd.DataFrame, columns: list[str]) -> list[Task]:
    """The tasks of a split table: the main task, then the classes held out of pretraining, then the other `columns`.

    Raises InputError for a column that does not exist or can't be learnable.
    """
    all_tasks = [task] if (task := main_task(table)) else []
    unseen = table["label"].where(_held_out(table))
    if unseen.notna().any():
        if _classes(unseen, table) < 2:
            raise InputError(
                "evaluate.held_out_classes: needs two classes or more with training images; add one, or set it to []"
            )
        all_tasks.append(_task(_name(table) + UNSEEN, unseen, table))
    for column in columns:
        key = f"meta.{column}"
        if key not in table:
            names = [c.removeprefix("meta.") for c in table if c.startswith("meta.")]
            raise InputError(
                f"evaluate.labels: {column!r}: no such column in metadata.csv; it has {', '.join(names) or 'none'}"
            )
        if column == _name(table):
            continue  # the main task
        if _classes(table[key], table) < 2:
            raise InputError(f"evaluate.labels: {column!r}: needs two classes or more in the training split; remove it")
        all_tasks.append(_task(column, table[key], table))
    return all_tasks


@dataclass(frozen=True)
class Result:
    """The results of the classifiers on a task's test images."""

    scores: dict[str, Scores]  # by classifier, a key of TITLES
    predicted: dict[str, np.ndarray]  # class numbers, by classifier
    per_class: pd.DataFrame  # the linear probe's scores of each class
    probabilities: np.ndarray  # (N, C), of the linear probe
    c: float  # its inverse regularisation strength
    svc_c: float
    gains: dict[str, dict[str, float]]  # floor → value, low, high: the probe's accuracy minus the floor's accuracy


def classify(
    task: Task, features: np.ndarray, floors: Mapping[str, np.ndarray], p: Evaluate, views: Views | None = None
) -> Result:
    """Every classifier and floor, scored on the test split; `features`, `views` and `floors` are of all images.

    `floors` may contain other features to compare with, which are no floor.
    """
    not_test, labels, classes = ~task.test, task.labels, len(task.names)
    task_features = features[task.rows]
    fits = 2 + bool(views) + len(floors)
    bar = tqdm(total=fits, desc=task.name, unit="classifier", disable=None, leave=False)

    def probe(vectors: np.ndarray, views: Views | None = None, like: ProbeResult | None = None) -> ProbeResult:
        bar.update()
        return linear_probe(vectors, labels, task.split, classes, balanced=p.balanced, views=views, like=like)

    linear = probe(task_features)
    probabilities: dict[str, np.ndarray] = {"linear_probe": linear.probabilities}
    if views:
        index = np.full(len(features), -1)  # of each image in the task; −1: not in the task
        index[task.rows] = np.arange(len(task.rows))
        in_task = index[views.rows] >= 0
        task_views = Views(views.features[in_task], index[views.rows[in_task]])
        probabilities["probe_augmented"] = probe(task_features, task_views, linear).probabilities
    probabilities["knn"] = knn_probabilities(
        task_features[not_test], labels[not_test], task_features[task.test], p.knn.k, p.knn.temperature, classes
    )
    bar.update()
    svc_predicted, svc_c = svc_probe(task_features, labels, task.split, balanced=p.balanced, seed=p.seed)
    predicted = {name: each.argmax(1) for name, each in probabilities.items()} | {"svc": svc_predicted}
    for name, vectors in floors.items():
        probabilities[name] = probe(vectors[task.rows]).probabilities
        predicted[name] = probabilities[name].argmax(1)
    bar.close()
    predicted["majority"] = np.full(task.test.sum(), np.bincount(labels[not_test]).argmax())
    truth, group = labels[task.test], task.group[task.test]
    scored = {
        name: scores_with_intervals(truth, numbers, group, classes, p.bootstrap, p.seed, probabilities.get(name))
        for name, numbers in predicted.items()
    }
    per_class = scored["linear_probe"][1].assign(**{"class": task.names})
    scores = {name: score for name, (score, _) in scored.items()}
    gains = _gains({name: numbers == truth for name, numbers in predicted.items()}, group)
    return Result(scores, predicted, per_class, linear.probabilities, linear.c, svc_c, gains)


def small_pixels(images: np.ndarray, full_scale: int, side: int = 16) -> np.ndarray:
    """(N, C, S, S) packed images, averaged to at most 16×16 pixels and flattened to (N, features) float32 in [0, 1]."""
    step = max(1, images.shape[-1] // side)
    n, c, size = *images.shape[:2], images.shape[-1] // step
    cut = images[:, :, : size * step, : size * step].reshape(n, c, size, step, size, step)
    return (cut.mean((3, 5), dtype=np.float32) / full_scale).reshape(n, -1)


def _gains(correct: dict[str, np.ndarray], group: np.ndarray) -> dict[str, dict[str, float]]:
    """By how much the linear probe is more accurate than each floor, with the interval of the paired difference."""
    floors = [name for name in correct if name in FLOORS]
    probe_correct = np.repeat(correct["linear_probe"][:, None], len(floors), 1)
    gain = paired(np.stack([correct[name] for name in floors], 1), probe_correct, group)
    return {
        name: {"value": float(gain.value[i]), "low": float(gain.low[i]), "high": float(gain.high[i])}
        for i, name in enumerate(floors)
    }


def _task(name: str, values: pd.Series, table: pd.DataFrame) -> Task:
    values = values.astype("object")
    learnable = set(values[(table["split"] == "train") & values.notna()])
    unknown = int((values.notna() & ~values.isin(learnable) & (table["split"] == "test")).sum())
    rows = np.flatnonzero(values.isin(learnable))
    names, labels = np.unique(values.to_numpy(dtype=str)[rows], return_inverse=True)
    split = table["split"].to_numpy(dtype=str)[rows]
    for part in ("val", "test"):
        if part not in split:
            raise InputError(
                f"{name}: the {part} split has no labelled image of a class with training images; label more images, "
                f"or raise prepare.{part}_fraction"
            )
    return Task(name, rows, labels, names.tolist(), split, table["block"].to_numpy()[rows], unknown)


def _classes(values: pd.Series, table: pd.DataFrame) -> int:
    return values[table["split"] == "train"].nunique()


def _held_out(table: pd.DataFrame) -> pd.Series:
    return table["held_out"] if "held_out" in table else pd.Series(False, index=table.index)


def _name(table: pd.DataFrame) -> str:
    """The column of metadata.csv with the labels, or 'label' if the labels are the names of folders."""
    columns = [c.removeprefix("meta.") for c in table if c.startswith("meta.") and table[c].equals(table["label"])]
    return columns[0] if columns else "label"
