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

# only to write HEIC: its opener would replace the one of simtrail
Image.register_save("HEIF", pillow_heif.as_plugin._save_heif)
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
    isolated: bool = False  # in a process of its own
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


def png(array: np.ndarray, bits: int, colour: int, *chunks: bytes, interlaced: bool = False, level: int = 6) -> bytes:
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
    parts = [chunk(b"IHDR", header), *chunks, chunk(b"IDAT", zlib.compress(raw, level)), chunk(b"IEND", b"")]
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


def check_orientations() -> None:
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
        Case(
            f"png-{kind}{bits}{'-interlaced' * interlaced}",
            "a.png",
            png(a, bits, colour, interlaced=interlaced),
            chw(a),
            alpha=alpha,
        )
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
    cases.append(
        Case(
            "png-palette1", "a.png", png(index1, 1, 3, chunk(b"PLTE", palette[:2].tobytes())), chw(palette[:2][index1])
        )
    )
    clear = np.array([0, 255, 128] + [255] * 13, np.uint8)
    seen = chw(np.dstack([palette[indices], clear[indices]]))
    trns = chunk(b"tRNS", clear[:3].tobytes())
    cases.append(Case("png-palette-transparent", "a.png", png(indices, 8, 3, plte, trns), seen, alpha=True))
    key = chunk(b"tRNS", struct.pack(">HHH", *RGB[0, 0]))
    cases += [
        Case("png-colour-key", "a.png", png(RGB, 8, 2, key), chw(RGB), alpha=None),
        Case(
            "png-colour-key16",
            "a.png",
            png(RGB16, 16, 2, chunk(b"tRNS", RGB16[0, 0].astype(">u2").tobytes())),
            chw(RGB16),
            alpha=None,
        ),
        Case(
            "png-grey-key16",
            "a.png",
            png(GREY16, 16, 0, chunk(b"tRNS", GREY16[0, 0].astype(">u2").tobytes())),
            chw(GREY16),
            alpha=None,
        ),
        Case("png-gamma-is-not-applied", "a.png", png(RGB, 8, 2, chunk(b"gAMA", struct.pack(">I", 100000))), chw(RGB)),
        Case("png-bytes-after-the-end", "a.png", png(RGB, 8, 2) + b"junk" * 9, chw(RGB)),
        Case("png-one-pixel", "a.png", png(RGB[:1, :1], 8, 2), chw(RGB[:1, :1])),
        Case("png-many-idat", "a.png", many_idat(png(RGB, 8, 2)), chw(RGB)),
        Case("png-broken-checksum", "a.png", broken_checksum(png(RGB, 8, 2)), chw(RGB), may_refuse=True),
        Case("png-flipped-pixel", "a.png", flipped_pixel(), refused=".+"),
        Case("png16-flipped-pixel", "a.png", flipped_pixel(RGB16, 16), refused=".+"),
        Case("png-no-pixels", "a.png", png(RGB, 8, 2).replace(b"IDAT", b"teXt"), refused=".+"),
        Case(
            "png-apng",
            "a.png",
            pillow(Image.fromarray(RGB), "PNG", save_all=True, append_images=[Image.fromarray(255 - RGB)] * 2),
            chw(RGB),
            notes="first of 3 frames",
        ),
        Case("png-grey-as-rgb", "a.png", png(GREY, 8, 0), chw(np.dstack([GREY] * 3)), reading={"grey_as_rgb": True}),
        Case(
            "png-grey16-as-rgb",
            "a.png",
            png(GREY16, 16, 0),
            chw(np.dstack([GREY16] * 3)),
            reading={"grey_as_rgb": True},
        ),
        Case("png-as-uint16", "a.png", png(RGB, 8, 2), chw(RGB.astype(np.uint16) * 257), reading={"as_uint16": True}),
        Case(
            "png-rgba-as-uint16",
            "a.png",
            png(RGBA, 8, 6),
            chw(RGBA.astype(np.uint16) * 257),
            alpha=True,
            reading={"as_uint16": True},
        ),
        Case("png16-as-uint16", "a.png", png(RGB16, 16, 2), chw(RGB16), reading={"as_uint16": True}),
        Case("png-rgb-with-grey-as-rgb", "a.png", png(RGB, 8, 2), chw(RGB), reading={"grey_as_rgb": True}),
        Case(
            "png-greyalpha-as-rgb",
            "a.png",
            png(RGB[..., :2], 8, 4),
            chw(RGB[..., [0, 0, 0, 1]]),
            alpha=True,
            may_refuse=True,
            reading={"grey_as_rgb": True},
        ),
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


def flipped_pixel(array: np.ndarray = RGB, bits: int = 8) -> bytes:
    """One bit of one pixel is wrong, and so are both checksums that PNG has for that."""
    data = bytearray(png(array, bits, 2, level=0))
    data[data.index(b"IDAT") + 40] ^= 4
    return bytes(data)


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
        Case(
            "jpeg-mpo",
            "a.jpg",
            pillow(
                Image.fromarray(SMOOTH), "MPO", save_all=True, append_images=[Image.fromarray(255 - SMOOTH)], **best
            ),
            chw(SMOOTH),
            within=6,
        ),
        Case("jpeg-lossless", "a.jpg", imagecodecs.ljpeg_encode(GREY16), chw(GREY16), may_refuse=True),
        Case(
            "jpeg-12bit",
            "a.jpg",
            imagecodecs.jpeg8_encode(SMOOTH[..., 0].astype(np.uint16) * 16, bitspersample=12, level=100),
            chw(SMOOTH[..., 0].astype(np.uint16) * 16),
            within=40,
            may_refuse=True,
        ),
        Case("jpeg-no-end-marker", "a.jpg", whole[:-2], chw(SMOOTH), within=6, may_refuse=True),
        Case("jpeg-only-markers", "a.jpg", whole[:20] + b"\xff\xd9", refused=".+"),
        Case(
            "jpeg-broken-exif",
            "a.jpg",
            pillow(SMOOTH, "JPEG", **best, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"),
            chw(SMOOTH),
            within=6,
        ),
        Case(
            "jpeg-108-megapixels",
            "a.jpg",
            lambda p: p.write_bytes(imagecodecs.jpeg8_encode(np.full((9000, 12000, 3), 200, np.uint8))),
            np.broadcast_to(np.uint8(200), (3, 9000, 12000)),
            within=2,
        ),
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
        Case(
            "gif-animated",
            "a.gif",
            pillow(first, "GIF", save_all=True, append_images=others),
            chw(palette[indices]),
            notes="first of 5 frames",
        ),
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
        Case(
            "webp-lossy",
            "a.webp",
            pillow(SMOOTH, "WEBP", quality=100),
            lambda p: chw(cv2.imread(str(p))[..., ::-1]),
            within=2,
        ),
        Case(
            "webp-animated",
            "a.webp",
            pillow(Image.fromarray(RGB), "WEBP", save_all=True, append_images=frames, **lossless),
            chw(RGB),
            alpha=None,
            notes="first of 4 frames",
        ),
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
        Case(
            "bmp-palette",
            "a.bmp",
            bmp(GREY, 8, padded[::-1].tobytes(), extra=palette.tobytes()),
            chw(palette[GREY][..., 2::-1]),
        ),
        Case(
            "bmp-top-down",
            "a.bmp",
            bmp(GREY, 8, padded.tobytes(), extra=palette.tobytes(), down=True),
            chw(palette[GREY][..., 2::-1]),
        ),
        Case(
            "bmp-run-length",
            "a.bmp",
            bmp(GREY, 8, rle, 1, palette.tobytes()),
            chw(palette[GREY][..., 2::-1]),
            may_refuse=True,
        ),
        Case("bmp-565", "a.bmp", bmp(bits, 16, five65[::-1].tobytes(), 3, masks), chw(bits * 255)),
        Case("bmp-555", "a.bmp", bmp(bits, 16, five55[::-1].tobytes()), chw(bits * 255)),
        Case("bmp-32-without-alpha", "a.bmp", bmp(RGB, 32, bgrx[::-1].tobytes()), chw(RGB), alpha=None),
        Case(
            "bmp-one-bit",
            "a.bmp",
            pillow(Image.fromarray(GREY > 127), "BMP"),
            chw(np.where(GREY > 127, 255, 0).astype(np.uint8)),
        ),
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
        Case(
            "ppm-p5-16bit",
            "a.pgm",
            b"P5\n" + size + b"\n65535\n" + GREY16.astype(">u2").tobytes(),
            chw(GREY16),
            may_refuse=True,
        ),
        Case(
            "ppm-p6-16bit",
            "a.ppm",
            b"P6\n" + size + b"\n65535\n" + RGB16.astype(">u2").tobytes(),
            chw(RGB16),
            may_refuse=True,
        ),
        Case(
            "ppm-p7",
            "a.pam",
            b"P7\nWIDTH 7\nHEIGHT 5\nDEPTH 4\nMAXVAL 255\nTUPLTYPE RGB_ALPHA\nENDHDR\n" + RGBA.tobytes(),
            chw(RGBA),
            alpha=True,
            may_refuse=True,
        ),
        Case(
            "ppm-float",
            "a.pfm",
            b"Pf\n" + size + b"\n-1.0\n" + GREY16.astype("<f4")[::-1].tobytes(),
            chw(GREY16.astype(np.float32)),
            may_refuse=True,
        ),
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
        Case(
            "ico",
            "a.ico",
            pillow(noise(16, 16, 4), "ICO", sizes=[(16, 16)]),
            lambda p: chw(np.asarray(Image.open(p).convert("RGBA"))),
            alpha=True,
            may_refuse=True,
        ),
        Case(
            "dds",
            "a.dds",
            pillow(noise(8, 8, 4), "DDS"),
            lambda p: chw(np.asarray(Image.open(p).convert("RGBA"))),
            alpha=True,
            may_refuse=True,
        ),
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
    cases.append(
        Case(
            "jp2-rgba",
            "a.jp2",
            pillow(noise4 := noise(24, 32, 4), "JPEG2000", irreversible=False),
            chw(noise4),
            alpha=True,
        )
    )

    near = {"quality": 100, "subsampling": "4:4:4"}
    wide = smooth(48, 64)
    cases += [
        Case("avif", "a.avif", pillow(wide, "AVIF", **near), chw(wide), within=6),
        Case(
            "avif-rgba",
            "a.avif",
            pillow(np.dstack([wide, wide[..., 0]]), "AVIF", **near),
            chw(np.dstack([wide, wide[..., 0]])),
            alpha=True,
            within=6,
        ),
        Case(
            "avif-animated",
            "a.avif",
            pillow(
                Image.fromarray(wide), "AVIF", save_all=True, append_images=[Image.fromarray(255 - wide)] * 2, **near
            ),
            chw(wide),
            within=6,
            notes="first of 3 frames",
        ),
        Case(
            "avif-10bit",
            "a.avif",
            imagecodecs.avif_encode(wide.astype(np.uint16) * 4, level=100, bitspersample=10, pixelformat="444"),
            chw(wide),
            within=6,
            notes=r"\b8\b",
        ),
        Case(
            "avif-grey",
            "a.avif",
            imagecodecs.avif_encode(wide[..., 0], level=100),
            chw(wide[..., 0]),
            within=4,
            may_refuse=True,
            alpha=None,
        ),
        Case("heic", "a.heic", lambda p: heic(p, wide), chw(wide), within=8),
        Case(
            "heic-rgba",
            "a.heic",
            lambda p: heic(p, np.dstack([wide, wide[..., 0]])),
            chw(np.dstack([wide, wide[..., 0]])),
            alpha=True,
            within=8,
        ),
        Case("heic-two-images", "a.heic", lambda p: heic(p, wide, 255 - wide), chw(wide), within=8),
        Case("heic-10bit", "a.heic", lambda p: heic16(p, wide), chw(wide), within=8, notes=r"\b8\b"),
    ]
    for orientation in range(1, 9):
        turned = stored(wide, orientation)
        cases.append(
            Case(
                f"avif-orientation-{orientation}",
                "a.avif",
                pillow(turned, "AVIF", **near, exif=exif_of(orientation).tobytes()),
                chw(wide),
                within=6,
            )
        )
        cases.append(
            Case(
                f"heic-orientation-{orientation}",
                "a.heic",
                lambda p, t=turned, o=orientation: heic(p, t, orientation=o),
                chw(wide),
                within=8,
            )
        )
    # the files above have the turn twice, in the container and in EXIF, as telephones write it: it counts once
    cases.append(
        Case(
            "heic-turned-by-the-container",
            "a.heic",
            lambda p: turned_by_container(p, stored(wide, 6)),
            chw(wide),
            within=8,
        )
    )
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
    for planar, order, bigtiff in [
        ("contig", ">", False),
        ("separate", "<", False),
        ("separate", ">", True),
        ("contig", "<", True),
    ]:
        a = CUBE if planar == "contig" else chw(CUBE)
        options = {**minisblack, "planarconfig": planar, "byteorder": order, "bigtiff": bigtiff}
        cases.append(
            Case(
                f"tiff-{planar}-{'big' if order == '>' else 'little'}-endian{'-bigtiff' * bigtiff}",
                "a.tiff",
                tifffile_writes(a, **options),
                chw(CUBE),
            )
        )
    for compression in ["lzw", "deflate", "packbits", "zstd", "lzma"]:
        a = noise(H, W, dtype="int16")
        cases.append(
            Case(f"tiff-{compression}", "a.tif", tifffile_writes(a, compression=compression, **minisblack), chw(a))
        )
    lossless = {"webp": {"webp_lossless": True}, "lerc": {"max_z_error": 0}, "lerc_deflate": {"max_z_error": 0}}
    for compression, options in lossless.items():
        cases.append(
            Case(
                f"tiff-gdal-{compression}",
                "a.tif",
                gdal_writes(chw(big), compress=compression, photometric="rgb", **options),
                chw(big),
            )
        )
    for compression, level in [
        ("jpeg2000", {"compressionargs": {"reversible": True, "level": 0}}),
        ("jpegxl", {"compressionargs": {"lossless": True}}),
        ("png", {}),
    ]:
        cases.append(
            Case(
                f"tiff-{compression}",
                "a.tif",
                tifffile_writes(big, photometric="rgb", compression=compression, **level),
                chw(big),
                may_refuse=True,
            )
        )
    for predictor, dtype in [(2, "uint8"), (2, "uint16"), (2, "int32"), (3, "float32"), (3, "float64")]:
        a = noise(2, H, W, dtype=dtype)
        for endianness in ("little", "big"):
            cases.append(
                Case(
                    f"tiff-predictor{predictor}-{dtype}-{endianness}",
                    "a.tif",
                    gdal_writes(a, compress="deflate", predictor=predictor, endianness=endianness, interleave="pixel"),
                    a,
                )
            )
    cases += [
        Case(
            "tiff-tiled",
            "a.tif",
            gdal_writes(chw(big), tiled=True, blockxsize=16, blockysize=32, compress="lzw"),
            chw(big),
        ),
        Case(
            "tiff-tiled-not-whole", "a.tif", gdal_writes(chw(CUBE), tiled=True, blockxsize=16, blockysize=16), chw(CUBE)
        ),
        Case(
            "tiff-strips",
            "a.tif",
            tifffile_writes(big, photometric="rgb", rowsperstrip=7, compression="zlib"),
            chw(big),
        ),
        Case("tiff-one-band", "a.tif", tifffile_writes(GREY, **minisblack), chw(GREY)),
        Case(
            "tiff-224-bands",
            "a.tif",
            gdal_writes(noise224 := noise(224, 3, 4, dtype="int16"), interleave="band"),
            noise224,
        ),
        Case(
            "tiff-jpeg-ycbcr",
            "a.tif",
            gdal_writes(chw(smooth(48, 64)), compress="jpeg", photometric="ycbcr", jpeg_quality=95),
            gdal_reads,
            within=6,
        ),
        Case(
            "tiff-jpeg-rgb",
            "a.tif",
            gdal_writes(chw(smooth(48, 64)), compress="jpeg", photometric="rgb", jpeg_quality=95),
            gdal_reads,
            within=3,
        ),
        Case(
            "tiff-jpeg-ycbcr-tiled",
            "a.tif",
            gdal_writes(
                chw(smooth(48, 64)), compress="jpeg", photometric="ycbcr", tiled=True, blockxsize=16, blockysize=16
            ),
            gdal_reads,
            within=6,
        ),
        Case(
            "tiff-group4",
            "a.tif",
            pillow(Image.fromarray(GREY > 127), "TIFF", compression="group4"),
            chw(np.where(GREY > 127, 255, 0).astype(np.uint8)),
        ),
        Case("tiff-sparse", "a.tif", sparse, np.full((2, 64, 64), 7, np.uint16), facts={"nodata": 7}),
        Case(
            "tiff-one-bit",
            "a.tif",
            gdal_writes((GREY > 127).astype(np.uint8)[None], nbits=1),
            chw(np.where(GREY > 127, 255, 0).astype(np.uint8)),
        ),
        Case("tiff-12bit-gdal", "a.tif", gdal_writes(GREY16[None] >> 4, nbits=12), GREY16[None] >> 4),
        Case("tiff-12bit", "a.tif", tiff(tiff_page(GREY16 >> 4, 1, bits=12)), chw(GREY16 >> 4)),
        Case("tiff-12bit-rgb", "a.tif", tiff(tiff_page(RGB16 >> 4, 2, bits=12)), chw(RGB16 >> 4), may_refuse=True),
        Case("tiff-2bit", "a.tif", tiff(tiff_page(GREY % 4, 1, bits=2)), chw(GREY % 4 * 85)),
        Case("tiff-4bit", "a.tif", tiff(tiff_page(GREY % 16, 1, bits=4)), chw(GREY % 16 * 17)),
        Case(
            "tiff-fill-order",
            "a.tif",
            tiff(tiff_page(GREY % 2, 1, bits=1, data=reversed_bits(packed(GREY % 2, 1).tobytes()), t266=("H", 2))),
            chw(GREY % 2 * 255),
            may_refuse=True,
        ),
    ]
    # --- colours
    cases += [
        Case("tiff-white0-uint8", "a.tif", tiff(tiff_page(GREY, 0)), chw(255 - GREY)),
        Case("tiff-white0-uint16", "a.tif", tiff(tiff_page(GREY16, 0)), chw(65535 - GREY16)),
        Case("tiff-white0-1bit", "a.tif", tiff(tiff_page(GREY % 2, 0, bits=1)), chw(255 - GREY % 2 * 255)),
        Case("tiff-white0-4bit", "a.tif", tiff(tiff_page(GREY % 16, 0, bits=4)), chw(255 - GREY % 16 * 17)),
        Case(
            "tiff-white0-12bit",
            "a.tif",
            tiff(tiff_page(GREY16 >> 4, 0, bits=12)),
            chw(4095 - (GREY16 >> 4)),
            may_refuse=True,
        ),
        Case("tiff-white0-float", "a.tif", tiff(tiff_page(noise(H, W, dtype="float32"), 0)), refused="(?i)white"),
        Case("tiff-white0-int16", "a.tif", tiff(tiff_page(noise(H, W, dtype="int16"), 0)), refused="(?i)white"),
        Case(
            "tiff-white0-tiled",
            "a.tif",
            tifffile_writes(noise16 := noise(40, 40, dtype="uint16"), photometric="miniswhite", tile=(16, 16)),
            chw(65535 - noise16),
        ),
    ]
    colormap = noise(3, 256, dtype="uint16")
    cases += [
        Case(
            "tiff-palette",
            "a.tif",
            tifffile_writes(GREY, photometric="palette", colormap=colormap),
            (colormap >> 8).astype(np.uint8)[:, GREY],
        ),
        Case(
            "tiff-palette-4bit",
            "a.tif",
            tiff(tiff_page(GREY % 16, 3, bits=4, t320=("H", tuple(colormap[:, :16].ravel().tolist())))),
            (colormap[:, :16] >> 8).astype(np.uint8)[:, GREY % 16],
        ),
        Case(
            "tiff-palette-pillow",
            "a.tif",
            pillow(quantized := Image.fromarray(big).quantize(32), "TIFF"),
            chw(np.asarray(quantized.convert("RGB"))),
        ),
        Case("tiff-palette-without-colours", "a.tif", tiff(tiff_page(GREY, 3)), refused=".+"),
        Case(
            "tiff-palette-gdal-nodata",
            "a.tif",
            gdal_writes(
                GREY[None] % 4,
                then=lambda out: out.write_colormap(1, {i: (i * 50, 255 - i, i, 255) for i in range(4)}),
                photometric="palette",
            ),
            np.array([[i * 50, 255 - i, i] for i in range(4)], np.uint8).T[:, GREY % 4],
        ),
        Case(
            "tiff-cmyk",
            "a.tif",
            tiff(tiff_page(RGBA, 5)),
            chw(np.asarray(Image.fromarray(RGBA, "CMYK").convert("RGB"))),
        ),
        Case(
            "tiff-cmyk-pillow",
            "a.tif",
            pillow(Image.fromarray(RGBA, "CMYK"), "TIFF", compression="tiff_lzw"),
            chw(np.asarray(Image.fromarray(RGBA, "CMYK").convert("RGB"))),
        ),
        Case(
            "tiff-cmyk-planar",
            "a.tif",
            tifffile_writes(chw(RGBA), photometric="separated", planarconfig="separate"),
            chw(np.asarray(Image.fromarray(RGBA, "CMYK").convert("RGB"))),
        ),
        Case("tiff-cmyk-uint16", "a.tif", tiff(tiff_page(RGBA16, 5)), refused="(?i)cmyk|separated"),
        Case(
            "tiff-ycbcr-full",
            "a.tif",
            tiff(tiff_page(RGB, 6, t530=("H", (1, 1)))),
            chw(np.asarray(Image.fromarray(RGB, "YCbCr").convert("RGB"))),
            within=1,
        ),
        Case(
            "tiff-ycbcr-subsampled",
            "a.tif",
            tiff(tiff_page(noise(4, 4, 3), 6, data=bytes(24), t530=("H", (2, 2)))),
            refused="(?i)ycbcr|subsampl",
        ),
        Case(
            "tiff-ycbcr-subsampled-by-default",
            "a.tif",
            tiff(tiff_page(noise(4, 4, 3), 6, data=bytes(24))),
            refused="(?i)ycbcr|subsampl",
        ),
    ]
    for name, code in PHOTOMETRIC.items():
        if code in (8, 9, 10, 32845):
            cases.append(
                Case(
                    f"tiff-{name}",
                    "a.tif",
                    tiff(tiff_page(RGB, code)),
                    refused="(?i)lab" if code < 32000 else "(?i)logluv",
                )
            )
        if code in (32803, 34892):
            cases.append(
                Case(
                    f"tiff-{name}",
                    "a.tif",
                    tiff(tiff_page(GREY16, code)),
                    refused="(?i)cfa|colou?r filter|mosaic" if code == 32803 else "(?i)linear.?raw",
                )
            )
    cases.append(Case("tiff-mask-alone", "a.tif", tiff(tiff_page(GREY % 2, 4, bits=1)), refused="(?i)mask"))
    cases.append(Case("tiff-unknown-photometric", "a.tif", tiff(tiff_page(GREY, 4711)), refused=".+"))
    cases.append(Case("tiff-no-photometric", "a.tif", tiff(tiff_page(GREY, 1, t262=None)), chw(GREY), may_refuse=True))
    # --- alpha
    straight = np.dstack([RGB, RGBA[..., 3]])
    straight[0, 0, 3] = 0
    a = straight[..., 3:].astype(float)
    premultiplied = np.rint(straight[..., :3] * a / 255).astype(np.uint8)
    back = np.where(a > 0, np.minimum(255, premultiplied * 255.0 / np.maximum(a, 1)), 0)
    joined = np.dstack([premultiplied, straight[..., 3]])
    a16 = RGBA16[..., 3:].astype(float)
    joined16 = np.dstack([np.rint(RGB16 * a16 / 65535).astype(np.uint16), RGBA16[..., 3]])
    back16 = joined16[..., :3] * 65535.0 / np.maximum(a16, 1)
    five = noise(H, W, 5)
    cases += [
        Case(
            "tiff-alpha",
            "a.tif",
            tifffile_writes(RGBA, photometric="rgb", extrasamples=["unassalpha"]),
            chw(RGBA),
            alpha=True,
        ),
        Case(
            "tiff-alpha-planar",
            "a.tif",
            tifffile_writes(chw(RGBA), photometric="rgb", planarconfig="separate", extrasamples=["unassalpha"]),
            chw(RGBA),
            alpha=True,
        ),
        Case(
            "tiff-grey-alpha",
            "a.tif",
            tifffile_writes(
                RGB16[..., :2], photometric="minisblack", planarconfig="contig", extrasamples=["unassalpha"]
            ),
            chw(RGB16[..., :2]),
            alpha=True,
        ),
        Case(
            "tiff-alpha-gdal",
            "a.tif",
            gdal_writes(chw(RGBA), photometric="rgb", alpha="unspecified"),
            chw(RGBA),
            alpha=False,
        ),
        Case(
            "tiff-alpha-gdal-yes",
            "a.tif",
            gdal_writes(chw(RGBA), photometric="rgb", alpha="yes"),
            chw(RGBA),
            alpha=True,
        ),
        Case(
            "tiff-rgb-and-infrared",
            "a.tif",
            tifffile_writes(RGBA, photometric="rgb", extrasamples=["unspecified"]),
            chw(RGBA),
        ),
        Case("tiff-alpha-pillow", "a.tif", pillow(RGBA, "TIFF"), chw(RGBA), alpha=True),
        Case(
            "tiff-associated",
            "a.tif",
            tifffile_writes(joined, photometric="rgb", extrasamples=["assocalpha"]),
            chw(np.dstack([back, straight[..., 3]])),
            alpha=True,
            within=0.51,
        ),
        Case(
            "tiff-associated-uint16",
            "a.tif",
            tifffile_writes(joined16, photometric="rgb", extrasamples=["assocalpha"]),
            chw(np.dstack([back16, RGBA16[..., 3]])),
            alpha=True,
            within=0.51,
        ),
        Case(
            "tiff-two-extra",
            "a.tif",
            tifffile_writes(five, photometric="rgb", extrasamples=["unspecified", "unassalpha"]),
            chw(five),
            alpha=True,
            may_refuse=True,
        ),
        Case(
            "tiff-mask-gdal",
            "a.tif",
            gdal_writes(chw(RGB), then=lambda out: out.write_mask(GREY > 99), photometric="rgb"),
            chw(np.dstack([RGB, np.where(GREY > 99, 255, 0).astype(np.uint8)])),
            alpha=True,
        ),
        Case(
            "tiff-mask-gdal-uint16",
            "a.tif",
            gdal_writes(chw(CUBE), then=lambda out: out.write_mask(GREY > 99)),
            chw(np.dstack([CUBE, np.where(GREY > 99, 65535, 0).astype(np.uint16)])),
            alpha=True,
        ),
    ]
    # --- orientation
    for orientation in range(1, 9):
        cases.append(
            Case(
                f"tiff-orientation-{orientation}",
                "a.tif",
                tiff(tiff_page(stored(RGB, orientation), 2, t274=("H", orientation))),
                chw(RGB),
            )
        )
    for orientation in (4, 5, 7, 8):
        turned = stored(CUBE, orientation)
        tag = [(274, "H", 1, orientation, True)]
        cases.append(
            Case(
                f"tiff-cube-orientation-{orientation}",
                "a.tif",
                tifffile_writes(chw(turned), photometric="minisblack", planarconfig="separate", extratags=tag),
                chw(CUBE),
            )
        )
    tag = [(274, "H", 1, 6, True)]
    turned = stored(big, 6)
    cases.append(
        Case(
            "tiff-orientation-6-tiled",
            "a.tif",
            tifffile_writes(turned, photometric="rgb", tile=(16, 16), extratags=tag),
            chw(big),
        )
    )
    cases.append(
        Case(
            "tiff-orientation-8-pages",
            "a.tif",
            tifffile_writes(
                chw(stored(CUBE, 8)), photometric="minisblack", metadata=None, extratags=[(274, "H", 1, 8, True)]
            ),
            chw(CUBE),
        )
    )
    cases.append(
        Case(
            "tiff-orientation-6-palette",
            "a.tif",
            tifffile_writes(stored(GREY, 6), photometric="palette", colormap=colormap, extratags=tag),
            (colormap >> 8).astype(np.uint8)[:, GREY],
        )
    )
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
        Case(
            "gdal-wavelengths-imagery",
            "a.tif",
            gdal_writes(cube, micrometres),
            cube,
            facts={"wavelengths": (450, 500, 550, 600)},
        ),
        Case(
            "gdal-nodata",
            "a.tif",
            gdal_writes(cube.astype("int16"), nodata=-9999),
            cube.astype("int16"),
            facts={"nodata": -9999},
        ),
        Case("gdal-nodata-nan", "a.tif", gdal_writes(nan, nodata=np.nan), nan, facts={"nodata": np.nan}),
        Case(
            "gdal-scale-and-offset",
            "a.tif",
            gdal_writes(cube, scales),
            cube,
            facts={"gains": (0.1, 0.2, 0.3, 0.4), "offsets": (1, -2, 0, 5)},
        ),
        Case("gdal-no-scale", "a.tif", gdal_writes(cube), cube, facts={"gains": None, "offsets": None, "nodata": None}),
        Case(
            "gdal-overviews",
            "a.tif",
            gdal_writes(noise64 := noise(1, 64, 64), lambda out: out.build_overviews([2, 4])),
            noise64,
        ),
        Case(
            "gdal-cog",
            "a.tif",
            gdal_writes(noise1024 := noise(1, 1024, 600), driver="COG", compress="deflate", blocksize=256),
            noise1024,
        ),
        Case("gdal-complex", "a.tif", gdal_writes((cube + 1j).astype("complex64")), refused="(?i)complex"),
        Case(
            "gdal-complex-int16",
            "a.tif",
            tiff((dict(tiff_page(GREY, 1)[0]) | {258: ("H", 32), 339: ("H", 5)}, bytes(H * W * 4))),
            refused=".+",
        ),
        Case(
            "gdal-subdatasets",
            "a.tif",
            lambda p: [gdal_writes(cube[i : i + 1], driver="GTiff", append_subdataset=i > 0)(p) for i in range(2)],
            image=cube[:2],
            may_refuse=True,
        ),
    ]


def stack_cases() -> list[Case]:
    cube = chw(CUBE)[:3]
    names = ["DAPI", "GFP", "Cy5"]
    wavelengths = {"Name": names, "EmissionWavelength": [461, 509, 670], "EmissionWavelengthUnit": ["nm"] * 3}
    z3 = noise(3, 4, H, W, dtype="uint16")
    minisblack = {"photometric": "minisblack"}
    pages = [GREY, noise(3, 9), noise(8, 2)]  # not halves of each other, which would be a pyramid

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
            out.write(
                noise(32, 32, dtype="uint16"),
                photometric=32803,
                subfiletype=0,
                metadata=None,
                extratags=[(33421, "H", 2, (2, 2), True), (33422, "B", 4, (0, 1, 1, 2), True)],
            )

    return [
        Case(
            "ome-channels",
            "a.ome.tif",
            tifffile_writes(cube, ome=True, **minisblack, metadata={"axes": "CYX", "Channel": {"Name": names}}),
            cube,
            facts={"names": tuple(names)},
        ),
        Case(
            "ome-emission",
            "a.ome.tif",
            tifffile_writes(cube, ome=True, **minisblack, metadata={"axes": "CYX", "Channel": wavelengths}),
            cube,
            facts={"names": tuple(names)},
        ),
        Case(
            "ome-one-plane",
            "a.ome.tif",
            tifffile_writes(GREY, ome=True, **minisblack, metadata={"axes": "YX"}),
            chw(GREY),
        ),
        Case(
            "ome-rgb",
            "a.ome.tif",
            tifffile_writes(RGB, ome=True, photometric="rgb", metadata={"axes": "YXS"}),
            chw(RGB),
        ),
        Case(
            "ome-z",
            "a.ome.tif",
            tifffile_writes(cube, ome=True, **minisblack, metadata={"axes": "ZYX"}),
            refused=r"(?is)\bz\b.*axes",
        ),
        Case(
            "ome-time",
            "a.ome.tif",
            tifffile_writes(cube, ome=True, **minisblack, metadata={"axes": "TYX"}),
            refused="(?is)time.*axes",
        ),
        Case(
            "ome-channels-and-z",
            "a.ome.tif",
            tifffile_writes(z3, ome=True, **minisblack, metadata={"axes": "CZYX"}),
            refused=r"(?is)\bz\b",
        ),
        Case(
            "ome-channels-and-one-z",
            "a.ome.tif",
            tifffile_writes(z3[:, :1], ome=True, **minisblack, metadata={"axes": "CZYX"}),
            z3[:, 0],
        ),
        Case(
            "ome-z-as-bands",
            "a.ome.tif",
            tifffile_writes(cube, ome=True, **minisblack, metadata={"axes": "ZYX"}),
            cube,
            reading={"axes": "CYX"},
        ),
        Case(
            "ome-channels-last",
            "a.ome.tif",
            tifffile_writes(RGB16, ome=True, **minisblack, planarconfig="contig", metadata={"axes": "YXS"}),
            chw(RGB16),
        ),
        Case("ome-two-series", "a.ome.tif", lambda p: different(p, ome=True), chw(GREY), notes="first of 3"),
        Case("ome-pyramid", "a.ome.tif", lambda p: pyramid(p, ome=True), full),
        Case("imagej-channels", "a.tif", tifffile_writes(cube, imagej=True, metadata={"axes": "CYX"}), cube),
        Case(
            "imagej-z",
            "a.tif",
            tifffile_writes(cube, imagej=True, metadata={"axes": "ZYX"}),
            refused=r"(?is)\bz\b.*axes",
        ),
        Case(
            "imagej-time",
            "a.tif",
            tifffile_writes(cube, imagej=True, metadata={"axes": "TYX"}),
            refused="(?is)time.*axes",
        ),
        Case(
            "imagej-z-and-channels",
            "a.tif",
            tifffile_writes(z3.swapaxes(0, 1).copy(), imagej=True, metadata={"axes": "ZCYX"}),
            refused=r"(?is)\bz\b",
        ),
        Case(
            "imagej-z-as-bands",
            "a.tif",
            tifffile_writes(cube, imagej=True, metadata={"axes": "ZYX"}),
            cube,
            reading={"axes": "CYX"},
        ),
        Case(
            "imagej-rgb",
            "a.tif",
            tifffile_writes(RGB, imagej=True, photometric="rgb", metadata={"axes": "YXS"}),
            chw(RGB),
        ),
        Case("imagej-one-plane", "a.tif", tifffile_writes(GREY16, imagej=True), chw(GREY16)),
        Case(
            "imagej-float",
            "a.tif",
            tifffile_writes(cube.astype("float32"), imagej=True, metadata={"axes": "CYX"}),
            cube.astype("float32"),
        ),
        Case(
            "imagej-labels",
            "a.tif",
            tifffile_writes(cube, imagej=True, metadata={"axes": "CYX", "Labels": names}),
            cube,
        ),
        Case(
            "pages-are-bands",
            "a.tif",
            tifffile_writes(chw(CUBE), **minisblack, metadata=None),
            chw(CUBE),
            notes="(?i)9 .*(pages|bands)",
        ),
        Case(
            "pages-pillow",
            "a.tif",
            pillow(Image.fromarray(GREY), "TIFF", save_all=True, append_images=[Image.fromarray(255 - GREY)]),
            np.stack([GREY, 255 - GREY]),
            notes="(?i)bands",
        ),
        Case("pages-rgb", "a.tif", tifffile_writes(noise(3, H, W, 3), photometric="rgb", metadata=None), refused=".+"),
        Case(
            "pages-rgb-pillow",
            "a.tif",
            pillow(Image.fromarray(RGB), "TIFF", save_all=True, append_images=[Image.fromarray(255 - RGB)]),
            refused=".+",
        ),
        Case("pages-of-different-size", "a.tif", different, chw(GREY), notes="first of 3"),
        Case(
            "pages-of-different-type",
            "a.tif",
            lambda p: p.write_bytes(tiff(tiff_page(GREY, 1), tiff_page(GREY16, 1))),
            chw(GREY),
            notes="first of 2",
            may_refuse=True,
        ),
        Case("pages-shaped", "a.tif", tifffile_writes(chw(CUBE), **minisblack), chw(CUBE)),
        Case("pages-shaped-4d", "a.tif", tifffile_writes(z3, **minisblack), refused=".+"),
        Case("pyramid-pages", "a.tif", pyramid, full),
        Case("pyramid-small-first", "a.tif", thumbnail_first, chw(GREY), may_refuse=True),
        Case("raw-camera", "a.dng", raw_camera, refused=".+"),
        Case("pages-in-a-ring", "a.tif", ring(), np.stack([GREY, GREY]), may_refuse=True),
    ]


def wide_canvas(path: Path) -> None:
    """An animated WebP whose canvas claims eleven million pixels per row."""
    frames = [Image.fromarray(255 - RGB)] * 2
    data = bytearray(pillow(Image.fromarray(RGB), "WEBP", save_all=True, append_images=frames, lossless=True))
    start = data.index(b"VP8X") + 12  # after its size and its flags: width − 1 in 24 bits
    data[start : start + 3] = (11_000_000).to_bytes(3, "little")
    path.write_bytes(data)


def ring(second=None, to: int = 0) -> bytes:
    """The second page's link points to the first page, or to the second itself."""
    data = bytearray(tiff(tiff_page(GREY, 1), second or tiff_page(GREY, 1)))
    link = 4
    for _ in range(to + 1):
        place = struct.unpack_from("<I", data, link)[0]
        link = place + 2 + 12 * struct.unpack_from("<H", data, place)[0]
    data[-4:] = struct.pack("<I", place)
    return bytes(data)


# --- ENVI ------------------------------------------------------------------------------------------------------------

ENVI_TYPES = {
    "uint8": 1,
    "int16": 2,
    "int32": 3,
    "float32": 4,
    "float64": 5,
    "complex64": 6,
    "uint16": 12,
    "uint32": 13,
    "int64": 14,
    "uint64": 15,
}
ENVI_ORDERS = {"bsq": (2, 0, 1), "bil": (0, 2, 1), "bip": (0, 1, 2)}  # of the axes of an (H,W,C) array


def envi(array: np.ndarray, data: str, header: str, interleave="bsq", order="<", offset=0, extra="", **changes):
    """Writes an (H,W,C) array beside its header; the case opens one of the two."""

    def write(path: Path) -> None:
        fields = {"samples": array.shape[1], "lines": array.shape[0], "bands": array.shape[2], "header offset": offset}
        fields |= {"file type": "ENVI Standard", "data type": ENVI_TYPES[array.dtype.name], "interleave": interleave}
        fields |= {"byte order": int(order == ">")} | {key.replace("_", " "): value for key, value in changes.items()}
        text = "ENVI\n" + "".join(f"{key} = {value}\n" for key, value in fields.items() if value is not None) + extra
        (path.parent / header).write_text(text, encoding="utf-8")
        samples = np.ascontiguousarray(array.transpose(ENVI_ORDERS[interleave.lower()])).astype(
            array.dtype.newbyteorder(order)
        )
        (path.parent / data).write_bytes(b"#" * offset + samples.tobytes())

    return write


def envi_cases() -> list[Case]:
    cases = []
    cube = noise(H, W, 3, dtype="int16")
    for i, (data, header) in enumerate(
        [
            ("c.img", "c.hdr"),
            ("c", "c.hdr"),
            ("c.dat", "c.hdr"),
            ("c.raw", "c.hdr"),
            ("c.bil", "c.hdr"),
            ("c.img", "c.img.hdr"),
            ("c.bsq", "c.bsq.hdr"),
            ("C.IMG", "C.HDR"),
        ]
    ):
        interleave, order = ("bsq", "bil", "bip")[i % 3], "<>"[i % 2]
        write = envi(cube, data, header, interleave, order, offset=i * 7)
        for opened in (data, header):
            may_refuse = "." not in opened  # a file without a suffix
            cases.append(
                Case(
                    f"envi-{i}-{'header' if opened == header else 'data'}-{interleave}",
                    opened,
                    write,
                    chw(cube),
                    may_refuse=may_refuse,
                )
            )
    for dtype in ENVI_TYPES:
        if dtype != "complex64":
            a = noise(H, W, 2, dtype=dtype)
            cases.append(Case(f"envi-{dtype}", "c.hdr", envi(a, "c.img", "c.hdr", "BIP", ">"), chw(a)))
    facts = """wavelength units = Micrometers
wavelength = { 0.45,
 0.55, 0.65 }
band names = {
 blue, green (1/2),
 red}
"""
    plain = (
        "wavelength = {450, 550.5, 650}\nbbl = {1, 0, 1}\nreflectance scale factor = 10000\ndata ignore value = -9999\n"
    )
    gains = "data gain values = {0.1, 0.2, 0.3}\ndata offset values = {1, -2, 0}\n"
    cases += [
        Case("envi-complex", "c.hdr", envi(cube.astype("complex64"), "c.img", "c.hdr"), refused="(?i)complex"),
        Case(
            "envi-micrometres",
            "c.hdr",
            envi(cube, "c.img", "c.hdr", extra=facts),
            chw(cube),
            facts={"wavelengths": (450, 550, 650), "names": ("blue", "green (1/2)", "red")},
        ),
        Case(
            "envi-nanometres",
            "c.hdr",
            envi(cube, "c.img", "c.hdr", extra="wavelength units = Nanometers\n" + plain),
            chw(cube),
            facts={"wavelengths": (450, 550.5, 650), "good": (True, False, True), "scale": 10000, "nodata": -9999},
        ),
        Case(
            "envi-wavelengths-without-unit",
            "c.hdr",
            envi(cube, "c.img", "c.hdr", extra=plain),
            chw(cube),
            facts={"wavelengths": (450, 550.5, 650)},
        ),
        Case(
            "envi-gains",
            "c.hdr",
            envi(cube, "c.img", "c.hdr", extra=gains),
            chw(cube),
            facts={"gains": (0.1, 0.2, 0.3), "offsets": (1, -2, 0)},
        ),
        Case("envi-crlf", "c.hdr", lambda p: envi_crlf(p, cube), chw(cube), facts={"nodata": 0}),
        Case("envi-too-short", "c.hdr", envi(cube, "c.img", "c.hdr", lines=H + 1), refused=".+"),
        Case("envi-one-band", "c.img", envi(cube[..., :1], "c.img", "c.hdr"), chw(cube[..., :1])),
        Case("envi-data-type-missing", "c.hdr", envi(cube, "c.img", "c.hdr", data_type=None), refused="data type"),
        Case(
            "envi-no-data-file",
            "c.hdr",
            lambda p: p.write_text(
                "ENVI\nsamples = 4\nlines = 3\nbands = 2\ndata type = 12\ninterleave = bsq\nbyte order = 0\n"
            ),
            refused=".+",
        ),
        Case("envi-no-header", "c.img", cube.tobytes(), refused=".+"),
        Case("envi-header-is-text", "c.hdr", b"just a text\n", refused=".+"),
        Case("envi-negative-size", "c.hdr", envi(cube, "c.img", "c.hdr", samples=-7), refused=".+"),
        Case(
            "envi-huge", "c.hdr", envi(cube, "c.img", "c.hdr", samples=10**9, lines=10**9), refused=".+", megabytes=200
        ),
    ]
    return cases


def envi_crlf(path: Path, cube: np.ndarray) -> None:
    envi(cube, "c.img", "c.hdr", extra="data ignore value = 0\n")(path)
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))


