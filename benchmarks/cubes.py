"""All stages on a hundred hyperspectral cubes: `python benchmarks/cubes.py FOLDER`; writes a table to results/.

Writes 100 ENVI cubes of 408 bands × 256 × 256 uint16 (5.3 GB) into a new project in FOLDER, band by band in the file
(bsq), and runs every stage with 24 of the bands. For comparison with `prepare`, a simple loop reads the same bands of
the same files through memory maps (`bare`). Before each step, the files are removed from the page cache.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from common import ROOT, save, watched

from simtrail.data.reading.envi import open_envi

CUBES, BANDS, SIDE, CHOSEN = 100, 408, 256, 24
SETTINGS = {
    "data": {"name": "cubes"},
    "prepare": {"size": SIDE, "bands": {"uniform": CHOSEN}, "mask": "ignore"},
    "pretrain": {"epochs": 2, "batch_size": 16},
    "evaluate": {"probe_views": 0, "label_efficiency_seeds": 0, "fine_tune": {"fractions": [], "epochs": 1}},
    "register": {"name": "cubes"},
}


def write(folder: Path) -> None:
    """Writes the cubes: four classes with smooth reflectance spectra, mixed in blots, with noise."""
    images = folder / "data/cubes/images"
    rng = np.random.default_rng(0)
    nm = np.linspace(400, 1000, BANDS)
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    for i in range(CUBES):
        c = i % 4
        (images / f"kind{c}").mkdir(parents=True, exist_ok=True)
        peaks = 520 + 100 * c + rng.normal(0, 8), 900 - 60 * c
        spectra = np.stack([np.exp(-(((nm - peak) / 60) ** 2)) for peak in peaks])
        blot = np.sin(9 * (x + rng.random())) * np.cos(7 * (y + rng.random())) / 2 + 0.5
        cube = np.empty((BANDS, SIDE, SIDE), "<u2")
        for band in range(BANDS):
            value = 300 + 2500 * (blot * spectra[0, band] + (1 - blot) * spectra[1, band])
            cube[band] = value + rng.integers(0, 60, (SIDE, SIDE))
        cube.tofile(images / f"kind{c}/{i:03}.img")
        wavelengths = ", ".join(f"{w:.2f}" for w in nm)
        (images / f"kind{c}/{i:03}.hdr").write_text(
            f"ENVI\nsamples = {SIDE}\nlines = {SIDE}\nbands = {BANDS}\ndata type = 12\n"
            f"interleave = bsq\nbyte order = 0\n"
            f"wavelength units = nm\nreflectance scale factor = 10000\nwavelength = {{{wavelengths}}}\n"
        )


def cold(folder: Path) -> None:
    """Removes the cubes from the page cache."""
    os.sync()
    for path in folder.rglob("*.img"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def bare(folder: Path) -> None:
    """Reads the chosen bands of all cubes, and nothing else."""
    bands = np.linspace(0, BANDS - 1, CHOSEN).round().astype(int)
    for header in sorted((folder / "data/cubes").rglob("*.hdr")):
        np.array(open_envi(header)[bands])


def main() -> None:
    folder = Path(sys.argv[1])
    write(folder)
    shutil.copy(ROOT / "dvc.yaml", folder)
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    for section, values in SETTINGS.items():
        params[section] |= values
    (folder / "params.yaml").write_text(yaml.safe_dump(params))

    def stage(name: str) -> None:
        subprocess.run([sys.executable, "-m", "simtrail", name], cwd=folder, check=True)

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
    save(pd.DataFrame(rows), "cubes")


if __name__ == "__main__":
    main()
