"""A classifier on frozen features from a few labelled images: chosen, calibrated, and silent where it is not sure."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from safetensors.numpy import load_file, save_file
from tqdm import tqdm

from simtrail.errors import InputError, listed
from simtrail.evaluation.classifiers import knn_probabilities, nearest
from simtrail.evaluation.probe import COARSE, FINE, fit_logistic

Kind = Literal["linear", "svc", "knn"]
KINDS: tuple[Kind, ...] = ("linear", "svc", "knn")
STRENGTHS = {"linear": (1e-4, 1e-3, 1e-2, 1e-1, 1.0), "svc": (1.0, 10.0, 100.0), "knn": (1, 3, 5, 10, 20)}
SVC_IMAGES = 5_000  # beyond, its kernel matrix takes too long
KNN_TEMPERATURE = 0.07
MANY_GROUPS = 200  # from here on, five folds tell as much as ten
TEMPERATURES = np.geomspace(0.02, 20, 121)  # searched for the one that calibrates
CLUSTERED, COMPONENTS = 20_000, 64  # images, and principal components, that `next_to_label` clusters
ROWS = 2_000  # images that are compared with all others at a time
SMALLEST = 1e-6  # probability of a class without votes
WEIGHTS, CONFIG = "head.safetensors", "head.json"


@dataclass(frozen=True)
class Head:
    """Scores of classes from features, as probabilities."""

    kind: Kind
    strength: float  # C of linear and svc, k of knn
    names: list[str]  # of the classes
    arrays: dict[str, np.ndarray]
    temperature: float = 1.0  # that divides the scores, so that probabilities are calibrated
    threshold: float = 0.0  # predictions with a lower probability are not to be used
    error: float = 1.0  # the promised rate of wrong labels among all images, see `threshold_for`
    about: dict[str, str] = field(default_factory=dict)  # where the encoder comes from

    def scores(self, features: np.ndarray) -> np.ndarray:
        """The (N, classes) scores: logits, margins of one class against the others, or logarithms of votes."""
        a = self.arrays
        if self.kind == "linear":
            return features @ a["weights"] + a["bias"]
        if self.kind == "svc":
            return _kernel(features, a["bank"], float(a["width"][0])) @ a["weights"] + a["bias"]
        k = min(int(self.strength), len(a["bank"]))
        votes = knn_probabilities(a["bank"], a["labels"], features, k, KNN_TEMPERATURE, len(self.names))
        return np.log(np.maximum(votes, SMALLEST))

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """The (N, classes) calibrated probabilities."""
        parts = np.array_split(features, len(features) // ROWS + 1)  # for kernels with many images
        return np.concatenate([softmax(self.scores(part) / self.temperature) for part in parts])

    def save(self, folder: Path) -> None:
        """Writes head.safetensors and head.json."""
        save_file({name: np.ascontiguousarray(values) for name, values in self.arrays.items()}, folder / WEIGHTS)
        (folder / WEIGHTS).chmod(0o644)  # safetensors makes it unreadable for others
        tree = {name: value for name, value in vars(self).items() if name != "arrays"}
        (folder / CONFIG).write_text(json.dumps(tree, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Head:
        """The head saved in a folder. Raises InputError if there is none."""
        try:
            tree = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            return cls(arrays=load_file(folder / WEIGHTS), **tree)
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{folder}: no head, or a damaged one: {' '.join(str(error).split())[:200]}") from None


@dataclass(frozen=True)
class Fitted:
    """A head, and what cross-validation says about it."""

    head: Head
    candidates: pd.DataFrame  # kind, strength, accuracy, log_loss of each candidate, out of fold
    accuracy: float  # of the chosen one, out of fold
    covered: float  # fraction of the fair labelled images whose prediction, out of fold, would be used
    wrong: float  # fraction of the labelled images that would get a wrong label, out of fold
    fair: int  # number of labelled images on which the promise rests


def fit_head(
    features: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    error: float = 0.05,
    kinds: tuple[Kind, ...] = KINDS,
    seed: int = 0,
    fair: np.ndarray | None = None,
) -> Fitted:
    """The head that predicts best out of fold, fitted again on all labelled images.

    `labels` are the names of the classes of the (N, D) features; images of one of the `groups` (N,) are never in two
    folds. Candidates are a linear probe, a support vector classifier and kNN with several strengths each; the most
    accurate is chosen, of equals that with the lowest cross entropy. Its temperature is chosen by the cross entropy of
    its out-of-fold scores (Guo et al. 2017, arXiv 1706.04599), the threshold by `threshold_for` from the images that
    are `fair` (N,), drawn without regard to what they show (default: all). Raises InputError for fewer than two
    classes, or if no class has images of two groups.
    """
    names, y = np.unique(labels.astype(str), return_inverse=True)
    groups = np.unique(groups, return_inverse=True)[1]
    pairs = pd.DataFrame({"label": y, "group": groups}).drop_duplicates()
    if len(names) < 2:
        raise InputError(f"labels: only {listed([*names])}: a classifier needs two classes; label images of another")
    if pairs["label"].value_counts().max() < 2:
        raise InputError("labels: every class has images of one group only; label images of a second group")
    folds = list(_folds(y, groups, seed))
    rows, best, scores = [], (-1.0, -np.inf), np.empty(0)
    for kind in kinds:
        if kind == "svc" and len(y) > SVC_IMAGES:
            continue
        for strength, found in _out_of_fold(kind, features, y, len(names), folds):
            probabilities = softmax(found / calibration(found, y))
            score = float((found.argmax(1) == y).mean()), -cross_entropy(probabilities, y)
            rows.append({"kind": kind, "strength": strength, "accuracy": score[0], "log_loss": -score[1]})
            if score > best:
                best, chosen, scores = score, (kind, strength), found
    temperature = calibration(scores, y)
    probabilities = softmax(scores / temperature)
    sure, right = probabilities.max(1), probabilities.argmax(1) == y
    drawn = np.ones(len(y), bool) if fair is None else fair
    threshold = threshold_for(sure[drawn], right[drawn], groups[drawn], error) if drawn.any() else float("inf")
    kind, strength = chosen
    arrays = next(_fitted(kind, features, y, len(names), (strength,), FINE))
    head = Head(kind, strength, [*map(str, names)], arrays, temperature, threshold, error)
    used = sure >= threshold
    covered, wrong = (float(v[drawn].mean()) if drawn.any() else 0.0 for v in (used, used & ~right))
    return Fitted(head, pd.DataFrame(rows), best[0], covered, wrong, int(drawn.sum()))


def threshold_for(sure: np.ndarray, right: np.ndarray, groups: np.ndarray, error: float) -> float:
    """The lowest probability from which on predictions may be used, so that at most `error` of all images are wrong.

    Conformal risk control (Angelopoulos et al. 2022, arXiv 2208.02814, equation 4): for a new image like the labelled
    ones, the chance that its prediction is used and wrong is at most `error`. `sure` are the probabilities of the
    predictions of labelled images, `right` whether they are right, both out of fold; a group counts as one draw, by the
    mean over its images. Infinite, so that no prediction is used, if there are too few groups for such an error.
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
    return float(sure[order][before[-1]]) if len(before) else float(np.nextafter(sure.max(), 2))


