from __future__ import annotations

import pytest
import torch

from simtrail.augment.background import Background


@pytest.mark.parametrize("values", [[0.0], [0.5], [1.0], [0.1, 0.5, 0.77]])
@pytest.mark.parametrize("full", [255, 65535])
def test_a_packed_background_value_is_background_and_the_next_value_is_not(values, full):
    packed = torch.tensor([round(value * full) for value in values]).expand(3)
    views = (packed / full)[None, :, None, None].repeat(1, 1, 2, 2)
    step = 1 if packed[1] < full else -1
    views[0, 1, 0, 0] = (packed[1] + step) / full
    assert Background(values, full).mask(views).tolist() == [[[[False, True], [True, True]]]]


@pytest.mark.parametrize("values", [[0.0, 0.2, 1.0], [0.2]])
def test_each_band_is_filled_with_its_background_value_inside_the_mask(values):
    views, mask = torch.full((2, 3, 2, 2), 0.9), torch.zeros(2, 1, 2, 2, dtype=torch.bool)
    mask[1, 0, 0, 1] = True
    filled = Background(values, 255).fill(views, mask)
    torch.testing.assert_close(filled[1, :, 0, 1], torch.tensor(values).expand(3))
    assert filled[~mask.expand_as(filled)].eq(0.9).all()
