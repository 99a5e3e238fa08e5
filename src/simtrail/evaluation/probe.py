"""Probes on frozen features: multinomial logistic regression to convergence, and a support vector classifier."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from simtrail.errors import InputError, TrainingError

C_VALUES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # inverse regularisation strengths C tried on validation
SVC_C_VALUES = (1.0, 10.0, 100.0)
KEPT = 2**27  # standardised values kept in memory: 512 MiB; beyond, they are computed again in every pass
CHUNK = 2**22  # values processed at a time
SHORT = 2**22  # up to this many values one thread is faster: more would mostly wait for each other
LIMITS: dict[str, Any] = {"max_iter": 10_000, "max_eval": 20_000, "history_size": 20}
COARSE = 1e-3  # enough to choose C: the same choice as with a third of this, in half the passes
FINE = 3e-4  # of the final fit: against a third of this, other classes for 2 of 1,000 test images (121 classes)
SAMPLE, DIRECTIONS = 1024, 256  # images from which the variables are made; directions with a scale of their own
SVC_IMAGES = 10_000  # the kernel matrix grows with their square


class Logistic(NamedTuple):
    """A fitted probe: logits = features @ weights + bias, for features without standardisation."""

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
    start: Logistic | None = None,
    device: torch.device | None = None,
) -> Iterator[Logistic]:
    """Fitted probes, one for each inverse regularisation strength C; each fit starts from the result of the one before.

    Minimises C · Σ w_i · −log p(label_i) + ½|W|² over weights W of standardised (N, D) features and biases without
    penalty, as scikit-learn's LogisticRegression does, by L-BFGS in other variables (see _Variables). `rows` are
    the images to learn from (default: all), `weight` is the w_i of each of them. Loss and gradient are computed on the
    device, in chunks of rows. A fit ends when no partial derivative of the mean loss exceeds `tolerance`, or when the
    loss falls by less than the square of `tolerance`. It is computed in float32, and continued in float64 if rounding
    ends it too early. The search begins at `start` (default: weights of 0), which does not change where it ends. Raises
    TrainingError if a fit does not converge.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = np.arange(len(features)) if rows is None else rows
    mean, std = moments = _moments(features, rows)
    basis = None
    if 2 * len(rows) <= features.shape[1]:
        features, basis = _few_dimensions(features, rows, moments)
        labels, rows = labels[rows], np.arange(len(rows))
        moments = np.zeros(len(rows)), np.ones(len(rows))
    width = features.shape[1]
    objective_in = cache(partial(_Objective, features, labels, classes, rows, weight, moments, device))
    variables = _Variables(features, labels, rows, moments, device)
    weights = torch.zeros(width + 1, classes, device=device)
    if start:
        slopes = start.weights * std[:, None]
        weights[:-1] = torch.from_numpy(slopes if basis is None else basis.T @ slopes)
        weights[-1] = torch.from_numpy(start.bias + mean @ start.weights)
    for c in c_values:
        variables.scale(c, float(len(rows)))
        u = variables.of_weights(weights)
        for dtype in (torch.float32, torch.float64):
            objective = objective_in(dtype)
            function = partial(_loss_and_gradient, variables=variables, objective=objective, c=c)
            curvature = variables.smallest**2 / (c * objective.total)
            with threadpool_limits(1 if len(rows) * width <= SHORT else None):
                u, problem = _minimum(function, u.to(dtype), tolerance, curvature)
            if not problem:
                break
        else:
            raise TrainingError(f"linear probe: not converged after {problem}")
        weights = variables.weights(u)
        slopes, bias = np.split(weights.cpu().double().numpy(), [width])
        raw = (slopes if basis is None else basis @ slopes) / std[:, None]
        yield Logistic(raw.astype(np.float32), (bias[0] - mean @ raw).astype(np.float32))


