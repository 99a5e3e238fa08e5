"""Classification scores with confidence intervals, bootstrapped over groups."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

Scores = dict[str, float]  # accuracy, accuracy_low, accuracy_high, balanced_accuracy, …

TITLES = {
    "linear_probe": "linear probe",
    "probe_augmented": "linear probe on views",
    "knn": "kNN",
    "svc": "SVC",
    "raw_pixels": "floor: 16×16 pixels",
    "random_encoder": "floor: random weights",
    "pretrained": "floor: pretrained",
    "majority": "floor: majority class",
}
FLOORS = tuple(name for name, title in TITLES.items() if title.startswith("floor: "))
FEW_GROUPS = 30  # below it, a percentile interval is itself uncertain
BINS = 15  # of confidence, for the calibration error
TOP = 5


def confusion(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """The (classes, classes) matrix of image counts, rows the truth."""
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
    """Every score with its 95 % percentile interval as `<score>_low` and `<score>_high`, and the scores of each class.

    accuracy, balanced_accuracy, and macro precision, recall and f1 over the classes with a true image (a class never
    predicted has precision 0); with `probabilities`, (N, classes), also calibration_error (Guo et al. 2017, arXiv
    1706.04599, eq. 3, 15 bins) and, of more than five classes, top5. The table has a row per class:
    images, precision, recall, f1, each with its interval (NaN where no true image). `truth` and `predicted` are class
    numbers, `group` a group number per image: the bootstrap draws whole groups, since images of one specimen are no
    independent evidence.
    """
    _, group = np.unique(group, return_inverse=True)
    groups, hit = int(group.max()) + 1, truth == predicted
    rng = np.random.default_rng(seed)
    # one column per resample, how often each group is in it; the first is the data as they are
    times = np.ones((groups, resamples + 1), dtype=np.float32)
    for i in range(resamples):
        times[:, i + 1] = np.bincount(rng.integers(0, groups, groups), minlength=groups)

    def counts(rows: np.ndarray, kinds: int, value: np.ndarray | None = None) -> np.ndarray:
        """Σ value of the images of each kind, (kinds, resamples + 1)."""
        value = np.ones(len(rows), np.float32) if value is None else value.astype(np.float32)
        return csr_array((value, (rows, group)), shape=(kinds, groups)) @ times

    true, called, right = counts(truth, classes), counts(predicted, classes), counts(truth, classes, hit)
    with np.errstate(invalid="ignore", divide="ignore"):
        recall, f1 = right / true, 2 * right / (true + called)  # NaN where there is no true image
        f1[true == 0] = np.nan
        precision = np.where(true > 0, right / np.maximum(called, 1e-12), np.nan)
    rows = {"accuracy": right.sum(0) / true.sum(0), "balanced_accuracy": np.nanmean(recall, 0)}
    rows |= {k: np.nanmean(v, 0) for k, v in (("precision", precision), ("recall", recall), ("f1", f1))}
    if probabilities is not None:
        if classes > TOP:
            rank = (probabilities > probabilities[np.arange(len(truth)), truth][:, None]).sum(1)
            rows["top5"] = counts(np.zeros(len(truth), int), 1, rank < TOP)[0] / true.sum(0)
        sure = probabilities.max(1)
        place = np.clip(np.ceil(sure * BINS).astype(int) - 1, 0, BINS - 1)
        gap = np.abs(counts(place, BINS, sure) - counts(place, BINS, hit))
        rows["calibration_error"] = gap.sum(0) / true.sum(0)
    scores: Scores = {}
    for name, values in rows.items():
        low, high = np.nanpercentile(values[1:], [2.5, 97.5]).tolist()
        scores |= {name: float(values[0]), f"{name}_low": low, f"{name}_high": high}
    table = pd.DataFrame({"images": true[:, 0].astype(int)})
    for name, each in (("precision", precision), ("recall", recall), ("f1", f1)):
        with np.errstate(all="ignore"):
            low, high = np.full((2, classes), np.nan)
            some = ~np.isnan(each[:, 0])
            low[some], high[some] = np.nanpercentile(each[some, 1:], [2.5, 97.5], axis=1)
        table[name], table[f"{name}_low"], table[f"{name}_high"] = each[:, 0], low, high
    return scores, table
