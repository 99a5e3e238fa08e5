from __future__ import annotations

import hashlib
import tarfile
import tracemalloc

import numpy as np
import pandas as pd
import pytest
from conftest import DATASETS
from hypothesis import given, settings
from hypothesis import strategies as st

from simtrail.data.reading.envi import data_of, header_of, open_envi, read_header

CODES = {"u1": 1, "i2": 2, "i4": 3, "f4": 4, "f8": 5, "u2": 12, "u4": 13, "i8": 14, "u8": 15}
ORDERS = {"bsq": (0, 1, 2), "bil": (1, 0, 2), "bip": (1, 2, 0)}  # of the axes of a (C, H, W) array
GOOD = {
    "samples": "4",
    "lines": "3",
    "bands": "2",
    "header offset": "0",
    "file type": "ENVI Standard",
    "data type": "12",
    "interleave": "bsq",
    "byte order": "0",
}


def text(**changes: str | None) -> str:
    """A valid header with changed keys; keys with the value None are left out."""
    fields = {**GOOD, **{key.replace("_", " "): value for key, value in changes.items()}}
    return "ENVI\n" + "".join(f"{key} = {value}\n" for key, value in fields.items() if value is not None)


def write_cube(folder, content: str | bytes, size: int = 48):
    """Writes a header with this content and a data file of `size` bytes; returns the path of the header."""
    (folder / "cube.img").write_bytes(bytes(size))
    path = folder / "cube.hdr"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    archive = DATASETS / "envi_samples.tar.xz"
    if not archive.exists():
        pytest.skip("needs the ENVI samples")
    folder = tmp_path_factory.mktemp("envi")
    with tarfile.open(archive) as opened:
        opened.extractall(folder, filter="data")
    return folder / "envi_samples"


def test_every_sample_has_the_pixels_that_other_libraries_read(samples):
    table = pd.read_csv(samples / "expected.csv")
    cubes = table[table["sha256_HWC_le"].notna()]
    assert len(cubes) == 36
    for row in cubes.itertuples():
        header = samples / row.header
        assert header_of(samples / row.data) == header_of(header) == header
        assert data_of(header) == samples / row.data
        cube = open_envi(header).transpose(1, 2, 0)
        assert ("x".join(map(str, cube.shape)), cube.dtype.name) == (row.shape_HWC, row.dtype)
        little = np.ascontiguousarray(cube, cube.dtype.newbyteorder("<"))
        assert hashlib.sha256(little.tobytes()).hexdigest() == row.sha256_HWC_le, row.header
        measured = [cube.min(), cube.max(), cube.mean(dtype=float)]
        np.testing.assert_allclose(measured, [row.min, row.max, row.mean], rtol=1e-6)


def test_a_header_with_only_a_png_beside_it_has_no_data_file(samples):
    assert header_of(samples / "fenix_hippo/block1.png") is None
    with pytest.raises(ValueError, match=r"no data file beside the header; it must be one of block1, block1\.img"):
        data_of(samples / "fenix_hippo/block1.hdr")


def test_real_headers_give_bands_in_nanometres(samples):
    aviris = read_header(next(samples.glob("aviris_pycoal/*_987_654.hdr")))
    assert len(aviris.wavelengths) == len(aviris.fwhm) == len(aviris.good) == aviris.bands == 432
    assert 340 < min(aviris.wavelengths) < max(aviris.wavelengths) < 2520
    assert False in aviris.good
    fenix = read_header(samples / "fenix_hippo/image.hdr")
    assert (fenix.scale, fenix.nodata, len(fenix.wavelengths)) == (65535, 0, 450)
    older = read_header(next(samples.glob("aviris_pycoal/f080702*_rgb.hdr")))  # it has no unit
    assert older.wavelengths == (684.6979, 540.5568, 482.1898)
    assert (older.good, older.names, older.scale, older.nodata) == (None, None, None, None)


