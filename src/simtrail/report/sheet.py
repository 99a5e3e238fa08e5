"""A contact sheet of predictions: one HTML page, on which a person reviews them and labels more images."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from simtrail.data.recipe import Recipe
from simtrail.data.stream import conformed
from simtrail.report.figures.pictures import rgb
from simtrail.report.html import render

SIDE = 96  # of a picture, in pixels
OF_CLASS = 48  # images of a class on the page: the most doubtful


def contact_sheet(
    table: pd.DataFrame,
    suggested: Sequence[str],
    files: Mapping[str, Path],
    recipe: Recipe,
    facts: Mapping[str, Any],
    out: Path,
) -> None:
    """Writes the page for the table of `classify`: images to label next, then each class, the most doubtful first.

    `files` are the files of the paths. The page needs no network. Whoever chooses classes on it can save them, with the
    labels that were given, as the next table of labels.
    """
    free = table[table["given"].isna()]
    sections = {name: rows.head(OF_CLASS) for name, rows in free.groupby("predicted", sort=True)}
    by_path = table.set_index("path")
    ahead = by_path.loc[list(suggested)].reset_index()
    near = [column for column in table if column.startswith("nearest_")]
    shown = pd.concat([ahead, *sections.values()])
    wanted = pd.unique(shown[["path", *near[:1]]].to_numpy().ravel())
    pictures = dict(zip(wanted, data_uris([files[path] for path in wanted], recipe), strict=True))
    page = render(
        "sheet.html.j2",
        facts=facts,
        suggested=ahead.to_dict("records"),
        sections=[
            {"name": name, "rows": rows.to_dict("records"), "count": int((free["predicted"] == name).sum())}
            for name, rows in sections.items()
        ],
        pictures=pictures,
        classes=sorted(set(table["predicted"]) | set(table["given"].dropna())),
        given=table.loc[table["given"].notna(), ["path", "given"]].to_numpy().tolist(),
    )
    out.write_text(page, encoding="utf-8")


def data_uris(files: Sequence[Path], recipe: Recipe) -> list[str]:
    """Small pictures of image files as the encoder sees them, of the first tile that shows anything, as data URIs."""
    squares = [found[0] for found in conformed(files, recipe) if not isinstance(found, str)]
    if not squares:
        return []
    shown = np.rint(255 * rgb(np.stack(squares), recipe)).astype(np.uint8)
    return [_uri(picture) for picture in shown]


def _uri(picture: np.ndarray) -> str:
    image, file = Image.fromarray(picture), io.BytesIO()
    image.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(file, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
