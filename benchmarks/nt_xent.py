"""NT-Xent and DCL in pieces, compared with NT-Xent on the whole similarity matrix: time and peak memory with gradient.

    python benchmarks/nt_xent.py

Prints a table and writes it to benchmarks/results/nt_xent-<cpu|gpu>.csv. Takes two minutes on two CPU cores and 4 GB.
"""

from __future__ import annotations

import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F

from simtrail.model.encoder import best_device
from simtrail.model.objectives import dcl, nt_xent

DIMENSIONS, TEMPERATURE = 128, 0.2
TIMED, MEASURED, ROUNDS = 2048, 8192, 15  # images, images, rounds
DEVICE = best_device()


def dense(projections: torch.Tensor, temperature: float) -> torch.Tensor:
    """NT-Xent on the whole similarity matrix."""
    z = F.normalize(projections, dim=1)
    partners = torch.arange(len(z), device=z.device).roll(len(z) // 2)
    return F.cross_entropy((z @ z.T / temperature).fill_diagonal_(-torch.inf), partners)


FORMS = {"dense nt_xent": dense, "nt_xent": nt_xent, "dcl": dcl}


def inputs(images: int) -> torch.Tensor:
    return torch.randn(2 * images, DIMENSIONS, device=DEVICE, requires_grad=True)


def milliseconds(form: str, projections: torch.Tensor) -> float:
    start = time.perf_counter()
    FORMS[form](projections, TEMPERATURE).backward()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)


def peak_megabytes(form: str) -> float:
    """Peak memory without the inputs. Needs a new process for each call, because a process's peak never decreases."""
    milliseconds(form, inputs(64))
    projections = inputs(MEASURED)
    before = torch.cuda.memory_allocated() if DEVICE.type == "cuda" else resident("VmRSS")
    milliseconds(form, projections)
    after = torch.cuda.max_memory_allocated() if DEVICE.type == "cuda" else resident("VmHWM")
    return (after - before) / 1e6


def resident(field: str) -> int:
    """Bytes of the process, from /proc, because getrusage would include the peak of its parent."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


def main() -> None:
    projections = inputs(TIMED)
    rounds = [{form: milliseconds(form, projections) for form in FORMS} for _ in range(ROUNDS + 1)][1:]
    rows = []
    for form in FORMS:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            peak = pool.submit(peak_megabytes, form).result()
        time_ms = statistics.median(times[form] for times in rounds)
        rows.append({"form": form, f"ms at B = {TIMED}": round(time_ms, 1), f"MB at B = {MEASURED}": round(peak)})
    table = pd.DataFrame(rows)
    print(table.to_string(index=False))
    device = "gpu" if DEVICE.type == "cuda" else "cpu"
    table.to_csv(Path(__file__).parent / f"results/nt_xent-{device}.csv", index=False)


if __name__ == "__main__":
    main()
