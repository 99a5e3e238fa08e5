from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml
from conftest import ROOT, changed, with_changes

from simtrail.data import manifest, pack
from simtrail.data.demo import generate
from simtrail.errors import InputError, TrainingError
from simtrail.pipeline import stages
from simtrail.pipeline import workspace as ws
from simtrail.sweep.ablation import Preset, ablate, grid, load_preset
from simtrail.training import loop
from simtrail.training.state import Checkpoints

SHIPPED = sorted((ROOT / "sweeps/ablations").glob("*.yaml"))
CELLS = {
    "augmentation_pairs": 25,
    "batch_epochs": 15,
    "color_strength": 5,
    "projection_head": 7,
    "modalities": 5,
    "temperature": 6,
    "positives": 2,
    "local_views": 3,
}
TINY = {
    "title": "Two by two",
    "source": "nowhere",
    "set": {"pretrain.encoder.model": "test_resnet", "pretrain.epochs": 1, "pretrain.batch_size": 16},
    "vary": {
        "temperature": {"low": {"pretrain.temperature": 0.1}, "high": {"pretrain.temperature": 1.0}},
        "objective": {"NT-Xent": {"pretrain.objective": "nt_xent"}, "DCL": {"pretrain.objective": "dcl"}},
    },
}
OUT = Path("sweeps/ablations/tiny")


