"""Pictures of images: views, examples of classes, neighbours and saliency, each written as PNG and SVG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from simtrail.augment.views import TwoViews
from simtrail.data.loader import to_unit
from simtrail.data.pack import PackedImages
from simtrail.data.recipe import Recipe
from simtrail.report.figures.style import COLOURS, WIDTH, save, shorten

PAGE, DOWN = 10, 1.0  # classes in one figure of examples, a page of A4; inches for each
TEXT = WIDTH - 0.16  # inches between the margins
READ = 64  # images read at once: they may have hundreds of bands
ALL = 9  # bands that are all drawn, three at a time
CHANNELS = {1: (0, 0, 0), 2: (0, 1, 0)}  # what is shown as red, green and blue, of fewer than three bands
COLOURS_NM, REACH = (650, 550, 450), 50  # what looks red, green and blue, and how far from it a band still does
TURN = (
    "how far the features turn, in degrees, when a small square around a pixel is hidden:\n"
    "large where they depend on what is there, 0 where they do not"
)


def display_bands(recipe: Recipe) -> list[int]:
    """The bands that `rgb` shows: red, green and blue where they are declared, or lie near to 650, 550 and 450 nm.

    Else, of bands with wavelengths, three evenly spaced ones, the longest as red; of others the first three.
    """
    place = {i: nm for i, nm in enumerate(recipe.wavelengths) if nm is not None}
    if recipe.rgb or len(place) < 3:
        return recipe.rgb or list(range(min(3, len(recipe.bands))))
    near = [min((abs(nm - colour), i) for i, nm in place.items()) for colour in COLOURS_NM]
    shown = [i for distance, i in near if distance <= REACH]
    return shown if len(set(shown)) == 3 else _middles([i for i in _by_wavelength(recipe) if i in place])


def rgb(
    images: np.ndarray, recipe: Recipe, bands: Sequence[int] | None = None, originals: int | None = None
) -> np.ndarray:
    """Display images, (N, H, W, 3) float32 in [0, 1], of packed rows (N, C, H, W), or of such images in [0, 1].

    One band is shown as grey, two as red with blue, and green; `bands` are shown instead of `display_bands`. Images
    packed as 16 bits, whose range may be set by a few pixels, are stretched band by band: all but the darkest and
    brightest 1 % of the pixels of all given images span 0 to 1. Where the images behind the first `originals` are views
    of these, the pixels of the originals decide.
    """
    chosen = images[:, display_bands(recipe) if bands is None else list(bands)]
    unit = chosen.astype(np.float32) / np.float32(recipe.full_scale if chosen.dtype.kind == "u" else 1)
    if recipe.dtype == "uint16" and len(unit):
        low, high = np.percentile(unit[:originals], (1, 99), axis=(0, 2, 3), keepdims=True).astype(np.float32)
        low, high = np.where(high > low, low, 0), np.where(high > low, high, 1)  # a constant band stays as it is
        unit = np.clip((unit - low) / (high - low), 0, 1)
    return unit[:, CHANNELS.get(unit.shape[1], (0, 1, 2))].transpose(0, 2, 3, 1)


def thumbnails(images: PackedImages, rows: np.ndarray, side: int = 48) -> np.ndarray:
    """Small display images, (N, s, s, 3) uint8 with s = min(side, size), of the given rows."""
    shown, small = display_bands(images.recipe), []
    for part in np.array_split(rows, len(rows) // READ + 1):
        batch = images.rows(part)[:, shown]
        unit = to_unit(batch, images.recipe.full_scale, torch.device("cpu"))
        size = min(side, batch.shape[-1])
        small.append(F.interpolate(unit, (size, size), mode="bilinear", antialias=True).numpy())
    return np.rint(255 * rgb(np.concatenate(small), images.recipe, range(len(shown)))).astype(np.uint8)


def view_grid(images: PackedImages, rows: np.ndarray, two_views: TwoViews, seed: int, path: Path) -> None:
    """A row for each image, with two pairs of its views; below, a row in false colour for every three further bands.

    With more than nine bands, six are drawn: those of `display_bands` and three of the others, evenly spaced. Beside a
    row are the names of the bands shown as red, green and blue, or their wavelengths (nm) where only six are drawn. The
    corner of a view names bands that are left out of it. Only the images set stretch and brightness, so that an image
    looks the same whatever its views are.
    """
    recipe, small = images.recipe, len(images.recipe.bands) <= ALL
    batch = to_unit(images.rows(rows), recipe.full_scale, torch.device("cpu"))
    views = [view for pair in (0, 1) for view in two_views(batch, seed, pair).chunk(2)]
    stack = torch.cat([batch, *views]).numpy()
    left_out = np.isnan(stack).all((2, 3)).reshape(5, len(rows), -1)  # bands that a view goes without
    stack = np.where(np.isnan(stack), recipe.packed_background / recipe.full_scale, stack)
    first = display_bands(recipe)
    others = [i for i in _by_wavelength(recipe) if i not in first]
    others = others if small else _middles(others)
    kinds = [first, *(others[i : i + 3] for i in range(0, len(others), 3))]
    margin, head, gap = (0.7, 0.62, 0.1) if others else (0, 0.36, 0)
    side = max(0.5, ((PAGE * DOWN - head) / len(rows) - gap) / len(kinds))  # so that a page will do, if it can
    side = min(side, (TEXT - margin) / 5)
    down = len(kinds) * side + gap
    figure, axis = _sheet(head + down * len(rows))
    if others:
        shown = f"All {len(recipe.bands)}" if small else f"{len(first) + len(others)} of {len(recipe.bands)}"
        note = "bands; beside each row those shown as red, green and blue. Further bands: false colours, brightened."
        axis.text(0, 0.12, f"{shown} {note}", color="#505050", va="center", fontsize=8)
    for column, title in enumerate(["image", *(f"pair {i}\nview {j}" for i in (1, 2) for j in (1, 2))]):
        axis.text(margin + column * side, head - 0.06, title, fontsize=8, linespacing=1.0)
    for j, kind in enumerate(kinds):
        grid = rgb(stack, recipe, kind, len(rows)).reshape(5, len(rows), recipe.size, recipe.size, 3)
        if j:  # ultraviolet, say, is so dark beside the visible that nothing would be seen
            grid = np.clip(grid / max(float(np.percentile(grid[0], 99)), 1e-3), 0, 1)
        names = "\n".join(_band(recipe, kind[c]) for c in CHANNELS.get(len(kind), (0, 1, 2)))
        for i, pictures in enumerate(grid.swapaxes(0, 1)):
            y = head + i * down + j * side
            if others:
                axis.text(0, y + side / 2 - 0.02, names, fontsize=8, va="center")
            for column, picture in enumerate(pictures):
                x, gone = margin + column * side, [_band(recipe, c) for c in kind if left_out[column, i, c]]
                _lay(axis, picture, x, y, side - 0.04)
                if gone:
                    _missing(axis, [] if len(gone) == len(kind) else gone, x + 0.04, y + side - 0.08, side - 0.12)
    save(figure, path)


def _by_wavelength(recipe: Recipe) -> list[int]:
    """The bands, the longest wavelength first, those without one behind in their order."""
    nm = recipe.wavelengths or [None] * len(recipe.bands)
    return sorted(range(len(nm)), key=lambda i: -(nm[i] or 0))


def _middles(bands: Sequence[int]) -> list[int]:
    """The middle bands of three equal parts: the ends of a sensor's range are its noisiest."""
    return [int(part[len(part) // 2]) for part in np.array_split(bands, 3)]


def _band(recipe: Recipe, i: int) -> str:
    """A band in ten characters: by its name, or its wavelength where names are many or long."""
    nm, name = (recipe.wavelengths or [None] * (i + 1))[i], recipe.bands[i]
    return shorten(name, 10) if nm is None or (len(recipe.bands) <= ALL and len(name) <= 10) else f"{nm:.0f} nm"


def class_examples(
    images: PackedImages, examples: dict[str, dict[str, np.ndarray]], labels: Sequence[str], path: Path
) -> list[Path]:
    """The files drawn, STEM-1.png, STEM-2.png, …: a row per class, ten classes a figure.

    `examples` holds for each class the rows `nearest` to and `farthest` from its images, and those of `others` nearest
    to it, at most five each; `labels` the class of every packed image, written under the others.
    """
    names, paths = list(examples), []
    columns = {  # where it begins and the side of its pictures, in inches
        "nearest": ("nearest to its class", 0.0, 0.33),
        "farthest": ("farthest from its class", 1.73, 0.33),
        "others": ("nearest of other classes", 3.46, 0.535),
    }
    for start in range(0, len(names), PAGE):
        part = names[start : start + PAGE]
        pictures = _pictures(images, np.concatenate([examples[name][kind][:5] for name in part for kind in columns]))
        figure, axis = _sheet(0.3 + DOWN * len(part))
        for title, x, _ in columns.values():
            axis.text(x, 0.12, title, color="#505050", va="center")
        for i, name in enumerate(part):
            y = 0.3 + DOWN * i
            axis.text(0, y, shorten(name, 40), va="top", weight="bold")
            for kind, (_, x, side) in columns.items():
                for j, row in enumerate(examples[name][kind][:5]):
                    _lay(axis, pictures[row], x + j * side, y + 0.18, side - 0.02)
                    if kind == "others":
                        _caption(axis, labels[row], x + j * side, y + 0.18 + side, side)
        paths.append(path.with_name(f"{path.stem}-{start // PAGE + 1}.png"))
        save(figure, paths[-1])
    return paths


def neighbours(
    images: PackedImages, query_rows: np.ndarray, neighbour_rows: np.ndarray, labels: Sequence[str], path: Path
) -> None:
    """Each query (Q,) with its nearest known images (Q, K), nearest first, framed and marked ✓ for its class, ✗ else.

    `labels` holds the class of every packed image, '' for none, which is neither right nor wrong.
    """
    gap = 0.2  # between a query and the others
    across = min(1.1, (TEXT - gap) / (neighbour_rows.shape[1] + 1))
    down = across + 0.32
    pictures = _pictures(images, np.append(neighbour_rows, query_rows))
    figure, axis = _sheet(0.3 + down * len(query_rows))
    axis.text(0, 0.12, "query", va="center", color="#505050")
    legend = "its nearest training and validation images: ✓ of its class, ✗ of another"
    axis.text(across + gap, 0.12, legend, va="center", color="#505050")
    for i, (query, nearest) in enumerate(zip(query_rows, neighbour_rows, strict=True)):
        y = 0.3 + i * down
        for j, row in enumerate((query, *nearest)):
            x, label, sign = j * across + gap * (j > 0), labels[row], None
            if j and label and labels[query]:
                sign = ("✓", COLOURS[2]) if label == labels[query] else ("✗", COLOURS[5])
            _lay(axis, pictures[row], x, y, across - 0.06, sign)
            _caption(axis, label or "no label", x, y + across - 0.02, across)
    save(figure, path)


def saliency_grid(pictures: np.ndarray, maps: np.ndarray, titles: Sequence[str], path: Path) -> None:
    """Display images (B, H, W, 3) and beside each its map (B, H, W) in degrees, in colour over the image in grey."""
    across, down, bar = TEXT / 3, TEXT / 6 + 0.28, 0.75
    height = -(-len(pictures) // 3) * down + bar
    figure, axis = _sheet(height)
    scale = ScalarMappable(Normalize(0, max(float(maps.max()), 1e-9)), "viridis")
    for i, (picture, title) in enumerate(zip(pictures, titles, strict=True)):
        x, y, side = i % 3 * across, i // 3 * down + 0.24, across / 2 - 0.04
        axis.text(x, y - 0.04, shorten(title, 30), fontsize=8, va="bottom")
        _lay(axis, picture, x, y, side)
        mixed = 0.4 * picture.mean(-1, keepdims=True) + 0.6 * scale.to_rgba(maps[i])[..., :3]
        _lay(axis, mixed, x + side + 0.02, y, side)
    place = figure.add_axes((0.2, 0.57 / height, 0.6, 0.1 / height))
    figure.colorbar(scale, cax=place, orientation="horizontal", label=TURN)
    save(figure, path)


def _pictures(images: PackedImages, rows: np.ndarray) -> dict[int, np.ndarray]:
    """Display images by row, of one figure, so that they are stretched alike."""
    rows, shown = np.unique(rows).astype(int), display_bands(images.recipe)
    parts = np.array_split(rows, len(rows) // READ + 1)
    packed = np.concatenate([images.rows(part)[:, shown] for part in parts])
    return dict(zip(rows.tolist(), rgb(packed, images.recipe, range(len(shown))), strict=True))


def _sheet(height: float) -> tuple[Figure, Axes]:
    """A page of the given height whose one axis is measured in inches from its upper left corner."""
    figure = plt.figure(figsize=(WIDTH, height))
    figure.set_layout_engine("none")
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(TEXT / 2 - WIDTH / 2, TEXT / 2 + WIDTH / 2), ylim=(height, 0), autoscale_on=False)
    axis.set_axis_off()
    return figure, axis


def _lay(axis: Axes, picture: np.ndarray, x: float, y: float, side: float, sign: tuple[str, str] | None = None) -> None:
    """Places a picture, with a character in its corner and a frame in that one's colour."""
    axis.imshow(picture, extent=(x, x + side, y + side, y), aspect="auto")
    if sign:
        text, colour = sign
        axis.add_patch(Rectangle((x, y), side, side, fill=False, edgecolor=colour, linewidth=2))
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        axis.text(x + 0.04, y + 0.05, text, color=colour, fontsize=8, weight="bold", va="top", bbox=box)


def _missing(axis: Axes, bands: list[str], x: float, y: float, width: float) -> None:
    """Words in the lower left corner of a picture: the bands that are missing of those it shows, [] for all."""
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    longest = max(8, int(width * 72 / 4.3))
    names = ", ".join(shorten(band, longest).replace(" ", "\xa0") for band in bands)
    lines = wrap(f"no {names}" if bands else "left out", longest, break_long_words=False)
    axis.text(x, y, "\n".join(lines), fontsize=8, va="bottom", linespacing=1.0, bbox=box)


def _caption(axis: Axes, text: str, x: float, y: float, width: float) -> None:
    """Two lines at most, as wide as the picture above."""
    longest = max(4, int(width * 72 / 4.7))
    lines = wrap(" ".join(shorten(word, longest) for word in text.split()), longest, max_lines=2, placeholder=" …")
    axis.text(x, y, "\n".join(lines), fontsize=8, va="top", linespacing=1.0)
