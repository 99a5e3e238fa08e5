"""Looks at the validation split during training: what chooses the weights that are kept, and shows a collapse."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch

from simtrail.augment.views import TwoViews
from simtrail.data.loader import to_unit
from simtrail.data.pack import PackedImages
from simtrail.errors import InputError
from simtrail.evaluation.classifiers import knn, ridge_probe
from simtrail.evaluation.geometry import alignment, effective_rank, feature_std, uniformity
from simtrail.model.encoder import Encoder
from simtrail.model.objectives import contrastive_top1

BANK, LOOKED_AT = 10_000, 4096  # images at most: labelled ones of the training split, ones of the validation split
NEIGHBOURS, BATCH = 10, 256
LEFT_OUT = 0.02


class Monitor:
    """Measures an encoder on the same validation images, views and labelled training images at every look.

    `labels` is the class number of every packed row, −1 where it has none, or None for no labels at all. Of more images
    than `BANK` and `LOOKED_AT`, `seed` draws that many.
    """

    def __init__(
        self,
        images: PackedImages,
        train_rows: np.ndarray,
        val_rows: np.ndarray,
        labels: np.ndarray | None,
        two_views: TwoViews,
        seed: int,
    ):
        self.images, self.two_views, self.seed = images, two_views, seed
        self.labels = np.full(len(images), -1) if labels is None else labels
        rng = np.random.default_rng(seed)
        train, val = rng.permutation(train_rows), rng.permutation(val_rows)
        self.val = val[:LOOKED_AT]
        self.bank = train[self.labels[train] >= 0][:BANK]
        self.queries = val[self.labels[val] >= 0][:LOOKED_AT]  # not only the labelled of self.val: labels may be few
        self.labelled = all(len(np.unique(self.labels[rows])) >= 2 for rows in (self.bank, self.queries))

    @torch.no_grad()  # not inference_mode: whatever a module keeps from here must serve in training again
    def look(self, encoder: Encoder) -> dict[str, float]:
        """The measures by name, none when there are fewer than two validation images; keeps the encoder's mode.

        val_knn, val_probe: accuracy on labelled validation images, by labelled training images; left out where
        either holds fewer than two classes. val_effective_rank, val_feature_std: of the features of the images as they
        are. val_alignment, val_uniformity, val_contrastive_top1: of the projections of two views of each image, the
        last among the views of all images. Where modalities have a branch each, val_feature_std_<modality> too, and
        val_weight_<modality>, the mean of the weights that attention gives it.
        """
        if len(self.val) < 2:
            return {}
        training = encoder.training
        encoder.eval()
        try:
            rows = np.union1d(self.val, self.queries)
            features = self._features(encoder, rows)
            batches = enumerate(self._batches(self.val, encoder.device))
            views = [encoder.project(self.two_views(batch, self.seed, i)).float().chunk(2) for i, batch in batches]
            first, second = (torch.cat(view) for view in zip(*views, strict=True))
            val = features[np.searchsorted(rows, self.val)]
            measures = {
                "val_alignment": alignment(first, second),
                "val_uniformity": (uniformity(first) + uniformity(second)) / 2,
                "val_contrastive_top1": float(contrastive_top1(torch.cat([first, second]))),
                "val_effective_rank": effective_rank(val),
                "val_feature_std": feature_std(val),
                **self._of_modalities(encoder),
            }
            if self.labelled:
                bank, known = self._features(encoder, self.bank), self.labels[self.bank]
                queries, truth = features[np.searchsorted(rows, self.queries)], self.labels[self.queries]
                measures["val_knn"] = float((knn(bank, known, queries, NEIGHBOURS) == truth).mean())
                measures["val_probe"] = float((ridge_probe(bank, known, queries) == truth).mean())
            return measures
        finally:
            encoder.train(training)

    def choose(self, metric: str) -> str | None:
        """The measure that `pretrain.monitor.metric` stands for, higher is better; None: the last weights are kept.

        Raises InputError for a measure that these images and labels can't give.
        """
        match metric:
            case "last":
                return None
            case "auto":
                return "val_probe" if self.labelled else "val_effective_rank" if len(self.val) >= 2 else None
            case "knn" | "probe" if not self.labelled:
                needs = "two labelled classes in both the training and the validation split; label more images"
            case _ if len(self.val) < 2:
                needs = "two validation images; raise prepare.val_fraction"
            case _:
                return f"val_{metric}"
        raise InputError(f"pretrain.monitor.metric = {metric!r}: needs {needs}, or set auto")

    def _of_modalities(self, encoder: Encoder) -> dict[str, float]:
        if not encoder.modalities:
            return {}
        seen = [encoder.parts(batch) for batch in self._batches(self.val, encoder.device)]
        parts = [torch.cat(part) for part in zip(*seen, strict=True)]
        named = zip(encoder.modalities, parts, strict=True)
        measures = {f"val_feature_std_{name}": feature_std(part) for name, part in named}
        if encoder.backbone.scores:
            weights = encoder.backbone.weights(parts).mean(0).tolist()
            measures |= {f"val_weight_{name}": w for name, w in zip(encoder.modalities, weights, strict=True)}
        return measures

    def _features(self, encoder: Encoder, rows: np.ndarray) -> torch.Tensor:
        return torch.cat([encoder(batch).float() for batch in self._batches(rows, encoder.device)])

    def _batches(self, rows: np.ndarray, device: torch.device) -> Iterator[torch.Tensor]:
        for start in range(0, len(rows), BATCH):
            packed = self.images.rows(rows[start : start + BATCH])
            yield to_unit(packed, self.images.recipe.full_scale, device)


def concerns(row: dict[str, float], encoder: Encoder) -> list[str]:
    """One line for features, of all or of one modality, that nearly all point one way, and for each modality that
    attention leaves out: of a mean weight under `LEFT_OUT`. None for a row without a look."""
    lines = []
    for name, width in [("", encoder.width), *((name, encoder.branches[name].width) for name in encoder.modalities)]:
        spread = row.get("val_feature_std" + (name and f"_{name}"), math.inf)
        if collapsed(spread, width):
            lines.append(f"the features {name and f'of {name} '}collapse: standard deviation {spread:.2g}")
        if (weight := row.get(f"val_weight_{name}", 1.0)) < LEFT_OUT:
            lines.append(f"attention leaves {name} out: its mean weight is {weight:.2g}")
    return lines


def collapsed(spread: float, width: int) -> bool:
    """Whether features, `width` wide, all point nearly one way: their val_feature_std is under a tenth of the 1/√width
    of vectors that point every way."""
    return spread < 0.1 / math.sqrt(width)
