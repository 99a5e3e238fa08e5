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
    # the files above have the turn twice, in the container and in EXIF, as telephones write it: it counts once
    cases.append(Case("heic-turned-by-the-container", "a.heic", lambda p: turned_by_container(p, stored(wide, 6)), chw(wide), within=8))
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


def turned_by_container(path: Path, image: np.ndarray) -> None:
    heic(path, image, orientation=6)
    data = path.read_bytes()
    value = data.index(b"\x01\x12\x00\x03\0\0\0\1\0\6") + 9
    path.write_bytes(data[:value] + b"\1" + data[value + 1 :])


# --- TIFF ------------------------------------------------------------------------------------------------------------


def tifffile_writes(array: np.ndarray, **options) -> Callable[[Path], object]:
    return lambda path: tifffile.imwrite(path, array, **options)


def gdal_writes(bands: np.ndarray, then: Callable | None = None, **options) -> Callable[[Path], object]:
    """Writes (C,H,W) with GDAL; `then` gets the open dataset."""

    def write(path: Path) -> None:
        count, height, width = bands.shape
        profile = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": bands.dtype}
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "w", **{**profile, **options}) as out:
            out.write(bands)
            if then:
                then(out)

    return write


def gdal_reads(path: Path) -> np.ndarray:
    with rasterio.open(path) as opened:
        return opened.read()


PHOTOMETRIC = {"minisblack": 1, "rgb": 2, "palette": 3, "mask": 4, "cmyk": 5, "ycbcr": 6, "cielab": 8, "icclab": 9}
PHOTOMETRIC |= {"itulab": 10, "cfa": 32803, "logl": 32844, "logluv": 32845, "linear_raw": 34892}


