from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import photographs, with_changes
from PIL import Image, ImageFilter

from simtrail.data.checking.checks import validate
from simtrail.data.dataset import Dataset
from simtrail.data.manifest import scan

RNG = np.random.default_rng(3)


def warnings(folder: Path, **changes) -> dict[str, list[str]]:
    dataset = Dataset(folder)
    findings, _ = validate(scan(dataset)[0], with_changes(changes).check, dataset.declaration)
    return {f.problem: f.offenders for f in findings if not f.success and f.severity == "warning"}


def labelled(folder: Path, labels: list[str]) -> None:
    """A dataset whose images have these labels, each in six images."""
    photographs(folder / "images", classes=1, each=6 * len(labels))
    rows = [f"class0/{i}.png,{labels[i // 6]}" for i in range(6 * len(labels))]
    (folder / "metadata.csv").write_text("\n".join(["path,name", *rows]))
    (folder / "dataset.yaml").write_text("label: name\n")


def test_failed_exposures_blur_and_odd_sizes_are_named(tmp_path):
    photographs(tmp_path / "images", size=(48, 40))
    images = tmp_path / "images/class0"
    picture = Image.open(images / "0.png")
    dim = np.asarray(picture) // 40
    Image.fromarray(dim).save(images / "dark.png")
    Image.fromarray(255 - dim).save(images / "bright.png")
    noise = Image.fromarray(RNG.integers(0, 256, (40, 48, 3), dtype=np.uint8))
    noise.filter(ImageFilter.GaussianBlur(8)).save(images / "blurred.png")
    Image.fromarray(RNG.integers(0, 256, (700, 700, 3), dtype=np.uint8)).save(images / "large.png")
    found = warnings(tmp_path)
    assert found["1 image has almost only black pixels"] == ["images/class0/dark.png"]
    assert found["1 image has almost only white pixels"] == ["images/class0/bright.png"]
    assert found["1 image has less than 25% of the usual sharpness"] == ["images/class0/blurred.png"]
    assert found["1 image has more than 10 times, or less than 1/10 of, the usual side"] == ["images/class0/large.png"]


def test_equal_bands_and_paths_that_differ_in_case_are_named(tmp_path):
    photographs(tmp_path / "images")
    grey = Image.fromarray(RNG.integers(0, 256, (20, 24), dtype=np.uint8))
    grey.convert("RGB").save(tmp_path / "images/class0/grey.png")
    Image.open(tmp_path / "images/class1/1.png").convert("RGB").rotate(90).save(tmp_path / "images/class0/GREY.png")
    found = warnings(tmp_path)
    assert found["1 image has bands that are copies of each other"] == ["images/class0/grey.png"]
    paths = ["images/class0/GREY.png", "images/class0/grey.png"]
    assert found["2 paths differ from another only in upper and lower case"] == paths


@pytest.mark.parametrize("mode", ["group", "warn", "ignore"])
def test_near_copies_are_named_with_their_labels_and_splits(tmp_path, mode):
    photographs(tmp_path / "images/train", size=(48, 40))
    photographs(tmp_path / "images/test", each=4, size=(40, 48))
    shutil.move(tmp_path / "images/test/class0/0.png", tmp_path / "images/test/class2/new.png")
    copy = "images/test/class0/copy.png"
    Image.open(tmp_path / "images/train/class1/0.png").point(lambda value: value * 3 // 4).save(tmp_path / copy)
    found = {k: v for k, v in warnings(tmp_path, **{"check.near_duplicates": mode}).items() if "near copy" in k}
    pair = [copy, "images/train/class1/0.png"]
    expected = (
        "2 images have a near copy (resized, edited, or the same scene)",
        "2 images have a near copy in another part of the fixed split",
        "2 images have a near copy under another label",
    )
    assert found == ({} if mode == "ignore" else dict.fromkeys(expected, pair))


@pytest.mark.parametrize(
    ("labels", "problem", "named"),
    [
        (["a b", "A-B", "c"], "2 class names differ only in case, spaces, hyphens or underscores", ["A-B", "a b"]),
        (["a", "unknown"], "no label is usually meant by 1 class name", ["unknown"]),
        (["a", "5-Mar"], "1 class name of numbers or dates", ["5-Mar"]),
        (["0.5", "1.25"], "2 class names of numbers or dates", ["0.5", "1.25"]),
    ],
)
def test_odd_class_names_are_named(tmp_path, labels, problem, named):
    labelled(tmp_path, labels)
    assert warnings(tmp_path)[problem] == named


def test_a_few_numbered_classes_are_usual(tmp_path):
    labelled(tmp_path, ["0", "1", "2"])
    assert warnings(tmp_path) == {}


def test_a_class_of_nearly_all_images_is_named(tmp_path):
    labelled(tmp_path, ["a"] * 19 + ["b"])
    assert warnings(tmp_path) == {"1 class holds more than 90% of the images": ["a"]}
