"""The time of a training step with each option of a stronger encoder, relative to a plain step.

    python benchmarks/options.py

ResNet-10-T, batches of 64 generated images, views of 64 pixels, the settings of a processor; one process, in which all
options take turns. Prints a table and writes it to benchmarks/results/options-<cpu|gpu>.csv. A minute on two CPU cores.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import pandas as pd
import torch
from throughput import DEVICE, ROOT, recipe, settings, timed

from simtrail.augment.views import TwoViews
from simtrail.model.encoder import Encoder, EncoderConfig
from simtrail.training.learner import Learner, threads_for

SIDE, BATCH, TEACHER = 64, 64, 1280
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "view_size, from 1.5 times the pixels": {"packed": 96},
    "view_size, from twice the pixels": {"packed": 128},
    "positives: group": {"groups": torch.arange(BATCH) // 2},
    "local_views: 2": {"local_views": 2},
    "local_views: 4": {"local_views": 4},
    "teacher of 1280 features": {"teacher": torch.randn(BATCH, TEACHER)},
}


def main() -> None:
    with threads_for(DEVICE):
        seconds = timed({name: step(**option) for name, option in OPTIONS.items()})
    plain = seconds["plain"]
    rows = [{"option": name, "steps per second": 1 / s, "time": s / plain} for name, s in seconds.items()]
    table = pd.DataFrame(rows).round(2)
    print(table.to_string(index=False))
    kind = "gpu" if DEVICE.type == "cuda" else "cpu"
    table.to_csv(ROOT / f"benchmarks/results/options-{kind}.csv", index=False)


def step(packed: int = SIDE, local_views: int = 0, **values: torch.Tensor) -> Callable[[], Any]:
    """A training step with an option."""
    p = settings("resnet10t", SIDE, BATCH, compiled=False).model_copy(update={"local_views": local_views})
    packing = recipe(packed)
    width = values["teacher"].shape[1] if "teacher" in values else 0
    kept: dict[str, Any] = {"recipe": packing, "mean": [0.5] * 3, "std": [0.25] * 3, "view_size": SIDE}
    config = EncoderConfig(architecture=p.encoder, head=p.head, teacher_width=width, **kept)
    learner = Learner(Encoder(config).to(DEVICE).train(), TwoViews(p.augment, packing, SIDE), p)
    images, numbers = torch.rand(BATCH, 3, packed, packed, device=DEVICE), count()
    values = {name: value.to(DEVICE) for name, value in values.items()}
    return lambda: learner.step(images, 1e-4, 0, 0, next(numbers), **values)


if __name__ == "__main__":
    main()
