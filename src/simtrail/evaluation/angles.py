"""True angles between images in embedding space: how compact classes are, outliers, and typical images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from simtrail.evaluation.geometry import Vectors, unit

ROWS = 256  # rows of the angle matrix computed at a time: 40 MiB at 20,000 images
COINCIDENT = 1e-6  # radians: below, the arccosine of a float64 cosine is a rounding error (of a float32: below 0.03°)


@dataclass(frozen=True)
class ClassAngles:
    """Mean angles in degrees, 0 to 180; NaN where there is no pair of images."""

    rows: np.ndarray
    """(N') the measured images: rows of the features, in ascending order."""
    to_class: np.ndarray
    """(N', C) from each image to the other images of each class."""
    to_same_class: np.ndarray
    """(N') from each image to the other images of its class."""
    matrix: np.ndarray
    """(C, C) between the images of two classes; on the diagonal, between distinct images of one class. Symmetric."""
    within: float
    """Over all pairs of distinct images of one class."""
    between: float
    """Over all pairs of images of different classes."""
    silhouette: float
    """−1 to 1 (Rousseeuw 1987): the mean over images of (b − a) / max(a, b). a is to_same_class, b is the mean angle to
    the nearest other class. An image that is the only one of its class counts as 0."""


def class_angles(
    features: Vectors, labels: np.ndarray, classes: int, *, largest: int = 20_000, seed: int = 0
) -> ClassAngles:
    """Mean angles of (N, D) features by class number 0 … classes − 1, from one pass over all pairs of images.

    With more than `largest` images: all pairs of a seeded sample (`rows`). The sample has at least two images of every
    class that has two, as far as they fit. A zero vector is at 90° to all vectors.
    """
    rows = _sample(labels, largest, seed)
    label_N = torch.tensor(labels[rows], dtype=torch.int64)
    z_ND = unit(features[rows]).cpu()
    member_NC = F.one_hot(label_N, classes).double()
    sums_NC = torch.zeros_like(member_NC)
    for start in range(0, len(rows), ROWS):
        end = start + ROWS
        angle = (z_ND[start:end] @ z_ND[start:].T).clamp_(-1, 1).acos_().fill_diagonal_(0)  # each pair once
        torch.threshold_(angle, COINCIDENT, 0)
        sums_NC[start:end] += angle @ member_NC[start:]
        sums_NC[end:] += angle[:, ROWS:].T @ member_NC[start:end]
    sums_NC.rad2deg_()
    counts_NC = member_NC.sum(0) - member_NC
    total_CC, pairs_CC = member_NC.T @ sums_NC, member_NC.T @ counts_NC
    diagonal, off_diagonal = torch.eye(classes, dtype=torch.bool), ~torch.eye(classes, dtype=torch.bool)
    to_class_NC = sums_NC / counts_NC
    a_N = to_class_NC.gather(1, label_N[:, None])[:, 0]
    b_N = to_class_NC.nan_to_num(nan=torch.inf).masked_fill(member_NC.bool(), torch.inf).amin(1)
    larger_N = torch.maximum(a_N, b_N)
    silhouette_N = ((b_N - a_N) / larger_N).masked_fill(a_N.isnan() | (larger_N == 0), 0)
    return ClassAngles(
        rows,
        to_class_NC.numpy(),
        a_N.numpy(),
        (total_CC / pairs_CC).numpy(),
        float(total_CC[diagonal].sum() / pairs_CC[diagonal].sum()),
        float(total_CC[off_diagonal].sum() / pairs_CC[off_diagonal].sum()),
        float(silhouette_N.mean()),
    )


def outliers(angles: ClassAngles, labels: np.ndarray) -> pd.DataFrame:
    """The images far from their own class, the most extreme first: row, label, angle and limit (degrees).

    Far means more than the median of the class's `to_same_class` angles + 3.5 × 1.4826 × their median absolute
    deviation (Iglewicz & Hoaglin 1993). Classes of fewer than 5 images have no outliers. `labels` as in `class_angles`.
    """
    table = pd.DataFrame({"row": angles.rows, "label": labels[angles.rows], "angle": angles.to_same_class})
    median = table.groupby("label")["angle"].transform("median")
    deviation = (table["angle"] - median).abs().groupby(table["label"]).transform("median")
    # where most images of a class are equal, rounding errors must not count as deviations
    scaled_deviation = 1.4826 * deviation.clip(lower=np.degrees(COINCIDENT))
    score = (table["angle"] - median) / scaled_deviation
    table["limit"] = median + 3.5 * scaled_deviation
    far = (score > 3.5) & (table.groupby("label")["row"].transform("size") >= 5)
    return table.loc[score[far].sort_values(ascending=False, kind="stable").index].reset_index(drop=True)


def examples(angles: ClassAngles, labels: np.ndarray, c: int, count: int = 5) -> dict[str, np.ndarray]:
    """Up to `count` rows each: images of class c `nearest` to and `farthest` from it, and `others` nearest to it.

    Sorted by the mean angle to the class in embedding space, the most extreme first. In a small class, the same image
    can be among the nearest and the farthest. `others` are images of other classes. `labels` as in `class_angles`.
    """
    in_class = labels[angles.rows] == c
    to_class = angles.to_class[:, c]

    def first(candidates: np.ndarray, key: np.ndarray) -> np.ndarray:
        return angles.rows[candidates][np.argsort(key[candidates], kind="stable")[:count]]

    return {
        "nearest": first(in_class, to_class),
        "farthest": first(in_class, -to_class),
        "others": first(~in_class & ~np.isnan(to_class), to_class),
    }


def _sample(labels: np.ndarray, largest: int, seed: int) -> np.ndarray:
    order = np.random.default_rng(seed).permutation(len(labels))
    shuffled = pd.Series(labels[order])
    priority = shuffled.groupby(shuffled).cumcount().clip(upper=2)  # the first of each class, the second, the rest
    return np.sort(order[np.argsort(priority, kind="stable")[:largest]])
