from __future__ import annotations

import re

import pytest
import yaml
from conftest import ROOT, with_changes

from simtrail.errors import InputError
from simtrail.params import AUTO, Augment, Params, changed, load_params, parse, recipe_names


def message(changes: dict[str, object]) -> str:
    with pytest.raises(InputError) as error:
        with_changes(changes)
    return str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("pretrain.temperature", 0, "pretrain.temperature = 0: must be > 0"),
        ("pretrain.temperature", "warm", "pretrain.temperature = 'warm': must be"),
        ("pretrain.epochs", 1.5, "pretrain.epochs = 1.5: must be"),
        ("pretrain.epochs", True, "pretrain.epochs = True: must be"),
        ("check.on_fail", "warn", "check.on_fail = 'warn': must be 'error' or 'quarantine'"),
        ("pretrain.temprature", 0.1, "pretrain.temprature: unknown key; did you mean pretrain.temperature?"),
        ("pretrain.augment.color.jitter.hue", 0.6, "pretrain.augment.color.jitter.hue = 0.6: must be ≤ 0.5"),
        ("pretrain.head.dept", 2, "pretrain.head.dept: unknown key; did you mean pretrain.head.depth?"),
        (
            "pretrain.encoder.vit",
            {"patch": 4},
            "pretrain.encoder.vit.patch: unknown key; did you mean pretrain.encoder.vit.patch",
        ),
        (
            "pretrain.accumulate_steps",
            4,
            "pretrain.accumulate_steps: unknown key; accumulated gradients would contrast",
        ),
        (
            "pretrain.view_size",
            96,
            "pretrain.view_size = 96: must be ≤ prepare.size = 48; lower it, or raise prepare.size",
        ),
        ("pretrain.view_size", [32, 96], "pretrain.view_size = [32, 96]: must be ≤ prepare.size = 48"),
        ("pretrain.view_size", [48, 32], "pretrain.view_size = [48, 32]: must be an integer ≥ 8, a list of such that"),
        ("pretrain.view_size", [], "pretrain.view_size = []: must be an integer ≥ 8"),
        ("pretrain.view_size", [4, 32], "pretrain.view_size = [4, 32]: must be an integer ≥ 8"),
        ("pretrain.view_size", 4, "pretrain.view_size = 4: must be an integer ≥ 8"),
        ("pretrain.view_size", True, "pretrain.view_size = True: must be an integer ≥ 8"),
        ("pretrain.view_size", "small", "pretrain.view_size = 'small': must be an integer ≥ 8"),
        (
            "pretrain.augment.geometry.crop.max_area",
            0.1,
            "pretrain.augment.geometry.crop.max_area = 0.1: must be ≥ min",
        ),
        ("pretrain.micro_batch_size", 5, "pretrain.micro_batch_size = 5: must divide pretrain.batch_size = 64"),
        ("prepare.background", 1.5, "prepare.background = 1.5: must be auto, mean, or a number from 0"),
        ("prepare.background", "median", "prepare.background = 'median': must be auto, mean, or a number from 0"),
        ("prepare.background", None, "prepare.background = None: must be auto, mean, or a number from 0"),
        ("prepare.bands", "some", "prepare.bands = 'some': must be all, a list of names or numbers, or a rule"),
        ("prepare.bands", [350.0], "prepare.bands = [350.0]: must be names of bands or their numbers, from 1; for"),
        ("data.name", "../x", "data.name = '../x': must not be empty, and must have only letters, digits, _, . and -"),
        ("register.name", "", "register.name = '': must not be empty, and must have no / and no :"),
        ("evaluate.balanced", "maybe", "evaluate.balanced = 'maybe': must be true or false"),
        ("evaluate.bootstrap", "many", "evaluate.bootstrap = 'many': must be an integer"),
        ("prepare.test_fraction", 0.9, "prepare.val_fraction + prepare.test_fraction = 1.05: must be < 1"),
        ("check.min_side", 99999, "check.min_side = 99999: must not exceed check.max_side"),
        ("prepare.test_fraction", "0,25", "prepare.test_fraction = '0,25': must be a number; write 0.25"),
        ("evaluate.fine_tune.fractions", [0.5, 2], "evaluate.fine_tune.fractions[1] = 2: must be ≤ 1"),
    ],
)
def test_an_error_names_key_value_and_what_is_allowed(key, value, expected):
    assert f"params.yaml: {expected}" in message({key: value})


