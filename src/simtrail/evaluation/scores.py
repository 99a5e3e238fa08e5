"""Classification scores with confidence intervals, bootstrapped over groups."""

from __future__ import annotations

import numpy as np

Scores = dict[str, float]  # accuracy, accuracy_low, accuracy_high, balanced_accuracy, …

TITLES = {
    "linear_probe": "linear probe",
    "knn": "kNN",
    "raw_pixels": "floor: 16×16 pixels",
    "random_encoder": "floor: random weights",
    "majority": "floor: majority class",
}


def confusion(truth: np.ndarray, predicted: np.ndarray, classes: int, weight: np.ndarray | None = None) -> np.ndarray:
    """The (classes, classes) matrix of (weighted) image counts, rows the truth."""
    return np.bincount(truth * classes + predicted, weight, classes**2).reshape(classes, classes)


def classification(matrix: np.ndarray) -> dict[str, float]:
    """accuracy, balanced_accuracy, and macro precision, recall and f1 of a confusion matrix.

    Classes without a true image are left out of every mean, except that macro recall equals balanced accuracy by
    definition. A class never predicted has precision 0.
    """
    true, predicted, hit = matrix.sum(1), matrix.sum(0), np.diag(matrix)
    present = true > 0
    recall = hit[present] / true[present]
    precision = hit[present] / np.maximum(predicted[present], 1e-12)
    f1 = 2 * hit[present] / (true + predicted)[present]
    return {
        "accuracy": float(hit.sum() / true.sum()),
        "balanced_accuracy": float(recall.mean()),
        "precision": float(precision.mean()),
        "recall": float(recall.mean()),
        "f1": float(f1.mean()),
    }


def with_intervals(
    truth: np.ndarray, predicted: np.ndarray, group: np.ndarray, classes: int, resamples: int, seed: int
) -> Scores:
    """Every score, and the 95 % percentile interval of each as `<score>_low` and `<score>_high`.

    `truth` and `predicted` are class numbers, `group` a group number per image. The bootstrap draws whole groups, since
    images of one specimen are no independent evidence.
    """
    _, group = np.unique(group, return_inverse=True)
    groups = int(group.max()) + 1
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(resamples):
        times = np.bincount(rng.integers(0, groups, groups), minlength=groups)
        draws.append(classification(confusion(truth, predicted, classes, times[group].astype(float))))
    scores: Scores = {}
    for name, value in classification(confusion(truth, predicted, classes)).items():
        low, high = np.percentile([draw[name] for draw in draws], [2.5, 97.5]).tolist()
        scores |= {name: value, f"{name}_low": low, f"{name}_high": high}
    return scores
