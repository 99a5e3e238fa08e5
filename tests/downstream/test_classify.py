from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from conftest import blobs

from simtrail.downstream.classify import classify, read_labels
from simtrail.errors import InputError


def test_every_image_has_a_prediction_the_most_doubtful_first():
    x, y = blobs(300, spread=0.8)
    paths = [f"{i}.png" for i in range(300)]
    labelled = np.arange(0, 300, 3)
    result = classify(paths, x, labelled, y[labelled], labelled, 0.05, suggest=10)
    table = result.table
    assert sorted(table["path"]) == sorted(paths)
    free = table[table["given"].isna()]
    assert (table.index[: len(free)] == free.index).all()
    assert free["probability"].is_monotonic_increasing
    truth = pd.Series(y, paths)
    assert (free["predicted"] == truth[free["path"]].to_numpy()).mean() > 0.8
    used = free[free["use"]]
    assert (used["predicted"] == truth[used["path"]].to_numpy()).mean() > (
        free["predicted"] == truth[free["path"]].to_numpy()
    ).mean()
    assert (free["second"] != free["predicted"]).all()
    given = table[table["given"].notna()]
    assert (given["given"] == truth[given["path"]].to_numpy()).all()
    assert set(table["nearest_1"]) <= {paths[i] for i in labelled}
    assert len(result.suggested) == 10
    assert set(result.suggested) <= set(free["path"])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    for name in "abc":
        (tmp_path / f"photos/{name}.png").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder, text: str):
    (folder / "labels.csv").write_text(text)
    return folder / "labels.csv"


def test_labels_are_read_with_groups_and_without_empty_rows(folder):
    path = write(folder, "Path,species,specimen\na.png,x,1\nb.png,,1\nphotos/c.png,y,\n")
    found = read_labels(path, [folder / "photos"], "species", "specimen")
    assert [source.name for source in found.sources] == ["a.png", "photos/c.png"]
    assert [source.path.name for source in found.sources] == ["a.png", "c.png"]
    assert found.labels.tolist() == ["x", "y"]
    assert len(set(found.groups)) == 2
    only = write(folder, "path,species\nphotos/a.png,x\nphotos/b.png,x\n")
    assert read_labels(only).labels.tolist() == ["x", "x"]


def test_mistakes_in_a_table_of_labels_are_named(folder):
    for text, options, reason in (
        ("path,a,b\n", {}, "which column has the labels? --label a or b"),
        ("path,a\nphotos/a.png,x\n", {"label": "kind"}, r"no column 'kind' \(--label\); it has path, a"),
        ("file,label\nphotos/a.png,x\n", {}, "no column 'path'"),
        ("path,label\ngone.png,x\n", {}, "1 of its paths name no file: gone.png"),
        ("path,label\nphotos/a.png,x\nphotos/../photos/a.png,y\n", {}, "photos/../photos/a.png: listed twice"),
        ("path,mm\nphotos/a.png,3\nphotos/b.png,x\n", {"target": "number"}, "column 'mm': no numbers: 'x'"),
        ("path,label\nphotos/a.png,x\n", {"target": "sort"}, "--target sort: must be one of class, tags, number"),
    ):
        with pytest.raises(InputError, match=reason.replace("?", r"\?")):
            read_labels(write(folder, text), **options)