# --- arrays: NumPy, MATLAB, HDF5, NetCDF -----------------------------------------------------------------------------


def npy(array: np.ndarray, **options) -> bytes:
    out = io.BytesIO()
    np.save(out, array, **options)
    return out.getvalue()


def npz(compressed: bool = False, **arrays) -> bytes:
    out = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(out, **arrays)
    return out.getvalue()


def mat(**arrays) -> bytes:
    out = io.BytesIO()
    options = {key: arrays.pop(key) for key in ("do_compression", "format") if key in arrays}
    scipy.io.savemat(out, arrays, **options)
    return out.getvalue()


def hdf5(**arrays) -> Callable[[Path], None]:
    """A double underscore in a name is a group."""

    def write(path: Path) -> None:
        with h5py.File(path, "w") as out:
            for name, array in arrays.items():
                out[name.replace("__", "/")] = array

    return write


def mat73(**arrays) -> Callable[[Path], None]:
    """As MATLAB writes it: a header of 512 bytes, and the axes the other way round."""

    def write(path: Path) -> None:
        with h5py.File(path, "w", userblock_size=512) as out:
            for name, array in arrays.items():
                if isinstance(array, str):
                    codes = np.array([[ord(letter)] for letter in array], np.uint16)
                    out.create_dataset(name, data=codes).attrs["MATLAB_class"] = np.bytes_("char")
                else:
                    kind = {"float32": "single", "float64": "double"}.get(array.dtype.name, array.dtype.name)
                    out.create_dataset(name, data=array.T).attrs["MATLAB_class"] = np.bytes_(kind)
        header = b"MATLAB 7.3 MAT-file, Platform: GLNXA64, Created on: Mon Jan  1 00:00:00 2024 HDF5 schema 1.00 ."
        data = bytearray(path.read_bytes())
        data[:512] = header.ljust(116) + bytes(8) + b"\x00\x02IM" + bytes(512 - 128)
        path.write_bytes(data)

    return write


