"""Decodes TIFF files of any number of bands. tifffile returns the stored values; what they mean is decided here."""

from __future__ import annotations

import logging
import math
import re
import struct
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import numpy as np

from simtrail.data.reading.decoded import BandFacts, DecodedImage, Limits, Reading, arranged, full_scale, upright

_REDUCED, _MASK = 1, 4  # bits of NewSubfileType
_ASSOCIATED, _UNASSOCIATED = 1, 2  # ExtraSamples: alpha, premultiplied or not; other extra bands have 0
_NAMES = {  # PhotometricInterpretation
    0: "MinIsWhite", 1: "MinIsBlack", 2: "RGB", 3: "palette", 4: "transparency mask", 5: "CMYK", 6: "YCbCr",
    8: "CIELAB", 9: "ICCLAB", 10: "ITULAB", 32803: "camera raw (CFA)", 32844: "LogL", 32845: "LogLuv",
    34892: "camera raw (LinearRaw)",
}  # fmt: skip


def decode_tiff(data: bytes, reading: Reading, limits: Limits) -> DecodedImage:
    """The image in the bytes of a TIFF file; raises many types of errors for broken bytes.

    Every photometric interpretation is honoured (MinIsWhite is inverted; palette, CMYK and YCbCr become RGB) or
    refused, and so are orientation, alpha (also premultiplied), GDAL's mask pages, no-data value, scale and offset, and
    the names of channels. Of several images, such as a slide and its label, the first is read.
    """
    from tifffile import TiffFile

    _require_chain(data)
    with _strictly(), TiffFile(BytesIO(data)) as tiff:
        images = [series for series in tiff.series if not _subfile(series) & (_REDUCED | _MASK)]
        series = images[0] if images else tiff.series[0]
        page = series.keyframe
        limits.require(series.shape, series.dtype or np.uint8)
        if 0 in series.shape or math.prod(page.chunked) > len(page.dataoffsets):
            raise ValueError(f"broken TIFF: {len(page.dataoffsets)} strips or tiles for {series.shape} values")
        stored, bits = sum(page.databytecounts), page.bitspersample * page.samplesperpixel
        # else compressed, subsampled or sparse
        plain = page.compression == 1 and page.photometric != 6 and all(page.databytecounts)
        if plain and 8 * stored < page.imagelength * page.imagewidth * bits:
            raise ValueError(f"truncated TIFF: {stored} bytes of pixels for {page.imagewidth} × {page.imagelength}")
        image, notes = arranged(series.asarray(), series.axes, reading)
        samples = page.samplesperpixel if len(image) == page.samplesperpixel else 1
        image, more = _meant(image, page, samples)
        alpha = _has_alpha(page, len(image), samples) and len(image) != reading.count
        if alpha and page.extrasamples[-1] == _ASSOCIATED:
            image = _unpremultiplied(image)
        facts = _facts(tiff, page, len(image) - alpha)
        if not alpha and (mask := _mask_page(tiff, series)) is not None:
            opaque = np.where(mask, full_scale(image.dtype), 0).astype(image.dtype)
            image, alpha = np.concatenate([image, opaque[None]]), True
        if alpha and samples > 4:
            notes += (f"band {samples} is alpha, as the file says",)
        if len(images) > 1:
            notes += (f"the first of {len(images)} images of different kinds",)
        orientation = page.tags.valueof(274) or 1
        return DecodedImage(upright(image, orientation), alpha, facts, (*notes, *more))


def _require_chain(data: bytes) -> None:
    """Raises ValueError if the chain of pages leaves the file or returns to a page: tifffile may not notice a ring."""
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    pointer, count, entry, place = ("Q", "Q", 20, 8) if big else ("I", "H", 12, 4)
    seen: set[int] = set()
    while True:
        try:
            (start,) = struct.unpack_from(order + pointer, data, place)
            if start == 0:
                return
            (entries,) = struct.unpack_from(order + count, data, start)
        except struct.error:
            raise ValueError("truncated TIFF: its chain of pages leads beyond its end") from None
        if start in seen:
            raise ValueError("broken TIFF: its chain of pages is a ring")
        seen.add(start)
        place = start + struct.calcsize(order + count) + entries * entry


class _Complaints(logging.Handler):
    """Collects what tifffile logs in this thread about a file that it can't read completely."""

    def __init__(self) -> None:
        super().__init__()
        self.thread, self.found = threading.get_ident(), list[str]()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        incomplete = record.levelno >= logging.ERROR or "OME series" in text or "ImageJ series" in text
        if record.thread == self.thread and incomplete:
            self.found.append(re.sub(r"^<.*?> ", "", text))


@contextmanager
def _strictly() -> Iterator[None]:
    """Makes an error of what tifffile only logs, such as a missing page; it would return fewer pages, or zeros."""
    logger, complaints = logging.getLogger("tifffile"), _Complaints()
    logger.addHandler(complaints)
    try:
        yield
    finally:
        logger.removeHandler(complaints)
    if complaints.found:
        raise ValueError(f"truncated or incomplete TIFF ({complaints.found[0]})")


def _subfile(series: Any) -> int:
    return int(series.keyframe.subfiletype or 0)


