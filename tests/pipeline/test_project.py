"""A project of one's own, started by `simtrail init`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, photographs
from typer.testing import CliRunner

from simtrail.cli import app
from simtrail.errors import InputError
from simtrail.params import load_params
from simtrail.pipeline.project import SCRIPT, init


def test_a_new_project_has_the_same_parameters_and_stages(tmp_path, monkeypatch):
    for name in ("GIT_AUTHOR", "GIT_COMMITTER"):
        monkeypatch.setenv(f"{name}_NAME", "a user")
        monkeypatch.setenv(f"{name}_EMAIL", "user@example.org")
    folder = tmp_path / "deep/project"
    result = CliRunner().invoke(app, ["init", str(folder)])
    assert result.exit_code == 0, result.output
    theirs = load_params(folder / "params.yaml", ["data.name=demo"])
    assert theirs.not_default() == []
    assert theirs.flat() == load_params(ROOT / "params.yaml", ["prepare.size=64", "pretrain.epochs=auto"]).flat()
    text = (folder / "dvc.yaml").read_text()
    assert "src/" not in text
    ours, theirs = (yaml.safe_load(path.read_text()) for path in (ROOT / "dvc.yaml", folder / "dvc.yaml"))
    for name, stage in ours["stages"].items():
        kept = [dependency for dependency in stage["deps"] if not dependency.startswith("src/")]
        assert theirs["stages"][name]["deps"] == ["requirements.txt", *kept], name
        assert theirs["stages"][name]["outs"] == stage["outs"]
    assert theirs["plots"] == ours["plots"]
    assert "vegaEmbed" in (folder / SCRIPT).read_text()
    log = subprocess.run(["git", "log", "--name-only"], cwd=folder, capture_output=True, text=True, check=True)
    assert "params.yaml" in log.stdout
    with pytest.raises(InputError, match=r"params\.yaml: exists already; choose another folder"):
        init(folder)


@pytest.mark.slow
@pytest.mark.parametrize("start", ["simtrail init", "clone"])
def test_from_a_new_project_or_clone_to_a_registered_encoder_of_own_images(tmp_path, monkeypatch, start):
    photographs(tmp_path / "mine", each=24)
    if start == "clone":
        subprocess.run(["git", "clone", "--quiet", ROOT, tmp_path / "project"], check=True)
    else:
        init(tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/bin:/bin")
    own = {"pretrain": {"epochs": 2, "batch_size": 16, "encoder": {"model": "test_resnet"}}, "prepare": {"size": 32}}
    own |= {"data": {"name": "mine"}, "evaluate": {"bootstrap": 100, "fine_tune": {"fractions": []}}}
    Path("params.yaml").write_text(yaml.safe_dump(own))
    for command in ("simtrail data add ../mine --name mine", "dvc repro", "dvc metrics show", "simtrail summary"):
        result = subprocess.run(command.split(), capture_output=True, text=True)
        assert result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"
    assert "simtrail-encoder version 1 is champion" in result.stdout
    assert [folder.name for folder in Path("data").iterdir()] == ["mine"]  # the demo was never made
    result = subprocess.run(["dvc", "repro"], capture_output=True, text=True, check=True)
    assert "Data and pipelines are up to date" in result.stdout
