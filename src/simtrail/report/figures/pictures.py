"""Figures that show images: views, examples of classes, neighbours and saliency, each written as PNG and SVG."""

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
from simtrail.data.area import shrunk
from simtrail.data.loader import to_unit
from simtrail.data.pack import PackedImages
from simtrail.data.recipe import Recipe
from simtrail.report.figures.style import COLOURS, WIDTH, save, shorten

PAGE, DOWN = 10, 1.0  # classes in one figure of examples (a page of A4), and the height of each in inches
TEXT = WIDTH - 0.16  # width between the margins, inches
READ = 64  # images read at once: they may have hundreds of bands
ALL = 9  # images with at most this many bands are drawn in all of them, three at a time
CHANNELS = {1: (0, 0, 0), 2: (0, 1, 0)}  # number of bands → the bands shown as red, green and blue
COLOURS_NM, REACH = (650, 550, 450), 50  # wavelengths of red, green and blue, and the largest distance from them, nm
SUSPECTS, COLUMNS = 45, 5  # suspects in one figure at most, and in one row of it
TURN = (
    "angle by which the features turn, in degrees, when a small square around a pixel is hidden:\n"
    "large where the features depend on this part of the image, 0 where they do not"
)


def display_bands(recipe: Recipe) -> list[int]:
    """The bands that `rgb` shows: those declared as red, green and blue, or those nearest to 650, 550 and 450 nm.

    If these are not three different bands within 50 nm: three evenly spaced bands with wavelengths, the longest as red.
    If fewer than three bands have a wavelength: the first three bands.
    """
    wavelengths = {i: nm for i, nm in enumerate(recipe.wavelengths) if nm is not None}
    if recipe.rgb or len(wavelengths) < 3:
        return recipe.rgb or list(range(min(3, len(recipe.bands))))
    nearest = [min((abs(nm - colour), i) for i, nm in wavelengths.items()) for colour in COLOURS_NM]
    shown = [i for distance, i in nearest if distance <= REACH]
    return shown if len(set(shown)) == 3 else _middles([i for i in _by_wavelength(recipe) if i in wavelengths])


def rgb(
    images: np.ndarray, recipe: Recipe, bands: Sequence[int] | None = None, originals: int | None = None
) -> np.ndarray:
    """Display images, (N, H, W, 3) float32 in [0, 1], of images (N, C, H, W), packed or in [0, 1].

    `bands` replaces `display_bands`. One band is shown as grey. If there are two bands, the first is shown as red and
    blue, the second as green. Images packed as 16 bits are stretched band by band, because a few pixels may set their
    range: the 1st percentile of the pixels of all images becomes 0, the 99th becomes 1. With `originals`, the
    percentiles are those of the first `originals` images, of which all further images are views.
    """
    chosen = images[:, display_bands(recipe) if bands is None else list(bands)]
    unit = chosen.astype(np.float32) / np.float32(recipe.full_scale if chosen.dtype.kind == "u" else 1)
    if recipe.dtype == "uint16" and len(unit):
        low, high = np.percentile(unit[:originals], (1, 99), axis=(0, 2, 3), keepdims=True).astype(np.float32)
        low, high = np.where(high > low, low, 0), np.where(high > low, high, 1)  # a constant band is not stretched
        unit = np.clip((unit - low) / (high - low), 0, 1)
    return unit[:, CHANNELS.get(unit.shape[1], (0, 1, 2))].transpose(0, 2, 3, 1)