def tiff_cases() -> list[Case]:
    minisblack = {"photometric": "minisblack"}
    big = noise(48, 64, 3)
    cases = []
    for dtype in ["int8", "int16", "uint32", "int32", "uint64", "int64", "float16", "float32", "float64"]:
        a = noise(H, W, 4, dtype=dtype)
        cases.append(Case(f"tiff-{dtype}", "a.tif", tifffile_writes(a, **minisblack, planarconfig="contig"), chw(a)))
    for planar, order, bigtiff in [("contig", ">", False), ("separate", "<", False), ("separate", ">", True), ("contig", "<", True)]:
        a = CUBE if planar == "contig" else chw(CUBE)
        options = {**minisblack, "planarconfig": planar, "byteorder": order, "bigtiff": bigtiff}
        cases.append(Case(f"tiff-{planar}-{'big' if order == '>' else 'little'}-endian{'-bigtiff' * bigtiff}", "a.tiff", tifffile_writes(a, **options), chw(CUBE)))
    for compression in ["lzw", "deflate", "packbits", "zstd", "lzma"]:
        a = noise(H, W, dtype="int16")
        cases.append(Case(f"tiff-{compression}", "a.tif", tifffile_writes(a, compression=compression, **minisblack), chw(a)))
    lossless = {"webp": {"webp_lossless": True}, "lerc": {"max_z_error": 0}, "lerc_deflate": {"max_z_error": 0}, "jxl": {"jxl_lossless": True}}
    for compression, options in lossless.items():
        cases.append(Case(f"tiff-gdal-{compression}", "a.tif", gdal_writes(chw(big), compress=compression, photometric="rgb", **options), chw(big), may_refuse=compression == "jxl"))
    for predictor, dtype in [(2, "uint8"), (2, "uint16"), (2, "int32"), (3, "float32"), (3, "float64")]:
        a = noise(2, H, W, dtype=dtype)
        for endianness in ("little", "big"):
            cases.append(Case(f"tiff-predictor{predictor}-{dtype}-{endianness}", "a.tif", gdal_writes(a, compress="deflate", predictor=predictor, endianness=endianness, interleave="pixel"), a))
    cases += [
        Case("tiff-tiled", "a.tif", gdal_writes(chw(big), tiled=True, blockxsize=16, blockysize=32, compress="lzw"), chw(big)),
        Case("tiff-tiled-not-whole", "a.tif", gdal_writes(chw(CUBE), tiled=True, blockxsize=16, blockysize=16), chw(CUBE)),
        Case("tiff-strips", "a.tif", tifffile_writes(big, photometric="rgb", rowsperstrip=7, compression="zlib"), chw(big)),
        Case("tiff-one-band", "a.tif", tifffile_writes(GREY, **minisblack), chw(GREY)),
        Case("tiff-224-bands", "a.tif", gdal_writes(noise224 := noise(224, 3, 4, dtype="int16"), interleave="band"), noise224),
        Case("tiff-jpeg-ycbcr", "a.tif", gdal_writes(chw(smooth(48, 64)), compress="jpeg", photometric="ycbcr", jpeg_quality=95), gdal_reads, within=3),
        Case("tiff-jpeg-rgb", "a.tif", gdal_writes(chw(smooth(48, 64)), compress="jpeg", photometric="rgb", jpeg_quality=95), gdal_reads, within=3),
        Case("tiff-jpeg-ycbcr-tiled", "a.tif", gdal_writes(chw(smooth(48, 64)), compress="jpeg", photometric="ycbcr", tiled=True, blockxsize=16, blockysize=16), gdal_reads, within=3),
        Case("tiff-group4", "a.tif", pillow(Image.fromarray(GREY > 127), "TIFF", compression="group4"), chw(np.where(GREY > 127, 255, 0).astype(np.uint8))),
        Case("tiff-sparse", "a.tif", sparse, np.full((2, 64, 64), 7, np.uint16), facts={"nodata": 7}),
        Case("tiff-one-bit", "a.tif", gdal_writes((GREY > 127).astype(np.uint8)[None], nbits=1), chw(np.where(GREY > 127, 255, 0).astype(np.uint8))),
        Case("tiff-12bit-gdal", "a.tif", gdal_writes(GREY16[None] >> 4, nbits=12), GREY16[None] >> 4),
        Case("tiff-12bit", "a.tif", tiff(tiff_page(GREY16 >> 4, 1, bits=12)), chw(GREY16 >> 4)),
        Case("tiff-12bit-rgb", "a.tif", tiff(tiff_page(RGB16 >> 4, 2, bits=12)), chw(RGB16 >> 4), may_refuse=True),
        Case("tiff-2bit", "a.tif", tiff(tiff_page(GREY % 4, 1, bits=2)), chw(GREY % 4 * 85)),
        Case("tiff-4bit", "a.tif", tiff(tiff_page(GREY % 16, 1, bits=4)), chw(GREY % 16 * 17)),
        Case("tiff-fill-order", "a.tif", tiff(tiff_page(GREY % 2, 1, bits=1, data=reversed_bits(packed(GREY % 2, 1).tobytes()), t266=("H", 2))), chw(GREY % 2 * 255), may_refuse=True),
    ]
    # --- colours
    cases += [
        Case("tiff-white0-uint8", "a.tif", tiff(tiff_page(GREY, 0)), chw(255 - GREY)),
        Case("tiff-white0-uint16", "a.tif", tiff(tiff_page(GREY16, 0)), chw(65535 - GREY16)),
        Case("tiff-white0-1bit", "a.tif", tiff(tiff_page(GREY % 2, 0, bits=1)), chw(255 - GREY % 2 * 255)),
        Case("tiff-white0-4bit", "a.tif", tiff(tiff_page(GREY % 16, 0, bits=4)), chw(255 - GREY % 16 * 17)),
        Case("tiff-white0-12bit", "a.tif", tiff(tiff_page(GREY16 >> 4, 0, bits=12)), chw(4095 - (GREY16 >> 4)), may_refuse=True),
        Case("tiff-white0-float", "a.tif", tiff(tiff_page(noise(H, W, dtype="float32"), 0)), refused="(?i)white"),
        Case("tiff-white0-int16", "a.tif", tiff(tiff_page(noise(H, W, dtype="int16"), 0)), refused="(?i)white"),
        Case("tiff-white0-tiled", "a.tif", tifffile_writes(noise16 := noise(40, 40, dtype="uint16"), photometric="miniswhite", tile=(16, 16)), chw(65535 - noise16)),
    ]
    colormap = noise(3, 256, dtype="uint16")
    cases += [
        Case("tiff-palette", "a.tif", tifffile_writes(GREY, photometric="palette", colormap=colormap), (colormap >> 8).astype(np.uint8)[:, GREY]),
        Case("tiff-palette-4bit", "a.tif", tiff(tiff_page(GREY % 16, 3, bits=4, t320=("H", tuple(colormap[:, :16].ravel().tolist())))), (colormap[:, :16] >> 8).astype(np.uint8)[:, GREY % 16]),
        Case("tiff-palette-pillow", "a.tif", pillow(quantized := Image.fromarray(big).quantize(32), "TIFF"), chw(np.asarray(quantized.convert("RGB")))),
        Case("tiff-palette-without-colours", "a.tif", tiff(tiff_page(GREY, 3)), refused=".+"),
        Case("tiff-palette-gdal-nodata", "a.tif", gdal_writes(GREY[None] % 4, then=lambda out: out.write_colormap(1, {i: (i * 50, 255 - i, i, 255) for i in range(4)}), photometric="palette"), np.array([[i * 50, 255 - i, i] for i in range(4)], np.uint8).T[:, GREY % 4]),
        Case("tiff-cmyk", "a.tif", tiff(tiff_page(RGBA, 5)), chw(np.asarray(Image.fromarray(RGBA, "CMYK").convert("RGB")))),
        Case("tiff-cmyk-pillow", "a.tif", pillow(Image.fromarray(RGBA, "CMYK"), "TIFF", compression="tiff_lzw"), chw(np.asarray(Image.fromarray(RGBA, "CMYK").convert("RGB")))),
        Case("tiff-cmyk-planar", "a.tif", tifffile_writes(chw(RGBA), photometric="separated", planarconfig="separate"), chw(np.asarray(Image.fromarray(RGBA, "CMYK").convert("RGB")))),
        Case("tiff-cmyk-uint16", "a.tif", tiff(tiff_page(RGBA16, 5)), refused="(?i)cmyk|separated"),
        Case("tiff-ycbcr-full", "a.tif", tiff(tiff_page(RGB, 6, t530=("H", (1, 1)))), chw(np.asarray(Image.fromarray(RGB, "YCbCr").convert("RGB"))), within=1),
        Case("tiff-ycbcr-subsampled", "a.tif", tiff(tiff_page(noise(4, 4, 3), 6, data=bytes(24), t530=("H", (2, 2)))), refused="(?i)ycbcr|subsampl"),
        Case("tiff-ycbcr-subsampled-by-default", "a.tif", tiff(tiff_page(noise(4, 4, 3), 6, data=bytes(24))), refused="(?i)ycbcr|subsampl"),
    ]
    for name, code in PHOTOMETRIC.items():
        if code in (8, 9, 10, 32845):
            cases.append(Case(f"tiff-{name}", "a.tif", tiff(tiff_page(RGB, code)), refused="(?i)lab" if code < 32000 else "(?i)logluv"))
        if code in (32803, 34892):
            cases.append(Case(f"tiff-{name}", "a.tif", tiff(tiff_page(GREY16, code)), refused="(?i)cfa|colou?r filter|mosaic" if code == 32803 else "(?i)linear.?raw"))
    cases.append(Case("tiff-mask-alone", "a.tif", tiff(tiff_page(GREY % 2, 4, bits=1)), refused="(?i)mask"))
    cases.append(Case("tiff-unknown-photometric", "a.tif", tiff(tiff_page(GREY, 4711)), refused=".+"))
    cases.append(Case("tiff-no-photometric", "a.tif", tiff(tiff_page(GREY, 1, t262=None)), chw(GREY), may_refuse=True))
    # --- alpha
    straight = np.dstack([RGB, RGBA[..., 3]])
    straight[0, 0, 3] = 0
    a = straight[..., 3:].astype(float)
    premultiplied = np.rint(straight[..., :3] * a / 255).astype(np.uint8)
    back = np.where(a > 0, np.minimum(255, premultiplied * 255 / np.maximum(a, 1)), 0)
    joined = np.dstack([premultiplied, straight[..., 3]])
    a16 = RGBA16[..., 3:].astype(float)
    joined16 = np.dstack([np.rint(RGB16 * a16 / 65535).astype(np.uint16), RGBA16[..., 3]])
    back16 = joined16[..., :3] * 65535.0 / np.maximum(a16, 1)
    five = noise(H, W, 5)
    cases += [
        Case("tiff-alpha", "a.tif", tifffile_writes(RGBA, photometric="rgb", extrasamples=["unassalpha"]), chw(RGBA), alpha=True),
        Case("tiff-alpha-planar", "a.tif", tifffile_writes(chw(RGBA), photometric="rgb", planarconfig="separate", extrasamples=["unassalpha"]), chw(RGBA), alpha=True),
        Case("tiff-grey-alpha", "a.tif", tifffile_writes(RGB16[..., :2], photometric="minisblack", planarconfig="contig", extrasamples=["unassalpha"]), chw(RGB16[..., :2]), alpha=True),
        Case("tiff-alpha-gdal", "a.tif", gdal_writes(chw(RGBA), photometric="rgb", alpha="unspecified"), chw(RGBA), alpha=False),
        Case("tiff-alpha-gdal-yes", "a.tif", gdal_writes(chw(RGBA), photometric="rgb", alpha="yes"), chw(RGBA), alpha=True),
        Case("tiff-rgb-and-infrared", "a.tif", tifffile_writes(RGBA, photometric="rgb", extrasamples=["unspecified"]), chw(RGBA)),
        Case("tiff-alpha-pillow", "a.tif", pillow(RGBA, "TIFF"), chw(RGBA), alpha=True),
        Case("tiff-associated", "a.tif", tifffile_writes(joined, photometric="rgb", extrasamples=["assocalpha"]), chw(np.dstack([back, straight[..., 3]])), alpha=True, within=0.51),
        Case("tiff-associated-uint16", "a.tif", tifffile_writes(joined16, photometric="rgb", extrasamples=["assocalpha"]), chw(np.dstack([back16, RGBA16[..., 3]])), alpha=True, within=0.51),
        Case("tiff-two-extra", "a.tif", tifffile_writes(five, photometric="rgb", extrasamples=["unspecified", "unassalpha"]), chw(five), alpha=True, may_refuse=True),
        Case("tiff-mask-gdal", "a.tif", gdal_writes(chw(RGB), then=lambda out: out.write_mask(GREY > 99), photometric="rgb"), chw(np.dstack([RGB, np.where(GREY > 99, 255, 0)])), alpha=True),
        Case("tiff-mask-gdal-uint16", "a.tif", gdal_writes(chw(CUBE), then=lambda out: out.write_mask(GREY > 99)), chw(np.dstack([CUBE, np.where(GREY > 99, 65535, 0)])), alpha=True),
    ]
    # --- orientation
    for orientation in range(1, 9):
        cases.append(Case(f"tiff-orientation-{orientation}", "a.tif", tiff(tiff_page(stored(RGB, orientation), 2, t274=("H", orientation))), chw(RGB)))
    for orientation in (4, 5, 7, 8):
        turned = stored(CUBE, orientation)
        tag = [(274, "H", 1, orientation, True)]
        cases.append(Case(f"tiff-cube-orientation-{orientation}", "a.tif", tifffile_writes(chw(turned), photometric="minisblack", planarconfig="separate", extratags=tag), chw(CUBE)))
    tag = [(274, "H", 1, 6, True)]
    turned = stored(big, 6)
    cases.append(Case("tiff-orientation-6-tiled", "a.tif", tifffile_writes(turned, photometric="rgb", tile=(16, 16), extratags=tag), chw(big)))
    cases.append(Case("tiff-orientation-8-pages", "a.tif", tifffile_writes(chw(stored(CUBE, 8)), photometric="minisblack", metadata=None, extratags=[(274, "H", 1, 8, True)]), chw(CUBE)))
    cases.append(Case("tiff-orientation-6-palette", "a.tif", tifffile_writes(stored(GREY, 6), photometric="palette", colormap=colormap, extratags=tag), (colormap >> 8).astype(np.uint8)[:, GREY]))
    return cases