def test_tiles_and_images_cut_to_their_mask_exclude_each_other():
    assert "prepare.mask = 'crop': can't be combined with prepare.fit: tile; set prepare.mask: apply" in message(
        {"prepare.fit": "tile", "prepare.mask": "crop"}
    )


def test_pairs_of_groups_and_sampling_exclude_each_other():
    error = message({"pretrain.positives": "group", "pretrain.sampling": "balanced"})
    assert "pretrain.sampling = 'balanced': not possible with pretrain.positives: group, which draws pairs" in error


def test_a_local_term_and_views_that_grow_exclude_each_other():
    error = message({"pretrain.view_size": [32, 48], "pretrain.terms.local": 1.0})
    assert "pretrain.view_size = [32, 48]: not possible with pretrain.terms.local" in error


def test_modalities_can_not_be_compared_if_they_may_be_left_out():
    terms = {"pretrain.encoder.fusion": "separate", "pretrain.terms.intra": 1.0}
    error = message(terms | {"pretrain.augment.spectral.group_dropout.p": 0.5})
    assert "pretrain.augment.spectral.group_dropout.p = 0.5: leaves nothing of a modality" in error


def test_every_error_has_its_line():
    assert len(message({"pretrain.epochs": 0, "pretrain.head.hidden": 0, "evaluate.knn.k": "x"}).splitlines()) == 3


def test_keys_left_out_have_the_values_of_the_project_as_defaults(tmp_path, params):
    file = tmp_path / "params.yaml"
    file.write_text("data: {name: demo}\nembed:\nevaluate: {knn: {k: 10}}\n")
    assert (
        load_params(file, ["pretrain.epochs=60", "prepare.size=48"]).flat() == load_params(ROOT / "params.yaml").flat()
    )
    file.write_text("embed: {batch_size: 8}\n")
    with pytest.raises(InputError, match=r"data: missing; add it"):
        load_params(file)


def test_keys_of_earlier_versions_are_understood_with_a_warning(tmp_path, capsys):
    file = tmp_path / "params.yaml"
    file.write_text("data: {name: demo}\npretrain: {seed: 3, model: resnet18}\nevaluate: {knn_k: 5}\n")
    params = load_params(file)
    assert (params.pretrain.seeds, params.pretrain.encoder.model, params.evaluate.knn.k) == ([3], "resnet18", 5)
    assert f"warning: {file}: pretrain.seed is now called pretrain.seeds" in capsys.readouterr().err
    file.write_text("data: {name: demo}\npretrain: {seed: 3, seeds: [1]}\n")
    with pytest.raises(InputError, match=r"pretrain\.seed: unknown key; did you mean pretrain\.seeds\?"):
        load_params(file)


def test_settings_replace_values_of_the_file():
    params = load_params(ROOT / "params.yaml", ["pretrain.epochs=3", "evaluate.labels=[sex]", "prepare.bands=all"])
    assert (params.pretrain.epochs, params.evaluate.labels) == (3, ["sex"])
    with pytest.raises(InputError, match=r"params\.yaml --set pretrain\.epochs=0: pretrain\.epochs = 0: must be ≥ 1"):
        load_params(ROOT / "params.yaml", ["pretrain.epochs=0"])
    with pytest.raises(InputError, match=r"--set epochs: must be KEY=VALUE"):
        load_params(ROOT / "params.yaml", ["epochs"])


def test_a_key_given_twice_is_refused(tmp_path):
    (tmp_path / "params.yaml").write_text("data:\n  name: a\n  name: b\n")
    with pytest.raises(InputError, match="line 3, column 3: the key name is there twice, first in line 2"):
        load_params(tmp_path / "params.yaml")


def test_numbers_in_scientific_notation_are_numbers(tmp_path):
    text = (ROOT / "params.yaml").read_text()
    assert "learning_rate: " in text
    line = next(x for x in text.splitlines() if "learning_rate:" in x)
    (tmp_path / "params.yaml").write_text(text.replace(line, "  learning_rate: 1e-3"))
    assert load_params(tmp_path / "params.yaml").pretrain.learning_rate == 0.001


