"""Scores of an encoder on the validation split, with intervals over groups."""

from __future__ import annotations

import numpy as np

from simtrail.evaluation.assess import features_of
from simtrail.evaluation.classifiers import knn, ridge_probe
from simtrail.evaluation.scores import Scores, scores_with_intervals
from simtrail.evaluation.tasks import Task, main_task
from simtrail.model.encoder import Encoder
from simtrail.params import Params
from simtrail.pipeline.workspace import prepared
from simtrail.training.monitors import NEIGHBOURS


def validation_scores(encoder: Encoder, params: Params) -> dict[str, Scores]:
    """The scores of val_knn and val_probe, the classifiers that validate during training; {} without labels.

    They are fitted on the training split of the prepared images. Each accuracy has a 95 % interval over groups.
    """
    task = main_task(prepared().table)
    if task is None:
        return {}
    val = task.split == "val"
    p, truth, group, classes = params.evaluate, task.labels[val], task.group[val], len(task.names)
    return {
        name: scores_with_intervals(truth, predicted, group, classes, p.bootstrap, p.seed)[0]
        for name, predicted in _predictions(encoder, params, task).items()
    }


def validation_correct(encoder: Encoder, params: Params, classifier: str) -> tuple[np.ndarray, np.ndarray]:
    """Whether val_knn or val_probe is right about each validation image, and the group of each."""
    task = main_task(prepared().table)
    assert task is not None
    val = task.split == "val"
    return _predictions(encoder, params, task)[classifier] == task.labels[val], task.group[val]


def _predictions(encoder: Encoder, params: Params, task: Task) -> dict[str, np.ndarray]:
    features = features_of(encoder, prepared().images, params.embed.batch_size)[task.rows]
    train, val = task.split == "train", task.split == "val"
    bank, labels, queries = features[train], task.labels[train], features[val]
    return {"val_knn": knn(bank, labels, queries, NEIGHBOURS), "val_probe": ridge_probe(bank, labels, queries)}
