"""Reads image files as arrays: PNG, JPEG, BMP, PPM, TIFF with any number of bands, ENVI cubes, NumPy arrays."""

from __future__ import annotations

import re
import struct
import warnings
from io import BytesIO
from mmap import MADV_WILLNEED, PAGESIZE, mmap
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".pbm", ".pgm", ".ppm", ".pnm", ".tif", ".tiff", ".hdr", ".npy"})
MAPPED = (".hdr", ".npy")  # read by memory map, so that unused bands stay on disk


class BandFacts(BaseModel):
    """What a file states about its bands; null for what it does not state."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")  # nodata may be NaN

    names: list[str] | None = None
    wavelengths: list[float | None] | None = None  # nm
    good: list[bool] | None = None  # False for a bad band
    scale: float | None = None  # the value that means reflectance 1
    nodata: float | None = None  # the value of pixels without data


class DecodedImage(NamedTuple):
    """An image (C, H, W) in the file's type, whether its last band is alpha, and what the file states about bands."""

    image: np.ndarray
    alpha: bool = False
    facts: BandFacts = BandFacts()


def open_image(path: str | Path) -> DecodedImage:
    """The image in a file. For an ENVI header or a .npy file, it is a memory-mapped view that is read when it is used.

    A .npy array is (H, W) or (H, W, C). Raises OSError for a file that cannot be read, ValueError for bytes that are
    not a complete image.
    """
    path = Path(path)
    match path.suffix.lower():
        case ".hdr":
            from simtrail.data.envi import open_envi, read_header

            header = read_header(path)
            fields = {"names": header.names, "wavelengths": header.wavelengths, "good": header.good}
            listed = {name: list(values) for name, values in fields.items() if values}
            return DecodedImage(open_envi(path), False, BandFacts(**listed, scale=header.scale, nodata=header.nodata))
        case ".npy":
            return DecodedImage(_open_npy(path))
    return decode(path.read_bytes())


def take_bands(image: np.ndarray, bands: list[int], rows: int = 16) -> np.ndarray:
    """A copy of the given bands of a (C, H, W) image, in the given order and in the machine's byte order.

    It reads band by band if the file stores whole bands, else `rows` rows at a time, so that each page of a memory map
    is read only once.
    """
    taken = np.empty((len(bands), *image.shape[1:]), image.dtype.newbyteorder("="))
    if abs(image.strides[0]) == max(map(abs, image.strides)):
        _read_ahead(image, bands)
        for plane, band in zip(taken, bands, strict=True):
            plane[:] = image[band]
        return taken
    for start in range(0, image.shape[1], rows):
        taken[:, start : start + rows] = image[bands, start : start + rows]
    return taken


def _read_ahead(image: np.ndarray, bands: list[int]) -> None:
    """Asks the system to read whole bands of a memory map; reading page by page can be ten times slower."""
    from numpy.lib.array_utils import byte_bounds

    base: Any = image
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap):
        start_of_map = byte_bounds(np.frombuffer(base, np.uint8))[0]
        for band in bands:
            first, last = (address - start_of_map for address in byte_bounds(image[band]))
            base.madvise(MADV_WILLNEED, first - first % PAGESIZE, last - first + first % PAGESIZE)


def image_of(path: Path) -> Path | None:
    """The image that a file belongs to: the header for an ENVI data file, else the file itself; None if no image."""
    from simtrail.data.envi import header_of

    return path if path.suffix.lower() in SUFFIXES else header_of(path)


def files_of(path: Path) -> list[Path]:
    """The files of an image: an ENVI header and its data file, else only the file itself."""
    from simtrail.data.envi import data_of

    return [path, data_of(path)] if path.suffix.lower() == ".hdr" else [path]


def read_image(path: str | Path) -> np.ndarray:
    """The image in a file as a (C, H, W) array in the file's type.

    Palettes are converted to RGB and 1-bit images to uint8. An alpha channel is the last band. A photograph's EXIF
    orientation is applied. Raises OSError for a file that cannot be read, ValueError for bytes that are not a complete
    image.
    """
    return np.ascontiguousarray(open_image(path).image)


def decode(data: bytes) -> DecodedImage:
    """The image in a file's bytes; raises ValueError with the reason if there is none."""
    if not data:
        raise ValueError("empty file (0 bytes)")
    try:
        if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            image, alpha, facts = _decode_tiff(data)
        elif data[:8] == b"\x89PNG\r\n\x1a\n" and data[24:26] in (b"\x10\x02", b"\x10\x04", b"\x10\x06"):
            (image, alpha), facts = _decode_deep_png(data), BandFacts()
        else:
            (image, alpha), facts = _decode_pillow(data), BandFacts()
    except Exception as error:  # broken bytes raise many types of errors; the caller needs one type
        if isinstance(error, MemoryError):
            raise
        raise ValueError(_reason(error)) from error
    if image.dtype.kind not in "uif":
        raise ValueError(f"pixels of type {image.dtype}: must be integers or floats; convert the file")
    return DecodedImage(np.ascontiguousarray(image), alpha, facts)


