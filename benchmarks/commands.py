"""Seconds that the light commands take in a small finished project, of this code and of other checkouts side by side.

    python benchmarks/commands.py [NAME=CHECKOUT …]

For each command the fastest of three runs, with start-up. `register` is of an encoder that is registered already, the
pull is from the project's own store, `check` reads 72 small images, and `data add` copies six.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from common import ROOT, save
from PIL import Image

from simtrail.params import change

SMALL = {
    "data.name": "colours",
    "prepare.size": 32,
    "pretrain.encoder.model": "test_resnet",
    "pretrain.epochs": 2,
    "pretrain.batch_size": 16,
    "evaluate.bootstrap": 100,
    "evaluate.label_efficiency_seeds": 1,
    "evaluate.fine_tune.fractions": [],
}
STAGES = ("check", "prepare", "pretrain", "embed", "evaluate", "report", "register")
COMMANDS = (
    "--help",
    "pull models:/simtrail-encoder@champion --out pulled",
    "summary",
    "apply nothing",  # an error, after all imports
    "compare --help",
    "data add ../more --name more",
    "check",
    "register",
)


def main() -> None:
    checkouts = dict(argument.split("=", 1) for argument in sys.argv[1:]) | {"now": str(ROOT)}
    with tempfile.TemporaryDirectory() as scratch:
        table = pd.DataFrame(
            {name: seconds(Path(path).resolve(), Path(scratch, name)) for name, path in checkouts.items()}
        )
    save(table.round(2).rename_axis("command").reset_index(), "commands")


def seconds(checkout: Path, folder: Path) -> dict[str, float]:
    """The fastest of three runs of each command, in a new project in the folder."""
    photographs(folder / "project/data/colours/images", 24)
    photographs(folder / "more", 2)
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src")}
    environment.pop("MLFLOW_TRACKING_URI", None)
    project = folder / "project"
    shutil.copy(checkout / "dvc.yaml", project)
    tree = yaml.safe_load((checkout / "params.yaml").read_text())
    change(tree, SMALL)
    (project / "params.yaml").write_text(yaml.safe_dump(tree))

    def run(*command: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", *command], cwd=project, env=environment, capture_output=True)
        return time.perf_counter() - start

    run("dvc", "init", "--no-scm")
    for stage in STAGES:
        run("simtrail", stage)
    result = {}
    for command in COMMANDS:
        times = []
        for _ in range(3):
            if command.startswith("data add"):
                shutil.rmtree(project / "data/more", ignore_errors=True)
            times.append(run("simtrail", *command.split()))
        result[command] = min(times)
    return result


def photographs(folder: Path, each: int) -> None:
    """Three folders of small noisy images, red, green and blue."""
    rng = np.random.default_rng(0)
    for c in range(3):
        (folder / f"class{c}").mkdir(parents=True)
        for i in range(each):
            pixels = rng.integers(0, 90, (24, 24, 3), dtype=np.uint8)
            pixels[..., c] += 120
            Image.fromarray(pixels).save(folder / f"class{c}/{i}.png")


if __name__ == "__main__":
    main()
