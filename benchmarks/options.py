"""The time of a training step with each option of a stronger encoder, relative to a plain step.

    python benchmarks/options.py

ResNet-10-T, batches of 64 generated images, views of 64 pixels or of the side that is named, the settings of a
processor; one process, in which all options take turns. Prints a table and writes it to
benchmarks/results/options-<cpu|gpu>.csv. A minute on two CPU cores.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import pandas as pd
import torch
from common import DEVICE, KIND, encoder, recipe, save, settings, timed

from simtrail.augment.views import TwoViews
from simtrail.training.learner import Learner
from simtrail.training.machine import ready_for

SIDE, BATCH, TEACHER = 64, 64, 1280
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "view_size: 32 of 64 pixels": {"views": 32},
    "view_size: 48 of 64 pixels": {"views": 48},
    "view_size, from 1.5 times the pixels": {"packed": 96},
    "view_size, from twice the pixels": {"packed": 128},
    "positives: group": {"groups": torch.arange(BATCH) // 2},
    "local_views: 2": {"local_views": 2},
    "local_views: 4": {"local_views": 4},
    "teacher of 1280 features": {"teacher": torch.randn(BATCH, TEACHER)},
}


def seconds(options: dict[str, dict[str, Any]], rounds: int) -> dict[str, float]:
    with ready_for(DEVICE):
        return timed({name: step(**option) for name, option in options.items()}, rounds)


def quick() -> list[dict[str, Any]]:
    """Rows for the table of all benchmarks."""
    found = seconds(OPTIONS, rounds=2)
    speeds = {name: BATCH / each for name, each in found.items()}
    same: dict[str, Any] = {"unit": "images/s", "beside": "the plain step", "other": speeds.pop("plain")}
    return [{"what": f"training step, {name}", "value": speed, **same} for name, speed in speeds.items()]


def main() -> None:
    found = seconds(OPTIONS, rounds=7)
    rows = [{"option": name, "steps per second": 1 / s, "time": s / found["plain"]} for name, s in found.items()]
    save(pd.DataFrame(rows).round(2), f"options-{KIND}")


def step(packed: int = SIDE, views: int = SIDE, local_views: int = 0, **values: torch.Tensor) -> Callable[[], Any]:
    """A training step with an option."""
    p, packing = settings("resnet10t", SIDE, BATCH, local_views=local_views), recipe(packed)
    width = values["teacher"].shape[1] if "teacher" in values else 0
    trained = encoder(p, packing, teacher_width=width, view_size=views, reduced=False)
    learner = Learner(trained, TwoViews(p.augment, packing, views), p)
    images, numbers = torch.rand(BATCH, 3, packed, packed, device=DEVICE), count()
    values = {name: value.to(DEVICE) for name, value in values.items()}
    return lambda: learner.step(images, 1e-4, 0, 0, next(numbers), **values)


if __name__ == "__main__":
    main()
