"""The choice of what the features are made of, after the training: its weights do not depend on it."""

from __future__ import annotations

from contextlib import suppress
from typing import NamedTuple

import numpy as np
import torch

from simtrail.errors import InputError
from simtrail.evaluation.classifiers import knn, ridge_probe
from simtrail.model.encoder import Encoder
from simtrail.model.whitening import whitened
from simtrail.params import CHOSEN, FEATURES, WHITEN, Settings, shown
from simtrail.training.monitors import NEIGHBOURS, Monitor

CHOICES = [  # values of pretrain.encoder.features
    [1],
    [2],
    [1, 2, 3],
    [1, 2, 3, 4],
    [0, 0, 0, 8],  # of an early stage: for images that show the same things at the same places
]
WORSE = 0.01  # of accuracy: so much below the best, narrower features are as good
FOLDS, FEW = 5, 500  # with fewer labelled validation images, these and the training images are judged in folds
BANK = 5000  # most training images used


class Chosen(NamedTuple):
    """The values of those of `CHOSEN` that were auto, and the reason for them."""

    values: Settings
    reason: str

    @property
    def reasons(self) -> dict[str, str]:
        """The reason for each value."""
        first, *others = self.values
        return {first: self.reason} | dict.fromkeys(others, f"chosen with {first}")

    @property
    def line(self) -> str:
        """The values and the reason, for the log."""
        return f"{', '.join(f'{key} = {shown(value)}' for key, value in self.values.items())}: {self.reason}"


def choose_features(encoder: Encoder, monitor: Monitor, made: Settings) -> Chosen:
    """The simplest features that are at most `WORSE` below the best ones on labelled images of validation.

    `made` has the values of `CHOSEN`. In place of an auto, each of the `CHOICES` is tried, without and with whitening.
    Simple is first of all narrow: all that is done with features later takes as much longer as they are wider. They are
    judged by the mean of the accuracies of probe and kNN, because people use them for both. How uncertain these are has
    no influence: with few groups, clearly better features would be refused. Without labels, the first are chosen.
    """
    grids = _possible(encoder) if made[FEATURES] == "auto" else [made[FEATURES]]
    tried = [(g, white) for g in grids for white in ([False, True] if made[WHITEN] == "auto" else [made[WHITEN]])]
    values = [{key: v for key, v in zip(CHOSEN, each, strict=True) if made[key] == "auto"} for each in tried]
    if len(tried) == 1:
        return Chosen(values[0], "the only possible value for this network and these images")
    if not monitor.labelled:
        return Chosen(values[0], "the simplest, because there are no labels on which others can be tried")
    judge = Judge(monitor)
    of_grids = dict(zip(map(str, grids), judge.features(encoder, grids), strict=True))
    hits, texts = [], []
    for g, white in tried:
        hits.append(judge.hits(whitened(of_grids[str(g)], slice(judge.bank)) if white else of_grids[str(g)]))
        probe, neighbours = hits[-1].mean(0)
        texts.append(f"{g}{' whitened' * white} {probe:.3f}, {neighbours:.3f}")
    scores = [each.mean() for each in hits]
    number = next(i for i, score in enumerate(scores) if score >= max(scores) - WORSE)
    reason = f"accuracy of probe and kNN on {judge.what}: " + "; ".join([texts.pop(number), *texts])
    return Chosen(values[number], reason)


class Judge:
    """How well labelled images can be classified: validation images, or, if these are few, all but the test split.

    In the latter case each fold of the images is classified by what is learnt from the others; images of one block are
    in one fold.
    """

    def __init__(self, monitor: Monitor):
        self.monitor, bank, queries = monitor, monitor.bank[:BANK], monitor.queries
        in_folds = len(queries) < FEW
        if in_folds:
            bank = bank[: FOLDS * FEW]
        self.rows, self.bank = np.concatenate([bank, queries]), len(bank)  # the first so many are training images
        block, position = monitor.block[self.rows], np.arange(len(self.rows))
        if in_folds:
            _, number = np.unique(block, return_inverse=True)
            fold = np.random.default_rng(0).permutation(number.max() + 1)[number] % FOLDS
            self.parts = [(position[fold != f], position[fold == f]) for f in range(FOLDS) if (fold == f).any()]
        else:
            self.parts = [(position[: len(bank)], position[len(bank) :])]
        self.what = "training and validation images in folds" if in_folds else "validation images"
        self.block = np.concatenate([block[tested] for _, tested in self.parts])

    def features(self, encoder: Encoder, choices: list[list[int]]) -> list[torch.Tensor]:
        """The features (N, width) of `rows` for each choice of grids; the encoder is in evaluation mode."""
        with torch.no_grad():
            parts = [encoder.features_on(choices, b) for b in self.monitor.batches(self.rows, encoder.device)]
        return [torch.cat([each.float() for each in part]) for part in zip(*parts, strict=True)]

    def hits(self, features: torch.Tensor) -> np.ndarray:
        """(N, 2) whether the probe and kNN are right about each image that is tested."""
        labels, found = self.monitor.labels[self.rows], []
        for bank, queries in self.parts:
            x, y, q = features[bank], labels[bank], features[queries]
            predicted = np.stack([ridge_probe(x, y, q), knn(x, y, q, NEIGHBOURS)], 1)
            found.append(predicted == labels[queries][:, None])
        return np.concatenate(found)


def _possible(encoder: Encoder) -> list[list[int]]:
    """Those of the `CHOICES` that the network can give, the narrowest first."""
    widths = {}
    for number, choice in enumerate(CHOICES):
        with suppress(InputError):
            widths[number] = encoder.with_features(choice).width
    return [CHOICES[number] for number in sorted(widths, key=widths.__getitem__)]
