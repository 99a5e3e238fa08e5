"""Time per augmented view, compared with the same augmentations as a chain of Kornia modules.

    python benchmarks/views.py

Prints a table and writes it to benchmarks/results/views-<cpu|gpu>.csv. Takes half a minute on two CPU cores.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import kornia.augmentation as K
import pandas as pd
import torch
from common import DEVICE, KIND, ROOT, recipe, save, timed
from torch import nn

from simtrail.augment.views import TwoViews
from simtrail.params import Augment, changed, load_params

IMAGES, SIDE = 64, 64
PARAMS = load_params(ROOT / "params.yaml")
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
    two_views = TwoViews(params, recipe(SIDE))
    return lambda batch: two_views(batch, time.perf_counter_ns())


def microseconds(params: Augment, rounds: int) -> tuple[float, float]:
    """Of a view, by simtrail and by Kornia."""
    batch = torch.rand(IMAGES, 3, SIDE, SIDE, device=DEVICE)
    forms = {"simtrail": in_simtrail(params), "Kornia": in_kornia(params)}
    seconds = timed({name: lambda form=form: form(batch) for name, form in forms.items()}, rounds, seconds=0.05)  # type: ignore[misc]
    ours, kornia = (1e6 * each / (2 * IMAGES) for each in seconds.values())
    return ours, kornia


def quick() -> list[dict[str, Any]]:
    """Rows for the table of all benchmarks, on one core."""
    torch.set_num_threads(1)
    ours, kornia = (1e6 / each for each in microseconds(PAPER, rounds=10))
    return [{"what": "the paper's views, 64 px", "value": ours, "unit": "views/s", "beside": "Kornia", "other": kornia}]


def main() -> None:
    rows = []
    for name, params in {"the paper's": PAPER, "params.yaml": OURS}.items():
        ours, kornia = microseconds(params, rounds=30)
        rows.append({"settings": name, "simtrail µs": round(ours), "Kornia µs": round(kornia), "×": kornia / ours})
    save(pd.DataFrame(rows).round(1), f"views-{KIND}")


if __name__ == "__main__":
    main()
