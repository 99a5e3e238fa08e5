from __future__ import annotations

import numpy as np
import pytest

from simtrail.evaluation.difference import paired, unpaired

GROUPS, EACH = 60, 4
BLOCK = np.repeat(np.arange(GROUPS) * 7, EACH)  # numbers with gaps


def correct_booleans(rng: np.random.Generator, gain: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Two classifiers, both correct on the same easy blocks; the second is correct on a fraction `gain` more images."""
    easy = np.repeat(rng.random(GROUPS), EACH)
    draw = rng.random(GROUPS * EACH)
    return (draw < easy)[:, None], (draw < easy + gain)[:, None]


def test_identical_predictions_have_difference_zero_without_uncertainty():
    first, _ = correct_booleans(np.random.default_rng(0))
    value, low, high = paired(first, first, BLOCK)
    assert (value, low, high) == (0, 0, 0)
    assert not paired(first, first, BLOCK).significant


def test_the_interval_equals_a_plain_bootstrap_over_blocks():
    first, second = correct_booleans(np.random.default_rng(1), 0.1)
    rng, draws, blocks = np.random.default_rng(5), [], np.unique(BLOCK)
    for _ in range(2000):
        rows = np.concatenate([np.flatnonzero(b == BLOCK) for b in rng.choice(blocks, len(blocks))])
        draws.append(second[rows].mean() - first[rows].mean())
    difference = paired(first, second, BLOCK)
    assert difference.value == pytest.approx(second.mean() - first.mean())
    assert [difference.low[0], difference.high[0]] == pytest.approx(np.percentile(draws, [2.5, 97.5]), abs=0.01)


def test_pairing_makes_the_interval_narrower_if_the_same_blocks_are_hard_for_both():
    first, second = correct_booleans(np.random.default_rng(2), 0.05)
    with_pairs, without_pairs = paired(first, second, BLOCK), unpaired(first, BLOCK, second, BLOCK)
    assert with_pairs.value == without_pairs.value
    assert with_pairs.high - with_pairs.low < 0.5 * (without_pairs.high - without_pairs.low)
    assert with_pairs.significant
    assert not without_pairs.significant


def test_every_classifier_gets_the_same_difference_as_separately():
    rng = np.random.default_rng(3)
    first, second = (np.hstack(pair) for pair in zip(*(correct_booleans(rng, g) for g in (0, 0.1, -0.2)), strict=True))
    together = paired(first, second, BLOCK)
    for k in range(3):
        single = paired(first[:, [k]], second[:, [k]], BLOCK)
        assert [part[k] for part in together] == [part[0] for part in single]
    assert together.significant.tolist() == [False, True, True]


def test_blocks_of_different_sizes_and_test_splits_of_different_lengths_are_allowed():
    rng = np.random.default_rng(4)
    first, second = rng.random((30, 1)) < 0.2, rng.random((50, 1)) < 0.9
    difference = unpaired(first, rng.integers(0, 12, 30), second, np.arange(50))
    assert difference.value == pytest.approx(second.mean() - first.mean())
    assert difference.low < difference.value < difference.high
    assert difference.significant


def test_the_interval_contains_the_true_difference_about_as_often_as_it_promises():
    rng, truth = np.random.default_rng(6), 0.0
    inside = 0
    for _ in range(60):
        easy = np.repeat(rng.random(GROUPS), EACH)
        first, second = (rng.random((2, GROUPS * EACH)) < easy)[:, :, None]
        difference = paired(first, second, BLOCK)
        inside += int(difference.low[0] <= truth <= difference.high[0])
    assert inside >= 52  # of 57 expected
