"""Decodes photographs and graphics: everything that Pillow reads, and deep PNG, JPEG 2000, JPEG XL and AVIF."""

from __future__ import annotations

import re
import threading
import warnings
from io import BytesIO
from typing import Any

import numpy as np

from simtrail.data.reading.decoded import DecodedImage, Limits, upright

EXACT = 2**20  # an image with at most so many pixels is always decoded completely
OVERSAMPLED = 4  # a reduced decode keeps so many times the pixels per side that are needed
_STRIP = 256  # rows
_OPENING = threading.Lock()
# not EPS, which Pillow gives to another program to run; not TIFF, see tiff.py
_FORMATS = ("PNG", "JPEG", "BMP", "DIB", "GIF", "WEBP", "AVIF", "JPEG2000", "PPM")
_HEIF = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1")


def decode_photograph(data: bytes, limits: Limits, needed: int | None = None) -> DecodedImage:
    """The image in the bytes of a file; raises many types of errors for broken bytes.

    `needed` is the length in pixels to which the shortest side will be reduced: a large JPEG or JPEG 2000 file is then
    decoded at a lower resolution, of at least `OVERSAMPLED` times this length.
    """
    if data[:8] == b"\x89PNG\r\n\x1a\n" and data[24:25] == b"\x10":
        return _deep_png(data, limits)
    if data[:2] == b"\xff\x0a" or data[4:8] == b"JXL ":
        return _jpeg_xl(data, limits)
    if (start := data[:4096].find(b"\xff\x4f\xff\x51")) >= 0 and (data[4:8] == b"jP  " or start == 0):
        bands = int.from_bytes(data[start + 40 : start + 42])
        depths = data[start + 42 : start + 42 + 3 * bands : 3]
        if bands > 4 or max(depths, default=0) != 7:  # Pillow reduces to 8 bits, or reads no such file
            return _deep_jpeg_2000(data, start, bands, limits)
    return _pillow(data, limits, needed)


def _deep_png(data: bytes, limits: Limits) -> DecodedImage:
    """A PNG with 16 bits per band, which Pillow reduces to 8 bits if it has colour."""
    from imagecodecs import png_decode

    width, height = (int.from_bytes(data[i : i + 4]) for i in (16, 20))
    limits.require((height, width, 4), np.uint16)
    image = np.atleast_3d(png_decode(data))
    states = any(key in data for key in (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp"))
    orientation, notes = _orientation(_open(data)) if states else (1, ())  # Pillow decodes all to look for it
    return DecodedImage(upright(np.moveaxis(image, -1, 0), orientation), image.shape[-1] in (2, 4), notes=notes)


def _jpeg_xl(data: bytes, limits: Limits) -> DecodedImage:
    from imagecodecs import jpegxl_decode

    limits.require(_jpeg_xl_size(data))
    image = jpegxl_decode(data)  # upright: the library turns it
    notes: tuple[str, ...] = ()
    if image.ndim == 4 or (image.ndim == 3 and image.shape[-1] > 4):
        notes, image = (f"the first of {len(image)} frames",), image[0]
    image = np.atleast_3d(image)
    return DecodedImage(np.moveaxis(image, -1, 0), image.shape[-1] in (2, 4), notes=notes)


def _jpeg_xl_size(data: bytes) -> tuple[int, int, int]:
    """Height, width and 4 bands, from the header (ISO/IEC 18181-1, SizeHeader), which no library reads on its own."""
    if data[:2] != b"\xff\x0a":
        start = max(data.find(b"jxlc") + 4, data.find(b"jxlp") + 8)
        data = data[start:]
    bits, position = int.from_bytes(data[2:16], "little"), 0

    def take(n: int) -> int:
        nonlocal position
        position += n
        return bits >> position - n & (1 << n) - 1

    def side(small: int) -> int:
        return (take(5) + 1) * 8 if small else take((9, 13, 18, 30)[take(2)]) + 1

    small = take(1)
    height = side(small)
    ratio = take(3)
    width = height * 2 if ratio else side(small)  # all ratios are at most 2
    return height, width, 4


def _deep_jpeg_2000(data: bytes, start: int, bands: int, limits: Limits) -> DecodedImage:
    """A JPEG 2000 with more than 8 bits per band, or more than 4 bands."""
    from imagecodecs import jpeg2k_decode

    box = data[:start]
    if (
        (colour := box.find(b"colr")) >= 0
        and box[colour + 4] == 1
        and int.from_bytes(box[colour + 7 : colour + 11]) == 18
    ):
        raise ValueError("JPEG 2000 in YCbCr colours with more than 8 bits: convert it to RGB")
    x1, y1, x0, y0 = (int.from_bytes(data[start + i : start + i + 4]) for i in (8, 12, 16, 20))
    limits.require((max(y1 - y0, 1), max(x1 - x0, 1), max(bands, 1)), np.uint16)
    image = np.atleast_3d(jpeg2k_decode(data))
    return DecodedImage(np.moveaxis(image, -1, 0), image.shape[-1] in (2, 4) and b"cdef" in box)


def _pillow(data: bytes, limits: Limits, needed: int | None) -> DecodedImage:
    if (head := re.match(rb"P[36]\s(?:#[^\n]*\n|\s)*\d+\s+\d+\s+(\d+)\s", data[:512])) and int(head[1]) > 255:
        raise ValueError(
            f"PPM with values up to {int(head[1])}: only 8-bit colour PPM is read; convert it to PNG or TIFF"
        )
    opened = _open(data)
    limits.require((opened.height, opened.width, len(opened.getbands())))
    if opened.format == "WEBP" and max(opened.size) > 2**14:  # a canvas may claim more, and fills it for minutes
        raise ValueError(f"damaged WebP: {opened.width} × {opened.height} pixels, of at most {2**14} per side")
    notes = []
    if (frames := getattr(opened, "n_frames", 1)) > 1 and opened.format != "MPO":  # MPO: previews, depth, gain map
        notes.append(f"the first of {frames} frames")
    if (depth := _bit_depth(data, opened)) > 8:
        notes.append(f"{depth} bits are reduced to 8")
    large, full = opened.width * opened.height > EXACT, opened.size
    if needed is not None and large:
        _reduce(opened, needed * OVERSAMPLED)
    if large and opened.format in ("JPEG", "MPO") and opened.mode in ("L", "RGB") and opened.size == full:
        image_CHW = np.moveaxis(np.atleast_3d(_jpeg(data)), -1, 0)
        orientation, more = _orientation(opened)
        return DecodedImage(upright(image_CHW, orientation), notes=(*notes, *more))
    opened.load()  # before the EXIF data, which may follow the pixels
    orientation, more = _orientation(opened)
    image = _plain(opened)
    if opened.mode == "CMYK":
        notes.append("CMYK is converted to RGB, without its colour profile")
    array = _pixels(image)
    if image.mode == "I" and opened.format == "PPM":  # Pillow opens these 16-bit files with 32 bits
        array = array.astype(np.uint16)
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("="))
    image_CHW = array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)
    return DecodedImage(upright(image_CHW, orientation), image.mode in ("LA", "RGBA"), notes=(*notes, *more))