def netcdf4(dims: dict[str, int], variables: dict[str, tuple], coordinates: dict[str, tuple] | None = None):
    """Variables as name: (dimensions, array, attributes); dimensions without coordinates are scales without values."""

    def write(path: Path) -> None:
        with h5py.File(path, "w", track_order=True) as out:
            out.attrs["_NCProperties"] = np.bytes_("version=2,netcdf=4.9.2,hdf5=1.14.3")
            for name, (values, attributes) in (coordinates or {}).items():
                out[name] = values
                out[name].attrs.update(attributes)
                out[name].make_scale(name)
            for i, (name, size) in enumerate(dims.items()):
                if name not in out:
                    out.create_dataset(name, (size,), ">f4")
                    out[name].make_scale(f"This is a netCDF dimension but not a netCDF variable. {size:9d}")
                out[name].attrs["_Netcdf4Dimid"] = np.int32(i)
            for name, (axes, array, attributes) in variables.items():
                out[name] = array
                for key, value in attributes.items():
                    out[name].attrs[key] = (
                        np.array([value], np.asarray(value).dtype) if not isinstance(value, str) else np.bytes_(value)
                    )
                for i, axis in enumerate(axes):
                    out[name].dims[i].attach_scale(out[axis])

    return write


def netcdf3(dims: dict[str, int], variables: dict[str, tuple], version: int = 1) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with scipy.io.netcdf_file(path, "w", version=version) as out:
            for name, size in dims.items():
                out.createDimension(name, size)
            for name, (axes, array, attributes) in variables.items():
                variable = out.createVariable(name, array.dtype, axes)
                variable[:] = array
                for key, value in attributes.items():
                    setattr(variable, key, value)

    return write


