from __future__ import annotations

import numpy as np
import pytest

from simtrail.evaluation.difference import paired, unpaired

GROUPS, EACH = 60, 4
BLOCK = np.repeat(np.arange(GROUPS) * 7, EACH)  # numbers with gaps


def answers(rng: np.random.Generator, gain: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Two classifiers right on the same easy blocks, the second in a share `gain` of the images more."""
    easy = np.repeat(rng.random(GROUPS), EACH)
    draw = rng.random(GROUPS * EACH)
    return (draw < easy)[:, None], (draw < easy + gain)[:, None]


def test_identical_predictions_differ_by_nothing_with_no_uncertainty():
    first, _ = answers(np.random.default_rng(0))
    value, low, high = paired(first, first, BLOCK)
    assert (value, low, high) == (0, 0, 0)
    assert not paired(first, first, BLOCK).significant


def test_the_interval_is_that_of_an_obvious_bootstrap_over_blocks():
    first, second = answers(np.random.default_rng(1), 0.1)
    rng, draws, blocks = np.random.default_rng(5), [], np.unique(BLOCK)
    for _ in range(2000):
        rows = np.concatenate([np.flatnonzero(b == BLOCK) for b in rng.choice(blocks, len(blocks))])
        draws.append(second[rows].mean() - first[rows].mean())
    found = paired(first, second, BLOCK)
    assert found.value == pytest.approx(second.mean() - first.mean())
    assert [found.low[0], found.high[0]] == pytest.approx(np.percentile(draws, [2.5, 97.5]), abs=0.01)


def test_pairing_makes_the_interval_narrower_where_both_find_the_same_blocks_hard():
    first, second = answers(np.random.default_rng(2), 0.05)
    same, other = paired(first, second, BLOCK), unpaired(first, BLOCK, second, BLOCK)
    assert same.value == other.value
    assert same.high - same.low < 0.5 * (other.high - other.low)
    assert same.significant
    assert not other.significant


def test_every_classifier_gets_the_difference_that_it_has_alone():
    rng = np.random.default_rng(3)
    first, second = (np.hstack(pair) for pair in zip(*(answers(rng, g) for g in (0, 0.1, -0.2)), strict=True))
    together = paired(first, second, BLOCK)
    for k in range(3):
        alone = paired(first[:, [k]], second[:, [k]], BLOCK)
        assert [part[k] for part in together] == [part[0] for part in alone]
    assert together.significant.tolist() == [False, True, True]


def test_blocks_of_different_sizes_and_test_splits_of_different_lengths_are_taken():
    rng = np.random.default_rng(4)
    first, second = rng.random((30, 1)) < 0.2, rng.random((50, 1)) < 0.9
    found = unpaired(first, rng.integers(0, 12, 30), second, np.arange(50))
    assert found.value == pytest.approx(second.mean() - first.mean())
    assert found.low < found.value < found.high
    assert found.significant


def test_the_interval_holds_the_true_difference_about_as_often_as_it_says():
    rng, truth = np.random.default_rng(6), 0.0
    inside = 0
    for _ in range(60):
        easy = np.repeat(rng.random(GROUPS), EACH)
        first, second = (rng.random((2, GROUPS * EACH)) < easy)[:, :, None]
        found = paired(first, second, BLOCK)
        inside += int(found.low[0] <= truth <= found.high[0])
    assert inside >= 52  # of 57 expected
