"""Training on more packed images than memory should hold, beside training on few: rate, and memory of the process.

    python benchmarks/memory.py FOLDER [IMAGES]

Writes IMAGES (1,000,000) random images of 3 × 64 × 64 (12 GB) to FOLDER, in shards as `prepare` does, and removes them
at the end. The rates are the medians of rounds that take turns: whole training steps of ResNet-10 on all of them and on
the first 10,000, and the reading alone. Memory is what the process holds beyond what it held after the first step.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np
import psutil
import torch
from throughput import DEVICE, recipe, settings

from simtrail.augment.views import TwoViews
from simtrail.data.loader import batches, epoch_rows
from simtrail.data.pack import SHARD_BYTES, PackedImages
from simtrail.model.encoder import Encoder, EncoderConfig
from simtrail.training.learner import Learner, threads_for

SIDE, BATCH, FEW = 64, 256, 10_000
ROUNDS, STEPS, READS = 3, 4, 400


def main() -> None:
    folder, count = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1_000_000
    try:
        write(folder, count)
        measure(PackedImages(folder, recipe(SIDE)))
    finally:
        for file in folder.glob("images-*.npy"):
            file.unlink()


def write(folder: Path, count: int) -> None:
    folder.mkdir(exist_ok=True)
    shape, rng = (3, SIDE, SIDE), np.random.default_rng(0)
    each = SHARD_BYTES // int(np.prod(shape))
    for number, start in enumerate(range(0, count, each)):
        images = rng.integers(0, 256, (min(each, count - start), *shape), dtype=np.uint8)
        np.save(folder / f"images-{number:04d}.npy", images)


def endless(images: PackedImages, rows: np.ndarray) -> Iterator[torch.Tensor]:
    for epoch in range(10**6):
        yield from batches(images, epoch_rows(rows, BATCH, 0, epoch), DEVICE)


def measure(images: PackedImages) -> None:
    p = settings("resnet10t", SIDE, BATCH, False)
    p = p.model_copy(update={"precision": "bf16" if DEVICE.type == "cuda" else "fp32"})
    config = EncoderConfig(architecture=p.encoder, head=p.head, recipe=recipe(SIDE), mean=[0.5] * 3, std=[0.25] * 3)
    learner = Learner(Encoder(config).to(DEVICE).train(), TwoViews(p.augment, recipe(SIDE)), p)
    rows = {"all": np.arange(len(images)), "few": np.arange(FEW)}
    process = psutil.Process()
    learner.step(next(endless(images, rows["few"])), 1e-4, 0, 0, 0)
    before, most = process.memory_info().rss, 0
    rates: dict[str, list[float]] = {"all": [], "few": [], "reading": []}
    streams, number = {name: endless(images, part) for name, part in rows.items()}, 0
    with threads_for(DEVICE):
        for _ in range(ROUNDS):
            for name, stream in streams.items():
                next(stream)
                start = time.perf_counter()
                for _ in range(STEPS):
                    learner.step(next(stream), 1e-4, 0, 0, number := number + 1)
                    most = max(most, process.memory_info().rss)
                rates[name].append(STEPS * BATCH / (time.perf_counter() - start))
            start = time.perf_counter()
            for _ in range(READS):
                next(streams["all"])
            most = max(most, process.memory_info().rss)
            rates["reading"].append(READS * BATCH / (time.perf_counter() - start))
    found = {name: median(values) for name, values in rates.items()}
    print(f"{len(images):,} images: {found['all']:.0f} images/s, {found['all'] / found['few']:.2f} of those of {FEW:,}")
    print(
        f"reading alone: {found['reading']:.0f} images/s; memory: {(most - before) / 1e6:.0f} MB beyond the first step"
    )


if __name__ == "__main__":
    main()
