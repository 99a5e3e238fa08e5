"""What sweeps bring, and what they cost: `sweeps.py pruning`, or `sweeps.py butterflies ARCHIVE`; tables in results/.

pruning: on the demo data, for three seeds, the same study without pruning and with each pruner: epochs saved, and what
is lost. butterflies: twenty trials on 2,714 swallowtail wings (butterflies.tar.xz with metadata.csv), validation kNN
against the shipped parameters, which are trial 0. Both tell the cost of a trial beside its training. Each works in a
fresh clone in a temporary folder; an hour on two cores.
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
    """The trials of a study in the present folder, as sweeps/NAME/trials.csv has them."""
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
    """Seconds to start a trial (the first of a worker loads code), and what telling costs of every epoch."""
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
    """A row for each seed and pruner."""
    params = Path("params.yaml")
    params.write_text(params.read_text().replace("size: 64", "size: 32"))
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
            full = rows[-PRUNERS.index(pruner)] if rows and pruner != "none" else row
            row |= {"saved, %": 100 * (1 - row["epochs"] / full["epochs"]), "within": row["best"] >= full["low"]}
            rows.append(row | cost(trials))
    return pd.DataFrame(rows)


def butterflies(archive: Path) -> pd.DataFrame:
    """A row for each trial."""
    subprocess.run(["tar", "xJf", archive], check=True)
    folder = next(path.parent for path in Path("butterflies").rglob("metadata.csv"))
    words = [folder, "--name", "wings", "--label", "genus", "--group", "specimen"]
    subprocess.run([*SIMTRAIL, "data", "add", *words], check=True)
    params = Path("params.yaml")
    params.write_text(params.read_text().replace("name: demo ", "name: wings "))
    prepare()
    trials = study("wings", "val_knn", 20, 15, "median", {"pretrain.monitor.every": 3})
    print(Path("sweeps/wings/report.md").read_text())
    print(pd.Series(cost(trials)).round(2).to_string())
    return trials.drop(columns="run")


def main() -> None:
    """Runs one of the two, and keeps its table."""
    what, *rest = sys.argv[1:] or [""]
    if what not in ("pruning", "butterflies") or len(rest) != (what == "butterflies"):
        sys.exit(__doc__)
    rest = [Path(word).resolve() for word in rest]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["git", "clone", "--quiet", HERE.parent, folder], check=True)
        os.chdir(folder)
        os.environ["PYTHONPATH"] = str(Path(folder) / "src")
        subprocess.run([*SIMTRAIL, "data", "fetch"], check=True)
        table = globals()[what](*rest).round(4)
        table.to_csv(HERE / f"results/sweep_{what}-cpu.csv", index=False)
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
