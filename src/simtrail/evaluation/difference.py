"""Whether two classifiers differ on a test split: the difference of their accuracies with its bootstrap interval."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

RESAMPLES, SEED = 2000, 0


class Difference(NamedTuple):
    """The accuracy of the second minus the accuracy of the first, and its 95 % percentile interval; (K,) each."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @property
    def significant(self) -> np.ndarray:
        """(K,) whether the interval excludes 0. Without a true difference, 1 in 20 excludes it by chance."""
        return (self.low > 0) | (self.high < 0)


def correct(predictions: pd.DataFrame, classifiers: list[str]) -> np.ndarray:
    """(N, K) whether each of K classifiers, columns of a table of predictions, is right about each of its N rows."""
    return predictions[classifiers].eq(predictions["truth"], axis=0).to_numpy()


def paired(first: np.ndarray, second: np.ndarray, block: np.ndarray, level: float = 0.95) -> Difference:
    """The difference on the same N images; (N, K): whether each of K classifiers is correct on an image, or how often.

    `block` has the (N,) block numbers. The bootstrap draws whole blocks and scores both sides on the same draw. So the
    difficulty of a block, if it is the same for both, has no effect (Efron and Tibshirani 1993, An Introduction to the
    Bootstrap, chapter 8). All K use the same draws. `level` is that of the intervals.
    """
    k = first.shape[1]
    draws = _accuracies(np.concatenate([first, second], axis=1), block, SEED)
    return _difference(first, second, draws[:, k:] - draws[:, :k], level)


def unpaired(first: np.ndarray, block: np.ndarray, second: np.ndarray, block_second: np.ndarray) -> Difference:
    """The difference between two sets of images, (N, K) and (M, K) booleans: each side has its own bootstrap."""
    draws = _accuracies(second, block_second, SEED + 1) - _accuracies(first, block, SEED)
    return _difference(first, second, draws)


def _difference(first: np.ndarray, second: np.ndarray, draws: np.ndarray, level: float = 0.95) -> Difference:
    tail = 50 * (1 - level)
    return Difference(second.mean(0) - first.mean(0), *np.percentile(draws, [tail, 100 - tail], axis=0))


def _accuracies(correct: np.ndarray, block: np.ndarray, seed: int) -> np.ndarray:
    """The (RESAMPLES, K) accuracies of bootstrap samples; each draws as many blocks as there are, with replacement."""
    _, block = np.unique(block, return_inverse=True)
    blocks = int(block.max()) + 1
    columns = np.column_stack([correct, np.ones(len(correct), dtype=bool)])  # the last counts the images
    sums = np.stack([np.bincount(block, column, blocks) for column in columns.T], axis=1)
    rng = np.random.default_rng(seed)
    totals = [np.bincount(rng.integers(0, blocks, blocks), minlength=blocks) @ sums for _ in range(RESAMPLES)]
    return np.array([total[:-1] / total[-1] for total in totals])
