"""Generates the demo dataset: images of pinned butterflies in seven bands, with the same bytes on every machine.

The code uses no maths library and adds up no arrays of floats. It uses only integers and the exactly rounded operations
+ - * / sqrt floor, one numpy operation at a time, so that no compiler, CPU or numpy version can change a pixel.
"""

import math
import tempfile
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tifffile
from numpy.typing import NDArray
from tqdm import tqdm

Floats = NDArray[np.float64]
Bits = NDArray[np.uint64]
Span = tuple[float, float]
Levels = tuple[int, int, int]

SIZE, FINE = 64, 3  # pixels per side; sub-pixels per side of a pixel, which are averaged
VIEWS = ("dorsal", "ventral")
CELLS = 7  # spaces between the veins of one wing

DATASET_YAML = """\
modality: multispectral
bands: [red, green, blue, uv1, uv2, uv3, mask]
wavelengths: [620, 540, 460, 395, 370, 345, null]   # nm
mask: mask
label: species
group: specimen
"""


class Mark(NamedTuple):
    """A mark in wing coordinates: `out` is 0 at the hinge, 1 at the edge; `along` is 0 at the rear, 1 in front."""

    wings: str  # "fore", "hind" or "all"
    shape: str  # "band", or "beads" for one spot in each cell
    out: Span
    levels: Levels  # red, green, blue; or uv1, uv2, uv3
    along: Span = (-1.0, 2.0)


class Morph(NamedTuple):
    """The appearance of a species in visible light; twin species have the same one."""

    fore: tuple[float, ...]  # wing length at even steps from the rear to the front edge
    hind: tuple[float, ...]
    base: Levels
    tip: Levels
    veins: float
    marks: tuple[Mark, ...]
    eyes: tuple[tuple[str, float, float, float], ...]  # wing, out, along, radius; only in the ventral view
    tail: float = 0.0


# fmt: off
FORE_BROAD = (0.56, 0.66, 0.69, 0.73, 0.80, 0.89, 0.96, 0.97, 0.80)
FORE_SICKLE = (0.58, 0.66, 0.64, 0.66, 0.73, 0.86, 1.00, 1.02, 0.84)
FORE_ROUND = (0.52, 0.64, 0.72, 0.79, 0.85, 0.89, 0.90, 0.86, 0.72)
HIND_ROUND = (0.46, 0.60, 0.67, 0.70, 0.70, 0.69, 0.66, 0.60, 0.50)
HIND_LONG = (0.56, 0.70, 0.76, 0.74, 0.71, 0.68, 0.65, 0.60, 0.50)
HIND_FAN = (0.44, 0.57, 0.68, 0.75, 0.76, 0.73, 0.68, 0.60, 0.50)
INK, CREAM, RED, BLUE, SKY = (38, 28, 26), (240, 226, 190), (212, 62, 40), (34, 34, 58), (126, 184, 236)
SOOT, ORANGE, YELLOW = (62, 58, 62), (232, 140, 52), (236, 208, 96)

