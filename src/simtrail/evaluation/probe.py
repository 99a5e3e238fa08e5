"""Probes on frozen features: multinomial logistic regression to convergence, and a support vector classifier."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

from simtrail.errors import InputError, TrainingError

C_VALUES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # inverse regularisation strengths C tried on validation
SVC_C_VALUES = (1.0, 10.0, 100.0)
KEPT = 2**27  # standardised values kept at once: 512 MiB; more are made anew in every pass
CHUNK = 2**22
SHORT = 2**22  # values whose products are so short that more threads mostly wait for each other
LIMITS = {"maxiter": 10_000, "maxfun": 20_000, "maxcor": 20}
COARSE = 1e-4  # scikit-learn's own tolerance: enough to choose C by
SVC_IMAGES = 10_000  # the kernel matrix grows with their square


class Logistic(NamedTuple):
    """A fitted probe: logits = features @ weights + bias, on features as they are."""

    weights: np.ndarray  # (D, C)
    bias: np.ndarray  # (C,)

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """The (N, C) probabilities of the classes."""
        parts = [
            torch.softmax(torch.from_numpy(features[span] @ self.weights + self.bias), 1).numpy()
            for span in _chunks(*features.shape)
        ]
        return np.concatenate(parts)


def fit_logistic(
    features: np.ndarray,
    labels: np.ndarray,
    classes: int,
    c_values: tuple[float, ...],
    *,
    rows: np.ndarray | None = None,
    weight: np.ndarray | None = None,
    tolerance: float = 1e-5,
    device: torch.device | None = None,
) -> Iterator[Logistic]:
    """Fitted probes, one for each inverse regularisation strength C, each begun where the one before ended.

    Minimises C · Σ w_i · −log p(label_i) + ½|W|² over weights W of standardised (N, D) features and free biases, as
    scikit-learn's LogisticRegression does, by the same L-BFGS, over the images `rows` (all); `weight` is the w_i of
    each of them. Loss and gradient are computed in chunks of rows, on the device. It ends where no slope of the mean
    loss exceeds `tolerance`, or the loss falls by less than its square. Raises TrainingError where it does not
    converge.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = np.arange(len(features)) if rows is None else rows
    n, width = len(rows), features.shape[1]
    mean, std = _moments(features, rows)
    centre, scale = (torch.tensor(v, dtype=torch.float32, device=device) for v in (mean, 1 / std))
    target = torch.tensor(labels[rows], dtype=torch.int64, device=device)
    w = torch.ones(n, device=device) if weight is None else torch.tensor(weight, dtype=torch.float32, device=device)
    total = float(w.double().sum())

    def standardised(span: slice) -> torch.Tensor:
        return (torch.as_tensor(features[rows[span]], dtype=torch.float32).to(device) - centre) * scale

    spans = _chunks(n, width)
    kept = [standardised(span) for span in spans] if n * width <= KEPT else None

    def loss_and_gradient(flat: np.ndarray, c: float) -> tuple[float, np.ndarray]:
        weights64 = flat.reshape(width + 1, classes)
        weights = torch.tensor(weights64, dtype=torch.float32, device=device)
        loss = torch.zeros((), dtype=torch.float64, device=device)
        gradient = torch.zeros(width + 1, classes, dtype=torch.float64, device=device)
        for i, span in enumerate(spans):
            x = kept[i] if kept else standardised(span)
            logp = torch.log_softmax(torch.addmm(weights[-1], x, weights[:-1]), 1)
            y = target[span, None]
            loss -= (logp.gather(1, y)[:, 0] * w[span]).sum(dtype=torch.float64)
            error = logp.exp_()
            error.scatter_add_(1, y, error.new_full((1, 1), -1.0).expand(len(y), 1))
            error *= w[span, None]
            gradient[:-1] += x.T @ error
            gradient[-1] += error.sum(0, dtype=torch.float64)
        slope = gradient.cpu().numpy() / total
        slope[:-1] += weights64[:-1] / (c * total)
        return float(loss) / total + (weights64[:-1] ** 2).sum() / (2 * c * total), slope.ravel()

    flat = np.zeros((width + 1) * classes)
    for c in c_values:
        flat = _minimum(partial(loss_and_gradient, c=c), flat, tolerance, 1 if n * width <= SHORT else None)
        weights = flat.reshape(width + 1, classes)
        raw = weights[:-1] / std[:, None]
        yield Logistic(raw.astype(np.float32), (weights[-1] - mean @ raw).astype(np.float32))


class ProbeResult(NamedTuple):
    """The result of a linear probe."""

    probabilities: np.ndarray  # (N, classes), of the test images
    c: float  # inverse regularisation strength, chosen on validation


class Views(NamedTuple):
    """Features of augmented views, and the row of the image that each is a view of."""

    features: np.ndarray
    rows: np.ndarray


