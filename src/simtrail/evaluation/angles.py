"""True angles between images in embedding space: how tight classes are, what lies apart, what is typical."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from simtrail.evaluation.geometry import Vectors, unit

ROWS = 256  # of the angle matrix held at once: 40 MiB at 20,000 images
COINCIDENT = 1e-6  # radians: below, the arccosine of a float64 cosine is rounding (a float32 one's, below 0.03°)


@dataclass(frozen=True)
class ClassAngles:
    """Mean angles in degrees, 0 to 180; NaN where there is no pair of images to take the mean over."""

    rows: np.ndarray
    """(N') the images measured: rows of the features, ascending."""
    to_class: np.ndarray
    """(N', C) from each image to the images of each class, itself left out."""
    to_own_class: np.ndarray
    """(N') from each image to the other images of its own class."""
    matrix: np.ndarray
    """(C, C) between the images of two classes; the diagonal: between distinct images of one. Symmetrical."""
    within: float
    """Over all pairs of distinct images of one class."""
    between: float
    """Over all pairs of images of different classes."""
    silhouette: float
    """−1 to 1 (Rousseeuw 1987): the mean over images of (b − a) / max(a, b), where a = to_own_class and b = to the
    nearest other class. An image alone in its class counts 0."""


def class_angles(
    features: Vectors, labels: np.ndarray, classes: int, *, largest: int = 20_000, seed: int = 0
) -> ClassAngles:
    """Mean angles of (N, D) features by class number 0 … classes − 1, from one pass over all pairs of images.

    Beyond `largest` images, all pairs of a seeded sample (`rows`) that keeps two images of every class that has them,
    as far as they fit. A vector of zeros is at 90° to everything.
    """
    rows = _sample(labels, largest, seed)
    label_N = torch.tensor(labels[rows], dtype=torch.int64)
    z_ND = unit(features[rows]).cpu()
    member_NC = F.one_hot(label_N, classes).double()
    sums_NC = torch.zeros_like(member_NC)
    for start in range(0, len(rows), ROWS):
        end = start + ROWS
        angle = (z_ND[start:end] @ z_ND[start:].T).clamp_(-1, 1).acos_().fill_diagonal_(0)  # each block of pairs once
        torch.threshold_(angle, COINCIDENT, 0)
        sums_NC[start:end] += angle @ member_NC[start:]
        sums_NC[end:] += angle[:, ROWS:].T @ member_NC[start:end]
    sums_NC.rad2deg_()
    others_NC = member_NC.sum(0) - member_NC
    total_CC, pairs_CC = member_NC.T @ sums_NC, member_NC.T @ others_NC
    inside, outside = torch.eye(classes, dtype=torch.bool), ~torch.eye(classes, dtype=torch.bool)
    to_class_NC = sums_NC / others_NC
    a_N = to_class_NC.gather(1, label_N[:, None])[:, 0]
    b_N = to_class_NC.nan_to_num(nan=torch.inf).masked_fill(member_NC.bool(), torch.inf).amin(1)
    farther_N = torch.maximum(a_N, b_N)
    silhouette_N = ((b_N - a_N) / farther_N).masked_fill(a_N.isnan() | (farther_N == 0), 0)
    return ClassAngles(
        rows,
        to_class_NC.numpy(),
        a_N.numpy(),
        (total_CC / pairs_CC).numpy(),
        float(total_CC[inside].sum() / pairs_CC[inside].sum()),
        float(total_CC[outside].sum() / pairs_CC[outside].sum()),
        float(silhouette_N.mean()),
    )


def outliers(angles: ClassAngles, labels: np.ndarray) -> pd.DataFrame:
    """row, label, angle and limit (degrees) of the images far from their own class, the most extreme first.

    Far means beyond the median of the class's `to_own_class` angles + 3.5 × 1.4826 × their median absolute deviation
    (Iglewicz & Hoaglin 1993), in classes of at least 5 images. `labels` are as for `class_angles`.
    """
    table = pd.DataFrame({"row": angles.rows, "label": labels[angles.rows], "angle": angles.to_own_class})
    median = table.groupby("label")["angle"].transform("median")
    deviation = (table["angle"] - median).abs().groupby(table["label"]).transform("median")
    # Of a class whose images mostly coincide, rounding is no deviation.
    unit_step = 1.4826 * deviation.clip(lower=np.degrees(COINCIDENT))
    score = (table["angle"] - median) / unit_step
    table["limit"] = median + 3.5 * unit_step
    far = (score > 3.5) & (table.groupby("label")["row"].transform("size") >= 5)
    return table.loc[score[far].sort_values(ascending=False, kind="stable").index].reset_index(drop=True)


def examples(angles: ClassAngles, labels: np.ndarray, c: int, count: int = 5) -> dict[str, np.ndarray]:
    """Up to `count` rows each of the images of class c `nearest` to and `farthest` from their class, and of the images
    of `others` nearest to it, by mean angle in embedding space, the most telling first.

    Images of a small class are among the nearest and the farthest. `labels` are those of all features.
    """
    inside = labels[angles.rows] == c
    to_class = angles.to_class[:, c]

    def first(among: np.ndarray, key: np.ndarray) -> np.ndarray:
        return angles.rows[among][np.argsort(key[among], kind="stable")[:count]]

    return {
        "nearest": first(inside, to_class),
        "farthest": first(inside, -to_class),
        "others": first(~inside & ~np.isnan(to_class), to_class),
    }


def _sample(labels: np.ndarray, largest: int, seed: int) -> np.ndarray:
    order = np.random.default_rng(seed).permutation(len(labels))
    shuffled = pd.Series(labels[order])
    turn = shuffled.groupby(shuffled).cumcount().clip(upper=2)  # the first of each class, then the second, then others
    return np.sort(order[np.argsort(turn, kind="stable")[:largest]])
