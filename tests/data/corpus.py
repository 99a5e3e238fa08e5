"""Image files and tables as many programs write them, each with its right answer.

The answer is known by construction (the pixels were there before the file) or from a reader that simtrail does not use.
Nothing here imports simtrail. `file_cases()` and `table_cases()` are cheap; a case writes its file with `write_in`.
"""

from __future__ import annotations

import io
import json
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import h5py
import imagecodecs
import numpy as np
import pillow_heif
import rasterio
import scipy.io
import scipy.sparse
import tifffile
from PIL import Image

pillow_heif.register_heif_opener()  # to write HEIC, and to be an oracle
warnings.filterwarnings("ignore", category=rasterio.errors.NotGeoreferencedWarning)

RNG = np.random.default_rng(7)
H, W = 5, 7


def noise(*shape: int, dtype="uint8") -> np.ndarray:
    """Random values over the whole range of an integer type, or between -1 and 2."""
    kind = np.dtype(dtype)
    if kind.kind in "iu":
        limits = np.iinfo(kind)
        return RNG.integers(limits.min, limits.max, shape, dtype=kind, endpoint=True)
    return RNG.uniform(-1, 2, shape).astype(kind)


def smooth(height: int = 16, width: int = 24) -> np.ndarray:
    """An RGB image (H,W,C) without symmetry that lossy codecs keep nearly; all corners differ."""
    y, x = np.mgrid[0:height, 0:width]
    y, x = y / (height - 1), x / (width - 1)
    return np.rint(np.stack([30 + 190 * x, 40 + 180 * y, 220 - 120 * x - 70 * y], -1)).astype(np.uint8)


GREY, RGB, RGBA = noise(H, W), noise(H, W, 3), noise(H, W, 4)
GREY16, RGB16, RGBA16 = noise(H, W, dtype="uint16"), noise(H, W, 3, dtype="uint16"), noise(H, W, 4, dtype="uint16")
CUBE = noise(H, W, 9, dtype="uint16")
SMOOTH = smooth()


def chw(array: np.ndarray) -> np.ndarray:
    return array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)


@dataclass
class Case:
    """One file, and what must become of it: an image or a refusal."""

    name: str
    file: str  # the path to open, inside the folder of the case
    content: bytes | Callable[[Path], object]  # the bytes, or a function that writes the file or files
    image: np.ndarray | Callable[[Path], np.ndarray] | None = None  # (C,H,W)
    refused: str | None = None  # regular expression for the message
    alpha: bool | None = False  # None: both are right, and only the bands before the alpha are compared
    facts: dict[str, object] = field(default_factory=dict)
    notes: str | None = None  # regular expression for one of the notes
    reading: dict[str, object] = field(default_factory=dict)
    within: float = 0  # the largest difference of a value, for lossy formats
    may_refuse: bool = False  # the contract leaves open if this is read; if it is, then rightly
    megabytes: float = 0  # memory that reading may take, if limited
    path: Path | None = None

    def write_in(self, folder: Path) -> Path:
        self.path = folder / self.name / self.file
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(self.content, bytes):
            self.path.write_bytes(self.content)
        else:
            self.content(self.path)
        return self.path

    def expected(self) -> np.ndarray | None:
        return self.image(self.path) if callable(self.image) else self.image


# --- writers that depend on no library -------------------------------------------------------------------------------