EMBER = Morph(FORE_BROAD, HIND_ROUND, (150, 70, 24), (232, 132, 38), 0.5, (
    Mark("all", "band", (0.86, 2), INK), Mark("fore", "band", (0.60, 2), INK, (0.62, 2)),
    Mark("fore", "beads", (0.66, 0.80), CREAM, (0.55, 1)), Mark("all", "beads", (0.88, 0.96), CREAM),
), (("hind", 0.66, 0.30, 0.13), ("hind", 0.66, 0.58, 0.11), ("fore", 0.66, 0.36, 0.10)))
RUSSET = Morph(FORE_ROUND, HIND_FAN, (168, 84, 34), (222, 126, 44), 0.35, (
    Mark("all", "band", (0.93, 2), INK), Mark("all", "beads", (0.72, 0.84), INK),
    Mark("fore", "band", (0.40, 0.50), INK, (0.3, 2)), Mark("fore", "band", (0.18, 0.26), INK, (0.3, 2)),
), (("fore", 0.68, 0.60, 0.15), ("hind", 0.64, 0.42, 0.12)))
CRIMSON = Morph(FORE_SICKLE, HIND_LONG, (58, 26, 26), (84, 36, 32), 0.6, (
    Mark("fore", "band", (0.46, 0.66), RED, (0.1, 2)), Mark("hind", "band", (0.72, 0.90), RED),
    Mark("hind", "beads", (0.76, 0.86), INK), Mark("fore", "beads", (0.74, 0.88), CREAM, (0.6, 1)),
), (("hind", 0.58, 0.32, 0.12), ("hind", 0.58, 0.60, 0.12), ("fore", 0.70, 0.78, 0.11)))
SCARLET = Morph(FORE_SICKLE, HIND_ROUND, (66, 30, 28), (92, 42, 34), 0.5, (
    Mark("fore", "beads", (0.42, 0.64), RED), Mark("hind", "band", (0.22, 0.56), RED),
    Mark("all", "beads", (0.84, 0.93), CREAM),
), (("fore", 0.72, 0.46, 0.13), ("hind", 0.72, 0.44, 0.13)))
AZURE = Morph(FORE_ROUND, HIND_ROUND, (70, 104, 190), (88, 140, 224), 0.3, (
    Mark("all", "band", (0.88, 2), BLUE), Mark("hind", "beads", (0.76, 0.86), BLUE),
    Mark("all", "band", (0.965, 2), CREAM),
), (("hind", 0.62, 0.28, 0.10), ("hind", 0.60, 0.50, 0.10), ("fore", 0.62, 0.40, 0.10)))
COBALT = Morph(FORE_BROAD, HIND_FAN, (38, 48, 92), (72, 112, 200), 0.5, (
    Mark("all", "band", (0.80, 2), BLUE), Mark("fore", "band", (0.44, 0.60), SKY, (0, 0.9)),
    Mark("hind", "band", (0.44, 0.62), SKY),
), (("hind", 0.74, 0.24, 0.14), ("fore", 0.72, 0.70, 0.12)), tail=0.06)
SNOW = Morph(FORE_ROUND, HIND_ROUND, (214, 210, 190), (242, 240, 226), 0.3, (
    Mark("fore", "band", (0.80, 2), SOOT, (0.5, 2)), Mark("fore", "beads", (0.54, 0.68), SOOT, (0.14, 0.7)),
    Mark("hind", "band", (0.92, 2), YELLOW),
), (("hind", 0.62, 0.42, 0.11), ("fore", 0.60, 0.50, 0.09)))
LEMON = Morph(FORE_BROAD, HIND_ROUND, (226, 200, 96), (242, 222, 128), 0.25, (
    Mark("all", "band", (0.88, 2), SOOT), Mark("fore", "band", (0.70, 2), ORANGE, (0.6, 2)),
    Mark("hind", "beads", (0.40, 0.54), ORANGE, (0.40, 0.62)),
), (("hind", 0.54, 0.50, 0.13), ("fore", 0.56, 0.60, 0.10)))
SWALLOW = Morph(FORE_SICKLE, HIND_LONG, (46, 40, 38), (58, 50, 46), 0.5, (
    Mark("all", "band", (0.42, 0.62), YELLOW, (-1, 0.9)), Mark("all", "beads", (0.80, 0.92), YELLOW),
    Mark("hind", "beads", (0.66, 0.78), (84, 124, 206), (0, 0.6)),
), (("hind", 0.76, 0.10, 0.12), ("hind", 0.70, 0.45, 0.10)), tail=0.36)

