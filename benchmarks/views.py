"""Time per augmented view, compared with the same augmentations as a chain of Kornia modules.

    python benchmarks/views.py

Prints a table and writes it to benchmarks/results/views-<cpu|gpu>.csv. Takes half a minute on two CPU cores.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import kornia.augmentation as K
import pandas as pd
import torch
from torch import nn

from simtrail.augment.views import TwoViews
from simtrail.data.recipe import Recipe
from simtrail.model.encoder import best_device
from simtrail.params import Augment, changed, load_params

IMAGES, SIDE, ROUNDS = 64, 64, 30
DEVICE = best_device()
PARAMS = load_params(Path(__file__).parent.parent / "params.yaml")
OURS = PARAMS.pretrain.augment
PAPER = changed(  # appendix A of the paper
    PARAMS,
    {
        "pretrain.augment.geometry.crop.min_area": 0.08,
        "pretrain.augment.geometry.rotation.p": 0.0,
        "pretrain.augment.color.strength": 1.0,
        "pretrain.augment.color.grayscale.p": 0.2,
        "pretrain.augment.texture.blur.p": 0.5,
    },
    "views.py",
).pretrain.augment
RECIPE = Recipe(
    size=SIDE,
    fit="pad",
    background=0.0,
    composite=False,
    file_dtype="uint8",
    file_bands=3,
    mask_band=None,
    bands=["red", "green", "blue"],
    dtype="uint8",
    low=[0.0] * 3,
    high=[255.0] * 3,
)


def in_kornia(params: Augment) -> Callable[[torch.Tensor], torch.Tensor]:
    geometry, jitter, blur = params.geometry, params.color.jitter, params.texture.blur
    strengths = (params.color.strength * s for s in (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue))
    kernel = SIDE // 10 | 1
    augment = nn.Sequential(
        K.RandomRotation(geometry.rotation.degrees, p=geometry.rotation.p),
        K.RandomResizedCrop((SIDE, SIDE), scale=(geometry.crop.min_area, 1.0), ratio=(3 / 4, 4 / 3)),
        K.RandomHorizontalFlip(p=geometry.horizontal_flip.p),
        K.ColorJitter(*strengths, p=jitter.p),
        K.RandomGrayscale(p=params.color.grayscale.p),
        K.RandomGaussianBlur((kernel, kernel), (0.1, blur.sigma), p=blur.p),
    )
    return lambda batch: torch.cat([augment(batch), augment(batch)])


def in_simtrail(params: Augment) -> Callable[[torch.Tensor], torch.Tensor]:
    two_views = TwoViews(params, RECIPE)
    return lambda batch: two_views(batch, time.perf_counter_ns())


def microseconds(augment: Callable[[torch.Tensor], torch.Tensor], batch: torch.Tensor) -> float:
    start = time.perf_counter()
    augment(batch)
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return 1e6 * (time.perf_counter() - start) / (2 * len(batch))


def main() -> None:
    batch = torch.rand(IMAGES, 3, SIDE, SIDE, device=DEVICE)
    rows = []
    for name, params in {"the paper's": PAPER, "params.yaml": OURS}.items():
        forms = {"simtrail": in_simtrail(params), "Kornia": in_kornia(params)}
        rounds = [{f: microseconds(form, batch) for f, form in forms.items()} for _ in range(ROUNDS + 3)][3:]
        ours, kornia = (statistics.median(times[form] for times in rounds) for form in forms)
        rows.append({"settings": name, "simtrail µs": round(ours), "Kornia µs": round(kornia), "×": kornia / ours})
    table = pd.DataFrame(rows).round(1)
    print(table.to_string(index=False))
    device = "gpu" if DEVICE.type == "cuda" else "cpu"
    table.to_csv(Path(__file__).parent / f"results/views-{device}.csv", index=False)


if __name__ == "__main__":
    main()
