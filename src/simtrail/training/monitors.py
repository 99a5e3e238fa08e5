"""Validation during training: it chooses the weights that are kept, and detects a collapse."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch

from simtrail.augment.views import TwoViews
from simtrail.data.loader import TrainingData, to_unit
from simtrail.errors import InputError, TrainingError
from simtrail.evaluation.classifiers import knn, ridge_probe
from simtrail.evaluation.geometry import alignment, effective_rank, feature_std, uniformity
from simtrail.model.encoder import Encoder
from simtrail.model.objectives import contrastive_top1
from simtrail.model.whitening import SAMPLE

BANK, VALIDATION = 10_000, 4096  # most images used: labelled training images; validation images
NEIGHBOURS, BATCH = 10, 256
IGNORED = 0.02  # a mean weight of attention below this means that a modality is ignored


class Monitor:
    """Measures an encoder at every validation on the same images, views and labelled training images.

    If there are more images than `BANK` or `VALIDATION`, that many are drawn by `seed`.
    """

    def __init__(self, data: TrainingData, two_views: TwoViews, seed: int):
        self.images, self.two_views, self.seed = data.images, two_views, seed
        self.labels = np.full(len(data.images), -1) if data.labels is None else data.labels
        self.block = np.arange(len(data.images)) if data.block is None else data.block
        rng = np.random.default_rng(seed)
        train, val = rng.permutation(data.train), rng.permutation(data.val)
        self.train, self.val = train[:SAMPLE], val[:VALIDATION]
        self.bank = train[self.labels[train] >= 0][:BANK]
        self.queries = val[self.labels[val] >= 0][:VALIDATION]  # not only from self.val: few may have labels
        self.labelled = all(len(np.unique(self.labels[rows])) >= 2 for rows in (self.bank, self.queries))

    @torch.no_grad()  # not inference_mode: tensors that a module keeps must be usable in training
    def validate(self, encoder: Encoder) -> dict[str, float]:
        """The measures by name; none if there are fewer than two validation images. Keeps the encoder's mode.

        val_knn, val_probe: accuracy on labelled validation images of classifiers fitted to labelled training images;
        left out if either have fewer than two classes. val_effective_rank, val_feature_std: of the features of images
        without augmentation. val_alignment, val_uniformity, val_contrastive_top1: of the projections of two views of
        each image; for the last, the other view is searched among the views of all images. If modalities have a branch
        each, also val_feature_std_<modality>, and val_weight_<modality>, the mean weight that attention gives it.
        """
        if len(self.val) < 2:
            return {}
        training = encoder.training
        encoder.eval()
        try:
            rows = np.union1d(self.val, self.queries)
            features = self.features(encoder, rows)
            if not features.isfinite().all():
                raise TrainingError(
                    "the features are not finite at a validation; lower pretrain.learning_rate, set pretrain.clip, or "
                    "choose pretrain.precision: fp32"
                )
            batches = enumerate(self.batches(self.val, encoder.device))
            views = [encoder.project(self.two_views(batch, self.seed, i)).float().chunk(2) for i, batch in batches]
            first, second = (torch.cat(view) for view in zip(*views, strict=True))
            val = features[np.searchsorted(rows, self.val)]
            measures = {
                "val_alignment": alignment(first, second),
                "val_uniformity": (uniformity(first) + uniformity(second)) / 2,
                "val_contrastive_top1": float(contrastive_top1(torch.cat([first, second]))),
                "val_effective_rank": effective_rank(val),
                "val_feature_std": feature_std(val),
                **self._modality_measures(encoder),
            }
            if self.labelled:
                bank, queries = self.features(encoder, self.bank), features[np.searchsorted(rows, self.queries)]
                measures |= self.accuracies(bank, queries)
            return measures
        finally:
            encoder.train(training)

    def accuracies(self, bank: torch.Tensor, queries: torch.Tensor) -> dict[str, float]:
        """val_knn and val_probe of the features of `self.bank` and `self.queries`."""
        labels, truth = self.labels[self.bank], self.labels[self.queries]
        predicted = {
            "val_knn": knn(bank, labels, queries, NEIGHBOURS),
            "val_probe": ridge_probe(bank, labels, queries),
        }
        return {name: float((classes == truth).mean()) for name, classes in predicted.items()}

    @property
    def chance(self) -> float:
        """The accuracy on `self.queries` of always the most frequent class of `self.bank`."""
        return float((self.labels[self.queries] == np.bincount(self.labels[self.bank]).argmax()).mean())

    def choose(self, metric: str) -> str | None:
        """The name of the measure for `pretrain.monitor.metric`, higher is better; None: the last weights are kept.

        Raises InputError for a measure that can't be computed from these images and labels.
        """
        match metric:
            case "last":
                return None
            case "auto":
                return "val_probe" if self.labelled else None
            case "knn" | "probe" if not self.labelled:
                needs = "two labelled classes in both the training and the validation split; label more images"
            case _ if len(self.val) < 2:
                needs = "two validation images; raise prepare.val_fraction"
            case _:
                return f"val_{metric}"
        raise InputError(f"pretrain.monitor.metric = {metric!r}: needs {needs}, or set auto")

    def standard_error(self, metric: str | None, value: float) -> float:
        """The standard error of an accuracy on the validation images; 0 for other measures."""
        images = len(self.queries) if metric in ("val_knn", "val_probe") else 0
        return math.sqrt(value * (1 - value) / images) if images else 0.0

    def _modality_measures(self, encoder: Encoder) -> dict[str, float]:
        if not encoder.modalities:
            return {}
        batches = [encoder.parts(batch) for batch in self.batches(self.val, encoder.device)]
        parts = [torch.cat(part) for part in zip(*batches, strict=True)]
        by_name = zip(encoder.modalities, parts, strict=True)
        measures = {f"val_feature_std_{name}": feature_std(part) for name, part in by_name}
        if encoder.backbone.scores:
            weights = encoder.backbone.weights(parts).mean(0).tolist()
            measures |= {f"val_weight_{name}": w for name, w in zip(encoder.modalities, weights, strict=True)}
        return measures

    def features(self, encoder: Encoder, rows: np.ndarray) -> torch.Tensor:
        """The features (N, width) of packed images."""
        return torch.cat([encoder(batch).float() for batch in self.batches(rows, encoder.device)])

    def batches(self, rows: np.ndarray, device: torch.device) -> Iterator[torch.Tensor]:
        """The packed rows in batches, in [0, 1]."""
        for start in range(0, len(rows), BATCH):
            packed = self.images.rows(rows[start : start + BATCH])
            yield to_unit(packed, self.images.recipe.full_scale, device)


def kept_epoch(history: list[dict[str, float]], metric: str) -> int:
    """The epoch whose weights were kept, from a finished training history and `pretrain.monitor.metric`."""
    if any("kept" in row for row in history):
        return int(next(row["epoch"] for row in reversed(history) if row.get("kept") == 1))
    # a history of an earlier version: the best validation was kept, the first if several were equal
    if metric == "auto":
        metric = "probe" if any("val_probe" in row for row in history) else "effective_rank"
    best = max(history, key=lambda row: _value(row, f"val_{metric}"))
    return int((history[-1] if math.isinf(_value(best, f"val_{metric}")) else best)["epoch"])


def problems(row: dict[str, float], encoder: Encoder) -> list[str]:
    """One line for each problem of a validation; no lines for a row of the history without validation.

    Problems are: features, of all bands or of one modality, that nearly all point in one direction; a modality that
    attention ignores, with a mean weight below `IGNORED`.
    """
    lines = []
    for name, width in [
        ("", encoder.width),
        *((name, encoder.branches[name].feature_width) for name in encoder.modalities),
    ]:
        std = row.get("val_feature_std" + (name and f"_{name}"), math.inf)
        if collapsed(std, width):
            lines.append(f"the features {name and f'of {name} '}collapse: standard deviation {std:.2g}")
        if (weight := row.get(f"val_weight_{name}", 1.0)) < IGNORED:
            lines.append(f"attention ignores {name}: its mean weight is {weight:.2g}")
    return lines


def collapsed(feature_std: float, width: int) -> bool:
    """Whether features of this width nearly all point in one direction.

    Their val_feature_std is then below a tenth of 1/√width, the value for vectors that point in all directions.
    """
    return feature_std < 0.1 / math.sqrt(width)


def _value(row: dict[str, float], key: str) -> float:
    value = row.get(key, math.nan)
    return -math.inf if math.isnan(value) else value
