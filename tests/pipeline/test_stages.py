"""The whole pipeline on a small demo set: every stage, the MLflow store, the registry, and moving the folder."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
import yaml
from conftest import ROOT, changed, coarse_figures
from typer.testing import CliRunner

from simtrail import load_encoder, read_image
from simtrail.cli import app
from simtrail.data.demo import generate
from simtrail.data.recipe import levels
from simtrail.errors import InputError
from simtrail.params import load_params
from simtrail.pipeline import stages
from simtrail.pipeline import workspace as ws
from simtrail.pipeline.summary import score_lines, summary
from simtrail.pipeline.training_run import training_run
from simtrail.tracking import pull
from simtrail.tracking.trace import lines, trace

SMALL = {
    "prepare.size": 48,
    "pretrain.view_size": 32,
    "pretrain.encoder.model": "test_resnet",
    "pretrain.monitor.every": 2,
    "pretrain.epochs": 2,
    "pretrain.max_steps": None,
    "pretrain.batch_size": 16,
    "evaluate.bootstrap": 100,
    "evaluate.label_efficiency_seeds": 2,
    "evaluate.probe_views": 1,
    "evaluate.fine_tune.fractions": [0.5],
    "evaluate.fine_tune.epochs": 1,
    "register.name": "small",
}
VERBS = (stages.settings, stages.check, stages.prepare, stages.plan, stages.pretrain, stages.embed)
VERBS += (stages.evaluate, stages.report, stages.register)


def write_params(folder: Path, **changes: object) -> None:
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    (folder / "params.yaml").write_text(yaml.safe_dump(changed({**SMALL, **dotted})))


def client():
    from simtrail.tracking.store import open_store

    return open_store()


def all_runs():
    store = client()
    return store.search_runs([e.experiment_id for e in store.search_experiments()])


def run_pipeline(folder: Path, **changes: object) -> Path:
    """The folder, made a project with a small demo set in which every stage has run once."""
    folder.mkdir()
    generate(folder / "data/demo", species=4, specimens=10)
    shutil.copy(ROOT / "dvc.yaml", folder)
    write_params(folder, **changes)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        for verb in VERBS:
            verb()
    return folder


@pytest.fixture(scope="module", autouse=True)
def _quick():
    """Without UMAP, which compiles first, long fine-tuning, and processes to read images: each has its own tests."""
    torch.set_num_threads(1)  # before the first training too: another number of threads may round differently
    with pytest.MonkeyPatch.context() as patch, coarse_figures():
        for module in ("manifest", "pack"):
            in_one_process = lambda function, items, *_, **__: (function(item) for item in items)  # noqa: E731
            patch.setattr(f"simtrail.data.{module}.in_parallel", in_one_process)
        patch.setattr("simtrail.evaluation.evidence.map_coordinates", lambda x, seed: (np.arange(len(x)), x[:, :2]))
        patch.setattr("simtrail.downstream.fine_tune.LEAST_STEPS", 4)
        patch.setattr("simtrail.tracking.registry.verify", lambda folder: 0.0)  # a new process each time
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    return run_pipeline(tmp_path_factory.mktemp("trail") / "a project")


@pytest.fixture
def project(trained, monkeypatch) -> Path:
    monkeypatch.chdir(trained)
    return trained


@pytest.fixture
def copied(trained, tmp_path, monkeypatch) -> Path:
    """A copy of that project, to change; it is also a move, since the original is elsewhere."""
    folder = tmp_path / "moved"
    shutil.copytree(trained, folder)
    monkeypatch.chdir(folder)
    return folder


def test_prepare_says_where_images_are_enlarged(copied, capsys):
    stages.prepare()
    assert "enlarged" not in capsys.readouterr().out
    stages.prepare(["prepare.size=160"])
    assert "enlarged: the longer side of half of them has at most 64 px" in capsys.readouterr().out


def test_the_split_keeps_specimens_whole_and_the_network_never_sees_the_mask(project):
    split = pd.read_parquet(ws.SPLIT)
    assert split.groupby("group")["split"].nunique().max() == 1
    assert {"block", "near_copy"} <= set(split)
    facts = json.loads(ws.STATISTICS.read_text())
    assert facts["recipe"]["bands"] == ["red", "green", "blue", "uv1", "uv2", "uv3"]
    assert facts["images"] == split["split"].value_counts().to_dict()


def test_embeddings_have_a_vector_and_the_labels_of_every_image(project):
    table = pd.read_parquet(ws.EMBEDDINGS)
    assert len(table) == 80
    assert {"path", "split", "label", "group", "meta.view", "vector"} <= set(table)
    assert len(table["vector"].iloc[0]) == load_encoder(ws.ENCODER).width


def test_metrics_hold_probe_knn_and_floors_with_intervals(project):
    metrics = json.loads(ws.SCORES.read_text())
    task = metrics["tasks"]["species"]
    floors = ("raw_pixels", "random_encoder", "majority")
    for name in ("linear_probe", "probe_augmented", "knn", "svc", *floors):
        scores = task["scores"][name]
        assert {"accuracy", "balanced_accuracy", "precision", "recall", "f1"} <= set(scores)
        assert scores["accuracy_low"] <= scores["accuracy"] <= scores["accuracy_high"]
    assert task["geometry"]["angle_within"] < task["geometry"]["angle_between"]
    assert metrics["features"]["effective_rank"] > 1
    drawn = {p.stem for p in ws.FIGURES.glob("*.png")}
    pictures = {"class_examples-1", "neighbours", "saliency", "suspects"}  # an SVG would show no more
    assert drawn - pictures == {p.stem for p in ws.FIGURES.glob("*.svg")}
    assert drawn == {
        "scores-species", "confusion-species", "per_class-species", "reliability", "angles", "explained_variance",
        "dimensions", "label_efficiency", "fine_tune", "map", "map_thumbnails", "class_examples-1", "neighbours",
        "saliency", "importance", "spectra", "suspects",
    }  # fmt: skip


def test_suspects_are_a_table_of_the_run_and_a_part_of_the_report(project):
    metrics = json.loads(ws.SCORES.read_text())
    found = pd.read_csv(ws.TABLES / "suspects.csv")
    assert found["kind"].value_counts().get("label", 0) == metrics["suspects"]["labels"] > 0
    assert set(found["path"].dropna()) <= set(pd.read_parquet(ws.SPLIT)["path"])
    assert score_lines(metrics)[-1].endswith("tables/suspects.csv")
    (run,) = all_runs()
    assert "suspects.csv" in {f.path for f in client().list_artifacts(run.info.run_id)}
    assert '<h2 id="suspects">' in ws.REPORT.read_text()


def test_the_report_has_every_part_and_is_logged_to_the_run(project):
    page = ws.REPORT.read_text()
    assert page.count("<img") == page.count('src="data:image/')
    for word in ("species", "linear probe", "floor: random weights", "Fine-tuning", "map"):
        assert word in page
    (run,) = all_runs()
    files = {f.path for f in client().list_artifacts(run.info.run_id)}
    assert {"report.html", "model_card.md", "predictions.parquet", "map.html"} <= files
    assert "| linear probe |" in ws.CARD.read_text()


def test_training_and_choices_do_not_depend_on_the_test_split(copied):
    """The test images change places, so that pixels and labels are wrong: encoder, validation, probe stay the same."""

    def trained_state() -> tuple[object, ...]:
        task = json.loads(ws.SCORES.read_text())["tasks"]["species"]
        history = pd.read_csv(ws.HISTORY).drop(columns=["images_per_second", "waiting"])
        weights = (ws.ENCODER / "encoder.safetensors").read_bytes()
        return hashlib.sha256(weights).hexdigest(), history.to_csv(), task["C"], task["svc_C"]

    before, scores = trained_state(), json.loads(ws.SCORES.read_text())
    table = pd.read_parquet(ws.SPLIT)
    test = [copied / "data/demo" / path for path in table["path"][table["split"] == "test"]]
    for path, content in zip(test, [path.read_bytes() for path in [*test[9:], *test[:9]]], strict=True):
        path.write_bytes(content)
    write_params(copied, evaluate__fine_tune__fractions=[], evaluate__label_efficiency_seeds=0)
    for verb in VERBS[:7]:
        verb()
    assert pd.read_parquet(ws.SPLIT)["split"].equals(table["split"])
    assert trained_state() == before
    assert json.loads(ws.SCORES.read_text())["tasks"] != scores["tasks"]


@pytest.mark.slow
def test_held_out_classes_and_further_seeds_and_columns_are_evaluated(copied):
    held_out = sorted(pd.read_parquet(ws.SPLIT)["label"].unique())[:2]
    changes = {"evaluate__held_out_classes": held_out, "evaluate__labels": ["view"], "pretrain__seeds": [0, 5]}
    changes["pretrain__encoder__features"] = "auto"
    write_params(copied, **changes, evaluate__fine_tune__fractions=[], evaluate__label_efficiency_seeds=0)
    for verb in VERBS[1:]:
        verb()
    table = pd.read_parquet(ws.SPLIT)
    assert set(table["label"][table["held_out"]]) == set(held_out)
    ready = training_run(load_params().pretrain)
    assert not set(table["label"].iloc[ready.data.train]) & set(held_out)
    metrics = json.loads(ws.SCORES.read_text())
    assert list(metrics["tasks"]) == ["species", "species (unseen)", "view"]
    assert metrics["seeds"]["linear_probe"]["seeds"] == 2
    assert "species (unseen)" in ws.REPORT.read_text()
    (features,) = json.loads(ws.CHOSEN.read_text())["values"].values()
    for folder in (ws.ENCODER, ws.SEEDS / "5"):  # the first seed chooses for all
        assert json.loads((folder / "config.json").read_text())["architecture"]["features"] == features
    assert (ws.SEEDS / "5/encoder.safetensors").exists()
    write_params(copied, evaluate__held_out_classes=["moth"])
    with pytest.raises(InputError, match=r"evaluate\.held_out_classes: 'moth': no such class; the classes are Aurora"):
        stages.prepare()


def test_one_run_has_parameters_data_curves_results_and_its_status(project):
    (run,) = all_runs()
    assert run.info.status == "FINISHED"
    assert run.data.params["pretrain.temperature"] == "0.2"
    scores = json.loads(ws.SCORES.read_text())["tasks"]["species"]["scores"]
    assert run.data.metrics["linear_probe/accuracy"] == scores["linear_probe"]["accuracy"]
    (dataset,) = run.inputs.dataset_inputs
    assert dataset.dataset.name == "demo"
    assert dataset.dataset.digest == json.loads(ws.VALIDATION.read_text())["data_md5"]
    assert [m.step for m in client().get_metric_history(run.info.run_id, "curves/loss")] == [1, 2]
    files = {f.path for f in client().list_artifacts(run.info.run_id)}
    assert {"params.yaml", "validation.html", "scores.json", "figures", "config.json"} <= files


def test_the_run_has_the_views_and_the_validation_curves(project):
    (run,) = all_runs()
    assert {f.path for f in client().list_artifacts(run.info.run_id, "figures")} >= {
        "figures/views.png", "figures/training.png"
    }  # fmt: skip
    for name in ("val_knn", "val_probe", "val_alignment", "val_uniformity", "val_effective_rank", "val_feature_std"):
        assert [m.step for m in client().get_metric_history(run.info.run_id, f"curves/{name}")] == [2]
    assert run.data.metrics["kept_epoch"] == 2
    assert run.data.tags["simtrail.first_weights"] == "random"


def test_a_preview_needs_no_training(copied):
    shutil.rmtree("artifacts/pretrain")
    stages.preview(images=3, seed=1)
    first = ws.PREVIEW.read_bytes()
    write_params(copied, pretrain__augment__geometry__strength=0.0)
    stages.preview(images=3, seed=1)
    assert ws.PREVIEW.read_bytes() != first


def test_positives_are_the_groups_of_the_split_or_refused(copied):
    write_params(copied, pretrain__positives="group")
    table = pd.read_parquet(ws.SPLIT)
    number = training_run(load_params().pretrain).data.group
    assert pd.Series(number).groupby(table["group"]).nunique().eq(1).all()
    assert len(set(number)) == table["group"].nunique()
    table.assign(group=table["group"].where(table.index < 6)).to_parquet(ws.SPLIT)
    number = training_run(load_params().pretrain).data.group
    assert len(set(number)) == table["group"][:6].nunique() + len(table) - 6
    table.assign(group="one").to_parquet(ws.SPLIT)
    write_params(copied, pretrain__positives="group", pretrain__objective="dcl")
    with pytest.raises(InputError, match=r"'dcl': \d+ training images are of the group 'one', and fill a batch of 16"):
        training_run(load_params().pretrain)
    table.assign(group=None).to_parquet(ws.SPLIT)
    with pytest.raises(InputError, match=r"positives = 'group': no two training images are of one group; name the"):
        training_run(load_params().pretrain)


def test_classes_are_drawn_equally_often_or_images_by_a_column(copied):
    write_params(copied, pretrain__sampling="balanced", pretrain__batch_size=6)
    table = pd.read_parquet(ws.SPLIT)
    label = table["label"].where(table.index % 7 > 0)  # some images have no label
    first = label.dropna().iloc[0]
    label = label.where((label != first) | (table.index % 3 > 0), "rest")
    table.assign(label=label).to_parquet(ws.SPLIT)
    lines = []
    run = training_run(load_params().pretrain)
    weight = pd.Series(run.data.weight[run.data.train])
    of_class = weight.groupby(label.iloc[run.data.train].to_numpy()).sum()
    assert of_class.to_numpy() == pytest.approx(of_class.iloc[0])
    assert (weight[label.iloc[run.data.train].isna().to_numpy()] == 1).all()
    run.fit(validate=False, log=lines.append)
    assert any(line.startswith("sampling: an image is drawn ") for line in lines)

    table["meta.often"] = [str(i % 4) for i in range(len(table))]
    table.to_parquet(ws.SPLIT)
    write_params(copied, pretrain__sampling="often", pretrain__batch_size=6)
    assert training_run(load_params().pretrain).data.weight[run.data.train].tolist() == [i % 4 for i in run.data.train]


@pytest.mark.parametrize(
    ("sampling", "often", "error"),
    [
        ("offen", "1", r"'offen': must be uniform, balanced or a column of metadata.csv: often"),
        (
            "often",
            "x",
            r"'often': \d+ of \d+ training images have no number ≥ 0 in this column, such as images/.*: 'x'",
        ),
        ("often", "-1", r"'often': \d+ of \d+ training images have no number ≥ 0"),
        ("often", "inf", r"'often': \d+ of \d+ training images have no number ≥ 0"),
        ("often", "0", r"'often': only 0 training images have a number above 0, fewer than pretrain.batch_size = 16"),
        ("balanced", "1", r"'balanced': needs training images of two classes or more; set uniform"),
    ],
)
def test_a_sampling_that_is_not_possible_is_refused(copied, sampling, often, error):
    write_params(copied, pretrain__sampling=sampling)
    table = pd.read_parquet(ws.SPLIT)
    table = table[[name for name in table if not name.startswith("meta.")]]
    table.assign(**{"meta.often": often, "label": "one"}).to_parquet(ws.SPLIT)
    with pytest.raises(InputError, match=f"pretrain.sampling = {error}"):
        training_run(load_params().pretrain)


def test_views_that_the_network_can_not_take_are_refused(copied, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("simtrail.pipeline.training_run.refusal", lambda encoder, side: f"maps of {side / 32}")
        with pytest.raises(InputError, match=r"size = 32: 'test_resnet' does not take views of 32×32 \(maps of 1.0\)"):
            training_run(load_params().pretrain)
    write_params(copied, pretrain__local_views=2)
    with pytest.raises(InputError, match=r"local_views = 2: 'test_resnet' does not take views of half its size, 16×16"):
        training_run(load_params().pretrain)
    write_params(copied, pretrain__local_views=2, pretrain__encoder__model="vit_tiny_patch16_224")
    with pytest.raises(InputError, match=r"local_views = 2: 'vit_tiny_patch16_224' does not take views of half its s"):
        training_run(load_params().pretrain)
    small = {"pretrain__local_views": 2, "pretrain__encoder__stem": "small"}
    write_params(copied, **small)
    training_run(load_params().pretrain)
    write_params(copied, **small, pretrain__view_size=[16, 32])
    monkeypatch.setattr("simtrail.pipeline.training_run.refusal", lambda encoder, side: "small" * (side < 16))
    with pytest.raises(InputError, match=r"8×8 \(small\); set pretrain.view_size: 32, which now is \[16, 32\], or a l"):
        training_run(load_params().pretrain)


def test_the_key_of_a_run_depends_on_what_decides_its_result_and_on_nothing_else(copied):
    def key(**changes: object) -> str:
        write_params(copied, **changes)
        return training_run(load_params().pretrain).key

    usual = key()
    assert key(pretrain__checkpoint__every_steps=7, evaluate__knn__k=3) == usual
    changes = [{"pretrain__temperature": 0.3}, {"pretrain__augment__color__strength": 0.1}, {"pretrain__seeds": [9]}]
    assert len({usual, *(key(**change) for change in changes)}) == 4
    facts = json.loads(ws.STATISTICS.read_text())
    ws.STATISTICS.write_text(json.dumps({**facts, "split_hash": "another"}))
    assert key() != usual


def test_training_continues_from_the_weights_of_a_registered_model(copied, capsys):
    write_params(copied, pretrain__weights="elsewhere")
    with pytest.raises(InputError, match=r"pretrain\.weights = 'elsewhere': must be random, pretrained, an enc"):
        stages.pretrain()
    write_params(copied, pretrain__teacher__weights="models:/small@best")
    with pytest.raises(InputError, match=r"pretrain\.teacher\.weights: models:/small@best: .*alias best not found"):
        stages.pretrain()
    champion = "models:/small@champion"
    start = {"pretrain__weights": champion, "pretrain__teacher__weights": champion, "pretrain__head__output": 64}
    write_params(copied, **start, evaluate__fine_tune__fractions=[], evaluate__label_efficiency_seeds=0)
    stages.pretrain()
    assert "head stays random" in capsys.readouterr().out
    run = next(r for r in all_runs() if r.data.params["pretrain.weights"] == "models:/small@champion")
    assert len(run.data.tags["simtrail.first_weights"]) == 64
    config = ws.ENCODER / "config.json"
    assert json.loads(config.read_text())["first_weights"] == run.data.tags["simtrail.first_weights"]
    stages.embed()
    stages.evaluate()
    assert {"teacher", "first_weights"} <= set(json.loads(ws.SCORES.read_text())["tasks"]["species"]["scores"])
    for key, setting in {"first_weights": "pretrain.weights", "teacher": "pretrain.teacher.weights"}.items():
        right = config.read_text()
        config.write_text(json.dumps(json.loads(right) | {key: "others"}))
        with pytest.raises(InputError, match=f"{setting} = 'models:/small@champion': now other weights than those"):
            stages.evaluate()
        config.write_text(right)


def test_the_version_has_metrics_and_lineage(project):
    version = client().get_model_version_by_alias("small", "champion")
    metrics = json.loads(ws.SCORES.read_text())["tasks"]["species"]["scores"]
    assert float(version.tags["metric.linear_probe/accuracy"]) == pytest.approx(
        metrics["linear_probe"]["accuracy"], rel=1e-5
    )
    assert version.tags["data_md5"] == json.loads(ws.VALIDATION.read_text())["data_md5"]
    assert version.tags["checks"].startswith("passed")
    assert {"git_commit", "params_hash", "encoder_sha256"} <= set(version.tags)
    assert "| linear probe | " in version.description
    (run,) = all_runs()
    models = client().search_logged_models([run.info.experiment_id])
    logged = {m.key: m.value for m in models[0].metrics}
    assert logged["linear_probe/accuracy"] == metrics["linear_probe"]["accuracy"]


def test_registering_again_adds_nothing(copied):
    before = [(r.info.run_id, r.data.metrics) for r in all_runs()]
    stages.register()
    assert json.loads(ws.REGISTRATION.read_text())["version"] == 1
    assert len(client().search_model_versions("name = 'small'")) == 1
    assert [(r.info.run_id, r.data.metrics) for r in all_runs()] == before


def register_another(**predicted: object) -> dict:
    """The registration of another encoder (by its hash), whose probe predicts these classes."""
    config = ws.ENCODER / "config.json"
    config.write_text(config.read_text() + "\n")
    table = pd.read_parquet(ws.PREDICTIONS)
    table.assign(**predicted).to_parquet(ws.PREDICTIONS)
    stages.register()
    return json.loads(ws.REGISTRATION.read_text())


@pytest.mark.parametrize(("right", "alias"), [(True, "champion"), (False, "challenger")])
def test_the_gate_lets_only_the_better_pass(copied, right, alias):
    truth = pd.read_parquet(ws.PREDICTIONS)["truth"]
    result = register_another(linear_probe=truth if right else "another class")
    assert result["version"] == 2
    assert "% interval" in result["reason"]
    assert client().get_model_version_by_alias("small", alias).version == 2
    assert client().get_model_version_by_alias("small", "champion").version == (2 if right else 1)


def test_versions_are_compared_unless_a_setting_that_decides_the_score_differs(copied):
    write_params(copied, evaluate__fine_tune__fractions=[], evaluate__knn__k=3)
    assert "accuracy of the linear probe" in register_another()["reason"]
    write_params(copied, evaluate__balanced=True)
    result = register_another()
    assert result["alias"] == "challenger"
    assert result["reason"].startswith("not comparable with champion version 1: evaluate.balanced = true, not false")


def test_an_encoder_below_its_floors_can_be_refused(copied):
    metrics = json.loads(ws.SCORES.read_text())
    metrics["tasks"]["species"]["gains"]["raw_pixels"] = {"value": 0.0, "low": -0.1, "high": 0.1}
    ws.SCORES.write_text(json.dumps(metrics))
    assert register_another()["reason"].endswith("; its linear probe is not significantly better than all floors")
    write_params(copied, register__beat_floors=True)
    with pytest.raises(InputError, match=r"register\.beat_floors = true: the encoder is refused"):
        register_another()
    assert len(client().search_model_versions("name = 'small'")) == 2


def test_a_registered_model_is_pulled_and_embeds_like_the_pipeline(project, tmp_path):
    result = CliRunner().invoke(app, ["pull", "models:/small@champion", "--out", str(tmp_path / "out")])
    folder = Path(result.output.strip())
    assert folder == tmp_path / "out"
    assert {"encoder.safetensors", "config.json", "model_card.md", "trail.json"} < {p.name for p in folder.iterdir()}
    table = pd.read_parquet(ws.EMBEDDINGS)
    paths = [f"data/demo/{p}" for p in table["path"][:5]]
    expected = np.stack(table["vector"][:5].to_list())
    for encoder in (load_encoder(folder), load_encoder("models:/small@champion")):
        np.testing.assert_allclose(encoder.embed(paths), expected, rtol=1e-3, atol=1e-4)


def test_the_quick_way_to_a_registered_model_finds_what_mlflow_finds(project):
    for uri in ("models:/small@champion", "models:/small/1"):
        folder = pull._local_folder(uri)
        assert folder is not None
        downloaded = pull._download(uri)
        for file in downloaded.rglob("*.*"):
            assert (folder / file.relative_to(downloaded)).read_bytes() == file.read_bytes()
    assert pull._local_folder("models:/small/latest") is None
    assert pull.fetch("models:/small/latest").is_dir()
    found = pull.registered("small", pull.encoder_hash(ws.ENCODER))
    assert found == (1, "champion", json.loads(ws.REGISTRATION.read_text())["reason"])
    assert pull.registered("small", "another encoder") is None


def test_a_registered_model_tells_where_it_comes_from(project):
    trail = trace("models:/small@champion")
    assert trail["run"] == json.loads(ws.REGISTRATION.read_text())["run_id"]
    assert trail["data"]["md5"] == json.loads(ws.VALIDATION.read_text())["data_md5"]
    assert trail["parameters"]["pretrain.epochs"] == 2
    assert (trail["version"], trail["aliases"]) == (1, ["champion"])
    assert "champion" in trail["why"]
    assert trace(trail["run"])["parameters"]["pretrain.epochs"] == "2"
    assert any(line == "  md5: " + trail["data"]["md5"] for line in lines(trail))


def test_pull_replaces_an_encoder_but_no_files_of_somebody_else(project, tmp_path):
    out = pull.fetch("models:/small@champion", tmp_path / "out")
    (out / "code/simtrail/old.py").touch()
    pull.fetch("models:/small@champion", out)
    assert not (out / "code/simtrail/old.py").exists()
    for name in ("code/mine.py", "requirements.txt"):
        folder = tmp_path / name.partition(".")[0].replace("/", "-")
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("mine")
        with pytest.raises(InputError, match="is not of an encoder that was pulled before; name a new folder"):
            pull.fetch("models:/small@champion", folder)
        assert [path.name for path in folder.rglob("*") if path.is_file()] == [name.split("/")[-1]]


def test_an_unknown_version_has_no_trace(project):
    for uri in ("models:/small@best", "models:/small/99", "models:/none/1"):
        with pytest.raises(InputError, match=f"{uri}: "):
            trace(uri)


def test_an_alias_does_not_move_to_an_encoder_that_fails(copied, monkeypatch):
    def refuse(folder):
        raise InputError(f"{folder}: its features differ")

    monkeypatch.setattr("simtrail.tracking.registry.verify", refuse)
    with pytest.raises(InputError, match="its features differ"):
        register_another(label="right")
    aliases = client().get_registered_model("small").aliases
    assert {name: int(version) for name, version in aliases.items()} == {"champion": 1}


def test_pyfunc_predicts_on_arrays_without_pickle(project, monkeypatch):
    import mlflow

    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    client()
    model = mlflow.pyfunc.load_model("models:/small@champion")
    table = pd.read_parquet(ws.EMBEDDINGS)[:3]
    images = np.stack([read_image(f"data/demo/{path}") for path in table["path"]])
    np.testing.assert_allclose(model.predict(images), np.stack(table["vector"].to_list()), rtol=1e-3, atol=1e-4)
    assert not list(Path("mlruns").rglob("*.pkl"))


def test_an_unknown_model_is_an_input_error_that_lists_the_known(project):
    with pytest.raises(InputError, match=r"models:/smal@champion: .*the registry holds models:/small"):
        load_encoder("models:/smal@champion")


@pytest.mark.slow  # a pipeline of its own
def test_after_a_move_old_runs_are_read_and_new_ones_stay_inside(copied, trained):
    (run,) = all_runs()
    assert client().list_artifacts(run.info.run_id)
    assert run.info.artifact_uri.startswith(str(copied))
    load_encoder("models:/small@champion").embed(next((copied / "data/demo").rglob("*.tif")))
    before = sorted(trained.rglob("*"))
    write_params(copied, pretrain__seeds=[1])
    for verb in (stages.pretrain, stages.embed, stages.evaluate, stages.report, stages.register):
        verb()
    assert len(all_runs()) == 2
    assert sorted(trained.rglob("*")) == before
    assert json.loads(ws.REGISTRATION.read_text())["version"] == 2


def test_the_tracking_uri_overrides_and_is_relative_to_the_project(project, monkeypatch, tmp_path):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))  # as under dvc exp run --temp, which works in another folder
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///other.db")
    assert client().search_registered_models() == []
    assert (tmp_path / "other.db").exists()
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert client().search_registered_models() == []
    assert (tmp_path / "mlruns/mlflow.db").exists()


@pytest.mark.slow
def test_sigterm_ends_the_run_as_killed_and_a_rerun_continues_it(copied, monkeypatch):
    from simtrail.training.state import Checkpoints

    write_params(copied, pretrain__seeds=[2], pretrain__epochs=3, pretrain__checkpoint__every_steps=1)
    saved = Checkpoints.save

    def save_then_die(self, step, state):
        saved(self, step, state)
        if len(state["state"]["history"]) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Checkpoints, "save", save_then_die)
    with pytest.raises(SystemExit):
        stages.pretrain()
    killed = next(r for r in all_runs() if r.data.params["pretrain.seeds"] == "[2]")
    assert killed.info.status == "KILLED"
    monkeypatch.setattr(Checkpoints, "save", saved)
    stages.pretrain()
    again = next(r for r in all_runs() if r.data.params["pretrain.seeds"] == "[2]")
    assert again.info.run_id == killed.info.run_id
    assert again.info.status == "FINISHED"
    assert [m.step for m in client().get_metric_history(again.info.run_id, "curves/loss")] == [1, 2, 3]
    assert list(Path(".simtrail").iterdir())  # a kill before DVC has noted the encoder must not lose it
    stages.embed()
    assert not list(Path(".simtrail").iterdir())


def test_a_failure_ends_the_run_as_failed(copied, monkeypatch):
    write_params(copied, pretrain__batch_size=4096)
    with pytest.raises(InputError, match=r"pretrain\.batch_size = 4096"):
        stages.pretrain()
    assert sorted(r.info.status for r in all_runs()) == ["FAILED", "FINISHED"]


@pytest.mark.slow
def test_a_run_whose_process_was_killed_does_not_stay_running(copied):
    script = (
        "import os, json\nfrom simtrail.params import load_params\nfrom simtrail.tracking.run import Trail, run\n"
        "data = {'data_md5': 'x', 'recipe': {'background': [0]}}\n"
        "with run(Trail(load_params(), data), key='k'):\n    os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == -9
    assert "RUNNING" in {r.info.status for r in all_runs()}
    stages.register()
    assert {r.info.status for r in all_runs()} == {"FINISHED", "KILLED"}


@pytest.mark.slow
def test_two_processes_train_as_one_and_resume_after_one_of_them_has_died(copied):
    write_params(copied, pretrain__seeds=[4], pretrain__epochs=4, pretrain__precision="fp32",
                 pretrain__checkpoint__every_steps=1)  # fmt: skip
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "simtrail", "pretrain"]
    job = subprocess.Popen(launch, stderr=subprocess.PIPE, text=True)
    while not list(Path(".simtrail").rglob("step-*.pt")):
        assert job.poll() is None
        time.sleep(0.05)
    (second,) = [p for p in psutil.Process(job.pid).children() if p.environ().get("RANK") == "1"]
    second.kill()
    _, errors = job.communicate()
    assert job.returncode != 0
    assert "ended by SIGTERM; to continue from" in errors or "lost the connection to another one" in errors
    first = next(r for r in all_runs() if r.data.params["pretrain.seeds"] == "[4]")
    subprocess.run(launch, check=True)
    again = next(r for r in all_runs() if r.data.params["pretrain.seeds"] == "[4]")
    assert (again.info.run_id, again.info.status) == (first.info.run_id, "FINISHED")
    curve = client().get_metric_history(again.info.run_id, "curves/loss")
    assert [m.step for m in curve] == [1, 2, 3, 4]
    shutil.rmtree(".simtrail")
    write_params(copied, pretrain__seeds=[4], pretrain__epochs=4, pretrain__precision="fp32")
    stages.pretrain()
    alone = pd.read_csv(ws.HISTORY)["loss"]
    np.testing.assert_allclose([m.value for m in curve], alone, rtol=0.02)


@pytest.mark.slow
def test_twenty_kills_at_random_moments_change_nothing(copied, tmp_path):
    """kill -9 of `simtrail pretrain` from its first picture on, three times a run where it does not end before."""
    write_params(copied, pretrain__seeds=[3], pretrain__epochs=3, pretrain__checkpoint__every_steps=1)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(folder: Path) -> subprocess.Popen:
        shutil.rmtree(folder / "artifacts/pretrain", ignore_errors=True)
        return subprocess.Popen(
            [sys.executable, "-m", "simtrail", "pretrain"], cwd=folder, env=environment, stdout=subprocess.DEVNULL
        )

    def working(folder: Path, job: subprocess.Popen) -> float:
        while not (folder / "artifacts/pretrain/views.png").exists() and job.poll() is None:
            time.sleep(0.01)
        return time.monotonic()

    def outcome(folder: Path) -> tuple[str, list[tuple[str, list[int]]]]:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            runs = [r for r in all_runs() if r.data.params["pretrain.seeds"] == "[3]"]
            names = ("loss", "val_knn", "images_per_second")
            points = [[m.step for m in client().get_metric_history(runs[0].info.run_id, f"curves/{n}")] for n in names]
        weights = (folder / "artifacts/pretrain/encoder.safetensors").read_bytes()
        return hashlib.sha256(weights).hexdigest(), [(r.info.status, *points) for r in runs]

    shutil.copytree(copied, reference := tmp_path / "reference")
    start_time = working(reference, job := start(reference))
    assert job.wait() == 0
    seconds = time.monotonic() - start_time
    expected = outcome(reference)
    assert expected[1] == [("FINISHED", [1, 2, 3], [2, 3], [1, 2, 3])]
    rng = np.random.default_rng(0)
    kills = trial = 0
    while kills < 20:
        trial += 1
        shutil.copytree(copied, folder := tmp_path / str(trial))
        for _ in range(3):
            working(folder, job := start(folder))
            time.sleep(rng.uniform(0, seconds))
            job.kill()
            kills += job.wait() == -9
        assert start(folder).wait() == 0
        assert outcome(folder) == expected, f"trial {trial}"
        shutil.rmtree(folder)


@pytest.mark.slow
def test_two_processes_may_open_a_fresh_store_together(tmp_path):
    (tmp_path / "dvc.yaml").touch()
    script = "from simtrail.tracking.store import open_store; print(len(open_store().search_experiments()))"
    jobs = [subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, stdout=subprocess.PIPE) for _ in range(3)]
    assert [job.communicate()[0].strip() for job in jobs] == [b"1"] * 3


@pytest.mark.slow
def test_quarantine_drops_records_and_trains_on_the_rest(copied):
    bad = next((copied / "data/demo").rglob("*.tif"))
    bad.write_bytes(b"")
    relative = str(bad.relative_to(copied / "data/demo"))
    with pytest.raises(InputError, match="empty file"):
        stages.check()
    assert "empty file" in ws.VALIDATION_PAGE.read_text()
    with pytest.raises(InputError, match="the check failed"):
        stages.prepare()
    assert ws.STATISTICS.exists()  # the earlier result stays
    write_params(copied, check__on_fail="quarantine")
    stages.check()
    assert pd.read_csv(ws.QUARANTINE)["path"].tolist() == [relative]
    stages.prepare()
    assert len(pd.read_parquet(ws.SPLIT)) == 79
    assert relative not in set(pd.read_parquet(ws.SPLIT)["path"])


def test_warnings_name_a_crop_without_a_mask_few_groups_and_a_floor_that_is_not_beaten(copied, capsys):
    card = Path("data/demo/dataset.yaml")
    declared = yaml.safe_load(card.read_text())
    card.write_text(yaml.safe_dump({key: value for key, value in declared.items() if key != "mask"}))
    write_params(copied, prepare__mask="crop", prepare__background="auto")
    stages.prepare()
    printed = capsys.readouterr().out
    assert "prepare: warning: prepare.mask = 'crop': no effect: no mask band" in printed
    (background,) = re.findall(
        "prepare: background (.*), the usual value at the borders of the training images", printed
    )
    assert background == levels(json.loads(ws.STATISTICS.read_text())["recipe"]["background"])
    metrics = json.loads(ws.SCORES.read_text())
    task = metrics["tasks"]["species"]
    assert f"images of {task['groups']} groups, too few for reliable intervals" in score_lines(metrics)[0]
    task["groups"] = 240
    assert score_lines(metrics)[0].endswith("test images")
    recalls = {"recall_at_1": 0.5, "recall_back_at_1": 0.25, "chance_at_1": 0.0125}
    metrics["modalities"] = {"alone": {"uv": task["scores"]["knn"]}, "retrieval": {"rgb to uv": recalls}}
    lines = score_lines(metrics)
    assert "rgb to uv: recall at 1 0.500, back 0.250, by chance 0.013" in lines
    assert any(line.startswith("uv alone, linear probe") for line in lines)


def test_a_champion_below_its_floors_gives_a_warning(copied, capsys):
    metrics = json.loads(ws.SCORES.read_text())
    metrics["tasks"]["species"]["gains"]["raw_pixels"] = {"value": 0.0, "low": -0.1, "high": 0.1}
    ws.SCORES.write_text(json.dumps(metrics))
    stages.register()
    assert "register: warning: linear probe of species: " in capsys.readouterr().out


@pytest.mark.slow
def test_without_labels_only_label_free_measures_are_made(copied):
    card = copied / "data/demo/dataset.yaml"
    card.write_text("\n".join(x for x in card.read_text().splitlines() if not x.startswith("label")))
    for verb in VERBS:
        verb()
    metrics = json.loads(ws.SCORES.read_text())
    assert metrics["tasks"] == {}
    assert metrics["features"]["effective_rank"] > 1
    drawn = {p.stem for p in ws.FIGURES.glob("*.png")}
    kinds = ("explained_variance", "dimensions", "map", "map_thumbnails", "neighbours", "saliency", "importance")
    assert drawn == {*kinds, "spectra"}
    assert "no labels" in ws.CARD.read_text().lower()


def test_a_stage_refuses_what_was_made_with_other_settings(copied):
    later = (stages.pretrain, stages.embed, stages.evaluate, stages.report, stages.register)
    write_params(copied, data__name="moths")
    with pytest.raises(
        InputError, match=r"artifacts/check: made with data\.name = 'demo', not 'moths'; run simtrail check"
    ):
        stages.prepare()
    for stage in (*later, lambda: stages.preview(2, 0)):
        with pytest.raises(InputError, match=r"made with data\.name = 'demo', not 'moths'"):
            stage()
    write_params(copied, prepare__bands=["red", "green"], prepare__background=0.5)
    with pytest.raises(InputError, match=r"artifacts/prepare: made with prepare\.(bands|background) = .* and 1 more"):
        stages.pretrain()
    given = ["prepare.background=0.5"]  # not in params.yaml: the advice names it, and works
    write_params(copied, prepare__background=0.0)
    advice = "run simtrail prepare --set prepare.background=0.5 and the stages after it with the same --set"
    with pytest.raises(InputError, match=advice):
        stages.preview(2, 0, settings=given)
    stages.prepare(given)
    stages.preview(2, 0, settings=given)
    stages.prepare()
    write_params(copied, pretrain__temperature=0.5)
    for stage in later[1:]:
        with pytest.raises(InputError, match=r"artifacts/pretrain: made with pretrain\.temperature = 0\.2, not 0\.5"):
            stage()
    write_params(copied, pretrain__checkpoint__keep=7, evaluate__knn__k=3)
    stages.embed()


def test_what_decides_a_stage_is_what_dvc_watches():
    watched = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert watched.keys() == {"settings", *ws.DECIDING}
    for name in ws.DECIDING:
        assert f"artifacts/settings/{name}.json" in watched[name]["deps"]


def test_what_dvc_keeps_of_a_registration_does_not_depend_on_the_registry(copied, capsys):
    kept = ws.REGISTERED.read_bytes()
    summary()
    assert "small version 1 is champion (" in capsys.readouterr().out
    shutil.rmtree("mlruns")  # as in a clone that has pulled the artifacts
    summary()
    assert "does not have this encoder\n  register it  simtrail register" in capsys.readouterr().out
    register_another()  # another encoder comes first, so that the same encoder gets another version
    config = ws.ENCODER / "config.json"
    config.write_text(config.read_text().rstrip("\n") + "\n")
    stages.register()
    assert json.loads(ws.REGISTRATION.read_text())["version"] == 2
    assert ws.REGISTERED.read_bytes() == kept


@pytest.fixture
def recorded(copied) -> Callable[[], dict]:
    """That copy as a DVC project whose stages are all up to date; the function returns the stages that have changed."""
    from dvc.repo import Repo  # slow to import

    shutil.copytree(ROOT / "src", "src", ignore=shutil.ignore_patterns("__pycache__"))
    stages.settings()
    Repo.init(no_scm=True).commit(force=True)
    return lambda: Repo().status()


def test_a_change_of_code_reruns_the_stages_that_it_changes_and_no_other(recorded):
    assert recorded() == {}
    stages_that_run = {
        "report/figures/style.py": {"report"},
        "report/templates/page.css": {"report"},
        "report/validation.py": {"report"},
        "evaluation/structure.py": {"evaluate"},
        "downstream/fine_tune.py": {"evaluate"},
        "evaluation/classifiers.py": {"plan", "pretrain", "evaluate"},  # validation during training uses them
        "tracking/registry.py": {"register"},
        "pipeline/summary.py": set(),
    }
    for name, expected in stages_that_run.items():
        file = Path("src/simtrail", name)
        code = file.read_text()
        file.write_text(code + "\n")
        assert set(recorded()) == expected, name
        file.write_text(code)


@pytest.mark.slow
def test_a_new_colour_or_wording_reruns_report_and_register_only_and_takes_effect(recorded, monkeypatch):
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    before = {path: path.read_bytes() for path in (ws.FIGURES / "angles.png", ws.ENCODER / "training.png")}
    style = Path("src/simtrail/report/figures/style.py")
    style.write_text(style.read_text().replace("#0072B2", "#123456"))
    page = Path("src/simtrail/report/templates/validation.html.j2")
    page.write_text(page.read_text().replace("<h2>", "<h2>New: ", 1))
    command = [sys.executable, "-m", "dvc", "repro"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert re.findall("Running stage '(.+)'", output) == ["report", "register"]
    assert (ws.ENCODER / "training.png").read_bytes() != before[ws.ENCODER / "training.png"]
    assert "<h2>New: " in ws.VALIDATION_PAGE.read_text()
    assert recorded() == {}


def test_a_stage_without_its_input_says_which_to_run(copied):
    shutil.rmtree("artifacts/prepare")
    with pytest.raises(InputError, match="run the prepare stage first"):
        stages.pretrain()


def test_read_image_gives_the_file_as_it_is(project):
    image = read_image(next(Path("data/demo").rglob("*.tif")))
    assert image.shape == (7, 64, 64)
    assert image.dtype == np.uint8
