from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from simtrail.cli import app
from simtrail.tracking.pull import encoder_hash


def run(*arguments: str):
    return CliRunner().invoke(app, [*arguments])


def test_embed_with_an_encoder_writes_features_and_tells_of_bad_files_by_its_exit_code(folder):
    result = run("embed", "encoder", "photos", "-o", "v.parquet")
    assert result.exit_code == 3
    assert re.fullmatch(
        "embed: 36 images: v.parquet\n1 file can't be read, such as photos/class1/bad.png: .*; all: v.rejected.csv\n",
        result.output,
    )
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


def test_search_clusters_and_outliers_write_a_table_and_a_page_with_every_picture(folder):
    for arguments, name, pictures in (
        (["search", "--query", "photos/class0/1.png", "--query", "photos/class2/5.png", "--top", "3"], "found", 2 * 4),
        (["cluster", "--clusters", "3"], "clusters", 36),
        (["outliers", "--top", "5"], "outliers", 5),
    ):
        result = run(arguments[0], "encoder", "photos", *arguments[1:], "-o", "out")
        assert result.exit_code == 3, result.exception
        assert "all: out/features.rejected.csv" in result.output
        page = (folder / f"out/{name}.html").read_text()
        assert page.count("data:image/jpeg") == pictures
        assert "http" not in page
    found = pd.read_csv("out/found.csv")
    assert found["path"].str[:12].to_list() == ["photos/class"] * 6
    assert not found["path"].isin(["photos/class0/1.png", "photos/class2/5.png"]).any()
    assert len(pd.read_csv("out/clusters.csv")) == len(pd.read_csv("out/outliers.csv")) == 36


def test_copies_are_found_in_sets(folder):
    shutil.copy("photos/class0/1.png", "photos/class2/copy.png")
    with Image.open("photos/class0/1.png") as image:
        image.save("photos/class2/other.bmp")
    result = run("duplicates", "encoder", "photos", "-o", "out")
    assert result.exit_code == 3, result.exception
    table = pd.read_csv("out/duplicates.csv")
    assert (table["set"] == 1).all()
    assert set(table["path"]) | set(table["copy"]) == {
        f"photos/class{p}" for p in ("0/1.png", "2/copy.png", "2/other.bmp")
    }
    assert sorted(table["kind"]) == ["exact", "near"]
    assert "set 1: 3 images" in (folder / "out/duplicates.html").read_text()


def test_the_map_has_all_images_by_folder_and_cluster(folder, monkeypatch):
    monkeypatch.setattr("simtrail.evaluation.structure.map_coordinates", lambda x, seed: (np.arange(len(x)), x[:, :2]))
    result = run("explore", "encoder", "photos", "-o", "out")
    assert result.exit_code == 3, result.exception
    text = (folder / "out/map.html").read_text()
    data = json.loads(re.search(r"const data = (\{.*?\}), atlas", text)[1])
    assert list(data["columns"]) == ["folder", "cluster", "distance to the images most like it", "path"]
    assert data["columns"]["folder"]["names"] == ["class0", "class1", "class2"]
    assert len(data["points"]) == 36


def test_an_encoder_is_exported_and_traced(folder):
    assert run("export", "encoder", "out", "--format", "timm").output == "export: encoder as timm: out\n"
    assert (folder / "out/model.safetensors").exists()
    assert "must be one of folder" in str(run("export", "encoder", "out2", "--format", "tf").exception)
    run("embed", "encoder", "photos/class0", "-o", "v.npy")
    for what, name in (("encoder", "folder"), ("v.npy", "file")):
        tree = json.loads(run("trace", what, "--json").output)
        assert tree[name] == what
    assert tree["made"]["encoder_sha256"] == encoder_hash(folder / "encoder")
    assert "no trail.json" in run("trace", "encoder").output
