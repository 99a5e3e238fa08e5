from __future__ import annotations

import pytest
import torch
from conftest import with_changes

from simtrail.augment.draws import Draws
from simtrail.params import Augment

OFF = {
    **{f"geometry.{key}.p": 0.0 for key in ("crop", "horizontal_flip", "rotation")},
    **{f"color.jitter.{key}": 0.0 for key in ("p", "brightness", "contrast", "saturation", "hue")},
    "color.strength": 1.0,
    "texture.blur.p": 0.0,
}


class FixedDraws(Draws):
    """Draws that give each view the numbers of its row of a table, at every call from the first column on."""

    def __init__(self, table: torch.Tensor):
        self.table = table

    def uniform(self, columns: int) -> torch.Tensor:
        return self.table[:, :columns].clone()


@pytest.fixture
def augment():
    """The settings with everything off except the given changes."""

    def make(changes: dict[str, float]) -> Augment:
        return with_changes({f"pretrain.augment.{k}": v for k, v in (OFF | changes).items()}).pretrain.augment

    return make


@pytest.fixture
def fixed_draws():
    """Draws that always give one number, or the rows of a table."""

    def make(numbers: float | torch.Tensor, views: int = 1) -> FixedDraws:
        return FixedDraws(numbers if isinstance(numbers, torch.Tensor) else torch.full((views, 1024), numbers))

    return make
