"""Images per second of training on this machine, compared with what the encoder alone would allow and with Lightly.

    python benchmarks/throughput.py [--smoke]

For each size of image and network, the images (of two views each) per second of
  ceiling        forward and backward pass of the encoder and its head on views that are ready,
  step           the whole training step, with reading, views, loss and optimiser, as `fit` makes it,
  views          the augmentation alone,
  lightly_ready  the step of Lightly's example in the same precision, on views that are ready,
  lightly        Lightly as it comes: its example in float32, with its own transforms,
  lightly_bf16   the same in bf16, where this is the precision that is chosen.
On a processor, Lightly's steps run in a process of their own, because our training changes how a process allocates
memory. Lightly's transforms run on all cores of the processor, here without any loss: beside a GPU at the same time,
otherwise in turn. The precision is bf16 on a GPU, and what `precision: auto` chooses on a processor. On a GPU, NT-Xent
with its gradient is timed, too; on a processor, forms of the ceiling: the layout of memory, both views as one batch or
two, and compiled. Needs none of the MLOps packages. Writes tables to benchmarks/results/throughput-<cpu|gpu>.csv and
forms-cpu.csv; --smoke tries everything on a few small images, and writes nothing.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
import torch
from common import DEVICE, KIND, encoder, recipe, save, settings, timed
from torch import nn

from simtrail.augment.views import TwoViews
from simtrail.data.loader import batches, epoch_rows
from simtrail.data.pack import PackedImages
from simtrail.model.objectives import nt_xent
from simtrail.model.small_maps import SmallMapConv2d
from simtrail.pipeline.plan import precision
from simtrail.training.learner import Learner
from simtrail.training.machine import ready_for

GPU = DEVICE.type == "cuda"
Parts: TypeAlias = dict[str, Callable[[], Any]]


class Case(NamedTuple):
    """What is measured: a size of image, a network and a batch."""

    side: int
    model: str
    batch: int
    compiled: bool = False


PROCESSOR = [Case(64, "resnet18", 256), Case(32, "resnet18", 64), Case(64, "resnet10t", 64)]
CARD = [
    Case(32, "resnet18", 1024),
    Case(32, "resnet18", 1024, True),
    Case(32, "resnet50", 512),
    Case(64, "resnet18", 1024),
    Case(64, "resnet18", 1024, True),
    Case(64, "resnet50", 512),
    Case(64, "vit_small_patch16_224", 512),
    Case(224, "resnet18", 256),
    Case(224, "resnet50", 256),
    Case(224, "resnet50", 256, True),
    Case(224, "vit_small_patch16_224", 256),
    Case(224, "vit_small_patch16_224", 256, True),
]
QUICK = [Case(64, "resnet18", 64), Case(32, "resnet18", 32)]
SMALL = [Case(32, "resnet10t", 8), Case(32, "resnet10t", 8, True), Case(32, "vit_tiny_patch16_224", 8)]


def main(smoke: bool = False) -> None:
    rows = []
    for case in SMALL if smoke else CARD if GPU else PROCESSOR:
        with ready_for(DEVICE):
            rows.append(throughput(case))
        print(rows[-1], flush=True)
        if not smoke:  # a machine whose time ends leaves what it has measured
            save(pd.DataFrame(rows), f"throughput-{KIND}")
    for images in [64] if smoke else [512, 2048, 8192] if GPU else []:
        z = torch.randn(2 * images, 128, device=DEVICE, requires_grad=True)
        loss = timed({"loss": lambda z=z: nt_xent(z, 0.2).backward()})["loss"]  # type: ignore[misc]
        print(f"NT-Xent and its gradient, {images} images: {1e3 * loss:.2f} ms", flush=True)
    if not GPU and not smoke:
        save(forms(Case(64, "resnet18", 128)), "forms-cpu")
    print(pd.DataFrame(rows).to_string(index=False))


def quick() -> list[dict[str, Any]]:
    """Rows for the table of all benchmarks."""
    rows = []
    for case in QUICK:
        found = throughput(case, rounds=2)
        what = f"training step, ResNet-18, {case.side} px, {found['precision']}"
        for other, name in (
            ("ceiling", "the encoder alone"),
            ("lightly", "Lightly as it comes"),
            ("lightly_bf16", "Lightly with bf16"),
        ):
            if found[other]:
                row = {"what": what, "value": found["step"], "unit": "images/s", "beside": name, "other": found[other]}
                rows.append(row)
    return rows


def throughput(case: Case, rounds: int = 3) -> dict[str, Any]:
    """A row of the table: images per second of each part, and what fraction of the ceiling the whole step reaches."""
    p, packing = settings(case.model, case.side, case.batch, compile=case.compiled), recipe(case.side)
    trained = encoder(p, packing)
    low = "bf16" if GPU else precision(trained.config, DEVICE)[0]
    p = p.model_copy(update={"precision": low})
    views = TwoViews(p.augment, packing)
    learner = Learner(trained, views, p)
    ready = torch.rand(2 * case.batch, 3, case.side, case.side, device=DEVICE)

    def ceiling() -> None:
        with learner.autocast:
            projections = learner.network([ready])
        projections.float().square().mean().backward()
        learner.encoder.zero_grad(set_to_none=True)

    theirs = nullcontext(lightly_steps(case, low)) if GPU else apart(lightly_steps, case, low)
    with TemporaryDirectory() as folder, theirs as lightly:
        random = np.random.default_rng(0).integers(0, 256, (4 * case.batch, 3, case.side, case.side), dtype=np.uint8)
        np.save(Path(folder) / "images-0000.npy", random)
        images, rows = PackedImages(Path(folder), packing), np.arange(len(random))
        endless = (b for epoch in range(10**6) for b in batches(images, epoch_rows(rows, case.batch, 0, epoch), DEVICE))
        steps = (learner.step(b, 1e-4, 0, 0, number) for number, b in enumerate(endless))
        parts: Parts = {
            "ceiling": ceiling,
            "step": lambda: next(steps),
            "views": lambda: views(ready[: case.batch], time.perf_counter_ns()),
        }
        seconds = timed(parts | lightly, rounds)
    if lightly:
        transforms = case.batch * seconds_of_transforms(case.side) / len(os.sched_getaffinity(0))
        for name in lightly.keys() & {"lightly", "lightly_bf16"}:
            seconds[name] = max(seconds[name], transforms) if GPU else seconds[name] + transforms
    names = (*parts, "lightly_ready", "lightly", "lightly_bf16")
    speeds = {name: float(f"{case.batch / seconds[name]:.3g}") if name in seconds else None for name in names}
    return {**case._asdict(), "precision": low, **speeds, "of_ceiling": round(seconds["ceiling"] / seconds["step"], 2)}


@contextmanager
def apart(make: Callable[..., Parts], *arguments: Any) -> Iterator[Parts]:
    """The parts that `make` gives, in a process of their own, which allocates memory as usual; they return nothing."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_answer, args=(theirs, make, *arguments), daemon=True)
    process.start()
    theirs.close()  # if the process fails, we don't wait for it

    def call(name: str) -> None:
        ours.send(name)
        ours.recv()

    yield {name: partial(call, name) for name in ours.recv()}
    ours.send(None)
    process.join()


