"""Figures of the map of an embedding: points in the colours of their classes, or thumbnails of the images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from PIL import Image

from simtrail.report.figures.style import POINTS, WIDTH, mark, save, shorten

NAMED = 28  # the most frequent classes, which have a colour and a marker; all other classes are grey
OTHER = "#C8C8C8"
Thumbnails = Callable[[np.ndarray], np.ndarray]  # indices of points → (n, h, w, 3) uint8


def static_map(points: np.ndarray, labels: list[str] | None, thumbnails: Thumbnails | None, path: Path) -> None:
    """Draws the (N, 2) points, coloured by label; with `thumbnails`, also those that fit without overlap.

    The frame of a thumbnail has the colour of its label.
    """
    figure, axis = plt.subplots(figsize=(WIDTH, 4.6))
    names, codes = most_frequent(pd.Series(labels)) if labels else ([], np.zeros(len(points), int))
    size = float(np.clip(4e4 / max(len(points), 1), 2, 14))
    for code in np.unique(codes):  # −1 first, so that grey points are below all others
        rows, (colour, marker) = codes == code, mark(code) if code >= 0 else (OTHER, "o")
        label = names[code] if code >= 0 and names else f"{len(set(labels or ())) - len(names)} other classes"
        style: dict[str, Any] = {
            "color": colour,
            "marker": marker,
            "label": shorten(label, 22),
            "s": size * (1 if code >= 0 else 0.6),
        }
        axis.scatter(*points[rows].T, alpha=0.85, linewidths=0, rasterized=len(points) > POINTS, **style)
    if thumbnails is not None:
        _draw_thumbnails(axis, points, [mark(c)[0] if c >= 0 else OTHER for c in codes], thumbnails)
    if names:
        legend = axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), handletextpad=0.1)
        for handle in legend.legend_handles:
            handle.set_sizes([28])  # type: ignore[union-attr]
    axis.set_box_aspect(1)  # because the picture of all thumbnails is square
    axis.set(xticks=[], yticks=[], xlabel="UMAP 1", ylabel="UMAP 2", title=f"Embeddings of {len(points)} test images")
    save(figure, path)


def most_frequent(labels: pd.Series) -> tuple[list[str], np.ndarray]:
    """The (up to 28) most frequent labels in alphabetical order, and the number of each row's label, −1 for others."""
    counts = labels.dropna().astype(str).value_counts()
    names = sorted(counts.index[:NAMED])
    return names, pd.Categorical(labels.astype(str).where(labels.notna()), names).codes.astype(int)


def _draw_thumbnails(axis: Axes, points: np.ndarray, colours: list[str], thumbnails: Thumbnails) -> None:
    """Draws thumbnails at their points; a thumbnail that would cover an earlier one is left out."""
    side, frame, size = 70, 4, np.array([1000, 1000])  # pixels of a thumbnail, its frame, and the map
    low, high = points.min(0), points.max(0)
    positions = ((points - low) / np.maximum(high - low, 1e-9) * (size - side)).astype(int)
    remaining, placed = np.arange(len(positions)), []
    while len(remaining):
        placed.append(remaining[0])
        remaining = remaining[np.abs(positions[remaining] - positions[remaining[0]]).max(1) >= side]
    sheet = np.zeros((*size, 4), np.uint8)
    inner = side - 2 * frame
    for i, picture in zip(placed, thumbnails(np.array(placed)), strict=True):
        x, y = positions[i]
        sheet[y : y + side, x : x + side] = [*(int(255 * c) for c in to_rgb(colours[i])), 255]
        small = Image.fromarray(picture).resize((inner, inner), Image.Resampling.BILINEAR)
        sheet[y + frame : y + side - frame, x + frame : x + side - frame, :3] = np.asarray(small)[::-1]  # rows upwards
    margin = (high - low) * side / (size - side) / 2
    extent = np.stack([low - margin, high + margin], 1).ravel()
    axis.imshow(sheet, extent=tuple(extent), origin="lower", aspect="auto", zorder=3)
