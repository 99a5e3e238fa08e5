from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from conftest import photographs

from simtrail.data.sources import image_files
from simtrail.errors import InputError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    photographs(tmp_path / "photos", classes=2, each=2)
    (tmp_path / "photos/.hidden").mkdir()
    (tmp_path / "photos/.hidden/a.png").write_bytes(b"")
    (tmp_path / "photos/notes.doc").write_text("no image")
    monkeypatch.chdir(tmp_path)
    return tmp_path


FILES = ["photos/class0/0.png", "photos/class0/1.png", "photos/class1/0.png", "photos/class1/1.png"]


def names(*given: str) -> list[str]:
    return [source.name for source in image_files(given)]


def test_folders_files_and_patterns_give_their_images_once_and_in_order(folder):
    assert names("photos") == FILES
    assert names("photos/class1", "photos") == [*FILES[2:], *FILES[:2]]
    assert names("photos/**/1.png") == [FILES[1], FILES[3]]
    assert names(f"{folder}/photos/*/1.png") == [f"{folder}/{FILES[1]}", f"{folder}/{FILES[3]}"]
    assert names("photos/class0/?.png", "photos/class0/0.png") == FILES[:2]


def test_names_in_lists_and_tables_are_kept_and_found_beside_them_in_images_or_here(folder):
    (folder / "photos/list.txt").write_text("class0/1.png\n\nphotos/class1/0.png\n")
    assert image_files("photos/list.txt") == [
        ("class0/1.png", Path("photos/class0/1.png")),
        ("photos/class1/0.png", Path("photos/class1/0.png")),
    ]
    (folder / "photos/class0").rename(folder / "photos/images")
    for suffix, write in ((".csv", pd.DataFrame.to_csv), (".xlsx", pd.DataFrame.to_excel)):
        table = pd.DataFrame({"species": ["a", "b", "c"], "Path": ["1.png", "class1\\0.png", "gone.png"]})
        write(table, folder / f"photos/t{suffix}", index=False)
        found = image_files(f"photos/t{suffix}")
        assert [source.name for source in found] == table["Path"].to_list()
        assert [source.path.exists() for source in found] == [True, True, False]


def test_a_list_may_name_files_whose_names_are_not_utf8(folder):
    odd = b"photos/\xe9.png".decode(errors="surrogateescape")
    Path("photos/class0/0.png").rename(odd)
    Path("list.txt").write_bytes(b"photos/\xe9.png\n")
    (found,) = image_files("list.txt")
    assert found.path.exists()


def test_two_tables_with_the_same_names_for_different_files_keep_them_apart(folder):
    for c in "01":
        (folder / f"photos/class{c}/list.txt").write_text("0.png\n")
    found = image_files(["photos/class0/list.txt", "photos/class1/list.txt"])
    assert [source.name for source in found] == ["photos/class0/0.png", "photos/class1/0.png"]


def test_what_names_no_image_is_refused_with_a_reason(folder):
    (folder / "t.csv").write_text("file,species\na.png,x\n")
    (folder / "empty").mkdir()
    for given, reason in (
        ("t.csv", "no column 'path'; it has file, species"),
        ("empty", "no image in it"),
        ("photos/*.jpg", "no image fits this pattern"),
        ("gone.png", "gone.png: no such file or folder"),
    ):
        with pytest.raises(InputError, match=reason):
            image_files(given)
