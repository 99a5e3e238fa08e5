"""Kinds of files and tables that people have, and that tools often read wrong: read right, or refused by name."""

from __future__ import annotations

import struct
import unicodedata
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
import yaml
from conftest import photographs, with_changes
from PIL import Image

from simtrail import read_image
from simtrail.data.checking.checks import validate
from simtrail.data.dataset import Dataset
from simtrail.data.manifest import scan
from simtrail.data.pack import pack
from simtrail.data.reading.readers import SUFFIXES, open_image
from simtrail.data.recipe import make_recipe
from simtrail.errors import InputError
from simtrail.model.encoder import Encoder, EncoderConfig
from simtrail.pipeline.summary import warning_lines

RNG = np.random.default_rng(5)
PICTURE = RNG.integers(0, 256, (40, 60, 3), dtype=np.uint8)
STACK = RNG.integers(0, 5000, (5, 12, 14)).astype(np.uint16)


def checked(folder: Path, **changes):
    dataset = Dataset(folder)
    manifest, _ = scan(dataset, 16384)
    findings, rejected = validate(manifest, with_changes(changes).check, dataset.declaration)
    return manifest, [f for f in findings if not f.success], rejected


def declare(folder: Path, **keys) -> None:
    (folder / "dataset.yaml").write_text(yaml.safe_dump(keys))


def encoder_of(recipe) -> Encoder:
    p = with_changes({"pretrain.encoder.stem": "small"}).pretrain
    scale = {"mean": [0.5] * len(recipe.bands), "std": [0.2] * len(recipe.bands)}
    return Encoder(EncoderConfig(architecture=p.encoder, head=p.head, recipe=recipe, **scale)).eval()


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".avif"])
def test_the_orientation_of_every_format_is_applied(tmp_path, suffix):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / f"a{suffix}"
    options = {"tiffinfo": {274: 6}} if suffix == ".tif" else {"exif": exif}
    smooth = Image.fromarray(PICTURE[:4, :6]).resize((60, 40), Image.Resampling.BICUBIC)  # keeps its values in a JPEG
    smooth.save(path, **options)
    image = read_image(path)
    assert image.shape == (3, 60, 40)
    expected = np.rot90(np.asarray(smooth), -1).transpose(2, 0, 1)
    assert np.abs(image.astype(int) - expected).mean() < (1 if suffix in (".png", ".tif") else 6)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_white_is_zero_tiffs_have_the_values_of_the_png(tmp_path, dtype):
    grey = (PICTURE[..., 0] // 4 + np.zeros((), dtype)).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", np.iinfo(dtype).max - grey, photometric="miniswhite")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif")[0], grey)


def test_values_of_unknown_meaning_are_refused(tmp_path):
    Image.fromarray(PICTURE).convert("LAB").save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match="CIELAB of 3 bands of uint8: not read; convert it to RGB or grey"):
        read_image(tmp_path / "a.tif")


def test_an_image_of_nothing_but_background_is_rejected(tmp_path):
    photographs(tmp_path / "images")
    for path in (tmp_path / "images").rglob("*.png"):
        Image.open(path).convert("RGBA").save(path)
    clear = Image.open(tmp_path / "images/class0/0.png")
    clear.putalpha(0)
    clear.save(tmp_path / "images/class0/0.png")
    _, _, rejected = checked(tmp_path)
    assert rejected == {"images/class0/0.png": "nothing but background: every pixel is transparent or outside the mask"}


def test_z_planes_become_bands_only_if_the_user_says_so(tmp_path):
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, STACK, metadata={"axes": "ZYX"})
    with pytest.raises(ValueError, match=r"5 z-planes \(axes ZYX\).*set axes: CYX in dataset\.yaml"):
        read_image(path)
    np.testing.assert_array_equal(read_image(path, axes="CYX"), STACK)


def test_ome_channels_keep_their_names(tmp_path):
    names = ["DAPI", "GFP", "RFP", "BF"]
    tifffile.imwrite(tmp_path / "a.ome.tif", STACK[:4], metadata={"axes": "CYX", "Channel": {"Name": names}})
    assert open_image(tmp_path / "a.ome.tif").facts.names == names


def scaled(path: Path, gains: list[float], offsets: list[float], values: np.ndarray) -> None:
    items = [
        f'<Item name="{key}" sample="{i}" role="{key.lower()}">{value}</Item>'
        for key, numbers in (("SCALE", gains), ("OFFSET", offsets))
        for i, value in enumerate(numbers)
    ]
    extra = [(42112, "s", 0, f"<GDALMetadata>{''.join(items)}</GDALMetadata>", True)]
    tifffile.imwrite(path, values, photometric="minisblack", planarconfig="separate", extratags=extra, metadata=None)


