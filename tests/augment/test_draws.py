from __future__ import annotations

import torch

from simtrail.augment.draws import Draws


def test_the_seed_decides_the_numbers_and_the_callers_generator_is_left_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first, again, other = Draws((1, 2), 4), Draws((1, 2), 4), Draws((1, 3), 4)
    numbers = first.uniform(5)
    assert numbers.equal(again.uniform(5))
    assert not numbers.equal(other.uniform(5))
    assert not numbers.equal(first.uniform(5))
    assert torch.rand(3).equal(expected)


def test_every_image_and_both_of_its_views_have_numbers_of_their_own():
    assert len(Draws((0,), 50).uniform(1).unique()) == 100


def test_a_share_of_a_batch_sees_the_numbers_that_it_has_in_the_whole():
    whole, share = Draws((7,), 10), Draws((7,), 3, start=4, total=10)
    for columns in (1, 3):
        assert share.uniform(columns).equal(whole.uniform(columns).reshape(2, 10, columns)[:, 4:7].flatten(0, 1))
    assert share.chosen(1.0).tolist() == list(range(6))


def test_numbers_are_uniform_between_the_bounds_and_rows_chosen_as_often_as_told():
    draws = Draws((0,), 5000)
    numbers = draws.between(-2, 3, 2)
    assert numbers.shape == (10000, 2)
    assert -2 <= numbers.min() < -1.99
    assert 2.99 < numbers.max() < 3
    assert abs(numbers.mean() - 0.5) < 0.05
    assert abs(len(draws.chosen(0.3)) / 10000 - 0.3) < 0.02
    assert len(draws.chosen(0.0)) == 0
    assert len(draws.chosen(1.0)) == 10000
