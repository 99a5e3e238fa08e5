"""`check` and `prepare` beside bare decodes: `python benchmarks/photographs.py FOLDER`; writes a table to results/.

Writes 200 JPEG photographs of 24 megapixels (2 GB) into FOLDER. Four kinds of work alternate in one process, each on
the same ten files: a decode by Pillow; what `check` does with a file; a decode by Pillow at the lowest resolution that
keeps four times the packed side; what `prepare` does with a file. All four read the files. The columns: processor time
per file, its ratio to the decode above, the largest memory that was taken, as a multiple of a decoded image, and the
mean difference of packed values (0 to 255) to those of a complete decode.
"""

from __future__ import annotations

import sys
import time
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
from common import reset_peak, resident, save
from PIL import Image

from simtrail.data.dataset import Dataset
from simtrail.data.manifest import scan
from simtrail.data.pack import pack
from simtrail.data.reading.readers import read_image
from simtrail.data.recipe import conform, make_recipe
from simtrail.params import Prepare

FILES, AT_ONCE, WIDTH, HEIGHT, SIZE = 200, 10, 6000, 4000, 96
KINDS = ("decode", "check", "reduced decode", "prepare")


def write(folder: Path, files: int) -> None:
    """Writes photographs: smooth shapes of several scales, with edges and the noise of a camera."""
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    for i in range(files):
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


def measure(folder: Path, files: int = FILES) -> pd.DataFrame:
    write(folder, files)
    out, seconds, peaks, differences = folder / "out", dict.fromkeys(KINDS, 0.0), dict.fromkeys(KINDS, 0.0), []
    out.mkdir(exist_ok=True)
    for batch in sorted(folder.glob("[0-9]*")):
        dataset, paths = Dataset(batch), sorted((batch / "images").iterdir())
        manifest = scan(dataset)[0]
        recipe = make_recipe(manifest, dataset.declaration, Prepare(size=SIZE))
        for kind in KINDS:
            reset_peak()
            before, start = resident("VmRSS"), time.process_time()
            if kind == "check":
                scan(dataset)
            elif kind == "prepare":
                packed = pack(batch, manifest, recipe, out).images
            else:
                for path in paths:
                    decode(path, (4 * SIZE * WIDTH // HEIGHT, 4 * SIZE) if kind == "reduced decode" else None)
            seconds[kind] += (time.process_time() - start) / files
            peaks[kind] = max(peaks[kind], (resident("VmHWM") - before) / (3 * WIDTH * HEIGHT))
        whole = conform(read_image(paths[0]), recipe)[0]
        differences.append(np.abs(packed.rows(np.arange(1))[0].astype(int) - whole).mean())
    table = pd.DataFrame({"work": KINDS, "seconds": seconds.values()})
    table["ratio"] = table["seconds"] / table["seconds"][[0, 0, 2, 2]].to_numpy()
    table["memory"] = peaks.values()
    table["difference"] = [np.nan] * 3 + [np.mean(differences)]
    return table


def quick() -> list[dict[str, Any]]:
    """Rows for the table of all benchmarks, by processor time."""
    with TemporaryDirectory() as folder:
        rates = 1 / measure(Path(folder), AT_ONCE).set_index("work")["seconds"]
    return [
        {
            "what": f"{stage}, JPEG of 24 megapixels",
            "value": rates[stage],
            "unit": "files/s",
            "beside": beside,
            "other": rates[bare],
        }
        for stage, bare, beside in (
            ("check", "decode", "only decoding"),
            ("prepare", "reduced decode", "only decoding, reduced"),
        )
    ]


if __name__ == "__main__":
    save(measure(Path(sys.argv[1])).round(3), "photographs")