def _answer(pipe: Connection, make: Callable[..., Parts], *arguments: Any) -> None:
    parts = make(*arguments)
    pipe.send(list(parts))
    while name := pipe.recv():
        parts[name]()
        pipe.send("done")


def lightly_steps(case: Case, low: str) -> Parts:
    """Lightly's steps, by name; none for a compiled network."""
    kinds = {"lightly_ready": low, "lightly": "fp32"} | ({"lightly_bf16": low} if low == "bf16" else {})
    return {} if case.compiled else {name: lightly_step(case, name, kind) for name, kind in kinds.items()}


def lightly_step(case: Case, name: str, kind: str) -> Callable[[], Any]:
    """The step of Lightly's example of SimCLR with the same backbone and optimiser, on views that are ready."""
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead

    p = settings(case.model, case.side, case.batch)
    layout = torch.channels_last if name == "lightly_ready" else torch.contiguous_format  # the former as ours
    backbone = with_plain_convolutions(encoder(p, recipe(case.side)).backbone)
    network = nn.Sequential(backbone, SimCLRProjectionHead(backbone.width, p.head.hidden, p.head.output))
    network = network.to(DEVICE, memory_format=layout)  # type: ignore[call-overload]
    criterion = NTXentLoss(temperature=p.temperature)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4)
    ready = torch.rand(2 * case.batch, 3, case.side, case.side, device=DEVICE)
    first, second = ready.contiguous(memory_format=layout).chunk(2)

    def step() -> None:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=kind == "bf16"):
            loss = criterion(network(first), network(second))
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def seconds_of_transforms(side: int, images: int = 16) -> float:
    """The seconds that Lightly's transforms of one image take on one core."""
    from lightly.transforms import SimCLRTransform
    from PIL import Image

    transform, rng = SimCLRTransform(input_size=side), np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)) for _ in range(images)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return timed({"all": lambda: [transform(picture) for picture in pictures]})["all"] / images
    finally:
        torch.set_num_threads(threads)


