"""Classifiers that cost next to nothing, for looks during training too: weighted kNN and a probe in closed form."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F

from simtrail.evaluation.geometry import Vectors, tensor, unit

SIMILARITIES = 2**24  # held at once by kNN: 64 MiB


def nearest(features: Vectors, queries: Vectors, k: int) -> np.ndarray:
    """The (Q, k) rows of the features most cosine-similar to every query, the nearest first; k is cut to N."""
    found = [rows for _, rows in _nearest(unit(features, torch.float32), unit(queries, torch.float32), k)]
    return torch.cat(found).cpu().numpy()


def knn_shares(
    features: Vectors, labels: np.ndarray, queries: Vectors, k: int, temperature: float, classes: int
) -> np.ndarray:
    """The (Q, classes) shares of the votes for every query: its k most cosine-similar features, each voting
    exp(similarity / temperature).

    Wu et al. 2018, arXiv 1805.01978, section 3.4. Features and queries are arrays, or tensors on one device, which then
    does the work; `labels` are class numbers 0 … classes − 1; k is cut to len(features).
    """
    bank_ND, queries_QD = unit(features, torch.float32), unit(queries, torch.float32)
    classes_N = torch.tensor(labels, dtype=torch.int64, device=bank_ND.device)
    shares = []
    for similarity, rows in _nearest(bank_ND, queries_QD, k):
        vote = ((similarity - similarity[:, :1]) / temperature).exp()  # the nearest votes 1: nothing underflows
        tally = vote.new_zeros(len(vote), classes).scatter_add_(1, classes_N[rows], vote)
        shares.append(tally / tally.sum(1, keepdim=True))
    return torch.cat(shares).cpu().numpy()


def knn(features: Vectors, labels: np.ndarray, queries: Vectors, k: int, temperature: float = 0.07) -> np.ndarray:
    """The class of each query by weighted kNN; see `knn_shares`."""
    return knn_shares(features, labels, queries, k, temperature, int(labels.max()) + 1).argmax(1)


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


def _nearest(bank_ND: torch.Tensor, queries_QD: torch.Tensor, k: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Cosines and rows of the k nearest, for one part of the queries after another."""
    for chunk in queries_QD.split(max(1, SIMILARITIES // len(bank_ND))):
        yield (chunk @ bank_ND.T).topk(min(k, len(bank_ND)), dim=1)
