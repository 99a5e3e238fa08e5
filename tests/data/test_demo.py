"""The demo dataset: equal bytes on all machines, the documented layout, and twins that differ only in ultraviolet."""

import csv
import hashlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
import yaml

from simtrail.data import demo

# It changes with every pixel and byte of a file. If it differs only on your machine, rounding differs there.
PINNED = "c4e5fd5859dbbe13f102b1bde37b9d09a0492178bd342ee8fdc961520a1a935a"


def digest(folder: Path) -> str:
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        total.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return total.hexdigest()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "small"
    demo.generate(folder, species=4, specimens=2)
    return folder


def test_bytes_are_pinned_and_follow_the_seed(small: Path, tmp_path: Path) -> None:
    demo.generate(tmp_path / "same", seed=0, species=4, specimens=2)
    demo.generate(tmp_path / "other", seed=1, species=4, specimens=2)
    assert digest(small) == digest(tmp_path / "same") == PINNED
    assert digest(tmp_path / "other") != PINNED


def test_every_species_is_pinned() -> None:
    images = [demo.render(name, 7, view) for name in demo.SPECIES for view in demo.VIEWS]
    assert (
        hashlib.sha256(np.stack(images).tobytes()).hexdigest()
        == "8b457490ecbd7dcc7a1d0b884cf39ca07766e09cc5b70c34aa90bb72fca99ee0"
    )


def test_a_smaller_dataset_is_part_of_a_larger_one(small: Path, tmp_path: Path) -> None:
    demo.generate(tmp_path / "tiny", species=2, specimens=1)
    for path in (tmp_path / "tiny").rglob("*.tif"):
        assert path.read_bytes() == (small / path.relative_to(tmp_path / "tiny")).read_bytes()


def test_images_have_seven_bands_and_a_mask(small: Path) -> None:
    paths = sorted(small.rglob("*.tif"))
    assert len(paths) == 4 * 2 * 2
    for path in paths:
        image = tifffile.imread(path)
        assert image.shape == (7, 64, 64)
        assert image.dtype == np.uint8
        assert set(np.unique(image[6])) == {0, 255}
        assert 0.05 < (image[6] == 255).mean() < 0.5
        assert image[:6].std(axis=(1, 2)).min() > 2


def test_metadata_and_dataset_describe_the_images(small: Path) -> None:
    raw = (small / "metadata.csv").read_bytes()
    assert b"\r" not in raw
    rows = list(csv.DictReader(raw.decode().splitlines()))
    assert list(rows[0]) == ["path", "species", "genus", "specimen", "view", "sex"]
    assert [row["path"] for row in rows] == sorted(p.relative_to(small).as_posix() for p in small.rglob("*.tif"))
    assert rows[0]["path"] == "images/aurora_costata/aurora_costata_001_dorsal.tif"
    for row in rows:
        assert row["species"].startswith(row["genus"] + " ")
        assert row["path"].endswith(f"/{row['specimen']}_{row['view']}.tif")
        assert row["sex"] in ("female", "male")
    assert len({(row["specimen"], row["sex"]) for row in rows}) == 8
    dataset = yaml.safe_load((small / "dataset.yaml").read_text())
    assert dataset["bands"] == ["red", "green", "blue", "uv1", "uv2", "uv3", "mask"]
    assert len(dataset["wavelengths"]) == 7


@pytest.mark.parametrize("pair", demo.TWINS, ids="-".join)
@pytest.mark.parametrize("view", demo.VIEWS)
def test_twins_differ_in_ultraviolet_only(pair: tuple[str, str], view: str) -> None:
    for key in (3, 2**63):
        one, other = (demo.render(name, key, view) for name in pair)
        specimen = one[6] == 255
        assert np.array_equal(one[[0, 1, 2, 6]], other[[0, 1, 2, 6]])
        assert np.abs(one[3:6].astype(int) - other[3:6])[:, specimen].mean() > 3
    assert pair[0].split()[0] == pair[1].split()[0]


def test_other_species_differ_in_colour() -> None:
    colours = {demo.render(name, 3, "dorsal")[:3].tobytes() for name in demo.SPECIES}
    assert len(colours) == len(demo.SPECIES) - len(demo.TWINS)


def test_random_bits_are_splitmix64() -> None:
    assert [int(value) for value in demo.Draws(1234567).bits(2)] == [6457827717110365317, 3203168211198807973]


def test_an_existing_folder_is_refused_and_not_changed(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(FileExistsError, match="mine"):
        demo.generate(tmp_path / "mine", species=2, specimens=1)
    assert list(tmp_path.rglob("*")) == [tmp_path / "mine"]


def test_an_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(species: str, key: int, view: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "render", interrupted)
    with pytest.raises(KeyboardInterrupt):
        demo.generate(tmp_path / "set", species=2, specimens=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "name"),
    [({"seed": -1}, "seed"), ({"seed": 0.5}, "seed"), ({"species": 1}, "species"), ({"species": 13}, "species"),
     ({"specimens": 0}, "specimens")],
)  # fmt: skip
def test_values_out_of_range_are_refused(tmp_path: Path, arguments: dict[str, int], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        demo.generate(tmp_path / "set", **arguments)
    assert list(tmp_path.iterdir()) == []
