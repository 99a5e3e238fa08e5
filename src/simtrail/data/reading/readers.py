"""The one place where image files become arrays (C, H, W), whatever their format: see `open_image`."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from mmap import MADV_WILLNEED, PAGESIZE, mmap
from pathlib import Path
from typing import Any

import numpy as np

from simtrail.data.reading import arrays
from simtrail.data.reading.decoded import BandFacts, DecodedImage, Limits, Reading
from simtrail.errors import InputError

SUFFIXES = arrays.SUFFIXES | {
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".gif", ".webp", ".avif", ".heic", ".heif"),
    *(".hif", ".jxl", ".jp2", ".j2k", ".jpx", ".jpf", ".j2c", ".jpc", ".pbm", ".pgm", ".ppm", ".pnm"),
    *(".tif", ".tiff", ".btf", ".tf8", ".hdr"),
}
MAPPED = arrays.SUFFIXES | {".hdr"}  # opened by path; ENVI and .npy as a memory map, so that unused bands stay on disk
DEFAULT = Reading()


def open_image(
    path: str | Path, reading: Reading = DEFAULT, needed: int | None = None, max_side: int | None = None
) -> DecodedImage:
    """The image in a file. For an ENVI cube or a .npy file, it is a memory-mapped view that is read when it is used.

    An ENVI cube may be named by its header or by its data file. Palettes become RGB, 1-bit images uint8; alpha is the
    last band; the image is upright. `reading` says how files that leave a choice are read. `needed` is the length to
    which the shortest side will be reduced: large JPEG and JPEG 2000 files are then decoded at a lower resolution.
    `max_side` refuses large images with a longer side before they are decoded.
    Raises OSError for a file that cannot be read, ValueError for bytes that are not a complete image.
    """
    path = image_of(Path(path)) or Path(path)
    suffix = path.suffix.lower()
    if suffix == ".hdr":
        return _applied(_open_envi(path), reading)
    if suffix in arrays.SUFFIXES:
        with _value_errors():
            decoded = arrays.open_array(path, reading, Limits(path.stat().st_size, max_side))
        return _applied(decoded, reading)
    return decode(path.read_bytes(), reading, needed, max_side)


def read_image(path: str | Path, array: str | None = None, axes: str | None = None) -> np.ndarray:
    """The image in a file as a (C, H, W) array in the file's type; see `open_image`.

    `array` names the array in a MATLAB, HDF5, NetCDF or .npz file that has several. `axes` gives the axes of a stack,
    such as CYX or YXC. Raises OSError for a file that cannot be read, ValueError for bytes that are not a complete
    image.
    """
    return np.ascontiguousarray(open_image(path, Reading(array=array, axes=axes)).image)


def decode(
    data: bytes, reading: Reading = DEFAULT, needed: int | None = None, max_side: int | None = None
) -> DecodedImage:
    """The image in a file's bytes, as `open_image`; raises ValueError with the reason if there is none."""
    from simtrail.data.reading.photographs import decode_photograph
    from simtrail.data.reading.tiff import decode_tiff

    if not data:
        raise ValueError("empty file (0 bytes)")
    limits = Limits(len(data), max_side)
    with _value_errors(data):
        if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            decoded = decode_tiff(data, reading, limits)
        else:
            decoded = decode_photograph(data, limits, needed)
    if decoded.image.dtype.kind not in "uif" or not decoded.image.size:
        raise ValueError(f"pixels of type {decoded.image.dtype}: must be integers or floats; convert the file")
    return _applied(decoded, reading)


def _open_envi(path: Path) -> DecodedImage:
    from simtrail.data.reading.envi import open_envi, read_header

    header = read_header(path)
    fields = {key: getattr(header, key) for key in ("names", "wavelengths", "good", "gains", "offsets")}
    listed = {name: list(values) for name, values in fields.items() if values}
    return DecodedImage(open_envi(path), False, BandFacts(**listed, scale=header.scale, nodata=header.nodata))


