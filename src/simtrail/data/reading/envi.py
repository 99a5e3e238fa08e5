"""Reads ENVI rasters (a text header and a binary file of pixels) by memory map, so that only the bands used are read.

No library is used: the known ones are distributed as source only or copy the whole cube, and the format is short:
https://www.nv5geospatialsoftware.com/docs/ENVIHeaderFiles.html. Each ValueError is one line; callers add the file name.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_DATA_SUFFIXES = ("", ".img", ".bil", ".bip", ".bsq", ".raw", ".dat", ".bin")
_TYPES = {1: "u1", 2: "i2", 3: "i4", 4: "f4", 5: "f8", 12: "u2", 13: "u4", 14: "i8", 15: "u8"}
_AXES = {"bsq": "CHW", "bil": "HCW", "bip": "HWC"}  # of the file, the slowest axis first
_SCALE, _NODATA = "reflectance scale factor", "data ignore value"


@dataclass(frozen=True)
class Header:
    """The contents of an ENVI header; None for a field that it does not have."""

    samples: int  # W
    lines: int  # H
    bands: int  # C
    dtype: np.dtype  # with the file's byte order
    interleave: str  # bsq, bil or bip
    offset: int  # bytes before the first pixel
    wavelengths: tuple[float, ...] | None  # nm, one per band, in the file's order
    fwhm: tuple[float, ...] | None  # nm, one per band; None without wavelengths, because it has their unit
    names: tuple[str, ...] | None  # one per band
    good: tuple[bool, ...] | None  # one per band, False where the bad-band list (bbl) has 0
    scale: float | None  # the pixel value of reflectance 1
    nodata: float | None  # the pixel value that means no data; may be NaN
    gains: tuple[float, ...] | None  # reflectance (or radiance) = value × gain + offset, one per band
    offsets: tuple[float, ...] | None


def header_of(path: Path) -> Path | None:
    """The header for a path, which may be the header itself or its data file; None if there is no header.

    The header of `a.img` is `a.img.hdr`, or else `a.hdr`. A suffix may be in lower, upper or title case. `a.hdr` is
    never the header of a file whose suffix is not used for ENVI data, such as `a.png`.
    """
    if path.suffix.lower() == ".hdr":
        return path if path.is_file() else None
    stems = [path.name] + [path.stem] * (path.suffix.lower() in _DATA_SUFFIXES)
    return next((header for stem in stems for header in _files(path.parent, stem, (".hdr",))), None)


def data_of(header: Path) -> Path:
    """The data file of a header: its name without `.hdr`, or that name with one of the suffixes of ENVI data.

    A file with a separate header (`a.bil` with `a.bil.hdr`) is not the data file of `a.hdr`. Raises ValueError if no
    file or more than one file fits.
    """
    candidates = _files(header.parent, header.stem, _DATA_SUFFIXES)
    matches = [path for path in candidates if (its := header_of(path)) and its.name.lower() == header.name.lower()]
    if len(matches) > 1:
        raise ValueError(f"more than one data file fits: {', '.join(p.name for p in matches)}; keep only one of them")
    if not matches:
        expected = ", ".join(header.stem + suffix for suffix in _DATA_SUFFIXES)
        raise ValueError(f"no data file beside the header; it must be one of {expected}")
    return matches[0]


def read_header(path: Path) -> Header:
    """The header in a file. Raises OSError for a file that cannot be read, ValueError for an invalid header.

    Wavelengths are converted to nm from the unit in `wavelength units`, nanometres or micrometres. If the header has no
    unit or says Unknown, they are taken as micrometres if all are below 100, and as nanometres otherwise.
    """
    fields = _fields(path)
    required = ("samples", "lines", "bands", "data type", "interleave")
    if missing := [key for key in required if key not in fields]:
        raise ValueError(f"no {', '.join(missing)}: an ENVI header must give {', '.join(required)}")
    _require_plain_pixels(fields)
    interleave = fields["interleave"].lower()
    if interleave not in _AXES:
        raise ValueError(f"interleave = {fields['interleave']}: must be one of {', '.join(_AXES)}")
    samples, lines, bands = (_whole(fields, key, at_least=1) for key in ("samples", "lines", "bands"))
    wavelengths, fwhm = _wavelengths(fields, bands)
    names, bbl = _items(fields, "band names", bands), _numbers(fields, "bbl", bands)
    if wrong := set(bbl or ()) - {0, 1}:
        raise ValueError(f"bbl: {min(wrong):g}: must be 0 for a bad band, 1 for a good one")
    gains, offsets = (
        next((v for kind in ("reflectance ", "") if (v := _numbers(fields, f"data {kind}{key} values", bands))), None)
        for key in ("gain", "offset")
    )
    return Header(
        samples=samples,
        lines=lines,
        bands=bands,
        dtype=_dtype(fields),
        interleave=interleave,
        offset=_whole(fields, "header offset", at_least=0) if "header offset" in fields else 0,
        wavelengths=wavelengths,
        fwhm=fwhm,
        names=tuple(names) if names else None,
        good=tuple(value == 1 for value in bbl) if bbl else None,
        scale=_number(_SCALE, fields[_SCALE], above=0) if _SCALE in fields else None,
        nodata=_number(_NODATA, fields[_NODATA]) if _NODATA in fields else None,
        gains=tuple(gains or [1.0] * bands) if gains or offsets else None,
        offsets=tuple(offsets or [0.0] * bands) if gains or offsets else None,
    )


def open_envi(header: Path) -> np.ndarray:
    """The pixels (C, H, W) of a header's data file: a read-only memory map in the file's type and byte order.

    Pixels are read when they are indexed: some bands of a bsq file cost only those bands, some lines of a bil or bip
    file only those lines. Bytes after the last pixel are ignored. Raises ValueError for a truncated data file, and the
    errors of `read_header` and `data_of`.
    """
    info, data = read_header(header), data_of(header)
    sizes = {"C": info.bands, "H": info.lines, "W": info.samples}
    expected = info.offset + info.bands * info.lines * info.samples * info.dtype.itemsize
    if (size := data.stat().st_size) < expected:
        raise ValueError(f"{data.name}: truncated: {size} bytes of the {expected} that the header declares")
    axes = _AXES[info.interleave]
    pixels = np.memmap(data, info.dtype, "r", info.offset, tuple(sizes[axis] for axis in axes))
    return pixels.transpose([axes.index(axis) for axis in "CHW"])


def _files(folder: Path, stem: str, suffixes: tuple[str, ...]) -> list[Path]:
    """The existing files of a folder whose name is `stem` + one of the suffixes, sorted.

    Each name is tested separately. To list the folder for each of its files would take quadratic time.
    """
    cased_suffixes = {cased for suffix in suffixes for cased in (suffix, suffix.upper(), suffix.title())}
    paths = (folder / (stem + cased) for cased in sorted(cased_suffixes))
    by_inode = {path.stat().st_ino: path for path in paths if path.is_file()}  # once, if the file system ignores case
    return sorted(by_inode.values())


def _fields(path: Path) -> dict[str, str]:
    """The values in a header, by key in lower case; a value in braces keeps the braces and may have several lines."""
    with path.open("rb") as file:
        head = file.read(1024)  # so that a large raster named .hdr is not read completely
        if not re.match(rb"(\xef\xbb\xbf)?ENVI[ \t]*([\r\n]|\Z)", head):
            raise ValueError(_not_envi(head))
        raw = head + file.read()
    if b"\0" in raw:
        raise ValueError("binary bytes after the line ENVI; an ENVI header is a text file")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    numbered = enumerate(re.split(r"\r\n?|\n", text), 1)
    lines = ((n, line) for n, raw_line in numbered if n > 1 and (line := raw_line.strip()) and not line.startswith(";"))
    fields: dict[str, str] = {}
    for number, line in lines:
        name, equals, value = (part.strip() for part in line.partition("="))
        key = " ".join(name.lower().split())
        if not (key and equals):
            raise ValueError(f"line {number}: {line[:40]!r}: must be `key = value`, or a comment that begins with ;")
        if key in fields:
            raise ValueError(f"line {number}: {key} is listed twice; keep one")
        while value.startswith("{") and "}" not in value:
            _, more = next(lines, (0, None))
            if more is None or re.match(r"[^={}]+=\s*\{", more):  # the end of the file, or the next key with a brace
                raise ValueError(f"line {number}: {key}: the brace is never closed; end the value with }}")
            value += " " + more
        fields[key] = value
    return fields


def _not_envi(head: bytes) -> str:
    if not head:
        return "empty file (0 bytes)"
    if re.search(rb"(?im)^\s*(nrows|ncols)\s+\d", head):
        return "an Esri header (NROWS, NCOLS), not an ENVI one; convert the raster: gdal_translate -of ENVI"
    return "not an ENVI header: its first line must be ENVI"


def _require_plain_pixels(fields: dict[str, str]) -> None:
    """Raises ValueError if the data file is something else than plain pixels in rows."""
    if (compression := fields.get("file compression", "0")) != "0":
        raise ValueError(f"file compression = {compression}: must be 0; save the raster uncompressed")
    file_type = fields.get("file type", "")
    if re.search(r"library|meta|virtual|tiff|jpeg|hdf|nitf", file_type, re.IGNORECASE):
        raise ValueError(
            f"file type = {file_type}: must be ENVI Standard or ENVI Classification; save it as an ENVI raster"
        )
    for key in ("major frame offsets", "minor frame offsets"):
        if re.search("[1-9]", fields.get(key, "")):
            raise ValueError(f"{key} = {fields[key]}: must be 0; save the raster without bytes between its rows")


def _dtype(fields: dict[str, str]) -> np.dtype:
    code = _whole(fields, "data type", at_least=0)
    if code in (6, 9):
        raise ValueError(f"data type = {code}: complex pixels; save their magnitude, as data type 4 or 5")
    if code not in _TYPES:
        allowed = ", ".join(f"{number} ({np.dtype(name)})" for number, name in _TYPES.items())
        raise ValueError(f"data type = {code}: must be one of {allowed}")
    dtype = np.dtype(_TYPES[code])
    if dtype.itemsize == 1 and "byte order" not in fields:
        return dtype
    order = fields.get("byte order")  # required, because a wrong order gives noise instead of an error
    if order not in ("0", "1"):
        raise ValueError(f"byte order = {order or 'missing'}: must be 0 (little-endian) or 1 (big-endian)")
    return dtype.newbyteorder("<" if order == "0" else ">")


def _wavelengths(fields: dict[str, str], bands: int) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Wavelengths and full widths at half maximum, in nm."""
    values, widths = _numbers(fields, "wavelength", bands, above=0), _numbers(fields, "fwhm", bands, above=0)
    if values is None:
        return None, None
    unit = fields.get("wavelength units", "")
    if not unit or unit.lower() == "unknown":
        factor = 1000 if max(values) < 100 else 1
    elif re.fullmatch(r"nanomet(er|re)s?|nm", unit, re.IGNORECASE):
        factor = 1
    elif re.fullmatch(r"micromet(er|re)s?|microns?|[uµμ]m", unit, re.IGNORECASE):
        factor = 1000
    else:
        raise ValueError(f"wavelength units = {unit}: must be Nanometers or Micrometers; convert the wavelengths")
    # rounded, so that 1.001 µm is 1001 nm and not 1000.9999999999999
    nm = [tuple(round(value * factor, 9) for value in row) for row in (values, widths or ())]
    return nm[0], nm[1] or None