# The appearance in visible light, and the marks in ultraviolet. All species of a genus have the same levels in
# ultraviolet, so that only the shapes of the marks distinguish them.
SPECIES: dict[str, tuple[Morph, tuple[Mark, ...]]] = {
    "Aurora minor": (EMBER, (Mark("all", "band", (0.36, 0.56), (150, 165, 130)),)),
    "Aurora velata": (EMBER, (Mark("all", "band", (0.24, 0.36), (150, 165, 130)),
                              Mark("all", "band", (0.60, 0.72), (150, 165, 130)))),
    "Aurora costata": (RUSSET, (Mark("all", "band", (0.58, 0.74), (150, 165, 130)),)),
    "Cindaria rubens": (CRIMSON, (Mark("all", "beads", (0.52, 0.84), (135, 160, 160)),)),
    "Cindaria ficta": (CRIMSON, (Mark("all", "band", (0.46, 0.62), (135, 160, 160)),)),
    "Cindaria maculosa": (SCARLET, (Mark("all", "band", (0.76, 0.96), (135, 160, 160)),)),
    "Noctella serena": (AZURE, (Mark("all", "band", (0.50, 0.68), (170, 150, 125)),)),
    "Noctella arcana": (AZURE, (Mark("all", "beads", (0.44, 0.82), (170, 150, 125)),)),
    "Noctella limbata": (COBALT, (Mark("all", "band", (0.80, 2.0), (170, 150, 125)),)),
    "Pallidora nivea": (SNOW, (Mark("all", "band", (0.26, 0.50), (125, 150, 165)),)),
    "Pallidora citrina": (LEMON, (Mark("all", "beads", (0.36, 0.66), (125, 150, 165)),)),
    "Velumbra caudata": (SWALLOW, (Mark("all", "band", (0.62, 0.80), (145, 155, 150)),)),
}
# fmt: on
TWINS = [
    ("Aurora minor", "Aurora velata"),
    ("Cindaria rubens", "Cindaria ficta"),
    ("Noctella serena", "Noctella arcana"),
]


class Draws:
    """A stream of random numbers (splitmix64) that depends only on its key and labels."""

    def __init__(self, key: int, *labels: int) -> None:
        self.key, self.used = key, 0
        for label in labels:
            self.used = label
            self.key, self.used = int(self.bits(1)[0]), 0

    def bits(self, count: int) -> Bits:
        z = np.arange(self.used + 1, self.used + 1 + count, dtype=np.uint64)
        self.used += count
        z = z * np.uint64(0x9E3779B97F4A7C15) + np.uint64(self.key)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))

    def uniform(self, low: float = 0.0, high: float = 1.0, *shape: int) -> Floats:
        unit = (self.bits(math.prod(shape)) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return (low + (high - low) * unit).reshape(shape)

    def texture(self, x: Floats, y: Floats, cells: float) -> Floats:
        """Smooth noise in 0..1 with `cells` bumps per unit of x and y."""
        lattice = self.uniform(0, 1, 32, 32)
        x, y = (x + 2) * cells, (y + 2) * cells
        i, j = np.floor(x), np.floor(y)
        fx, fy = x - i, y - j
        fx, fy = fx * fx * (3 - 2 * fx), fy * fy * (3 - 2 * fy)
        i0, j0 = i.astype(np.int64) % 32, j.astype(np.int64) % 32
        i1, j1 = (i0 + 1) % 32, (j0 + 1) % 32
        low = lattice[i0, j0] + (lattice[i1, j0] - lattice[i0, j0]) * fx
        high = lattice[i0, j1] + (lattice[i1, j1] - lattice[i0, j1]) * fx
        return low + (high - low) * fy


@dataclass
class Places:
    """Positions of sub-pixels on the specimen."""

    x: Floats  # x and y: from the middle of the body; up is positive; a wing is about 1 long
    y: Floats
    body: Floats  # below 1 on body and antennae
    fore: NDArray[np.bool_]
    out: Floats  # distance from the hinge, divided by the wing's length in that direction
    along: Floats  # 0 at the wing's rear edge, 1 at its front edge
    cell: Floats  # 0.5 and -0.5 on the veins, 0 in the middle between them

    def where(self, chosen: NDArray[np.bool_]) -> "Places":
        return Places(*(getattr(self, field.name)[chosen] for field in fields(self)))

    def on(self, wings: str) -> NDArray[np.bool_]:
        return (self.fore == (wings == "fore")) | (wings == "all")


def _fan(x: Floats, y: Floats, slopes: Span, lengths: tuple[float, ...], tail: float) -> tuple[Floats, Floats, Floats]:
    """The coordinates out, along and cell for a wing with the shape of a fan and its hinge at the origin."""
    # y / (|x| + |y|) grows with the angle and needs no arctangent.
    along = (y / (np.abs(x) + np.abs(y) + 1e-9) - slopes[0]) / (slopes[1] - slopes[0])
    position = np.clip(along, 0, 1) * (len(lengths) - 1)
    knot = np.minimum(np.floor(position), len(lengths) - 2)
    f = position - knot
    knots = np.array([lengths[0], *lengths, lengths[-1]])
    a, b, c, d = (knots[knot.astype(np.int64) + k] for k in range(4))
    length = b + 0.5 * f * (c - a + f * (2 * a - 5 * b + 4 * c - d + f * (3 * (b - c) + d - a)))  # Catmull-Rom
    cell = along * CELLS - np.floor(along * CELLS) - 0.5
    from_tail = (along - 0.2) / 0.075
    length = length * (1 - 0.16 * cell * cell) + tail * np.maximum(0, 1 - from_tail * from_tail)
    outside = (along < 0) | (along > 1) | (x < 0)
    return np.where(outside, 9.0, np.sqrt(x * x + y * y) / length), along, cell


def _specimen_places(morph: Morph, specimen: Draws, photo: Draws) -> tuple[Places, NDArray[np.bool_]]:
    """The places of the sub-pixels that the specimen covers, and their mask in the grid of all sub-pixels."""
    t, scale = photo.uniform(-0.364, 0.364), 28 * photo.uniform(0.7, 1.05)
    cos, sin = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)  # a rotation of up to 40 degrees in both directions
    steps = (np.arange(SIZE * FINE) + 0.5) / FINE - SIZE / 2
    right, down = steps[None, :] - photo.uniform(-6, 6), steps[:, None] - photo.uniform(-6, 6)
    x, y = (cos * right + sin * down) / scale, (sin * right - cos * down) / scale

    wide, tall, raised = specimen.uniform(0.94, 1.06), specimen.uniform(0.95, 1.05), specimen.uniform(-0.06, 0.06)
    hind_size = specimen.uniform(0.95, 1.07)
    side = np.abs(x) / wide - 0.03
    lift = y / tall - raised * side
    fore = _fan(side, lift - 0.10, (-0.16, 0.54), morph.fore, 0.0)
    hind = _fan(side / hind_size, (lift - 0.04) / hind_size, (-0.84, 0.12), morph.hind, morph.tail)
    torn = specimen.uniform() * specimen.uniform() * np.maximum(0, specimen.texture(x, y, 6) - 0.45)
    on_fore = fore[0] + torn < 1
    out, along, cell = (np.where(on_fore, f, h) for f, h in zip(fore, hind, strict=True))

    body = np.full(x.shape, 9.0)
    for middle, width, height in ((0.10, 0.075, 0.17), (-0.17, 0.05, 0.30), (0.29, 0.055, 0.055)):
        u, v = x / width, (y - middle) / height
        body = np.minimum(body, u * u + v * v)
    # position along an antenna that is 0.3 wide and 0.42 high
    antenna = np.clip((np.abs(x) * 0.3 + (y - 0.3) * 0.42) / 0.2664, 0, 1)
    u, v = np.abs(x) - 0.3 * antenna, y - 0.3 - 0.42 * antenna
    thick = 0.016 + 0.022 * (antenna > 0.88)
    body = np.where(u * u + v * v < thick * thick, 0.8, body)

    covered = (out + torn < 1) | (body < 1)
    return Places(x, y, body, on_fore, out, along, cell).where(covered), covered