def with_plain_convolutions(net: Any) -> Any:
    """The network with PyTorch's own convolutions for maps of all sizes."""
    for module in net.modules():
        if isinstance(module, SmallMapConv2d):
            module.__class__ = nn.Conv2d
    return net


def forms(case: Case) -> pd.DataFrame:
    """The encoder alone in other forms, relative to float32, in the precisions that pay on this processor."""
    low = precision(encoder(settings(case.model, case.side, case.batch), recipe(case.side)).config, DEVICE)[0]
    parts = {
        "fp32, channels last, both views as one batch": form(case),
        "channels first": form(case, layout=torch.contiguous_format),
        "the views as two batches": form(case, parts=2),
        "compiled": form(case, compiled=True),
        "PyTorch's convolutions for small maps": form(case, plain=True),
    }
    if low == "bf16":
        parts |= {
            "bf16": form(case, low),
            "bf16, compiled": form(case, low, compiled=True),
            "bf16, PyTorch's convolutions for small maps": form(case, low, plain=True),
        }
    with apart(_usual_memory, case, low) as usual, ready_for(DEVICE):
        seconds = timed(parts | usual, rounds=5)
    present = next(iter(seconds.values()))
    return pd.DataFrame({"form": list(seconds), "speed": [round(present / each, 2) for each in seconds.values()]})


def _usual_memory(case: Case, low: str) -> Parts:
    name = "memory returned to the system between steps"
    return {name: form(case)} | ({f"bf16, {name}": form(case, low)} if low == "bf16" else {})


def form(
    case: Case,
    kind: str = "fp32",
    layout: torch.memory_format = torch.channels_last,
    parts: int = 1,
    compiled: bool = False,
    plain: bool = False,
) -> Callable[[], None]:
    """The forward and backward pass of an encoder and its head, on views that are ready."""
    trained = encoder(settings(case.model, case.side, case.batch), recipe(case.side))
    if plain:
        with_plain_convolutions(trained.backbone)
    # not the encoder, which would give its inputs the usual layout again
    network = nn.Sequential(trained.backbone, trained.head).to(memory_format=layout)  # type: ignore[call-overload]
    views = torch.rand(2 * case.batch, 3, case.side, case.side).contiguous(memory_format=layout).chunk(parts)
    if compiled:
        network.compile()

    def passes() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == "bf16"):
            projections = torch.cat([network(part) for part in views])
        projections.float().square().mean().backward()
        network.zero_grad(set_to_none=True)

    return passes


if __name__ == "__main__":
    main("--smoke" in sys.argv)
