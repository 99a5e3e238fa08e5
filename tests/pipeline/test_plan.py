from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import changed, coarse_figures, rgb_config, rgb_recipe, with_changes
from mlflow.exceptions import MlflowException

from simtrail import load_encoder
from simtrail.augment.views import TwoViews
from simtrail.data.demo import generate
from simtrail.data.recipe import levels
from simtrail.errors import InputError
from simtrail.params import AUTO, FEATURES, Params, load_params, parse
from simtrail.pipeline import pilot, plan, stages
from simtrail.pipeline import workspace as ws
from simtrail.pipeline.registration import facts
from simtrail.pipeline.training_run import without_effect
from simtrail.report.card import model_card
from simtrail.tracking.run import Trail

AUTOMATIC = dict.fromkeys([*AUTO, FEATURES], "auto")
SMALL = {
    "prepare.size": 32,
    "prepare.background": "auto",
    "pretrain.encoder.model": "test_resnet",
    "pretrain.encoder.stem": "standard",
    "pretrain.batch_size": 16,
    "pretrain.epochs": 10,
    "pretrain.precision": "fp32",
    "pretrain.micro_batch_size": None,
    "pretrain.monitor.every": 1000,
}
CPU, GPU = torch.device("cpu"), torch.device("cuda")


def write_params(**changes: object) -> None:
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    Path("params.yaml").write_text(yaml.safe_dump(changed(AUTOMATIC | SMALL | dotted)))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A project with a small demo set, prepared."""
    folder = tmp_path_factory.mktemp("plan") / "project"
    generate(folder / "data/demo", species=4, specimens=10)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for module in ("manifest", "pack"):
            in_one_process = lambda function, items, *_, **__: (function(item) for item in items)  # noqa: E731
            patch.setattr(f"simtrail.data.{module}.in_parallel", in_one_process)
        write_params()
        stages.check()
        stages.prepare()
    return folder


@pytest.fixture
def project(prepared, tmp_path, monkeypatch) -> Path:
    """A copy of that project, with two recipes and two kinds of features to choose from."""
    monkeypatch.setattr(pilot, "recipes_for", lambda recipe: ["aerial", "sign"])
    monkeypatch.setattr("simtrail.training.features.CHOICES", [[1], [1, 2, 3]])
    folder = tmp_path / "project"
    shutil.copytree(prepared, folder)
    monkeypatch.chdir(folder)
    return folder


def runs() -> list:
    from simtrail.tracking.store import open_store

    store = open_store()
    return store.search_runs([e.experiment_id for e in store.search_experiments()])


def test_a_plan_gives_every_auto_setting_a_value_and_a_reason_and_training_uses_them(project, monkeypatch, capsys):
    monkeypatch.setattr(pilot, "STEPS", 1)
    write_params()
    stages.plan()
    record, params = json.loads(ws.PLAN.read_text()), load_params()
    assert set(record["values"]) == set(record["reasons"]) == set(params.auto) == set(AUTO) - set(SMALL)
    text = capsys.readouterr().out
    for key in params.auto:
        assert f"plan: {key} = " in text
    assert "plan: pretrain.epochs = 10, as set; auto would be 200: " in text
    assert "plan: pilot: at this speed, pretrain takes about 1 min" in text
    resolved = plan.planned(params)
    assert not resolved.auto
    shown = yaml.safe_load((ws.PLAN.parent / "params.yaml").read_text())
    assert shown["pretrain"]["recipe"] == resolved.pretrain.recipe
    names = ["aerial", "sign"]
    assert {row["recipe"] for row in record["pilot"]} == set(names)
    assert all(0 <= row["val_probe"] <= 1 and row["steps"] >= 1 for row in record["pilot"])
    total = 10 * (len(ws.prepared().pretraining_rows("train")) // 16)
    assert sum(row["steps"] for row in {row["recipe"]: row for row in record["pilot"]}.values()) <= total / 4

    with coarse_figures():
        stages.pretrain()
    training = next(run for run in runs() if not run.info.run_name.startswith("pilot"))
    children = [run for run in runs() if run.data.tags.get("mlflow.parentRunId") == training.info.run_id]
    assert {run.info.run_name for run in children} == {f"pilot {name}" for name in names}
    assert all("pilot/val_probe" in run.data.metrics for run in children)
    planned = plan.chosen(plan.planned(load_params()))
    assert planned.pretrain.encoder.features in ([1], [1, 2, 3])
    assert load_encoder(ws.ENCODER).config.architecture.features == planned.pretrain.encoder.features
    shown = yaml.safe_load((ws.CHOSEN.parent / "params.yaml").read_text())
    whiten = planned.pretrain.whiten
    assert shown == {"pretrain": {"encoder": {"features": planned.pretrain.encoder.features}, "whiten": whiten}}
    assert bool(load_encoder(ws.ENCODER).config.whitened) == whiten
    for key in [*load_params().auto, FEATURES]:
        assert training.data.params[key] == str(planned.flat()[key])
    # so that the evaluation, which has these parameters, finds the run
    assert training.data.tags["simtrail.params_hash"] == Trail(planned, {}).params_hash
    history = pd.read_csv(ws.HISTORY).to_dict("records")
    card = model_card(facts(planned, ws.ENCODER, history, {"tasks": {}, "features": {}}, training.info.run_id))
    assert params.prepare.background == "auto"
    assert training.data.params["prepare.background"] == levels(ws.prepared().recipe.background)
    assert "\n\nChosen automatically:\n\n- prepare.background = 0: black\n- pretrain." in card
    assert f"\n- pretrain.recipe = {planned.pretrain.recipe}: " in card
    assert f"\n- {FEATURES} = {planned.pretrain.encoder.features}: accuracy of probe and kNN on " in card
    assert f"{load_encoder(ws.ENCODER).width} features per image" in card


def test_the_same_images_give_the_same_plan_and_the_test_split_has_no_influence(project, monkeypatch):
    monkeypatch.setattr(pilot, "STEPS", 1)
    write_params(pretrain__epochs=10)
    stages.plan()
    first = json.loads(ws.PLAN.read_text())
    table = pd.read_parquet(ws.SPLIT)
    packed = next(ws.PACKED.glob("images-*.npy"))
    images = np.load(packed)
    images[(table["split"] == "test").to_numpy()] = 0
    np.save(packed, images)
    table.loc[table["split"] == "test", "label"] = table["label"].iloc[0]
    table.to_parquet(ws.SPLIT)
    stages.plan()
    second = json.loads(ws.PLAN.read_text())
    assert second["values"] == first["values"]
    assert [row["val_probe"] for row in second["pilot"]] == [row["val_probe"] for row in first["pilot"]]


def test_without_labels_there_is_no_pilot_and_the_recipe_is_the_usual_one(project):
    pd.read_parquet(ws.SPLIT).assign(label=None).to_parquet(ws.SPLIT)
    write_params(pretrain__epochs=10)
    stages.plan()
    record = json.loads(ws.PLAN.read_text())
    assert record["pilot"] == []
    assert record["values"]["pretrain.recipe"] == "aerial"
    assert "no labels" in record["reasons"]["pretrain.recipe"]


def test_a_short_training_has_no_pilot(project):
    write_params(pretrain__epochs=1)
    stages.plan()
    record = json.loads(ws.PLAN.read_text())
    assert record["pilot"] == []
    assert record["values"]["pretrain.recipe"] == pilot.recipes_for(ws.prepared().recipe)[0]
    assert "too short for a pilot" in record["reasons"]["pretrain.recipe"]


def test_a_single_setting_is_respected_and_a_plan_for_other_settings_or_images_is_refused(project):
    write_params(pretrain__epochs=1, pretrain__recipe="sign", pretrain__encoder__features=[0, 2])
    stages.plan()
    params = load_params()
    assert plan.planned(params).pretrain.recipe == "sign"
    assert plan.planned(params).pretrain.encoder.features == [0, 2]
    with pytest.raises(InputError, match=r"artifacts/plan: made with pretrain.temperature = 'auto', not 0.3; run"):
        plan.planned(load_params(settings=["pretrain.temperature=0.3"]))
    statistics = json.loads(ws.STATISTICS.read_text())
    ws.write_json(ws.STATISTICS, statistics | {"split_hash": "another"})
    with pytest.raises(InputError, match=r"plan\.json: made for other images; run the plan stage first"):
        plan.planned(params)
    assert not plan.is_planned(params)


def test_without_auto_no_plan_is_needed(params):
    assert plan.planned(params) is params
    assert plan.is_planned(params)


@pytest.mark.parametrize(
    ("images", "batch", "count"),
    [(6, 3, 200), (60, 16, 200), (145, 16, 200), (300, 32, 200), (3000, 64, 20), (300_000, 64, 2)],
)
def test_batch_and_epochs_fit_the_number_of_images(images, batch, count):
    assert plan.batch_size(images, CPU)[0] == batch
    assert plan.epochs(images, 3, CPU)[0] == count
    assert plan.epochs(images, 3, GPU)[0] >= count
    assert plan.batch_size(images, GPU)[0] >= batch


@pytest.mark.parametrize(("images", "bands", "count"), [(60, 24, 200), (60, 400, 60), (600, 400, 20), (6000, 400, 12)])
def test_images_of_many_bands_are_repeated_less_often(images, bands, count):
    assert plan.epochs(images, bands, CPU)[0] == count


@pytest.mark.parametrize(
    ("images", "speed", "count"),
    [(3000, 100, 20), (3000, 230, 40), (3000, 400, 40), (3000, 450, 80), (3000, 9000, 80), (60, 9000, 200)],
)
def test_a_fast_machine_trains_longer_but_no_more_than_nine_minutes(images, speed, count):
    found, reason = plan.epochs(images, 3, CPU, speed)
    assert found == count
    assert (f", at {speed} images/s as measured" in reason) == (count in (40, 80))
    assert plan.epochs(images, 3, GPU, speed)[0] == plan.epochs(images, 3, GPU)[0]  # no GPU was as slow


def test_the_speed_of_a_training_is_that_of_views_of_all_sizes():
    p = with_changes(
        {"prepare.size": 96, "pretrain.view_size": [32, 64], "pretrain.local_views": 4, "pretrain.precision": "fp32"}
    ).pretrain
    assert plan.images_per_second(p, 96, {"fp32": 0.01}) == pytest.approx(100 * 64**2 / (64**2 + 32**2) * 2 / 1.5)
    p = with_changes({"pretrain.view_size": None, "pretrain.precision": "bf16"}).pretrain
    assert plan.images_per_second(p, 96, {"bf16": 0.01, "fp32": 0.1}) == pytest.approx(100)


GROUPS = ["a", "a", "b", "b", "b", None]


@pytest.mark.parametrize(
    ("groups", "labels", "choice", "reason"),
    [
        (GROUPS, ["x", "x", "y", "y", "y", "z"], "group", "100% of the pairs of images of a group have the same label"),
        (GROUPS, ["x", "x", "y", None, "y", "z"], "group", "100% of"),
        (GROUPS, ["x", "y", "y", "y", "y", "z"], "view", "75% of"),
        (GROUPS, [None] * 6, "view", "no labels tell whether the images of a group show the same"),
        (GROUPS, ["x", None, None, "y", None, "z"], "view", "no labels tell"),
        ([*"abcdef"], ["x"] * 6, "view", "no two training images are of one group"),
        ([None] * 6, ["x"] * 6, "view", "no two training images are of one group"),
    ],
)
def test_groups_are_positives_where_their_images_have_the_same_label(params, groups, labels, choice, reason):
    table = pd.DataFrame({"group": groups, "label": labels, "sha256": [*"123456"]})
    chosen, why = plan.positives(params.pretrain, table)
    assert (chosen, why[: len(reason)]) == (choice, reason)


def test_tiles_of_one_file_say_nothing_about_their_group(params):
    tiles = pd.DataFrame({"group": ["a"] * 4, "label": ["x"] * 4, "sha256": ["1", "1", "2", "2"]})
    assert plan.positives(params.pretrain, tiles)[0] == "group"  # two files of one group
    assert plan.positives(params.pretrain, tiles.assign(sha256="1")) == (
        "view",
        "no labels tell whether the images of a group show the same",
    )


def test_a_group_that_would_fill_a_batch_of_dcl_is_no_positive(params):
    p = params.pretrain.model_copy(update={"objective": "dcl", "batch_size": 3})
    table = pd.DataFrame({"group": GROUPS, "label": ["x"] * 6, "sha256": [*"123456"]})
    assert plan.positives(p, table)[0] == "view"
    assert plan.positives(p.model_copy(update={"batch_size": 4}), table)[0] == "group"


def test_groups_are_no_positives_of_images_that_are_drawn_one_by_one(params):
    table = pd.DataFrame({"group": GROUPS, "label": ["x", "x", "y", "y", "y", "z"], "sha256": [*"123456"]})
    p = params.pretrain.model_copy(update={"sampling": "balanced"})
    assert plan.positives(p, table) == ("view", "sampling: balanced draws single images")


def test_the_stem_keeps_a_map_of_more_than_one_pixel(params):
    def stem(size: int, network: str = "resnet10t", given: dict | None = None) -> str:
        encoder = params.pretrain.encoder.model_copy(update={"model": network})
        return plan.stem(params.pretrain.model_copy(update={"encoder": encoder}), given, size)[0]

    sizes = {16: "small", 32: "small", 48: "standard", 64: "standard", 224: "standard"}
    assert {size: stem(size) for size in sizes} == sizes
    for without_small in ("vit_tiny_patch16_224", "resnetv2_50", "no_such_network"):
        assert stem(16, without_small) == "standard"
    assert stem(64, given={"stem": "small"}) == "small"  # that of the weights to start from


def test_views_grow_to_three_quarters_of_the_images_unless_the_network_needs_larger_ones():
    def sides_of(
        size: int, stem: str = "standard", network: str = "test_resnet", local_views: int = 0, local: float = 0.0
    ) -> list[int] | int | None:
        changes = {
            "pretrain.encoder.model": network,
            "pretrain.encoder.stem": stem,
            "pretrain.local_views": local_views,
            "pretrain.terms.local": local,
        }
        return plan.view_size(with_changes(changes).pretrain, rgb_config(changes, size))[0]

    sides = {32: None, 40: [32, 40], 48: [32, 48], 56: [32, 48], 64: [32, 48], 100: [64, 80], 224: [112, 176]}
    assert {size: sides_of(size) for size in sides} == sides
    assert sides_of(64, "small") is None
    assert sides_of(64, local_views=2) is None
    assert sides_of(128, local_views=2) == [64, 96]
    assert sides_of(64, network="vit_tiny_patch16_224") is None
    assert sides_of(64, network="resnetaa34d") == [32, 64]  # whose poolings do not fit together at 48 pixels
    assert sides_of(64, local=1.0) == 48  # its maps have one size


def test_a_batch_that_does_not_fit_in_memory_is_divided(params, monkeypatch):
    monkeypatch.setattr(plan, "bytes_per_image", lambda *_: 2**30)
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 30 * 2**30}))
    config = rgb_config({"pretrain.encoder.model": "test_resnet"})
    assert plan.micro_batch_size(params.pretrain, config, CPU)[0] == 16
    monkeypatch.setattr(plan, "bytes_per_image", lambda *_: 2**20)
    assert plan.micro_batch_size(params.pretrain, config, CPU)[0] is None


def test_the_pilot_takes_the_best_recipe_if_it_is_clearly_better_than_the_usual_one():
    usual, better, best = (np.arange(200)[:, None] % 20 < [n, n] for n in (10, 15, 16))
    block = np.arange(200)
    assert pilot.usual_or_best([usual, better, best, usual], block) == 2
    assert pilot.usual_or_best([better, usual, better], block) == 0
    chance = np.roll(usual, 1, 0)  # right on others, and once more
    chance[0] = True
    assert pilot.usual_or_best([usual, chance], block) == 0


def test_the_recipes_that_are_tried_suit_the_bands():
    assert pilot.recipes_for(rgb_recipe())[0] == "photograph"
    assert "spectral" not in pilot.recipes_for(rgb_recipe())
    bands = {"bands": ["a", "b", "c", "d"], "wavelengths": [500.0, 600.0, 700.0, 800.0]}
    assert pilot.recipes_for(rgb_recipe().model_copy(update=bands))[0] == "spectral"
    assert "photograph" not in pilot.recipes_for(rgb_recipe().model_copy(update=bands))
    assert "spectral" not in pilot.recipes_for(rgb_recipe().model_copy(update={**bands, "wavelengths": []}))


def test_a_setting_without_effect_is_named_unless_it_has_the_value_of_the_recipe():
    grey = rgb_recipe().model_copy(update={"bands": ["grey"]})

    def lines(augment: dict) -> list[str]:
        tree = changed({"pretrain.recipe": "photograph", "pretrain.augment": augment})
        return without_effect(TwoViews(parse(Params, tree, "params.yaml").pretrain.augment, grey), "photograph")

    assert lines({}) == []
    (line,) = lines({"color": {"jitter": {"hue": 0.1}}})
    assert line.startswith("pretrain.augment.color.jitter.hue: no effect")


def test_runs_that_this_store_does_not_know_are_not_adopted(tmp_path, monkeypatch):
    from simtrail.tracking.run import adopt

    monkeypatch.chdir(tmp_path)
    adopt(["0" * 32], "1" * 32)
    monkeypatch.setattr("mlflow.MlflowClient.get_run", lambda *_: (_ for _ in ()).throw(MlflowException("no answer")))
    with pytest.raises(MlflowException, match="no answer"):
        adopt(["0" * 32], "1" * 32)


def test_the_stem_suits_the_last_views_as_where_these_are_chosen_later(project, monkeypatch):
    sizes = []
    monkeypatch.setattr(plan, "stem", lambda p, given, size: sizes.append(size) or ("small", "a reason"))
    changes = {"pretrain__recipe": "sign", "pretrain__encoder__stem": "auto"}
    for sides in ([16, 24], None):
        write_params(**changes, pretrain__view_size=sides)
        plan.make_plan(load_params())
    assert sizes == [24, 32]


def test_a_training_of_the_pilot_is_no_longer_than_the_whole_one():
    p = with_changes({"pretrain.batch_size": 10, "pretrain.epochs": 10}).pretrain.model_copy(
        update={"view_size": [32, 64]}
    )
    assert pilot.steps_each(100, p, 64, 5) == int(0.25 * 100 * 2.5 / 5)
    p = p.model_copy(update={"view_size": [8, 64]})
    assert pilot.steps_each(100, p, 64, 5) == 100