def preset(**changes: object) -> Preset:
    return Preset.model_validate(TINY | changes)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A project with prepared images, in which a tiny preset has run with two seeds."""
    folder = tmp_path_factory.mktemp("ablation")
    generate(folder / "data/demo", species=3, specimens=8)
    (folder / "params.yaml").write_text(yaml.safe_dump(changed({"prepare.size": 32})))
    (folder / "sweeps/ablations").mkdir(parents=True)
    (folder / "sweeps/ablations/tiny.yaml").write_text(yaml.safe_dump(TINY, sort_keys=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for module in (manifest, pack):
            patch.setattr(module, "in_parallel", lambda work, items, *_, **kw: (work(item) for item in items))
        stages.check()
        stages.prepare()
        ablate("tiny", [], seeds=2)
    return folder


@pytest.fixture
def project(prepared, monkeypatch) -> Path:
    monkeypatch.chdir(prepared)
    return prepared


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_every_shipped_preset_is_a_grid_of_valid_settings(file, params):
    cells = grid(load_preset(file), params, {}, str(file))
    assert len(cells) == CELLS[file.stem]
    if file.stem != "augmentation_pairs":
        assert len({p.model_dump_json() for p in cells.values()}) == len(cells)


def test_a_pair_of_augmentations_and_its_mirror_are_one_run(params):
    cells = grid(load_preset(ROOT / "sweeps/ablations/augmentation_pairs.yaml"), params, {}, "")
    assert cells["crop", "color"] == cells["color", "crop"]
    assert len({p.model_dump_json() for p in cells.values()}) == 15
    blur_only = cells["blur", "blur"].augment
    assert blur_only.texture.blur.p == 1
    assert blur_only.geometry.crop.p == blur_only.color.jitter.p == blur_only.texture.erasing.p == 0


def test_settings_of_a_cell_replace_the_command_line_then_the_preset_then_params_yaml():
    params = with_changes({"pretrain.epochs": 90, "pretrain.batch_size": 90, "pretrain.temperature": 0.9})
    cell = grid(preset(), params, {"pretrain.epochs": 3}, "tiny")["low", "DCL"]
    assert (cell.epochs, cell.batch_size, cell.temperature, cell.objective) == (3, 16, 0.1, "dcl")


@pytest.mark.parametrize(
    ("changes", "overrides", "message"),
    [
        ({"set": {"pretrain.epoch": 3}}, {}, "tiny: pretrain.epoch: unknown key; did you mean pretrain.epochs?"),
        ({"set": {"pretrain.epochs.few": 3}}, {}, r"tiny: pretrain.epochs = \{'few': 3\}: must be an integer"),
        ({"set": {"prepare.size": 32}}, {}, "tiny: prepare.size: only pretrain is varied; set it in params.yaml"),
        ({"vary": {"a": {"b": {"pretrain.epochs": 0}}}}, {}, "tiny: pretrain.epochs = 0: must be ≥ 1"),
        ({}, {"pretrain.objective": "dcl"}, "pretrain.objective = 'dcl': the cell low × NT-Xent sets it to 'nt_xent'"),
        (
            {"vary": {"a": {"x": {"pretrain.monitor": {"every": 1, "metric": "last", "patience": None}}}}},
            {"pretrain.monitor.every": 2},
            "tiny: pretrain.monitor.every = 2: the cell x sets it to 1",
        ),
        (
            {"vary": {"a": {"x": {"pretrain.ema": 0.9}}, "b": {"y": {"pretrain.ema": 0.5}}}},
            {},
            "tiny: pretrain.ema = 0.9: the cell x × y sets it to 0.5",
        ),
    ],
)
def test_invalid_settings_are_named_before_anything_runs(params, changes, overrides, message):
    with pytest.raises(InputError, match=message.replace("?", r"\?")):
        grid(preset(**changes), params, overrides, "tiny")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title: x\nsource: y\nset: {}\nvery: {}", r"vary: missing; add it"),
        ("title: x\nsource: y\nset: {}\nvary: {a: {}}", r"vary = \{a: 0\} settings: must be one axis or two"),
        ("title: x\nsource: y\nset: {}\nvary: {a: {0.1: {}}}", r"must be a string"),
        ("title: [", "not valid YAML"),
    ],
)
def test_an_invalid_preset_is_an_input_error_that_names_the_file(tmp_path, text, message):
    (tmp_path / "preset.yaml").write_text(text)
    with pytest.raises(InputError, match=f"preset.yaml: .*{message}"):
        load_preset(tmp_path / "preset.yaml")


@pytest.mark.parametrize(
    ("name", "assignments", "message"),
    [
        ("tinny", [], r"tinny\.yaml: no such preset; sweeps/ablations has tiny"),
        ("tiny", ["pretrain.epochs"], "--set pretrain.epochs: must be KEY=VALUE"),
        ("tiny", ["pretrain.epochs=["], r"--set pretrain.epochs=\[: not valid YAML"),
        ("tiny", ["pretrain.clip=x"], r"tiny\.yaml --set pretrain.clip=x: pretrain.clip = 'x': must be a number"),
    ],
)
def test_an_invalid_command_is_an_input_error(project, name, assignments, message):
    with pytest.raises(InputError, match=message):
        ablate(name, assignments, 1)


def test_the_table_has_a_run_of_every_cell_and_seed_and_the_summary_their_means(project):
    table = pd.read_csv(OUT / "table.csv")
    assert list(zip(table["temperature"], table["objective"], table["seed"], strict=True)) == [
        (t, o, s) for t in ("low", "high") for o in ("NT-Xent", "DCL") for s in (0, 1)
    ]
    assert table["val_knn"].between(0, 1).all()
    assert table["val_probe"].between(0, 1).all()
    mean, deviation = table["val_effective_rank"][:2].mean(), table["val_effective_rank"][:2].std()
    summary = (OUT / "table.md").read_text()
    assert (
        "Source: nowhere. Validation split, weights of the kept epoch, mean ± standard deviation over 2 seeds."
        in summary
    )
    assert "| low | NT-Xent | " in summary
    assert f"| {mean:.1f} ± {deviation:.1f} |" in summary
    assert (OUT / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_every_run_stores_its_settings_and_history_and_removes_its_checkpoints(project):
    key = pd.read_csv(OUT / "table.csv")["key"][7]
    run = json.loads((OUT / f"runs/{key}.json").read_text())
    assert (run["pretrain"]["temperature"], run["pretrain"]["objective"], run["pretrain"]["seeds"]) == (1.0, "dcl", [1])
    assert len(run["history"]) == 1
    assert not list(Path(".simtrail").glob(f"*{key}*"))


def test_a_stored_run_is_not_run_again(project, monkeypatch, capsys):
    before = (OUT / "table.csv").read_text()
    monkeypatch.setattr(loop, "fit", lambda *_, **__: pytest.fail("ran again"))
    ablate("tiny", [], seeds=2)
    assert (OUT / "table.csv").read_text() == before
    assert capsys.readouterr().out.count("(run before)") == 8


def test_a_killed_ablation_continues_within_the_cell(project, monkeypatch):
    original_save, original_load, first_steps = Checkpoints.save, Checkpoints.load, []

    def save_then_die(self, step, state):
        original_save(self, step, state)
        raise KeyboardInterrupt

    def load(self):
        state = original_load(self)
        first_steps.append(state["state"]["step"] if state else 0)
        return state

    monkeypatch.setattr(Checkpoints, "save", save_then_die)
    monkeypatch.setattr(Checkpoints, "load", load)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            ablate("tiny", ["pretrain.epochs=3", "pretrain.checkpoint.every_steps=1"], 1)
    assert first_steps == [0, 1, 2]


def test_a_failed_run_is_shown_and_the_other_cells_still_run(project, monkeypatch, capsys):
    fit = loop.fit

    def fails_at_low_temperature(*args, **options):
        if args[2].temperature == 0.1:
            raise TrainingError("the loss is nan")
        return fit(*args, **options)

    monkeypatch.setattr("simtrail.pipeline.training_run.fit", fails_at_low_temperature)
    with pytest.raises(TrainingError, match="2 of 4 runs failed"):
        ablate("tiny", ["pretrain.max_steps=1"], 1)
    printed = capsys.readouterr().out
    assert "1/4 low × NT-Xent: failed: the loss is nan" in printed
    assert "4/4 high × DCL: val_knn 0." in printed
    assert "| low | DCL | failed | failed | failed |" in (OUT / "table.md").read_text()


def test_a_cell_that_the_network_refuses_is_named_before_another_one_runs(project, monkeypatch):
    cells = {"none": {"pretrain.local_views": 0}, "two": {"pretrain.local_views": 2}}
    tree = TINY | {"vary": {"local views": cells}}
    Path("sweeps/ablations/refused.yaml").write_text(yaml.safe_dump(tree))
    monkeypatch.setattr("simtrail.pipeline.training_run.fit", None)
    with pytest.raises(InputError, match=r"refused.yaml: two: pretrain.local_views = 2: .* 16×16"):
        ablate("refused", [], 1)


def test_without_labels_cells_are_compared_by_effective_rank(project, monkeypatch):
    labels = pd.read_parquet(ws.SPLIT)
    monkeypatch.setattr(pd, "read_parquet", lambda path: labels.assign(label=None))
    ablate("tiny", ["pretrain.seeds=[7]"], 1)
    table = pd.read_csv(OUT / "table.csv")
    assert {"val_effective_rank"} == {name for name in table if name.startswith("val_")}
    assert (table["val_effective_rank"] >= 1).all()
