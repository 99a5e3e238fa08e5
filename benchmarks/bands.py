"""How much time more bands cost: `python benchmarks/bands.py`; writes a table to results/.

Measures a whole training step (read, views, encoder, loss, optimiser) of a ResNet-10-T on 64 images of 64 px with 3, 7,
24 and 408 bands, which take turns in one process. The table has the median time, and its ratio to that of 3 bands.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from common import DEVICE, KIND, encoder, recipe, save, settings, timed

from simtrail.augment.views import TwoViews
from simtrail.data.loader import to_unit
from simtrail.data.pack import PackedImages
from simtrail.training.learner import Learner

SIDE, IMAGES, BATCH, BANDS = 64, 256, 64, (3, 7, 24, 408)


def step(bands: int, folder: Path) -> Callable[[], float]:
    """A training step on random images with this many bands."""
    p, packing = settings("resnet10t", SIDE, BATCH, recipe="specimen"), recipe(SIDE, bands)
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(1, 256, (IMAGES, bands, SIDE, SIDE), dtype=np.uint8)
    np.save(folder / "images-0000.npy", pixels)
    images, learner = PackedImages(folder, packing), Learner(encoder(p, packing), TwoViews(p.augment, packing), p)
    numbers = count()

    def run() -> float:
        number = next(numbers)
        rows = np.random.default_rng(number).permutation(IMAGES)[:BATCH]
        loss, _ = learner.step(to_unit(images.rows(rows), 255, DEVICE), 1e-3, 0, 0, number)
        return loss.item()  # waits for the device

    return run


def seconds(bands: tuple[int, ...], rounds: int) -> dict[int, float]:
    with tempfile.TemporaryDirectory() as folder:
        found = timed({str(b): step(b, Path(folder) / str(b)) for b in bands}, rounds)
    return {int(b): each for b, each in found.items()}


def quick() -> list[dict[str, Any]]:
    """Rows for the table of all benchmarks."""
    found = seconds((3, 7, 24), rounds=3)
    speeds = {b: BATCH / each for b, each in found.items()}
    return [
        {
            "what": f"training step, {b} bands",
            "value": speeds[b],
            "unit": "images/s",
            "beside": "3 bands",
            "other": speeds[3],
        }
        for b in (7, 24)
    ]


def main() -> None:
    found = seconds(BANDS, rounds=7)
    rows = [{"bands": b, "milliseconds a step": round(1e3 * s), "×": round(s / found[3], 2)} for b, s in found.items()]
    save(pd.DataFrame(rows), f"bands-{KIND}")


if __name__ == "__main__":
    main()