def array_cases() -> list[Case]:
    cube = noise(H, W, 4, dtype="uint16")
    float_cube = noise(H, W, 4, dtype="float32")
    waves = np.array([450.0, 550, 650, 850])
    whole = chw(cube)
    pickled = npy(np.array([[1, "a"], [None, 2]], object), allow_pickle=True)
    structured = np.zeros((H, W), [("a", "u1"), ("b", "f4")])
    several = npz(first=cube, second=GREY)
    named = "(?s)(first.*second|second.*first).*array|array.*(first.*second|second.*first)"
    cases = [
        Case("npy-2d", "a.npy", npy(GREY16), chw(GREY16)),
        Case("npy-3d", "a.npy", npy(cube), whole),
        Case("npy-fortran", "a.npy", npy(np.asfortranarray(cube)), whole),
        Case("npy-big-endian", "a.npy", npy(cube.astype(">u2")), whole),
        Case("npy-float16", "a.npy", npy(float_cube.astype("float16")), chw(float_cube.astype("float16"))),
        Case("npy-float64", "a.npy", npy(float_cube.astype("float64")), chw(float_cube.astype("float64"))),
        Case("npy-one-band", "a.npy", npy(cube[..., :1]), whole[:1]),
        Case("npy-axes", "a.npy", npy(np.ascontiguousarray(whole)), whole, reading={"axes": "CYX"}),
        Case("npy-axes-yxc", "a.npy", npy(cube), whole, reading={"axes": "YXC"}),
        Case("npy-axes-xyc", "a.npy", npy(cube.swapaxes(0, 1).copy()), whole, reading={"axes": "XYC"}),
        Case("npy-axes-wrong-number", "a.npy", npy(cube), refused="(?i)axes", reading={"axes": "YX"}),
        Case("npy-1d", "a.npy", npy(GREY.ravel()), refused=".+"),
        Case("npy-4d", "a.npy", npy(noise(2, 3, H, W)), refused=".+"),
        Case("npy-empty", "a.npy", npy(np.zeros((0, W, 3), np.uint8)), refused=".+"),
        Case("npy-no-bands", "a.npy", npy(np.zeros((H, W, 0), np.uint8)), refused=".+"),
        Case("npy-complex", "a.npy", npy(cube.astype("complex64")), refused="(?i)complex"),
        Case("npy-text", "a.npy", npy(np.array([["a", "b"]])), refused=".+"),
        Case("npy-structured", "a.npy", npy(structured), refused=".+"),
        Case("npy-dates", "a.npy", npy(np.zeros((H, W), "datetime64[s]")), refused=".+"),
        Case("npy-pickled", "a.npy", pickled, refused="(?i)pickle|object"),
        Case("npy-pickle-itself", "a.npy", b"\x80\x04\x95\x0b\0\0\0\0\0\0\0K\x01.", refused=".+"),
        Case("npz-one", "a.npz", npz(image=cube), whole),
        Case("npz-compressed", "a.npz", npz(True, image=cube), whole),
        Case("npz-with-wavelengths", "a.npz", npz(image=cube, wavelengths=waves, name=np.array("leaf")), whole),
        Case("npz-several", "a.npz", several, refused=named),
        Case("npz-chosen", "a.npz", several, whole, reading={"array": "first"}),
        Case("npz-chosen-2d", "a.npz", several, chw(GREY), reading={"array": "second"}),
        Case(
            "npz-wrong-name", "a.npz", several, refused="(?s)(first.*second|second.*first)", reading={"array": "third"}
        ),
        Case(
            "npz-chosen-axes", "a.npz", npz(image=whole, other=GREY), whole, reading={"array": "image", "axes": "CYX"}
        ),
        Case("npz-pickled", "a.npz", npz(image=np.array([[None]], object)), refused="(?i)pickle|object"),
        Case("npz-nothing", "a.npz", npz(waves=waves), refused=".+"),
        Case("npz-empty", "a.npz", npz(), refused=".+"),
        Case("mat-5", "a.mat", mat(cube=cube), whole),
        Case("mat-5-compressed", "a.mat", mat(cube=cube, do_compression=True), whole),
        Case("mat-4", "a.mat", mat(image=GREY16.astype(float), format="4"), chw(GREY16.astype(float))),
        Case("mat-5-2d", "a.mat", mat(image=GREY), chw(GREY)),
        # everything in MATLAB has two axes, a list of wavelengths too
        Case("mat-5-with-list", "a.mat", mat(cube=cube, wavelengths=waves, name="leaf"), whole),
        Case("mat-5-cube-and-truth", "a.mat", mat(first=cube, second=GREY), refused=named),
        Case("mat-5-chosen", "a.mat", mat(first=cube, second=GREY), whole, reading={"array": "first"}),
        Case("mat-5-complex", "a.mat", mat(cube=float_cube + 1j), refused="(?i)complex"),
        Case("mat-5-struct", "a.mat", mat(s={"cube": cube}), whole, may_refuse=True),
        Case("mat-5-cell", "a.mat", mat(c=np.array([["a", 1]], object)), refused=".+"),
        Case(
            "mat-5-sparse",
            "a.mat",
            mat(m=scipy.sparse.csc_matrix(GREY16.astype(float))),
            chw(GREY16.astype(float)),
            may_refuse=True,
        ),
        Case("mat-73", "a.mat", mat73(cube=cube), whole),
        Case("mat-73-2d", "a.mat", mat73(image=GREY16), chw(GREY16)),
        Case("mat-73-float", "a.mat", mat73(cube=float_cube), chw(float_cube)),
        Case("mat-73-with-text", "a.mat", mat73(cube=cube, name="a leaf of an oak"), whole),
        Case("mat-73-several", "a.mat", mat73(first=cube, second=GREY), refused=named),
        Case("mat-73-chosen", "a.mat", mat73(first=cube, second=GREY), whole, reading={"array": "first"}),
        Case("h5-root", "a.h5", hdf5(image=cube), whole),
        Case("h5-2d", "a.hdf5", hdf5(image=GREY16), chw(GREY16)),
        Case("h5-group", "a.h5", hdf5(scan__raw__image=cube, scan__time=3.5, scan__waves=waves), whole),
        Case("h5-big-endian", "a.h5", hdf5(image=cube.astype(">u2")), whole),
        Case("h5-several", "a.h5", hdf5(first=cube, second=GREY), refused=named),
        Case("h5-chosen", "a.h5", hdf5(scan__first=cube, second=GREY), whole, reading={"array": "scan/first"}),
        Case("h5-axes", "a.h5", hdf5(image=whole), whole, reading={"axes": "CYX"}),
        Case("h5-text", "a.h5", hdf5(image=cube, name="a leaf"), whole),
        Case("h5-complex", "a.h5", hdf5(image=float_cube + 1j), refused="(?i)complex"),
        Case("h5-4d", "a.h5", hdf5(image=noise(2, 3, H, W)), refused=".+"),
        Case("h5-nothing", "a.h5", hdf5(), refused=".+"),
        Case("h5-compound", "a.h5", hdf5(table=structured), refused=".+"),
        Case("h5-gzip", "a.h5", h5_gzip(cube), whole),
        Case("h5-external-link", "a.h5", h5_link, refused=".+"),
        Case("h5-soft-link-to-the-same", "a.h5", lambda p: h5_soft(p, cube), whole, may_refuse=True),
    ]
    dims = {"y": H, "x": W, "band": 4}
    sizes = {"lat": H, "lon": W, "wavelength": 4}
    nano = {"wavelength": (waves, {"units": "nm"})}
    micro = {"wavelength": (waves / 1000, {"units": "um"})}
    packed_attributes = {"scale_factor": 0.001, "add_offset": -0.1, "_FillValue": np.uint16(65535)}
    facts = {"nodata": 65535, "gains": (0.001,) * 4, "offsets": (-0.1,) * 4}
    places = {
        "lat": (np.linspace(50, 49, H), {"units": "degrees_north"}),
        "lon": (np.linspace(7, 8, W), {"units": "degrees_east"}),
    }
    for axes in [("y", "x", "band"), ("band", "y", "x"), ("x", "y", "band"), ("y", "band", "x")]:
        order = [("y", "x", "band").index(axis) for axis in axes]
        cases.append(
            Case(
                f"nc4-{'-'.join(axes)}",
                "a.nc",
                netcdf4(dims, {"reflectance": (axes, cube.transpose(order), {})}),
                whole,
            )
        )
    cases += [
        Case("nc4-2d", "a.nc", netcdf4({"y": H, "x": W}, {"height": (("y", "x"), GREY16, {})}), chw(GREY16)),
        Case("nc4-2d-turned", "a.nc", netcdf4({"y": H, "x": W}, {"height": (("x", "y"), GREY16.T, {})}), chw(GREY16)),
        Case(
            "nc4-lat-lon",
            "a.nc",
            netcdf4(sizes, {"r": (("wavelength", "lat", "lon"), whole, {})}, nano | places),
            whole,
            facts={"wavelengths": tuple(waves)},
        ),
        Case(
            "nc4-micrometres",
            "a.nc",
            netcdf4(sizes, {"r": (("lat", "lon", "wavelength"), cube, {})}, micro),
            whole,
            facts={"wavelengths": tuple(waves)},
        ),
        Case(
            "nc4-packed",
            "a.nc",
            netcdf4(dims, {"r": (("y", "x", "band"), cube, packed_attributes)}),
            whole,
            facts=facts,
        ),
        Case(
            "nc4-several",
            "a.nc",
            netcdf4(dims, {"first": (("y", "x", "band"), cube, {}), "second": (("y", "x"), GREY, {})}),
            refused=named,
        ),
        Case(
            "nc4-chosen",
            "a.nc",
            netcdf4(dims, {"first": (("band", "y", "x"), whole, {}), "second": (("y", "x"), GREY, {})}),
            whole,
            reading={"array": "first"},
        ),
        Case(
            "nc4-one-time",
            "a.nc",
            netcdf4({"time": 1, **dims}, {"r": (("time", "band", "y", "x"), whole[None], {})}),
            whole,
            may_refuse=True,
        ),
        Case(
            "nc4-times",
            "a.nc",
            netcdf4({"time": 3, "y": H, "x": W}, {"r": (("time", "y", "x"), noise(3, H, W), {})}),
            refused="(?i)time",
        ),
        Case(
            "nc4-with-mapping",
            "a.nc",
            netcdf4(
                dims,
                {
                    "crs": ((), np.int32(0), {"grid_mapping_name": "latitude_longitude"}),
                    "r": (("y", "x", "band"), cube, {"grid_mapping": "crs"}),
                },
            ),
            whole,
        ),
        Case("h5-scales", "a.h5", netcdf4(dims, {"r": (("band", "x", "y"), cube.transpose(2, 1, 0), {})}), whole),
    ]
    cube3 = noise(H, W, 4, dtype="int16")
    r3 = (
        ("wavelength", "lat", "lon"),
        chw(cube3),
        {"_FillValue": np.int16(-999), "scale_factor": 0.5, "add_offset": 2.0},
    )
    for version in (1, 2):
        variables = {"wavelength": (("wavelength",), waves, {"units": "nm"}), "r": r3}
        cases.append(
            Case(
                f"nc3-version{version}",
                "a.nc",
                netcdf3(sizes, variables, version),
                chw(cube3),
                facts={"nodata": -999, "gains": (0.5,) * 4, "offsets": (2,) * 4, "wavelengths": tuple(waves)},
            )
        )
    cases += [
        Case("nc3-y-x", "a.nc", netcdf3({"y": H, "x": W}, {"r": (("y", "x"), cube3[..., 0], {})}), chw(cube3[..., 0])),
        Case("nc3-x-y-band", "a.nc", netcdf3(dims, {"r": (("x", "y", "band"), cube3.swapaxes(0, 1), {})}), chw(cube3)),
        Case(
            "nc3-several",
            "a.nc",
            netcdf3(dims, {"first": (("y", "x", "band"), cube3, {}), "second": (("y", "x"), cube3[..., 0], {})}),
            refused=named,
        ),
    ]
    return cases