def _applied(decoded: DecodedImage, reading: Reading) -> DecodedImage:
    """The image after the conversions that the reading asks for."""
    image, alpha, facts, notes = decoded
    if facts.gains and 0 in facts.gains:
        raise ValueError(f"the scale of band {facts.gains.index(0) + 1} is 0, so that all its pixels would be equal")
    if reading.grey_as_rgb and len(image) - alpha == 1:
        image = np.concatenate([image[:1]] * 3 + [image[1:]])
        thrice = {key: getattr(facts, key) and getattr(facts, key) * 3 for key in ("gains", "offsets", "good")}
        facts = facts.model_copy(update={"names": None, "wavelengths": None, **thrice})
    if reading.as_uint16 and image.dtype == np.uint8:
        image = image.astype(np.uint16) * np.uint16(257)
        times = {key: getattr(facts, key) and getattr(facts, key) * 257 for key in ("scale", "nodata")}
        facts = facts.model_copy(update={**times, "gains": facts.gains and [gain / 257 for gain in facts.gains]})
    return DecodedImage(image, alpha, facts, notes)


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


def walk(folder: Path, links: bool = False, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """The files in a folder and its subfolders, sorted. Links to folders are followed with `links`, else yielded.

    A link to a folder that contains it is yielded too. `above` are the real paths of the folders that contain this one.
    Raises InputError for a folder that must not be read.
    """
    above |= {folder.resolve()}
    try:
        paths = sorted(folder.iterdir())
    except PermissionError:
        raise InputError(f"{folder}: no permission to list its files; chmod +rx the folder") from None
    for path in paths:
        loop = path.is_symlink() and (not links or path.resolve() in above)
        if path.is_dir() and not loop:
            yield from walk(path, links, above)
        else:
            yield path


def image_of(path: Path) -> Path | None:
    """The image that a file belongs to: the header for an ENVI data file, else the file itself; None if no image."""
    from simtrail.data.reading.envi import header_of

    return path if path.suffix.lower() in SUFFIXES else header_of(path)


def files_of(path: Path) -> list[Path]:
    """The files of an image: an ENVI header and its data file, else only the file itself."""
    from simtrail.data.reading.envi import data_of

    return [path, data_of(path)] if path.suffix.lower() == ".hdr" else [path]


@contextmanager
def _value_errors(data: bytes = b"") -> Iterator[None]:
    """Turns the many types of errors that broken files raise into ValueError with a reason of one line."""
    try:
        yield
    except MemoryError as error:
        raise ValueError("needs more memory than there is: too large, or damaged") from error
    except OSError as error:
        if not data:
            raise
        raise ValueError(_other_file(data) or _reason(error, data)) from error
    except Exception as error:
        raise ValueError(_other_file(data) or _reason(error, data)) from error


_OTHER_FILES = {  # what begins with these bytes, in lower case
    b"version https://git-lfs": "a Git LFS pointer, not the image; run: git lfs pull",
    b"%pdf": "a PDF file: export its image as PNG or TIFF",
    b"<!doctype html": "an HTML page; download the image itself",
    b"<html": "an HTML page; download the image itself",
    b"<svg": "an SVG drawing: export it as PNG",
    b"<?xml": "an XML file, such as an error of a server, not an image",
    b"%!ps": "a PostScript file: export its image as PNG or TIFF",
    b"{": "a JSON file, not an image",
}
_VIDEOS = (b"isom", b"iso2", b"mp41", b"mp42", b"avc1", b"qt  ", b"M4V ", b"3gp4", b"3gp5")


def _other_file(data: bytes) -> str | None:
    """What the bytes are, if they are of a kind that often has the name of an image by mistake."""
    start = data[:200].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if (data[4:8] == b"ftyp" and data[8:12] in _VIDEOS) or data[:4] == b"\x1aE\xdf\xa3" or data[8:12] == b"AVI ":
        return "a video, not an image; extract its frames"
    return next((what for head, what in _OTHER_FILES.items() if start.startswith(head)), None)


def _reason(error: Exception, data: bytes) -> str:
    """A decoder's error as a reason of one line."""
    text = " ".join(str(error).split())
    if "cannot identify image file" in text:
        if data[:2] == b"\xff\xd8":
            return "a JPEG of a kind that is not read (12-bit, lossless), or damaged; convert it to PNG or TIFF"
        return "not an image of a known format, despite its name"
    if (
        isinstance(error, EOFError | struct.error | IndexError)
        or "truncated" in text.lower()
        or "unpack requires" in text
    ):
        return "truncated image" + (f" ({text})" if text else "")
    return re.sub(r"<[\w.]+ object at 0x[0-9a-f]+>", "the file", text) or type(error).__name__
