"""How `check` and `prepare` grow with the number of files.

    python benchmarks/files.py FOLDER [COUNT …]

Writes PNG images of 32 × 32 in 100 classes to FOLDER/all (the largest COUNT of 10,000 100,000 1,000,000; those that are
there already are kept), and runs both stages on each number of them. The table has seconds with start-up, and the
largest memory of all processes together, without what they share. Writes it to benchmarks/results/files.csv.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from common import ROOT, save, watched
from PIL import Image

from simtrail.params import change

CLASSES, SIDE, PART = 100, 32, 5_000


def place(folder: Path, i: int) -> Path:
    return folder / f"class{i % CLASSES:02}/{i:07}.png"


def write(folder: Path, part: int) -> None:
    """Writes a part of the images: eight by eight random colours, enlarged, with noise."""
    for i in range(part * PART, (part + 1) * PART):
        rng = np.random.default_rng(i)
        colours = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((SIDE, SIDE), Image.BICUBIC)
        pixels = np.asarray(colours) // 2 + rng.integers(0, 64, (SIDE, SIDE, 3), dtype=np.uint8)
        path = place(folder, i)
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, compress_level=1)


def main() -> None:
    folder, counts = Path(sys.argv[1]), sorted(int(text) for text in sys.argv[2:] or (10_000, 100_000, 1_000_000))
    tree = yaml.safe_load((ROOT / "params.yaml").read_text())
    change(tree, {"data.name": "files", "prepare.size": SIDE})
    images = folder / "data/files/images"
    for c in range(CLASSES):
        place(images, c).parent.mkdir(parents=True)
    with ProcessPoolExecutor() as pool:
        parts = range(max(counts) // PART)
        list(pool.map(write, [folder / "all"] * len(parts), parts))
    shutil.copy(ROOT / "dvc.yaml", folder)
    (folder / "params.yaml").write_text(yaml.safe_dump(tree))
    linked, rows = 0, []
    for count in counts:
        for i in range(linked, count):
            place(images, i).hardlink_to(place(folder / "all", i))
        linked = count
        for stage in ("check", "prepare"):
            command = [sys.executable, "-m", "simtrail", stage]
            seconds, memory = watched(lambda command=command: subprocess.run(command, cwd=folder, check=True))
            row = {"files": count, "stage": stage, "seconds": seconds, "GB": memory}
            rows.append(row | {"seconds for 100,000": seconds / count * 1e5})
            save(pd.DataFrame(rows).round(2), "files")


if __name__ == "__main__":
    main()
