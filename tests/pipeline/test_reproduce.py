from __future__ import annotations

import json
import shutil
import subprocess

import numpy as np
import pytest
from conftest import rgb_config
from safetensors.numpy import load_file, save_file

from simtrail.errors import InputError, TrainingError
from simtrail.model.encoder import Encoder
from simtrail.pipeline import reproduce as module
from simtrail.pipeline import workspace as ws
from simtrail.tracking.run import software

SCORES = {"linear_probe/accuracy": 0.75}


def git(*arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    return subprocess.run(["git", *identity, *arguments], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A git project with an encoder; its stages copy the encoder instead of training."""
    monkeypatch.chdir(tmp_path)
    Encoder(rgb_config({"pretrain.encoder.model": "test_resnet"})).save(tmp_path / "encoder")
    for name in ("dvc.yaml", "params.yaml", "code.py"):
        (tmp_path / name).write_text(name)
    (tmp_path / ".gitignore").write_text("/data\n/encoder\n/artifacts\n")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    commit = git("rev-parse", "HEAD")
    (tmp_path / "code.py").write_text("changed later")
    (tmp_path / "data/set/images").mkdir(parents=True)
    for name in "ab":
        (tmp_path / f"data/set/images/{name}.png").write_bytes(name.encode())
    from simtrail.data.manifest import data_md5, file_sha256

    images = tmp_path / "data/set"
    data = {"dataset": "set", "md5": data_md5(images)}
    trail = {"code": {"commit": commit, "uncommitted changes": False}, "data": data, "environment": software()}
    trail |= {"parameters": {"data.name": "set", "pretrain.epochs": 3}, "scores": SCORES}
    (tmp_path / "encoder/trail.json").write_text(json.dumps(trail))
    import pandas as pd

    ws.VALIDATION.parent.mkdir(parents=True)
    ws.VALIDATION.write_text(json.dumps({"data_md5": data["md5"]}))
    names = ["images/a.png", "images/b.png"]
    pd.DataFrame({"path": names, "sha256": [file_sha256(images / name) for name in names]}).to_parquet(ws.MANIFEST)

    def stage(name: str, folder) -> None:
        assert (folder / "code.py").read_text() == "code.py"
        assert (folder / "params.yaml").read_text() == "data:\n  name: set\npretrain:\n  epochs: 3\n"
        if name == "prepare":
            (folder / ws.STATISTICS).parent.mkdir(parents=True)
            (folder / ws.STATISTICS).write_text(json.dumps({"data_md5": data_md5(folder / "data/set")}))
        if name == "pretrain":
            shutil.copytree(tmp_path / "trained", folder / ws.ENCODER)
        if name == "evaluate":
            (folder / ws.SCORES).parent.mkdir(parents=True)
            task = {"scores": {"linear_probe": {"accuracy": 0.75}}}
            (folder / ws.SCORES).write_text(json.dumps({"features": {}, "tasks": {"label": task}}))

    shutil.copytree(tmp_path / "encoder", tmp_path / "trained")
    monkeypatch.setattr(module, "_run", stage)
    return tmp_path


def test_the_same_weights_from_the_commit_the_data_and_the_parameters(project, capsys):
    module.reproduce("encoder", project / "again")
    said = capsys.readouterr().out
    assert said == ("reproduce: the weights are byte-identical\nreproduce: linear_probe/accuracy: 0.7500, was 0.7500\n")
    assert not (project / "again").exists()
    assert len(git("worktree", "list").splitlines()) == 1
    module.reproduce("encoder", project / "kept", keep=True)
    assert (project / "kept/artifacts/evaluate/scores.json").exists()


def test_other_weights_are_an_error_unless_they_are_close(project, capsys):
    weights = load_file(project / "trained/encoder.safetensors")
    name = next(k for k in weights if k.endswith("weight"))
    largest = max(np.abs(v).max() for v in weights.values() if v.dtype.kind == "f")
    for change, message in ((1e-5 * largest, None), (0.1 * largest, "the encoder was not reproduced")):
        save_file({**weights, name: weights[name] + np.float32(change)}, project / "trained/encoder.safetensors")
        if message:
            with pytest.raises(TrainingError, match=message):
                module.reproduce("encoder", project / "again")
        else:
            module.reproduce("encoder", project / "again")
        assert "the weights differ by at most" in capsys.readouterr().out


def test_a_changed_byte_of_the_data_is_named(project):
    (project / "data/set/images/b.png").write_bytes(b"c")
    with pytest.raises(InputError, match=r"not the data of this encoder.*changed or missing: images/b\.png; bring"):
        module.reproduce("encoder", project / "again")
    (project / "data/set/images/b.png").unlink()
    with pytest.raises(InputError, match=r"changed or missing: images/b\.png"):
        module.reproduce("encoder", project / "again")
    assert not (project / "again").exists()


def test_every_package_of_another_version_is_named(project, capsys, monkeypatch):
    monkeypatch.setattr(module, "software", lambda: {**software(), "torch": "0.1"})
    module.reproduce("encoder", project / "again")
    assert f"warning: torch is 0.1 here, and was {software()['torch']}" in capsys.readouterr().out


def test_what_can_not_be_reproduced_is_refused(project):
    with pytest.raises(InputError, match=r"or a folder with encoder\.safetensors"):
        module.reproduce("0123456789abcdef", project / "again")
    trail = json.loads((project / "encoder/trail.json").read_text())
    for code, message in (
        ({"commit": None}, "was trained outside git"),
        ({"commit": "0" * 40}, "git worktree: .*commit 0{40} is needed"),
    ):
        changed = {**trail, "code": {**trail["code"], **code}}
        (project / "encoder/trail.json").write_text(json.dumps(changed))
        with pytest.raises(InputError, match=message):
            module.reproduce("encoder", project / "again")
    head = {"encoder": {"model": "models:/moths@champion", "version": "3"}}
    (project / "encoder/trail.json").write_text(json.dumps(head))
    with pytest.raises(
        InputError, match=r"predicts labels; only its encoder can be reproduced: simtrail reproduce models:/moths/3"
    ):
        module.reproduce("encoder", project / "again")
    (project / "encoder/trail.json").unlink()
    with pytest.raises(InputError, match="only encoders with a trail can be reproduced"):
        module.reproduce("encoder", project / "again")