def h5_gzip(cube: np.ndarray) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with h5py.File(path, "w") as out:
            out.create_dataset("image", data=cube, chunks=(2, 3, 1), compression="gzip", shuffle=True, fletcher32=True)

    return write


def h5_link(path: Path) -> None:
    """The image is in another file, which a data set must not reach for."""
    with h5py.File(path.parent / "other.h5", "w") as out:
        out["image"] = GREY
    with h5py.File(path, "w") as out:
        out["image"] = h5py.ExternalLink(str(path.parent / "other.h5"), "image")


def h5_soft(path: Path, cube: np.ndarray) -> None:
    with h5py.File(path, "w") as out:
        out["image"] = cube
        out["again"] = h5py.SoftLink("/image")
        out["group/loop"] = h5py.SoftLink("/group")


# --- what is no image, wrong suffixes, huge claims, cut files --------------------------------------------------------


def suffix_cases() -> list[Case]:
    grey_npy = npy(GREY16)
    return [
        Case("suffix-png-as-jpg", "a.jpg", png(RGB, 8, 2), chw(RGB)),
        Case("suffix-jpeg-as-png", "a.png", pillow(SMOOTH, "JPEG", quality=98, subsampling=0), chw(SMOOTH), within=6),
        Case("suffix-tiff-as-jpg", "a.jpg", tiff(tiff_page(RGB16, 2)), chw(RGB16)),
        Case("suffix-tiff-as-png", "a.png", tiff(tiff_page(GREY, 0)), chw(255 - GREY)),
        Case("suffix-jpeg-as-tif", "a.tif", pillow(SMOOTH, "JPEG", quality=98, subsampling=0), chw(SMOOTH), within=6),
        Case("suffix-webp-as-jpg", "a.jpg", pillow(RGB, "WEBP", lossless=True), chw(RGB)),
        Case("suffix-heic-as-jpg", "a.jpg", lambda p: heic_as(p, smooth(48, 64)), chw(smooth(48, 64)), within=8),
        Case(
            "suffix-avif-as-jpg",
            "a.jpg",
            pillow(smooth(48, 64), "AVIF", quality=100, subsampling="4:4:4"),
            chw(smooth(48, 64)),
            within=6,
        ),
        Case(
            "suffix-gif-as-png",
            "a.png",
            pillow(Image.fromarray(RGB).quantize(16), "GIF"),
            chw(np.asarray(Image.fromarray(RGB).quantize(16).convert("RGB"))),
        ),
        Case("suffix-bmp-as-png", "a.png", pillow(RGB, "BMP"), chw(RGB)),
        Case("suffix-png16-as-tif", "a.tif", png(GREY16, 16, 0), chw(GREY16)),
        Case("suffix-npy-as-npz", "a.npz", grey_npy, chw(GREY16)),
        Case("suffix-npz-as-npy", "a.npy", npz(image=CUBE), chw(CUBE)),
        Case("suffix-h5-as-mat", "a.mat", hdf5(image=CUBE), chw(CUBE)),
        Case(
            "suffix-nc4-as-h5",
            "a.h5",
            netcdf4({"band": 9, "y": H, "x": W}, {"r": (("band", "y", "x"), chw(CUBE), {})}),
            chw(CUBE),
        ),
        Case(
            "suffix-nc3-as-nc4",
            "a.nc4",
            netcdf3({"y": H, "x": W}, {"r": (("y", "x"), noise2 := noise(H, W, dtype="int16"), {})}),
            chw(noise2),
            may_refuse=True,
        ),
        Case("suffix-mat73-as-h5", "a.h5", mat73(cube=CUBE), chw(CUBE)),
        Case(
            "suffix-jp2-as-j2k",
            "a.j2k",
            imagecodecs.jpeg2k_encode(GREY, codecformat="jp2", reversible=True, level=0),
            chw(GREY),
        ),
        Case("suffix-upper-case", "A.TIF", tiff(tiff_page(RGB16, 2)), chw(RGB16)),
        Case("suffix-strange-name", "Größe 5µm #1 (a)%20.png", png(RGB, 8, 2), chw(RGB)),
    ]


def heic_as(path: Path, image: np.ndarray) -> None:
    heic(path.with_suffix(".heic"), image)
    path.with_suffix(".heic").rename(path)


def not_image_cases() -> list[Case]:
    def zipped(name: str, text: str) -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            archive.writestr(name, text)
        return out.getvalue()

    html = b"<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head><body>gone</body></html>"
    kinds = {
        "html": (html, "(?i)html|web page"),
        "html-lower-case": (b"\n  <html lang='en'><body>Please log in</body></html>", "(?i)html|web page"),
        "xml-error": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "(?i)xml|html|web page|text"),
        "text": (b"This image is no longer available.\n", "(?i)text|known format"),
        "json": (json.dumps({"error": "quota"}).encode(), "(?i)json|text"),
        "empty": (b"", "(?i)empty"),
        "zeros": (bytes(5000), ".+"),
        "one-byte": (b"\xff", ".+"),
        "pdf": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n", "(?i)pdf"),
        "mp4": (b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41" + bytes(99), "(?i)video"),
        "mov": (b"\0\0\0\x14ftypqt  \0\0\0\0qt  " + bytes(99), "(?i)video"),
        "avi": (b"RIFF\xff\0\0\0AVI LIST" + bytes(99), "(?i)video"),
        "webm": (b"\x1a\x45\xdf\xa3" + bytes(99), "(?i)video"),
        "wav": (b"RIFF\xff\0\0\0WAVEfmt " + bytes(99), ".+"),
        "svg": (b"<svg xmlns='http://www.w3.org/2000/svg' width='5' height='5'/>", "(?i)svg|xml|text"),
        "zip": (zipped("a.txt", "x"), ".+"),
        "docx": (zipped("word/document.xml", "x"), ".+"),
        "gzip": (b"\x1f\x8b\x08\0" + bytes(30), ".+"),
        "lfs-pointer": (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n",
            "(?i)lfs|text",
        ),
        "apple-double": (b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(60), ".+"),
        "parquet": (b"PAR1" + bytes(20) + b"PAR1", ".+"),
        "postscript": (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 5\nshowpage\n",
            "(?i)postscript|eps|known format",
        ),
        "wmf": (b"\xd7\xcd\xc6\x9a" + bytes(40), ".+"),
        "fits": (b"SIMPLE  =                    T".ljust(80) + b"END".ljust(2800), ".+"),
        "dicom": (bytes(128) + b"DICM" + bytes(64), ".+"),
    }
    cases = [Case(f"not-{kind}", "a.jpg", data, refused=message) for kind, (data, message) in kinds.items()]
    cases += [Case(f"not-{kind}-as-tif", "a.tif", kinds[kind][0], refused=kinds[kind][1]) for kind in ("html", "empty")]
    cases.append(Case("not-there", "a.png", lambda path: None, refused=".+"))
    cases.append(Case("not-a-file", "a.png", lambda path: path.mkdir(), refused=".+"))
    return cases


def huge_cases() -> list[Case]:
    """Small files that claim to be huge must not take the memory that they claim."""
    side = 100_000
    rows = zlib.compress(bytes(1000))
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    png_huge = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    gif = bytearray(pillow(Image.fromarray(RGB).quantize(16), "GIF", interlace=0))
    gif_canvas_only = bytes(gif[:6]) + struct.pack("<HH", 65535, 65535) + bytes(gif[10:])
    frame = gif.index(b",\0\0\0\0")
    gif_both = bytearray(gif_canvas_only)
    gif_both[frame + 5 : frame + 9] = struct.pack("<HH", 65535, 65535)
    size = {"t256": ("I", side), "t257": ("I", side), "t278": ("I", side)}
    deflated = zlib.compress(bytes(3000))
    j2k = bytearray(imagecodecs.jpeg2k_encode(GREY, codecformat="j2k", reversible=True))
    siz = j2k.index(b"\xff\x51")
    j2k[siz + 6 : siz + 14] = struct.pack(">II", side, side)
    j2k[siz + 22 : siz + 30] = struct.pack(">II", side, side)
    webp = bytearray(pillow(RGB, "WEBP", lossless=True))
    bits = webp.index(b"VP8L") + 9
    webp[bits : bits + 4] = struct.pack("<I", 16383 | 16383 << 14)
    claim = npy_claim("(500000, 700000)")
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("image.npy", npy_claim("(500000, 700000)"))
    mat_claim = bytearray(mat(image=GREY))
    place = mat_claim.index(struct.pack("<ii", H, W))
    mat_claim[place : place + 8] = struct.pack("<ii", side, side)
    avif = bytearray(pillow(smooth(48, 64), "AVIF"))
    ispe = avif.index(b"ispe") + 8
    avif[ispe : ispe + 8] = struct.pack(">II", 60000, 60000)

    def heic_claim(path: Path) -> None:
        heic(path, smooth(48, 64))
        data = bytearray(path.read_bytes())
        place = data.index(b"ispe") + 8
        data[place : place + 8] = struct.pack(">II", 60000, 60000)
        path.write_bytes(data)

    def h5_claim(path: Path) -> None:
        """No chunk was ever written: a few kB for 4 TB of zeros."""
        with h5py.File(path, "w") as out:
            out.create_dataset("image", (10**6, 10**6), "f4", chunks=(100, 100))

    def h5_ten(path: Path) -> None:
        """Ten gigabytes fit in many machines, but not what is computed from them."""
        with h5py.File(path, "w") as out:
            out.create_dataset("image", (10**5, 10**5), "u1", chunks=(100, 100))

    def h5_zeros(path: Path) -> None:
        with h5py.File(path, "w") as out:
            out.create_dataset("image", (10**6, 10**6), "u1", chunks=(1000, 1000), compression="gzip")[:9, :9] = 1

    def nc3_claim(path: Path, side: int = 10**6) -> None:
        netcdf3({"y": H, "x": W}, {"r": (("y", "x"), GREY.astype("i2"), {})})(path)
        data = path.read_bytes()
        for axis, length in ((b"y", H), (b"x", W)):
            old = struct.pack(">I", 1) + axis + b"\0\0\0" + struct.pack(">I", length)
            assert old in data
            data = data.replace(old, old[:-4] + struct.pack(">I", side))
        path.write_bytes(data)

    def sparse_huge(path: Path) -> None:
        options = {"count": 1, "height": 10**6, "width": 10**6, "dtype": "uint16", "tiled": True}
        with rasterio.open(path, "w", driver="GTiff", blockxsize=8192, blockysize=8192, sparse_ok=True, **options):
            pass

    contents = {
        "png": ("a.png", png_huge),
        "gif-canvas": ("a.gif", gif_canvas_only),
        "gif-frame": ("a.gif", bytes(gif_both)),
        "tiff": ("a.tif", tiff(tiff_page(RGB, 2, **size))),
        "tiff-deflate": ("a.tif", tiff(tiff_page(RGB, 2, data=deflated, **size, t259=("H", 8)))),
        "tiff-lzw": ("a.tif", tiff(tiff_page(RGB, 2, data=b"\x80\0\x40", **size, t259=("H", 5)))),
        "tiff-bands": ("a.tif", tiff(tiff_page(GREY, 1, t277=("H", 65535), t258=("H", 8), t339=None, **size))),
        "tiff-sparse": ("a.tif", sparse_huge),
        # one strip where the rest of the file promises three million
        "tiff-strips": ("a.tif", tiff(tiff_page(GREY % 4, 1, bits=2, t257=("I", 16_776_965), t278=("I", 5)))),
        "tiff-jpeg": ("a.tif", tiff(tiff_page(RGB, 2, data=pillow(RGB, "JPEG"), **size, t259=("H", 7)))),
        "tiff-group4": ("a.tif", tiff(tiff_page(GREY % 2, 0, bits=1, data=b"\0\x10\x01", **size, t259=("H", 4)))),
        "jpeg": ("a.jpg", pillow(SMOOTH, "JPEG").replace(struct.pack(">HH", 16, 24), struct.pack(">HH", 65500, 65500))),
        "bmp": (
            "a.bmp",
            bmp(np.zeros((1, 1)), 24, bytes(40))[:18] + struct.pack("<ii", side, side) + bytes(28) + bytes(40),
        ),
        "bmp-run-length": ("a.bmp", bmp_claim(side)),
        "ppm": ("a.ppm", b"P6\n100000 100000\n255\n" + bytes(99)),
        "ppm-plain": ("a.pgm", b"P2\n100000 100000\n255\n1 2 3"),
        "pbm": ("a.pbm", b"P4\n1000000 1000000\n" + bytes(99)),
        "webp": ("a.webp", bytes(webp)),
        "j2k": ("a.j2k", bytes(j2k)),
        "avif": ("a.avif", bytes(avif)),
        "heic": ("a.heic", heic_claim),
        "npy": ("a.npy", claim),
        "npz": ("a.npz", zipped.getvalue()),
        "mat": ("a.mat", bytes(mat_claim)),
        "h5": ("a.h5", h5_claim),
        "h5-zeros": ("a.h5", h5_zeros),
        "h5-ten-gigabytes": ("a.h5", h5_ten),
        "nc3": ("a.nc", nc3_claim),
        "nc3-ten-gigabytes": ("a.nc", lambda p: nc3_claim(p, 70_000)),
    }
    return [
        Case(f"huge-{name}", file, content, refused=".+", megabytes=400) for name, (file, content) in contents.items()
    ]


