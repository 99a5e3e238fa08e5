"""NT-Xent and DCL in pieces, compared with NT-Xent on the whole similarity matrix: time and peak memory with gradient.

    python benchmarks/nt_xent.py

Prints a table and writes it to benchmarks/results/nt_xent-<cpu|gpu>.csv. Takes two minutes on two CPU cores and 4 GB.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from common import DEVICE, KIND, resident, save, timed

from simtrail.model.objectives import dcl, nt_xent

DIMENSIONS, TEMPERATURE = 128, 0.2
TIMED, MEASURED, ROUNDS = 2048, 8192, 15  # images, images, rounds


def dense(projections: torch.Tensor, temperature: float) -> torch.Tensor:
    """NT-Xent on the whole similarity matrix."""
    z = F.normalize(projections, dim=1)
    partners = torch.arange(len(z), device=z.device).roll(len(z) // 2)
    return F.cross_entropy((z @ z.T / temperature).fill_diagonal_(-torch.inf), partners)


FORMS = {"dense nt_xent": dense, "nt_xent": nt_xent, "dcl": dcl}


def inputs(images: int) -> torch.Tensor:
    return torch.randn(2 * images, DIMENSIONS, device=DEVICE, requires_grad=True)


def passes(form: str, images: int) -> Callable[[], None]:
    projections = inputs(images)
    return lambda: FORMS[form](projections, TEMPERATURE).backward()


def peak_megabytes(form: str) -> float:
    """Peak memory without the inputs. Needs a new process for each call, because a process's peak never decreases."""
    passes(form, 64)()
    measured = passes(form, MEASURED)
    before = torch.cuda.memory_allocated() if DEVICE.type == "cuda" else resident("VmRSS")
    measured()
    after = torch.cuda.max_memory_allocated() if DEVICE.type == "cuda" else resident("VmHWM")
    return (after - before) / 1e6


def quick() -> list[dict[str, Any]]:
    """Rows for the table of all benchmarks."""
    seconds = timed({form: passes(form, TIMED) for form in ("nt_xent", "dense nt_xent")}, rounds=5)
    ours, dense_form = (1 / each for each in seconds.values())
    what = f"NT-Xent and its gradient, {TIMED:,} images"
    return [{"what": what, "value": ours, "unit": "per second", "beside": "the dense form", "other": dense_form}]


def main() -> None:
    seconds = timed({form: passes(form, TIMED) for form in FORMS}, ROUNDS)
    rows = []
    for form in FORMS:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            peak = pool.submit(peak_megabytes, form).result()
        time_ms = round(1e3 * seconds[form], 1)
        rows.append({"form": form, f"ms at B = {TIMED}": time_ms, f"MB at B = {MEASURED}": round(peak)})
    save(pd.DataFrame(rows), f"nt_xent-{KIND}")


if __name__ == "__main__":
    main()
