"""The choice of what the features are made of, after the training: its weights do not depend on it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from simtrail.errors import InputError
from simtrail.evaluation.classifiers import knn, ridge_probe
from simtrail.evaluation.difference import paired
from simtrail.model.encoder import Encoder
from simtrail.model.whitening import whitened
from simtrail.training.monitors import NEIGHBOURS, Monitor

CHOICES = [[1], [2], [1, 2, 3], [2, 3, 4]]  # values of pretrain.encoder.features, the simplest first
FOLDS, FEW = 5, 500  # with fewer labelled validation images, these and the training images are judged in folds
BANK = 5000  # most training images used
STANDARD_ERROR = 0.68  # the level of an interval of one standard error on either side


class Chosen(NamedTuple):
    """A value of pretrain.encoder.features, and the reason for it."""

    features: list[int]
    reason: str


def choose_features(encoder: Encoder, monitor: Monitor, whiten: bool = False) -> Chosen:
    """The simplest of the `CHOICES` that is not clearly worse than the best one on labelled images of validation.

    With `whiten`, each of them is judged as it is after whitening. Without labels, [1].
    """
    possible = [choice for choice in CHOICES if _is_possible(encoder, choice)]
    if len(possible) == 1:
        return Chosen(possible[0], "the only possible value for this network and these images")
    if not monitor.labelled:
        return Chosen(possible[0], "the mean of the last map, because there are no labels on which others can be tried")
    judge = Judge(monitor)
    train = slice(judge.bank)
    hits = [judge.hits(whitened(f, train) if whiten else f) for f in judge.features(encoder, possible)]
    number = first_good(hits, judge.block)
    texts = []
    for choice, each in zip(possible, hits, strict=True):
        probe, neighbours = each.mean(0)
        texts.append(f"{choice} {probe:.3f}, {neighbours:.3f}")
    reason = f"accuracy of probe and kNN on {judge.what}: " + "; ".join([texts.pop(number), *texts])
    return Chosen(possible[number], reason)


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


def first_good(hits: list[np.ndarray], block: np.ndarray) -> int:
    """The first of several ways to get features that is not clearly worse than the best one.

    `hits` has the hits of each (see Judge), `block` the blocks of the images. The score is the mean of the accuracies
    of probe and kNN, because people use features for both. Clearly worse means by more than one standard error of the
    difference, which is paired (Breiman et al. 1984, Classification and Regression Trees, section 3.4.3).
    """
    scores = [each.mean(1, keepdims=True) for each in hits]
    best = max(range(len(hits)), key=lambda number: scores[number].mean())  # the first if several are equal
    gains = (paired(scores[number], scores[best], block, STANDARD_ERROR).low[0] for number in range(best))
    return next((number for number, gain in enumerate(gains) if gain <= 0), best)


def _is_possible(encoder: Encoder, choice: list[int]) -> bool:
    try:
        encoder.with_features(choice)
    except InputError:
        return False
    return True
