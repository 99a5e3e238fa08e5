from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
from conftest import DATASETS, photographs, with_changes
from PIL import Image

from simtrail.data.checking.checks import validate
from simtrail.data.dataset import Dataset
from simtrail.data.manifest import scan
from simtrail.errors import InputError

CHECK = with_changes({"check.min_side": 16, "check.max_side": 16384, "check.min_images_per_class": 5}).check
RNG = np.random.default_rng(1)


def checked(folder: Path, **declared):
    dataset = Dataset(folder)
    manifest, _ = scan(dataset)
    return validate(manifest, CHECK, dataset.declaration.model_copy(update=declared))


def noise(height: int = 20, width: int = 24) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_unusable(folder: Path) -> dict[str, str]:
    """Writes 60 unusable files into an image folder; returns path → a part of the expected reason."""
    folder.mkdir(parents=True, exist_ok=True)
    good = next(folder.glob("*.png")).read_bytes()
    expected = {}

    def write(name: str, data: bytes, reason: str) -> None:
        (folder / name).write_bytes(data)
        expected[f"images/{folder.name}/{name}"] = reason

    for i in range(6):
        complete = folder / "whole.jpg"
        Image.fromarray(noise(40, 40)).save(complete)
        write(f"truncated {i}.jpg", complete.read_bytes()[: 300 + 100 * i], "truncated")
        complete.unlink()
        write(f"null{i}.png", b"", "empty file")
        write(f"notiz-ü{i}.png", f"this is text {i}".encode(), "not an image")
        for name, size in ((f"dot{i}.png", (1, 1)), (f"стрічка {i}.png", (1, 20000))):
            Image.fromarray(noise(*size)).save(folder / name)
            expected[f"images/{folder.name}/{name}"] = "height 1 px, must be 16 to 16384 px"
        deep = RNG.normal(size=(3, 20, 24)).astype(np.float32)
        deep[i % 3, i, i] = (np.nan, np.inf, -np.inf)[i % 3]
        tifffile.imwrite(folder / f"nan{i}.tif", deep, photometric="minisblack", planarconfig="separate")
        expected[f"images/{folder.name}/nan{i}.tif"] = "NaN or Inf"
        Image.fromarray(noise()).save(folder / f"secret{i}.png")
        (folder / f"secret{i}.png").chmod(0)
        expected[f"images/{folder.name}/secret{i}.png"] = "no permission"
        (folder / f"broken{i}.png").symlink_to(f"/nowhere/{i}.png")
        expected[f"images/{folder.name}/broken{i}.png"] = "broken link"
        Image.fromarray(np.full((20, 24, 3), 7 * i, np.uint8)).save(folder / f"flat{i}.png")
        expected[f"images/{folder.name}/flat{i}.png"] = "every pixel is"
    other = folder.parent / "class1"
    for i, path in enumerate(sorted(other.glob("*.png"))[:6]):
        write(f"copy{i}.png", path.read_bytes(), f"same bytes as images/class1/{path.name}, under another label")
        expected[f"images/class1/{path.name}"] = f"same bytes as images/{folder.name}/copy{i}.png, under another label"
    assert good
    return expected


def test_each_of_sixty_unusable_files_is_named_with_its_reason(tmp_path):
    photographs(tmp_path / "images", each=20)
    expected = write_unusable(tmp_path / "images" / "class0")
    assert len(expected) == 60 + 6
    findings, rejected = checked(tmp_path)
    assert set(rejected) == set(expected)
    for path, reason in expected.items():
        assert reason in rejected[path], path
    assert {f.title for f in findings if f.success} >= {
        "every image has 3 bands",
        "all files agree on names, wavelengths, bad bands and scale of their bands",
        "every image has a label",
        "every class has 5 images or more",
    }


def test_a_good_dataset_passes_every_check(tmp_path):
    photographs(tmp_path / "images")
    findings, rejected = checked(tmp_path)
    assert not rejected
    assert all(f.success for f in findings)


def test_duplicates_in_one_class_small_classes_and_missing_labels_are_warnings(tmp_path):
    photographs(tmp_path / "images", each=6)
    shutil.copy(tmp_path / "images/class0/0.png", tmp_path / "images/class0/again.png")
    (tmp_path / "images/rare").mkdir()
    Image.fromarray(noise()).save(tmp_path / "images/rare/one.png")
    Image.fromarray(noise()).save(tmp_path / "images/loose.png")
    findings, rejected = checked(tmp_path)
    assert not rejected
    warnings = {f.problem: f.offenders for f in findings if not f.success}
    assert all(f.severity == "warning" for f in findings if not f.success)
    assert warnings == {
        "2 images are exact copies": ["images/class0/0.png", "images/class0/again.png"],
        "1 of the classes has fewer than 5 images": ["rare"],
        "1 image has no label": ["images/loose.png"],
    }