def test_invalid_yaml_and_a_missing_file_are_input_errors(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("data: {name: [")
    with pytest.raises(InputError, match="not valid YAML"):
        load_params(tmp_path / "params.yaml")


def test_flat_names_every_leaf_of_the_file(params):
    def leaves(tree, prefix=""):
        for key, value in tree.items():
            yield from leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [prefix + key]

    named = set(leaves(yaml.safe_load((ROOT / "params.yaml").read_text())))
    assert {key for key in params.flat() if not key.startswith("pretrain.augment.")} == named


def test_the_hash_depends_only_on_the_chosen_sections(params):
    other = with_changes({"evaluate.knn.k": 3})
    assert other.hash("evaluate") != params.hash("evaluate")
    assert other.hash("pretrain") == params.hash("pretrain")


def parsed(pretrain: dict) -> Params:
    return parse(Params, {"data": {"name": "demo"}, "pretrain": pretrain}, "params.yaml")


def test_keys_that_can_be_auto_are_auto_by_default_and_each_can_be_set():
    assert set(parsed({}).auto) == set(AUTO)
    assert parsed({}).flat()["pretrain.epochs"] == "auto"
    p = parsed({"epochs": 7, "encoder": {"stem": "auto", "model": "resnet18"}})
    assert set(AUTO) - set(p.auto) == {"pretrain.epochs", "pretrain.encoder.model"}
    assert (p.flat()["pretrain.epochs"], p.flat()["pretrain.encoder.stem"]) == (7, "auto")
    assert set(changed(p, {"pretrain.temperature": 0.1}, "")._tree["pretrain"]) == {"epochs", "encoder", "temperature"}
    assert set(p.auto) - set(changed(p, {"pretrain.temperature": 0.1}, "").auto) == {"pretrain.temperature"}


@pytest.mark.parametrize(
    ("pretrain", "error"),
    [
        ({"epochs": "atuo"}, "pretrain.epochs = 'atuo': must be an integer, or auto"),
        ({"warmup": "auto"}, "pretrain.warmup = 'auto': must be a number"),
        ({"recipe": "sings"}, "pretrain.recipe = 'sings': no such recipe; there are aerial, microscopy, photograph,"),
        ({"encoder": {"features": [0]}}, "pretrain.encoder.features = [0]: must have a grid above 0"),
    ],
)
def test_auto_is_only_allowed_where_it_has_a_meaning(pretrain, error):
    with pytest.raises(InputError, match=re.escape(error)):
        parsed(pretrain)


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_gives_the_augmentations_and_single_keys_replace_its_own(name):
    given = parsed({"recipe": name, "augment": {"geometry": {"crop": {"min_area": 0.77}}}}).pretrain.augment
    of_recipe = parsed({"recipe": name}).pretrain.augment
    assert of_recipe != Augment()
    assert given.geometry.crop.min_area == 0.77
    assert given.color == of_recipe.color
    assert given.geometry.crop.min_cover == of_recipe.geometry.crop.min_cover


def test_another_recipe_replaces_all_of_the_first_one_but_not_single_keys():
    first = parsed({"recipe": "photograph", "augment": {"color": {"strength": 0.11}}})
    second = changed(first, {"pretrain.recipe": "sign"}, "").pretrain
    assert second == parsed({"recipe": "sign", "augment": {"color": {"strength": 0.11}}}).pretrain


def test_a_file_of_an_earlier_version_has_the_augmentations_that_it_had():
    p = parsed({"augment": {"color": {"strength": 0.3}}})
    assert "pretrain.recipe" not in p.auto
    assert p.pretrain.augment == Augment(color={"strength": 0.3})
    assert "pretrain.recipe" in parsed({"augment": {"color": {"strength": 0.3}}, "recipe": "auto"}).auto


def test_a_project_can_have_recipes_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/lamp.yaml").write_text("color: {strength: 0.9}\n")
    assert parsed({"recipe": "lamp"}).pretrain.augment == Augment(color={"strength": 0.9})
    (tmp_path / "recipes/lamp.yaml").write_text("colour: {strength: 0.9}\n")
    with pytest.raises(InputError, match=r"recipes/lamp\.yaml: colour: unknown key"):
        parsed({"recipe": "lamp"})