def npy_claim(shape: str) -> bytes:
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header.encode() + bytes(35)


def bmp_claim(side: int) -> bytes:
    data = bytearray(bmp(GREY, 8, b"\xff\0\0\1", 1, bytes(1024)))
    data[18:26] = struct.pack("<ii", side, side)
    return bytes(data)


def cut_cases() -> list[Case]:
    """A file of which the end is missing is refused; the whole image is right only if no pixel was missing."""
    a, deep = noise(40, 56, 3), noise(40, 56, 5, dtype="uint16")

    def lossless(**options):
        return lambda path: tifffile.imwrite(path, a, photometric="rgb", **options)

    def h5(path: Path) -> None:
        with h5py.File(path, "w") as out:
            out.create_dataset("image", data=deep, chunks=(8, 8, 5), compression="gzip")

    sources: dict[str, tuple[str, bytes | Callable]] = {
        "png": ("a.png", png(a, 8, 2)),
        "png16": ("a.png", png(deep[..., :3], 16, 2)),
        "png-interlaced": ("a.png", png(a, 8, 2, interlaced=True)),
        "jpeg": ("a.jpg", pillow(a, "JPEG", quality=95)),
        "jpeg-progressive": ("a.jpg", pillow(a, "JPEG", quality=95, progressive=True)),
        "gif": ("a.gif", pillow(Image.fromarray(a).quantize(64), "GIF")),
        "webp": ("a.webp", pillow(a, "WEBP", lossless=True)),
        "webp-lossy": ("a.webp", pillow(a, "WEBP", quality=95)),
        "bmp": ("a.bmp", pillow(a, "BMP")),
        "ppm": ("a.ppm", b"P6 56 40 255\n" + a.tobytes()),
        "ppm-plain": ("a.pgm", b"P2 56 40 255\n" + b" ".join(str(v).encode() for v in a[..., 0].ravel() | 100)),
        "tiff": ("a.tif", lossless()),
        "tiff-lzw": ("a.tif", lossless(compression="lzw", rowsperstrip=8)),
        "tiff-deflate-tiled": ("a.tif", lossless(compression="zlib", tile=(16, 16))),
        "tiff-directory-at-the-end": ("a.tif", tiff(tiff_page(a, 2))),
        "tiff-gdal": ("a.tif", gdal_writes(chw(deep), compress="deflate")),
        "tiff-pages": ("a.tif", lambda p: tifffile.imwrite(p, chw(deep), photometric="minisblack", metadata=None)),
        "ome": (
            "a.ome.tif",
            lambda p: tifffile.imwrite(p, chw(deep), photometric="minisblack", ome=True, metadata={"axes": "CYX"}),
        ),
        "j2k": ("a.j2k", imagecodecs.jpeg2k_encode(a, codecformat="j2k", reversible=True, level=0)),
        "jp2": ("a.jp2", imagecodecs.jpeg2k_encode(deep[..., 0], codecformat="jp2", reversible=True, level=0)),
        "avif": ("a.avif", pillow(a, "AVIF", quality=95)),
        "heic": ("a.heic", lambda p: heic(p, a)),
        "npy": ("a.npy", npy(deep)),
        "npz": ("a.npz", npz(image=deep)),
        "npz-compressed": ("a.npz", npz(True, image=deep)),
        "mat": ("a.mat", mat(image=deep)),
        "mat-compressed": ("a.mat", mat(image=deep, do_compression=True)),
        "mat73": ("a.mat", mat73(image=deep)),
        "h5": ("a.h5", h5),
        "nc3": ("a.nc", netcdf3({"y": 40, "x": 56, "band": 5}, {"r": (("y", "x", "band"), deep.astype("i2"), {})})),
        "envi": ("a.img", envi(deep, "a.img", "a.hdr")),
        "qoi": ("a.qoi", imagecodecs.qoi_encode(a)),
    }

    def cut(fraction: float, content: bytes | Callable, filled: bool = False) -> Callable[[Path], None]:
        def write(path: Path) -> None:
            if isinstance(content, bytes):
                path.write_bytes(content)
            else:
                content(path)
            whole = path.read_bytes()
            kept = whole[: int(len(whole) * fraction)]
            path.write_bytes(kept.ljust(len(whole), b"\0") if filled else kept)

        return write

    # programs that reserve the space of a download leave zeros; only formats with compression or checksums show it
    shown = ["png", "png16", "tiff-lzw", "tiff-deflate-tiled", "npz", "npz-compressed", "mat-compressed", "h5"]
    return [
        *(
            Case(f"cut-{name}-{percent}", file, cut(percent / 100, content), refused=".+")
            for name, (file, content) in sources.items()
            for percent in (5, 30, 60, 90)
        ),
        *(Case(f"zeros-{name}", sources[name][0], cut(0.5, sources[name][1], True), refused=".+") for name in shown),
    ]


def damaged_cases() -> list[Case]:
    """Small damages that libraries do not expect; some of these files took the whole process with them."""

    def changed(content: bytes | Callable, old: bytes, new: bytes) -> Callable[[Path], None]:
        def write(path: Path) -> None:
            if isinstance(content, bytes):
                path.write_bytes(content)
            else:
                content(path)
            data = path.read_bytes()
            assert old in data
            path.write_bytes(data.replace(old, new, 1))

        return write

    def flipped(data: bytes, at: int) -> bytes:
        return data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :]

    scales = netcdf4({"y": H, "x": W, "band": 9}, {"r": (("band", "y", "x"), chw(CUBE), {})})
    zeros = mat(image=GREY)[:178].ljust(len(mat(image=GREY)), b"\0")
    compressed = {"do_compression": True}
    return [
        Case("damaged-npy-open-bracket", "a.npy", changed(npy(GREY), b"}", b" "), refused=".+"),
        Case("damaged-npy-unknown-word", "a.npy", changed(npy(GREY), b"False", b"Fals_"), refused=".+"),
        Case("damaged-npy-negative", "a.npy", changed(npy(GREY), b"(5, 7), ", b"(-5, 7),"), refused=".+"),
        Case("damaged-npz", "a.npz", flipped(npz(True, image=CUBE), 200), refused=".+"),
        Case("damaged-mat", "a.mat", flipped(mat(cube=CUBE, **compressed), 200), refused=".+"),
        Case("damaged-mat-begins-only", "a.mat", b"MATLAB 5.0", refused=".+"),
        Case(
            "damaged-mat-long-name",
            "a.mat",
            changed(mat(image=GREY), b"\1\0\0\0\5\0\0\0image", b"\1\0\0\0\xff\xff\xff\x7fimage"),
            refused=".+",
            megabytes=400,
        ),
        Case("damaged-mat-ends-in-zeros", "a.mat", zeros, refused=".+", isolated=True),
        Case(
            "damaged-heic-metadata",
            "a.heic",
            changed(lambda p: heic(p, smooth(48, 64), orientation=3), b"Exif", b"Ex\xadf"),
            chw(smooth(48, 64)),
            may_refuse=True,
            isolated=True,
        ),
        Case(
            "damaged-nc-scale",
            "a.nc",
            changed(scales, b"DIMENSION_SCALE", b"DIMENSION_SCALX"),
            chw(CUBE),
            may_refuse=True,
            isolated=True,
        ),
        Case(
            "damaged-tiff-ring-of-two-kinds",
            "a.tif",
            ring(tiff_page(GREY16, 1)),
            chw(GREY),
            may_refuse=True,
            isolated=True,
        ),
        Case(
            "damaged-tiff-later-ring",
            "a.tif",
            ring(tiff_page(GREY, 1), to=1),
            np.stack([GREY, GREY]),
            may_refuse=True,
            isolated=True,
        ),
    ]


# --- rarer files -----------------------------------------------------------------------------------------------------


def rarer_cases() -> list[Case]:
    """What single programs write, or old ones wrote."""
    lines = exif(6).hex()
    profile = f"\nexif\n{len(exif(6)) + 6:8d}\n{b'Exif'.hex()}0000{lines}\n".encode()
    magick = chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(profile))
    xmp = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    xmp += '<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="%d"/></rdf:RDF></x:xmpmeta>'
    best = {"quality": 98, "subsampling": 0}
    both = pillow(stored(SMOOTH, 6), "JPEG", **best, exif=exif_of(6), xmp=(xmp % 6).encode())
    edited = pillow(SMOOTH, "JPEG", **best, exif=exif_of(1), xmp=(xmp % 6).encode())
    cube = noise(H, W, 4, dtype="uint16")
    whole = chw(cube)
    rgb_page = tiff_page(RGB, 2)
    whole_strip = tiff(tiff_page(RGB, 2, t278=("I", 2**32 - 1)))
    no_rows = tiff(tiff_page(RGB, 2, t278=None))
    version2 = io.BytesIO()
    np.lib.format.write_array(version2, cube, version=(2, 0))

    def labelled(path: Path) -> None:
        with h5py.File(path, "w") as out:
            out["r"] = whole
            for i, name in enumerate(("band", "y", "x")):
                out["r"].dims[i].label = name

    def grouped(path: Path) -> None:
        with h5py.File(path, "w", userblock_size=512) as out:
            out.create_dataset("s/cube", data=cube.T).attrs["MATLAB_class"] = np.bytes_("uint16")
            out["s"].attrs["MATLAB_class"] = np.bytes_("struct")
            empty = out.create_dataset("nothing", data=np.zeros(2, np.uint64))
            empty.attrs["MATLAB_empty"], empty.attrs["MATLAB_class"] = np.uint8(1), np.bytes_("double")
        data = bytearray(path.read_bytes())
        data[:128] = b"MATLAB 7.3 MAT-file, Platform: PCWIN64".ljust(124) + b"\x00\x02IM"
        path.write_bytes(data)

    def complex73(path: Path) -> None:
        with h5py.File(path, "w", userblock_size=512) as out:
            values = np.zeros((W, H), [("real", "f8"), ("imag", "f8")])
            out.create_dataset("z", data=values).attrs["MATLAB_class"] = np.bytes_("double")
        data = bytearray(path.read_bytes())
        data[:128] = b"MATLAB 7.3 MAT-file, Platform: PCWIN64".ljust(124) + b"\x00\x02IM"
        path.write_bytes(data)

    sizes = {"lat": H, "lon": W, "band": 4, "nv": 2}
    bounds = {"lat_bnds": (("lat", "nv"), np.zeros((H, 2)), {}), "r": (("band", "lat", "lon"), whole, {})}
    latitude = {"lat": (np.linspace(50, 49, H), {"units": "degrees_north", "bounds": "lat_bnds"})}
    lossless = {"lossless": True, "exact": True}
    frames = [Image.fromarray(noise(H, W, 4)) for _ in range(2)]
    animated = pillow(Image.fromarray(RGBA), "WEBP", save_all=True, append_images=frames, **lossless)
    half = tiff(tiff_page(RGB, 2, data=RGB.tobytes()[:50]))
    return [
        Case("png-orientation-imagemagick", "a.png", png(stored(RGB, 6), 8, 2, magick), chw(RGB)),
        Case("png16-orientation-imagemagick", "a.png", png(stored(RGB16, 6), 16, 2, magick), chw(RGB16)),
        Case("jpeg-orientation-also-in-xmp", "a.jpg", both, chw(SMOOTH), within=6),
        # the EXIF of a file comes before its XMP, which an editor may have left behind
        Case("jpeg-orientation-exif-before-xmp", "a.jpg", edited, chw(SMOOTH), within=6),
        Case("jpeg-thumbnail-inside", "a.jpg", with_thumbnail(), chw(SMOOTH), within=6),
        Case("webp-wide-canvas", "a.webp", wide_canvas, refused="damaged WebP", isolated=True),
        Case("webp-animated-rgba", "a.webp", animated, chw(RGBA), alpha=True, notes="first of 3 frames"),
        Case("tiff-one-strip-without-limit", "a.tif", whole_strip, chw(RGB)),
        Case("tiff-without-rows-per-strip", "a.tif", no_rows, chw(RGB)),
        Case("tiff-without-sample-format", "a.tif", tiff(tiff_page(RGB, 2, t339=None)), chw(RGB)),
        Case("tiff-sample-format-void", "a.tif", tiff(tiff_page(GREY, 1, t339=("H", 4))), chw(GREY), may_refuse=True),
        Case("tiff-mixed-bits", "a.tif", tiff(tiff_page(RGB, 2, t258=("H", (8, 8, 16)))), refused=".+"),
        Case("tiff-zero-height", "a.tif", tiff(tiff_page(RGB, 2, t257=("I", 0))), refused=".+"),
        Case(
            "tiff-million-strips", "a.tif", tiff(tiff_page(GREY, 1, t257=("I", 5 * 10**6))), refused=".+", isolated=True
        ),
        Case("tiff-zero-width", "a.tif", tiff(tiff_page(RGB, 2, t256=("I", 0))), refused=".+"),
        Case("tiff-too-few-bytes", "a.tif", half, refused=".+"),
        Case("tiff-unknown-compression", "a.tif", tiff(tiff_page(RGB, 2, t259=("H", 4711))), refused=".+"),
        Case("tiff-old-jpeg", "a.tif", tiff(tiff_page(RGB, 6, t259=("H", 6))), refused=".+"),
        Case("tiff-orientation-9", "a.tif", tiff(tiff_page(RGB, 2, t274=("H", 9))), chw(RGB), may_refuse=True),
        Case("tiff-12bit-lzw", "a.tif", gdal_writes(GREY16[None] >> 4, nbits=12, compress="lzw"), GREY16[None] >> 4),
        Case("tiff-10bit", "a.tif", tiff(tiff_page(GREY16 >> 6, 1, bits=10)), chw(GREY16 >> 6), may_refuse=True),
        Case("tiff-14bit", "a.tif", tiff(tiff_page(GREY16 >> 2, 1, bits=14)), chw(GREY16 >> 2), may_refuse=True),
        Case("tiff-icc-and-resolution", "a.tif", pillow(RGB, "TIFF", dpi=(300, 300), icc_profile=b"x" * 99), chw(RGB)),
        Case(
            "tiff-page-and-thumbnail",
            "a.tif",
            tiff(rgb_page, tiff_page(RGB[::2, ::2].copy(), 2, t254=("I", 1))),
            chw(RGB),
        ),
        Case(
            "tiff-mask-page",
            "a.tif",
            tiff(rgb_page, tiff_page(GREY % 2, 4, bits=1, t254=("I", 4))),
            chw(np.dstack([RGB, GREY % 2 * 255])),
            alpha=True,
        ),
        Case(
            "tiff-imagej-in-lzw",
            "a.tif",
            tifffile_writes(whole, imagej=True, compression="zlib", metadata={"axes": "CYX"}),
            whole,
        ),
        Case("npy-version-2", "a.npy", version2.getvalue(), whole),
        Case("npy-bytes-after-the-end", "a.npy", npy(cube) + b"junk", whole, may_refuse=True),
        Case("npy-logical", "a.npy", npy(GREY > 99), chw(GREY > 99), may_refuse=True),
        Case("npz-in-a-folder", "a.npz", npz(**{"scan/image": cube}), whole),
        Case("mat-73-struct-and-empty", "a.mat", grouped, whole),
        Case("mat-73-complex", "a.mat", complex73, refused=".+"),
        Case("h5-labels-of-dimensions", "a.h5", labelled, whole),
        Case("nc4-bounds", "a.nc", netcdf4(sizes, bounds, latitude), whole, may_refuse=True),
        Case(
            "nc4-array-and-axes",
            "a.nc",
            netcdf4({"a": H, "b": W, "c": 4}, {"r": (("c", "a", "b"), whole, {})}),
            whole,
            reading={"axes": "CYX"},
        ),
    ]