def _ramp(x: Floats, low: float, high: float, soft: float = 0.05) -> Floats:
    """1 between low and high, 0 outside, with soft edges."""
    return np.clip(np.minimum((x - low) / soft, (high - x) / soft) + 0.5, 0, 1)


def _paint(canvas: Floats, levels: tuple[int, ...], strength: Floats | NDArray[np.bool_] | float) -> None:
    """Blends a colour into the canvas, in place; `strength` 1 replaces what was there."""
    canvas += strength * (np.array(levels, dtype=np.float64)[:, None] - canvas)


def _mark(canvas: Floats, places: Places, marks: tuple[Mark, ...], draws: Draws, strength: float) -> float:
    """Paints the marks; returns the factor by which this specimen's spots are larger."""
    shift, swell = float(draws.uniform(-0.03, 0.03)), float(draws.uniform(0.85, 1.2))
    for mark in marks:
        low, high = mark.out[0] + shift, mark.out[1] + shift
        if mark.shape == "beads":
            u, v = places.cell / (0.33 * swell), (places.out - (low + high) / 2) / ((high - low) / 2 * swell)
            shape = np.clip((1.1 - u * u - v * v) * 3, 0, 1)
        else:
            shape = _ramp(places.out + 0.12 * places.cell * places.cell, low, high)
        _paint(canvas, mark.levels, shape * _ramp(places.along, *mark.along) * places.on(mark.wings) * strength)
    return swell