def test_scale_and_offset_of_every_band_give_reflectance(tmp_path):
    gains, offsets = [1e-4, 2e-4], [-0.1, 0.0]
    (tmp_path / "images").mkdir()
    images = RNG.integers(1000, 5000, (3, 2, 20, 20)).astype(np.uint16)
    for i, image in enumerate(images):
        scaled(tmp_path / f"images/{i}.tif", gains, offsets, image)
    manifest, _, rejected = checked(tmp_path)
    assert not rejected
    recipe = make_recipe(manifest, Dataset(tmp_path).declaration, with_changes({"prepare.size": 20}).prepare)
    (tmp_path / "out").mkdir()
    packed = pack(tmp_path, manifest, recipe, tmp_path / "out")[0].rows(np.arange(3)) / recipe.full_scale
    reflectance = images * np.array(gains)[:, None, None] + np.array(offsets)[:, None, None]
    low, high = recipe.bounds
    np.testing.assert_allclose(low, min(0, reflectance.min()))
    assert low[0] == pytest.approx(low[1])
    assert high[0] == pytest.approx(high[1])
    np.testing.assert_allclose(low[0] + packed * (high[0] - low[0]), reflectance, atol=1e-4)
    encoder = encoder_of(recipe)
    scaled(tmp_path / "other.tif", [1e-4, 1e-4], offsets, images[0])
    with pytest.raises(InputError, match=r"other\.tif: gains of its bands are \[0.0001, 0.0001\]: must be"):
        encoder.embed(tmp_path / "other.tif")


def test_a_large_scan_is_read_and_a_bomb_is_refused(tmp_path):
    Image.new("L", (12000, 9000), 200).save(tmp_path / "scan.jpg")
    assert open_image(tmp_path / "scan.jpg").image.shape == (1, 9000, 12000)
    Image.new("L", (3, 3)).save(tmp_path / "bomb.png")
    data = bytearray((tmp_path / "bomb.png").read_bytes())
    data[16:24] = struct.pack(">II", 30000, 30000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    (tmp_path / "bomb.png").write_bytes(data)
    with pytest.raises(ValueError, match=r"claims 30000 × 30000 × 1 values \(0\.9 GB\) in .* decompression bomb"):
        open_image(tmp_path / "bomb.png")


@pytest.mark.parametrize("option", ["grey_as_rgb", "as_uint16"])
def test_the_advice_for_mixed_bands_and_types_works(tmp_path, option):
    images = tmp_path / "images"
    photographs(images, classes=2)
    if option == "grey_as_rgb":
        Image.fromarray(PICTURE[..., 0]).save(images / "class0/other.jpg")
    else:
        tifffile.imwrite(images / "class0/other.tif", PICTURE.astype(np.uint16) * 200, photometric="rgb")
    _, _, rejected = checked(tmp_path)
    assert f"{option}: true in dataset.yaml" in next(iter(rejected.values()))
    declare(tmp_path, **{option: True})
    manifest, _, rejected = checked(tmp_path)
    assert not rejected
    recipe = make_recipe(manifest, Dataset(tmp_path).declaration, with_changes({}).prepare)
    (tmp_path / "out").mkdir()
    assert len(pack(tmp_path, manifest, recipe, tmp_path / "out")[0]) == 25
    encoder = encoder_of(recipe)
    assert len(encoder.embed(images)) == 25  # the encoder reads files as its training did


@pytest.mark.parametrize(
    "suffix", [".webp", ".gif", ".jp2", ".jfif", ".avif", ".jxl", ".heic", ".mat", ".h5", ".nc", ".npz"]
)
def test_formats_that_people_have_are_listed_as_images(tmp_path, suffix):
    assert suffix in SUFFIXES
    (tmp_path / "images").mkdir()
    (tmp_path / f"images/a{suffix.upper()}").touch()
    assert Dataset(tmp_path).files()[0] == [f"images/a{suffix.upper()}"]


def test_arrays_whose_bands_may_come_first_are_read_with_a_note(tmp_path):
    np.save(tmp_path / "a.npy", STACK)
    assert open_image(tmp_path / "a.npy").notes == (
        "read as height × width × bands; if its bands come first, set axes: CYX in dataset.yaml",
    )
    np.testing.assert_array_equal(read_image(tmp_path / "a.npy", axes="CYX"), STACK)
    np.save(tmp_path / "b.npy", STACK.transpose(1, 2, 0))
    assert open_image(tmp_path / "b.npy").notes == ()


def test_an_encoder_names_the_file_that_does_not_fit_and_leaves_out_hidden_files(tmp_path):
    photographs(tmp_path / "images", classes=1, each=3)
    manifest, _, _ = checked(tmp_path)
    encoder = encoder_of(make_recipe(manifest, Dataset(tmp_path).declaration, with_changes({}).prepare))
    (tmp_path / "images/.hidden").mkdir()
    Image.fromarray(PICTURE).save(tmp_path / "images/.hidden/a.png")
    (tmp_path / "images/._0.png").write_bytes(b"of a Mac")
    assert len(encoder.embed(tmp_path / "images")) == 3
    Image.fromarray(PICTURE[..., 0]).save(tmp_path / "images/grey.png")
    with pytest.raises(InputError, match=r"images/grey\.png: image of shape \(1, 40, 60\)"):
        encoder.embed(tmp_path / "images")


def test_a_key_given_twice_in_dataset_yaml_is_refused(tmp_path):
    (tmp_path / "dataset.yaml").write_text("label: a\nlabel: b\n")
    with pytest.raises(InputError, match=r"dataset\.yaml: not valid YAML: line 2.*label is there twice"):
        Dataset(tmp_path)


def test_the_first_frame_of_an_animation_is_read_and_said(tmp_path):
    frames = [Image.fromarray(np.roll(PICTURE, i, 0)) for i in range(3)]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], lossless=True)
    decoded = open_image(tmp_path / "a.webp")
    np.testing.assert_array_equal(decoded.image, PICTURE.transpose(2, 0, 1))
    assert decoded.notes == ("the first of 3 frames",)


