"""What users of DVC do with a project: commits and experiments side by side, and a clone that pulls its artifacts."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import photographs

from simtrail.errors import InputError
from simtrail.pipeline.project import init
from simtrail.tracking.evaluated import find
from simtrail.tracking.store import open_store

pytestmark = pytest.mark.slow
SMALL = {
    "data": {"name": "moths"},
    "prepare": {"size": 32},
    "pretrain": {"epochs": 2, "batch_size": 16, "encoder": {"model": "test_resnet"}, "temperature": 0.2},
    "evaluate": {"bootstrap": 100, "label_efficiency_seeds": 2, "fine_tune": {"fractions": []}, "knn": {"k": 10}},
    "register": {"name": "small"},
}


def run(command: str) -> str:
    result = subprocess.run(command.split(), capture_output=True, text=True)
    assert result.returncode == 0, f"{command}:\n{result.stdout}\n{result.stderr}"
    return result.stdout


def commit(message: str) -> None:
    run("git add --all")
    run(f"git commit --quiet --message {message}")


@pytest.fixture(scope="module")
def trail(tmp_path_factory) -> Path:
    """A project with two commits and four experiments: in the workspace, from a queue (two), in a temporary folder."""
    root = tmp_path_factory.mktemp("dvc")
    photographs(root / "photographs", each=24)
    init(root / "project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root / "project")
        patch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        for name in ("GIT_AUTHOR", "GIT_COMMITTER"):
            patch.setenv(f"{name}_NAME", "a user")
            patch.setenv(f"{name}_EMAIL", "user@example.org")
        Path("params.yaml").write_text(yaml.safe_dump(SMALL))
        run("simtrail data add ../photographs --name moths")
        run("dvc repro")
        commit("first")
        Path("params.yaml").write_text(yaml.safe_dump(SMALL | {"prepare": {"size": 48}}))
        run("dvc repro")
        assert "version 2" in (summary := run("simtrail summary"))
        assert "accuracy of the linear probe" in summary  # with another size of images, the gate compares
        commit("second")
        run("dvc exp run -S pretrain.temperature=0.5 -n warm")  # leaves its result in the workspace
        run("dvc exp run --queue -S evaluate.knn.k=3 -n three")
        run("dvc exp run --queue -S evaluate.knn.k=5 -n five")
        run("dvc queue start")
        while re.search("Queued|Running", run("dvc queue status")):
            time.sleep(2)
        run("dvc exp run --temp -S evaluate.knn.k=7 -n seven")
        yield root / "project"


EXPERIMENTS = {"warm", "three", "five", "seven"}


def test_every_commit_and_experiment_shows_its_numbers(trail):
    shown = json.loads(run("dvc exp show --json --num 2"))
    metrics = {}
    for revision in shown:
        name = revision.get("name") or revision["rev"]
        metrics[name] = revision["data"]["metrics"]["metrics.json"]["data"]
        for group in revision.get("experiments") or []:
            (experiment,) = group["revs"]
            metrics[group["name"]] = experiment["data"]["metrics"]["metrics.json"]["data"]
    assert len(metrics) == 3 + len(EXPERIMENTS)  # the workspace, two commits
    assert metrics.keys() >= EXPERIMENTS
    for numbers in metrics.values():
        assert len(numbers) <= 12
        assert all(isinstance(number, int | float) for number in numbers.values())
    before, after = "HEAD~1", "HEAD"
    for pair in (f"{before} {after}", "warm three", "HEAD five"):
        change = json.loads(run(f"dvc metrics diff --json --all {pair}"))["metrics.json"]
        assert {"linear_probe", "effective_rank"} <= change.keys()
        assert all({"old", "new"} <= values.keys() for values in change.values())


def test_plots_overlay_experiments_and_load_nothing(trail):
    page = Path(run("dvc plots diff warm seven").strip().removeprefix("file://"))
    text = page.read_text()
    for title in ("Training loss", "Validation accuracy", "Label efficiency", "Confusion matrix"):
        assert title in text
    assert '"rev": "warm"' in text
    assert '"rev": "seven"' in text
    loaded = re.sub("<template.*?</template>", "", text, flags=re.DOTALL)
    assert not re.findall(r'(?:src|href)="(?:https?:)?//[^"]+', loaded)
    assert (page.parent / re.findall(r'<script src="([^"]+)"', loaded)[0]).exists()


def test_an_experiment_and_its_run_lead_to_each_other(trail):
    client = open_store()
    for name in EXPERIMENTS:
        run_of = find(client, name)
        assert run_of.info.run_name == run_of.data.tags["dvc.experiment"] == name
        assert run_of.data.metrics["linear_probe/accuracy"] > 0
    assert "A  " in run("simtrail compare warm three")
    run("git stash --quiet")
    run(f"dvc exp apply {find(client, 'seven').info.run_name}")
    assert yaml.safe_load(Path("params.yaml").read_text())["evaluate"]["knn"]["k"] == 7
    assert "Data and pipelines are up to date" in run("dvc repro")
    run("dvc exp branch five five-is-enough")
    assert "five-is-enough" in run("git branch")
    with pytest.raises(InputError, match="no such run"):
        find(client, "nine")


def test_a_clone_pulls_the_artifacts_and_one_command_registers_them(trail, monkeypatch):
    run("git reset --quiet --hard")
    run("dvc checkout --force --quiet")
    run("dvc remote add --default share ../share")
    commit("remote")
    run("dvc push --quiet")
    run("git clone --quiet . ../clone")
    monkeypatch.chdir("../clone")
    run("dvc pull --quiet")
    assert "Data and pipelines are up to date" in run("dvc repro")
    summary = run("simtrail summary")
    assert "does not have this encoder" in summary
    assert "register it  simtrail register" in summary
    assert "is champion" in run("simtrail register")
    assert "version 1 is champion" in run("simtrail summary")
    assert "Data and pipelines are up to date" in run("dvc repro")
