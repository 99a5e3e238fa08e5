"""Maps of an embedding: UMAP coordinates, still pictures, and a page to move about in."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from jinja2 import Environment
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from PIL import Image

from simtrail.evaluation.figures.style import COLOURS, MARKERS, POINTS, WIDTH, cut, mark, write

LARGEST = 50_000  # images laid out; more take UMAP many minutes
NAMED = 28  # most frequent classes with a colour and marker of their own, the others are grey
PAGE_POINTS = 5_000  # images on the page, whose thumbnails make up its size
OTHER = "#C8C8C8"
Thumbnails = Callable[[np.ndarray], np.ndarray]  # positions among the points → (n, h, w, 3) uint8


def coordinates(features: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows laid out, and their (n, 2) UMAP coordinates by cosine distance (McInnes et al. 2018, arXiv 1802.03426).

    All rows up to 50,000, of more a seeded sample in their order. Distances on a map mislead: measure in the features.
    """
    rows = sample(len(features), LARGEST, seed)
    if len(rows) < 4:  # too few for neighbourhoods
        return rows, np.stack([np.arange(len(rows)), np.zeros(len(rows))], 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "n_jobs overridden by random_state": that is the point of a seed
        from umap import UMAP

        layout = UMAP(n_neighbors=min(15, len(rows) - 1), metric="cosine", random_state=seed)
        return rows, layout.fit_transform(features[rows])


def sample(count: int, largest: int, seed: int) -> np.ndarray:
    """The numbers 0 … count − 1, or a sorted random `largest` of them."""
    if count <= largest:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, largest, replace=False))


def static_map(points: np.ndarray, labels: list[str] | None, thumbnails: Thumbnails | None, path: Path) -> None:
    """The (N, 2) points, coloured by label; with thumbnails, these where they do not overlap, framed in that colour."""
    figure, axis = plt.subplots(figsize=(WIDTH, 4.6))
    names, codes = most_frequent(pd.Series(labels)) if labels else ([], np.zeros(len(points), int))
    size = float(np.clip(4e4 / max(len(points), 1), 2, 14))
    for code in np.unique(codes):  # the grey ones, −1, below
        here, (colour, marker) = codes == code, mark(code) if code >= 0 else (OTHER, "o")
        label = names[code] if code >= 0 and names else f"{len(set(labels or ())) - len(names)} other classes"
        style: dict[str, Any] = {
            "color": colour,
            "marker": marker,
            "label": cut(label, 22),
            "s": size * (1 if code >= 0 else 0.6),
        }
        axis.scatter(*points[here].T, alpha=0.85, linewidths=0, rasterized=len(points) > POINTS, **style)
    if thumbnails is not None:
        _lay(axis, points, [mark(c)[0] if c >= 0 else OTHER for c in codes], thumbnails)
    if names:
        legend = axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), handletextpad=0.1)
        for handle in legend.legend_handles:
            handle.set_sizes([28])  # type: ignore[union-attr]
    axis.set_box_aspect(1)  # the sheet of thumbnails is square
    axis.set(xticks=[], yticks=[], xlabel="UMAP 1", ylabel="UMAP 2", title=f"Embeddings of {len(points)} test images")
    write(figure, path)


def map_page(
    points: np.ndarray, thumbnails: Thumbnails, columns: pd.DataFrame, path: Path, title: str, seed: int = 0
) -> None:
    """Writes one HTML file that needs no network: the (N, 2) points to zoom, point at and colour by a column.

    `columns` has a row per point: numbers of more than 20 different values are coloured as such, everything else as
    classes. Of more than 5,000 points a seeded sample is shown, which the page says.
    """
    rows = sample(len(points), PAGE_POINTS, seed)
    pictures = thumbnails(rows)
    side = pictures.shape[1]
    across = int(np.ceil(np.sqrt(len(rows))))
    atlas = np.zeros((-(-len(rows) // across) * side, across * side, 3), np.uint8)
    for i, picture in enumerate(pictures):
        y, x = i // across * side, i % across * side
        atlas[y : y + side, x : x + side] = picture
    jpeg = io.BytesIO()
    Image.fromarray(atlas).save(jpeg, "JPEG", quality=80)
    low, high = points.min(0), points.max(0)
    unit = (points[rows] - low) / max(float((high - low).max()), 1e-9)
    data = {
        "points": unit.round(4).tolist(),
        "columns": {str(name): _column(columns[name].iloc[rows]) for name in columns},
        "side": side,
        "across": across,
        "colours": COLOURS[:7],
        "shapes": len(MARKERS),
        "other": OTHER,
        "scale": [to_hex(c) for c in colormaps["cividis"](np.linspace(0, 1, 64))],
    }
    note = f"a random {len(rows)} of {len(points)} images" if len(rows) < len(points) else f"{len(points)} images"
    template = Path(__file__).parents[1].joinpath("map.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}  # and the columns in their order
    text = environment.from_string(template).render(
        title=title, note=note, data=data, atlas=base64.b64encode(jpeg.getvalue()).decode()
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def most_frequent(labels: pd.Series) -> tuple[list[str], np.ndarray]:
    """The (up to 28) most frequent labels in alphabetical order, and each row's number among them, −1 for others."""
    counts = labels.dropna().astype(str).value_counts()
    names = sorted(counts.index[:NAMED])
    return names, pd.Categorical(labels.astype(str).where(labels.notna()), names).codes.astype(int)


def _column(values: pd.Series) -> dict[str, Any]:
    """What the page needs of a column: texts for each row, and its numbers, or classes and their names."""
    texts = ["" if missing else str(v) for v, missing in zip(values, values.isna(), strict=True)]
    if pd.api.types.is_numeric_dtype(values) and values.nunique() > 20:
        numbers = values.astype(float)
        return {"texts": texts, "numbers": [v if np.isfinite(v) else None for v in numbers.tolist()]}
    names, codes = most_frequent(values)
    return {"texts": texts, "names": names, "codes": codes.tolist(), "others": values.nunique() - len(names)}


def _lay(axis: Axes, points: np.ndarray, colours: list[str], thumbnails: Thumbnails) -> None:
    """Thumbnails on a map, each at its point, left out where it would cover one laid before."""
    side, frame, size = 70, 4, np.array([1000, 1000])  # pixels of a thumbnail, its frame, and the map
    low, high = points.min(0), points.max(0)
    at = ((points - low) / np.maximum(high - low, 1e-9) * (size - side)).astype(int)
    left, laid = np.arange(len(at)), []
    while len(left):
        laid.append(left[0])
        left = left[np.abs(at[left] - at[left[0]]).max(1) >= side]
    sheet = np.zeros((*size, 4), np.uint8)
    inner = side - 2 * frame
    for i, picture in zip(laid, thumbnails(np.array(laid)), strict=True):
        x, y = at[i]
        sheet[y : y + side, x : x + side] = [*(int(255 * c) for c in to_rgb(colours[i])), 255]
        small = Image.fromarray(picture).resize((inner, inner), Image.Resampling.BILINEAR)
        sheet[y + frame : y + side - frame, x + frame : x + side - frame, :3] = np.asarray(small)[::-1]  # y is upward
    margin = (high - low) * side / (size - side) / 2
    extent = np.stack([low - margin, high + margin], 1).ravel()
    axis.imshow(sheet, extent=tuple(extent), origin="lower", aspect="auto", zorder=3)
