"""A hundred hyperspectral cubes from file to registered model: `python benchmarks/cubes.py FOLDER`; table in results/.

Writes 100 ENVI cubes of 408 bands × 256 × 256 uint16 (5.3 GB) into a new project in FOLDER, band by band in the file,
and runs every stage with 24 of the bands. Beside `prepare`: the seconds that a loop of plain memory maps takes to read
the same bands of the same files. Both begin with files that the page cache does not hold.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import yaml

from simtrail.data.envi import open_envi

HERE = Path(__file__).resolve().parent
CUBES, BANDS, SIDE, CHOSEN = 100, 408, 256, 24
SETTINGS = {
    "data": {"name": "cubes"},
    "prepare": {"size": SIDE, "bands": {"uniform": CHOSEN}, "mask": "ignore"},
    "pretrain": {"epochs": 2, "batch_size": 16},
    "evaluate": {"probe_views": 0, "label_efficiency_seeds": 0, "fine_tune": {"fractions": [], "epochs": 1}},
    "register": {"name": "cubes"},
}


def write(folder: Path) -> None:
    """The cubes: four classes of smooth reflectance spectra, in blots, with noise."""
    images = folder / "data/cubes/images"
    rng = np.random.default_rng(0)
    nm = np.linspace(400, 1000, BANDS)
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    for i in range(CUBES):
        kind = i % 4
        (images / f"kind{kind}").mkdir(parents=True, exist_ok=True)
        peaks = 520 + 100 * kind + rng.normal(0, 8), 900 - 60 * kind
        spectra = np.stack([np.exp(-(((nm - peak) / 60) ** 2)) for peak in peaks])
        blot = np.sin(9 * (x + rng.random())) * np.cos(7 * (y + rng.random())) / 2 + 0.5
        cube = np.empty((BANDS, SIDE, SIDE), "<u2")
        for band in range(BANDS):
            value = 300 + 2500 * (blot * spectra[0, band] + (1 - blot) * spectra[1, band])
            cube[band] = value + rng.integers(0, 60, (SIDE, SIDE))
        cube.tofile(images / f"kind{kind}/{i:03}.img")
        wavelengths = ", ".join(f"{w:.2f}" for w in nm)
        (images / f"kind{kind}/{i:03}.hdr").write_text(
            f"ENVI\nsamples = {SIDE}\nlines = {SIDE}\nbands = {BANDS}\ndata type = 12\n"
            f"interleave = bsq\nbyte order = 0\n"
            f"wavelength units = nm\nreflectance scale factor = 10000\nwavelength = {{{wavelengths}}}\n"
        )


def cold(folder: Path) -> None:
    """Takes the cubes out of the page cache."""
    os.sync()
    for path in folder.rglob("*.img"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def bare(folder: Path) -> None:
    bands = np.linspace(0, BANDS - 1, CHOSEN).round().astype(int)
    for header in sorted((folder / "data/cubes").rglob("*.hdr")):
        np.array(open_envi(header)[bands])


def watched(function: Callable[[], object]) -> tuple[float, float]:
    """Seconds, and the largest memory in GB that this process's children held at once, shared pages counted once."""
    largest, over = 0.0, threading.Event()

    def look() -> None:
        nonlocal largest
        while not over.wait(0.1):
            held = 0
            for child in psutil.Process().children(recursive=True):
                try:
                    held += child.memory_full_info().uss
                except psutil.Error:
                    continue
            largest = max(largest, held / 1e9)

    watch = threading.Thread(target=look)
    watch.start()
    begun = time.perf_counter()
    function()
    took = time.perf_counter() - begun
    over.set()
    watch.join()
    return took, largest


def main() -> None:
    folder = Path(sys.argv[1])
    write(folder)
    shutil.copy(HERE.parent / "dvc.yaml", folder)
    params = yaml.safe_load((HERE.parent / "params.yaml").read_text())
    for section, values in SETTINGS.items():
        params[section] |= values
    (folder / "params.yaml").write_text(yaml.safe_dump(params))

    def stage(*words: str) -> None:
        subprocess.run([sys.executable, "-m", "simtrail", *words], cwd=folder, check=True)

    rows = []
    for name in ("check", "prepare", "bare", "prepare", "bare", "pretrain", "embed", "evaluate", "report", "register"):
        cold(folder)
        seconds, memory = watched((lambda: bare(folder)) if name == "bare" else (lambda name=name: stage(name)))
        rows.append({"step": name, "seconds": round(seconds, 1), "largest memory, GB": round(memory, 2)})
        print(rows[-1], flush=True)
    script = (
        "import simtrail; e = simtrail.load_encoder('models:/cubes@champion'); "
        "print('raw cubes to features:', e.embed('data/cubes/images/kind0').shape)"
    )
    subprocess.run([sys.executable, "-c", script], cwd=folder, check=True)
    table = pd.DataFrame(rows)
    table.to_csv(HERE / "results/cubes.csv", index=False)
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
