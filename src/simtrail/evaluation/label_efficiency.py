"""Accuracy against the number of labelled images: how many labels do the features need?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
import pandas as pd
from tqdm import tqdm

from simtrail.evaluation.classifiers import knn
from simtrail.evaluation.probe import FINE, SVC_IMAGES, class_weight, fit_logistic, svc

Draw = Literal["balanced", "proportional"]
Scores = dict[str, str | float]  # of a classifier: its name, the number of labels, and its scores


def draw(labels: np.ndarray, count: int, how: Draw, seed: int) -> np.ndarray:
    """The indices of `count` random images, with at least one image of each class (so there may be more than `count`).

    'balanced' draws equally many images of every class, as far as it has them. 'proportional' draws each class in
    proportion to its size, rounded by Webster's divisor method: unlike with the method of largest remainders, no class
    gets fewer images when the count grows (Balinski and Young 1982). With the same seed, a smaller draw is therefore a
    part of a larger one: both take the first images of the same order. Images are drawn one by one, without regard to
    their groups.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    shuffled = labels[order]
    by_class = np.argsort(shuffled, kind="stable")
    _, starts, counts = np.unique(shuffled[by_class], return_index=True, return_counts=True)
    position, size = np.empty((2, len(labels)), np.int64)
    position[by_class] = np.arange(len(labels)) - np.repeat(starts, counts)  # 0, 1, 2 … among the images of its class
    size[by_class] = np.repeat(counts, counts)
    priority = position if how == "balanced" else np.where(position == 0, 0, (2 * position + 1) / size)
    return order[np.argsort(priority, kind="stable")[: max(count, len(counts))]]


def sizes(labels: np.ndarray) -> list[int]:
    """Numbers of images to draw: from two per class to all, in equal factors of about 10^(1/3), three per decade."""
    first = min(2 * len(np.unique(labels)), len(labels))
    steps = max(1, round(3 * np.log10(len(labels) / first)))
    return np.unique(np.geomspace(first, len(labels), steps + 1).round().astype(int)).tolist()


def scored_rows(labels: np.ndarray, split: np.ndarray) -> dict[str, np.ndarray]:
    """The rows of 'train', 'val' and 'test' whose class has a training image; a label below 0 means none."""
    learnable = np.isin(labels, np.unique(labels[(split == "train") & (labels >= 0)]))
    return {part: np.flatnonzero(learnable & (split == part)) for part in ("train", "val", "test")}


class Settings(NamedTuple):
    """The hyperparameters of the classifiers of a curve."""

    c: float  # inverse regularisation strength of the linear probe
    svc_c: float
    knn_k: int  # neighbours; at most labels / classes
    temperature: float  # of kNN


def curve(
    features: np.ndarray,
    labels: np.ndarray,
    classes: int,
    split: np.ndarray,
    *,
    seeds: Sequence[int],
    settings: Settings,
) -> pd.DataFrame:
    """Test accuracy of linear probe, SVC and kNN by number of labelled training images; one row per fit.

    Columns: classifier (linear_probe, svc, knn), draw (balanced, proportional), labels (images drawn), seed, accuracy,
    balanced_accuracy. Every seed makes one draw of each kind for each size in `sizes`. All training images are one
    draw: they are fitted once, for the first seed. The SVC is left out above probe.SVC_IMAGES images. Test images of
    classes without a training image are not scored.

    Classifiers and their standardisation learn from the drawn images only. The regularisation comes from `settings`: it
    was chosen on validation with all training images, and is the same for every draw. Few labels might do better with
    another regularisation, but a user with few labels has no such validation split to choose it.
    """
    rows = scored_rows(labels, split)
    train, queries, truth = rows["train"], features[rows["test"]], labels[rows["test"]]
    weight = class_weight(truth)

    def linear_probe(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        # mean accuracies within 0.002 of those with the default tolerance, which takes twice as long with many classes
        fitted = next(fit_logistic(x, y, classes, (settings.c,), tolerance=FINE))
        return fitted.probabilities(queries).argmax(1)

    fits: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
        "linear_probe": linear_probe,
        "svc": lambda x, y: svc(x, y, queries, (settings.svc_c,))[0],
        "knn": lambda x, y: knn(x, y, queries, min(settings.knn_k, max(1, len(y) // classes)), settings.temperature),
    }

    def scores(drawn: np.ndarray) -> Iterator[Scores]:
        x, y = features[drawn], labels[drawn]
        for name, fit in fits.items():
            if name != "svc" or len(drawn) <= SVC_IMAGES:
                correct = fit(x, y) == truth
                accuracy = {"accuracy": correct.mean(), "balanced_accuracy": (correct * weight).mean()}
                yield {"classifier": name, "labels": len(drawn), **accuracy}

    known: dict[bytes, list[Scores]] = {}

    def results(drawn: np.ndarray) -> list[Scores]:
        key = drawn.tobytes()  # of classes of one size, both ways draw the same images
        if key not in known:
            known[key] = [*scores(drawn)]
        return known[key]

    *partial_sizes, _ = sizes(labels[train])
    draws = [(how, size, seed) for how in get_args(Draw) for size in partial_sizes for seed in seeds]
    table = [
        {"draw": how, "seed": seed, **result}
        for how, size, seed in tqdm(draws, "label efficiency", unit="draw", disable=None, leave=False)
        for result in results(train[draw(labels[train], size, how, seed)])
    ]
    table += [{"draw": how, "seed": seeds[0], **result} for result in results(train) for how in get_args(Draw)]
    return pd.DataFrame(table, columns=["classifier", "draw", "labels", "seed", "accuracy", "balanced_accuracy"])


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """The curve's accuracy over its seeds: classifier, draw, labels, mean, low, high, seeds.

    `low` and `high` are the bounds of the 95 % t-interval of the mean over draws, cut to [0, 1]; NaN for a single seed.
    The interval shows the effect of the choice of labelled images, not of the choice of test images.
    """
    from scipy.stats import t

    groups = table.groupby(["classifier", "draw", "labels"], sort=False)["accuracy"]
    summary = groups.agg(["mean", "sem", "count"]).reset_index().rename(columns={"count": "seeds"})
    half_width = t.ppf(0.975, summary["seeds"] - 1) * summary.pop("sem")
    low, high = (summary["mean"] - half_width).clip(lower=0), (summary["mean"] + half_width).clip(upper=1)
    return summary.assign(low=low, high=high)[["classifier", "draw", "labels", "mean", "low", "high", "seeds"]]


def labels_needed(table: pd.DataFrame, share: float = 0.9) -> dict[str, int | None]:
    """How many labelled images give the fraction `share` of the accuracy with all labels, for each classifier.

    The mean curve of proportional draws is interpolated in the logarithm of the number of labels; its first crossing
    counts. If the smallest draw is enough, the result is its size. None for a classifier that was never fitted to all
    images.
    """
    means = table[table["draw"] == "proportional"].groupby(["classifier", "labels"])["accuracy"].mean()
    return {
        str(name): _crossing(part.droplevel(0), share) if part.index[-1][1] == table["labels"].max() else None
        for name, part in means.groupby(level=0, sort=False)
    }


def _crossing(curve: pd.Series, share: float) -> int:
    numbers, accuracy = curve.index.to_numpy(float), curve.to_numpy()
    target = share * accuracy[-1]
    i = int((accuracy >= target).argmax())
    if i == 0:
        return int(numbers[0])
    step = (target - accuracy[i - 1]) / (accuracy[i] - accuracy[i - 1])  # 0 to 1, between the two numbers
    return int(np.ceil(numbers[i - 1] * (numbers[i] / numbers[i - 1]) ** step))