def with_thumbnail() -> bytes:
    """A small JPEG inside of the EXIF block, as cameras put it there."""
    small = pillow(255 - SMOOTH[::2, ::2], "JPEG")
    ifd0 = struct.pack(">HHHIHHI", 1, 0x0112, 3, 1, 1, 0, 26)
    ifd1 = struct.pack(">HHHIIHHIII", 2, 0x0201, 4, 1, 56, 0x0202, 4, 1, len(small), 0)
    block = b"Exif\0\0MM\0*\0\0\0\x08" + ifd0 + ifd1 + small
    return pillow(SMOOTH, "JPEG", quality=98, subsampling=0, exif=block)


# --- all of them -----------------------------------------------------------------------------------------------------


def file_cases() -> list[Case]:
    cases = [
        *png_cases(), *jpeg_cases(), *gif_cases(), *webp_cases(), *bmp_cases(), *ppm_cases(), *other_cases(),
        *modern_cases(), *tiff_cases(), *gdal_facts_cases(), *stack_cases(), *envi_cases(), *array_cases(),
        *rarer_cases(), *suffix_cases(), *not_image_cases(), *huge_cases(), *cut_cases(), *damaged_cases(),
    ]  # fmt: skip
    assert len({case.name for case in cases}) == len(cases)
    return cases


def files(folder: Path) -> list[Case]:
    """Writes every case below the folder."""
    cases = file_cases()
    for case in cases:
        case.write_in(folder)
    return cases


# --- tables ----------------------------------------------------------------------------------------------------------


@dataclass
class TableCase:
    """A table and its rows as text, None where a value is missing; a tuple holds all texts that are right."""

    name: str
    file: str
    content: bytes | Callable[[Path], object]
    columns: list[str] | None = None
    rows: list[list] | None = None
    refused: str | None = None
    may_refuse: bool = False
    isolated: bool = False  # in a process of its own
    path: Path | None = None

    write_in = Case.write_in


COLUMNS = ["path", "label", "age"]
PLAIN = [["a/1.png", "oak", "007"], ["a/2.png", "beech", None], ["b/3.png", "ash", "12"]]


def joined(separator: str, rows: list[list] | None = None, end: str = "\n") -> str:
    lines = [COLUMNS, *(rows or PLAIN)]
    return "".join(separator.join("" if value is None else value for value in line) + end for line in lines)


def text_table_cases() -> list[TableCase]:
    def plain(
        name: str,
        content: str | bytes,
        file: str = "t.csv",
        rows: list[list] | None = None,
        columns: list[str] | None = None,
        **more,
    ):
        data = content.encode() if isinstance(content, str) else content
        return TableCase(name, file, data, columns or COLUMNS, PLAIN if rows is None else rows, **more)

    def wrong(name: str, content: str | bytes, message: str, file: str = "t.csv"):
        return TableCase(name, file, content.encode() if isinstance(content, str) else content, refused=message)

    names = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|"}
    cases = [plain(f"csv-{name}", joined(separator)) for name, separator in names.items()]
    umlaut = [["a/Größe.png", "Bäume – é", "1"], ["b/x.png", "œuvre €5", "2"]]
    accents = joined(";", umlaut)
    quoted = 'path,label,age\r\na/1.png,"oak, red",1\r\na/2.png,"say ""yes""",2\r\na/3.png,"two\nlines",3\r\n'
    quoted_rows = [["a/1.png", "oak, red", "1"], ["a/2.png", 'say "yes"', "2"], ["a/3.png", "two\nlines", "3"]]
    decimals = [["a/1.png", "1,5", "2,25"], ["a/2.png", "0,5", "3,75"]]
    texts = [["1", "NA", "nan"], ["2", "None", "null"], ["3", "N/A", "NaN"], ["4", "True", "-"]]
    cases += [
        plain("tsv", joined("\t"), "t.tsv"),
        plain("txt", joined("\t"), "t.txt", may_refuse=True),
        plain("csv-named-upper", joined(","), "T.CSV"),
        plain("csv-sep-line", "sep=;\n" + joined(";")),
        plain("csv-sep-line-crlf", "sep=,\r\n" + joined(",", end="\r\n")),
        plain("csv-sep-line-bom", b"\xef\xbb\xbfsep=;\r\n" + joined(";").encode()),
        plain("csv-bom", b"\xef\xbb\xbf" + joined(",").encode()),
        plain("csv-utf8", accents, rows=umlaut),
        plain("csv-utf8-bom", b"\xef\xbb\xbf" + accents.encode(), rows=umlaut),
        plain("csv-utf16-little", accents.replace(";", "\t").encode("utf-16"), rows=umlaut),
        plain("csv-utf16-big", b"\xfe\xff" + accents.replace(";", "\t").encode("utf-16-be"), rows=umlaut),
        plain("txt-utf16", accents.replace(";", "\t").encode("utf-16"), "t.txt", rows=umlaut, may_refuse=True),
        plain("csv-cp1252", accents.encode("cp1252"), rows=umlaut),
        plain("csv-cp1252-french", joined(";", n := [["sœur.png", "Œuf à la coque", "été"]]).encode("cp1252"), rows=n),
        plain("csv-cp1252-nordic", joined(";", n := [["Ø.png", "blåbær", "þú"]]).encode("cp1252"), rows=n),
        plain("csv-cp1252-spanish", joined(";", n := [["ñ.png", "¿árbol?", "“x”…"]]).encode("cp1252"), rows=n),
        plain(
            "csv-cp1252-late",
            joined(",", n := [*([["a.png", "oak", "1"]] * 9000), ["b.png", "Bäume", "2"]]).encode("cp1252"),
            rows=n,
        ),
        plain("csv-utf8-late", joined(",", n), rows=n),
        plain(
            "csv-text-in-quotes-later",
            joined(",", [["a.png", "oak", "1"]] * 9000) + '"b,1.png",oak,2\n',
            rows=[["a.png", "oak", "1"]] * 9000 + [["b,1.png", "oak", "2"]],
        ),
        plain(
            "csv-more-commas-than-semicolons",
            "path;label;age\n1,0,0.png;a,b,c;1,5\n2,0,0.png;a,b,c;2,5\n",
            rows=[["1,0,0.png", "a,b,c", "1,5"], ["2,0,0.png", "a,b,c", "2,5"]],
        ),
        plain(
            "csv-space-in-header-not-the-separator",
            "path,common name,age\na.png,red oak,1\n",
            columns=["path", "common name", "age"],
            rows=[["a.png", "red oak", "1"]],
        ),
        plain("csv-tabs-around", "path\tlabel\tage\r\na.png\t\t1\r\n", rows=[["a.png", None, "1"]]),
        plain("csv-empty-quotes", 'path,label,age\na.png,"",1\n', rows=[["a.png", None, "1"]]),
        plain(
            "csv-line-separator-in-text",
            joined(",", n := [["a.png", "one\u2028two\x0bthree\x85", "1"]]),
            rows=[["a.png", "one\u2028two\x0bthree", "1"]],
            may_refuse=True,
        ),
        plain("csv-crlf", joined(",", end="\r\n")),
        plain("csv-cr", joined(";", end="\r")),
        plain("csv-no-last-newline", joined(",").rstrip()),
        plain("csv-quotes", quoted, rows=quoted_rows),
        plain(
            "csv-quotes-semicolon",
            quoted.replace(",", ";"),
            rows=[[v.replace(",", ";") for v in row] for row in quoted_rows],
        ),
        plain(
            "csv-everything-quoted",
            "".join('"' + line.replace(",", '","') + '"\n' for line in joined(",").splitlines()),
        ),
        plain("csv-quoted-header", 'path,"label",age\n' + joined(",").split("\n", 1)[1]),
        plain(
            "csv-newline-in-header",
            'path,label,"age\n(years)"\n1,2,3\n',
            columns=["path", "label", "age\n(years)"],
            rows=[["1", "2", "3"]],
            may_refuse=True,
        ),
        plain("csv-empty-columns", "".join(line + ";;\n" for line in joined(";").splitlines())),
        plain("csv-empty-rows", joined(";") + ";;\n;;\n\n\n"),
        plain("csv-blank-line-inside", joined(",").replace("\na/2", "\n\na/2")),
        plain("csv-empty-row-inside", joined(",").replace("\na/2", "\n,,\na/2")),
        plain("csv-spaces", "path , label,age \na/1.png , oak ,007\na/2.png,beech,  \nb/3.png,ash  ,12\n", rows=None),
        plain("csv-decimal-commas", joined(";", decimals), rows=decimals),
        plain("csv-decimal-commas-tabs", joined("\t", decimals), rows=decimals),
        plain("csv-missing-is-text", joined(",", texts), rows=texts),
        plain("csv-one-column", "path\na.png\nb.png\n", columns=["path"], rows=[["a.png"], ["b.png"]]),
        plain(
            "csv-one-column-with-commas",
            'path\n"a,1.png"\n"b,2.png"\n',
            columns=["path"],
            rows=[["a,1.png"], ["b,2.png"]],
        ),
        plain(
            "csv-numbers-kept-as-written", joined(",", n := [["1.10", "1e5", "0x1F"], ["00", "+3", "1_000"]]), rows=n
        ),
        plain("csv-hash-is-text", joined(",", n := [["#1.png", "#", "a#b"]]), rows=n),
        plain(
            "csv-quote-inside", 'path,label,age\na.png,5" disk,3\n', rows=[["a.png", '5" disk', "3"]], may_refuse=True
        ),
        plain("csv-apostrophe", joined(",", n := [["a.png", "child's", "'3'"]]), rows=n),
        plain("csv-long-value", joined(",", n := [["a.png", "x" * 200_000, "3"]]), rows=n, may_refuse=True),
        plain("csv-header-only", "path,label,age\n", rows=[], may_refuse=True),
        plain(
            "csv-many-semicolons-in-text",
            joined(",", n := [[f"{i}.png", "a;b;c;d", "x|y"] for i in range(4)]).replace("a;b;c;d", '"a;b;c;d"'),
            rows=n,
        ),
        wrong("csv-too-many", "path,label\na,b\nc,d,e\n", r"t\.csv.*row 3"),
        wrong("csv-too-few", "path,label,age\na,b,c\nd,e\n", r"t\.csv.*row 3"),
        wrong("csv-too-many-after-newline", 'path,label\na,"b\nb"\nc,d,e\n', r"t\.csv.*row 3"),
        wrong("csv-too-many-after-blank", "path,label\n\nc,d,e\n", r"t\.csv.*row 3"),
        wrong("csv-unquoted-comma", "path,label,age\na,oak, red,3\nb,beech,4\n", r"t\.csv.*row 2"),
        wrong("csv-unclosed", 'path,label\na,b\nc,"d\ne,f\n', r"t\.csv.*row 3"),
        wrong("csv-two-of-one-name", "path,label,label\na,b,c\n", r"t\.csv.*label"),
        wrong("csv-two-of-one-name-with-space", "path,label,label \na,b,c\n", r"t\.csv.*label"),
        wrong("csv-empty", "", r"t\.csv"),
        wrong("csv-blank", "\n\n\n", r"t\.csv"),
        wrong("csv-nul", b"path,label\na,b\0c\n", r"t\.csv"),
        wrong("csv-is-binary", bytes(range(256)) * 8, r"t\.csv"),
        TableCase("csv-not-there", "t.csv", lambda path: None, refused=".+"),
    ]
    return cases