def _items(fields: dict[str, str], key: str, bands: int) -> list[str] | None:
    """The items of a list with one text per band; None if the key is missing or its list is empty."""
    text = fields.get(key, "").removeprefix("{").removesuffix("}").strip()
    items = [" ".join(item.split()) for item in text.removesuffix(",").split(",")] if text else []
    if items and len(items) != bands:
        raise ValueError(f"{key}: {len(items)} values for {bands} bands; give one per band")
    return items or None


def _numbers(fields: dict[str, str], key: str, bands: int, above: float | None = None) -> list[float] | None:
    items = _items(fields, key, bands)
    return None if items is None else [_number(f"{key}, value {i}", item, above) for i, item in enumerate(items, 1)]


def _number(name: str, text: str, above: float | None = None) -> float:
    """The number in a text; if `above` is given, the number must be finite and greater."""
    try:
        value = float(text)
    except ValueError:
        value = None
    if value is None or (above is not None and not above < value < math.inf):
        raise ValueError(
            f"{name} = {text}: must be a {'number' if above is None else f'finite number above {above:g}'}"
        )
    return value


def _whole(fields: dict[str, str], key: str, at_least: int) -> int:
    text = fields[key]
    if not re.fullmatch(r"[+-]?\d{1,18}", text) or int(text) < at_least:
        raise ValueError(f"{key} = {text}: must be a whole number of at least {at_least}")
    return int(text)