def reversed_bits(data: bytes) -> bytes:
    return bytes(int(f"{byte:08b}"[::-1], 2) for byte in data)


def sparse(path: Path) -> None:
    """GDAL leaves out blocks that hold only the value for missing data."""
    options = {"count": 2, "height": 64, "width": 64, "dtype": "uint16", "nodata": 7, "tiled": True}
    with rasterio.open(path, "w", driver="GTiff", blockxsize=16, blockysize=16, sparse_ok=True, **options):
        pass


def gdal_facts_cases() -> list[Case]:
    cube = chw(CUBE[..., :4])
    names = ("blue", "green", "red", "nir")

    def named(out) -> None:
        for i, name in enumerate(names, 1):
            out.set_band_description(i, name)

    def waves(out) -> None:
        for i in range(1, 5):
            out.update_tags(i, wavelength=str(400 + 50 * i), wavelength_units="nm")

    def micrometres(out) -> None:
        for i in range(1, 5):
            out.update_tags(i, ns="IMAGERY", CENTRAL_WAVELENGTH_UM=str((400 + 50 * i) / 1000))

    def scales(out) -> None:
        out.scales, out.offsets = (0.1, 0.2, 0.3, 0.4), (1, -2, 0, 5)

    nan = noise(2, H, W, dtype="float32")
    nan[0, 0, 0] = np.nan
    return [
        Case("gdal-names", "a.tif", gdal_writes(cube, named), cube, facts={"names": names}),
        Case("gdal-wavelengths", "a.tif", gdal_writes(cube, waves), cube, facts={"wavelengths": (450, 500, 550, 600)}),
        Case("gdal-wavelengths-imagery", "a.tif", gdal_writes(cube, micrometres), cube, facts={"wavelengths": (450, 500, 550, 600)}),
        Case("gdal-nodata", "a.tif", gdal_writes(cube.astype("int16"), nodata=-9999), cube.astype("int16"), facts={"nodata": -9999}),
        Case("gdal-nodata-nan", "a.tif", gdal_writes(nan, nodata=np.nan), nan, facts={"nodata": np.nan}),
        Case("gdal-scale-and-offset", "a.tif", gdal_writes(cube, scales), cube, facts={"gains": (0.1, 0.2, 0.3, 0.4), "offsets": (1, -2, 0, 5)}),
        Case("gdal-no-scale", "a.tif", gdal_writes(cube), cube, facts={"gains": None, "offsets": None, "nodata": None}),
        Case("gdal-overviews", "a.tif", gdal_writes(noise64 := noise(1, 64, 64), lambda out: out.build_overviews([2, 4])), noise64),
        Case("gdal-cog", "a.tif", gdal_writes(noise1024 := noise(1, 1024, 600), driver="COG", compress="deflate", blocksize=256), noise1024),
        Case("gdal-complex", "a.tif", gdal_writes((cube + 1j).astype("complex64")), refused="(?i)complex"),
        Case("gdal-complex-int16", "a.tif", tiff((dict(tiff_page(GREY, 1)[0]) | {258: ("H", 32), 339: ("H", 5)}, bytes(H * W * 4))), refused=".+"),
        Case("gdal-subdatasets", "a.tif", lambda p: [gdal_writes(cube[i : i + 1], driver="GTiff", append_subdataset=i > 0)(p) for i in range(2)], image=cube[:2], may_refuse=True),
    ]