def sheet(*rows: str, dimension: str = "") -> bytes:
    """An .xlsx of which the cells are given as XML."""
    ns = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    package = "http://schemas.openxmlformats.org/package/2006"
    kind = "application/vnd.openxmlformats-officedocument.spreadsheetml"
    relation = (
        f'<Relationships xmlns="{package}/relationships"><Relationship Id="rId1" Type="{office}/%s" Target="%s"/>'
    )
    relation += "</Relationships>"
    types = [
        '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>',
        '<Default Extension="xml" ContentType="application/xml"/>',
        f'<Override PartName="/xl/workbook.xml" ContentType="{kind}.sheet.main+xml"/>',
        f'<Override PartName="/xl/worksheets/sheet1.xml" ContentType="{kind}.worksheet+xml"/>',
    ]
    sheets = '<sheets><sheet name="Sheet1" sheetId="1" r:id="rId1"/></sheets>'
    parts = {
        "[Content_Types].xml": f'<Types xmlns="{package}/content-types">{"".join(types)}</Types>',
        "_rels/.rels": relation % ("officeDocument", "xl/workbook.xml"),
        "xl/workbook.xml": f'<workbook {ns} xmlns:r="{office}">{sheets}</workbook>',
        "xl/_rels/workbook.xml.rels": relation % ("worksheet", "worksheets/sheet1.xml"),
        "xl/worksheets/sheet1.xml": f"<worksheet {ns}>{dimension}<sheetData>{''.join(rows)}</sheetData></worksheet>",
    }
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in parts.items():
            archive.writestr(name, '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>' + text)
    return out.getvalue()


def row(number: int, *cells: str) -> str:
    """Cells are given as XML with {} for the address, or as text."""
    letters = "ABCDEFGH"
    inline = '<c r="{}" t="inlineStr"><is><t>%s</t></is></c>'
    made = "".join(
        (cell if "<" in cell else inline % cell).replace("{}", f"{letters[i]}{number}") for i, cell in enumerate(cells)
    )
    return f'<row r="{number}">{made}</row>'


def excel(*rows: list, then: Callable | None = None) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        import openpyxl

        book = openpyxl.Workbook()
        for line in rows:
            book.active.append(line)
        if then:
            then(book)
        book.save(path)

    return write


def sheet_cases() -> list[TableCase]:
    import datetime

    def good(name: str, content, rows: list[list], columns: list[str] | None = None, **more):
        return TableCase(name, "t.xlsx", content, columns or COLUMNS, rows, **more)

    def wrong(name: str, content, message: str = r"t\.xlsx"):
        return TableCase(name, "t.xlsx", content, refused=message)

    head = ["path", "label", "age"]
    day, moment = datetime.date(2024, 5, 6), datetime.datetime(2024, 5, 6, 7, 8, 9)

    def merged(book) -> None:
        book.active.merge_cells("B3:B4")

    def second_sheet(book) -> None:
        book.create_sheet("notes")

    def formatted(book) -> None:
        from openpyxl.styles import Font

        book.active["H40"].font = Font(bold=True)

    formula = '<c r="{}" t="str"><f>A2&amp;"x"</f><v>oak</v></c>'
    number_formula = '<c r="{}"><f>3+4</f><v>7</v></c>'
    error = '<c r="{}" t="e"><v>#N/A</v></c>'
    error_formula = '<c r="{}" t="e"><f>1/0</f><v>#DIV/0!</v></c>'
    far = '<row r="1048576"><c r="XFD1048576" t="inlineStr"><is><t>x</t></is></c></row>'
    lines = [row(1, *head), row(2, "a.png", "oak", "1")]
    return [
        good("xlsx-text", excel(head, *PLAIN), PLAIN),
        good(
            "xlsx-numbers",
            excel(head, ["a", 17, 1.5], ["b", 17.0, -3], ["c", 12345678901, 0.1]),
            [["a", "17", "1.5"], ["b", "17", "-3"], ["c", "12345678901", "0.1"]],
        ),
        good(
            "xlsx-dates",
            excel(head, ["a", day, moment]),
            [["a", "2024-05-06", ("2024-05-06 07:08:09", "2024-05-06T07:08:09")]],
        ),
        good(
            "xlsx-times",
            excel(head, ["a", datetime.time(7, 8, 9), 0.1 + 0.2]),
            [["a", "07:08:09", ("0.3", "0.30000000000000004")]],
        ),
        good(
            "xlsx-large",
            excel(head, ["a", 1e20, 1e-7]),
            [["a", ("100000000000000000000", "1e+20"), ("1e-07", "0.0000001")]],
        ),
        good(
            "xlsx-numbers-as-header",
            excel(["path", 2024, "age"], ["a", "b", "c"]),
            [["a", "b", "c"]],
            columns=["path", "2024", "age"],
        ),
        good(
            "xlsx-booleans",
            excel(head, ["a", True, False]),
            [["a", ("True", "TRUE", "true"), ("False", "FALSE", "false")]],
        ),
        good("xlsx-missing-is-text", excel(head, ["NA", "nan", "None"]), [["NA", "nan", "None"]]),
        good("xlsx-spaces", excel(["path ", " label", "age"], ["a ", "oak ", "  "]), [["a", "oak", None]]),
        good("xlsx-empty-row", excel(head, ["a", "b", "c"], [], ["d", "e", "f"]), [["a", "b", "c"], ["d", "e", "f"]]),
        good("xlsx-formatted-empty-cells", excel(head, *PLAIN, then=formatted), PLAIN),
        good("xlsx-second-sheet-empty", excel(head, *PLAIN, then=second_sheet), PLAIN),
        good("xlsx-by-hand", sheet(*lines), [["a.png", "oak", "1"]]),
        good("xlsx-formula", sheet(row(1, *head), row(2, "a.png", formula, number_formula)), [["a.png", "oak", "7"]]),
        good(
            "xlsx-wrong-dimension", sheet(*lines, dimension='<dimension ref="A1:XFD1048576"/>'), [["a.png", "oak", "1"]]
        ),
        good(
            "xlsx-rows-start-lower",
            sheet(row(3, *head), row(4, "a.png", "oak", "1")),
            [["a.png", "oak", "1"]],
            may_refuse=True,
        ),
        good("xlsx-one-far-cell", sheet(*lines, far), [["a.png", "oak", "1"]], may_refuse=True, isolated=True),
        wrong("xlsx-error", sheet(row(1, *head), row(2, "a", "b", "c"), row(3, "d", error, "f")), r"t\.xlsx.*row 3"),
        wrong("xlsx-error-formula", sheet(row(1, *head), row(2, "a", "b", error_formula)), r"t\.xlsx.*row 2"),
        wrong("xlsx-error-after-empty-row", sheet(row(1, *head), row(4, "d", error, "f")), r"t\.xlsx.*row 4"),
        wrong("xlsx-merged", excel(head, *PLAIN, then=merged), r"t\.xlsx.*row 3"),
        wrong("xlsx-two-of-one-name", excel(["path", "label", "label "], ["a", "b", "c"]), r"t\.xlsx.*label"),
        wrong("xlsx-value-without-name", excel(["path", "label"], ["a", "b", "c"])),
        wrong("xlsx-empty", excel()),
        wrong("xlsx-formula-never-computed", excel(head, ["a", "=A2", "1"])),
        wrong("xlsx-with-password", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(2000)),
        wrong("xlsx-cut", sheet(*lines)[:700]),
        wrong("xlsx-is-text", b"not a workbook"),
        TableCase("xlsx-is-csv", "t.xlsx", joined(",").encode(), COLUMNS, PLAIN, may_refuse=True),
        TableCase("csv-is-xlsx", "t.csv", sheet(*lines), COLUMNS, [["a.png", "oak", "1"]], may_refuse=True),
        TableCase("xls-is-html", "t.xls", b"<html><table><tr><td>path</td></tr></table></html>", refused=r"t\.xls"),
        TableCase("ods", "t.ods", ods(head, *PLAIN), COLUMNS, PLAIN, may_refuse=True),
    ]


def ods(*rows: list) -> bytes:
    names = {"office": "office", "table": "table", "text": "text"}
    ns = " ".join(f'xmlns:{key}="urn:oasis:names:tc:opendocument:xmlns:{value}:1.0"' for key, value in names.items())

    def cell(value: str | None) -> str:
        if value is None:
            return "<table:table-cell/>"
        return f'<table:table-cell office:value-type="string"><text:p>{value}</text:p></table:table-cell>'

    lines = "".join(f"<table:table-row>{''.join(map(cell, line))}</table:table-row>" for line in rows)
    body = f'<office:spreadsheet><table:table table:name="S">{lines}</table:table></office:spreadsheet>'
    body = f"<office:document-content {ns}><office:body>{body}</office:body></office:document-content>"
    kind = "application/vnd.oasis.opendocument.spreadsheet"
    entry = '<manifest:file-entry manifest:full-path="%s" manifest:media-type="%s"/>'
    entries = entry % ("/", kind) + entry % ("content.xml", "text/xml")
    manifest = "urn:oasis:names:tc:opendocument:xmlns:manifest:1.0"
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("mimetype", kind)
        archive.writestr(
            "META-INF/manifest.xml", f'<manifest:manifest xmlns:manifest="{manifest}">{entries}</manifest:manifest>'
        )
        archive.writestr("content.xml", '<?xml version="1.0"?>' + body)
    return out.getvalue()


def parquet_cases() -> list[TableCase]:
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    def frame(**columns) -> Callable[[Path], None]:
        return lambda path: pd.DataFrame(columns).to_parquet(path, index=False)

    def arrow(**columns) -> Callable[[Path], None]:
        return lambda path: pq.write_table(pa.table(columns), path)

    def case(name: str, content, columns: list[str], rows: list[list], **more):
        return TableCase(f"parquet-{name}", "t.parquet", content, columns, rows, **more)

    def damaged(path: Path) -> None:
        pq.write_table(pa.table({"path": ["a", "b"]}), path)
        data = path.read_bytes()
        path.write_bytes(data[:4] + b"\xff" * 16 + data[20:])

    pl = ["path", "label"]
    integers = pd.array([17, None], dtype="Int64")
    indexed = pd.DataFrame({"label": ["x", "y"]}, index=pd.Index(["a", "b"], name="path"))
    return [
        case("text", frame(path=["a", "b"], label=["007", None]), pl, [["a", "007"], ["b", None]]),
        case("integers", frame(path=["a", "b"], label=[17, 3]), pl, [["a", "17"], ["b", "3"]]),
        case("nullable-integers", frame(path=["a", "b"], label=integers), pl, [["a", "17"], ["b", None]]),
        case("floats", frame(path=["a", "b"], label=[1.5, np.nan]), pl, [["a", "1.5"], ["b", None]]),
        case(
            "integers-as-floats", frame(path=["a", "b"], label=[17.0, np.nan]), pl, [["a", ("17", "17.0")], ["b", None]]
        ),
        case(
            "categories",
            frame(path=["a", "b", "c"], label=pd.Categorical(["x", "y", None])),
            pl,
            [["a", "x"], ["b", "y"], ["c", None]],
        ),
        case(
            "integer-categories", frame(path=["a", "b"], label=pd.Categorical([17, 18])), pl, [["a", "17"], ["b", "18"]]
        ),
        case(
            "booleans",
            frame(path=["a", "b"], label=[True, False]),
            pl,
            [["a", ("True", "true", "TRUE")], ["b", ("False", "false", "FALSE")]],
        ),
        case("dates", arrow(path=["a"], label=pa.array([19849], pa.date32())), pl, [["a", "2024-05-06"]]),
        case(
            "large-integers",
            arrow(path=["a", "b"], label=pa.array([2**62 + 1, None], pa.int64())),
            pl,
            [["a", str(2**62 + 1)], ["b", None]],
        ),
        case(
            "dictionary",
            arrow(path=["a", "b"], label=pa.array(["x", "y"]).dictionary_encode()),
            pl,
            [["a", "x"], ["b", "y"]],
        ),
        case(
            "large-strings",
            arrow(
                path=pa.array(["a "], pa.large_string()),
                label=pa.array([" NA"], pa.string_view() if hasattr(pa, "string_view") else pa.string()),
            ),
            pl,
            [["a", "NA"]],
        ),
        case("spaces", arrow(**{"path ": ["a"], " label": ["x "]}), pl, [["a", "x"]]),
        case(
            "index", lambda path: indexed.to_parquet(path), ["label", "path"], [["x", "a"], ["y", "b"]], may_refuse=True
        ),
        TableCase(
            "parquet-two-of-one-name",
            "t.parquet",
            lambda path: pq.write_table(pa.table([["a"], ["b"], ["c"]], names=["path", "label", "label"]), path),
            refused=r"t\.parquet",
        ),
        TableCase(
            "parquet-lists", "t.parquet", arrow(path=["a"], label=[[1, 2]]), pl, [["a", "[1, 2]"]], may_refuse=True
        ),
        TableCase(
            "parquet-endless-year", "t.parquet", arrow(path=["a"], day=pa.array([2**30], pa.date32())), refused="t"
        ),
        TableCase("parquet-damaged-page", "t.parquet", damaged, refused=r"t\.parquet"),
        TableCase("parquet-cut", "t.parquet", b"PAR1" + bytes(100), refused=r"t\.parquet"),
        TableCase("parquet-is-text", "t.parquet", b"path,label\na,b\n", pl, [["a", "b"]], may_refuse=True),
    ]


def table_cases() -> list[TableCase]:
    cases = [*text_table_cases(), *sheet_cases(), *parquet_cases()]
    assert len({case.name for case in cases}) == len(cases)
    return cases


def tables(folder: Path) -> list[TableCase]:
    """Writes every table below the folder."""
    cases = table_cases()
    for case in cases:
        case.write_in(folder)
    return cases
