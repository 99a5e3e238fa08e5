"""Classification scores with confidence intervals, bootstrapped over groups."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

Scores = dict[str, float]  # accuracy, accuracy_low, accuracy_high, balanced_accuracy, …

BINS = 15  # bins of confidence for the calibration error
TOP = 5


def confusion(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """The (classes, classes) matrix of image counts; rows are true classes, columns are predicted ones."""
    return np.bincount(truth * classes + predicted, minlength=classes**2).reshape(classes, classes)


def scores_with_intervals(
    truth: np.ndarray,
    predicted: np.ndarray,
    group: np.ndarray,
    classes: int,
    resamples: int,
    seed: int,
    probabilities: np.ndarray | None = None,
) -> tuple[Scores, pd.DataFrame]:
    """The scores with their 95 % percentile intervals, and a table of the scores of each class.

    Scores: accuracy, balanced_accuracy, and macro precision, recall and f1 over the classes with a true image (a class
    that is never predicted has precision 0). With `probabilities`, (N, classes), also calibration_error (Guo et al.
    2017, arXiv 1706.04599, eq. 3, 15 bins) and, with more than five classes, top5. Intervals are `<score>_low` and
    `<score>_high`. The table has a row per class: images, precision, recall and f1 with their intervals; NaN for a
    class without a true image. `truth` and `predicted` are class numbers, `group` is a group number per image. The
    bootstrap draws whole groups, because images of one specimen are not independent.
    """
    correct = truth == predicted
    bootstrap = _Bootstrap(group, resamples, seed)
    images = bootstrap.sums(truth, classes)
    predictions = bootstrap.sums(predicted, classes)
    hits = bootstrap.sums(truth, classes, correct)
    with np.errstate(invalid="ignore", divide="ignore"):
        recall, f1 = hits / images, 2 * hits / (images + predictions)  # NaN where there is no true image
        f1[images == 0] = np.nan
        precision = np.where(images > 0, hits / np.maximum(predictions, 1e-12), np.nan)
    class_scores = {"precision": precision, "recall": recall, "f1": f1}
    values = {"accuracy": hits.sum(0) / images.sum(0), "balanced_accuracy": np.nanmean(recall, 0)}
    values |= {name: np.nanmean(each, 0) for name, each in class_scores.items()}
    if probabilities is not None:
        values |= _probability_scores(bootstrap, truth, correct, probabilities, images.sum(0))
    scores: Scores = {}
    for name, value in values.items():
        low, high = np.nanpercentile(value[1:], [2.5, 97.5]).tolist()
        scores |= {name: float(value[0]), f"{name}_low": low, f"{name}_high": high}
    return scores, _class_table(images[:, 0], class_scores)


class _Bootstrap:
    """The data, and resamples of it that draw whole groups with replacement."""

    def __init__(self, group: np.ndarray, resamples: int, seed: int):
        _, self.group = np.unique(group, return_inverse=True)
        self.groups = int(self.group.max()) + 1
        rng = np.random.default_rng(seed)
        # column 0 is the data itself; each other column has how often a resample contains each group
        self.times = np.ones((self.groups, resamples + 1), dtype=np.float32)
        for i in range(resamples):
            draw = rng.integers(0, self.groups, self.groups)
            self.times[:, i + 1] = np.bincount(draw, minlength=self.groups)

    def sums(self, rows: np.ndarray, n: int, value: np.ndarray | None = None) -> np.ndarray:
        """(n, resamples + 1): the sum of `value` (default: 1) over the images of each row; column 0 is the data.

        `rows` has the row of each image, 0 to n − 1.
        """
        value = np.ones(len(rows), np.float32) if value is None else value.astype(np.float32)
        return csr_array((value, (rows, self.group)), shape=(n, self.groups)) @ self.times


def _probability_scores(
    bootstrap: _Bootstrap, truth: np.ndarray, correct: np.ndarray, probabilities: np.ndarray, images: np.ndarray
) -> dict[str, np.ndarray]:
    """top5 (with more than five classes) and calibration_error; `images` has the number of images of each resample."""
    values = {}
    if probabilities.shape[1] > TOP:
        rank = (probabilities > probabilities[np.arange(len(truth)), truth][:, None]).sum(1)
        values["top5"] = bootstrap.sums(np.zeros(len(truth), int), 1, rank < TOP)[0] / images
    confidence = probabilities.max(1)
    bin_index = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    gap = np.abs(bootstrap.sums(bin_index, BINS, confidence) - bootstrap.sums(bin_index, BINS, correct))
    values["calibration_error"] = gap.sum(0) / images
    return values


def _class_table(images: np.ndarray, class_scores: dict[str, np.ndarray]) -> pd.DataFrame:
    """A row per class: images, and each of the (classes, resamples + 1) scores with its interval."""
    table = pd.DataFrame({"images": images.astype(int)})
    for name, each in class_scores.items():
        with np.errstate(all="ignore"):
            low, high = np.full((2, len(images)), np.nan)
            present = ~np.isnan(each[:, 0])
            low[present], high[present] = np.nanpercentile(each[present, 1:], [2.5, 97.5], axis=1)
        table[name], table[f"{name}_low"], table[f"{name}_high"] = each[:, 0], low, high
    return table
