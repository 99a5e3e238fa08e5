"""Image files as arrays in their own type: PNG, JPEG, BMP, PPM, and TIFF of any band count."""

from __future__ import annotations

import re
import struct
import warnings
from io import BytesIO
from pathlib import Path

import numpy as np

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".pbm", ".pgm", ".ppm", ".pnm", ".tif", ".tiff"})


def read_image(path: str | Path) -> np.ndarray:
    """The image of a file as a (C, H, W) array in the file's own type.

    Palettes are resolved to RGB and 1-bit images to uint8; an alpha channel is the last band; a photograph's EXIF
    orientation is applied. Raises OSError for a file that cannot be read, ValueError for bytes that are no whole image.
    """
    return decode(Path(path).read_bytes())[0]


def decode(data: bytes) -> tuple[np.ndarray, bool]:
    """The (C, H, W) array of an image file's bytes, and whether its last band is alpha; ValueError says why not."""
    if not data:
        raise ValueError("empty file (0 bytes)")
    try:
        if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            image, alpha = _decode_tiff(data)
        elif data[:8] == b"\x89PNG\r\n\x1a\n" and data[24:26] in (b"\x10\x02", b"\x10\x04", b"\x10\x06"):
            image, alpha = _decode_deep_png(data)
        else:
            image, alpha = _decode_pillow(data)
    except Exception as fault:  # decoders raise all kinds on broken bytes; the caller needs one
        if isinstance(fault, MemoryError):
            raise
        raise ValueError(_reason(fault)) from fault
    if image.dtype.kind not in "uif":
        raise ValueError(f"pixels of type {image.dtype}: must be integers or floats; convert the file")
    return np.ascontiguousarray(image), alpha


def _decode_tiff(data: bytes) -> tuple[np.ndarray, bool]:
    from tifffile import TiffFile

    with TiffFile(BytesIO(data)) as tiff:
        series = tiff.series[0]
        page = tiff.pages.first
        image = series.asarray()
        axes = series.axes
        if image.ndim > 2 and 1 in image.shape:  # singleton time, depth or series axes carry nothing
            keep = [n > 1 or axis in "YX" for n, axis in zip(image.shape, axes, strict=True)]
            axes = "".join(axis for axis, k in zip(axes, keep, strict=True) if k)
            image = image.reshape([n for n, k in zip(image.shape, keep, strict=True) if k])
        if image.ndim == 2:
            return image[None], False
        if image.ndim != 3 or "Y" not in axes or "X" not in axes:
            raise ValueError(f"TIFF with axes {axes} {image.shape}: must be one image of height, width and bands")
        band_axis = next(i for i, axis in enumerate(axes) if axis not in "YX")
        # tag 338, ExtraSamples: 1 is associated, 2 unassociated alpha; further bands of science TIFFs carry 0
        alpha = bool(page.extrasamples) and page.extrasamples[-1] in (1, 2) and len(page.extrasamples) == 1
        return np.moveaxis(image, band_axis, 0), alpha and image.shape[band_axis] in (2, 4)


def _decode_deep_png(data: bytes) -> tuple[np.ndarray, bool]:
    from imagecodecs import png_decode  # Pillow would cut 16-bit colour to 8 bits

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
    if image.mode == "I" and opened.format in ("PNG", "PPM"):  # Pillow widens these 16-bit files to 32
        array = array.astype(np.uint16)
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("="))
    return (array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)), image.mode in ("LA", "RGBA")


def _reason(fault: Exception) -> str:
    text = " ".join(str(fault).split())
    if "cannot identify image file" in text:
        return "not an image of a known format, whatever its name says"
    if (
        isinstance(fault, EOFError | struct.error | IndexError)
        or "truncated" in text.lower()
        or "unpack requires" in text
    ):
        return "truncated image" + (f" ({text})" if text else "")
    return re.sub(r"<_io.BytesIO object at 0x[0-9a-f]+>", "the file", text) or type(fault).__name__
