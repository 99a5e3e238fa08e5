"""Writes the best values of a study into params.yaml."""

from __future__ import annotations

from pathlib import Path

from ruamel.yaml import YAML

from simtrail.errors import InputError, listed
from simtrail.params import load_params

FOLDER = Path("sweeps")


def apply(name: str) -> None:
    """Writes the best values of a study into params.yaml; comments, order and all other values stay."""
    best, path = FOLDER / name / "best.yaml", Path("params.yaml")
    if not best.exists():
        spaces = sorted(file.stem for file in FOLDER.glob("*.yaml"))
        advice = f"run the sweep first: simtrail sweep {name}" if name in spaces else f"sweeps/ has {listed(spaces)}"
        raise InputError(f"{best}: no such file; {advice}")
    before = load_params(path).flat()
    yaml = YAML()
    yaml.preserve_quotes, yaml.width = True, 4096
    yaml.representer.add_representer(type(None), lambda r, _: r.represent_scalar("tag:yaml.org,2002:null", "null"))
    tree, values = yaml.load(path), YAML(typ="safe").load(best)
    changed = {key: value for key, value in values.items() if before.get(key) != value}
    if not changed:
        print("params.yaml already has the best values")
        return
    for key, value in changed.items():
        print(f"{key}: {before.get(key, '')} → {value}")
        *parts, last = key.split(".")
        node = tree
        for part in parts:  # a section that params.yaml leaves out is added
            if node.get(part) is None:
                node[part] = {}
            node = node[part]
        node[last] = value
    with path.open("w", encoding="utf-8") as file:
        yaml.dump(tree, file)
    load_params(path)
    print("params.yaml now has the best values; dvc repro trains with them for pretrain.epochs")