def groups_needed(error: float) -> int:
    """The fewest groups of labelled images with which `threshold_for` can promise an error."""
    return int(np.ceil(1 / error)) - 1


def calibration(scores: np.ndarray, labels: np.ndarray) -> float:
    """The temperature that gives the lowest cross entropy."""
    return float(TEMPERATURES[np.argmin([cross_entropy(softmax(scores / t), labels) for t in TEMPERATURES])])


def cross_entropy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The mean of −log p(label)."""
    return float(-np.log(np.maximum(probabilities[np.arange(len(labels)), labels], 1e-30)).mean())


def softmax(scores: np.ndarray) -> np.ndarray:
    """Probabilities that are proportional to the exponentials of the scores of a row."""
    powers = np.exp(scores - scores.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def _folds(labels: np.ndarray, groups: np.ndarray, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

    count = len(np.unique(groups))
    folds = min(10 if count < MANY_GROUPS else 5, count)
    # scikit-learn stratifies only if a class has an image for each fold
    kind = StratifiedGroupKFold if np.bincount(labels).max() >= folds else GroupKFold
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of classes with fewer groups than folds
        yield from kind(folds, shuffle=True, random_state=seed).split(labels, labels, groups)


def _out_of_fold(
    kind: Kind, features: np.ndarray, labels: np.ndarray, classes: int, folds: list[tuple[np.ndarray, np.ndarray]]
) -> Iterator[tuple[float, np.ndarray]]:
    """Each strength with the (N, classes) scores of heads that did not learn from the image's group."""
    strengths = STRENGTHS[kind]
    scores = np.zeros((len(strengths), len(labels), classes), np.float32)
    for train, held in tqdm(folds, f"cross-validation, {kind}", unit="fold", disable=None, leave=False):
        fits = _fitted(kind, features[train], labels[train], classes, strengths, COARSE)
        for i, (strength, arrays) in enumerate(zip(strengths, fits, strict=True)):
            scores[i, held] = Head(kind, strength, [""] * classes, arrays).scores(features[held])
    yield from zip(strengths, scores, strict=True)


