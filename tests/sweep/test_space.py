from __future__ import annotations

from pathlib import Path

import optuna
import pytest
import yaml
from conftest import ROOT, with_changes

from simtrail.errors import InputError
from simtrail.sweep.space import Space, current_values, load_space, suggest, trial_settings

GOOD = {
    "study": "s",
    "objective": "val_probe",
    "direction": "maximize",
    "budget": {"trials": 4, "minutes": None, "epochs": 2},
    "sampler": "random",
    "pruner": "none",
    "set": {"pretrain.monitor.every": 1},
    "space": {
        "pretrain.temperature": {"low": 0.05, "high": 1.0, "log": True},
        "pretrain.batch_size": {"powers_of_two": [16, 128]},
        "pretrain.optimiser": {"choices": ["adamw", "sgd"]},
        "pretrain.clip": {"choices": [1.0, None], "when": {"pretrain.optimiser": "sgd"}},
    },
}


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("sweeps").mkdir()

    def write(**changes: object) -> Space:
        Path("sweeps/s.yaml").write_text(yaml.safe_dump({**GOOD, **changes}, sort_keys=False))
        return load_space("s", with_changes({}))

    return write


@pytest.mark.parametrize("path", sorted((ROOT / "sweeps").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_space_fits_params_yaml(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert load_space(path.stem, with_changes({})).study == path.stem


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"space": {"pretrain.temprature": {"low": 0.1, "high": 1.0}}},
            "pretrain.temprature: unknown key; did you mean",
        ),
        ({"space": {"pretrain.temperature": {"low": 0.0, "high": 1.0}}}, "pretrain.temperature = 0.0: must be > 0"),
        ({"space": {"pretrain.temperature": {"low": 1.0, "high": 1.0}}}, "low = 1.0, high = 1.0: an empty range"),
        ({"space": {"pretrain.temperature": {"low": 0.1}}}, "must have low and high, or choices, or powers_of_two"),
        ({"space": {"pretrain.batch_size": {"powers_of_two": [65, 127]}}}, "no value to choose"),
        (
            {"space": {"pretrain.batch_size": {"choices": [32, 128]}}},
            "params.yaml, or the plan where it has auto, has 64, which is outside",
        ),
        ({"space": {"prepare.size": {"choices": [32, 64]}}}, "prepare.size: only pretrain is searched"),
        ({"space": {"pretrain.epochs": {"choices": [2, 40]}}}, "pretrain.epochs: is set by budget and objective"),
        (
            {"space": {"pretrain.encoder.vit.patch_size": {"choices": [4, 8]}}},
            "params.yaml has no single value for this key",
        ),
        (
            {"objective": "loss", "direction": "minimize"},
            "objective = 'loss': not comparable between trials that differ in",
        ),
        ({"direction": "minimize"}, "direction = 'minimize': must be 'maximize' for val_probe"),
        ({"sampler": "grid"}, "space.pretrain.temperature: sampler = 'grid' needs choices or powers_of_two"),
        ({"sampler": "annealing"}, "sampler = 'annealing': must be 'tpe'"),
        ({"budget": {"trials": 0, "epochs": 2}}, "budget.trials = 0: must be ≥ 1"),
        ({"speed": 1}, "speed: unknown key"),
    ],
)
def test_an_error_is_named_before_anything_runs(write, changes, message):
    with pytest.raises(InputError) as error:
        write(**changes)
    assert message in str(error.value)
    assert str(error.value).startswith("sweeps/s.yaml: ")


def test_a_condition_needs_an_earlier_parameter_and_one_of_its_values(write):
    space = {**GOOD["space"], "pretrain.clip": {"choices": [1.0, None], "when": {"pretrain.optimiser": "lars"}}}
    with pytest.raises(InputError, match=r"space\.pretrain\.clip\.when\.pretrain\.optimiser = 'lars': must be"):
        write(space=space)


def test_for_an_unknown_space_the_existing_ones_are_listed(write):
    write()
    with pytest.raises(InputError, match=r"sweeps/t\.yaml: no such search space; sweeps has s"):
        load_space("t", with_changes({}))


def test_trials_have_the_suggested_values_and_conditions_hold(write):
    space, params = write(), with_changes({})
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    temperatures = []
    for _ in range(30):
        values = suggest(study.ask(), space)
        pretrain = trial_settings(params, space, values)
        assert pretrain.temperature == values["pretrain.temperature"]
        assert pretrain.batch_size in (16, 32, 64, 128)
        assert ("pretrain.clip" in values) == (pretrain.optimiser == "sgd")
        assert (pretrain.epochs, pretrain.monitor.metric, pretrain.monitor.every) == (2, "probe", 1)
        temperatures.append(values["pretrain.temperature"])
    assert min(temperatures) < 0.15 < 0.5 < max(temperatures)


def test_the_values_of_params_yaml_are_a_trial_of_the_space(write):
    assert current_values(with_changes({}), write()) == {
        "pretrain.temperature": 0.2,
        "pretrain.batch_size": 64,
        "pretrain.optimiser": "adamw",
    }


def test_an_axis_can_be_named_sets_of_settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweeps").mkdir()
    sets = {"present": {}, "sign": {"pretrain.recipe": "sign"}, "aerial": {"pretrain.recipe": "aerial"}}
    tree = {"study": "s", "objective": "val_knn", "direction": "maximize", "budget": {"trials": 2, "epochs": 1}}
    tree |= {"sampler": "grid", "pruner": "none", "space": {"views": {"sets": sets}}}
    (tmp_path / "sweeps/s.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    params = with_changes({"pretrain.recipe": "photograph"})
    space = load_space("s", params)
    assert space.searched == ["pretrain.recipe"]
    assert space.space["views"].values == list(sets)
    assert current_values(params, space) == {"views": "present"}
    # the first that matches
    assert current_values(with_changes({"pretrain.recipe": "sign"}), space)["views"] == "present"
    trial = trial_settings(params, space, {"views": "aerial"})
    assert trial.recipe == "aerial"
    assert trial.augment.geometry.quarter_turns.p == 0.75
    del sets["present"]
    (tmp_path / "sweeps/s.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    with pytest.raises(InputError, match=r"space\.views: params\.yaml has none of these sets; add one"):
        load_space("s", params)
    sets["bad"] = {"prepare.size": 3}
    (tmp_path / "sweeps/s.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    with pytest.raises(InputError, match=r"prepare\.size: only pretrain is searched"):
        load_space("s", params)
