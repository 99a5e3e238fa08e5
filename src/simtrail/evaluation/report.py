"""What an encoder knows: probe and kNN on the test split beside the floors, and the label-free measures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from simtrail.errors import InputError
from simtrail.evaluation.classifiers import knn, linear_probe
from simtrail.evaluation.geometry import effective_rank, feature_std, uniformity
from simtrail.evaluation.scores import Scores, with_intervals
from simtrail.params import Evaluate


@dataclass(frozen=True)
class Labelled:
    """The labelled images: class numbers, names, split and group of the rows `rows` of all images."""

    rows: np.ndarray
    labels: np.ndarray
    names: list[str]
    split: np.ndarray
    group: np.ndarray


def labelled(table: pd.DataFrame, group: np.ndarray) -> Labelled | None:
    """The labelled part of a split table, or None when it has no two classes; InputError when a split has no labels."""
    rows = np.flatnonzero(table["label"].notna())
    names, labels = np.unique(table["label"].to_numpy(dtype=str)[rows], return_inverse=True)
    split = table["split"].to_numpy(dtype=str)[rows]
    if len(np.unique(labels[split == "train"])) < 2:
        return None
    for part in ("val", "test"):
        if part not in split:
            raise InputError(
                f"no labelled image in the {part} split: label more images, or raise prepare.{part}_fraction"
            )
    return Labelled(rows, labels, names.tolist(), split, group[rows])


def classify(
    features: np.ndarray,
    pixels: Callable[[], np.ndarray],
    random_features: Callable[[], np.ndarray],
    data: Labelled,
    params: Evaluate,
) -> tuple[dict[str, Scores], dict[str, np.ndarray]]:
    """Scores by name (the keys of TITLES), and each one's predicted class for every test image.

    The features hold one row per image of the dataset; the floors' features are computed when their turn comes.
    """
    test, known = data.split == "test", data.split != "test"
    features = features[data.rows]
    truth = data.labels[test]
    majority = np.bincount(data.labels[known]).argmax()
    predictions = {
        "linear_probe": linear_probe(features, data.labels, data.split)[0],
        "knn": knn(features[known], data.labels[known], features[test], params.knn_k),
        "raw_pixels": linear_probe(pixels()[data.rows], data.labels, data.split)[0],
        "random_encoder": linear_probe(random_features()[data.rows], data.labels, data.split)[0],
        "majority": np.full(len(truth), majority),
    }
    classes = len(data.names)
    scores = {
        name: with_intervals(truth, predicted, data.group[test], classes, params.bootstrap, params.seed)
        for name, predicted in predictions.items()
    }
    return scores, predictions


def label_free(features: np.ndarray, seed: int) -> dict[str, float]:
    """effective_rank, uniformity and feature_std of the test images' features."""
    return {
        "effective_rank": effective_rank(features),
        "uniformity": uniformity(features, seed),
        "feature_std": feature_std(features),
    }


def small_pixels(images: np.ndarray, full_scale: int, side: int = 16) -> np.ndarray:
    """(N, C, S, S) packed images averaged down to at most 16×16 and flattened to (N, features) float32 in [0, 1]."""
    step = max(1, images.shape[-1] // side)
    n, c, size = *images.shape[:2], images.shape[-1] // step
    cut = images[:, :, : size * step, : size * step].reshape(n, c, size, step, size, step)
    return (cut.mean((3, 5), dtype=np.float32) / full_scale).reshape(n, -1)
