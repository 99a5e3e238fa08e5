"""Images of many bands through scan, checks and packing: ENVI cubes, NumPy arrays, masks, values without data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from conftest import with_changes

from simtrail import read_image
from simtrail.data.bring import _copy_dataset
from simtrail.data.checking.checks import validate
from simtrail.data.dataset import Dataset
from simtrail.data.manifest import scan
from simtrail.data.pack import pack, sample_pixels, usual_border
from simtrail.data.reading.decoded import Reading
from simtrail.data.reading.readers import open_image
from simtrail.data.recipe import conform, make_recipe
from simtrail.errors import InputError
from simtrail.model.encoder import Encoder, EncoderConfig

BANDS, SIDE = 12, 20
WAVELENGTHS = [400 + 50 * i for i in range(BANDS)]
AXES = {"bsq": (0, 1, 2), "bil": (1, 0, 2), "bip": (1, 2, 0)}


def cube(seed: int, dtype: str = "uint16") -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 4000, (BANDS, SIDE, SIDE)).astype(dtype)


def write_envi(folder: Path, name: str, image: np.ndarray, interleave: str = "bil", **more: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    bands, lines, samples = image.shape
    fields = {"samples": samples, "lines": lines, "bands": bands, "header offset": 0, "data type": 12, "byte order": 0}
    fields |= {"interleave": interleave, "wavelength units": "nm", "wavelength": WAVELENGTHS, **more}
    lists = {k: f"{{{', '.join(map(str, v))}}}" if isinstance(v, list) else v for k, v in fields.items()}
    (folder / f"{name}.hdr").write_text("ENVI\n" + "".join(f"{k} = {v}\n" for k, v in lists.items()))
    image.astype("<u2").transpose(AXES[interleave]).tofile(folder / f"{name}.dat")


@pytest.fixture
def cubes(tmp_path):
    for i in range(6):
        write_envi(tmp_path / "images", f"c{i}", cube(i), list(AXES)[i % 3], bbl=[1, 1, 0] + [1] * (BANDS - 3))
    return tmp_path


def checked(folder: Path, **changes):
    dataset = Dataset(folder)
    manifest, _ = scan(dataset)
    findings, rejected = validate(manifest, with_changes(changes).check, dataset.declaration)
    return manifest, {f.title: f for f in findings}, rejected


def test_an_envi_image_is_listed_by_its_header(cubes):
    images, other_files = Dataset(cubes).files()
    assert images == [f"images/c{i}.hdr" for i in range(6)]
    assert other_files == []
    (cubes / "metadata.csv").write_text("path,kind\n" + "".join(f"images/c{i}.dat,a\n" for i in range(6)))
    table = Dataset(cubes).table()
    assert table["path"].tolist() == images
    assert (table["meta.kind"] == "a").all()


def test_statistics_of_every_band_equal_those_of_the_whole_array_in_any_interleave(cubes, monkeypatch):
    monkeypatch.setattr("simtrail.data.manifest.BLOCK", 1000)
    manifest, _ = scan(Dataset(cubes))
    for i, row in manifest.iterrows():
        image = cube(int(i)).astype(float)
        for name, expected in {
            "min": image.min((1, 2)),
            "max": image.max((1, 2)),
            "mean": image.mean((1, 2)),
            "std": image.std((1, 2)),
        }.items():
            np.testing.assert_allclose(row[name], expected, rtol=1e-12)
    assert manifest["readable"].all()
    assert manifest["sha256"].nunique() == 6


def test_the_md5_covers_headers_and_data(cubes):
    _, before = scan(Dataset(cubes))
    data = cubes / "images/c3.dat"
    data.write_bytes(data.read_bytes()[:-1] + b"\xff")
    assert scan(Dataset(cubes))[1] != before


def test_packed_cubes_have_the_good_bands_and_a_later_change_of_these_is_refused(cubes):
    manifest, findings, rejected = checked(cubes)
    assert not rejected
    assert findings["wavelengths rise, or fall, from band to band"].success
    recipe = make_recipe(manifest, Dataset(cubes).declaration, with_changes({"prepare.size": SIDE}).prepare)
    assert recipe.wavelengths == [nm for i, nm in enumerate(WAVELENGTHS) if i != 2]
    out = cubes / "out"
    out.mkdir()
    images = pack(cubes, manifest, recipe, out).images
    low, high = np.array(recipe.low)[:, None, None], np.array(recipe.high)[:, None, None]
    for i in range(6):
        back = low + images.rows(np.array([i]))[0] / recipe.full_scale * (high - low)
        np.testing.assert_array_equal(np.rint(back), np.delete(cube(i), 2, 0))
    data = np.memmap(cubes / "images/c0.dat", "<u2", "r+")  # bsq
    data[2 * SIDE * SIDE + 5] += 1  # in the bad band, which is not read
    data.flush()
    pack(cubes, manifest, recipe, out)
    data[3 * SIDE * SIDE + 5] += 1
    data.flush()
    with pytest.raises(InputError, match=r"c0\.hdr: changed since it was checked"):
        pack(cubes, manifest, recipe, out)


def test_a_truncated_cube_and_a_different_order_of_bands_are_named(cubes):
    data = cubes / "images/c1.dat"
    data.write_bytes(data.read_bytes()[:-2])
    write_envi(cubes / "images", "c2", cube(2), wavelength=WAVELENGTHS[::-1], bbl=[1, 1, 0] + [1] * (BANDS - 3))
    _, _, rejected = checked(cubes)
    assert "truncated" in rejected["images/c1.hdr"]
    assert "differ from those of most files" in rejected["images/c2.hdr"]
    assert len(rejected) == 2


def test_numpy_arrays_are_height_width_bands(tmp_path):
    np.save(tmp_path / "a.npy", cube(0).transpose(1, 2, 0))
    np.testing.assert_array_equal(read_image(tmp_path / "a.npy"), cube(0))
    np.save(tmp_path / "b.npy", np.array(["a"]))
    with pytest.raises(ValueError, match="must be numbers"):
        read_image(tmp_path / "b.npy")


def test_the_sample_has_pixels_of_the_images_in_the_units_of_the_files(cubes):
    pixels = sample_pixels(cubes, ["images/c1.hdr"], 0, Reading(), None, None, [])
    assert pixels.shape[1] == BANDS
    all_pixels = {tuple(p) for p in cube(1).reshape(BANDS, -1).T}
    assert all(tuple(p) in all_pixels for p in pixels.astype(int))


def test_the_sample_has_only_pixels_of_the_organisms(tmp_path):
    image = np.zeros((40, 40, 3), np.uint8)  # a quarter is inside the mask; a third of this has no data
    image[10:20, :, :2], image[10:20, :, 2] = 50, 1
    image[10:20, :13, :2] = 9
    tifffile.imwrite(tmp_path / "a.tif", image)
    tifffile.imwrite(tmp_path / "nothing.tif", np.zeros_like(image))
    pixels = sample_pixels(tmp_path, ["a.tif", "nothing.tif"], 0, Reading(), 2, 9.0, [0])
    assert len(pixels) == 64
    assert (pixels == [50, 50, 1]).all()
    assert len(sample_pixels(tmp_path, ["a.tif", "nothing.tif"], 0, Reading(), None, None, [])) == 128
    with pytest.raises(InputError, match="no pixel of a training image is inside the mask"):
        sample_pixels(tmp_path, ["nothing.tif"], 0, Reading(), 2, None, [])
    with pytest.raises(InputError, match=r"gone\.tif.*run the check stage again"):
        sample_pixels(tmp_path, ["gone.tif"], 0, Reading(), None, None, [])


def test_the_usual_border_is_the_median_of_the_borders_of_images_whatever_is_inside(tmp_path, cubes):
    for i, colour in enumerate([(250, 200, 10), (240, 190, 20), (0, 0, 0)]):
        image = np.broadcast_to(np.array(colour, np.uint8), (40, 60, 3)).copy()
        image[1:-1, 1:-1] = np.random.default_rng(i).integers(0, 255, (38, 58, 3))
        image[:, -1] = 77  # one side of four
        tifffile.imwrite(tmp_path / f"{i}.tif", image)
    paths = ["0.tif", "1.tif", "2.tif"]
    np.testing.assert_array_equal(usual_border(tmp_path, paths, 0, Reading(), 16).pixel, [240, 190, 10])
    for i in range(4):  # three transparent ones of seven, then four of seven
        cut_out = np.full((40, 60, 4), 99, np.uint8)
        cut_out[:, :, 3] = 0
        cut_out[10:30, 10:50, 3] = 255
        tifffile.imwrite(tmp_path / f"cut{i}.tif", cut_out, photometric="rgb", extrasamples=["unassalpha"])
        found = usual_border(tmp_path, [*paths, *(f"cut{n}.tif" for n in range(i + 1))], 0, Reading(), 16)
        np.testing.assert_array_equal(found.pixel, [240, 190, 10])
        assert found.opaque == (i < 3)
    tifffile.imwrite(tmp_path / "nan.tif", np.full((20, 20), np.nan, np.float32))
    np.testing.assert_array_equal(usual_border(tmp_path, ["nan.tif"], 0, Reading(), 16).pixel, [0])
    assert usual_border(cubes, ["images/c1.hdr"], 0, Reading(), 16).pixel.shape == (BANDS,)
    with pytest.raises(InputError, match=r"gone\.tif.*run the check stage again"):
        usual_border(tmp_path, ["gone.tif"], 0, Reading(), 16)


def test_adding_data_brings_headers_and_their_data_as_one_image(cubes, tmp_path):
    images, left_out = _copy_dataset(cubes, tmp_path / "building", link=False)
    assert (images, left_out) == ({".hdr": 6}, [])
    assert (tmp_path / "building/images/c5.dat").exists()


def masked(folder: Path, mask: np.ndarray, name: str = "a") -> None:
    (folder / "images").mkdir(exist_ok=True)
    bands = np.stack([*cube(0)[:2], mask.astype(np.uint16)])
    tifffile.imwrite(folder / f"images/{name}.tif", bands, planarconfig="separate", photometric="minisblack")
    (folder / "dataset.yaml").write_text("bands: [green, nir, mask]\nmask: mask\n")


def test_masks_must_be_binary_and_cover_a_fraction_within_the_limits(tmp_path):
    half = np.zeros((SIDE, SIDE))
    half[: SIDE // 2] = 1
    for name, mask in {"a": half, "b": half, "grey": half * np.arange(SIDE), "full": half + 1}.items():
        masked(tmp_path, mask, name)
    manifest, _, rejected = checked(tmp_path, **{"check.max_mask_cover": 0.9})
    assert manifest["mask_cover"].tolist() == pytest.approx([0.5, 0.5, 1.0, 0.475])
    assert set(rejected) == {"images/grey.tif", "images/full.tif"}
    assert "more than two values" in rejected["images/grey.tif"]
    assert "covers 100.000% of the image, must be 1 to 90 % of the image" in rejected["images/full.tif"]


def test_saturated_and_constant_bands_and_values_of_8_bits_give_warnings(tmp_path):
    image = cube(0) % 256
    image[3] = 7
    (tmp_path / "images").mkdir()
    tifffile.imwrite(tmp_path / "images/shallow.tif", image, planarconfig="separate", photometric="minisblack")
    _, findings, rejected = checked(tmp_path)
    assert not rejected
    assert findings["no band is constant"].offenders == ["images/shallow.tif"]
    assert not findings["values use more than 8 bits of uint16"].success
    image[5, :4] = 65535
    tifffile.imwrite(tmp_path / "images/shallow.tif", image, planarconfig="separate", photometric="minisblack")
    _, findings, _ = checked(tmp_path)
    assert findings["at most 1% of a band's pixels are saturated"].offenders == ["images/shallow.tif"]
    assert findings["values use more than 8 bits of uint16"].success


def test_pixels_without_data_are_left_out_of_the_statistics(tmp_path):
    image = cube(0, "float32")
    image[:, :5] = -9999
    (tmp_path / "images").mkdir()
    tifffile.imwrite(tmp_path / "images/a.tif", image, planarconfig="separate", photometric="minisblack")
    (tmp_path / "dataset.yaml").write_text("nodata: -9999\n")
    manifest, _ = scan(Dataset(tmp_path))
    np.testing.assert_allclose(manifest["mean"][0], image[:, 5:].mean((1, 2)), rtol=1e-5)
    assert min(manifest["min"][0]) > 0


def test_gdal_tags_give_names_wavelengths_and_the_value_without_data(tmp_path):
    items = "".join(
        f'<Item name="DESCRIPTION" sample="{i}" role="description">b{i}</Item>'
        f'<Item name="wavelength" sample="{i}">0.{i + 4}</Item>'
        f'<Item name="wavelength_units" sample="{i}">Micrometers</Item>'
        for i in range(3)
    )
    tags = [(42112, "s", 0, f"<GDALMetadata>{items}</GDALMetadata>", True), (42113, "s", 0, "-1", True)]
    tifffile.imwrite(tmp_path / "a.tif", cube(0)[:3], planarconfig="separate", photometric="minisblack", extratags=tags)
    facts = open_image(tmp_path / "a.tif").facts
    assert (facts.names, facts.nodata) == (["b0", "b1", "b2"], -1)
    assert facts.wavelengths == pytest.approx([400, 500, 600])


def test_an_encoder_takes_raw_cubes_and_arrays_of_all_bands_or_of_one_modality(cubes):
    manifest, _ = scan(Dataset(cubes))
    p = with_changes({"prepare.size": 32, "pretrain.encoder.modalities": ["nir"]})
    recipe = make_recipe(manifest, Dataset(cubes).declaration, p.prepare)
    count, architecture = len(recipe.bands), p.pretrain.encoder.model_copy(update={"model": "test_resnet"})
    scale = {"mean": [0.3] * count, "std": [0.2] * count}
    encoder = Encoder(EncoderConfig(architecture=architecture, head=p.pretrain.head, recipe=recipe, **scale)).eval()
    embedding = encoder.embed(cubes / "images")
    assert list(embedding.index) == [str(cubes / f"images/c{i}.hdr") for i in range(6)]
    arrays = np.stack([cube(i) for i in range(6)])
    np.testing.assert_array_equal(encoder.embed(arrays), embedding)
    nir = [recipe.read_bands[i] for i in recipe.modalities["nir"]]
    np.testing.assert_array_equal(encoder.embed(arrays[:, nir], modality="nir"), embedding)


def test_nan_as_the_value_without_data_survives_in_manifest_and_encoder(tmp_path):
    image = cube(0).astype(np.float32)
    image[:, :5] = np.nan
    items = [(42113, "s", 0, "nan", True)]
    (tmp_path / "images").mkdir()
    style = {"planarconfig": "separate", "photometric": "minisblack", "extratags": items}
    tifffile.imwrite(tmp_path / "images/a.tif", image, **style)
    manifest, _ = scan(Dataset(tmp_path))
    assert manifest["finite"].all()
    recipe = make_recipe(manifest, Dataset(tmp_path).declaration, with_changes({"prepare.size": 32}).prepare)
    p, scale = with_changes({}).pretrain, {"mean": [0.3] * BANDS, "std": [0.2] * BANDS}
    architecture = p.encoder.model_copy(update={"model": "test_resnet"})
    Encoder(EncoderConfig(architecture=architecture, head=p.head, recipe=recipe, **scale)).save(tmp_path / "encoder")
    read = Encoder.load(tmp_path / "encoder").config.recipe
    assert np.isnan(read.nodata)
    assert (conform(image, read)[0][:, :7] == 0).all()
