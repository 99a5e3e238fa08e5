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
from typing import Any

import numpy as np
import pandas as pd
from common import add, encoder, recipe, settings
from PIL import Image

from simtrail.data.sources import Source, image_files
from simtrail.data.stream import conformed
from simtrail.downstream.embedding import BATCH, embed_files
from simtrail.model.encoder import Encoder

ROUNDS = 3


def rates(trained: Encoder, sources: list[Source]) -> pd.Series:
    """Files per second of each kind of work, the medians of the rounds."""
    paths = [source.path for source in sources]
    packed = np.concatenate(list(conformed(paths[:BATCH], trained.config.recipe)))
    rounds = []
    for number in range(ROUNDS):
        seconds = {}
        start = time.monotonic()
        for _ in conformed(paths, trained.config.recipe):
            pass
        seconds["reading"] = time.monotonic() - start
        start = time.monotonic()
        trained.features(packed for _ in range(len(paths) // BATCH))
        seconds["network"] = time.monotonic() - start
        with tempfile.TemporaryDirectory() as folder:
            start = time.monotonic()
            embed_files(trained, sources, Path(folder) / "vectors.parquet", {"round": str(number)})
            seconds["embed"] = time.monotonic() - start
        rounds.append({name: len(paths) / value for name, value in seconds.items()})
    return pd.DataFrame(rounds).median()


def in_turn(rate: pd.Series) -> float:
    """The rate of reading and network one after the other."""
    return 1 / (1 / rate["reading"] + 1 / rate["network"])


def quick() -> list[dict[str, Any]]:
    """Rows for the table of all benchmarks."""
    trained = encoder(settings("resnet10t", 64, 64), recipe(64))
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for i in range(1024):
            Image.fromarray(rng.integers(0, 256, (96, 96, 3), dtype=np.uint8)).save(f"{folder}/{i:04}.jpg")
        rate = rates(trained, image_files(folder))
    other = {"beside": "reading and network in turn", "other": in_turn(rate)}
    return [{"what": "simtrail embed, JPEG of 96 px", "value": rate["embed"], "unit": "files/s", **other}]


def main() -> None:
    trained, sources = Encoder.load(Path(sys.argv[1])), image_files(sys.argv[2])
    sources = [sources[i] for i in np.random.default_rng(0).permutation(len(sources))]
    if len(sys.argv) > 3:
        sources = sources[: int(sys.argv[3])]
    rate = rates(trained, sources)
    row = {"images": Path(sys.argv[2]).name, "files": len(sources), **rate.round(0).astype(int)}
    row["of_the_slower"] = round(rate["embed"] / min(rate["reading"], rate["network"]), 3)
    row["of_both_in_turn"] = round(rate["embed"] / in_turn(rate), 3)
    add(row, "embed", "images")


if __name__ == "__main__":
    main()