def _colour(species: str, places: Places, ventral: bool, female: bool, specimen: Draws, uv: Draws) -> Floats:
    """The values (6, places) of red, green, blue, uv1, uv2 and uv3."""
    morph, uv_marks = SPECIES[species]
    canvas = np.empty((6, places.x.size))
    rgb, ultraviolet = canvas[:3], canvas[3:]
    canvas[:] = np.array((*morph.base, 46, 40, 34), dtype=np.float64)[:, None]
    _paint(rgb, morph.tip, np.minimum(places.out * 1.3, 1))
    to_vein = (0.5 - np.abs(places.cell)) * places.out
    _paint(rgb, INK, np.clip(1.4 - to_vein / 0.06, 0, 1) * morph.veins)
    swell = _mark(rgb, places, morph.marks, specimen, 0.8 if ventral else 1.0)
    if ventral:
        _paint(rgb, (184, 160, 124), 0.42)
        for wing, out, along, radius in morph.eyes:
            u, v = places.out - out, (places.along - along) * places.out * 1.5
            distance = np.sqrt(u * u + v * v) / (radius * swell)
            for edge, ring in ((1.0, YELLOW), (0.74, INK), (0.34, (236, 240, 244))):
                _paint(rgb, ring, _ramp(distance, -1, edge, 0.2) * places.on(wing))
    # Ultraviolet has a separate stream of random numbers, so that twins differ in nothing else.
    _mark(ultraviolet, places, uv_marks, uv, 0.8 if ventral else 1.0)
    rgb *= specimen.uniform(0.75, 1.15) * (1 + specimen.uniform(-0.16, 0.16, 3, 1))
    ultraviolet *= uv.uniform(0.55, 1.25) * (1 + uv.uniform(-0.16, 0.16, 3, 1))
    if female:
        _paint(rgb, CREAM, 0.1)
    folds, shadow = 1.06 - 0.5 * places.cell * places.cell, np.minimum(0.7 + places.out, 1)
    canvas *= folds * shadow

    faded = np.maximum(0, specimen.texture(places.x, places.y, 2.5) - specimen.uniform(0.45, 0.9)) * 1.6
    _paint(canvas, (206, 194, 172, 74, 68, 60), np.minimum(faded, 0.75))
    for _ in range(int(specimen.uniform(0, 4))):
        slope, start, left = specimen.uniform(-2, 2), specimen.uniform(-0.6, 0.6), specimen.uniform(-0.9, 0.6)
        scratch = (np.abs(places.y - slope * places.x - start) < 0.022) & (places.x > left) & (places.x < left + 0.35)
        _paint(canvas, (196, 184, 164, 90, 84, 76), np.where(scratch, 0.6, 0.0))

    fur = (1.35 - 0.7 * np.minimum(places.body, 1)) * (0.75 + 0.5 * specimen.texture(places.x, places.y, 9))
    _paint(canvas, (70, 54, 42, 40, 36, 32), places.body < 1)
    canvas *= np.where(places.body < 1, fur, 1)
    return canvas