def test_the_array_of_a_container_is_named_in_dataset_yaml(tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(3):
        np.savez(tmp_path / f"images/{i}.npz", cube=STACK.transpose(1, 2, 0) + i, dark=STACK.transpose(1, 2, 0))
    _, _, rejected = checked(tmp_path, **{"check.min_side": 8})
    assert (
        "name one by array in dataset.yaml: cube (12, 14, 5) of uint16, dark (12, 14, 5) of uint16"
        in rejected["images/0.npz"]
    )
    declare(tmp_path, array="cube")
    manifest, _, rejected = checked(tmp_path, **{"check.min_side": 8})
    assert not rejected
    assert (manifest["bands"] == 5).all()


def test_linked_class_folders_are_refused_by_name(tmp_path):
    photographs(tmp_path / "elsewhere", classes=1)
    (tmp_path / "data/images").mkdir(parents=True)
    (tmp_path / "data/images/a").symlink_to(tmp_path / "elsewhere/class0")
    with pytest.raises(InputError, match="images/a: a link to a folder, whose files DVC does not version"):
        Dataset(tmp_path / "data").table()


@pytest.mark.parametrize(
    ("on_disk", "in_table"),
    [
        (unicodedata.normalize("NFC", "Schmetterlingé.png"), unicodedata.normalize("NFD", "Schmetterlingé.png")),
        (unicodedata.normalize("NFD", "ñandú.png"), unicodedata.normalize("NFC", "ñandú.png")),
        ("a.JPG", "a.jpg"),
        ("b/a.png", "b\\a.png"),
        ("a.png", "./images/a.png"),
    ],
)
def test_paths_in_a_table_find_the_files_that_they_mean(tmp_path, on_disk, in_table):
    path = tmp_path / "images" / on_disk
    path.parent.mkdir(parents=True)
    Image.fromarray(PICTURE).save(path, "png")
    (tmp_path / "metadata.csv").write_text(f"path,species\n{in_table},A\n", encoding="utf-8")
    table = Dataset(tmp_path).table()
    assert table["path"].tolist() == [f"images/{on_disk}"]
    assert table["meta.species"].tolist() == ["A"]


def test_a_suffix_that_fits_two_files_is_not_guessed(tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("a.JPG", "a.Jpg"):
        Image.fromarray(PICTURE).save(tmp_path / "images" / name, "jpeg")
    (tmp_path / "metadata.csv").write_text("path\na.jpg\n")
    assert sorted(Dataset(tmp_path).table()["path"]) == ["images/a.JPG", "images/a.Jpg", "images/a.jpg"]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".xlsx", ".parquet"])
def test_tables_of_every_format_are_read(tmp_path, suffix):
    photographs(tmp_path / "images", classes=1, each=2)
    frame = pd.DataFrame({"path": ["class0/0.png", "class0/1.png"], "species": ["Morpho", "Morpho "], "id": [7, 8]})
    sheet = tmp_path / f"metadata{suffix}"
    match suffix:
        case ".csv":
            frame.to_csv(sheet, index=False, sep=";", encoding="utf-8-sig")
        case ".tsv":
            frame.to_csv(sheet, index=False, sep="\t", encoding="utf-16")
        case ".xlsx":
            frame.to_excel(sheet, index=False)
        case ".parquet":
            frame.to_parquet(sheet)
    declare(tmp_path, label="species", group="id")
    table = Dataset(tmp_path).table()
    assert table["label"].tolist() == ["Morpho", "Morpho"]
    assert table["group"].tolist() == ["7", "8"]


