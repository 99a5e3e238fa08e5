"""Gains and costs of sweeps: `sweeps.py pruning`, or `sweeps.py butterflies ARCHIVE`; writes tables to results/.

pruning: the same study on the demo data without pruning and with each pruner, for three seeds: how many epochs are
saved, and how much the best value decreases. butterflies: twenty trials on 2,714 swallowtail wings (butterflies.tar.xz
with metadata.csv): validation kNN of the best trial, compared with trial 0, which has the values of params.yaml. Both
measure the time of a trial besides its training. Each works in a new clone in a temporary folder; an hour on two
cores.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
import yaml

HERE = Path(__file__).resolve().parent
SEEDS = (0, 1, 2)
PRUNERS = ("none", "median", "hyperband")
SIMTRAIL = [sys.executable, "-m", "simtrail"]
SPACE = {
    "pretrain.augment.color.strength": {"low": 0.0, "high": 1.0},
    "pretrain.augment.geometry.strength": {"low": 0.3, "high": 1.0},
    "pretrain.augment.texture.blur.p": {"low": 0.0, "high": 0.5},
    "pretrain.temperature": {"low": 0.05, "high": 1.0, "log": True},
    "pretrain.batch_size": {"powers_of_two": [32, 256]},
}


def study(name: str, objective: str, trials: int, epochs: int, pruner: str, fixed: dict[str, object]) -> pd.DataFrame:
    """Runs a study in the current folder and returns its trials, as in sweeps/NAME/trials.csv."""
    budget = {"trials": trials, "minutes": None, "epochs": epochs}
    space = {"study": name, "objective": objective, "direction": "maximize", "budget": budget, "sampler": "tpe"}
    Path(f"sweeps/{name}.yaml").write_text(
        yaml.safe_dump({**space, "pruner": pruner, "set": fixed, "space": SPACE}, sort_keys=False)
    )
    subprocess.run([*SIMTRAIL, "sweep", name], check=True)
    return pd.read_csv(f"sweeps/{name}/trials.csv")


def interval(name: str) -> tuple[float, float]:
    """The 95 % interval of a study's best value."""
    low, high = re.findall(r"interval ([\d.]+) – ([\d.]+)", Path(f"sweeps/{name}/report.md").read_text())[0]
    return float(low), float(high)


def cost(trials: pd.DataFrame) -> dict[str, float]:
    """Seconds to start a trial (not the first, which loads code), seconds of an epoch, and percentage of logging."""
    return {
        "start of a trial, s": trials["seconds_to_start"].iloc[1:].median(),
        "an epoch, s": (trials["seconds"] / trials["epoch"]).median(),
        "Optuna and MLflow, % of it": 100 * (trials["seconds_logging"] / trials["seconds"]).median(),
    }


def prepare() -> None:
    """Checks and packs the images of params.yaml's dataset."""
    subprocess.run([*SIMTRAIL, "check"], check=True)
    subprocess.run([*SIMTRAIL, "prepare"], check=True)


def pruning() -> pd.DataFrame:
    """Runs the studies on the demo data; a row for each seed and pruner."""
    params = Path("params.yaml")
    params.write_text(params.read_text().replace("size: 48", "size: 32"))
    prepare()
    rows = []
    for seed in SEEDS:
        for pruner in PRUNERS:
            name = f"{pruner}-{seed}"
            fixed = {"pretrain.seeds": [seed], "pretrain.monitor.every": 1}
            trials = study(name, "val_probe", 16, 9, pruner, fixed)
            low, high = interval(name)
            row = {"seed": seed, "pruner": pruner, "epochs": trials["epoch"].sum(), "best": trials["val_probe"].max()}
            row |= {"low": low, "high": high}
            unpruned = rows[-PRUNERS.index(pruner)] if rows and pruner != "none" else row
            saved = 100 * (1 - row["epochs"] / unpruned["epochs"])
            row |= {"saved, %": saved, "within": row["best"] >= unpruned["low"]}
            rows.append(row | cost(trials))
    return pd.DataFrame(rows)


def butterflies(archive: Path) -> pd.DataFrame:
    """Runs the study on the wings; a row for each trial."""
    subprocess.run(["tar", "xJf", archive], check=True)
    folder = next(path.parent for path in Path("butterflies").rglob("metadata.csv"))
    arguments = [folder, "--name", "wings", "--label", "genus", "--group", "specimen"]
    subprocess.run([*SIMTRAIL, "data", "add", *arguments], check=True)
    params = Path("params.yaml")
    params.write_text(params.read_text().replace("name: demo ", "name: wings ").replace("size: 48", "size: 64"))
    prepare()
    trials = study("wings", "val_knn", 20, 15, "median", {"pretrain.monitor.every": 3})
    print(Path("sweeps/wings/report.md").read_text())
    print(pd.Series(cost(trials)).round(2).to_string())
    return trials.drop(columns="run")


def main() -> None:
    """Runs one of the two benchmarks and writes its table."""
    benchmark, *arguments = sys.argv[1:] or [""]
    if benchmark not in ("pruning", "butterflies") or len(arguments) != (benchmark == "butterflies"):
        sys.exit(__doc__)
    paths = [Path(argument).resolve() for argument in arguments]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["git", "clone", "--quiet", HERE.parent, folder], check=True)
        os.chdir(folder)
        os.environ["PYTHONPATH"] = str(Path(folder) / "src")
        subprocess.run([*SIMTRAIL, "data", "fetch"], check=True)
        table = globals()[benchmark](*paths).round(4)
        table.to_csv(HERE / f"results/sweep_{benchmark}-cpu.csv", index=False)
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