def test_other_bands_and_types_than_the_declared_or_most_common_ones_are_rejected(tmp_path):
    photographs(tmp_path / "images")
    Image.fromarray(noise()[..., 0]).save(tmp_path / "images/class0/grey.png")
    tifffile.imwrite(tmp_path / "images/class0/deep.tif", noise().astype(np.uint16), photometric="rgb")
    _, rejected = checked(tmp_path)
    assert rejected == {
        "images/class0/grey.png": "1 band, expected 3; to read grey images as RGB: grey_as_rgb: true in dataset.yaml",
        "images/class0/deep.tif": (
            "pixels are uint16, expected uint8; to read 8-bit images as 16-bit: as_uint16: true in dataset.yaml"
        ),
    }
    _, rejected = checked(tmp_path, bands=[f"b{i}" for i in range(7)])
    assert len(rejected) == 38


def with_metadata(folder: Path, rows: str, declaration: str = "") -> Dataset:
    (folder / "metadata.csv").write_text(rows, encoding="utf-8")
    (folder / "dataset.yaml").write_text(declaration)
    return Dataset(folder)


def test_metadata_gives_labels_and_groups_and_missing_files_are_named(tmp_path):
    photographs(tmp_path / "images", classes=1, each=2)
    text = "path,genus,id\nimages/class0/0.png,A,1\nimages/class0/1.png,B,\nimages/class0/9.png,B,2\n"
    with_metadata(tmp_path, text, "label: genus\ngroup: id")
    manifest, _ = scan(Dataset(tmp_path))
    assert manifest["label"].tolist() == ["A", "B", "B"]
    _, rejected = checked(tmp_path)
    assert rejected == {
        "images/class0/1.png": "no group: metadata.csv does not list it, or has no value for it in the "
        "declared group column",
        "images/class0/9.png": "listed in the table, but there is no such file",
    }


@pytest.mark.parametrize(
    ("text", "declaration", "message"),
    [
        ("file,genus\nx,A\n", "", "no column 'path'; it has file, genus"),
        (
            "path,genus\nx,A\n",
            "label: species",
            "no column 'species', which dataset.yaml names as label; it has path, genus",
        ),
        ("path\na\na\n", "", "row 3: path 'images/a' is listed twice"),
        ("path,split\na,holdout\n", "", "row 2: split = 'holdout': must be train, val, test"),
        ("", "", "metadata.csv: no table in it"),
        ("path\na\n", "labels: x", "dataset.yaml: labels: unknown key; did you mean label?"),
        ("path\na\n", "mask: uv", "must be one of bands"),
        ("path\na\n", "bands: [r, g]\nwavelengths: [1.0]", "1 values for 2 bands"),
    ],
)
def test_bad_metadata_is_one_clear_error(tmp_path, text, declaration, message):
    (tmp_path / "images").mkdir()
    with pytest.raises(InputError) as error:
        with_metadata(tmp_path, text, declaration).table()
    assert message in str(error.value)


def test_folders_give_labels_and_a_fixed_split(tmp_path):
    photographs(tmp_path / "images" / "train", each=2)
    photographs(tmp_path / "images" / "test", each=1)
    table = Dataset(tmp_path).table()
    assert table["split"].value_counts().to_dict() == {"train": 6, "test": 3}
    assert set(table["label"]) == {"class0", "class1", "class2"}


def test_the_md5_is_that_of_dvc(tmp_path, monkeypatch):
    from dvc.repo import Repo

    monkeypatch.chdir(tmp_path)
    photographs(tmp_path / "data" / "images", each=3)
    (tmp_path / "data" / "metä.txt").write_text("x")
    Repo.init(no_scm=True).add("data")
    import yaml

    recorded = yaml.safe_load((tmp_path / "data.dvc").read_text())["outs"][0]["md5"]
    assert scan(Dataset(tmp_path / "data"))[1] == recorded


@pytest.mark.slow
@pytest.mark.skipif(not (DATASETS / "plankton.tar.xz").exists(), reason="needs the plankton images")
def test_the_duplicate_in_two_classes_of_plankton_is_named(tmp_path):
    import tarfile

    with tarfile.open(DATASETS / "plankton.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    (tmp_path / "plankton/dataset.yaml").write_text("label: label")
    _, rejected = checked(tmp_path / "plankton")
    assert set(rejected) == {"images/chaetognath_other/271.jpg", "images/chaetognath_non_sagitta/14864.jpg"}