def stack_cases() -> list[Case]:
    cube = chw(CUBE)[:3]
    names = ["DAPI", "GFP", "Cy5"]
    wavelengths = {"Name": names, "EmissionWavelength": [461, 509, 670], "EmissionWavelengthUnit": ["nm"] * 3}
    z3 = noise(3, 4, H, W, dtype="uint16")
    minisblack = {"photometric": "minisblack"}
    pages = [GREY, noise(3, 4), noise(2, 2)]

    def different(path: Path, **options) -> None:
        with tifffile.TiffWriter(path, **options) as out:
            for page in pages:
                out.write(page, **minisblack, **({} if options else {"metadata": None}))

    def pyramid(path: Path, **options) -> None:
        big = np.ascontiguousarray(np.kron(noise_base, np.ones((16, 16), np.uint8)))
        with tifffile.TiffWriter(path, **options) as out:
            if options.get("ome"):
                out.write(big, subifds=2, **minisblack)
                for step in (2, 4):
                    out.write(big[::step, ::step], subfiletype=1, **minisblack)
            else:
                for step in (1, 2, 4):
                    out.write(big[::step, ::step], subfiletype=int(step > 1), metadata=None, **minisblack)

    noise_base = noise(4, 6)
    full = chw(np.kron(noise_base, np.ones((16, 16), np.uint8)))
    thumbnail_first = tiff(tiff_page(GREY[::2, ::2].copy(), 1, t254=("I", 1)), tiff_page(GREY, 1))

    def raw_camera(path: Path) -> None:
        """As in a DNG: the first page is a preview, the image is a mosaic in a sub-directory."""
        with tifffile.TiffWriter(path) as out:
            dng = [(50706, "B", 4, (1, 4, 0, 0), True)]
            out.write(RGB, photometric="rgb", subifds=1, subfiletype=1, metadata=None, extratags=dng)
            out.write(noise(32, 32, dtype="uint16"), photometric=32803, subfiletype=0, metadata=None, extratags=[(33421, "H", 2, (2, 2), True), (33422, "B", 4, (0, 1, 1, 2), True)])

    return [
        Case("ome-channels", "a.ome.tif", tifffile_writes(cube, ome=True, **minisblack, metadata={"axes": "CYX", "Channel": {"Name": names}}), cube, facts={"names": tuple(names)}),
        Case("ome-emission", "a.ome.tif", tifffile_writes(cube, ome=True, **minisblack, metadata={"axes": "CYX", "Channel": wavelengths}), cube, facts={"names": tuple(names)}),
        Case("ome-one-plane", "a.ome.tif", tifffile_writes(GREY, ome=True, **minisblack, metadata={"axes": "YX"}), chw(GREY)),
        Case("ome-rgb", "a.ome.tif", tifffile_writes(RGB, ome=True, photometric="rgb", metadata={"axes": "YXS"}), chw(RGB)),
        Case("ome-z", "a.ome.tif", tifffile_writes(cube, ome=True, **minisblack, metadata={"axes": "ZYX"}), refused="(?is)\bz\b.*axes"),
        Case("ome-time", "a.ome.tif", tifffile_writes(cube, ome=True, **minisblack, metadata={"axes": "TYX"}), refused="(?is)time.*axes"),
        Case("ome-channels-and-z", "a.ome.tif", tifffile_writes(z3, ome=True, **minisblack, metadata={"axes": "CZYX"}), refused="(?is)\bz\b"),
        Case("ome-channels-and-one-z", "a.ome.tif", tifffile_writes(z3[:, :1], ome=True, **minisblack, metadata={"axes": "CZYX"}), z3[:, 0]),
        Case("ome-z-as-bands", "a.ome.tif", tifffile_writes(cube, ome=True, **minisblack, metadata={"axes": "ZYX"}), cube, reading={"axes": "CYX"}),
        Case("ome-z-named-as-bands", "a.ome.tif", tifffile_writes(cube, ome=True, **minisblack, metadata={"axes": "ZYX"}), cube, reading={"axes": "ZYX→CYX"}, may_refuse=True),
        Case("ome-channels-last", "a.ome.tif", tifffile_writes(RGB16, ome=True, **minisblack, planarconfig="contig", metadata={"axes": "YXS"}), chw(RGB16)),
        Case("ome-two-series", "a.ome.tif", lambda p: different(p, ome=True), chw(GREY), notes="first of 3"),
        Case("ome-pyramid", "a.ome.tif", lambda p: pyramid(p, ome=True), full),
        Case("imagej-channels", "a.tif", tifffile_writes(cube, imagej=True, metadata={"axes": "CYX"}), cube),
        Case("imagej-z", "a.tif", tifffile_writes(cube, imagej=True, metadata={"axes": "ZYX"}), refused="(?is)\bz\b.*axes"),
        Case("imagej-time", "a.tif", tifffile_writes(cube, imagej=True, metadata={"axes": "TYX"}), refused="(?is)time.*axes"),
        Case("imagej-z-and-channels", "a.tif", tifffile_writes(z3.swapaxes(0, 1).copy(), imagej=True, metadata={"axes": "ZCYX"}), refused="(?is)\bz\b"),
        Case("imagej-z-as-bands", "a.tif", tifffile_writes(cube, imagej=True, metadata={"axes": "ZYX"}), cube, reading={"axes": "CYX"}),
        Case("imagej-rgb", "a.tif", tifffile_writes(RGB, imagej=True, photometric="rgb", metadata={"axes": "YXS"}), chw(RGB)),
        Case("imagej-one-plane", "a.tif", tifffile_writes(GREY16, imagej=True), chw(GREY16)),
        Case("imagej-float", "a.tif", tifffile_writes(cube.astype("float32"), imagej=True, metadata={"axes": "CYX"}), cube.astype("float32")),
        Case("imagej-labels", "a.tif", tifffile_writes(cube, imagej=True, metadata={"axes": "CYX", "Labels": names}), cube),
        Case("pages-are-bands", "a.tif", tifffile_writes(chw(CUBE), **minisblack, metadata=None), chw(CUBE), notes="(?i)9 .*(pages|bands)"),
        Case("pages-pillow", "a.tif", pillow(Image.fromarray(GREY), "TIFF", save_all=True, append_images=[Image.fromarray(255 - GREY)]), np.stack([GREY, 255 - GREY]), notes="(?i)bands"),
        Case("pages-rgb", "a.tif", tifffile_writes(noise(3, H, W, 3), photometric="rgb", metadata=None), refused=".+"),
        Case("pages-rgb-pillow", "a.tif", pillow(Image.fromarray(RGB), "TIFF", save_all=True, append_images=[Image.fromarray(255 - RGB)]), refused=".+"),
        Case("pages-of-different-size", "a.tif", different, chw(GREY), notes="first of 3"),
        Case("pages-of-different-type", "a.tif", lambda p: p.write_bytes(tiff(tiff_page(GREY, 1), tiff_page(GREY16, 1))), chw(GREY), notes="first of 2", may_refuse=True),
        Case("pages-shaped", "a.tif", tifffile_writes(chw(CUBE), **minisblack), chw(CUBE)),
        Case("pages-shaped-4d", "a.tif", tifffile_writes(z3, **minisblack), refused=".+"),
        Case("pyramid-pages", "a.tif", pyramid, full),
        Case("pyramid-small-first", "a.tif", thumbnail_first, chw(GREY), may_refuse=True),
        Case("raw-camera", "a.dng", raw_camera, refused=".+"),
        Case("pages-in-a-ring", "a.tif", ring(), refused=".+"),
    ]


def ring() -> bytes:
    """The second page's link points to the first page."""
    data = bytearray(tiff(tiff_page(GREY, 1), tiff_page(GREY, 1)))
    first = struct.unpack_from("<I", data, 4)[0]
    data[-4:] = struct.pack("<I", first)
    return bytes(data)