def thumbnails(images: PackedImages, rows: np.ndarray, side: int = 48) -> np.ndarray:
    """Small display images, (N, s, s, 3) uint8 with s = min(side, size), of the images `rows`."""
    shown, small = display_bands(images.recipe), []
    for part in np.array_split(rows, len(rows) // READ + 1):
        batch = images.rows(part)[:, shown]
        unit = to_unit(batch, images.recipe.full_scale, torch.device("cpu"))
        size = min(side, batch.shape[-1])
        small.append(F.interpolate(unit, (size, size), mode="bilinear", antialias=True).numpy())
    return np.rint(255 * rgb(np.concatenate(small), images.recipe, range(len(shown)))).astype(np.uint8)


def view_grid(images: PackedImages, rows: np.ndarray, two_views: TwoViews, seed: int, path: Path) -> None:
    """Draws a row for each image with two pairs of its views, and below it rows in false colours for further bands.

    Up to nine bands, all are drawn, three per row. With more bands, six are drawn: `display_bands` and three of the
    others, evenly spaced. Beside a row are the names of the bands shown as red, green and blue, or their wavelengths
    (nm) where only six bands are drawn. A text in the corner of a view names the bands that the view leaves out.
    Stretch and brightness depend only on the images, so that an image looks the same whatever its views are.
    """
    recipe, all_bands = images.recipe, len(images.recipe.bands) <= ALL
    batch = to_unit(images.rows(rows), recipe.full_scale, torch.device("cpu"))
    views = [view for pair in (0, 1) for view in two_views(batch, seed, pair).chunk(2)]
    size = views[0].shape[-1]
    stack = torch.cat([shrunk(batch, size), *views]).numpy()
    left_out = np.isnan(stack).all((2, 3)).reshape(5, len(rows), -1)  # per view, image and band
    stack = np.where(np.isnan(stack), recipe.packed_background / recipe.full_scale, stack)
    first = display_bands(recipe)
    others = [i for i in _by_wavelength(recipe) if i not in first]
    others = others if all_bands else _middles(others)
    band_rows = [first, *(others[i : i + 3] for i in range(0, len(others), 3))]
    margin, header, gap = (0.7, 0.62, 0.1) if others else (0, 0.36, 0)
    side = max(0.5, ((PAGE * DOWN - header) / len(rows) - gap) / len(band_rows))  # to fit on one page, if possible
    side = min(side, (TEXT - margin) / 5)
    image_height = len(band_rows) * side + gap
    figure, axis = _page_axis(header + image_height * len(rows))
    if others:
        count = f"All {len(recipe.bands)}" if all_bands else f"{len(first) + len(others)} of {len(recipe.bands)}"
        note = "bands; on the left, those shown as red, green and blue. Further bands: false colours, brightened."
        axis.text(0, 0.12, f"{count} {note}", color="#505050", va="center", fontsize=8)
    for column, title in enumerate(["image", *(f"pair {i}\nview {j}" for i in (1, 2) for j in (1, 2))]):
        axis.text(margin + column * side, header - 0.06, title, fontsize=8, linespacing=1.0)
    for j, bands in enumerate(band_rows):
        grid = rgb(stack, recipe, bands, len(rows)).reshape(5, len(rows), size, size, 3)
        if j:  # ultraviolet, for example, is too dark beside the visible bands
            grid = np.clip(grid / max(float(np.percentile(grid[0], 99)), 1e-3), 0, 1)
        names = "\n".join(_band_label(recipe, bands[c]) for c in CHANNELS.get(len(bands), (0, 1, 2)))
        for i, pictures in enumerate(grid.swapaxes(0, 1)):
            y = header + i * image_height + j * side
            if others:
                axis.text(0, y + side / 2 - 0.02, names, fontsize=8, va="center")
            for column, picture in enumerate(pictures):
                x, missing = margin + column * side, [_band_label(recipe, c) for c in bands if left_out[column, i, c]]
                _draw_picture(axis, picture, x, y, side - 0.04)
                if missing:
                    shown = [] if len(missing) == len(bands) else missing
                    _write_missing(axis, shown, x + 0.04, y + side - 0.08, side - 0.12)
    save(figure, path)


def _by_wavelength(recipe: Recipe) -> list[int]:
    """The bands, sorted from the longest wavelength; bands without a wavelength come last, in their order."""
    nm = recipe.wavelengths or [None] * len(recipe.bands)
    return sorted(range(len(nm)), key=lambda i: -(nm[i] or 0))


def _middles(bands: Sequence[int]) -> list[int]:
    """The middle bands of three equal parts, because a sensor is noisiest at both ends of its range."""
    return [int(part[len(part) // 2]) for part in np.array_split(bands, 3)]


def _band_label(recipe: Recipe, i: int) -> str:
    """The name of a band, in ten characters, or its wavelength if there are many bands or the name is long."""
    nm, name = (recipe.wavelengths or [None] * (i + 1))[i], recipe.bands[i]
    return shorten(name, 10) if nm is None or (len(recipe.bands) <= ALL and len(name) <= 10) else f"{nm:.0f} nm"


def class_examples(
    images: PackedImages, examples: dict[str, dict[str, np.ndarray]], labels: Sequence[str], path: Path
) -> list[Path]:
    """Draws a row of examples per class, ten classes a figure, and returns the files: STEM-1.png, STEM-2.png, …

    For each class, `examples` holds the rows of its images `nearest` to and `farthest` from the class, and of the
    nearest images of `others` (other classes), at most five each. `labels` is the class of every packed image; it is
    written under the images of other classes.
    """
    names, paths = list(examples), []
    columns = {  # title, left edge and side of the pictures, in inches
        "nearest": ("nearest to the class", 0.0, 0.33),
        "farthest": ("farthest from the class", 1.73, 0.33),
        "others": ("nearest images of other classes", 3.46, 0.535),
    }
    for start in range(0, len(names), PAGE):
        part = names[start : start + PAGE]
        rows = np.concatenate([examples[name][kind][:5] for name in part for kind in columns])
        pictures = _display_images(images, rows)
        figure, axis = _page_axis(0.3 + DOWN * len(part))
        for title, x, _ in columns.values():
            axis.text(x, 0.12, title, color="#505050", va="center")
        for i, name in enumerate(part):
            y = 0.3 + DOWN * i
            axis.text(0, y, shorten(name, 40), va="top", weight="bold")
            for kind, (_, x, side) in columns.items():
                for j, row in enumerate(examples[name][kind][:5]):
                    _draw_picture(axis, pictures[row], x + j * side, y + 0.18, side - 0.02)
                    if kind == "others":
                        _write_caption(axis, labels[row], x + j * side, y + 0.18 + side, side)
        paths.append(path.with_name(f"{path.stem}-{start // PAGE + 1}.png"))
        save(figure, paths[-1], vector=False)
    return paths


def neighbours(
    images: PackedImages, query_rows: np.ndarray, neighbour_rows: np.ndarray, labels: Sequence[str], path: Path
) -> None:
    """Draws each query (Q,) with its nearest training and validation images (Q, K), nearest first.

    Images are framed and marked: ✓ if they are of the query's class, ✗ if they are not. `labels` is the class of every
    packed image, '' for none; without both classes there is no mark.
    """
    gap = 0.2  # between a query and its neighbours
    width = min(1.1, (TEXT - gap) / (neighbour_rows.shape[1] + 1))
    height = width + 0.32
    pictures = _display_images(images, np.append(neighbour_rows, query_rows))
    figure, axis = _page_axis(0.3 + height * len(query_rows))
    axis.text(0, 0.12, "query", va="center", color="#505050")
    legend = "nearest training and validation images: ✓ same class, ✗ another class"
    axis.text(width + gap, 0.12, legend, va="center", color="#505050")
    for i, (query, nearest) in enumerate(zip(query_rows, neighbour_rows, strict=True)):
        y = 0.3 + i * height
        for j, row in enumerate((query, *nearest)):
            x, label, sign = j * width + gap * (j > 0), labels[row], None
            if j and label and labels[query]:
                sign = ("✓", COLOURS[2]) if label == labels[query] else ("✗", COLOURS[5])
            _draw_picture(axis, pictures[row], x, y, width - 0.06, sign)
            _write_caption(axis, label or "no label", x, y + width - 0.02, width)
    save(figure, path, vector=False)


def suspects(images: PackedImages, rows: np.ndarray, captions: Sequence[tuple[str, str, str]], path: Path) -> None:
    """Draws the images `rows`, at most 45, each above its caption: its path, its label, and what is suspected.

    Of a long path, the end is shown.
    """
    width, side, line = TEXT / COLUMNS, 0.7, 0.13  # inches
    longest, height = int(width * 72 / 4.6), side + 3 * line + 0.08
    pictures = _display_images(images, rows)
    figure, axis = _page_axis(height * -(-len(rows) // COLUMNS))
    for i, (row, (name, given, suspicion)) in enumerate(zip(rows, captions, strict=True)):
        x, y = i % COLUMNS * width, i // COLUMNS * height
        _draw_picture(axis, pictures[row], x, y, side)
        end = name if len(name) <= longest else f"…{name[1 - longest :]}"
        texts = (end, "#505050"), (given, "black"), (suspicion, COLOURS[5])
        for j, (text, colour) in enumerate(texts, start=1):
            axis.text(x, y + side + j * line, shorten(text, longest), color=colour, fontsize=8)
    save(figure, path, vector=False)


def saliency_grid(pictures: np.ndarray, maps: np.ndarray, titles: Sequence[str], path: Path) -> None:
    """Draws display images (B, H, W, 3), each beside its map (B, H, W) in degrees, in colour over the grey image."""
    column_width, row_height, bar_height = TEXT / 3, TEXT / 6 + 0.28, 0.75
    height = -(-len(pictures) // 3) * row_height + bar_height
    figure, axis = _page_axis(height)
    scale = ScalarMappable(Normalize(0, max(float(maps.max()), 1e-9)), "viridis")
    for i, (picture, title) in enumerate(zip(pictures, titles, strict=True)):
        x, y, side = i % 3 * column_width, i // 3 * row_height + 0.24, column_width / 2 - 0.04
        axis.text(x, y - 0.04, shorten(title, 30), fontsize=8, va="bottom")
        _draw_picture(axis, picture, x, y, side)
        mixed = 0.4 * picture.mean(-1, keepdims=True) + 0.6 * scale.to_rgba(maps[i])[..., :3]
        _draw_picture(axis, mixed, x + side + 0.02, y, side)
    bar = figure.add_axes((0.2, 0.57 / height, 0.6, 0.1 / height))
    figure.colorbar(scale, cax=bar, orientation="horizontal", label=TURN)
    save(figure, path, vector=False)


def _display_images(images: PackedImages, rows: np.ndarray) -> dict[int, np.ndarray]:
    """Row → display image for all images of a figure, which are stretched together."""
    rows, shown = np.unique(rows).astype(int), display_bands(images.recipe)
    parts = np.array_split(rows, len(rows) // READ + 1)
    packed = np.concatenate([images.rows(part)[:, shown] for part in parts])
    return dict(zip(rows.tolist(), rgb(packed, images.recipe, range(len(shown))), strict=True))


def _page_axis(height: float) -> tuple[Figure, Axes]:
    """A figure of this height (inches) with one axis, whose coordinates are inches from the upper left corner."""
    figure = plt.figure(figsize=(WIDTH, height))
    figure.set_layout_engine("none")
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(TEXT / 2 - WIDTH / 2, TEXT / 2 + WIDTH / 2), ylim=(height, 0), autoscale_on=False)
    axis.set_axis_off()
    return figure, axis


def _draw_picture(
    axis: Axes, picture: np.ndarray, x: float, y: float, side: float, sign: tuple[str, str] | None = None
) -> None:
    """Draws a picture; a `sign` (character, colour) is written in its corner, with a frame of that colour."""
    axis.imshow(picture, extent=(x, x + side, y + side, y), aspect="auto")
    if sign:
        text, colour = sign
        axis.add_patch(Rectangle((x, y), side, side, fill=False, edgecolor=colour, linewidth=2))
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        axis.text(x + 0.04, y + 0.05, text, color=colour, fontsize=8, weight="bold", va="top", bbox=box)


def _write_missing(axis: Axes, bands: list[str], x: float, y: float, width: float) -> None:
    """Writes in a picture's lower left corner which of its bands the view leaves out; an empty list stands for all."""
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    longest = max(8, int(width * 72 / 4.3))
    names = ", ".join(shorten(band, longest).replace(" ", "\xa0") for band in bands)
    lines = wrap(f"no {names}" if bands else "left out", longest, break_long_words=False)
    axis.text(x, y, "\n".join(lines), fontsize=8, va="bottom", linespacing=1.0, bbox=box)


def _write_caption(axis: Axes, text: str, x: float, y: float, width: float) -> None:
    """Writes a text below a picture, as wide as the picture, in at most two lines."""
    longest = max(4, int(width * 72 / 4.7))
    lines = wrap(" ".join(shorten(word, longest) for word in text.split()), longest, max_lines=2, placeholder=" …")
    axis.text(x, y, "\n".join(lines), fontsize=8, va="top", linespacing=1.0)