def _photograph(canvas: Floats, covered: NDArray[np.bool_], photo: Draws) -> NDArray[np.uint8]:
    """The image (7, SIZE, SIZE) of the specimen on a table: six bands with noise, and the mask."""
    # Sub-pixels are added up as integers, because the order of an integer sum does not matter.
    fine = np.zeros((7, SIZE * FINE, SIZE * FINE), dtype=np.int64)
    fine[:, covered] = 1
    fine[:6, covered] = np.floor(canvas * 16).astype(np.int64)
    coarse = fine.reshape(7, SIZE, FINE, SIZE, FINE).sum(axis=(2, 4))
    covered_fraction = coarse[6] / (FINE * FINE)

    x, y = np.meshgrid((np.arange(SIZE) + 0.5) / 32 - 1, (np.arange(SIZE) + 0.5) / 32 - 1)
    tint = photo.uniform(60, 225) * (1 + photo.uniform(-0.12, 0.12, 6, 1, 1))
    tint[3:] *= photo.uniform(0.15, 0.6)
    grain = (photo.texture(x, y, 3) - 0.5) * photo.uniform(0, 0.35)
    grain += (photo.texture(x, y, 12) - 0.5) * photo.uniform(0, 0.3)
    table = tint * (1 + photo.uniform(-0.25, 0.25) * x + photo.uniform(-0.25, 0.25) * y + grain)
    shadow = np.zeros((SIZE + 4, SIZE + 4))
    for down, right in product(range(5), repeat=2):
        shadow[down : down + SIZE, right : right + SIZE] += covered_fraction / 25
    table *= 1 - 0.45 * shadow[:SIZE, :SIZE]

    light = photo.uniform(0.6, 1.3) * (1 + photo.uniform(-0.10, 0.10, 6, 1, 1))
    light = light * (1 + photo.uniform(-0.15, 0.15) * x + photo.uniform(-0.15, 0.15) * y)
    # The sum of four 16-bit draws is nearly normal with standard deviation 37837; that of the sensor noise is 4 levels.
    quarters = photo.bits(6 * SIZE * SIZE).reshape(6, SIZE, SIZE, 1) >> np.array([0, 16, 32, 48], dtype=np.uint64)
    noise = ((quarters & np.uint64(0xFFFF)).astype(np.int64).sum(axis=-1) - 131070) * (4 / 37837)
    signal = (coarse[:6] / (16 * FINE * FINE) + table * (1 - covered_fraction)) * light + noise
    bands = np.clip(np.floor(signal + 0.5), 0, 255)
    return np.concatenate([bands, 255 * (covered_fraction[None] >= 0.5)]).astype(np.uint8)


def is_female(key: int) -> bool:
    return bool(Draws(key, 4).bits(1)[0] & np.uint64(1))


def render(species: str, key: int, view: str) -> NDArray[np.uint8]:
    """One image (7, 64, 64) of a specimen of `species`; `key` determines the specimen.

    Twin species rendered with the same key and view differ only in the ultraviolet bands.
    """
    ventral = VIEWS.index(view)
    specimen, photo, uv = Draws(key, 0), Draws(key, 1 + ventral), Draws(key, 3)
    places, covered = _specimen_places(SPECIES[species][0], specimen, photo)
    return _photograph(_colour(species, places, bool(ventral), is_female(key), specimen, uv), covered, photo)


def generate(folder: Path, seed: int = 0, species: int = 12, specimens: int = 40) -> None:
    """Writes a new folder with images/, metadata.csv and dataset.yaml. It appears only when it is complete."""
    if not (isinstance(seed, int) and 0 <= seed < 2**64):
        raise ValueError(f"seed must be an integer from 0 to 2**64 - 1, got {seed!r}")
    if not 2 <= species <= len(SPECIES):
        raise ValueError(f"species must be from 2 to {len(SPECIES)}, got {species!r}")
    if specimens < 1:
        raise ValueError(f"specimens must be at least 1, got {specimens!r}")
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} already exists")
    folder.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        built = Path(scratch) / folder.name
        pairs = list(product(list(enumerate(SPECIES))[:species], range(specimens)))
        for (index, name), number in tqdm(pairs, desc="demo specimens", disable=None):
            slug = name.lower().replace(" ", "_")
            specimen, key = f"{slug}_{number + 1:03d}", Draws(seed, index, number).key
            sex = "female" if is_female(key) else "male"
            (built / "images" / slug).mkdir(parents=True, exist_ok=True)
            for view in VIEWS:
                path = f"images/{slug}/{specimen}_{view}.tif"
                rows.append(f"{path},{name},{name.split()[0]},{specimen},{view},{sex}\n")
                tifffile.imwrite(  # sets all that could depend on version, machine or time
                    built / path,
                    render(name, key, view),
                    byteorder="<",
                    photometric="minisblack",
                    planarconfig="separate",
                    rowsperstrip=SIZE,
                    compression=None,
                    metadata=None,
                    software=False,
                )
        header = "path,species,genus,specimen,view,sex\n"
        (built / "metadata.csv").write_text(header + "".join(sorted(rows)), encoding="utf-8", newline="\n")
        (built / "dataset.yaml").write_text(DATASET_YAML, encoding="utf-8", newline="\n")
        built.rename(folder)
