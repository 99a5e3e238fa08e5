"""Classifiers on frozen features: linear probe, weighted kNN, and a cheap probe for looks during training."""

from __future__ import annotations

import warnings

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from simtrail.evaluation.geometry import Vectors, tensor, unit

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)  # inverse regularisation strengths C tried on the validation split
SIMILARITIES = 2**24  # held at once by kNN: 64 MiB


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


def knn(features: Vectors, labels: np.ndarray, queries: Vectors, k: int, temperature: float = 0.07) -> np.ndarray:
    """The class of each query by its k most cosine-similar features, each voting exp(similarity / temperature).

    Wu et al. 2018, arXiv 1805.01978, section 3.4. Features and queries are arrays, or tensors on one device, which then
    does the work; `labels` are class numbers 0 … n − 1; k is cut to len(features).
    """
    bank_ND, queries_QD = unit(features, torch.float32), unit(queries, torch.float32)
    classes_N = torch.tensor(labels, dtype=torch.int64, device=bank_ND.device)
    predicted = []
    for chunk in queries_QD.split(max(1, SIMILARITIES // len(bank_ND))):
        similarity, nearest = (chunk @ bank_ND.T).topk(min(k, len(bank_ND)), dim=1)
        vote = ((similarity - similarity[:, :1]) / temperature).exp()  # the nearest votes 1: nothing underflows
        tally = vote.new_zeros(len(chunk), int(labels.max()) + 1).scatter_add_(1, classes_N[nearest], vote)
        predicted.append(tally.argmax(1))
    return torch.cat(predicted).cpu().numpy()


def ridge_probe(features: Vectors, labels: np.ndarray, queries: Vectors, penalty: float = 0.1) -> np.ndarray:
    """The class of each query by ridge regression of ±1 targets on standardised features, in closed form.

    The few-shot probe of Kolesnikov et al. 2020 (arXiv 1912.11370): a linear probe that costs one solve and has no
    random draws. Minimises the mean over images of |y − Wx − b|² plus `penalty` · |W|², in float64. Arguments as in
    `knn`.
    """
    x_ND, queries_QD = tensor(features), tensor(queries)
    std, mean = torch.std_mean(x_ND, 0, correction=0)
    std = torch.where(std > 1e-12, std, 1.0)  # a constant feature says nothing
    x_ND = (x_ND - mean) / std
    y_NC = 2.0 * F.one_hot(torch.tensor(labels, dtype=torch.int64, device=x_ND.device)).double() - 1
    gram_DD = x_ND.T @ x_ND
    gram_DD.diagonal().add_(penalty * len(x_ND))
    weights_DC = torch.cholesky_solve(x_ND.T @ y_NC, torch.linalg.cholesky(gram_DD))
    return ((queries_QD - mean) / std @ weights_DC + y_NC.mean(0)).argmax(1).cpu().numpy()
