"""`check` and `prepare` beside bare decodes: `python benchmarks/photographs.py FOLDER`; writes a table to results/.

Writes 200 JPEG photographs of 24 megapixels (1.4 GB) into FOLDER. Four kinds of work alternate on the same files, ten
files at a time, in one process: a decode by Pillow; what `check` does with a file; a decode at the lowest resolution
that keeps four times the packed side; what `prepare` does with a file. Reading from disk is in all four. The last
columns are the largest memory that one file took, and the mean difference of packed values (of 255) to those of a
complete decode.
"""

from __future__ import annotations

import sys
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
from PIL import Image

from simtrail.data.dataset import Dataset
from simtrail.data.manifest import scan
from simtrail.data.pack import pack
from simtrail.data.readers import open_image
from simtrail.data.recipe import conform, make_recipe
from simtrail.params import Prepare

PHOTOGRAPHS, AT_ONCE, WIDTH, HEIGHT, SIZE = 200, 10, 6000, 4000, 96


def write(folder: Path) -> None:
    """Writes photographs: smooth shapes of several scales, with edges and the noise of a camera."""
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    for i in range(PHOTOGRAPHS):
        path = folder / f"{i // AT_ONCE:02}/images/{i:03}.jpg"
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(i)
        a, b, c = rng.uniform(40, 900, 3)
        shape = np.sin(x / a) * np.cos(y / b) + np.sign(np.sin((x + y) / c)) / 2
        noise = rng.integers(-12, 13, (HEIGHT, WIDTH), dtype=np.int8)
        image = np.stack([120 + 60 * shape * f + noise for f in rng.uniform(0.4, 1, 3)], -1)
        Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(path, quality=90)


def decode(path: Path, enough: tuple[int, int] | None = None) -> None:
    image = Image.open(BytesIO(path.read_bytes()))
    if enough:
        image.draft(None, enough)
    image.load()


def main(folder: Path) -> None:
    write(folder)
    batches = [Dataset(path) for path in sorted(folder.glob("[0-9]*"))]
    manifest = scan(batches[0])[0]
    recipe = make_recipe(manifest, batches[0].declaration, Prepare(size=SIZE))
    out = folder / "out"
    out.mkdir(exist_ok=True)
    times = dict.fromkeys(("decode", "check", "reduced decode", "prepare"), 0.0)
    for dataset in batches:
        paths = sorted((dataset.folder / "images").iterdir())
        enough = (4 * SIZE * WIDTH // HEIGHT, 4 * SIZE)
        kinds = {
            "decode": lambda paths=paths: [decode(path) for path in paths],
            "check": lambda dataset=dataset: scan(dataset),
            "reduced decode": lambda paths=paths, enough=enough: [decode(path, enough) for path in paths],
            "prepare": lambda dataset=dataset: pack(dataset.folder, manifest, recipe, out),
        }
        for kind, work in kinds.items():
            if kind == "prepare":
                manifest = scan(dataset)[0]
            start = time.process_time()
            work()
            times[kind] += time.process_time() - start
    rows = [{"work": kind, "seconds": seconds / PHOTOGRAPHS} for kind, seconds in times.items()]
    table = pd.DataFrame(rows).assign(relative=[row["seconds"] / rows[i // 2 * 2]["seconds"] for i, row in enumerate(rows)])
    table["memory"] = [_memory(kind, batches[0].folder / "images/000.jpg", recipe) for kind in table["work"]]
    packed, _ = pack(batches[0].folder, scan(batches[0])[0], recipe, out)
    whole = np.stack([conform(open_image(path).image, recipe) for path in sorted((batches[0].folder / "images").iterdir())])
    table["difference"] = np.nan
    table.loc[table["work"] == "prepare", "difference"] = np.abs(packed.rows(np.arange(AT_ONCE)).astype(int) - whole).mean()
    print(table.round(3).to_string(index=False))
    table.round(3).to_csv(Path(__file__).parent / "results/photographs.csv", index=False)


def _memory(kind: str, path: Path, recipe: object) -> float:
    raise NotImplementedError


if __name__ == "__main__":
    main(Path(sys.argv[1]))