def _open(data: bytes) -> Any:
    """The opened, not yet decoded image. Our own `Limits` replace Pillow's limit, which refuses large scans."""
    from PIL import Image

    formats: tuple[str, ...] = _FORMATS
    if data[4:8] == b"ftyp" and data[8:12] in _HEIF:
        from pi_heif import register_heif_opener

        for item in re.finditer(rb"infe[\2\3]", data[: 2**16]):  # pi-heif crashes if the type of an item is not text
            start = item.end() + (7 if item[0][-1] == 2 else 9)
            if not data[start : start + 4].isascii():
                raise ValueError("damaged HEIF: the type of an item is not text")
        register_heif_opener()
        formats += ("HEIF",)
    with _OPENING, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(BytesIO(data), formats=formats)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _bit_depth(data: bytes, opened: Any) -> int:
    """The bits per band of a HEIF or AVIF image, which Pillow reads with 8."""
    if opened.format == "HEIF":
        return int(opened.info.get("bit_depth", 8))
    if opened.format == "AVIF" and (box := data.find(b"av1C")) >= 0:
        flags = data[box + 6]
        return (12 if flags & 0x20 else 10) if flags & 0x40 else 8
    return 8


def _reduce(opened: Any, enough: int) -> None:
    """Makes Pillow decode at a lower resolution, if the shortest side stays at least `enough` pixels."""
    shortest = min(opened.size)
    if opened.format in ("JPEG", "MPO"):
        opened.draft(None, tuple(side * min(enough, shortest) // shortest for side in opened.size))
    elif opened.format == "JPEG2000":
        steps = 0  # each shifts the image by half a pixel of its own, so that it needs twice as many of them
        while shortest >> steps + 1 >= 2 * enough and steps < 5:  # files usually have five levels
            steps += 1
        opened.reduce = steps


def _orientation(opened: Any) -> tuple[int, tuple[str, ...]]:
    """The orientation, 1 to 8, in EXIF or XMP data; and a note if the EXIF data are broken."""
    if opened.format == "HEIF":
        return 1, ()  # turned by its library
    try:
        exif = opened.getexif()
        if (tag := exif.get(0x0112)) is None:
            xmp = opened.info.get("XML:com.adobe.xmp") or opened.info.get("xmp") or b""
            xmp = xmp.encode() if isinstance(xmp, str) else xmp
            found = re.search(rb'tiff:Orientation(?:="|>)([1-8])', xmp if isinstance(xmp, bytes) else b"")
            tag = int(found[1]) if found else 1
    except Exception:  # broken EXIF data raise many types of errors, and many cameras write them
        return 1, ("its EXIF data are broken, so its orientation is unknown",)
    return (tag if tag in range(1, 9) else 1), ()


def _jpeg(data: bytes) -> np.ndarray:
    """The pixels of a JPEG in YCbCr or grey: those of Pillow, in half the time and memory."""
    from imagecodecs import jpeg8_decode

    if data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):  # the library does not mind that the end is missing
        raise ValueError("truncated image (no end marker after its pixels)")
    return jpeg8_decode(data)


def _pixels(image: Any) -> np.ndarray:
    """The pixels, by strips of a large image, because Pillow copies twice what it gives to NumPy."""
    if image.width * image.height <= EXACT:
        return np.asarray(image)
    strips = (
        image.crop((0, top, image.width, min(top + _STRIP, image.height))) for top in range(0, image.height, _STRIP)
    )
    first = np.asarray(next(strips))
    pixels = np.empty((image.height, *first.shape[1:]), first.dtype)
    pixels[:_STRIP] = first
    for i, strip in enumerate(strips, 1):
        pixels[i * _STRIP : (i + 1) * _STRIP] = np.asarray(strip)
    return pixels


def _plain(image: Any) -> Any:
    """The image in a mode of plain bands: grey, RGB, or either with alpha."""
    if "transparency" in image.info or image.mode in ("PA", "La", "RGBa"):
        return image.convert("LA" if image.mode in ("L", "La", "1") else "RGBA")
    if image.mode == "1":
        return image.convert("L")
    if image.mode in ("P", "CMYK", "YCbCr", "LAB", "HSV", "RGBX"):
        return image.convert("RGB")
    return image