def test_a_table_is_found_in_any_case_and_paths_without_an_image_are_said(tmp_path):
    photographs(tmp_path / "images", classes=1, each=2)
    (tmp_path / "Metadata.CSV").write_text("Path,species\nclass0/0.png,A\n7,B\n")
    dataset = Dataset(tmp_path)
    assert dataset.table()["meta.species"].dropna().tolist() == ["B", "A"]
    assert dataset.notes == ["Metadata.CSV: 1 of 2 paths name no image: images/7"]
    (tmp_path / "Metadata.CSV").write_text("filename,species\nclass0/0.png,A\n")
    with pytest.raises(InputError, match="it has filename, species; name the column of the file names path"):
        Dataset(tmp_path).table()


def test_columns_that_differ_only_in_case_from_path_do_not_replace_it(tmp_path):
    photographs(tmp_path / "images", classes=1, each=2)
    (tmp_path / "metadata.csv").write_text("path,Path\nclass0/0.png,A\nclass0/1.png,B\n")
    assert Dataset(tmp_path).table()["meta.Path"].tolist() == ["A", "B"]
    (tmp_path / "metadata.csv").write_text("PATH,Path\nclass0/0.png,A\n")
    with pytest.raises(InputError, match="no column 'path'; it has PATH, Path"):
        Dataset(tmp_path).table()


def test_half_a_text_in_utf_16_is_refused(tmp_path):
    photographs(tmp_path / "images", classes=1, each=2)
    (tmp_path / "metadata.csv").write_bytes("path,a\nclass0/0.png,b\n".encode("utf-16-le")[:-1])
    with pytest.raises(InputError, match="not a complete text in UTF-16"):
        Dataset(tmp_path).table()


def test_two_tables_are_refused(tmp_path):
    photographs(tmp_path / "images", classes=1, each=2)
    for suffix in (".csv", ".tsv"):
        (tmp_path / f"metadata{suffix}").write_text("path\nclass0/0.png\n")
    with pytest.raises(InputError, match=r"has metadata\.csv and metadata\.tsv, of which only one"):
        Dataset(tmp_path).table()


def test_labels_that_differ_only_in_spelling_give_a_warning_that_names_them(tmp_path):
    photographs(tmp_path / "images", classes=1, each=6)
    rows = [f"class0/{i}.png,{label}" for i, label in enumerate(["Morpho", "morpho", "Morpho ", "A", "B", "NA"])]
    (tmp_path / "metadata.csv").write_text("\n".join(["path,species", *rows]))
    declare(tmp_path, label="species")
    manifest, findings, _ = checked(tmp_path)
    assert sorted(manifest["label"].unique()) == ["A", "B", "Morpho", "NA", "morpho"]
    lines = warning_lines({"findings": [f.as_dict() for f in findings]})
    assert (
        "2 class names differ only in case, spaces, hyphens or underscores: Morpho, morpho; "
        "if they mean one class, write them in one way"
    ) in lines
    assert "no label is usually meant by 1 class name: NA; leave the label empty if it is unknown" in lines


def test_a_label_column_that_is_not_used_is_said_with_the_command_that_uses_it(tmp_path):
    photographs(tmp_path / "images", classes=2, each=2)
    rows = [f"class{i % 2}/{i // 2}.png,{'AB'[i % 2]}" for i in range(4)]
    (tmp_path / "metadata.csv").write_text("\n".join(["path,label", *rows]))
    dataset = Dataset(tmp_path)
    line = dataset.unused_labels(dataset.table())
    assert line == (
        "no labels are used: metadata.csv has the column label; the class folders are not used either; to use one: "
        f"echo 'label: label' >> {tmp_path}/dataset.yaml"
    )
    declare(tmp_path, label="label")
    assert Dataset(tmp_path).unused_labels(Dataset(tmp_path).table()) is None


@pytest.mark.parametrize("named", ["a.img", "a.hdr"])
def test_an_envi_cube_may_be_named_by_its_header_or_its_data_file(tmp_path, named):
    STACK.astype("<u2").tofile(tmp_path / "a.img")
    header = "ENVI\nsamples = 14\nlines = 12\nbands = 5\ndata type = 12\ninterleave = bsq\nbyte order = 0\n"
    (tmp_path / "a.hdr").write_text(header)
    np.testing.assert_array_equal(read_image(tmp_path / named), STACK)
