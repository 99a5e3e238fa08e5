"""Starts a project of one's own: a folder with params.yaml, dvc.yaml and what DVC needs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from simtrail.errors import InputError

_PACKAGE = Path(__file__).parents[1]
# an installed package has copies of these files of the project
TEMPLATES = _PACKAGE / "project" if (_PACKAGE / "project").is_dir() else _PACKAGE.parents[1]
PARAMS = """\
# The settings that matter first. Any other key has its default; `simtrail settings` writes all values to
# artifacts/settings.
data:
  name: images                # the dataset data/NAME, made by: simtrail data add PATH --name NAME

prepare:
  size: 64                    # side of the square images that the encoder gets, in pixels

pretrain:
  recipe: auto                # how views are made, such as photograph or sign; see: simtrail preview --recipe sign
  epochs: auto                # auto: chosen from your images and this machine: artifacts/plan/plan.json

evaluate:
  labels: []                  # further columns of metadata.csv to evaluate, besides the label

register:
  name: simtrail-encoder      # the model in the MLflow registry
"""
IGNORED = "/data\n/artifacts\n/mlruns\n/dvc_plots\n/.simtrail\n/.venv\n/sweeps/*/\n"
SCRIPT = Path(".dvc/tmp/vega.js")


def init(folder: Path) -> None:
    """Writes a new project into a folder, a git and DVC repository; InputError if the folder has one already."""
    existing = [name for name in ("params.yaml", "dvc.yaml", ".dvc") if (folder / name).exists()]
    if existing:
        raise InputError(f"{folder / existing[0]}: exists already; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    starts_history = _make_repository(folder)
    (folder / "params.yaml").write_text(PARAMS, encoding="utf-8")
    (folder / "dvc.yaml").write_text(_pipeline(), encoding="utf-8")
    (folder / "requirements.txt").write_text(f"simtrail=={version('simtrail')}\n", encoding="utf-8")
    with (folder / ".gitignore").open("a", encoding="utf-8") as file:
        file.write(IGNORED)
    for name in ("sweeps/default.yaml", ".dvc/config", ".dvc/plots.html"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(TEMPLATES / name, folder / name)
    write_plot_script(folder)
    if starts_history:  # experiments of DVC need a commit; without a name for its author, git makes none
        for command in (["add", "--all"], ["commit", "--quiet", "--message", "A new simtrail project"]):
            subprocess.run(["git", *command], cwd=folder, capture_output=True, check=False)


def write_plot_script(project: Path) -> None:
    """Writes the script with which the pages of `dvc plots` draw without a network."""
    from vl_convert import javascript_bundle

    (project / SCRIPT).parent.mkdir(parents=True, exist_ok=True)
    (project / SCRIPT).write_text(javascript_bundle("window.vegaEmbed = vegaEmbed;"), encoding="utf-8")


def _pipeline() -> str:
    """dvc.yaml for an installed package: its stages depend on requirements.txt in place of the code beside it."""
    text = (TEMPLATES / "dvc.yaml").read_text(encoding="utf-8")
    text = re.sub(r"^ +- src/.*\n", "", text, flags=re.M).replace("params.yaml, src/simtrail/params.py", "params.yaml")
    text = text.replace("deps: [params.yaml]", "deps:\n      - params.yaml")
    text = text.replace("    deps:\n", "    deps:\n      - requirements.txt\n")
    text = re.sub(r"^  # the environment.*\n", "  # the environment in .venv, if there is one\n", text, flags=re.M)
    return text.replace(' PYTHONPATH="$PWD/src:$PYTHONPATH"', "")


def _make_repository(folder: Path) -> bool:
    """Makes the folder a DVC repository; returns whether it is also a new git repository, not part of another."""

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            raise InputError(f"{command[0]}: no such command; install git, with which DVC versions a project") from None

    top = run("git", "rev-parse", "--show-toplevel")
    inside = top.returncode == 0 and Path(top.stdout.strip()).resolve() != folder.resolve()
    if top.returncode:
        run("git", "init", "--quiet")
    made = run(sys.executable, "-m", "dvc", "init", "--quiet", *(["--subdir"] if inside else []))
    if made.returncode:
        raise InputError(f"{folder}: `dvc init` failed: {' '.join(made.stderr.split())}")
    return top.returncode != 0


if __name__ == "__main__":
    write_plot_script(Path())
