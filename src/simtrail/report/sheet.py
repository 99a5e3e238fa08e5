"""Contact sheets: HTML pages of small pictures, such as predictions that a person reviews and corrects."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from simtrail.data.recipe import Recipe
from simtrail.data.stream import conformed
from simtrail.report.figures.pictures import display_bands, rgb
from simtrail.report.html import render

SIDE = 96  # of a picture, in pixels
RANGES = 5  # of a number, that get a section each
OF_CLASS, OF_ALL = 48, 1_500  # images of a class on the page, the most doubtful, and of all classes


def contact_sheet(
    table: pd.DataFrame,
    suggested: Sequence[str],
    labels: pd.DataFrame,
    target: str,
    files: Mapping[str, Path],
    recipe: Recipe,
    facts: Mapping[str, Any],
    out: Path,
) -> None:
    """Writes the page for the table of `classify`: images to label next, then each class, the most doubtful first.

    `target` is that of the head: instead of classes, there can be a section for each tag, or for ranges of a number.
    `files` are the files of the paths, `labels` the table of labels, with `facts.column` that of the labels. The page
    needs no network. Whoever labels images on it can save these with `labels` as the next table of labels.
    """
    free = table[table["given"].isna()]
    parts = {"class": _by_class, "tags": _by_tag, "number": _by_range}[target](free)
    most = max(6, min(OF_CLASS, OF_ALL // max(1, len(parts))))
    sections = {name: rows.head(most) for name, rows in parts.items()}
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
            {"name": name, "rows": rows.to_dict("records"), "count": len(parts[name])}
            for name, rows in sections.items()
        ],
        pictures=pictures,
        target=target,
        classes=sorted(
            {*map(str, labels[facts["column"]]), *map(str, table["predicted"])} if target == "class" else ()
        ),
        columns=[*labels],
        given=labels.to_numpy().tolist(),
    )
    out.write_text(page, encoding="utf-8")


def _by_class(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    return dict(iter(table.groupby("predicted", sort=True)))


def _by_tag(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The images that have, or may have, a tag; and those without any."""
    sets = [set(f"{row.predicted};{row.unsure}".split(";")) - {"", "-"} or {"no tag"} for row in table.itertuples()]
    return {tag: table[[tag in each for each in sets]] for tag in sorted(set().union(*sets))}


def _by_range(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Parts of equal size, from the lowest to the highest predicted number."""
    parts = np.array_split(np.argsort(table["predicted"].to_numpy(), kind="stable"), RANGES)
    tables = (table.iloc[np.sort(part)] for part in parts if len(part))
    return {f"{t['predicted'].min():.4g} – {t['predicted'].max():.4g}": t for t in tables}


class Card(NamedTuple):
    """A picture on a page, and a line below it."""

    path: str
    text: str
    query: bool = False  # whether the others of its section were found by it


def gallery(
    title: str, note: str, sections: Mapping[str, Sequence[Card]], files: Mapping[str, Path], recipe: Recipe, out: Path
) -> None:
    """Writes a page of pictures, in sections with a title each; `files` are the files of their paths."""
    wanted = list(dict.fromkeys(card.path for cards in sections.values() for card in cards))
    pictures = dict(zip(wanted, data_uris([files[path] for path in wanted], recipe), strict=True))
    shown = [{"title": name, "cards": [card._asdict() for card in cards]} for name, cards in sections.items()]
    page = render("gallery.html.j2", title=title, note=note, sections=shown, pictures=pictures)
    out.write_text(page, encoding="utf-8")


def small_pictures(files: Sequence[Path], recipe: Recipe, side: int = 48) -> np.ndarray:
    """Display images (N, side, side, 3) uint8 of image files as the encoder sees them; of tiles, the first."""
    shown = display_bands(recipe)
    squares = [found[0, shown] for found in conformed(files, recipe) if not isinstance(found, str)]
    pictures = np.rint(255 * rgb(np.stack(squares), recipe, range(len(shown)))).astype(np.uint8)
    small = (Image.fromarray(p).resize((side, side), Image.Resampling.BICUBIC) for p in pictures)
    return np.stack([np.asarray(picture) for picture in small])


def data_uris(files: Sequence[Path], recipe: Recipe) -> list[str]:
    """Small pictures of image files as data URIs."""
    return [_uri(picture) for picture in small_pictures(files, recipe, SIDE)] if files else []


def _uri(picture: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