def _meant(image: np.ndarray, page: Any, samples: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """The values that the stored values mean, by the photometric interpretation of the page; and notes."""
    from PIL import Image

    stated = 262 in page.tags
    kind, bits, colours = int(page.photometric) if stated else 1, page.bitspersample, samples - len(page.extrasamples)
    few = isinstance(bits, int) and bits < 8 and image.dtype == np.uint8
    if kind in (0, 1) and (few or image.dtype.kind == "b"):
        levels = 2**bits - 1 if isinstance(bits, int) else 1
        values = np.rint(image * (255 / levels)).astype(np.uint8)
        return (255 - values if kind == 0 else values), ()
    if kind == 1 or (kind == 2 and image.dtype.kind in "uif"):
        return image, ()
    if kind == 0 and image.dtype.kind == "u":
        values = image.copy()
        values[:colours] = 2**bits - 1 - image[:colours]
        return values, ()
    if kind == 3 and len(image) == 1 and image.dtype.kind == "u" and page.colormap is not None:
        table = page.colormap if page.colormap.max() < 256 else page.colormap >> 8  # some writers use 8 bits
        if int(image.max()) < table.shape[1]:
            return table.astype(np.uint8)[:, image[0]], ()
        raise ValueError(f"palette of {table.shape[1]} colours, but a pixel has the number {image.max()}")
    if kind == 6 and int(page.compression) in (6, 7, 34892, 33007) and len(image) == 3:
        return image, ()  # its decoder has made it RGB
    mode, bands = {5: ("CMYK", 4), 6: ("YCbCr", 3)}.get(kind, ("", 0))
    subsampled = kind == 6 and tuple(page.tags.valueof(530) or (2, 2)) != (1, 1)
    if len(image) == bands and image.dtype == np.uint8 and not subsampled:
        pixels = np.ascontiguousarray(np.moveaxis(image, 0, -1))
        rgb = np.asarray(Image.frombytes(mode, pixels.shape[1::-1], pixels.tobytes()).convert("RGB"))
        note = "CMYK is converted to RGB, without its colour profile"
        return np.moveaxis(rgb, -1, 0), (note,) if kind == 5 else ()
    what = f"{_NAMES.get(kind, kind)} of {len(image)} bands of {image.dtype}" + (", subsampled" if subsampled else "")
    raise ValueError(f"TIFF whose values mean {what}: not read; convert it to RGB or grey")


def _has_alpha(page: Any, bands: int, samples: int) -> bool:
    """Whether the last band of the page is alpha, and no other is."""
    extra = [int(value) for value in page.extrasamples]
    alphas = [value in (_ASSOCIATED, _UNASSOCIATED) for value in extra]
    return bands == samples > 1 and any(alphas[-1:]) and sum(alphas) == 1


def _unpremultiplied(image: np.ndarray) -> np.ndarray:
    """The image whose colours are not multiplied by its alpha (the last band)."""
    top = full_scale(image.dtype)
    alpha = image[-1].astype(np.float64) / top
    colours = np.divide(image[:-1], alpha, out=np.zeros(image[:-1].shape), where=alpha > 0)
    if image.dtype.kind in "ui":
        colours = np.clip(np.rint(colours), 0, top)
    return np.concatenate([colours.astype(image.dtype), image[-1:]])


def _mask_page(tiff: Any, series: Any) -> np.ndarray | None:
    """The mask page that GDAL writes beside an image: True for pixels with data; None if there is none."""
    size = series.keyframe.imagelength, series.keyframe.imagewidth
    for page in tiff.pages:
        page = page.aspage()
        full = (page.imagelength, page.imagewidth) == size
        if full and page.subfiletype & _MASK and not page.subfiletype & _REDUCED:
            return page.asarray().reshape(size) > 0
    return None


def _facts(tiff: Any, page: Any, bands: int) -> BandFacts:
    """Names of channels in OME or ImageJ metadata, and the tags of GDAL: 42112 (facts of bands), 42113 (no data)."""
    metadata, no_data = (str(page.tags.valueof(code) or "").strip("\0 ") for code in (42112, 42113))
    items: dict[str, dict[int, str]] = {}
    for item in ElementTree.fromstring(metadata).iter("Item") if metadata else ():
        if (sample := item.get("sample", "")).isdecimal():
            items.setdefault(item.get("name", "").lower(), {})[int(sample)] = (item.text or "").strip()
    named, lengths, units = (items.get(key, {}) for key in ("description", "wavelength", "wavelength_units"))
    nm = 1000 if units.get(0, "").lower().startswith("micro") else 1
    if micrometres := items.get("central_wavelength_um"):  # GDAL 3.10 and later
        lengths, nm = micrometres, 1000
    try:
        wavelengths = [round(float(lengths[i]) * nm, 9) for i in range(bands)] if len(lengths) == bands else None
        nodata = float(no_data) if no_data else None
        gains, offsets = (
            [float(items.get(key, {}).get(i, usual)) for i in range(bands)]
            for key, usual in (("scale", 1), ("offset", 0))
        )
    except (ValueError, KeyError):
        raise ValueError(
            f"GDAL tags that are not numbers: wavelengths {lengths}, no-data {no_data!r}, scale {items.get('scale')}, "
            f"offset {items.get('offset')}"
        ) from None
    scaled = any(gain != 1 for gain in gains) or any(offsets)
    return BandFacts(
        names=[named[i] for i in range(bands)] if set(named) == set(range(bands)) else _channels(tiff, bands),
        wavelengths=list(wavelengths) if wavelengths else None,
        gains=gains if scaled else None,
        offsets=offsets if scaled else None,
        nodata=nodata,
    )


def _channels(tiff: Any, bands: int) -> list[str] | None:
    """The names of the channels in OME or ImageJ metadata; None if not every band has a name of its own."""
    names: list[str] = []
    if tiff.ome_metadata:
        root = ElementTree.fromstring(tiff.ome_metadata)
        image = next((element for element in root.iter() if element.tag.endswith("}Image")), root)
        names = [e.get("Name", "").strip() for e in image.iter() if e.tag.endswith("}Channel")]
    elif tiff.is_imagej:
        names = [str(label).strip() for label in (tiff.imagej_metadata or {}).get("Labels", ())]
    return names if len(set(names)) == bands == len(names) and all(names) else None
