"""Classifiers that are fast enough for validation during training: weighted kNN and a probe in closed form."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F

from simtrail.evaluation.geometry import ROWS, Vectors, parts, tensor

COLUMNS = 1024  # of features that the dual of the ridge probe has in memory in float64 at a time
SIMILARITIES = 2**24  # that kNN keeps in memory at a time: 64 MiB


def nearest(features: Vectors, queries: Vectors, k: int) -> np.ndarray:
    """The (Q, k) rows of the features with the highest cosine to each query, the nearest first; k is at most N."""
    rows = [rows for _, rows in _nearest(tensor(features, torch.float32), tensor(queries, torch.float32), k)]
    return torch.cat(rows).cpu().numpy()


def knn_probabilities(
    features: Vectors, labels: np.ndarray, queries: Vectors, k: int, temperature: float, classes: int
) -> np.ndarray:
    """The (Q, classes) probabilities by weighted kNN: the fraction of the votes that each class gets.

    The k features with the highest cosine similarity to a query vote, each with weight exp(similarity / temperature)
    (Wu et al. 2018, arXiv 1805.01978, section 3.4). Features and queries are arrays, or tensors on one device, which
    then does the computation. `labels` are class numbers 0 … classes − 1; k is at most len(features).
    """
    bank_ND, queries_QD = tensor(features, torch.float32), tensor(queries, torch.float32)
    classes_N = torch.tensor(labels, dtype=torch.int64, device=bank_ND.device)
    probabilities = []
    for similarity, rows in _nearest(bank_ND, queries_QD, k):
        vote = ((similarity - similarity[:, :1]) / temperature).exp()  # the nearest has weight 1: no underflow
        tally = vote.new_zeros(len(vote), classes).scatter_add_(1, classes_N[rows], vote)
        probabilities.append(tally / tally.sum(1, keepdim=True))
    return torch.cat(probabilities).cpu().numpy()


def knn(features: Vectors, labels: np.ndarray, queries: Vectors, k: int, temperature: float = 0.07) -> np.ndarray:
    """The class of each query by weighted kNN; see `knn_probabilities`."""
    return knn_probabilities(features, labels, queries, k, temperature, int(labels.max()) + 1).argmax(1)


def ridge_probe(features: Vectors, labels: np.ndarray, queries: Vectors, penalty: float = 0.1) -> np.ndarray:
    """The class of each query by ridge regression of ±1 targets on standardised features, in closed form.

    The few-shot probe of Kolesnikov et al. 2020 (arXiv 1912.11370): a linear probe that costs one solve and has no
    random draws. Minimises the mean over images of |y − Wx − b|² plus `penalty` · |W|², in float64. The other arguments
    are as in `knn`.
    """
    n, y_N = len(features), torch.tensor(labels, dtype=torch.int64)
    mean, std = _moments(features)
    y_NC = 2.0 * F.one_hot(y_N.to(mean.device)).double() - 1
    if len(mean) <= n:
        gram_DD, moment_DC = torch.diag(torch.full_like(mean, penalty * n)), mean.new_zeros(len(mean), y_NC.shape[1])
        for x_MD, y_MC in zip(parts(features), y_NC.split(ROWS), strict=True):
            x_MD = (x_MD - mean) / std
            gram_DD += x_MD.T @ x_MD
            moment_DC += x_MD.T @ y_MC
        weights_DC = torch.cholesky_solve(moment_DC, torch.linalg.cholesky(gram_DD))
    else:  # the same weights, from a system as large as the number of images: Xᵀ(XXᵀ + λI)⁻¹ = (XᵀX + λI)⁻¹Xᵀ
        gram_NN = torch.diag(mean.new_full((n,), penalty * n))
        spans = [slice(start, start + COLUMNS) for start in range(0, len(mean), COLUMNS)]

        def standard(span: slice) -> torch.Tensor:
            return (tensor(features[:, span]) - mean[span]) / std[span]

        for span in spans:
            x_NS = standard(span)
            gram_NN += x_NS @ x_NS.T
        dual_NC = torch.cholesky_solve(y_NC, torch.linalg.cholesky(gram_NN))
        weights_DC = torch.cat([standard(span).T @ dual_NC for span in spans])
    predictions = [((x_MD - mean) / std @ weights_DC + y_NC.mean(0)).argmax(1) for x_MD in parts(queries)]
    return torch.cat(predictions).cpu().numpy()


def _moments(features: Vectors) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of every feature, in float64; a constant feature has standard deviation 1."""
    mean = torch.stack([x_MD.sum(0) for x_MD in parts(features)]).sum(0) / len(features)
    squares = torch.stack([(x_MD - mean).square().sum(0) for x_MD in parts(features)]).sum(0)
    std = (squares / len(features)).sqrt()
    return mean, torch.where(std > 1e-12, std, 1.0)


def _nearest(bank_ND: torch.Tensor, queries_QD: torch.Tensor, k: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Cosines and rows of the k nearest features, for one part of the queries after another."""
    # no copy of the bank at unit length, which would take gigabytes for a million vectors
    inverse_length_N = bank_ND.norm(dim=1).clamp_min(1e-12).reciprocal()
    for chunk in queries_QD.split(max(1, SIMILARITIES // len(bank_ND))):
        yield (F.normalize(chunk, dim=1) @ bank_ND.T).mul_(inverse_length_N).topk(min(k, len(bank_ND)), dim=1)
