"""Fits heads on frozen features of a few labelled images: chosen, calibrated, with a promised rate of errors."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from tqdm import tqdm

from simtrail.downstream.head import KINDS, NO_TAG, ROWS, SEPARATOR, Head, Kind, Target, kernel, probabilities, unit
from simtrail.errors import InputError, listed
from simtrail.evaluation.probe import COARSE, FINE, fit_logistic
from simtrail.evaluation.structure import reduced

STRENGTHS = {"linear": (1e-4, 1e-3, 1e-2, 1e-1, 1.0), "svc": (1.0, 10.0, 100.0), "knn": (1, 3, 5, 10, 20)}
RIDGE = (0.1, 1.0, 10.0, 100.0, 1000.0)  # strengths of linear for numbers
SVC_IMAGES = 5_000  # beyond, its kernel matrix takes too long
MANY_GROUPS = 200  # from here on, five folds tell as much as ten
TEMPERATURES = np.geomspace(0.02, 20, 121)  # searched for the one that calibrates
CLUSTERED = 20_000  # images that `next_to_label` clusters
LEVELS = 5  # of a number, that each fold has alike


class Labels(NamedTuple):
    """Labels as a head learns them."""

    target: Target
    names: list[str]  # of the classes, of the tags, or of the number
    y: np.ndarray  # class numbers (N,), whether an image has each tag (N, tags), or numbers (N, 1)
    strata: np.ndarray  # (N,) integers: all folds get their part of each


@dataclass(frozen=True)
class Fitted:
    """A head, and what cross-validation says about it."""

    head: Head
    candidates: pd.DataFrame  # kind, strength, score, loss of each candidate, out of fold
    score: float  # of the chosen one on fair images, out of fold: accuracy (of tags: of decisions); R² of numbers
    covered: float  # fraction of the fair labelled images (decisions about tags) that would be used; 1 for numbers
    wrong: float  # fraction that would be used and wrong, out of fold; for numbers: outside their interval
    fair: int  # number of labelled images on which the promise rests


def fit_head(
    features: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    error: float = 0.05,
    kinds: tuple[Kind, ...] = KINDS,
    seed: int = 0,
    fair: np.ndarray | None = None,
    target: Target = "class",
    paths: Sequence[str] = (),
) -> Fitted:
    """The head that predicts best out of fold, fitted again on all labelled images.

    `labels` (N,) of the (N, D) features are names of classes; with the `target` tags, names with `;` between them, or
    `-` for none; with number, numbers. Images of one of the `groups` (N,) are never in two folds. Candidates are linear
    (a linear probe, or ridge regression), support vectors and kNN with several strengths each; the most accurate is
    chosen, of equals that with the lowest cross entropy (of tags: with the lowest cross entropy; of numbers: squared
    error). Its temperature is chosen by the cross entropy of its out-of-fold scores (Guo et al. 2017, arXiv
    1706.04599), the threshold by `threshold_for` from the images that are `fair` (N,), drawn without regard to what
    they show (default: all). `paths` are those of the images. Raises InputError for labels that can't be learned.
    """
    groups = np.unique(groups, return_inverse=True)[1]
    task = _task(labels, groups, target)
    folds = list(_folds(task.strata, groups, seed))
    rows, best, scores, temperature = [], (-np.inf, -np.inf), np.empty(0), 1.0
    for kind in kinds:
        if kind == "svc" and len(groups) > SVC_IMAGES:
            continue
        for strength, found in _out_of_fold(kind, features, task, folds):
            heat = 1.0 if target == "number" else calibration(found, task.y)
            score, loss = _quality(found, task, heat)
            rows.append({"kind": kind, "strength": strength, "score": score, "loss": loss})
            rank = (score, -loss) if target == "class" else (-loss, score)
            if rank > best:
                best, chosen, scores, temperature = rank, (kind, strength, score), found, heat
    kind, strength, score = chosen
    drawn = np.ones(len(groups), bool) if fair is None else fair
    if drawn.any() and not drawn.all():  # so that rounds of labelling can be compared: chosen images are harder
        score = _quality(scores[drawn], task._replace(y=task.y[drawn]), temperature)[0]
    sure, right = _certainty(scores[drawn], task.y[drawn], target, temperature)
    of_group = np.repeat(groups[drawn], sure.shape[1])
    threshold = threshold_for(sure.ravel(), right.ravel(), of_group, error) if drawn.any() else np.inf
    arrays = next(_fitted(kind, features, task, (strength,), FINE))
    arrays |= {"seen": features, "usual": usual_similarities(features, groups)}
    names = [*map(str, task.names)]
    head = Head(kind, strength, names, arrays, temperature, float(threshold), error, {}, target, [*map(str, paths)])
    used = sure >= threshold
    covered, wrong = (float(v.mean()) if drawn.any() else 0.0 for v in (used, used & ~right))
    return Fitted(head, pd.DataFrame(rows), score, 1.0 if target == "number" else covered, wrong, int(drawn.sum()))


def threshold_for(sure: np.ndarray, right: np.ndarray, groups: np.ndarray, error: float) -> float:
    """The lowest probability from which on predictions may be used, so that at most `error` of all images are wrong.

    Conformal risk control (Angelopoulos et al. 2022, arXiv 2208.02814, equation 4): for a new image like the labelled
    ones, the chance that its prediction is used and wrong is at most `error`. `sure` are the probabilities of the
    predictions of labelled images, `right` whether they are right, both out of fold; a group counts as one draw, by the
    mean over its images. Infinite, so that no prediction is used, if there are too few groups for such an error.

    For numbers, `sure` is the distance from the truth, and none is right: a larger distance than the result has at most
    the chance `error`.
    """
    groups = np.unique(groups, return_inverse=True)[1]
    size, count = np.bincount(groups), int(groups.max()) + 1
    order = np.argsort(-sure, kind="stable")
    loss = np.cumsum(~right[order] / size[groups[order]])  # if all predictions up to this one are used
    allowed = (loss + 1) / (count + 1) <= error
    last = np.append(np.diff(sure[order]) != 0, True)  # equal probabilities are used together
    if 1 / (count + 1) > error:
        return float("inf")
    if allowed.all():
        return 0.0
    stop = int(np.argmin(allowed))  # the first that goes too far
    before = np.flatnonzero(last[:stop])
    return float(sure[order][before[-1]]) if len(before) else float(np.nextafter(sure.max(), np.inf))


def groups_needed(error: float) -> int:
    """The fewest groups of labelled images with which `threshold_for` can promise an error."""
    return int(np.ceil(1 / error)) - 1


def calibration(scores: np.ndarray, labels: np.ndarray) -> float:
    """The temperature that gives the lowest cross entropy, of class numbers (N,) or of tags (N, tags)."""
    target: Target = "class" if labels.ndim == 1 else "tags"
    return float(
        TEMPERATURES[np.argmin([cross_entropy(probabilities(scores, target, t), labels) for t in TEMPERATURES])]
    )


def cross_entropy(p: np.ndarray, labels: np.ndarray) -> float:
    """The mean of −log p(label), of class numbers (N,) or of tags (N, tags)."""
    of_label = p[np.arange(len(labels)), labels] if labels.ndim == 1 else np.where(labels, p, 1 - p)
    return float(-np.log(np.maximum(of_label, 1e-30)).mean())


def usual_similarities(bank: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """For each image of a bank the cosine to the most like image of another group, (N,), sorted."""
    z, usual = unit(bank), np.empty(len(bank), np.float32)
    for part in np.array_split(np.arange(len(bank)), len(bank) // ROWS + 1):
        similar = z[part] @ z.T
        similar[groups[part, None] == groups] = -1
        usual[part] = similar.max(1)
    return np.sort(usual)


def next_to_label(doubt: np.ndarray, features: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """The rows of unlabelled images that teach the head most: doubtful, and different from one another.

    Those nearest to the centres of `count` clusters of the images, in which an image weighs by the square of its
    `doubt` (N,), see `Head.doubt`: a centre is where many doubtful images are (after Zhdanov 2019, arXiv 1901.05954,
    who clusters only the most doubtful: with few labels, probabilities say little, and that was worse). The clusters
    are made in a few principal components (see `reduced`), from a sample of at most `CLUSTERED` images.
    """
    from sklearn.cluster import KMeans

    rows = np.sort(np.random.default_rng(seed).permutation(len(features))[:CLUSTERED])
    if len(rows) <= count:
        return rows
    x = reduced(unit(features[rows]), seed)
    weight = doubt[rows] ** 2 + 1e-6  # never all 0
    clusters = KMeans(count, n_init=1, random_state=seed).fit(x, sample_weight=weight)
    distance = np.linalg.norm(x - clusters.cluster_centers_[clusters.labels_], axis=1)
    nearest_first = np.lexsort((distance, clusters.labels_))
    return rows[np.sort(nearest_first[np.unique(clusters.labels_[nearest_first], return_index=True)[1]])]


def _task(labels: np.ndarray, groups: np.ndarray, target: Target) -> Labels:
    """Raises InputError for labels that can't be learned."""
    if target == "number":
        y = labels.astype(np.float64)
        if len(np.unique(groups)) < 2 or y.std() == 0:
            raise InputError("labels: numbers of two groups that differ are needed; label more images")
        strata = pd.qcut(y, min(LEVELS, len(y) // 2), labels=False, duplicates="drop")
        return Labels(target, ["number"], y[:, None], np.unique(strata, return_inverse=True)[1])
    if target == "tags":
        sets = [{tag.strip() for tag in str(label).split(SEPARATOR)} - {"", NO_TAG} for label in labels]
        names = sorted(set().union(*sets))
        has = np.array([[name in each for name in names] for each in sets], bool).reshape(len(sets), len(names))
        learnable = [len(set(groups[row])) > 1 and len(set(groups[~row])) > 1 for row in has.T]
        if not any(learnable):
            raise InputError("labels: no tag is there in two groups and absent in two; label more images")
        return Labels(target, names, has, np.unique(labels.astype(str), return_inverse=True)[1])
    classes, number = np.unique(labels.astype(str), return_inverse=True)
    pairs = pd.DataFrame({"label": number, "group": groups}).drop_duplicates()
    if len(classes) < 2:
        raise InputError(f"labels: only {listed([*classes])}: a classifier needs two classes; label images of another")
    if pairs["label"].value_counts().max() < 2:
        raise InputError(
            "labels: every class has images of one group only; label images of a second group, or if the labels are "
            "numbers or tags: --target number, or --target tags"
        )
    return Labels(target, [*classes], number, number)


def _folds(strata: np.ndarray, groups: np.ndarray, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

    count = len(np.unique(groups))
    folds = min(10 if count < MANY_GROUPS else 5, count)
    # scikit-learn stratifies only if a class has an image for each fold
    kind = StratifiedGroupKFold if np.bincount(strata).max() >= folds else GroupKFold
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of classes with fewer groups than folds
        yield from kind(folds, shuffle=True, random_state=seed).split(strata, strata, groups)


def _quality(scores: np.ndarray, task: Labels, temperature: float) -> tuple[float, float]:
    """Score and loss of out-of-fold scores: accuracy and cross entropy, or R² and mean squared error."""
    if task.target == "number":
        loss = float(np.square(scores - task.y).mean())
        return 1 - loss / float(task.y.var()), loss
    p = probabilities(scores, task.target, temperature)
    right = p.argmax(1) == task.y if task.target == "class" else (p >= 0.5) == task.y
    return float(right.mean()), cross_entropy(p, task.y)


def _certainty(scores: np.ndarray, y: np.ndarray, target: Target, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """How sure each prediction is, and whether it is right, for `threshold_for`; (N, 1), of tags (N, tags)."""
    if target == "number":
        return np.abs(scores - y), np.zeros(scores.shape, bool)
    p = probabilities(scores, target, temperature)
    if target == "tags":
        return np.maximum(p, 1 - p), (p >= 0.5) == y
    return p.max(1, keepdims=True), (p.argmax(1) == y)[:, None]


def _out_of_fold(
    kind: Kind, features: np.ndarray, task: Labels, folds: list[tuple[np.ndarray, np.ndarray]]
) -> Iterator[tuple[float, np.ndarray]]:
    """Each strength with the (N, names) scores of heads that did not learn from the image's group."""
    strengths = RIDGE if (kind, task.target) == ("linear", "number") else STRENGTHS[kind]
    scores = np.zeros((len(strengths), len(features), len(task.names)), np.float32)
    for train, held in tqdm(folds, f"cross-validation, {kind}", unit="fold", disable=None, leave=False):
        fits = _fitted(kind, features[train], task._replace(y=task.y[train]), strengths, COARSE)
        for i, (strength, arrays) in enumerate(zip(strengths, fits, strict=True)):
            head = Head(kind, strength, task.names, arrays, target=task.target)
            scores[i, held] = head.scores(features[held])
    yield from zip(strengths, scores, strict=True)


def _fitted(
    kind: Kind, features: np.ndarray, task: Labels, strengths: tuple[float, ...], tolerance: float
) -> Iterator[dict[str, np.ndarray]]:
    """The arrays of a head for each strength."""
    if kind == "knn":
        values = task.y.astype(np.int64 if task.target == "class" else np.float32)
        yield from ({"bank": features, "labels": values} for _ in strengths)
    elif kind == "svc":
        yield from _support_vectors(features, task, strengths)
    elif task.target == "number":
        yield from _ridge(features, task.y[:, 0], strengths)
    elif task.target == "tags":
        fits = [_logistic_of_tag(features, has, strengths, tolerance) for has in task.y.T]
        for of_tags in zip(*fits, strict=True):
            yield {name: np.stack([fit[name] for fit in of_tags], -1, dtype=np.float32) for name in ("weights", "bias")}
    else:
        for fit in fit_logistic(features, task.y, len(task.names), strengths, tolerance=tolerance):
            yield {"weights": fit.weights.astype(np.float32), "bias": fit.bias.astype(np.float32)}


def _logistic_of_tag(
    features: np.ndarray, has: np.ndarray, strengths: tuple[float, ...], tolerance: float
) -> Iterator[dict[str, np.ndarray]]:
    if has.all() or not has.any():  # in this fold
        odds = np.asarray(np.log((has.sum() + 0.5) / ((~has).sum() + 0.5)), np.float32)
        yield from ({"weights": np.zeros(features.shape[1], np.float32), "bias": odds} for _ in strengths)
        return
    for fit in fit_logistic(features, has.astype(np.int64), 2, strengths, tolerance=tolerance):
        yield {"weights": fit.weights[:, 1] - fit.weights[:, 0], "bias": fit.bias[1] - fit.bias[0]}


def _ridge(features: np.ndarray, y: np.ndarray, strengths: tuple[float, ...]) -> Iterator[dict[str, np.ndarray]]:
    """Ridge regression on standardised features: the mean of (y − Wx − b)² plus |W|² / strength is lowest."""
    mean, std = features.mean(0, dtype=np.float64), features.std(0, dtype=np.float64)
    std = np.where(std > 1e-12, std, 1.0)
    left, values, right = np.linalg.svd((features - mean) / std, full_matrices=False)
    for strength in strengths:
        w = right.T @ (values / (values**2 + len(y) / strength) * (left.T @ (y - y.mean()))) / std
        yield {
            "weights": w[:, None].astype(np.float32),
            "bias": np.array([y.mean() - mean @ w], np.float32),
        }


def _support_vectors(
    features: np.ndarray, task: Labels, strengths: tuple[float, ...]
) -> Iterator[dict[str, np.ndarray]]:
    """One machine for each class or tag against the others, or one for numbers, as weights of the images learned."""
    from sklearn.svm import SVC, SVR

    bank, outputs = unit(features), len(task.names)
    width = float(np.square(bank - bank.mean(0)).sum(-1).mean()) * 2 + 1e-6  # mean squared distance of two
    gram = kernel(features, bank, width)
    wanted = task.y[:, None] == np.arange(outputs) if task.target == "class" else task.y
    mean, std = (float(wanted.mean()), float(wanted.std()) or 1.0) if task.target == "number" else (0.0, 1.0)
    for strength in strengths:
        weights, bias = np.zeros((len(features), outputs), np.float32), np.full(outputs, -1, np.float32)
        for c in range(outputs):
            if task.target == "number":
                machine = SVR(C=strength, kernel="precomputed").fit(gram, (wanted[:, c] - mean) / std)
            elif wanted[:, c].all() or not wanted[:, c].any():  # in this fold
                bias[c] = 1 if wanted[:, c].all() else -1
                continue
            else:
                machine = SVC(C=strength, kernel="precomputed").fit(gram, wanted[:, c])
            weights[machine.support_, c] = machine.dual_coef_[0] * std
            bias[c] = machine.intercept_[0] * std + mean
        yield {"bank": bank, "width": np.array([width]), "weights": weights, "bias": bias}