def linear_probe(
    features: np.ndarray,
    labels: np.ndarray,
    split: np.ndarray,
    classes: int,
    *,
    balanced: bool = False,
    views: Views | None = None,
) -> ProbeResult:
    """The class probabilities of every test image by a linear probe.

    C is chosen by accuracy on validation images, then the probe is fitted again on training and validation images
    together (Kornblith et al. 2019, arXiv 1805.08974, appendix A.3). `balanced` weighs images by the inverse frequency
    of their class, and chooses by balanced accuracy; `views` of the images to learn from are learnt from too. `split`
    holds train, val or test for every row. Raises InputError for features or labels that are no numbers, and
    TrainingError where a fit does not converge.
    """

    if labels.dtype.kind not in "iu":
        raise InputError(
            f"labels: {labels.dtype} is not the numbers of classes, 0 to {classes - 1}; "
            "np.unique(names, return_inverse=True) makes them"
        )
    if not features.size:
        raise InputError(f"features: an array of {features.shape} holds no number")
    finite = np.concatenate([np.isfinite(features[span]).all(1) for span in _chunks(*features.shape)])
    if not finite.all():
        raise InputError(f"features: row {int(np.argmin(finite))} is not finite")

    def fits(rows: np.ndarray, c_values: tuple[float, ...], tolerance: float) -> Iterator[Logistic]:
        x, y = features, labels
        if views:
            mine = np.isin(views.rows, rows)
            x, y = np.concatenate([x[rows], views.features[mine]]), np.concatenate([y[rows], y[views.rows[mine]]])
            rows = np.arange(len(x))
        weight = class_weight(y[rows]) if balanced else None
        return fit_logistic(x, y, classes, c_values, rows=rows, weight=weight, tolerance=tolerance)

    train, val, test = (np.flatnonzero(split == part) for part in ("train", "val", "test"))
    weight, queries = class_weight(labels[val]) if balanced else np.ones(len(val)), features[val]
    right = [
        ((fit.probabilities(queries).argmax(1) == labels[val]) * weight).sum() for fit in fits(train, C_VALUES, COARSE)
    ]
    best = C_VALUES[int(np.argmax(right))]  # the first of equals: the strongest regularisation
    fit = next(fits(np.concatenate([train, val]), (best,), 1e-5))
    return ProbeResult(fit.probabilities(features[test]), best)


def svc(
    features: np.ndarray,
    labels: np.ndarray,
    queries: np.ndarray,
    c_values: tuple[float, ...],
    *,
    balanced: bool = False,
) -> list[np.ndarray]:
    """The class of each query by support vector classifiers, one for each C: radial basis functions of width √D on
    standardised features, one class against another (Cortes and Vapnik 1995)."""
    from sklearn.svm import SVC

    mean, std = _moments(features, np.arange(len(features)))
    bank, asked = (torch.tensor((v - mean) / std, dtype=torch.float32) for v in (features, queries))

    def kernel(x: torch.Tensor) -> np.ndarray:
        distance = torch.addmm(bank.square().sum(1), x, bank.T, alpha=-2) + x.square().sum(1, keepdim=True)
        return torch.exp(-distance / bank.shape[1]).double().numpy()

    learnt, seen = kernel(bank), kernel(asked)  # made once: most of the work
    weight = "balanced" if balanced else None
    machines = (SVC(C=c, kernel="precomputed", cache_size=1000, class_weight=weight) for c in c_values)
    return [machine.fit(learnt, labels).predict(seen) for machine in machines]


def svc_probe(
    features: np.ndarray, labels: np.ndarray, split: np.ndarray, *, balanced: bool = False, seed: int = 0
) -> tuple[np.ndarray, float]:
    """The class of every test image by a support vector classifier, and the C chosen on validation as in
    `linear_probe`. Learns from `SVC_IMAGES` images at most, a seeded draw of the training and validation images."""
    keep = np.sort(np.random.default_rng(seed).permutation(np.flatnonzero(split != "test"))[:SVC_IMAGES])
    train, val = keep[split[keep] == "train"], keep[split[keep] == "val"]
    weight = class_weight(labels[val]) if balanced else np.ones(len(val))
    guesses = svc(features[train], labels[train], features[val], SVC_C_VALUES, balanced=balanced)
    best = SVC_C_VALUES[int(np.argmax([((guess == labels[val]) * weight).sum() for guess in guesses]))]
    test = split == "test"
    return svc(features[keep], labels[keep], features[test], (best,), balanced=balanced)[0], best


def class_weight(labels: np.ndarray) -> np.ndarray:
    """A weight for every image, inverse to the images of its class, with mean 1."""
    counts = np.bincount(labels)
    return len(labels) / (np.count_nonzero(counts) * counts[labels])


def _minimum(
    function: Callable[[np.ndarray], tuple[float, np.ndarray]], start: np.ndarray, tolerance: float, threads: int | None
) -> np.ndarray:
    options = {**LIMITS, "gtol": tolerance, "ftol": tolerance**2}
    with threadpool_limits(threads):
        found = minimize(function, start, jac=True, method="L-BFGS-B", options=options)
    if not found.success and np.abs(found.jac).max() > 1e-3:  # an unconverged probe is no result
        raise TrainingError(f"linear probe: not converged after {found.nit} iterations: {found.message}")
    return found.x


def _moments(features: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of every feature, in float64; that of a constant feature is 1, it says nothing."""
    spans = _chunks(len(rows), features.shape[1])
    mean = sum(features[rows[span]].sum(0, dtype=np.float64) for span in spans) / len(rows)
    variance = sum(np.square(features[rows[span]] - mean).sum(0) for span in spans) / len(rows)
    std = np.sqrt(variance)
    return mean, np.where(std > 1e-6 * np.abs(mean) + 1e-12, std, 1.0)


def _chunks(n: int, width: int) -> list[slice]:
    step = max(1, CHUNK // width)
    return [slice(i, min(i + step, n)) for i in range(0, n, step)]
