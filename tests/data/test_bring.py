from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, photographs

from simtrail.data import bring
from simtrail.data.dataset import Dataset
from simtrail.errors import InputError


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty project with DVC, and a folder of the user's images beside it."""
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    from dvc.repo import Repo

    Repo.init(no_scm=True)
    photographs(tmp_path / "mine", classes=2, each=3)
    return tmp_path


def files(name: str) -> set[str]:
    root = bring.DATA / name
    return {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()}


def test_class_folders_are_copied_under_images_and_versioned(project):
    (project / "mine/notes.txt").write_text("x")
    (project / "mine/.hidden").write_text("x")
    added = bring.add(project / "mine", "moths", None, None, link=False)
    assert added.images == {".png": 6}
    assert {(file.kind, file.path.name) for file in added.left_out} == {("other", "notes.txt"), ("hidden", ".hidden")}
    assert "images/class0/0.png" in files("moths")
    recorded = yaml.safe_load((project / "project/data.dvc").read_text())["outs"][0]
    assert recorded["path"] == "data"
    assert recorded["nfiles"] == 6


@pytest.mark.parametrize("has_images_folder", [True, False])
def test_the_table_is_taken_unchanged_and_its_columns_are_declared(project, has_images_folder):
    source = project / "mine"
    prefix = ""
    if has_images_folder:
        (source / "images").mkdir()
        for folder in ("class0", "class1"):
            (source / folder).rename(source / "images" / folder)
        prefix = "images/"
    table = f"path,genus,id\n{prefix}class0/0.png,A,1\n{prefix}class1/1.png,B,2\n"
    (source / "metadata.csv").write_text(table)
    bring.add(source, "moths", "genus", "id", link=False)
    assert (bring.DATA / "moths/metadata.csv").read_text() == table
    found = Dataset(bring.DATA / "moths").table().dropna(subset="label")
    assert found["path"].tolist() == ["images/class0/0.png", "images/class1/1.png"]
    assert yaml.safe_load((bring.DATA / "moths/dataset.yaml").read_text()) == {"label": "genus", "group": "id"}


@pytest.mark.slow
def test_links_share_the_bytes(project):
    bring.add(project / "mine", "moths", None, None, link=True)
    assert (bring.DATA / "moths/images/class0/0.png").samefile(project / "mine/class0/0.png")


def test_links_to_folders_are_followed_but_not_in_a_ring(project):
    (project / "elsewhere").mkdir()
    for i in range(2):
        (project / f"mine/class1/{i}.png").rename(project / f"elsewhere/{i}.png")
    (project / "mine/linked").symlink_to(project / "elsewhere")
    (project / "mine/class0/ring").symlink_to(project / "mine")
    added = bring.add(project / "mine", "moths", None, None, link=False)
    assert added.images == {".png": 6}
    assert {"images/linked/0.png", "images/linked/1.png"} <= files("moths")
    assert [(file.kind, file.path.name) for file in added.left_out] == [("link", "ring")]


def test_broken_links_are_named_and_left_out(project):
    (project / "mine/class0/gone.png").symlink_to("/nowhere.png")
    added = bring.add(project / "mine", "moths", None, None, link=False)
    assert added.images == {".png": 6}
    assert "\n".join(bring.add_lines("moths", added)) == (
        "data/moths: 6 images: 6 .png\nleft out: 1 file: 1 unreadable\n"
        f"  {project}/mine/class0/gone.png: broken link to /nowhere.png"
    )


@pytest.mark.parametrize(
    ("label", "sheet", "message"),
    [
        (
            "species",
            "path,genus\nclass0/0.png,A\n",
            r"mine/metadata\.csv: no column 'species', which --label names; it has path, genus",
        ),
        ("genus", None, r"--label and --group name columns of .*mine/metadata\.csv, which does not exist"),
    ],
)
def test_a_wrong_column_is_refused_and_nothing_is_left_behind(project, label, sheet, message):
    if sheet:
        (project / "mine/metadata.csv").write_text(sheet)
    with pytest.raises(InputError, match=message):
        bring.add(project / "mine", "moths", label, None, link=False)
    assert not (bring.DATA / "moths").exists()
    assert not (project / "project/data.dvc").exists()


def test_a_missing_folder_an_empty_folder_and_a_used_name_are_refused(project):
    with pytest.raises(InputError, match="no such folder"):
        bring.add(project / "none", "moths", None, None, link=False)
    (project / "empty").mkdir()
    with pytest.raises(InputError, match="no image in it"):
        bring.add(project / "empty", "moths", None, None, link=False)
    bring.add(project / "mine", "moths", None, None, link=False)
    with pytest.raises(InputError, match="already exists"):
        bring.add(project / "mine", "moths", None, None, link=False)
    with pytest.raises(InputError, match="--name 'my moths/1': must not be empty, and must have only letters"):
        bring.add(project / "mine", "my moths/1", None, None, link=False)


def record(md5: str) -> None:
    """A data.dvc, as in a clone: the data that it records is not here."""
    Path("data.dvc").write_text(yaml.safe_dump({"outs": [{"md5": md5, "hash": "md5", "path": "data"}]}))


def test_recorded_data_that_is_missing_stays_recorded(project):
    record("0123456789abcdef0123456789abcdef.dir")
    with pytest.raises(InputError, match=r"first bring the data with `dvc remote add` and `dvc pull data\.dvc`"):
        bring.add(project / "mine", "moths", None, None, link=False)
    assert not bring.DATA.exists()
    subprocess.run([sys.executable, "-m", "dvc", "remote", "add", "--default", "r", str(project / "r")], check=True)
    with pytest.raises(InputError, match=r"first bring the data with `dvc pull data\.dvc`"):
        bring.add(project / "mine", "moths", None, None, link=False)


def test_in_a_fresh_clone_the_demo_need_not_be_made(project):
    assert yaml.safe_load((ROOT / "data.dvc").read_text())["outs"][0]["md5"] == bring.DEMO
    record(bring.DEMO)
    bring.add(project / "mine", "moths", None, None, link=False)
    assert yaml.safe_load(Path("data.dvc").read_text())["outs"][0]["nfiles"] == 6
    photographs(project / "more", classes=2, each=3, size=(30, 20))
    bring.add(project / "more", "bees", None, None, link=False)
    assert yaml.safe_load(Path("data.dvc").read_text())["outs"][0]["nfiles"] == 12


def test_outside_a_dvc_project_the_message_names_the_command_that_starts_one(project, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"not a DVC project; .* simtrail init FOLDER"):
        bring.add(project / "mine", "moths", None, None, link=False)


def test_the_message_about_missing_data_names_the_command_that_brings_it(project):
    with pytest.raises(InputError, match=r"simtrail data add PATH --name moths"):
        bring.fetch("moths")


@pytest.mark.slow
def test_a_clone_without_data_gets_it_from_the_remote(project):
    def dvc(*words: str) -> None:
        subprocess.run([sys.executable, "-m", "dvc", *words, "-q"], check=True)

    bring.add(project / "mine", "moths", None, None, link=False)
    dvc("remote", "add", "--default", "share", str(project / "share"))
    dvc("push")
    before = files("moths")
    for folder in ("data", ".dvc/cache"):
        subprocess.run(["rm", "-r", folder], check=True)
    bring.fetch("moths")
    assert files("moths") == before
