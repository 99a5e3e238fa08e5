"""What the commands for a finished encoder do: find it, call `downstream`, and say what came out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from simtrail.data.sources import Source, image_files
from simtrail.tracking.pull import origin

if TYPE_CHECKING:
    from simtrail.downstream.head import Fitted


def embed(uri: str, paths: Sequence[str], out: Path, modality: str | None, strict: bool) -> int:
    """Writes the features of all images that the paths mean; returns the number of files that could not be read."""
    from simtrail.downstream.embedding import check_format, embed_files
    from simtrail.model.encoder import Encoder

    check_format(out)
    sources, (folder, about) = image_files(paths), origin(uri)
    rejected = embed_files(Encoder.load(folder), sources, out, about, modality, strict)
    print(f"embed: {len(sources) - len(rejected)} images: {out}")
    if len(rejected):
        print(f"embed: {len(rejected)} files could not be read: {out.with_name(out.stem + '.rejected.csv')}")
    return len(rejected)


def classify(
    uri: str,
    labels: Path,
    paths: Sequence[str],
    out: Path,
    label: str | None,
    group: str | None,
    error: float,
    suggest: int,
) -> int:
    """Labels images from a few labelled ones; returns the number of files that could not be read.

    Writes to the folder `out`: predictions.csv, sheet.html, the head, the features and, with `suggest`, suggested.csv.
    """
    from simtrail.downstream.classify import classify, read_labels
    from simtrail.downstream.embedding import embed_files
    from simtrail.downstream.head import groups_needed
    from simtrail.model.encoder import Encoder
    from simtrail.report.sheet import contact_sheet

    known = read_labels(labels, [Path(path) for path in paths if Path(path).is_dir()], label, group)
    found = image_files(paths)
    places: dict[Path, Source] = {}
    for source in [*found, *known.sources]:  # in this order, so that features are found again in the next round
        places.setdefault(source.path.resolve(), source)
    sources = list(places.values())
    folder, about = origin(uri)
    encoder = Encoder.load(folder)
    out.mkdir(parents=True, exist_ok=True)
    rejected = embed_files(encoder, sources, out / "features.parquet", about)
    table = pd.read_parquet(out / "features.parquet")
    row = {name: number for number, name in enumerate(table["path"])}
    names = [places[source.path.resolve()].name for source in known.sources]
    readable = np.array([name in row for name in names])
    rows = np.array([row[name] for name in names if name in row])
    result = classify(
        table["path"].to_list(),
        np.stack(table["vector"].to_list()),
        rows,
        known.labels[readable],
        known.groups[readable],
        error,
        suggest,
    )
    head = dataclasses.replace(result.fitted.head, about=about)
    head.save(out)
    result.table.to_csv(out / "predictions.csv", index=False)
    suggested = out / "suggested.csv"
    suggested.unlink(missing_ok=True)
    if suggest:
        pd.DataFrame({"path": result.suggested, "label": ""}).to_csv(suggested, index=False)
    lines = classified_lines(result.fitted, result.table, groups_needed(error))
    facts = {"title": f"{len(result.table)} images, {len(head.names)} classes", "verdict": lines[-1]}
    contact_sheet(
        result.table,
        result.suggested,
        {s.name: s.path for s in sources},
        encoder.config.recipe,
        facts,
        out / "sheet.html",
    )
    print("\n".join(f"classify: {line}" for line in lines))
    print(f"classify: review {out / 'sheet.html'}; all predictions: {out / 'predictions.csv'}")
    if len(rejected):
        print(f"classify: {len(rejected)} files could not be read: {out / 'features.rejected.csv'}")
    return len(rejected)


def classified_lines(fitted: Fitted, table: pd.DataFrame, needed: int) -> list[str]:
    """What the command says: the head, its accuracy, and how many images get a label at the promised error."""
    head, free = fitted.head, table[table["given"].isna()]
    strength = f"k = {head.strength:.0f}" if head.kind == "knn" else f"C = {head.strength:g}"
    first = f"{head.kind} ({strength}) on {len(table) - len(free)} labelled images of {len(head.names)} classes"
    lines = [f"{first}: accuracy {fitted.accuracy:.3f} in cross-validation"]
    if np.isinf(head.threshold):
        promise = (
            f"an error of {head.error:.0%} needs labelled images of at least {needed} groups; use no prediction yet"
        )
    else:
        used = f"{int(free['use'].sum())} of {len(free)} images get a label, the others are for you to look at"
        promise = (
            f"{used}; of all images, at most {head.error:.0%} get a wrong one, if the labelled images are a fair sample"
        )
    return [*lines, promise]
