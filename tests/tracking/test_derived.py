from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from conftest import photographs, rgb_config
from typer.testing import CliRunner

import simtrail
from simtrail.cli import app
from simtrail.errors import InputError
from simtrail.model.encoder import Encoder
from simtrail.tracking import bundle
from simtrail.tracking.derived import import_folder
from simtrail.tracking.store import open_store
from simtrail.tracking.trace import trace

TRAIL = {
    "name": "moths",
    "run": "abc",
    "code": {"commit": "123", "uncommitted changes": False},
    "data": {"dataset": "moths", "md5": "4f.dir", "checks": "passed, 0 warnings"},
    "environment": {},
    "parameters": {"pretrain.epochs": 3},
    "scores": {"linear_probe/accuracy": 0.5},
}


def run(*arguments: str):
    return CliRunner().invoke(app, [*arguments])


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project with a pulled encoder, and a head that is registered as models:/colours/1."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "dvc.yaml").write_text("stages: {}\n")
    Encoder(rgb_config({"pretrain.encoder.model": "test_resnet"})).save(folder / "trained")
    bundle.bundle(folder / "trained", "# moths\n", TRAIL, folder / "encoder")
    photographs(folder / "photos")
    paths = [f"photos/class{c}/{i}.png" for c in range(3) for i in range(8)]
    pd.DataFrame({"path": paths, "label": [p[7:13] for p in paths]}).to_csv(folder / "labels.csv", index=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        done = run("classify", "encoder", "labels.csv", "photos", "--error", "0.2", "--register", "colours")
        assert done.exit_code == 0, done.exception
        assert "registered models:/colours/1: use it with simtrail predict" in done.output
    return folder


@pytest.fixture(autouse=True)
def _there(project, monkeypatch):
    monkeypatch.chdir(project)


def test_a_head_is_registered_once_with_its_scores_and_lineage(project):
    again = run("classify", "encoder", "labels.csv", "photos", "--error", "0.2", "--register", "colours")
    assert "models:/colours/1" in again.output
    version = open_store().get_model_version("colours", "1")
    assert {"head_sha256", "encoder_sha256", "metric.score"} <= version.tags.keys()
    assert "Predicts one class per image" in version.description
    tree = trace("models:/colours/1")
    assert tree["labels"]["images"] == 24
    assert tree["labels"]["column"] == "label"
    assert tree["encoder"]["data"]["md5"] == "4f.dir"
    assert mlflow.get_run(tree["run"]).data.metrics["score"] == tree["scores"]["score"]


def test_images_go_in_and_labels_come_out_of_the_registered_head(project):
    expected = pd.read_csv("classified/predictions.csv").set_index("path")
    table = simtrail.load_predictor("models:/colours/1").predict("photos")
    pd.testing.assert_series_equal(table["predicted"], expected.loc[table.index, "predicted"])
    done = run("predict", "models:/colours/1", "photos", "-o", "new")
    assert done.output.startswith("predict: 36 images: ")
    written = pd.read_csv("new/predictions.csv").set_index("path")
    pd.testing.assert_frame_equal(written, expected.loc[written.index, [*written]], check_dtype=False)
    images = np.stack([simtrail.read_image(path) for path in table.index[:4]])
    open_store()
    served = mlflow.pyfunc.load_model("models:/colours/1").predict(images)
    assert served["predicted"].tolist() == table["predicted"].tolist()[:4]
    features = simtrail.load_encoder("models:/colours/1").embed(images)
    np.testing.assert_allclose(features, simtrail.load_encoder("encoder").embed(images), atol=1e-6)


def test_the_folder_of_classify_predicts_with_its_encoder_only(project, tmp_path):
    refused = run("predict", "classified", "photos", "-o", "classified").exception
    assert "classified: has what simtrail classify or finetune made; name another folder" in str(refused)
    for command in (["classify", "encoder", "labels.csv", "photos"], ["outliers", "encoder", "photos"]):
        assert "encoder: is the folder of a pulled encoder" in str(run(*command, "-o", "encoder").exception)
    refused = run("finetune", "encoder", "photos", "-o", "classified").exception
    assert "classified: has what simtrail classify made; name another folder" in str(refused)
    refused = str(run("reproduce", "classified").exception)
    assert "classified: predicts labels; only its encoder can be reproduced: simtrail reproduce encoder" in refused
    assert trace("classified")["made"]["learned"]["labelled images"] == 24
    assert trace("classified")["made"]["labels"].startswith("labels.csv, column label, 24 images, sha256 ")
    assert run("predict", "classified", "photos/class1", "-o", "new").output.startswith("predict: 12 images: ")
    assert "an encoder without a head" in str(run("predict", "encoder", "photos").exception)
    shutil.copytree("classified", tmp_path / "other")
    tree = json.loads((tmp_path / "other/head.json").read_text())
    tree["about"]["encoder_sha256"] = "0"
    (tmp_path / "other/head.json").write_text(json.dumps(tree))
    message = str(run("predict", str(tmp_path / "other"), "photos").exception)
    assert "learned with another encoder than encoder is now" in message


def test_a_pulled_folder_is_imported_once_with_its_trail(project, tmp_path, monkeypatch):
    verified = []
    monkeypatch.setattr("simtrail.tracking.derived.verify", verified.append)  # it takes seconds, see test_bundle
    name, version, alias = import_folder(project / "encoder", None)
    assert (name, version, alias) == ("moths", 1, "champion")
    assert verified == [project / "encoder"]
    assert import_folder(project / "encoder", None) == ("moths", 1, "champion")
    found = open_store().get_model_version("moths", "1")
    assert found.tags["data_md5"] == "4f.dir"
    assert mlflow.get_run(found.run_id).data.params == {"pretrain.epochs": "3"}
    assert trace("models:/moths@champion")["parameters"] == {"pretrain.epochs": 3}
    other = Encoder(rgb_config({"pretrain.encoder.model": "test_resnet"}))
    other.save(tmp_path / "trained")
    bundle.bundle(tmp_path / "trained", "# moths\n", TRAIL, tmp_path / "encoder")
    assert import_folder(tmp_path / "encoder", None) == ("moths", 2, "challenger")
    assert simtrail.load_predictor("models:/colours/1").head.names == ["class0", "class1", "class2"]
    run("pull", "models:/colours/1", "--out", str(tmp_path / "colours"))
    assert "import: models:/again/1\n" in run("import", str(tmp_path / "colours"), "--name", "again").output
    (tmp_path / "colours/head.json").write_text("{}")
    with pytest.raises(InputError, match=r"head.json: changed since"):
        import_folder(tmp_path / "colours", "again")
    for uri, reason in (
        (
            "models:/moths@best",
            r"alias best not found; the registry holds models:/moths@challenger, models:/moths@champion",
        ),
        ("models:/moth/1", "the registry holds .*models:/colours/1.*models:/moths@champion"),
        ("models:/moths", "must look like models:/NAME@champion or models:/NAME/VERSION"),
    ):
        with pytest.raises(InputError, match=reason):
            simtrail.load_encoder(uri)
    shutil.copy("classified/head.json", tmp_path / "encoder")
    with pytest.raises(InputError, match=r"head.json: is not of this encoder; pull it again to a new folder"):
        import_folder(tmp_path / "encoder", "other")
    (tmp_path / "encoder/head.json").unlink()
    assert "is a file; name a new folder" in str(run("pull", "models:/moths/1", "--out", "labels.csv").exception)
    with pytest.raises(InputError, match="colours: is the name of classifiers, not of encoders; choose another name"):
        import_folder(tmp_path / "encoder", "colours")
    with pytest.raises(InputError, match="must be a folder that simtrail pull, or simtrail export"):
        import_folder(project / "trained", None)


def test_a_fine_tuned_encoder_is_registered_as_a_child_with_its_curve(project, monkeypatch):
    monkeypatch.setattr("simtrail.downstream.fine_tune.LEAST_STEPS", 60)
    monkeypatch.setattr("simtrail.downstream.fine_tune._is_better", lambda right, before: True)  # of easy images
    done = run("finetune", "encoder", "photos", "--epochs", "2", "--error", "0.4", "-o", "tuned", "--register", "tuned")
    assert done.exit_code == 0, done.exception
    assert re.search(r": accuracy [\d.]+ \([\d.]+ – [\d.]+\) on \d+ test images\n", done.output)
    assert "on frozen features:" in done.output
    assert "not shown to be better than simtrail classify encoder photos PATH…, which learns from all" in done.output
    assert "warning:" not in done.output
    assert "registered models:/tuned/1" in done.output
    refused = run("finetune", "encoder", "photos", "-o", "encoder").exception
    assert "encoder: is the folder of a pulled encoder; name another with --out" in str(refused)
    refused = run("classify", "encoder", "photos", "photos", "-o", "tuned").exception
    assert "tuned: has what simtrail finetune made; name another folder" in str(refused)
    assert "tuned: predicts labels; only its encoder can be reproduced: simtrail reproduce models:/moths/1" in str(
        run("reproduce", "tuned").exception
    )
    shutil.copytree("tuned", "older", dirs_exist_ok=True)
    head = json.loads(Path("older/head.json").read_text())
    del head["about"]["parent_sha256"]
    Path("older/head.json").write_text(json.dumps(head))
    assert str(run("reproduce", "older").exception).endswith("only its encoder can be reproduced")
    tree = trace("tuned")
    assert tree["learned"]["names"] == ["class0", "class1", "class2"]
    assert tree["labels"].startswith("photos, column label, 36 images, sha256 ")
    assert tree["encoder"]["data"]["md5"] == "4f.dir"
    for name, reason in (("moths", "moths: is the name of encoders, not of classifiers"), ("a/b", "has no / and no :")):
        refused = run("finetune", "encoder", "photos", "--register", name).exception
        assert reason in str(refused)
    assert run("predict", "tuned", "photos", "-o", "new").output.startswith("predict: 36 images: ")
    tree = trace("models:/tuned/1")
    assert tree["encoder"]["model"] == "encoder"
    assert tree["encoder"]["data"]["md5"] == "4f.dir"
    assert tree["settings"]["kind"] == "finetune"
    metrics = mlflow.get_run(tree["run"]).data.metrics
    assert {"curves/loss", "curves/val_accuracy", "gain", "frozen"} <= metrics.keys()
    tuned = simtrail.load_encoder("models:/tuned/1").embed("photos/class0")
    assert not np.allclose(tuned, simtrail.load_encoder("encoder").embed("photos/class0"))
    assert simtrail.load_predictor("models:/tuned/1").predict("photos")["predicted"].nunique() > 1
