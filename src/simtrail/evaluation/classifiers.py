"""Classifiers on frozen features: linear probe and weighted kNN."""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)  # inverse regularisation strengths C tried on the validation split


def linear_probe(features: np.ndarray, labels: np.ndarray, split: np.ndarray) -> tuple[np.ndarray, float]:
    """The predicted class of every test image, and the chosen inverse regularisation strength C.

    Multinomial logistic regression on standardised features: C is chosen by accuracy on validation, then the probe is
    fitted again on training and validation images together (Kornblith et al. 2019, arXiv 1805.08974, appendix A.3).
    """
    train, val = split == "train", split == "val"

    def fitted(c: float, rows: np.ndarray) -> LogisticRegression:
        # Many short products: more threads mostly wait for each other, for minutes on a busy machine.
        with warnings.catch_warnings(), threadpool_limits(1):
            warnings.simplefilter("error", ConvergenceWarning)  # an unconverged probe is no result
            probe = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=10_000))
            return probe.fit(features[rows], labels[rows])

    accuracy = {c: fitted(c, train).score(features[val], labels[val]) for c in PENALTIES}
    best = max(accuracy, key=lambda c: (accuracy[c], -c))
    return fitted(best, train | val).predict(features[split == "test"]), best


def knn(features: np.ndarray, labels: np.ndarray, queries: np.ndarray, k: int, temperature: float = 0.07) -> np.ndarray:
    """The class of each query by its k most cosine-similar features, each voting exp(similarity / temperature).

    Wu et al. 2018, arXiv 1805.01978, section 3.4. `labels` are class numbers 0 … n − 1; k is cut to len(features).
    """
    k = min(k, len(features))
    bank, classes = _unit(features), int(labels.max()) + 1
    predicted = []
    for chunk in np.array_split(_unit(queries), max(1, len(queries) // 1024)):
        similarity = chunk @ bank.T
        nearest = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        vote = np.exp((np.take_along_axis(similarity, nearest, 1) - 1) / temperature)
        tally = np.zeros((len(chunk), classes))
        np.add.at(tally, (np.arange(len(chunk))[:, None], labels[nearest]), vote)
        predicted.append(tally.argmax(1))
    return np.concatenate(predicted)


def _unit(features: np.ndarray) -> np.ndarray:
    features = features.astype(np.float64)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
