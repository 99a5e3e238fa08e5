from __future__ import annotations

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from imagecodecs import png_encode
from PIL import Image

from simtrail import read_image
from simtrail.data.reading.readers import decode, take_bands

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)


def saved(tmp_path, image: Image.Image, suffix: str, **options):
    path = tmp_path / f"image{suffix}"
    image.save(path, **options)
    return path


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".ppm", ".tif"])
def test_rgb_round_trips(tmp_path, suffix):
    image = read_image(saved(tmp_path, Image.fromarray(RGB), suffix))
    np.testing.assert_array_equal(image, RGB.transpose(2, 0, 1))
    assert image.dtype == np.uint8


def test_jpeg_is_read_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rows are columns
    path = saved(tmp_path, Image.fromarray(np.zeros((8, 16, 3), np.uint8)), ".jpg", exif=exif)
    assert read_image(path).shape == (3, 16, 8)


def test_palette_becomes_rgb_and_transparency_alpha(tmp_path):
    palette = Image.fromarray(RGB).quantize(16)
    np.testing.assert_array_equal(
        read_image(saved(tmp_path, palette, ".png")), np.moveaxis(np.asarray(palette.convert("RGB")), -1, 0)
    )
    image, alpha = decode(saved(tmp_path, palette, ".png", transparency=0).read_bytes())[:2]
    assert alpha
    assert image.shape == (4, 5, 7)
    assert 0 in image[-1]


def test_one_bit_becomes_black_and_white(tmp_path):
    image = read_image(saved(tmp_path, Image.fromarray(RGB[..., 0] > 127), ".png"))
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image[0], np.where(RGB[..., 0] > 127, 255, 0))


def test_alpha_is_recognised(tmp_path):
    rgba = np.dstack([RGB, RGB[..., 0]])
    image, alpha = decode(saved(tmp_path, Image.fromarray(rgba), ".png").read_bytes())[:2]
    assert alpha
    np.testing.assert_array_equal(image, rgba.transpose(2, 0, 1))
    assert not decode(saved(tmp_path, Image.fromarray(RGB), ".png").read_bytes()).alpha


@pytest.mark.parametrize("bands", [1, 3, 4])
def test_sixteen_bit_png_keeps_every_bit(tmp_path, bands):
    deep = RNG.integers(0, 65536, (5, 7, bands), dtype=np.uint16)
    path = tmp_path / "deep.png"
    path.write_bytes(png_encode(deep.squeeze()))
    image = read_image(path)
    assert image.dtype == np.uint16
    np.testing.assert_array_equal(image, deep.transpose(2, 0, 1))


def test_sixteen_bit_colour_ppm_is_refused_instead_of_reduced(tmp_path):
    (tmp_path / "deep.ppm").write_bytes(b"P6\n2 1\n65535\n" + bytes(12))
    with pytest.raises(ValueError, match="only 8-bit colour PPM"):
        read_image(tmp_path / "deep.ppm")


@settings(max_examples=60, deadline=None)
@given(
    bands=st.integers(1, 9),
    dtype=st.sampled_from(["uint8", "uint16", "int16", "uint32", "int32", "float16", "float32", "float64"]),
    planar=st.sampled_from(["contig", "separate"]),
    compression=st.sampled_from([None, "lzw", "zlib"]),
    byteorder=st.sampled_from("<>"),
)
def test_tiff_of_any_band_count_and_type_round_trips(tmp_path_factory, bands, dtype, planar, compression, byteorder):
    array = RNG.uniform(0, 200, (bands, 6, 11)).astype(dtype)
    stored = array if planar == "separate" else np.moveaxis(array, 0, -1)
    options = {} if bands == 1 else {"planarconfig": planar}
    path = tmp_path_factory.mktemp("tiff") / "image.tif"
    tifffile.imwrite(
        path,
        stored if bands > 1 else array[0],
        photometric="minisblack",
        compression=compression,
        byteorder=byteorder,
        **options,
    )
    image, alpha = decode(path.read_bytes())[:2]
    assert not alpha
    assert image.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(image, array)


def test_rgba_tiff_has_alpha_and_multipage_tiff_has_bands(tmp_path):
    tifffile.imwrite(
        tmp_path / "rgba.tif", np.dstack([RGB, RGB[..., 0]]), photometric="rgb", extrasamples=["unassalpha"]
    )
    assert decode((tmp_path / "rgba.tif").read_bytes()).alpha
    tifffile.imwrite(tmp_path / "pages.tif", RGB.transpose(2, 0, 1), photometric="minisblack")
    np.testing.assert_array_equal(read_image(tmp_path / "pages.tif"), RGB.transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"not an image at all", "not an image of a known format"),
        (b"\x89PNG\r\n\x1a\n" + bytes(20), ""),
        (b"II*\0" + bytes(4), ""),
        (b"\xff\xd8\xff\xe0" + bytes(30), ""),
        (b"P6\n99999999 9999999\n255\n", ""),
    ],
)
def test_broken_bytes_are_value_errors_with_a_reason(data, reason):
    with pytest.raises(ValueError, match=reason or ".+"):
        decode(data)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp"])
def test_every_truncated_file_is_refused(tmp_path, suffix):
    complete = saved(tmp_path, Image.fromarray(np.kron(RGB, np.ones((8, 8, 1), np.uint8))), suffix).read_bytes()
    for fraction in (0.05, 0.3, 0.6, 0.9):
        with pytest.raises(ValueError, match=r".+"):
            decode(complete[: int(len(complete) * fraction)])


@pytest.mark.parametrize("order", ["CHW", "HCW", "HWC"])
@pytest.mark.parametrize("offset", [0, 7, 5000])
def test_bands_taken_from_a_memory_map_are_those_of_the_file_in_any_layout(tmp_path, order, offset):
    image = np.random.default_rng(0).integers(0, 9999, (9, 50, 70)).astype(">i2")
    axes = ["CHW".index(axis) for axis in order]
    (tmp_path / "a.img").write_bytes(bytes(offset) + image.transpose(axes).tobytes())
    shape = tuple(image.shape[axis] for axis in axes)
    mapped = np.memmap(tmp_path / "a.img", ">i2", "r", offset, shape).transpose(np.argsort(axes))
    taken = take_bands(mapped, [8, 0, 5])
    assert taken.dtype == np.int16
    np.testing.assert_array_equal(taken, image[[8, 0, 5]])
    np.testing.assert_array_equal(take_bands(image, [8, 0, 5]), image[[8, 0, 5]])


@pytest.mark.parametrize("suffix", [".jpg", ".jp2"])
def test_a_reduced_decode_gives_nearly_the_values_of_a_complete_one(tmp_path, suffix):
    y, x = np.mgrid[:1200, :1600]
    shape = np.sin(x / 31) * np.cos(y / 47) + np.sign(np.sin((x + 2 * y) / 90)) / 2
    picture = np.stack([120 + 50 * shape + RNG.integers(-9, 10, shape.shape) for _ in range(3)], -1)
    path = saved(tmp_path, Image.fromarray(picture.astype(np.uint8)), suffix)
    complete, reduced = (decode(path.read_bytes(), needed=needed).image for needed in (None, 64))
    assert 4 * 64 <= min(reduced.shape[1:]) < min(complete.shape[1:])

    def packed(image: np.ndarray) -> np.ndarray:
        bands = (Image.fromarray(band.astype(np.float32)) for band in image)
        return np.stack([band.resize((85, 64), Image.Resampling.BILINEAR) for band in bands])

    assert np.abs(packed(complete) - packed(reduced)).mean() < 2
