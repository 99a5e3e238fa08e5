"""The interactive map of an embedding, as one HTML file that needs no network."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.colors import to_hex
from PIL import Image

from simtrail.evaluation.structure import sample
from simtrail.report.figures.map import OTHER, Thumbnails, most_frequent
from simtrail.report.figures.style import COLOURS, MARKERS
from simtrail.report.html import render

PAGE_POINTS = 5_000  # images on the page; their thumbnails make up most of its size


def map_page(
    points: np.ndarray, thumbnails: Thumbnails, columns: pd.DataFrame, path: Path, title: str, seed: int = 0
) -> None:
    """Writes the (N, 2) points as an HTML page on which they can be zoomed, inspected and coloured by a column.

    The page needs no network. `columns` has a row per point: numbers with more than 20 different values get a colour
    scale, all other columns are coloured as classes. With more than 5,000 points the page shows a seeded random sample,
    and says so.
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
    sampled = f"a random sample of {len(rows)} of " if len(rows) < len(points) else ""
    atlas_jpeg = base64.b64encode(jpeg.getvalue()).decode()
    text = render("map.html.j2", title=title, note=f"{sampled}{len(points)} images", data=data, atlas=atlas_jpeg)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _column(values: pd.Series) -> dict[str, Any]:
    """A column for the page: a text for each row, and either the numbers or the class codes with their names."""
    texts = ["" if missing else str(v) for v, missing in zip(values, values.isna(), strict=True)]
    if pd.api.types.is_numeric_dtype(values) and values.nunique() > 20:
        numbers = values.astype(float)
        return {"texts": texts, "numbers": [v if np.isfinite(v) else None for v in numbers.tolist()]}
    names, codes = most_frequent(values)
    return {"texts": texts, "names": names, "codes": codes.tolist(), "others": values.nunique() - len(names)}
