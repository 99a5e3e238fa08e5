"""What an encoder knows: every label column is a task, on which classifiers are scored beside their floors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from simtrail.errors import InputError
from simtrail.evaluation.classifiers import knn_shares
from simtrail.evaluation.difference import paired
from simtrail.evaluation.probe import Views, linear_probe, svc_probe
from simtrail.evaluation.scores import FLOORS, Scores, with_intervals
from simtrail.params import Evaluate

UNSEEN = " (unseen)"


@dataclass(frozen=True)
class Task:
    """The images with a label: class numbers, names, split and group of the rows `rows` of all images.

    `unknown` counts the test images of classes without a training image: nobody could name them.
    """

    name: str
    rows: np.ndarray
    labels: np.ndarray
    names: list[str]
    split: np.ndarray
    group: np.ndarray
    unknown: int

    @property
    def test(self) -> np.ndarray:
        """Which of the task's rows are of the test split."""
        return self.split == "test"


def main_task(table: pd.DataFrame) -> Task | None:
    """The task of the declared label among the classes that pretraining sees, or None where there are no two classes;
    InputError when a split has no labels."""
    seen = table["label"].where(~_held_out(table))
    return _task(_name(table), seen, table) if _classes(seen, table) > 1 else None


def tasks(table: pd.DataFrame, columns: list[str]) -> list[Task]:
    """The tasks of a split table: the label's, then the classes held out of pretraining, then further `columns`.

    Raises InputError for a column that is not there or can't be learnt.
    """
    found = [task] if (task := main_task(table)) else []
    unseen = table["label"].where(_held_out(table))
    if unseen.notna().any():
        if _classes(unseen, table) < 2:
            raise InputError(
                "evaluate.held_out_classes: needs two classes at least with training images, to tell apart"
            )
        found.append(_task(_name(table) + UNSEEN, unseen, table))
    for column in columns:
        key = f"meta.{column}"
        if key not in table:
            known = [c.removeprefix("meta.") for c in table if c.startswith("meta.")]
            raise InputError(
                f"evaluate.labels: {column!r}: no such column in metadata.csv; it has {', '.join(known) or 'none'}"
            )
        if column == _name(table):
            continue  # the main task
        if _classes(table[key], table) < 2:
            raise InputError(f"evaluate.labels: {column!r}: needs two classes at least in the training split")
        found.append(_task(column, table[key], table))
    return found


@dataclass(frozen=True)
class Result:
    """What the classifiers say of a task's test images: scores by classifier (the keys of TITLES), class numbers,
    the scores of each class, the probabilities and the C of the linear probe, and by how much its accuracy exceeds
    that of each floor: value, low and high of the paired difference."""

    scores: dict[str, Scores]
    predicted: dict[str, np.ndarray]
    per_class: pd.DataFrame
    shares: np.ndarray
    penalty: float
    svc_penalty: float
    gains: dict[str, dict[str, float]]


def classify(
    task: Task, features: np.ndarray, floors: Mapping[str, np.ndarray], p: Evaluate, views: Views | None = None
) -> Result:
    """Every classifier and floor, scored on the test split; `features`, `views` and `floors` are of all images."""
    known, labels, classes = ~task.test, task.labels, len(task.names)
    own = features[task.rows]

    def probe(vectors: np.ndarray, views: Views | None = None) -> Any:
        return linear_probe(vectors, labels, task.split, classes, balanced=p.balanced, views=views)

    linear = probe(own)
    said: dict[str, np.ndarray] = {"linear_probe": linear.shares}
    if views:
        place = np.full(len(features), -1)
        place[task.rows] = np.arange(len(task.rows))
        mine = place[views.of] >= 0
        said["probe_augmented"] = probe(own, Views(views.features[mine], place[views.of[mine]])).shares
    said["knn"] = knn_shares(own[known], labels[known], own[task.test], p.knn.k, p.knn.temperature, classes)
    called, svc_penalty = svc_probe(own, labels, task.split, balanced=p.balanced, seed=p.seed)
    predicted = {name: shares.argmax(1) for name, shares in said.items()} | {"svc": called}
    for name, vectors in floors.items():
        said[name] = probe(vectors[task.rows]).shares
        predicted[name] = said[name].argmax(1)
    predicted["majority"] = np.full(task.test.sum(), np.bincount(labels[known]).argmax())
    truth, group = labels[task.test], task.group[task.test]
    scored = {
        name: with_intervals(truth, guess, group, classes, p.bootstrap, p.seed, said.get(name))
        for name, guess in predicted.items()
    }
    per_class = scored["linear_probe"][1].assign(**{"class": task.names})
    scores = {name: score for name, (score, _) in scored.items()}
    beaten = [name for name in predicted if name in FLOORS]
    right = {name: predicted[name] == truth for name in ["linear_probe", *beaten]}
    gain = paired(
        np.stack([right[name] for name in beaten], 1), np.repeat(right["linear_probe"][:, None], len(beaten), 1), group
    )
    gains = {
        name: {"value": float(gain.value[i]), "low": float(gain.low[i]), "high": float(gain.high[i])}
        for i, name in enumerate(beaten)
    }
    return Result(scores, predicted, per_class, linear.shares, linear.penalty, svc_penalty, gains)


def small_pixels(images: np.ndarray, full_scale: int, side: int = 16) -> np.ndarray:
    """(N, C, S, S) packed images averaged down to at most 16×16 and flattened to (N, features) float32 in [0, 1]."""
    step = max(1, images.shape[-1] // side)
    n, c, size = *images.shape[:2], images.shape[-1] // step
    cut = images[:, :, : size * step, : size * step].reshape(n, c, size, step, size, step)
    return (cut.mean((3, 5), dtype=np.float32) / full_scale).reshape(n, -1)


def _task(name: str, values: pd.Series, table: pd.DataFrame) -> Task:
    text = values.astype("object")
    learnt = set(text[(table["split"] == "train") & text.notna()])
    unknown = int((text.notna() & ~text.isin(learnt) & (table["split"] == "test")).sum())
    rows = np.flatnonzero(text.isin(learnt))
    names, labels = np.unique(text.to_numpy(dtype=str)[rows], return_inverse=True)
    split = table["split"].to_numpy(dtype=str)[rows]
    for part in ("val", "test"):
        if part not in split:
            raise InputError(
                f"{name}: no labelled image of a class to learn in the {part} split: label more images, or raise "
                f"prepare.{part}_fraction"
            )
    return Task(name, rows, labels, names.tolist(), split, table["block"].to_numpy()[rows], unknown)


def _classes(values: pd.Series, table: pd.DataFrame) -> int:
    return values[table["split"] == "train"].nunique()


def _held_out(table: pd.DataFrame) -> pd.Series:
    return table["held_out"] if "held_out" in table else pd.Series(False, index=table.index)


def _name(table: pd.DataFrame) -> str:
    """The column of metadata.csv that the label is, or 'label' where folders are."""
    same = [c.removeprefix("meta.") for c in table if c.startswith("meta.") and table[c].equals(table["label"])]
    return same[0] if same else "label"
