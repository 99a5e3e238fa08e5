from __future__ import annotations

import pytest
import torch

from simtrail.model.first_layer import RGB, Named, by_meaning, by_number


def sums(filters: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    return torch.einsum("oihw,ib->obhw", filters, shares.to(filters))


def test_without_knowledge_bands_are_paired_cyclically():
    filters = torch.randn(5, 3, 2, 2)
    a, b, c = filters.unbind(1)
    torch.testing.assert_close(sums(filters, by_number(3, 4)), torch.stack([a / 2, b, c, a / 2], 1))
    torch.testing.assert_close(sums(filters, by_number(3, 2)), torch.stack([a + c, b], 1))
    assert by_number(3, 3).equal(torch.eye(3, dtype=torch.float64))


@pytest.mark.parametrize("names", [["b1", "b2"], ["grey"], [f"b{i}" for i in range(7)]])
def test_bands_of_which_nothing_is_known_are_paired_by_number(names):
    found = by_meaning(RGB, Named(names, [None] * len(names)))
    assert found.shares.equal(by_number(3, len(names)))
    assert all(source.endswith("(by number)") for source in found.sources.values())


def test_a_band_takes_the_filters_of_its_name_then_of_the_nearest_wavelengths():
    new = Named(["nir", "Blue", "cyan", "uv", "red"], [842.0, 490.0, 500.0, 365.0, None])
    found = by_meaning(RGB, new)
    assert found.sources == {
        "nir": "red", "Blue": "blue", "cyan": "0.50 blue + 0.50 green", "uv": "blue", "red": "red",
    }  # fmt: skip
    red, green, blue = found.shares
    assert red.tolist() == [0.5, 0, 0, 0, 0.5]
    assert green.tolist() == [0, 0, 1, 0, 0]
    torch.testing.assert_close(blue, torch.tensor([0, 1, 0.5, 1, 0], dtype=torch.float64) / 2.5)


def test_the_same_bands_in_another_order_are_sorted():
    found = by_meaning(RGB, Named(["blue", "green", "red"], [None] * 3))
    assert found.shares.equal(torch.eye(3, dtype=torch.float64).flip(0))


def test_red_green_and_blue_of_any_encoder_have_wavelengths():
    own, new = Named(["Red", "green", "BLUE", "uv"], [None] * 4), Named(["cyan", "nir"], [500.0, 842.0])
    assert by_meaning(own, new).sources == {"cyan": "0.50 BLUE + 0.50 green", "nir": "Red"}
    stated = Named(["red", "green", "blue"], [700.0, None, None])
    assert by_meaning(stated, Named(["orange"], [620.0])).sources == {"orange": "0.50 green + 0.50 red"}


def test_sources_without_wavelengths_are_found_by_name_and_the_rest_by_number():
    found = by_meaning(Named(["a", "b"], [None, None]), Named(["b", "x", "y"], [500.0, 600.0, None]))
    assert found.sources == {"b": "b", "x": "b (by number)", "y": "a (by number)"}
    assert found.shares.tolist() == [[0, 0, 1], [0.5, 0.5, 0]]


def test_a_grey_image_gives_the_same_response_if_every_band_is_used():
    filters = torch.randn(4, 3, 3, 3, dtype=torch.float64)
    new = Named([f"{nm} nm" for nm in range(400, 700, 20)], list(range(400, 700, 20)))
    torch.testing.assert_close(sums(filters, by_meaning(RGB, new).shares).sum(1), filters.sum(1))
