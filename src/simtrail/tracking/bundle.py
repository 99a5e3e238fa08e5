"""What travels with a registered encoder: its files, golden features, and the code that inference needs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from simtrail.errors import InputError
from simtrail.model import CONFIG, HEAD, HEAD_CONFIG, MANIFEST, WEIGHTS
from simtrail.tracking.pull import CARD, CODE, REQUIREMENTS, TRAIL, require_unchanged

PACKAGES = ("torch", "timm", "numpy", "pandas", "pillow", "tifffile", "safetensors")  # that the code needs
INFERENCE = (  # all that `python -m simtrail.tracking.golden` imports, and nothing else
    *("__init__.py", "errors.py", "params.py", "schema.py"),
    *("data/__init__.py", "data/area.py", "data/bands.py", "data/loader.py", "data/recipe.py", "data/sources.py"),
    *("data/stream.py", "data/tables.py", "data/tiles.py"),
    *("data/reading/__init__.py", "data/reading/arrays.py", "data/reading/decoded.py", "data/reading/envi.py"),
    *("data/reading/photographs.py", "data/reading/readers.py", "data/reading/tiff.py"),
    *("model/__init__.py", "model/backbone.py", "model/encoder.py", "model/first_layer.py", "model/fusion.py"),
    *("model/local.py", "model/projector.py", "model/small_maps.py", "model/whitening.py"),
    *("tracking/__init__.py", "tracking/golden.py"),
)
PREDICTION = (  # what simtrail.downstream.predictor imports besides
    *("downstream/__init__.py", "downstream/head.py", "downstream/predictor.py"),
    *("evaluation/__init__.py", "evaluation/classifiers.py", "evaluation/geometry.py"),
)
TOLERANCE = 1e-4  # of golden features, as a fraction of the largest: other processors round differently


def bundle(encoder: Path, card: str, trail: dict[str, Any], out: Path, head: Path | None = None) -> None:
    """Writes the folder that is registered: weights, configuration, card, trail, code and golden features.

    With the folder of a `head`, also its files, and the code that predicts.
    """
    from simtrail.model.encoder import Encoder  # slow to import
    from simtrail.tracking.golden import seal

    out.mkdir()
    for file in (WEIGHTS, CONFIG):
        shutil.copy(encoder / file, out)
    if head:
        for file in (HEAD, HEAD_CONFIG):
            shutil.copy(head / file, out)
    (out / CARD).write_text(card, encoding="utf-8")
    (out / TRAIL).write_text(json.dumps(trail, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (out / REQUIREMENTS).write_text("".join(f"{line}\n" for line in requirements(PACKAGES)), encoding="utf-8")
    package = Path(__file__).parents[1]
    for name in INFERENCE + PREDICTION * bool(head):
        place = out / CODE / "simtrail" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(package / name, place)
    seal(Encoder.load(out), out)


def requirements(packages: Sequence[str]) -> list[str]:
    """The packages with the versions that are installed here."""
    return [f"{package}=={version(package).split('+')[0]}" for package in packages]


def verify(folder: Path) -> float:
    """How far golden features, computed in a fresh process by the encoder's own code, are from the stored ones.

    As a fraction of the largest feature. Raises InputError for a file that is missing or has changed, for code that
    fails, and for a difference above `TOLERANCE`.
    """
    if not (folder / MANIFEST).is_file():
        raise InputError(
            f"{folder}: no {MANIFEST}: an encoder of an earlier version, which has nothing to verify; register it again"
        )
    require_unchanged(folder)
    environment = {**os.environ, "PYTHONPATH": str((folder / CODE).resolve()), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "simtrail.tracking.golden", str(folder.resolve())]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"{folder}: its code fails here: {done.stderr.strip().splitlines()[-1]}")
    found = float(json.loads(done.stdout)["difference"])
    if not found <= TOLERANCE:
        raise InputError(
            f"{folder}: its features differ by {found:.2g} of the largest from those of the day it was registered, "
            f"more than {TOLERANCE:g}; use the versions of its {REQUIREMENTS}"
        )
    return found
