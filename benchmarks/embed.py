"""How fast `simtrail embed` is beside only reading the files and only running the network.

    python benchmarks/embed.py ENCODER PATH [FILES]

ENCODER is a folder, PATH images as `simtrail embed` takes them. Rates are the medians of three rounds, in which all
three are measured side by side. On a processor both kinds of work share the cores: then no program can be faster than
the two one after the other, 1 / (1 / reading + 1 / network). Adds a row to benchmarks/results/embed.csv.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from simtrail.data.sources import image_files
from simtrail.data.stream import conformed
from simtrail.downstream.embedding import BATCH, embed_files
from simtrail.model.encoder import Encoder

ROUNDS = 3


def main() -> None:
    encoder = Encoder.load(Path(sys.argv[1]))
    sources = image_files(sys.argv[2])
    sources = [sources[i] for i in np.random.default_rng(0).permutation(len(sources))]
    if len(sys.argv) > 3:
        sources = sources[: int(sys.argv[3])]
    paths = [source.path for source in sources]
    packed = np.concatenate(list(conformed(paths[:BATCH], encoder.config.recipe)))
    rounds = []
    for number in range(ROUNDS):
        seconds = {}
        start = time.monotonic()
        for _ in conformed(paths, encoder.config.recipe):
            pass
        seconds["reading"] = time.monotonic() - start
        start = time.monotonic()
        encoder.features(packed for _ in range(len(paths) // BATCH))
        seconds["network"] = time.monotonic() - start
        with tempfile.TemporaryDirectory() as folder:
            start = time.monotonic()
            embed_files(encoder, sources, Path(folder) / "vectors.parquet", {"round": str(number)})
            seconds["embed"] = time.monotonic() - start
        rounds.append({name: len(paths) / value for name, value in seconds.items()})
    rate = pd.DataFrame(rounds).median()
    row = {"images": Path(sys.argv[2]).name, "files": len(paths), **rate.round(0).astype(int)}
    row["of_the_slower"] = rate["embed"] / min(rate["reading"], rate["network"])
    row["of_both_in_turn"] = rate["embed"] * (1 / rate["reading"] + 1 / rate["network"])
    file = Path(__file__).parent / "results/embed.csv"
    old = pd.read_csv(file) if file.exists() else pd.DataFrame(columns=["images"])
    table = pd.concat([old[old["images"] != row["images"]], pd.DataFrame([row])])
    table.to_csv(file, index=False, float_format="%.3g")
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