def _few_dimensions(
    features: np.ndarray, rows: np.ndarray, moments: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """The standardised features of few images in as many dimensions as images, (N, N), and the (D, N) basis of these.

    Weights outside this basis change no logit of these images, and the penalty makes them 0: the fit is the same.
    """
    mean, std = moments
    basis, coordinates = torch.linalg.qr(torch.from_numpy((features[rows] - mean) / std).T)
    return coordinates.T.float().numpy(), basis.numpy()


class _Variables:
    """Variables in which the loss of a probe is about equally curved in all directions, so that L-BFGS needs few steps.

    The weights are W = S U, where S is symmetric: it scales each of the `DIRECTIONS` in which the standardised features
    of a sample of images vary most, and all others together, by 1/√(curvature). The curvature is that of the penalty,
    1 / (C n), plus the variance in this direction times the mean variance of a class (as at weights of 0).
    """

    def __init__(
        self,
        features: np.ndarray,
        labels: np.ndarray,
        rows: np.ndarray,
        moments: tuple[np.ndarray, np.ndarray],
        device: torch.device,
    ):
        mean, std = moments
        sample = rows[np.unique(np.linspace(0, len(rows) - 1, SAMPLE).astype(int))]
        x = torch.from_numpy((features[sample] - mean) / std)
        values, vectors = torch.linalg.eigh(x @ x.T / len(x))
        used = values > 1e-9 * values[-1]
        used[:-DIRECTIONS] = False
        self.variance, spare = values[used], x.shape[1] - int(used.sum())
        directions = x.T @ (vectors[:, used] / (self.variance * len(x)).sqrt())
        self.directions = {dtype: directions.to(device, dtype) for dtype in (torch.float32, torch.float64)}
        self.other = max(float(values.sum() - self.variance.sum()) / max(spare, 1), 1e-6)
        share = np.bincount(labels[rows]) / len(rows)
        self.of_class = max(float((share * (1 - share)).mean()), 1e-6)

    def scale(self, c: float, images: float) -> None:
        """Sets S for a strength C."""
        self.scales = (self.of_class * self.variance + 1 / (c * images)).rsqrt()
        self.other_scale = (self.of_class * self.other + 1 / (c * images)) ** -0.5
        self.bias_scale = self.of_class**-0.5
        self.smallest = min(self.other_scale, *self.scales.tolist())

    def weights(self, u: torch.Tensor) -> torch.Tensor:
        """S U: the weights (D + 1, classes), with the bias in the last row; or the gradient in U from that in W."""
        return self._scaled(u, self.scales, self.other_scale, self.bias_scale)

    def of_weights(self, weights: torch.Tensor) -> torch.Tensor:
        """U, the variables of these weights."""
        return self._scaled(weights, 1 / self.scales, 1 / self.other_scale, 1 / self.bias_scale)

    def _scaled(self, u: torch.Tensor, scales: torch.Tensor, other: float, bias: float) -> torch.Tensor:
        directions, rows = self.directions[u.dtype], u[:-1]
        along = (scales - other).to(u)[:, None] * (directions.T @ rows)
        return torch.cat([torch.addmm(rows, directions, along, beta=other), bias * u[-1:]])


def _loss_and_gradient(
    u: torch.Tensor, variables: _Variables, objective: _Objective, c: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean loss in float64 at the variables U, and its gradient in them."""
    loss, slope = objective.loss_and_gradient(variables.weights(u), c)
    return loss, variables.weights(slope)


class _Objective:
    """What `fit_logistic` minimises: the loss on standardised features."""

    def __init__(
        self,
        features: np.ndarray,
        labels: np.ndarray,
        classes: int,
        rows: np.ndarray,
        weight: np.ndarray | None,
        moments: tuple[np.ndarray, np.ndarray],
        device: torch.device,
        dtype: torch.dtype,
    ):
        self.dtype = dtype
        self.features, self.rows, self.classes, self.device = features, rows, classes, device
        n, self.width = len(rows), features.shape[1]
        mean, std = moments
        self.centre, self.scale = (torch.tensor(v, dtype=dtype, device=device) for v in (mean, 1 / std))
        self.target = torch.tensor(labels[rows], dtype=torch.int64, device=device)
        ones = torch.ones(n, dtype=dtype, device=device)
        self.weight = ones if weight is None else torch.tensor(weight, dtype=dtype, device=device)
        self.total = float(self.weight.double().sum())
        self.spans = _chunks(n, self.width)
        self.kept = [self._standardised(span) for span in self.spans] if n * self.width <= KEPT else None

    def loss_and_gradient(self, weights: torch.Tensor, c: float) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean loss in float64 at the (D + 1, classes) weights, with the bias in the last row, and its gradient."""
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        gradient = torch.zeros_like(weights)
        for i, span in enumerate(self.spans):
            x = self.kept[i] if self.kept else self._standardised(span)
            logp = torch.log_softmax(torch.addmm(weights[-1], x, weights[:-1]), 1)
            y = self.target[span, None]
            loss -= (logp.gather(1, y)[:, 0] * self.weight[span]).sum(dtype=torch.float64)
            error = logp.exp_()
            error.scatter_add_(1, y, error.new_full((1, 1), -1.0).expand(len(y), 1))
            error *= self.weight[span, None]
            gradient[:-1].addmm_(x.T, error)
            gradient[-1] += error.sum(0)
        slopes, gradient = weights[:-1], gradient / self.total
        gradient[:-1].add_(slopes, alpha=1 / (c * self.total))
        penalty = torch.linalg.vector_norm(slopes, dtype=torch.float64).square() / (2 * c)
        return (loss + penalty) / self.total, gradient

    def _standardised(self, span: slice) -> torch.Tensor:
        x = torch.as_tensor(self.features[self.rows[span]], dtype=self.dtype).to(self.device)
        return (x - self.centre) * self.scale


class ProbeResult(NamedTuple):
    """The result of a linear probe."""

    probabilities: np.ndarray  # (N, classes), of the test images
    c: float  # inverse regularisation strength, chosen on validation
    fit: Logistic


class Views(NamedTuple):
    """Features of augmented views, and for each view the row of its image."""

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
    like: ProbeResult | None = None,
) -> ProbeResult:
    """The class probabilities of every test image, and the C of the linear probe.

    C is that of the probe `like` or, without it, chosen by the accuracy on validation images, and of equals by the
    cross entropy; the search, from strong to weak regularisation, ends at a value that is worse in both. Then the
    probe is fitted again on training and validation images together (Kornblith et al. 2019,
    arXiv 1805.08974, appendix A.3). `balanced` weighs images by the inverse frequency of their class, also to choose C.
    The probe also learns from the `views` of the images that it learns from; an image and its views share the weight of
    the image. `split` is train, val or test for every row. Raises InputError for labels that are not integers or
    features that are not finite, and TrainingError if a fit does not converge.
    """
    if labels.dtype.kind not in "iu":
        raise InputError(
            f"labels: dtype {labels.dtype}: must be class numbers, integers from 0 to {classes - 1}; "
            "np.unique(names, return_inverse=True) makes them"
        )
    if not features.size:
        raise InputError(f"features: shape {features.shape}: the array is empty; give at least one row and one column")
    finite = np.concatenate([np.isfinite(features[span]).all(1) for span in _chunks(*features.shape)])
    if not finite.all():
        raise InputError(f"features: row {int(np.argmin(finite))} is not finite; remove it or repair it")

    def fits(
        rows: np.ndarray, c_values: tuple[float, ...], tolerance: float, start: Logistic | None = None
    ) -> Iterator[Logistic]:
        x, y, weight = features, labels, class_weight(labels[rows]) if balanced else np.ones(len(rows))
        if views:
            of_rows = np.isin(views.rows, rows)
            learnt = np.concatenate([rows, views.rows[of_rows]])
            x, y = np.concatenate([x[rows], views.features[of_rows]]), labels[learnt]
            weight = (weight / np.bincount(learnt)[rows])[np.searchsorted(rows, learnt)]
            rows = np.arange(len(x))
        return fit_logistic(x, y, classes, c_values, rows=rows, weight=weight, tolerance=tolerance, start=start)

    train, val, test = (np.flatnonzero(split == part) for part in ("train", "val", "test"))
    if like:
        c, start = like.c, like.fit
    else:
        weight = class_weight(labels[val]) if balanced else None
        c, start = best_of(fits(train, C_VALUES, COARSE), features[val], labels[val], weight)
    fit = next(fits(np.flatnonzero(split != "test"), (c,), FINE, start))
    return ProbeResult(fit.probabilities(features[test]), c, fit)


def best_of(
    fits: Iterator[Logistic], features: np.ndarray, labels: np.ndarray, weight: np.ndarray | None = None
) -> tuple[float, Logistic]:
    """Of probes fitted with each of `C_VALUES`, the C and the fit with the highest accuracy on validation images.

    Of equals it is the one with the lowest cross entropy. The search ends at a C that is worse than the best in both.
    """
    weight = np.ones(len(labels)) if weight is None else weight
    best, result = (-1.0, -np.inf), None
    for c, fit in zip(C_VALUES, fits, strict=False):
        found = fit.probabilities(features)
        of_label = np.maximum(found[np.arange(len(labels)), labels], 1e-30)
        score = ((found.argmax(1) == labels) * weight).sum(), (np.log(of_label) * weight).sum()
        if score > best:
            best, result = score, (c, fit)
        elif score[0] < best[0] and score[1] < best[1]:
            break  # weaker regularisation takes longest, and would be worse still
    assert result is not None
    return result


def svc(
    features: np.ndarray,
    labels: np.ndarray,
    queries: np.ndarray,
    c_values: tuple[float, ...],
    *,
    balanced: bool = False,
) -> list[np.ndarray]:
    """The class of each query by support vector classifiers, one array for each C (Cortes and Vapnik 1995).

    The kernel of two images at distance d in standardised features is exp(−d² / D). Each pair of classes has a
    classifier.
    """
    from sklearn.svm import SVC

    mean, std = _moments(features, np.arange(len(features)))
    bank, standard_queries = (torch.tensor((v - mean) / std, dtype=torch.float32) for v in (features, queries))

    def kernel(x: torch.Tensor) -> np.ndarray:
        distance = torch.addmm(bank.square().sum(1), x, bank.T, alpha=-2) + x.square().sum(1, keepdim=True)
        return torch.exp(-distance / bank.shape[1]).double().numpy()

    fit_kernel, query_kernel = kernel(bank), kernel(standard_queries)  # once for all C: most of the work
    weight = "balanced" if balanced else None
    machines = (SVC(C=c, kernel="precomputed", cache_size=1000, class_weight=weight) for c in c_values)
    return [machine.fit(fit_kernel, labels).predict(query_kernel) for machine in machines]


def svc_probe(
    features: np.ndarray, labels: np.ndarray, split: np.ndarray, *, balanced: bool = False, seed: int = 0
) -> tuple[np.ndarray, float]:
    """The class of every test image by a support vector classifier, and its C, chosen as in `linear_probe`.

    It learns from at most `SVC_IMAGES` images: a seeded draw of the training and validation images.
    """
    keep = np.sort(np.random.default_rng(seed).permutation(np.flatnonzero(split != "test"))[:SVC_IMAGES])
    train, val = keep[split[keep] == "train"], keep[split[keep] == "val"]
    weight = class_weight(labels[val]) if balanced else np.ones(len(val))
    predictions = svc(features[train], labels[train], features[val], SVC_C_VALUES, balanced=balanced)
    best = SVC_C_VALUES[int(np.argmax([((predicted == labels[val]) * weight).sum() for predicted in predictions]))]
    test = split == "test"
    return svc(features[keep], labels[keep], features[test], (best,), balanced=balanced)[0], best


def class_weight(labels: np.ndarray) -> np.ndarray:
    """A weight for every image, inversely proportional to the size of its class, with mean 1."""
    counts = np.bincount(labels)
    return len(labels) / (np.count_nonzero(counts) * counts[labels])


def _minimum(
    function: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
    start: torch.Tensor,
    tolerance: float,
    curvature: float,
) -> tuple[torch.Tensor, str]:
    """The minimum of a loss, and a text if the search ended before it, else an empty one.

    The penalty makes the loss strongly convex, with at least this curvature, in all variables but the biases, the last
    row. In float32, rounding can end a search early. That is good enough where the gradient is small. It is also good
    enough where the gradient of the biases is small, and the loss is at most 1e-6 above its minimum over the other
    variables: by no more than |gradient|² / (2 curvature).
    """
    point = start.clone()
    search = torch.optim.LBFGS(
        [point], **LIMITS, tolerance_grad=tolerance, tolerance_change=tolerance**2, line_search_fn="strong_wolfe"
    )

    def loss() -> torch.Tensor:
        value, point.grad = function(point)
        return value

    with torch.no_grad():
        search.step(loss)
        slope = function(point)[1].double()
    excess, steepest = float(slope[:-1].square().sum()) / (2 * curvature), float(slope.abs().max())
    near = steepest <= max(tolerance, 1e-3) or (excess <= 1e-6 and float(slope[-1].abs().max()) <= 1e-3)
    state = search.state[point]
    ended = state["n_iter"] < LIMITS["max_iter"] and state["func_evals"] < LIMITS["max_eval"]
    if near or (ended and point.dtype == torch.float64):
        return point, ""
    return point, f"{state['n_iter']} iterations: the gradient is still {steepest:.1g}"


def _moments(features: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of every feature, in float64; a constant feature has standard deviation 1."""
    spans = _chunks(len(rows), features.shape[1])
    mean = sum(features[rows[span]].sum(0, dtype=np.float64) for span in spans) / len(rows)
    variance = sum(np.square(features[rows[span]] - mean).sum(0) for span in spans) / len(rows)
    std = np.sqrt(variance)
    return mean, np.where(std > 1e-6 * np.abs(mean) + 1e-12, std, 1.0)


def _chunks(n: int, width: int) -> list[slice]:
    step = max(1, CHUNK // width)
    return [slice(i, min(i + step, n)) for i in range(0, n, step)]