def _open_npy(path: Path) -> np.ndarray:
    try:
        image = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"not a complete NumPy array ({' '.join(str(error).split())})") from None
    if image.ndim not in (2, 3) or not image.size or image.dtype.kind not in "uif":
        raise ValueError(
            f"array of {image.dtype} {image.shape}: must be numbers, (height, width) or (height, width, bands)"
        )
    return image[None] if image.ndim == 2 else np.moveaxis(image, -1, 0)


def _decode_tiff(data: bytes) -> tuple[np.ndarray, bool, BandFacts]:
    from tifffile import TiffFile

    with TiffFile(BytesIO(data)) as tiff:
        series = tiff.series[0]
        page = tiff.pages.first
        image = series.asarray()
        axes = series.axes
        if image.ndim > 2 and 1 in image.shape:  # drop time, depth and series axes of length 1
            kept = [n > 1 or axis in "YX" for n, axis in zip(image.shape, axes, strict=True)]
            axes = "".join(axis for axis, is_kept in zip(axes, kept, strict=True) if is_kept)
            image = image.reshape([n for n, is_kept in zip(image.shape, kept, strict=True) if is_kept])
        if image.ndim == 2:
            return image[None], False, _tiff_facts(page, 1)
        if image.ndim != 3 or "Y" not in axes or "X" not in axes:
            raise ValueError(f"TIFF with axes {axes} {image.shape}: must be one image of height, width and bands")
        band_axis = next(i for i, axis in enumerate(axes) if axis not in "YX")
        # tag 338, ExtraSamples: 1 is associated, 2 unassociated alpha; the extra bands of scientific TIFFs have 0
        alpha = bool(page.extrasamples) and page.extrasamples[-1] in (1, 2) and len(page.extrasamples) == 1
        alpha = alpha and image.shape[band_axis] in (2, 4)
        return np.moveaxis(image, band_axis, 0), alpha, _tiff_facts(page, image.shape[band_axis] - alpha)


def _tiff_facts(page: Any, bands: int) -> BandFacts:
    """Facts in the tags of GDAL: names and wavelengths of bands (42112), and the value without data (42113)."""
    tags = {code: str(page.tags.valueof(code) or "") for code in (42112, 42113)}
    items = re.findall(r'<Item name="(\w+)" sample="(\d+)"[^>]*>([^<]*)</Item>', tags[42112])
    values: dict[str, dict[int, str]] = {}
    for name, sample, value in items:
        values.setdefault(name.lower(), {})[int(sample)] = value.strip()
    names, lengths, units = (values.get(key, {}) for key in ("description", "wavelength", "wavelength_units"))
    scale = 1000 if units.get(0, "").lower().startswith("micro") else 1
    try:
        wavelengths = [float(lengths[i]) * scale for i in range(bands)] if len(lengths) == bands else None
        nodata = float(tags[42113].strip("\0 ")) if tags[42113] else None
    except (ValueError, KeyError):
        raise ValueError(f"GDAL tags that are not numbers: wavelengths {lengths}, no-data {tags[42113]!r}") from None
    return BandFacts(
        names=[names[i] for i in range(bands)] if set(names) == set(range(bands)) else None,
        wavelengths=list(wavelengths) if wavelengths else None,
        nodata=nodata,
    )


def _decode_deep_png(data: bytes) -> tuple[np.ndarray, bool]:
    from imagecodecs import png_decode  # Pillow would reduce 16-bit colour to 8 bits

    image = np.moveaxis(png_decode(data), -1, 0)
    return image, len(image) in (2, 4)


def _decode_pillow(data: bytes) -> tuple[np.ndarray, bool]:
    from PIL import Image, ImageOps

    if (head := re.match(rb"P[36]\s(?:#[^\n]*\n|\s)*\d+\s+\d+\s+(\d+)\s", data[:512])) and int(head[1]) > 255:
        raise ValueError(
            f"PPM with values up to {int(head[1])}: only 8-bit colour PPM is read; convert it to PNG or TIFF"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        opened = Image.open(BytesIO(data))
        opened.load()
        image = ImageOps.exif_transpose(opened) if opened.format == "JPEG" else opened
    if "transparency" in image.info or image.mode in ("PA", "La", "RGBa"):
        image = image.convert("LA" if image.mode in ("L", "La", "1") else "RGBA")
    elif image.mode == "1":
        image = image.convert("L")
    elif image.mode in ("P", "CMYK", "YCbCr", "LAB", "HSV"):
        image = image.convert("RGB")
    array = np.asarray(image)
    if image.mode == "I" and opened.format in ("PNG", "PPM"):  # Pillow opens these 16-bit files with 32 bits
        array = array.astype(np.uint16)
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("="))
    return (array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)), image.mode in ("LA", "RGBA")


def _reason(error: Exception) -> str:
    """A decoder's error as a reason of one line."""
    text = " ".join(str(error).split())
    if "cannot identify image file" in text:
        return "not an image of a known format, despite its name"
    if (
        isinstance(error, EOFError | struct.error | IndexError)
        or "truncated" in text.lower()
        or "unpack requires" in text
    ):
        return "truncated image" + (f" ({text})" if text else "")
    return re.sub(r"<_io.BytesIO object at 0x[0-9a-f]+>", "the file", text) or type(error).__name__
