from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, photographs
from typer.testing import CliRunner

from simtrail.cli import app


def simtrail(*arguments: str, cwd) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "simtrail", *arguments], cwd=cwd, capture_output=True, text=True)


def test_help_imports_no_slow_package(tmp_path):
    slow_packages = "{'torch', 'numpy', 'pandas', 'mlflow', 'dvc'}"
    script = f"import sys; import simtrail.cli; print(sorted({slow_packages} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.strip() == "[]"
    assert "pretrain" in simtrail("--help", cwd=tmp_path).stdout


@pytest.mark.parametrize(
    ("modules", "forbidden"),
    [
        ("simtrail.tracking.pull, simtrail.pipeline.summary, simtrail.sweep.apply", "numpy pandas mlflow torch optuna"),
        ("simtrail.pipeline.project, simtrail.data.bring", "pandas mlflow torch dvc vl_convert"),
        ("simtrail.pipeline.registration", "torch timm sklearn great_expectations matplotlib"),
        ("simtrail.pipeline.stages", "torch timm sklearn mlflow great_expectations matplotlib"),
        ("simtrail.report.comparison", "torch timm sklearn matplotlib"),
    ],
)
def test_light_commands_import_only_what_they_need(modules, forbidden):
    script = f"import sys; import {modules}; print(sorted(set({forbidden.split()}) & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr


@pytest.mark.parametrize("command", ["check", "data"])
def test_invalid_input_gives_one_message_exit_code_2_and_no_traceback(tmp_path, command):
    text = (ROOT / "params.yaml").read_text().replace("temperature: auto", "temperature: -1")
    (tmp_path / "params.yaml").write_text(text)
    result = simtrail(*{"check": ["check"], "data": ["data", "fetch"]}[command], cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr == "error: params.yaml: pretrain.temperature = -1: must be > 0, or auto\n"


def test_the_next_step_after_data_was_added_names_settings_that_were_for_other_data(tmp_path, monkeypatch):
    photographs(tmp_path / "photos")
    (tmp_path / ".dvc").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("simtrail.data.bring._version", lambda folder: None)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    done = CliRunner().invoke(app, ["data", "add", "photos", "--name", "moths"])
    assert "Next: set data.name: moths in params.yaml, then dvc repro\n" in done.output
    others = "prepare.size: 48 (default 64), pretrain.epochs: 60 (default auto)"
    assert f"params.yaml also sets {others}: are they right for these images?\n" in done.output
    (tmp_path / "params.yaml").write_text("data: {name: wings}\n")
    done = CliRunner().invoke(app, ["data", "add", "photos", "--name", "wings"])
    assert done.output.endswith("Next: dvc repro\n")


def test_missing_data_names_the_command_that_brings_it(tmp_path):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    result = simtrail("check", cwd=tmp_path)
    assert result.returncode == 2
    assert "data/demo: no such folder; bring it with `simtrail data fetch`" in result.stderr


def test_settings_on_the_command_line_replace_those_of_the_file(tmp_path, monkeypatch):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    arguments = ["settings", "--set", "pretrain.epochs=3", "--set", "evaluate.labels=[sex]"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert json.loads(Path("artifacts/settings/pretrain.json").read_text())["pretrain.epochs"] == 3
    assert json.loads(Path("artifacts/settings/evaluate.json").read_text())["evaluate.labels"] == ["sex"]
    for verb in ("check", "prepare", "pretrain", "preview", "embed", "evaluate", "report", "register", "sweep"):
        result = CliRunner().invoke(app, [verb, "--set", "pretrain.epochs=0"])
        assert "pretrain.epochs = 0: must be ≥ 1" in str(result.exception), verb
