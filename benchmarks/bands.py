"""How much time more bands cost: `python benchmarks/bands.py`; writes a table to results/.

Measures a whole training step (read, views, encoder, loss, optimiser) with params.yaml on images of equal size with 3,
7, 24 and 408 bands, which take turns in one process. The table has the median time, and its ratio to the median of 3
bands.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from simtrail.augment.views import TwoViews
from simtrail.data.loader import to_unit
from simtrail.data.pack import PackedImages
from simtrail.data.recipe import Recipe
from simtrail.model.encoder import Encoder, EncoderConfig, best_device
from simtrail.params import load_params
from simtrail.training.learner import Learner

HERE = Path(__file__).resolve().parent
SIDE, IMAGES, BANDS = 64, 256, (3, 7, 24, 408)
ROUNDS = {3: 12, 7: 12, 24: 12, 408: 3}


class Steps:
    """Training steps on random images with this many bands."""

    def __init__(self, bands: int, folder: Path):
        device, p = best_device(), load_params(HERE.parent / "params.yaml").pretrain
        names = ["red", "green", "blue"] + [f"band{i}" for i in range(3, bands)]
        recipe = Recipe(
            size=SIDE, fit="pad", background=0.0, composite=True, file_dtype="uint8", file_bands=bands, mask_band=None,
            bands=names, dtype="uint8", low=[0.0] * bands, high=[255.0] * bands,
        )  # fmt: skip
        folder.mkdir()
        pixels = np.random.default_rng(0).integers(1, 256, (IMAGES, bands, SIDE, SIDE), dtype=np.uint8)
        np.save(folder / "images-0000.npy", pixels)
        self.images, self.batch = PackedImages(folder, recipe), p.batch_size
        scale = {"mean": [0.5] * bands, "std": [0.3] * bands}
        encoder = Encoder(EncoderConfig(architecture=p.encoder, head=p.head, recipe=recipe, **scale))
        self.learner = Learner(encoder.to(device).train(), TwoViews(p.augment, recipe), p)

    def seconds(self, number: int) -> float:
        start = time.perf_counter()
        rows = np.random.default_rng(number).permutation(IMAGES)[: self.batch]
        batch = to_unit(self.images.rows(rows), 255, self.learner.device)
        loss, _ = self.learner.step(batch, 1e-3, 0, 0, number)
        loss.item()  # waits for the device
        return time.perf_counter() - start


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        steps = {bands: Steps(bands, Path(folder) / str(bands)) for bands in BANDS}
        for step in steps.values():
            step.seconds(0)  # warm-up
        times: dict[int, list[float]] = {bands: [] for bands in BANDS}
        for number in range(1, max(ROUNDS.values()) + 1):
            for bands, step in steps.items():
                if number <= ROUNDS[bands]:
                    times[bands].append(step.seconds(number))
    median_of_3_bands = statistics.median(times[3])
    rows = [
        {
            "bands": b,
            "milliseconds a step": round(1e3 * statistics.median(t)),
            "×": round(statistics.median(t) / median_of_3_bands, 2),
        }
        for b, t in times.items()
    ]
    table = pd.DataFrame(rows)
    print(table.to_string(index=False))
    device = "gpu" if torch.cuda.is_available() else "cpu"
    table.to_csv(HERE / f"results/bands-{device}.csv", index=False)


if __name__ == "__main__":
    main()