@settings(max_examples=80, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 6)),
    code=st.sampled_from(sorted(CODES)),
    interleave=st.sampled_from(sorted(ORDERS)),
    order=st.sampled_from("<>"),
    offset=st.integers(0, 40),
    trailing=st.integers(0, 9),
    seed=st.integers(0, 99),
)
def test_every_type_interleave_byte_order_and_offset_round_trips(
    tmp_path_factory, shape, code, interleave, order, offset, trailing, seed
):
    folder = tmp_path_factory.mktemp("cube")
    dtype = np.dtype(order + code)
    image = np.random.default_rng(seed).integers(0, 256, (*shape, dtype.itemsize), np.uint8).view(dtype)[..., 0]
    stored = image.transpose(ORDERS[interleave]).tobytes()
    (folder / "cube.raw").write_bytes(b"x" * offset + stored + b"y" * trailing)
    bands, lines, samples = (str(n) for n in shape)
    header = folder / "cube.hdr"
    sizes = {"bands": bands, "lines": lines, "samples": samples, "header_offset": str(offset)}
    layout = {
        "data_type": str(CODES[code]),
        "interleave": interleave.upper(),
        "byte_order": str("<>".index(order)),
    }
    header.write_text(text(**sizes, **layout))
    cube = open_envi(header)
    assert cube.dtype == dtype
    assert np.ascontiguousarray(cube).tobytes() == image.tobytes()  # bytes: NaN equals itself
    assert not cube.flags.writeable


def test_a_few_bands_of_a_big_cube_need_memory_only_for_themselves(tmp_path):
    bands, side = 512, 256
    header = write_cube(tmp_path, text(samples="256", lines="256", bands="512"))
    with (tmp_path / "cube.img").open("r+b") as file:
        file.truncate(bands * side * side * 2)  # 64 MiB without data on disk …
        file.seek(400 * side * side * 2)
        file.write(np.full(side * side, 7, "<u2").tobytes())  # … except band 400
    tracemalloc.start()
    cube = open_envi(header)
    chosen = np.asarray(cube[[3, 400]])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(cube.base, np.memmap)
    assert cube.shape == (bands, side, side)
    assert [int(band.max()) for band in chosen] == [0, 7]
    assert peak < 2 * chosen.nbytes


@pytest.mark.parametrize("interleave", ["bsq", "bil", "bip"])
def test_the_array_is_a_view_of_the_file(tmp_path, interleave):
    header = write_cube(tmp_path, text(interleave=interleave))
    cube = open_envi(header)
    with (tmp_path / "cube.img").open("r+b") as file:
        file.write(b"\xff\xff")  # the first pixel of every interleave
    assert cube[0, 0, 0] == 65535


@pytest.mark.parametrize(
    ("header", "data"),
    [
        ("a.hdr", "a"),
        ("a.hdr", "a.img"),
        ("a.HDR", "a.BIL"),
        ("a.hdr", "a.Bip"),
        ("a.hdr", "a.dat"),
        ("a.img.hdr", "a.img"),
        ("leaf [1] v1.2_rfl.hdr", "leaf [1] v1.2_rfl"),
        ("a.cube.HDR", "a.cube"),
    ],
)
def test_header_and_data_file_find_each_other(tmp_path, header, data):
    for name in (header, data, "a.png", "ab.img", "other.hdr"):
        (tmp_path / name).touch()
    assert header_of(tmp_path / data) == header_of(tmp_path / header) == tmp_path / header
    assert data_of(tmp_path / header) == tmp_path / data
    assert header_of(tmp_path / "a.png") is None


def test_a_file_with_a_separate_header_is_not_the_data_of_another_header(tmp_path):
    for name in ("a.bil", "a.bil.hdr", "a.bip", "a.hdr"):
        (tmp_path / name).touch()
    (tmp_path / "a").mkdir()  # a folder is no data file
    assert header_of(tmp_path / "a.bil").name == "a.bil.hdr"
    assert data_of(tmp_path / "a.hdr").name == "a.bip"
    assert data_of(tmp_path / "a.bil.hdr").name == "a.bil"