def packed(rows: np.ndarray, bits: int) -> np.ndarray:
    """(H, N) samples as (H, bytes), the most significant bits first, each row from a new byte."""
    if bits == 16:
        return np.ascontiguousarray(rows.astype(">u2")).view(np.uint8)
    planes = (rows[..., None].astype(np.uint16) >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(planes.reshape(len(rows), -1).astype(np.uint8), axis=1)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(array: np.ndarray, bits: int, colour: int, *chunks: bytes, interlaced: bool = False) -> bytes:
    """A PNG of (H,W) or (H,W,C) samples; further chunks come before the pixels."""
    height, width = array.shape[:2]
    passes = [(0, 0, 1, 1)]
    if interlaced:
        passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    raw = b""
    for top, left, down, right in passes:
        part = array[top::down, left::right]
        if part.size:
            raw += b"".join(b"\0" + row.tobytes() for row in packed(part.reshape(len(part), -1), bits))
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, int(interlaced))
    parts = [chunk(b"IHDR", header), *chunks, chunk(b"IDAT", zlib.compress(raw)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def exif(orientation: int) -> bytes:
    return b"MM\0*\0\0\0\x08" + struct.pack(">HHHIHHI", 1, 0x0112, 3, 1, orientation, 0, 0)


TIFF_TYPES = {"B": 1, "s": 2, "H": 3, "I": 4}


def tiff_page(array: np.ndarray, photometric: int, bits: int | None = None, data: bytes | None = None, **tags):
    """The tags and the pixels of a page; further tags as t274=("H", 6), and None takes a tag away."""
    height, width = array.shape[:2]
    samples = 1 if array.ndim == 2 else array.shape[2]
    bits = bits or array.dtype.itemsize * 8
    kind = {"u": 1, "i": 2, "f": 3, "c": 6}[array.dtype.kind]
    if data is None:
        whole = bits == array.dtype.itemsize * 8
        data = array.tobytes() if whole else packed(array.reshape(height, -1), bits).tobytes()
    page = {256: ("I", width), 257: ("I", height), 258: ("H", (bits,) * samples), 259: ("H", 1)}
    page |= {262: ("H", photometric), 277: ("H", samples), 278: ("I", height), 284: ("H", 1)}
    page |= {339: ("H", (kind,) * samples)}
    page |= {int(key[1:]): value for key, value in tags.items()}
    return {key: value for key, value in page.items() if value is not None}, data


def tiff(*pages) -> bytes:
    """A little-endian TIFF with one strip a page."""
    out = bytearray(b"II*\0\0\0\0\0")
    link = 4
    for tags, data in pages:
        entries = {**tags, 273: ("I", len(out)), 279: ("I", len(data))}
        out += data + bytes(len(data) % 2)
        table = b""
        for code, (kind, value) in sorted(entries.items()):
            values = value if isinstance(value, (tuple, bytes)) else (value,)
            raw = values if kind == "s" else struct.pack(f"<{len(values)}{kind}", *values)
            count = len(values)
            if len(raw) > 4:
                place = struct.pack("<I", len(out))
                out += raw + bytes(len(raw) % 2)
            else:
                place = raw.ljust(4, b"\0")
            table += struct.pack("<HHI", code, TIFF_TYPES[kind], count) + place
        struct.pack_into("<I", out, link, len(out))
        out += struct.pack("<H", len(entries)) + table
        link = len(out)
        out += bytes(4)
    return bytes(out)


def bmp(array: np.ndarray, bits: int, rows: bytes, compression: int = 0, extra: bytes = b"", down: bool = False):
    height, width = array.shape[:2]
    start = 14 + 40 + len(extra)
    info = (40, width, -height if down else height, 1, bits, compression, len(rows), 2835, 2835, 0, 0)
    info = struct.pack("<IiiHHIIiiII", *info)
    return b"BM" + struct.pack("<IHHI", start + len(rows), 0, 0, start) + info + extra + rows


def pillow(image: np.ndarray | Image.Image, format: str, **options) -> bytes:
    out = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(out, format, **options)
    return out.getvalue()


def stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """The pixels (H,W[,C]) as a file stores them so that this orientation turns them upright (EXIF 2.3, 4.6.4)."""
    return {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: a[:, ::-1].swapaxes(0, 1),  # the first stored row is the right side
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: a[::-1].swapaxes(0, 1).copy(),  # the first stored row is the left side, from the bottom
    }[orientation](upright).copy()


def test_of_orientations() -> None:
    """OpenCV turns a file upright by itself: the table above agrees with it."""
    for orientation in range(1, 9):
        data = pillow(stored(SMOOTH, orientation), "JPEG", quality=98, subsampling=0, exif=exif_of(orientation))
        read = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
        assert read.shape == SMOOTH.shape, orientation
        assert np.abs(read.astype(int) - SMOOTH).max() < 8, orientation


def exif_of(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


# --- PNG, JPEG, GIF, WebP, BMP, PPM ----------------------------------------------------------------------------------


def png_cases() -> list[Case]:
    palette = noise(16, 3)
    indices = noise(H, W) % 16
    index1 = indices % 2
    plte = chunk(b"PLTE", palette.tobytes())
    cases = [
        Case(f"png-{kind}{bits}{'-interlaced' * interlaced}", "a.png", png(a, bits, colour, interlaced=interlaced), chw(a), alpha=alpha)
        for kind, colour, alpha, arrays in [
            ("grey", 0, False, {8: GREY, 16: GREY16}),
            ("rgb", 2, False, {8: RGB, 16: RGB16}),
            ("greyalpha", 4, True, {8: RGB[..., :2], 16: RGB16[..., :2]}),
            ("rgba", 6, True, {8: RGBA, 16: RGBA16}),
        ]
        for bits, a in arrays.items()
        for interlaced in (False, True)
    ]
    for bits in (1, 2, 4):
        values = noise(H, W) % 2**bits
        grey = (values.astype(int) * 255 // (2**bits - 1)).astype(np.uint8)
        cases.append(Case(f"png-grey{bits}", "a.png", png(values, bits, 0), chw(grey)))
    for bits in (4, 8):
        cases.append(Case(f"png-palette{bits}", "a.png", png(indices, bits, 3, plte), chw(palette[indices])))
    cases.append(Case("png-palette1", "a.png", png(index1, 1, 3, chunk(b"PLTE", palette[:2].tobytes())), chw(palette[:2][index1])))
    clear = np.array([0, 255, 128] + [255] * 13, np.uint8)
    seen = chw(np.dstack([palette[indices], clear[indices]]))
    trns = chunk(b"tRNS", clear[:3].tobytes())
    cases.append(Case("png-palette-transparent", "a.png", png(indices, 8, 3, plte, trns), seen, alpha=True))
    key = chunk(b"tRNS", struct.pack(">HHH", *RGB[0, 0]))
    cases += [
        Case("png-colour-key", "a.png", png(RGB, 8, 2, key), chw(RGB), alpha=None),
        Case("png-colour-key16", "a.png", png(RGB16, 16, 2, chunk(b"tRNS", RGB16[0, 0].astype(">u2").tobytes())), chw(RGB16), alpha=None),
        Case("png-grey-key16", "a.png", png(GREY16, 16, 0, chunk(b"tRNS", GREY16[0, 0].astype(">u2").tobytes())), chw(GREY16), alpha=None),
        Case("png-gamma-is-not-applied", "a.png", png(RGB, 8, 2, chunk(b"gAMA", struct.pack(">I", 100000))), chw(RGB)),
        Case("png-bytes-after-the-end", "a.png", png(RGB, 8, 2) + b"junk" * 9, chw(RGB)),
        Case("png-one-pixel", "a.png", png(RGB[:1, :1], 8, 2), chw(RGB[:1, :1])),
        Case("png-many-idat", "a.png", many_idat(png(RGB, 8, 2)), chw(RGB)),
        Case("png-broken-checksum", "a.png", broken_checksum(png(RGB, 8, 2)), refused=".+"),
        Case("png-no-pixels", "a.png", png(RGB, 8, 2).replace(b"IDAT", b"teXt"), refused=".+"),
        Case("png-apng", "a.png", pillow(Image.fromarray(RGB), "PNG", save_all=True, append_images=[Image.fromarray(255 - RGB)] * 2), chw(RGB), notes="first of 3 frames"),
        Case("png-grey-as-rgb", "a.png", png(GREY, 8, 0), chw(np.dstack([GREY] * 3)), reading={"grey_as_rgb": True}),
        Case("png-grey16-as-rgb", "a.png", png(GREY16, 16, 0), chw(np.dstack([GREY16] * 3)), reading={"grey_as_rgb": True}),
        Case("png-as-uint16", "a.png", png(RGB, 8, 2), chw(RGB.astype(np.uint16) * 257), reading={"as_uint16": True}),
        Case("png-rgba-as-uint16", "a.png", png(RGBA, 8, 6), chw(RGBA.astype(np.uint16) * 257), alpha=True, reading={"as_uint16": True}),
        Case("png16-as-uint16", "a.png", png(RGB16, 16, 2), chw(RGB16), reading={"as_uint16": True}),
        Case("png-rgb-with-grey-as-rgb", "a.png", png(RGB, 8, 2), chw(RGB), reading={"grey_as_rgb": True}),
        Case("png-greyalpha-as-rgb", "a.png", png(RGB[..., :2], 8, 4), chw(RGB[..., [0, 0, 0, 1]]), alpha=True, may_refuse=True, reading={"grey_as_rgb": True}),
    ]
    for orientation in range(1, 9):
        tag = chunk(b"eXIf", exif(orientation))
        for kind, a, bits, colour in [("rgb8", RGB, 8, 2), ("grey16", GREY16, 16, 0), ("rgb16", RGB16, 16, 2)]:
            if kind == "rgb8" or orientation in (2, 5, 6, 8):
                data = png(stored(a, orientation), bits, colour, tag)
                cases.append(Case(f"png-{kind}-orientation-{orientation}", "a.png", data, chw(a)))
    after = png(stored(RGB, 6), 8, 2)[:-12] + chunk(b"eXIf", exif(6)) + chunk(b"IEND", b"")
    cases.append(Case("png-orientation-after-the-pixels", "a.png", after, chw(RGB)))
    cases.append(Case("png-orientation-0-means-nothing", "a.png", png(RGB, 8, 2, chunk(b"eXIf", exif(0))), chw(RGB)))
    return cases


def many_idat(data: bytes) -> bytes:
    start = data.index(b"IDAT") - 4
    length = struct.unpack(">I", data[start : start + 4])[0]
    body = data[start + 8 : start + 8 + length]
    pieces = b"".join(chunk(b"IDAT", body[i : i + 5]) for i in range(0, length, 5))
    return data[:start] + pieces + data[start + 12 + length :]


def broken_checksum(data: bytes) -> bytes:
    place = len(data) - 12 - 4  # of IDAT, before IEND
    return data[:place] + bytes([data[place] ^ 255]) + data[place + 1 :]


def jpeg_cases() -> list[Case]:
    best = {"quality": 98, "subsampling": 0}
    whole = pillow(SMOOTH, "JPEG", **best)
    cmyk = Image.fromarray(noise(16, 24, 4) // 64 * 64, "CMYK")

    def converted(path: Path) -> np.ndarray:
        return chw(np.asarray(Image.open(path).convert("RGB")))

    def opencv(path: Path) -> np.ndarray:
        return chw(cv2.imread(str(path), cv2.IMREAD_COLOR)[..., ::-1])

    rough = noise(33, 47, 3)
    cases = [
        Case("jpeg-444", "a.jpg", whole, chw(SMOOTH), within=6),
        Case("jpeg-420", "a.jpg", pillow(rough, "JPEG", quality=80), opencv, within=2),
        Case("jpeg-progressive", "a.JPG", pillow(SMOOTH, "JPEG", **best, progressive=True), chw(SMOOTH), within=6),
        Case("jpeg-grey", "a.jpeg", pillow(SMOOTH[..., 0], "JPEG", quality=98), chw(SMOOTH[..., 0]), within=4),
        Case("jpeg-rgb-not-ycc", "a.jpg", pillow(SMOOTH, "JPEG", quality=98, keep_rgb=True), chw(SMOOTH), within=4),
        Case("jpeg-cmyk", "a.jpg", pillow(cmyk, "JPEG", quality=95), converted, within=1, may_refuse=True),
        Case("jpeg-bytes-after-the-end", "a.jpg", whole + b"\0" * 99, chw(SMOOTH), within=6),
        Case("jpeg-icc", "a.jpg", pillow(SMOOTH, "JPEG", **best, icc_profile=b"x" * 200), chw(SMOOTH), within=6),
        Case("jpeg-restart", "a.jpg", pillow(SMOOTH, "JPEG", **best, restart_marker_blocks=1), chw(SMOOTH), within=6),
        Case("jpeg-mpo", "a.jpg", pillow(Image.fromarray(SMOOTH), "MPO", save_all=True, append_images=[Image.fromarray(255 - SMOOTH)], **best), chw(SMOOTH), within=6),
        Case("jpeg-lossless", "a.jpg", imagecodecs.ljpeg_encode(GREY16), chw(GREY16), may_refuse=True),
        Case("jpeg-12bit", "a.jpg", imagecodecs.jpeg8_encode(SMOOTH[..., 0].astype(np.uint16) * 16, bitspersample=12, level=100), chw(SMOOTH[..., 0].astype(np.uint16) * 16), within=40, may_refuse=True),
        Case("jpeg-no-end-marker", "a.jpg", whole[:-2], chw(SMOOTH), within=6, may_refuse=True),
        Case("jpeg-only-markers", "a.jpg", whole[:20] + b"\xff\xd9", refused=".+"),
        Case("jpeg-broken-exif", "a.jpg", pillow(SMOOTH, "JPEG", **best, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"), chw(SMOOTH), within=6),
        Case("jpeg-108-megapixels", "a.jpg", lambda p: p.write_bytes(imagecodecs.jpeg8_encode(np.full((9000, 12000, 3), 200, np.uint8))), np.broadcast_to(np.uint8(200), (3, 9000, 12000)), within=2),
    ]
    for orientation in range(1, 9):
        data = pillow(stored(SMOOTH, orientation), "JPEG", **best, exif=exif_of(orientation))
        cases.append(Case(f"jpeg-orientation-{orientation}", "a.jpg", data, chw(SMOOTH), within=6))
    data = pillow(stored(SMOOTH[..., 0], 6), "JPEG", quality=98, exif=exif_of(6))
    cases.append(Case("jpeg-grey-orientation-6", "a.jpg", data, chw(SMOOTH[..., 0]), within=4))
    return cases


def gif_cases() -> list[Case]:
    palette = noise(16, 3)
    indices = noise(H, W) % 16

    def paletted(i: np.ndarray, colours: np.ndarray) -> Image.Image:
        image = Image.fromarray(i)
        image.putpalette(colours.tobytes())
        return image

    first = paletted(indices, palette)
    others = [paletted(noise(H, W) % 16, noise(16, 3)) for _ in range(4)]
    clear = pillow(first, "GIF", transparency=3)
    alpha = np.dstack([palette[indices], np.where(indices == 3, 0, 255).astype(np.uint8)])
    # the first frame covers a part of the canvas: the rest of it is transparent
    small = bytearray(pillow(first, "GIF", interlace=0))
    small[6:10] = struct.pack("<HH", W + 3, H + 2)
    return [
        Case("gif", "a.gif", pillow(first, "GIF"), chw(palette[indices])),
        Case("gif-interlaced", "a.gif", pillow(first, "GIF", interlace=1), chw(palette[indices])),
        Case("gif-transparent", "a.gif", clear, chw(alpha), alpha=None),
        Case("gif-animated", "a.gif", pillow(first, "GIF", save_all=True, append_images=others), chw(palette[indices]), notes="first of 5 frames"),
        Case("gif-larger-canvas", "a.gif", bytes(small), gif_canvas, alpha=None, may_refuse=True),
    ]


def gif_canvas(path: Path) -> np.ndarray:
    return chw(np.asarray(Image.open(path).convert("RGB")))


def webp_cases() -> list[Case]:
    lossless = {"lossless": True, "exact": True}
    frames = [Image.fromarray(noise(H, W, 3)) for _ in range(3)]
    cases = [
        Case("webp-lossless", "a.webp", pillow(RGB, "WEBP", **lossless), chw(RGB)),
        Case("webp-rgba", "a.webp", pillow(RGBA, "WEBP", **lossless), chw(RGBA), alpha=True),
        Case("webp-lossy", "a.webp", pillow(SMOOTH, "WEBP", quality=100), lambda p: chw(cv2.imread(str(p))[..., ::-1]), within=2),
        Case("webp-animated", "a.webp", pillow(Image.fromarray(RGB), "WEBP", save_all=True, append_images=frames, **lossless), chw(RGB), alpha=None, notes="first of 4 frames"),
    ]
    for orientation in range(1, 9):
        data = pillow(stored(RGB, orientation), "WEBP", **lossless, exif=exif_of(orientation))
        cases.append(Case(f"webp-orientation-{orientation}", "a.webp", data, chw(RGB)))
    return cases


def bmp_cases() -> list[Case]:
    width = -(-W // 4) * 4
    padded = np.zeros((H, width), np.uint8)
    padded[:, :W] = GREY
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 4, 1)
    palette = noise(256, 4)
    bits = noise(H, 8, 3) % 2  # each colour off or on, so that 5 and 6 bits give 0 and 255
    five65 = (bits @ np.array([0xF800, 0x07E0, 0x001F])).astype("<u2")
    five55 = (bits @ np.array([0x7C00, 0x03E0, 0x001F])).astype("<u2")
    masks = struct.pack("<III", 0xF800, 0x07E0, 0x001F)
    rle = b"".join(bytes(b for v in row for b in (1, int(v))) + b"\0\0" for row in GREY[::-1])[:-2] + b"\0\1"
    bgrx = np.dstack([RGB[..., ::-1], np.zeros((H, W), np.uint8)])
    return [
        Case("bmp-rgb", "a.bmp", pillow(RGB, "BMP"), chw(RGB)),
        Case("bmp-grey", "a.bmp", bmp(GREY, 8, padded[::-1].tobytes(), extra=ramp.tobytes()), chw(GREY)),
        Case("bmp-palette", "a.bmp", bmp(GREY, 8, padded[::-1].tobytes(), extra=palette.tobytes()), chw(palette[GREY][..., 2::-1])),
        Case("bmp-top-down", "a.bmp", bmp(GREY, 8, padded.tobytes(), extra=palette.tobytes(), down=True), chw(palette[GREY][..., 2::-1])),
        Case("bmp-run-length", "a.bmp", bmp(GREY, 8, rle, 1, palette.tobytes()), chw(palette[GREY][..., 2::-1]), may_refuse=True),
        Case("bmp-565", "a.bmp", bmp(bits, 16, five65[::-1].tobytes(), 3, masks), chw(bits * 255)),
        Case("bmp-555", "a.bmp", bmp(bits, 16, five55[::-1].tobytes()), chw(bits * 255)),
        Case("bmp-32-without-alpha", "a.bmp", bmp(RGB, 32, bgrx[::-1].tobytes()), chw(RGB), alpha=None),
        Case("bmp-one-bit", "a.bmp", pillow(Image.fromarray(GREY > 127), "BMP"), chw(np.where(GREY > 127, 255, 0).astype(np.uint8))),
    ]


def ppm_cases() -> list[Case]:
    size = f"{W} {H}".encode()
    plain = b" ".join(str(v).encode() for v in GREY.ravel())
    black = np.where(GREY > 127, 255, 0).astype(np.uint8)
    on = GREY <= 127  # 1 is black
    return [
        Case("ppm-p6", "a.ppm", b"P6\n# a comment\n" + size + b"\n255\n" + RGB.tobytes(), chw(RGB)),
        Case("ppm-p5", "a.pgm", b"P5 " + size + b" 255\n" + GREY.tobytes(), chw(GREY)),
        Case("ppm-p4", "a.pbm", b"P4\n" + size + b"\n" + np.packbits(on, axis=1).tobytes(), chw(black)),
        Case("ppm-p2", "a.pgm", b"P2\n" + size + b"\n255\n" + plain, chw(GREY)),
        Case("ppm-p5-16bit", "a.pgm", b"P5\n" + size + b"\n65535\n" + GREY16.astype(">u2").tobytes(), chw(GREY16), may_refuse=True),
        Case("ppm-p6-16bit", "a.ppm", b"P6\n" + size + b"\n65535\n" + RGB16.astype(">u2").tobytes(), chw(RGB16), may_refuse=True),
        Case("ppm-p7", "a.pam", b"P7\nWIDTH 7\nHEIGHT 5\nDEPTH 4\nMAXVAL 255\nTUPLTYPE RGB_ALPHA\nENDHDR\n" + RGBA.tobytes(), chw(RGBA), alpha=True, may_refuse=True),
        Case("ppm-float", "a.pfm", b"Pf\n" + size + b"\n-1.0\n" + GREY16.astype("<f4")[::-1].tobytes(), chw(GREY16.astype(np.float32)), may_refuse=True),
    ]


def other_cases() -> list[Case]:
    """Formats that need not be read; but never wrongly."""
    return [
        Case("tga", "a.tga", pillow(RGB, "TGA"), chw(RGB), may_refuse=True),
        Case("qoi", "a.qoi", imagecodecs.qoi_encode(RGB), chw(RGB), may_refuse=True),
        Case("jxl", "a.jxl", imagecodecs.jpegxl_encode(RGB, lossless=True), chw(RGB), may_refuse=True),
        Case("jxl-16bit", "a.jxl", imagecodecs.jpegxl_encode(GREY16, lossless=True), chw(GREY16), may_refuse=True),
        Case("jpegxr", "a.jxr", imagecodecs.jpegxr_encode(noise(16, 16, 3), level=1.0), refused=".+"),
        Case("jpegls", "a.jls", imagecodecs.jpegls_encode(GREY), chw(GREY), may_refuse=True),
        Case("sgi", "a.sgi", pillow(RGB, "SGI"), chw(RGB), may_refuse=True),
        Case("pcx", "a.pcx", pillow(RGB, "PCX"), chw(RGB), may_refuse=True),
        Case("ico", "a.ico", pillow(noise(16, 16, 4), "ICO", sizes=[(16, 16)]), lambda p: chw(np.asarray(Image.open(p).convert("RGBA"))), alpha=True, may_refuse=True),
        Case("dds", "a.dds", pillow(noise(8, 8, 4), "DDS"), lambda p: chw(np.asarray(Image.open(p).convert("RGBA"))), alpha=True, may_refuse=True),
    ]


# --- JPEG 2000, AVIF, HEIC -------------------------------------------------------------------------------------------


def modern_cases() -> list[Case]:
    deep = noise(24, 32, dtype="uint16")
    deep3 = noise(24, 32, 3, dtype="uint16")
    plain3 = noise(24, 32, 3)
    exact = {"reversible": True, "level": 0}
    cases = [
        Case(f"{codec}-{kind}", f"a.{codec}", imagecodecs.jpeg2k_encode(a, codecformat=codec, **exact), chw(a))
        for codec in ("jp2", "j2k")
        for kind, a in [("grey8", plain3[..., 0]), ("rgb8", plain3), ("grey16", deep), ("rgb16", deep3)]
    ]
    cases.append(Case("jp2-pillow", "a.jp2", pillow(plain3, "JPEG2000", irreversible=False), chw(plain3)))
    cases.append(Case("jp2-rgba", "a.jp2", pillow(noise4 := noise(24, 32, 4), "JPEG2000", irreversible=False), chw(noise4), alpha=True))

    near = {"quality": 100, "subsampling": "4:4:4"}
    wide = smooth(48, 64)
    cases += [
        Case("avif", "a.avif", pillow(wide, "AVIF", **near), chw(wide), within=6),
        Case("avif-rgba", "a.avif", pillow(np.dstack([wide, wide[..., 0]]), "AVIF", **near), chw(np.dstack([wide, wide[..., 0]])), alpha=True, within=6),
        Case("avif-animated", "a.avif", pillow(Image.fromarray(wide), "AVIF", save_all=True, append_images=[Image.fromarray(255 - wide)] * 2, **near), chw(wide), within=6, notes="first of 3 frames"),
        Case("avif-10bit", "a.avif", imagecodecs.avif_encode(wide.astype(np.uint16) * 4, level=100, bitspersample=10, pixelformat="444"), chw(wide), within=6, notes="8[ -]bit"),
        Case("avif-grey", "a.avif", imagecodecs.avif_encode(wide[..., 0], level=100), chw(wide[..., 0]), within=4, may_refuse=True, alpha=None),
        Case("heic", "a.heic", lambda p: heic(p, wide), chw(wide), within=8),
        Case("heic-rgba", "a.heic", lambda p: heic(p, np.dstack([wide, wide[..., 0]])), chw(np.dstack([wide, wide[..., 0]])), alpha=True, within=8),
        Case("heic-two-images", "a.heic", lambda p: heic(p, wide, 255 - wide), chw(wide), within=8),
        Case("heic-10bit", "a.heic", lambda p: heic16(p, wide), chw(wide), within=8, notes="8[ -]bit"),
    ]
    for orientation in range(1, 9):
        turned = stored(wide, orientation)
        cases.append(Case(f"avif-orientation-{orientation}", "a.avif", pillow(turned, "AVIF", **near, exif=exif_of(orientation).tobytes()), chw(wide), within=6))
        cases.append(Case(f"heic-orientation-{orientation}", "a.heic", lambda p, t=turned, o=orientation: heic(p, t, orientation=o), chw(wide), within=8))
    # telephones write the turn twice, in the container and in EXIF: it counts once
    cases.append(Case("heic-orientation-twice", "a.heic", lambda p: twice(p, stored(wide, 6)), chw(wide), within=8))
    return cases


def heic(path: Path, *images: np.ndarray, orientation: int = 1) -> None:
    file = pillow_heif.HeifFile()
    for image in images:
        file.add_from_pillow(Image.fromarray(image))
    first = Image.fromarray(images[0])
    options = {"quality": -1, "chroma": 444}  # -1: lossless
    if orientation != 1:
        first.save(path, "HEIF", exif=exif_of(orientation).tobytes(), **options)
    else:
        file.save(path, **options)


def heic16(path: Path, image: np.ndarray) -> None:
    wide = image.astype("<u2") * 256
    file = pillow_heif.from_bytes("RGB;16", (image.shape[1], image.shape[0]), wide.tobytes())
    file.save(path, quality=-1, chroma=444)


def twice(path: Path, image: np.ndarray) -> None:
    heic(path, image, orientation=6)
    data = path.read_bytes()
    start = data.index(b"\x01\x12\x00\x03") if b"\x01\x12\x00\x03" in data else data.index(b"\x12\x01\x03\x00")
    assert data[start + 8 : start + 10] in (b"\0\x01", b"\x01\0"), data[start : start + 12]
    path.write_bytes(data[: start + 8] + data[start + 8 : start + 10].replace(b"\x01", b"\x06") + data[start + 10 :])
