from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from conftest import photographs, rgb_config
from typer.testing import CliRunner

from simtrail.cli import app
from simtrail.downstream.head import Head
from simtrail.model.encoder import Encoder
from simtrail.tracking.pull import encoder_hash


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("use")
    Encoder(rgb_config({"pretrain.encoder.model": "test_resnet"})).save(folder / "encoder")
    photographs(folder / "photos")
    (folder / "photos/class1/bad.png").write_bytes(b"damaged")
    return folder


@pytest.fixture
def folder(made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path / "a")
    monkeypatch.chdir(tmp_path / "a")
    return tmp_path / "a"


def run(*arguments: str):
    return CliRunner().invoke(app, [*arguments])


def test_embed_with_an_encoder_writes_features_and_tells_of_bad_files_by_its_exit_code(folder):
    result = run("embed", "encoder", "photos", "-o", "v.parquet")
    assert result.exit_code == 3
    assert result.output == ("embed: 36 images: v.parquet\nembed: 1 files could not be read: v.rejected.csv\n")
    about = json.loads(pq.read_schema("v.parquet").metadata[b"simtrail"])
    assert about["model"] == "encoder"
    assert about["encoder_sha256"] == encoder_hash(folder / "encoder")
    assert run("embed", "encoder", "photos/class0", "-o", "w.npy").exit_code == 0
    assert len(np.load("w.npy")) == 12


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["encoder"], "must be: simtrail embed URI PATH… --out FILE"),
        (["encoder", "photos"], "must be: simtrail embed URI PATH… --out FILE"),
        (["encoder", "photos", "-o", "v.npy", "--set", "embed.batch_size=2"], "--set is only for the stage"),
        (["--out", "v.npy"], "need an encoder"),
        (["encoder", "photos", "-o", "v.txt"], "must end in .parquet, .npy or .csv"),
        (["photos", "photos", "-o", "v.npy"], "or a folder with encoder.safetensors"),
        (["encoder", "photos", "-o", "v.npy", "--strict"], "bad.png"),
        (["encoder", "photos", "-o", "v.npy", "--modality", "uv"], "modality = 'uv'"),
    ],
)
def test_embed_refuses_what_it_can_not_do(folder, arguments, reason):
    assert reason in str(run("embed", *arguments).exception)
    assert not (folder / "v.npy").exists()


def test_classify_labels_the_images_of_a_folder_and_makes_a_page_to_review_them(folder):
    paths = [f"photos/class{c}/{i}.png" for c in range(3) for i in range(8)]
    pd.DataFrame({"path": paths, "label": [p[7:13] for p in paths]}).to_csv("labels.csv", index=False)
    result = run("classify", "encoder", "labels.csv", "photos", "--error", "0.2", "--suggest", "4")
    assert result.exit_code == 3
    assert "24 labelled images of 3 classes: accuracy" in result.output
    assert "of 12 images get a label" in result.output
    table = pd.read_csv("classified/predictions.csv")
    assert len(table) == 36
    assert table["given"].notna().sum() == 24
    page = (folder / "classified/sheet.html").read_text()
    assert page.count('class="big"') == 12 + 4
    suggested = pd.read_csv("classified/suggested.csv")
    assert len(suggested) == 4
    head = Head.load(folder / "classified")
    assert head.about["encoder_sha256"] == encoder_hash(folder / "encoder")
    features = pd.read_parquet("classified/features.parquet").set_index("path")["vector"]
    row = table.iloc[0]
    p = head.probabilities(np.stack([features[row["path"]]]))
    assert head.names[int(p.argmax())] == row["predicted"]
    assert abs(p.max() - row["probability"]) < 1e-4


def test_a_second_round_of_labels_computes_no_features_again(folder, monkeypatch):
    paths = [f"photos/class{c}/{i}.png" for c in range(3) for i in range(6)]
    labels = pd.DataFrame({"path": paths, "label": [p[7:13] for p in paths]})
    labels.iloc[::2].to_csv("labels.csv", index=False)
    first = run("classify", "encoder", "labels.csv", "photos")
    assert "an error of 5% needs labelled images of at least 19 groups; use no prediction yet" in first.output
    monkeypatch.setattr(Encoder, "stream", lambda *_: pytest.fail("features are there"))
    labels.to_csv("labels.csv", index=False)
    assert "18 labelled images" in run("classify", "encoder", "labels.csv", "photos").output
