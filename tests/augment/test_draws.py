from __future__ import annotations

import torch

from simtrail.augment.draws import Draws


def test_the_seed_decides_the_numbers_and_the_callers_generator_is_not_used():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first, again, other = Draws((1, 2), 4), Draws((1, 2), 4), Draws((1, 3), 4)
    numbers = first.uniform(5)
    assert numbers.equal(again.uniform(5))
    assert not numbers.equal(other.uniform(5))
    assert not numbers.equal(first.uniform(5))
    assert torch.rand(3).equal(expected)


def test_every_view_of_every_image_has_different_numbers():
    assert len(Draws((0,), 50).uniform(1).unique()) == 100


def test_a_part_of_a_batch_gets_the_same_numbers_as_in_the_whole_batch():
    whole, part = Draws((7,), 10), Draws((7,), 3, start=4, total=10)
    for columns in (1, 3):
        assert part.uniform(columns).equal(whole.uniform(columns).reshape(2, 10, columns)[:, 4:7].flatten(0, 1))
    assert part.chosen(1.0).tolist() == list(range(6))


def test_numbers_are_uniform_between_the_bounds_and_rows_are_chosen_with_probability_p():
    draws = Draws((0,), 5000)
    numbers = draws.between(-2, 3, 2)
    assert numbers.shape == (10000, 2)
    assert -2 <= numbers.min() < -1.99
    assert 2.99 < numbers.max() < 3
    assert abs(numbers.mean() - 0.5) < 0.05
    assert abs(len(draws.chosen(0.3)) / 10000 - 0.3) < 0.02
    assert len(draws.chosen(0.0)) == 0
    assert len(draws.chosen(1.0)) == 10000
