"""What the benchmarks share: settings, times of alternatives that take turns, memory, and tables with their machine."""

from __future__ import annotations

import datetime
import os
import platform
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
import psutil
import torch

from simtrail.data.recipe import Recipe
from simtrail.model.encoder import Encoder, EncoderConfig, best_device
from simtrail.params import Pretrain, changed, load_params

ROOT, DEVICE = Path(__file__).resolve().parent.parent, best_device()
RESULTS = ROOT / "benchmarks/results"
KIND = "gpu" if DEVICE.type == "cuda" else "cpu"


def settings(model: str, side: int, batch: int, **values: Any) -> Pretrain:
    """The default settings, with views of the recipe for photographs; `values` are further keys of pretrain."""
    chosen: dict[str, Any] = {
        "encoder.model": model,
        "encoder.stem": "small" if side <= 32 and "resnet" in model else "standard",
        "encoder.features": [1],
        "recipe": "photograph",
        "batch_size": batch,
        "micro_batch_size": None,
        "temperature": 0.2,
        "learning_rate": 0.001,
        "precision": "bf16" if DEVICE.type == "cuda" else "fp32",
        **values,
    }
    keys = {f"pretrain.{key}": value for key, value in chosen.items()}
    return changed(load_params(ROOT / "params.yaml"), keys, "benchmarks").pretrain


def recipe(side: int, bands: int = 3) -> Recipe:
    names = ["red", "green", "blue", *(f"band{i}" for i in range(3, bands))]
    facts: dict[str, Any] = {"file_dtype": "uint8", "file_bands": bands, "mask_band": None, "dtype": "uint8"}
    scale = {"low": [0.0] * bands, "high": [255.0] * bands}
    return Recipe(size=side, fit="pad", background=0.0, composite=False, bands=names, **scale, **facts)


def encoder(p: Pretrain, packing: Recipe, **values: Any) -> Encoder:
    """An untrained encoder for these settings, on the device, in training mode."""
    bands = len(packing.bands)
    scale: dict[str, Any] = {"mean": [0.5] * bands, "std": [0.25] * bands}
    config = EncoderConfig(architecture=p.encoder, head=p.head, recipe=packing, **scale, **values)
    return Encoder(config).to(DEVICE).train()


def timed(parts: dict[str, Callable[[], Any]], rounds: int = 3, seconds: float = 0.4) -> dict[str, float]:
    """The seconds of one call of each part: the median of rounds, in which the parts take turns.

    A round calls a part for about so many seconds, at least once.
    """
    calls: dict[str, int] = {}
    for name, part in parts.items():
        part()  # compiles and allocates
        calls[name] = max(1, int(seconds / _seconds(part, 1)))
    found: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(rounds):
        for name, part in parts.items():
            found[name].append(_seconds(part, calls[name]))
    return {name: median(values) for name, values in found.items()}


def _seconds(part: Callable[[], Any], calls: int) -> float:
    synchronise()
    start = time.perf_counter()
    for _ in range(calls):
        part()
    synchronise()
    return (time.perf_counter() - start) / calls


def synchronise() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def resident(field: str) -> int:
    """Bytes of memory of this process: VmRSS now, or VmHWM at its peak since its start or the last reset."""
    return 1024 * int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1])  # type: ignore[index]


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def watched(function: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the function, and the peak memory in GB of all child processes together, without shared pages."""
    peak, finished = 0.0, threading.Event()

    def sample() -> None:
        nonlocal peak
        while not finished.wait(0.1):
            memory = 0
            for child in psutil.Process().children(recursive=True):
                try:
                    memory += child.memory_full_info().uss
                except psutil.Error:
                    continue
            peak = max(peak, memory / 1e9)

    sampler = threading.Thread(target=sample)
    sampler.start()
    start = time.perf_counter()
    function()
    seconds = time.perf_counter() - start
    finished.set()
    sampler.join()
    return seconds, peak


def machine() -> str:
    """The GPU, or the processor, its cores and the widest of its instructions that matter for the times."""
    if DEVICE.type == "cuda":
        return torch.cuda.get_device_name()
    text = Path("/proc/cpuinfo").read_text()
    name = re.search(r"model name\s*:\s*(.*)", text)
    flags = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")
    widest = next((flag for flag in flags if re.search(rf"\b{flag}\b", text)), platform.machine())
    cores = len(os.sched_getaffinity(0))
    return f"{name[1].strip() if name else platform.processor()}, {cores} cores, {widest.replace('_', ' ')}"


def save(table: pd.DataFrame, name: str) -> None:
    """Prints a table, and writes it with machine and date to results/NAME.csv."""
    print(table.to_string(index=False), flush=True)
    table.assign(**_stamp()).to_csv(RESULTS / f"{name}.csv", index=False)


def add(row: dict[str, Any], name: str, key: str) -> None:
    """Puts a row with machine and date into results/NAME.csv, in place of the row with the same `key`; prints all."""
    path = RESULTS / f"{name}.csv"
    old = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=[key])
    table = pd.concat([old[old[key] != row[key]], pd.DataFrame([row | _stamp()])])
    print(table.to_string(index=False), flush=True)
    table.to_csv(path, index=False, float_format="%.8g")


def _stamp() -> dict[str, str]:
    return {"machine": machine(), "torch": torch.__version__, "date": datetime.date.today().isoformat()}
