"""The whole pipeline on published images: `python benchmarks/pipelines.py wings|water ARCHIVE FOLDER`.

Creates a project from the archive (metadata.csv, images) in a new FOLDER, with params.yaml changed by the settings
below, runs every stage, and puts the scores into benchmarks/results/pipelines.csv. With only `demo`, it does so
with the scores of the demo, for which `make repro` has run in this clone.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pandas as pd
import yaml
from common import ROOT, add

from simtrail.params import change, load_params

CARDS = {
    "wings": {"label": "genus", "group": "specimen"},
    "water": {
        "label": "water_bin",
        "group": "overlap_group",
        "modality": "multispectral",
        "bands": ["coastal", "blue", "green", "red", "nir", "swir1", "swir2"],
        "wavelengths": [443, 490, 560, 665, 842, 1610, 2190],
        "scale": 10000,
    },
}
SETTINGS = {
    "wings": {
        "prepare.size": 64,
        "pretrain.augment.geometry.crop.min_area": 0.3,
        "pretrain.augment.geometry.rotation.degrees": 30.0,
        "pretrain.augment.color.strength": 0.6,
        "evaluate.labels": ["species", "sex", "view"],
        "evaluate.fine_tune.fractions": [0.1],
        "evaluate.fine_tune.epochs": 10,
    },
    "water": {  # crops and changes of brightness would change the label: the fraction of water in a tile
        "prepare.size": 64,
        "pretrain.epochs": 150,
        "pretrain.monitor.every": 15,
        "pretrain.augment.geometry.crop.min_area": 0.8,
        "pretrain.augment.geometry.vertical_flip.p": 0.5,
        "pretrain.augment.geometry.rotation.p": 0.0,
        "pretrain.augment.color.strength": 0.15,
        "pretrain.seeds": [0, 1, 2],
        "evaluate.labels": ["dominant_worldcover"],
    },
}
STAGES = ("check", "prepare", "plan", "pretrain", "embed", "evaluate", "report", "register", "summary")


def main() -> None:
    name = sys.argv[1]
    record(name, ROOT if name == "demo" else run(name, Path(sys.argv[2]), Path(sys.argv[3])))


def record(name: str, project: Path) -> None:
    """Puts the scores of all tasks of a finished project into the table of results."""
    scores = json.loads((project / "artifacts/evaluate/scores.json").read_text())["tasks"]
    for task, found in scores.items():
        accuracy = {kind: score["accuracy"] for kind, score in found["scores"].items()}
        probe = found["scores"]["linear_probe"]
        row = {
            "task": f"{name}: {task}",
            "classes": found["classes"],
            "probe": accuracy["linear_probe"],
            "probe_low": probe["accuracy_low"],
            "probe_high": probe["accuracy_high"],
            **{kind: accuracy[kind] for kind in ("knn", "raw_pixels", "random_encoder", "majority")},
        }
        add(row, "pipelines", "task")


def run(name: str, archive: Path, folder: Path) -> Path:
    """A new project, in which all stages have run; its folder."""
    data = folder / "data" / name
    data.parent.mkdir(parents=True)
    with tarfile.open(archive) as tar:
        tar.extractall(folder / "extracted", filter="data")
    extracted = next((folder / "extracted").rglob("metadata.csv")).parent
    shutil.move(extracted, data)
    for path in data.iterdir():
        if path.name not in ("images", "metadata.csv"):  # such as masks in separate files
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (data / "dataset.yaml").write_text(yaml.safe_dump(CARDS[name], sort_keys=False))
    tree = load_params(ROOT / "params.yaml").model_dump(by_alias=True)
    change(tree, {"data.name": name, "register.name": name, **SETTINGS[name]})
    if name == "wings":  # pretraining sees only every second genus, in order of size
        genera = pd.read_csv(data / "metadata.csv")["genus"].value_counts().index
        change(tree, {"evaluate.held_out_classes": genera[1::2].tolist()})
    (folder / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    for stage in STAGES:
        subprocess.run([sys.executable, "-m", "simtrail", stage], cwd=folder, check=True)
    return folder


if __name__ == "__main__":
    main()