def _fitted(
    kind: Kind, features: np.ndarray, labels: np.ndarray, classes: int, strengths: tuple[float, ...], tolerance: float
) -> Iterator[dict[str, np.ndarray]]:
    """The arrays of a head for each strength."""
    if kind == "knn":
        yield from ({"bank": features, "labels": labels.astype(np.int64)} for _ in strengths)
    elif kind == "linear":
        for fit in fit_logistic(features, labels, classes, strengths, tolerance=tolerance):
            yield {"weights": fit.weights, "bias": fit.bias}
    else:
        yield from _support_vectors(features, labels, classes, strengths)


def _support_vectors(
    features: np.ndarray, labels: np.ndarray, classes: int, strengths: tuple[float, ...]
) -> Iterator[dict[str, np.ndarray]]:
    """One machine for each class against the others, as weights of the images that it learned from."""
    from sklearn.svm import SVC

    bank = _at_unit_length(features)
    width = float(np.square(bank - bank.mean(0)).sum(-1).mean()) * 2 + 1e-6  # mean squared distance of two
    gram = _kernel(features, bank, width)
    for strength in strengths:
        weights, bias = np.zeros((len(features), classes), np.float32), np.full(classes, -1, np.float32)
        for c in np.unique(labels) if len(np.unique(labels)) > 1 else []:
            machine = SVC(C=strength, kernel="precomputed").fit(gram, labels == c)
            weights[machine.support_, c], bias[c] = machine.dual_coef_[0], machine.intercept_[0]
        yield {"bank": bank, "width": np.array([width]), "weights": weights, "bias": bias}


def _kernel(features: np.ndarray, bank: np.ndarray, width: float) -> np.ndarray:
    """exp(−d² / width) for features and a bank at unit length: no image is so far away that all others are alike."""
    return np.exp(-np.maximum(2 - 2 * _at_unit_length(features) @ bank.T, 0) / width)


def _at_unit_length(features: np.ndarray) -> np.ndarray:
    from sklearn.preprocessing import normalize  # slow to import

    return normalize(features)


def evidence(features: np.ndarray, bank: np.ndarray, groups: np.ndarray, k: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """The rows (N, k) of the labelled images nearest to each image, and how unlike all of these it is (N,), 0 to 1.

    Unlike is the fraction of the labelled images that are nearer to a labelled image of another group than the image is
    to its nearest one, by the cosine of features: 0.99 means that the image is unlike anything labelled.
    """
    k = min(k, len(bank))
    unit, of_bank = _at_unit_length(features), _at_unit_length(bank)
    rows = nearest(bank, features, k)
    closest = (unit * of_bank[rows[:, 0]]).sum(1)
    usual = np.empty(len(bank))
    for part in np.array_split(np.arange(len(bank)), len(bank) // ROWS + 1):
        similar = of_bank[part] @ of_bank.T
        similar[groups[part, None] == groups] = -1
        usual[part] = similar.max(1)
    usual.sort()
    return rows, 1 - np.searchsorted(usual, closest, side="right") / len(usual)


def next_to_label(probabilities: np.ndarray, features: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """The rows of unlabelled images that teach the head most: uncertain, and different from one another.

    Those nearest to the centres of `count` clusters of the images, in which an image weighs by the square of its doubt,
    1 − the difference of its two largest probabilities: a centre is where many doubtful images are (after Zhdanov 2019,
    arXiv 1901.05954, who clusters only the most doubtful: with few labels, probabilities say little, and that was
    worse). The clusters are made in `COMPONENTS` principal components, from a sample of at most `CLUSTERED` images.
    """
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    rows = np.sort(np.random.default_rng(seed).permutation(len(features))[:CLUSTERED])
    if len(rows) <= count:
        return rows
    two = np.sort(probabilities[rows], 1)[:, -2:]
    weight = (1 - (two[:, 1] - two[:, 0])) ** 2 + 1e-6  # never all 0
    x = _at_unit_length(features[rows])
    if min(x.shape) > COMPONENTS:
        x = PCA(COMPONENTS, svd_solver="randomized", random_state=seed).fit_transform(x)
    clusters = KMeans(count, n_init=1, random_state=seed).fit(x, sample_weight=weight)
    distance = np.linalg.norm(x - clusters.cluster_centers_[clusters.labels_], axis=1)
    nearest_first = np.lexsort((distance, clusters.labels_))
    return rows[np.sort(nearest_first[np.unique(clusters.labels_[nearest_first], return_index=True)[1]])]
