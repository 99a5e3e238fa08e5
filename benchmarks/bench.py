"""All benchmarks of speed on this machine in quick form, as one table: `make bench`.

Each row compares the speed of one part with what it could reach at most, or with a peer, side by side in one process.
Takes less than 10 minutes on two CPU cores. Writes the table to benchmarks/results/bench.csv.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from multiprocessing import get_context
from typing import Any

import pandas as pd
from common import save
from tqdm import tqdm

PARTS = ("throughput", "options", "bands", "memory", "views", "nt_xent", "evaluate", "photographs", "embed")


def main() -> None:
    rows: list[dict[str, Any]] = []
    for part in tqdm(PARTS, "bench", unit="part", disable=None):
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:  # so that no part sees what another has left
            rows += pool.submit(quick, part).result()
    table = pd.DataFrame(rows)
    table.insert(3, "ratio", (table["value"] / table.pop("other")).round(2))
    save(table.assign(value=[float(f"{value:.3g}") for value in table["value"]]), "bench")


def quick(part: str) -> list[dict[str, Any]]:
    return import_module(part).quick()


if __name__ == "__main__":
    main()
