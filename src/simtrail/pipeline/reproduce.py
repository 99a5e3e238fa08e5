"""Makes a registered encoder again, from its commit, data and parameters, and compares the two."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from safetensors.numpy import load_file

from simtrail.errors import InputError, TrainingError, listed
from simtrail.model import CONFIG, HEAD_CONFIG, WEIGHTS
from simtrail.params import change
from simtrail.pipeline import workspace as ws
from simtrail.tracking.pull import URI, origin
from simtrail.tracking.run import software
from simtrail.tracking.store import project_root
from simtrail.tracking.trace import trace

STAGES = ("check", "prepare", "pretrain", "embed", "evaluate")
CLOSE = 1e-3  # difference of weights, as a fraction of the largest, that another processor may explain


def reproduce(uri: str, out: Path, keep: bool = False) -> None:
    """Trains a registered encoder again in a git worktree of its commit, and says how the two differ.

    Data comes from the project, and must have the version that the encoder was trained on. What differs in the
    environment is named. Raises InputError if commit or data are missing or differ, and TrainingError if the weights
    differ by more than `CLOSE` or a score does.
    """
    with_head = (Path(uri) / HEAD_CONFIG).is_file()
    folder, trail = Path(uri) if with_head else origin(uri)[0], trace(uri)
    if with_head or "encoder" in trail:
        encoder = trail.get("encoder", trail)  # folders of finetune by an earlier version don't know it
        command = f": simtrail reproduce {_exact(encoder)}" if "model" in encoder else ""
        raise InputError(f"{uri}: predicts labels; only its encoder can be reproduced{command}")
    if "parameters" not in trail:
        raise InputError(f"{uri}: {trail.get('note', 'has no trail')}; only encoders with a trail can be reproduced")
    if not trail["code"]["commit"]:
        raise InputError(f"{uri}: was trained outside git, so that its code is not known")
    root = project_root() or Path()
    if out.exists():
        raise InputError(f"{out}: exists already; name a new folder with --out")
    for line in _differences(trail):
        print(f"reproduce: warning: {line}", flush=True)
    _require_data(root, trail["data"])
    with _worktree(root, str(trail["code"]["commit"]), out, keep) as project:
        tree: dict[str, Any] = {}
        change(tree, trail["parameters"])
        (project / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
        (project / "data").symlink_to((root / "data").resolve())
        for stage in STAGES:
            _run(stage, project)
        found = json.loads((project / ws.STATISTICS).read_text(encoding="utf-8"))
        if found["data_md5"] != trail["data"]["md5"]:
            raise InputError(f"data/{trail['data']['dataset']}: changed while the encoder was trained again")
        _compare(folder, trail["scores"], project)


def _exact(encoder: dict[str, Any]) -> str:
    """The URI of an encoder, with its version in place of an alias, which may have moved."""
    found = URI.fullmatch(encoder["model"])
    return f"models:/{found[1]}/{encoder['version']}" if found and encoder.get("version") else encoder["model"]


def _differences(trail: dict[str, Any]) -> Iterator[str]:
    """What is not as it was when the encoder was registered, in words."""
    now = software()
    for name, then in trail["environment"].items():
        if now.get(name) != then:
            yield f"{name} is {now.get(name, 'not installed')} here, and was {then}"
    if trail["code"]["uncommitted changes"]:
        yield "the code had changes that were not committed; the run in MLflow has them as git.diff"


def _require_data(root: Path, data: dict[str, Any]) -> None:
    """Raises InputError, which names the files that are known to differ, unless the data is of this version."""
    from simtrail.data.dataset import missing_data
    from simtrail.data.manifest import data_md5, file_sha256

    folder = root / "data" / data["dataset"]
    if not folder.is_dir():
        raise InputError(missing_data(folder))
    if data_md5(folder) == data["md5"]:
        return
    text = f"{folder}: not the data of this encoder, version {data['md5']}"
    record, manifest = root / ws.VALIDATION, root / ws.MANIFEST
    if record.exists() and json.loads(record.read_text(encoding="utf-8"))["data_md5"] == data["md5"]:
        table = pd.read_parquet(manifest, columns=["path", "sha256"])
        files = zip(table["path"], table["sha256"], strict=True)
        differing = [path for path, sha256 in files if sha256 and file_sha256(folder / path) != sha256]
        text += f"; changed or missing: {listed(differing)}" if differing else "; files were added, or a table changed"
    raise InputError(f"{text}; bring that version back: git checkout of its data.dvc, then dvc checkout")


@contextmanager
def _worktree(root: Path, commit: str, out: Path, keep: bool) -> Iterator[Path]:
    """The project's folder in a new git worktree of a commit; removed at the end unless `keep`."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
        if done.returncode:
            raise InputError(f"git {arguments[0]}: {' '.join(done.stderr.split())[:200]}; commit {commit} is needed")
        return done.stdout.strip()

    inside = git("rev-parse", "--show-prefix")
    git("worktree", "add", "--detach", str(out.resolve()), commit)
    try:
        yield out / inside
    finally:
        if keep:
            print(f"reproduce: kept {out}; remove it with: git worktree remove --force {out}")
        else:
            shutil.rmtree(out, ignore_errors=True)
            git("worktree", "prune")


def _run(stage: str, project: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("DVC_", "MLFLOW_TRACKING"))}
    if (project / "src").is_dir():  # the project is simtrail itself: with the code of the commit
        environment["PYTHONPATH"] = str((project / "src").resolve())
    if subprocess.run([sys.executable, "-m", "simtrail", stage], cwd=project, env=environment, check=False).returncode:
        raise TrainingError(f"reproduce: the stage {stage} failed, see above")


def _compare(first: Path, scores: dict[str, float], project: Path) -> None:
    """Prints how weights, configuration and scores differ."""
    from simtrail.pipeline.registration import flat_metrics

    again = project / ws.ENCODER
    if (first / CONFIG).read_bytes() != (again / CONFIG).read_bytes():
        print(f"reproduce: warning: {CONFIG} differs")
    if (first / WEIGHTS).read_bytes() == (again / WEIGHTS).read_bytes():
        difference = 0.0
        print("reproduce: the weights are byte-identical")
    else:
        old, new = load_file(first / WEIGHTS), load_file(again / WEIGHTS)
        if old.keys() != new.keys():
            raise TrainingError("reproduce: the networks differ: they have other tensors")
        of_all = [(np.abs(old[k] - new[k]).max(), np.abs(old[k]).max()) for k in old if old[k].dtype.kind == "f"]
        difference = float(max(d for d, _ in of_all) / max(largest for _, largest in of_all))
        print(f"reproduce: the weights differ by at most {difference:.2g} of the largest")
    flat = flat_metrics(json.loads((project / ws.SCORES).read_text(encoding="utf-8")))
    for name, then in scores.items():
        print(f"reproduce: {name}: {flat[name]:.4f}, was {then:.4f}")
    if difference > CLOSE or any(abs(flat[name] - then) > CLOSE for name, then in scores.items()):
        raise TrainingError("reproduce: the encoder was not reproduced; another processor type rounds differently")
