"""Training on more packed images than memory should hold, beside training on few: rate, memory, and resuming.

    python benchmarks/memory.py FOLDER [IMAGES]

Writes IMAGES (1,000,000) random images of 3 × 64 × 64 (12 GB) to FOLDER, in shards as `prepare` does, and removes them
at the end. The rates are the medians of rounds that take turns: whole training steps of ResNet-10 on all of them and on
the first 10,000, and the reading alone. Memory is what the process holds beyond what it held after the first step. A
short training is interrupted between two checkpoints and continued: its weights must be those of one that was not.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import psutil
import torch
from common import DEVICE, encoder, recipe, save, settings

from simtrail.augment.views import TwoViews
from simtrail.data.loader import TrainingData, batches, epoch_rows
from simtrail.data.pack import SHARD_BYTES, PackedImages
from simtrail.training.learner import Learner
from simtrail.training.loop import fit
from simtrail.training.machine import ready_for
from simtrail.training.state import Checkpoints

SIDE, BATCH, FEW = 64, 256, 10_000
ROUNDS, STEPS, READS = 3, 4, 400


def main() -> None:
    folder, count = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1_000_000
    try:
        write(folder, count)
        found = measure(PackedImages(folder, recipe(SIDE)))
        save(pd.DataFrame([found | {"resumed_exactly": resumes_exactly(folder)}]).round(2), "memory")
    finally:
        for file in folder.glob("images-*.npy"):
            file.unlink()


def quick() -> list[dict[str, Any]]:
    """Rows for the table of all benchmarks."""
    with TemporaryDirectory() as folder:
        write(Path(folder), 40_000)
        found = measure(PackedImages(Path(folder), recipe(SIDE)), rounds=2, batch=64)
    what = f"training step on {found['images']:,} packed images"
    return [{"what": what, "value": found["all"], "unit": "images/s", "beside": f"on {FEW:,}", "other": found["few"]}]


def write(folder: Path, count: int) -> None:
    folder.mkdir(exist_ok=True)
    shape, rng = (3, SIDE, SIDE), np.random.default_rng(0)
    each = SHARD_BYTES // int(np.prod(shape))
    for number, start in enumerate(range(0, count, each)):
        images = rng.integers(0, 256, (min(each, count - start), *shape), dtype=np.uint8)
        np.save(folder / f"images-{number:04d}.npy", images)


def endless(images: PackedImages, rows: np.ndarray, batch: int) -> Iterator[torch.Tensor]:
    for epoch in range(10**6):
        yield from batches(images, epoch_rows(rows, batch, 0, epoch), DEVICE)


def measure(images: PackedImages, rounds: int = ROUNDS, batch: int = BATCH) -> dict[str, float]:
    """Images per second with all images, with few, and of reading alone; megabytes beyond the first step."""
    p, packing = settings("resnet10t", SIDE, batch), recipe(SIDE)
    learner = Learner(encoder(p, packing), TwoViews(p.augment, packing), p)
    rows = {"all": np.arange(len(images)), "few": np.arange(FEW)}
    process = psutil.Process()
    rates: dict[str, list[float]] = {"all": [], "few": [], "reading": []}
    streams, number = {name: endless(images, part, batch) for name, part in rows.items()}, 0
    with ready_for(DEVICE):
        learner.step(next(endless(images, rows["few"], batch)), 1e-4, 0, 0, 0)
        before, most = process.memory_info().rss, 0
        for _ in range(rounds):
            for name, stream in streams.items():
                next(stream)
                start = time.perf_counter()
                for _ in range(STEPS):
                    learner.step(next(stream), 1e-4, 0, 0, number := number + 1)
                    most = max(most, process.memory_info().rss)
                rates[name].append(STEPS * batch / (time.perf_counter() - start))
            start = time.perf_counter()
            for _ in range(READS):
                next(streams["all"])
            most = max(most, process.memory_info().rss)
            rates["reading"].append(READS * batch / (time.perf_counter() - start))
    found = {name: median(values) for name, values in rates.items()}
    return {"images": len(images), **found, "of_few": found["all"] / found["few"], "MB": (most - before) / 1e6}


class Interrupted(PackedImages):
    """Images whose reading fails after some batches."""

    left = 5

    def rows(self, indices: np.ndarray) -> np.ndarray:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().rows(indices)


def resumes_exactly(folder: Path) -> bool:
    """Whether a training that is interrupted and continued ends with the weights of one that is not."""
    p = settings("resnet10t", SIDE, BATCH, max_steps=6, checkpoint={"every_steps": 2})
    packing = recipe(SIDE)

    def train(kind: Callable[..., PackedImages], **options: Any) -> dict[str, torch.Tensor]:
        images = kind(folder, packing)
        data = TrainingData(images, np.arange(len(images)), np.arange(0))
        return fit(data, encoder(p, packing).config, p, validate=False, **options).encoder.state_dict()

    whole = train(PackedImages)
    with TemporaryDirectory() as scratch:
        checkpoints = Checkpoints(Path(scratch), "run")
        try:
            train(Interrupted, checkpoints=checkpoints)
        except KeyboardInterrupt:
            assert checkpoints, "nothing to continue from"
        continued = train(PackedImages, checkpoints=checkpoints)
    return all(torch.equal(value, continued[name]) for name, value in whole.items())


if __name__ == "__main__":
    main()
