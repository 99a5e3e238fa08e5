"""Images per second of training on this machine, compared with what the encoder alone would allow and with Lightly.

    python benchmarks/throughput.py [--smoke]

For each size of image and network, in bf16, the images (of two views each) per second of
  ceiling   forward and backward pass of the encoder and its head on views that are ready,
  step      the whole training step, with reading, views, loss and optimiser, as `fit` makes it,
  views     the augmentation alone,
  lightly   the step of Lightly's example on views that are ready: its transforms run on the processor, and are slower,
and of NT-Xent with gradient. Needs none of the MLOps packages. Prints a table and writes it to
benchmarks/results/throughput-<cpu|gpu>.csv; --smoke tries everything on a few small images, and writes nothing.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from simtrail.augment.views import TwoViews
from simtrail.data.loader import batches, epoch_rows
from simtrail.data.pack import PackedImages
from simtrail.data.recipe import Recipe
from simtrail.model.encoder import Encoder, EncoderConfig, best_device
from simtrail.model.objectives import nt_xent
from simtrail.params import Pretrain, changed, load_params
from simtrail.training.learner import Learner, threads_for

ROOT, DEVICE, SMOKE = Path(__file__).parent.parent, best_device(), "--smoke" in sys.argv
ROUNDS, SECONDS = 3, 0.1 if SMOKE else 0.4  # of each round
COMPILED = [(32, "resnet18"), (64, "resnet18"), (224, "resnet50"), (224, "vit_small_patch16_224")]
CASES = [  # side, network, batch
    (32, "resnet18", 1024),
    (32, "resnet50", 512),
    (64, "resnet18", 1024),
    (64, "resnet50", 512),
    (64, "vit_small_patch16_224", 512),
    (224, "resnet18", 256),
    (224, "resnet50", 256),
    (224, "vit_small_patch16_224", 256),
]
if SMOKE:
    CASES, COMPILED = [(32, "resnet10t", 8), (32, "vit_tiny_patch16_224", 8)], [(32, "resnet10t")]


def main() -> None:
    rows = []
    for side, model, batch in CASES:
        for compiled in [False, True][: 1 + ((side, model) in COMPILED)]:
            with threads_for(DEVICE):
                rows.append(throughput(side, model, batch, compiled))
            print(rows[-1], flush=True)
            write(pd.DataFrame(rows))
    for images in [64] if SMOKE else [512, 2048, 8192]:
        print(f"NT-Xent and its gradient, {images} images: {1e3 * loss_seconds(images):.2f} ms", flush=True)
    print(pd.DataFrame(rows).to_string(index=False))


def write(table: pd.DataFrame) -> None:
    """Writes the table so far, so that a machine whose time ends leaves what it has measured."""
    if not SMOKE:
        name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
        path = ROOT / f"benchmarks/results/throughput-{'gpu' if DEVICE.type == 'cuda' else 'cpu'}.csv"
        table.assign(device=name, torch=torch.__version__).to_csv(path, index=False)


def settings(model: str, side: int, batch: int, compiled: bool) -> Pretrain:
    """The default settings, with the views of the recipe for photographs."""
    values: dict[str, Any] = {
        "pretrain.encoder.model": model,
        "pretrain.encoder.stem": "small" if side <= 32 and "resnet" in model else "standard",
        "pretrain.encoder.features": [1],
        "pretrain.recipe": "photograph",
        "pretrain.batch_size": batch,
        "pretrain.micro_batch_size": None,
        "pretrain.temperature": 0.2,
        "pretrain.learning_rate": 0.001,
        "pretrain.precision": "fp32" if SMOKE else "bf16",  # without the instructions for it, bf16 is slow
        "pretrain.compile": compiled,
    }
    return changed(load_params(ROOT / "params.yaml"), values, "benchmarks/throughput.py").pretrain


def recipe(side: int) -> Recipe:
    rgb, zeros, full = ["red", "green", "blue"], [0.0] * 3, [255.0] * 3
    facts: dict[str, Any] = {"file_dtype": "uint8", "file_bands": 3, "mask_band": None, "bands": rgb, "dtype": "uint8"}
    return Recipe(size=side, fit="pad", background=0.0, composite=False, low=zeros, high=full, **facts)


def throughput(side: int, model: str, batch: int, compiled: bool) -> dict[str, Any]:
    """A row of the table: images per second of each part, and what fraction of the ceiling the whole step reaches."""
    p, packing = settings(model, side, batch, compiled), recipe(side)
    config = EncoderConfig(architecture=p.encoder, head=p.head, recipe=packing, mean=[0.5] * 3, std=[0.25] * 3)
    views = TwoViews(p.augment, packing)
    learner = Learner(Encoder(config).to(DEVICE).train(), views, p)
    ready = torch.rand(2 * batch, 3, side, side, device=DEVICE)
    lightly = lightly_step(p, config, ready) if not compiled else None

    def ceiling() -> None:
        with learner.autocast:
            projections = learner.network([ready])
        projections.float().square().mean().backward()
        learner.encoder.zero_grad(set_to_none=True)

    with TemporaryDirectory() as folder:
        random = np.random.default_rng(0).integers(0, 256, (4 * batch, 3, side, side), dtype=np.uint8)
        np.save(Path(folder) / "images-0000.npy", random)
        images = PackedImages(Path(folder), packing)
        endless = (b for epoch in range(10**6) for b in batches(images, rows_of(images, batch, epoch), DEVICE))
        steps = (learner.step(b, 1e-4, 0, 0, number) for number, b in enumerate(endless))
        parts: dict[str, Callable[[], Any]] = {
            "ceiling": ceiling,
            "step": lambda: next(steps),
            "views": lambda: views(ready[:batch], time.perf_counter_ns()),
        } | ({"lightly": lightly} if lightly else {})
        seconds = timed(parts)
    speeds = {name: round(batch / seconds[name]) if name in seconds else None for name in (*parts, "lightly")}
    of_ceiling = round(seconds["ceiling"] / seconds["step"], 2)
    return {"side": side, "model": model, "batch": batch, "compiled": compiled, **speeds, "of_ceiling": of_ceiling}


def rows_of(images: PackedImages, batch: int, epoch: int) -> np.ndarray:
    return epoch_rows(np.arange(len(images)), batch, 0, epoch)


def lightly_step(p: Pretrain, config: EncoderConfig, ready: torch.Tensor) -> Callable[[], Any]:
    """The step of Lightly's example of SimCLR with the same backbone, optimiser and precision."""
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead

    backbone = Encoder(config).backbone
    network = nn.Sequential(backbone, SimCLRProjectionHead(backbone.width, p.head.hidden, p.head.output)).to(DEVICE)
    criterion = NTXentLoss(temperature=p.temperature)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4)
    first, second = ready.chunk(2)

    def step() -> None:
        with torch.autocast(DEVICE.type, torch.bfloat16):
            loss = criterion(network(first), network(second))
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def timed(parts: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """The seconds of one call of each: the median of rounds, in which they take turns."""
    calls: dict[str, int] = {}
    for name, part in parts.items():
        part()  # compiles and allocates
        synchronise()
        start = time.perf_counter()
        for _ in range(3):
            part()
        synchronise()
        calls[name] = max(3, int(3 * SECONDS / (time.perf_counter() - start)))
    rounds: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(ROUNDS):
        for name, part in parts.items():
            start = time.perf_counter()
            for _ in range(calls[name]):
                part()
            synchronise()
            rounds[name].append((time.perf_counter() - start) / calls[name])
    return {name: median(seconds) for name, seconds in rounds.items()}


def loss_seconds(images: int) -> float:
    z = torch.randn(2 * images, 128, device=DEVICE, requires_grad=True)
    return timed({"loss": lambda: nt_xent(z, 0.2).backward()})["loss"]


def synchronise() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
