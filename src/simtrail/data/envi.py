"""ENVI rasters by memory map, so that selected bands are all that is read: a text header beside a flat binary file.

Own code, since the known library comes as source only or copies the whole cube, and the format fills one page:
https://www.nv5geospatialsoftware.com/docs/ENVIHeaderFiles.html. A ValueError is one line; the caller names the file.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_DATA_SUFFIXES = ("", ".img", ".bil", ".bip", ".bsq", ".raw", ".dat")
_TYPES = {1: "u1", 2: "i2", 3: "i4", 4: "f4", 5: "f8", 12: "u2", 13: "u4", 14: "i8", 15: "u8"}
_AXES = {"bsq": "CHW", "bil": "HCW", "bip": "HWC"}  # of the file, the slowest first
_SCALE, _NODATA = "reflectance scale factor", "data ignore value"


@dataclass(frozen=True)
class Header:
    """What an ENVI header says of its data file; None where it does not say."""

    samples: int  # W
    lines: int  # H
    bands: int  # C
    dtype: np.dtype  # with the file's byte order
    interleave: str  # bsq, bil or bip
    offset: int  # bytes before the first pixel
    wavelengths: tuple[float, ...] | None  # nm, one per band, in the file's order
    fwhm: tuple[float, ...] | None  # nm, one per band; None without wavelengths, whose unit it shares
    names: tuple[str, ...] | None  # one per band
    good: tuple[bool, ...] | None  # one per band, False where the bad-band list (bbl) has 0
    scale: float | None  # the pixel value of reflectance 1
    nodata: float | None  # the pixel value that means none; may be NaN


def header_of(path: Path) -> Path | None:
    """The header that belongs to a path, which may be the header itself or the data file; None where there is none.

    `a.img` has `a.img.hdr`, or else `a.hdr`; a suffix may be in lower, upper or title case. A file with a suffix
    that ENVI data do not carry, such as `a.png`, has no `a.hdr`.
    """
    if path.suffix.lower() == ".hdr":
        return path if path.is_file() else None
    stems = [path.name] + [path.stem] * (path.suffix.lower() in _DATA_SUFFIXES)
    return next((header for stem in stems for header in _files(path.parent, stem, (".hdr",))), None)


def data_of(header: Path) -> Path:
    """The data file of a header: its name without `.hdr`, alone or with one of the suffixes that ENVI data carry.

    A file with a header of its own (`a.bil` beside `a.bil.hdr`) is not that of `a.hdr`. Raises ValueError where no file
    fits, or more than one.
    """
    beside = _files(header.parent, header.stem, _DATA_SUFFIXES)
    fits = [path for path in beside if (own := header_of(path)) and own.name.lower() == header.name.lower()]
    if len(fits) > 1:
        raise ValueError(f"more than one data file fits: {', '.join(p.name for p in fits)}; leave one of them")
    if not fits:
        sought = ", ".join(header.stem + suffix for suffix in _DATA_SUFFIXES)
        raise ValueError(f"no data file beside the header; it must be one of {sought}")
    return fits[0]


def read_header(path: Path) -> Header:
    """The header in a file. Raises OSError for a file that cannot be read, ValueError for one that is no whole header.

    Wavelengths come in nm, from the nanometres or micrometres of `wavelength units`. Where the header leaves the unit
    out or says Unknown, they are taken for micrometres if all are below 100 and for nanometres otherwise.
    """
    fields = _fields(path)
    required = ("samples", "lines", "bands", "data type", "interleave")
    if missing := [key for key in required if key not in fields]:
        raise ValueError(f"no {', '.join(missing)}: an ENVI header must give {', '.join(required)}")
    _refuse_other_layouts(fields)
    interleave = fields["interleave"].lower()
    if interleave not in _AXES:
        raise ValueError(f"interleave = {fields['interleave']}: must be {', '.join(_AXES)}")
    samples, lines, bands = (_whole(fields, key, at_least=1) for key in ("samples", "lines", "bands"))
    wavelengths, fwhm = _wavelengths(fields, bands)
    names, bbl = _items(fields, "band names", bands), _numbers(fields, "bbl", bands)
    if wrong := set(bbl or ()) - {0, 1}:
        raise ValueError(f"bbl: {min(wrong):g}: must be 0 for a bad band, 1 for a good one")
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
    )


def open_envi(header: Path) -> np.ndarray:
    """The (C, H, W) pixels of a header's data file: a read-only view of a memory map, in the file's own type and order.

    Nothing is read before it is indexed: some bands of a bsq file cost only those bands, some lines of a bil or bip
    file only those lines. Bytes after the last pixel are left alone. Raises ValueError for a truncated data file, and
    whatever `read_header` and `data_of` raise.
    """
    info, data = read_header(header), data_of(header)
    sizes = {"C": info.bands, "H": info.lines, "W": info.samples}
    expected = info.offset + info.bands * info.lines * info.samples * info.dtype.itemsize
    if (found := data.stat().st_size) < expected:
        raise ValueError(f"{data.name}: truncated: {found} bytes of the {expected} that the header declares")
    axes = _AXES[info.interleave]
    pixels = np.memmap(data, info.dtype, "r", info.offset, tuple(sizes[axis] for axis in axes))
    return pixels.transpose([axes.index(axis) for axis in "CHW"])


def _files(folder: Path, stem: str, suffixes: tuple[str, ...]) -> list[Path]:
    """The files of a folder named `stem` + one of the suffixes, sorted.

    Asked for by name: to list the folder for each of its files would cost the square of their number.
    """
    forms = {form for suffix in suffixes for form in (suffix, suffix.upper(), suffix.title())}
    paths = (folder / (stem + form) for form in sorted(forms))
    found = {path.stat().st_ino: path for path in paths if path.is_file()}  # one, where the file system knows no case
    return sorted(found.values())


def _fields(path: Path) -> dict[str, str]:
    """The values of a header by key in lower case; a value in braces keeps them and may have several lines."""
    with path.open("rb") as file:
        head = file.read(1024)  # a raster that is merely named .hdr is not read whole
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
    rest = ((n, line) for n, whole in numbered if n > 1 and (line := whole.strip()) and not line.startswith(";"))
    fields: dict[str, str] = {}
    for number, line in rest:
        name, equals, value = (part.strip() for part in line.partition("="))
        key = " ".join(name.lower().split())
        if not (key and equals):
            raise ValueError(f"line {number}: {line[:40]!r}: must be `key = value`, or a comment that begins with ;")
        if key in fields:
            raise ValueError(f"line {number}: {key} stands there twice; keep one")
        while value.startswith("{") and "}" not in value:
            _, more = next(rest, (0, None))
            if more is None or re.match(r"[^={}]+=\s*\{", more):  # the end, or the next key's own brace
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


def _refuse_other_layouts(fields: dict[str, str]) -> None:
    """Refuses what would make the data file anything but plain pixels in rows."""
    if (compression := fields.get("file compression", "0")) != "0":
        raise ValueError(f"file compression = {compression}: must be 0; save the raster uncompressed")
    kind = fields.get("file type", "")
    if re.search(r"library|meta|virtual|tiff|jpeg|hdf|nitf", kind, re.IGNORECASE):
        raise ValueError(f"file type = {kind}: must be ENVI Standard or ENVI Classification; save it as an ENVI raster")
    for key in ("major frame offsets", "minor frame offsets"):
        if re.search("[1-9]", fields.get(key, "")):
            raise ValueError(f"{key} = {fields[key]}: must be 0; save the raster without bytes between its rows")


def _dtype(fields: dict[str, str]) -> np.dtype:
    code = _whole(fields, "data type", at_least=0)
    if code in (6, 9):
        raise ValueError(f"data type = {code}: complex pixels; save their magnitude, as data type 4 or 5")
    if code not in _TYPES:
        known = ", ".join(f"{number} ({np.dtype(name)})" for number, name in _TYPES.items())
        raise ValueError(f"data type = {code}: must be one of {known}")
    dtype = np.dtype(_TYPES[code])
    if dtype.itemsize == 1 and "byte order" not in fields:
        return dtype
    order = fields.get("byte order")  # required by the format: a wrong guess gives noise, not an error
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
    """The texts of a list with one item per band; None where the key is absent or its list empty."""
    text = fields.get(key, "").removeprefix("{").removesuffix("}").strip()
    items = [" ".join(item.split()) for item in text.removesuffix(",").split(",")] if text else []
    if items and len(items) != bands:
        raise ValueError(f"{key}: {len(items)} values for {bands} bands; give one per band")
    return items or None


def _numbers(fields: dict[str, str], key: str, bands: int, above: float | None = None) -> list[float] | None:
    items = _items(fields, key, bands)
    return None if items is None else [_number(f"{key}, value {i}", item, above) for i, item in enumerate(items, 1)]


def _number(name: str, text: str, above: float | None = None) -> float:
    """The number in a text; where `above` is given, it must be greater, and finite."""
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