def test_no_header_is_none_and_two_data_files_are_named(tmp_path):
    (tmp_path / "a.img").touch()
    assert header_of(tmp_path / "a.img") is None
    assert header_of(tmp_path / "a.hdr") is None
    assert header_of(tmp_path / "nowhere" / "a.img") is None
    (tmp_path / "a.dat").touch()
    (tmp_path / "a.hdr").touch()
    with pytest.raises(ValueError, match=r"more than one data file fits: a\.dat, a\.img; keep only one"):
        data_of(tmp_path / "a.hdr")


def test_headers_in_all_styles_of_writing_are_read(tmp_path):
    lines = [
        b"ENVI",
        b"; a comment = {",
        b"description = {",
        b"  Bl\xe4tter, samples = 99, 5 \xb5m}",
        b"Samples=4",
        b"LINES   = 3",
        b"",
        b"bands = 2",
        b"data  type = 1",
        b"interleave = BIP",
        b"wavelength units = \xb5m",
        b"wavelength = {",
        b" 0.56,",
        b"; between the values",
        b" 1.64 , }",
        b"fwhm = { 0.01, 0.02 }",
        b"bbl = { 1.0, 0.0 }",
        b"band names = {Green",
        b" light, SWIR}",
        b"data ignore value = nan",
        b"reflectance scale factor = 1e4",
    ]
    for end in (b"\n", b"\r\n", b"\r"):
        header = read_header(write_cube(tmp_path, end.join(lines)))
        assert (header.samples, header.lines, header.bands, header.interleave, header.offset) == (4, 3, 2, "bip", 0)
        assert header.dtype == np.uint8  # one byte has no order
        assert (header.wavelengths, header.fwhm) == ((560.0, 1640.0), (10.0, 20.0))
        assert (header.good, header.names) == ((True, False), ("Green light", "SWIR"))
        assert np.isnan(header.nodata)
        assert header.scale == 10_000


@pytest.mark.parametrize(
    ("unit", "values", "nm"),
    [
        ("Nanometers", "{450, 2500}", (450, 2500)),
        ("nm", "{45, 50}", (45, 50)),
        ("Micrometers", "{0.45, 1.001}", (450, 1001)),
        ("um", "{0.45, 120}", (450, 120_000)),
        ("microns", "{0.45, 2.5}", (450, 2500)),
        (None, "{0.45, 12}", (450, 12_000)),
        (None, "{45, 900}", (45, 900)),
        ("Unknown", "{900, 450}", (900, 450)),  # in the file's order
        ("Wavenumber", "{}", None),
        ("Nanometers", None, None),
    ],
)
def test_wavelengths_are_converted_to_nanometres(tmp_path, unit, values, nm):
    header = read_header(write_cube(tmp_path, text(wavelength_units=unit, wavelength=values, fwhm="{1, 2}")))
    assert header.wavelengths == nm
    assert (header.fwhm is None) == (nm is None)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", r"^empty file \(0 bytes\)$"),
        (np.random.default_rng(0).bytes(4000), "^not an ENVI header: its first line must be ENVI$"),
        (b"ENVI\n" + bytes(range(256)), "^binary bytes after the line ENVI"),
        ("ENVIRONMENT\nsamples = 3\n", "^not an ENVI header"),
        ("BYTEORDER I\nNROWS 3\nNCOLS 4\n", "^an Esri header .* gdal_translate"),
        ("ENVI\n", "^no samples, lines, bands, data type, interleave: an ENVI header must give"),
        (text(interleave=None), "^no interleave: an ENVI header must give samples"),
        (text(interleave="bpi"), "^interleave = bpi: must be one of bsq, bil, bip$"),
        (text(samples="ten"), "^samples = ten: must be a whole number of at least 1$"),
        (text(lines="0"), "^lines = 0: must be"),
        (text(bands="2.5"), "^bands = 2.5: must be a whole number"),
        (text(header_offset="-1"), "^header offset = -1: must be a whole number of at least 0$"),
        (text(header_offset=""), "^header offset = : must be"),
        (text(data_type="7"), r"^data type = 7: must be one of 1 \(uint8\), 2 \(int16\)"),
        (text(data_type="6"), "^data type = 6: complex pixels; save their magnitude"),
        (text(byte_order=None), "^byte order = missing: must be 0 "),
        (text(byte_order="2"), "^byte order = 2: must be 0 "),
        (text(file_compression="1"), "^file compression = 1: must be 0; save the raster uncompressed$"),
        (text(file_type="ENVI Spectral Library"), "^file type = ENVI Spectral Library: must be ENVI Standard"),
        (text(file_type="TIFF"), "^file type = TIFF"),
        (text(major_frame_offsets="{0, 8}"), r"^major frame offsets = \{0, 8\}: must be 0"),
        (text() + "Lines = 5\n", "^line 10: lines is listed twice; keep one$"),
        (text() + "wavelength {1, 2}\n", r"^line 10: 'wavelength \{1, 2\}': must be `key = value`"),
        (text(wavelength="{400, 500, 600}"), "^wavelength: 3 values for 2 bands; give one per band$"),
        (text(wavelength="{400 500}"), "^wavelength: 1 values for 2 bands"),
        (text(fwhm="{1}"), "^fwhm: 1 values for 2 bands"),
        (text(bbl="{1}"), "^bbl: 1 values for 2 bands"),
        (text(band_names="{red}"), "^band names: 1 values for 2 bands"),
        (text(bbl="{1, -1}"), "^bbl: -1: must be 0 for a bad band"),
        (text(wavelength="{400, nan}"), "^wavelength, value 2 = nan: must be a finite number above 0$"),
        (text(wavelength="{400, inf}"), "^wavelength, value 2 = inf: must be"),
        (text(wavelength="{0, 400}"), "^wavelength, value 1 = 0: must be"),
        (text(wavelength="{400, five\nhundred}"), "^wavelength, value 2 = five hundred: must be"),
        (
            text(wavelength="{1e4, 2e4}", wavelength_units="Wavenumber"),
            "^wavelength units = Wavenumber: must be",
        ),
        (text(wavelength="{400, 500"), "^line 10: wavelength: the brace is never closed"),
        (text(wavelength="{400, 500", fwhm="{1, 2}"), "^line 10: wavelength: the brace is never closed"),
        (text(reflectance_scale_factor="0"), "^reflectance scale factor = 0: must be a finite number above 0$"),
        (text(data_ignore_value="none"), "^data ignore value = none: must be a number$"),
        (text(samples="{4,\n4}"), r"^samples = \{4, 4\}: must be a whole number"),
    ],
)
def test_a_malformed_header_is_refused_in_one_line_with_its_reason(tmp_path, content, reason):
    with pytest.raises(ValueError, match=reason) as error:
        open_envi(write_cube(tmp_path, content))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("size", "offset"), [(0, 0), (47, 0), (48, 1)])
def test_a_truncated_data_file_is_refused_with_both_sizes(tmp_path, size, offset):
    header = write_cube(tmp_path, text(header_offset=str(offset)), size)
    with pytest.raises(ValueError, match=rf"^cube\.img: truncated: {size} bytes of the {48 + offset} that the header"):
        open_envi(header)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60) | st.text("ENVI=\n{};, 0123bandslt", max_size=60).map(str.encode))
def test_no_bytes_raise_anything_but_value_error(tmp_path_factory, garbage):
    path = write_cube(tmp_path_factory.mktemp("garbage"), b"ENVI\n" + garbage)
    with pytest.raises(ValueError, match=r".+"):
        open_envi(path)
