"""What the commands that predict do: learn from a few labelled images, label many, and register what was learned."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from simtrail.data.sources import Source, image_files
from simtrail.errors import InputError
from simtrail.model import HEAD_CONFIG, WEIGHTS
from simtrail.pipeline.use import embedded
from simtrail.tracking.pull import file_hash, origin

if TYPE_CHECKING:
    from simtrail.downstream.fitting import Fitted
    from simtrail.downstream.head import Head, Target


def classify(
    uri: str,
    labels: Path,
    paths: Sequence[str],
    out: Path,
    label: str | None,
    group: str | None,
    target: Target,
    error: float,
    suggest: int,
    name: str | None,
) -> int:
    """Labels images from a few labelled ones; returns the number of files that could not be read.

    Writes to the folder `out`: predictions.csv, sheet.html, the head, the features and, with `suggest`, suggested.csv.
    With a `name`, the head is registered as a model of this name.
    """
    from simtrail.downstream.classify import CHOSEN, classify, read_labels
    from simtrail.report.sheet import contact_sheet

    known = read_labels(labels, [Path(path) for path in paths if Path(path).is_dir()], label, group, target)
    places: dict[Path, Source] = {}
    for source in [*image_files(paths), *known.sources]:  # in this order, so that features are found in the next round
        places.setdefault(source.path.resolve(), source)
    images = embedded(uri, list(places.values()), out)
    row = {path: number for number, path in enumerate(images.paths)}
    names = [places[source.path.resolve()].name for source in known.sources]
    readable = np.array([path in row for path in names], bool)
    if not readable.all():
        print(
            f"classify: warning: {(~readable).sum()} of {len(names)} labelled images can't be read, and teach nothing"
        )
    rows = np.array([row[path] for path in names if path in row], int)
    labelled = (rows, known.labels[readable], known.groups[readable])
    fair = known.fair[readable]
    result = classify(images.paths, images.features, *labelled, error, suggest, fair=fair, target=target)
    head = dataclasses.replace(result.fitted.head, about=images.about)
    if target == "number":
        head = dataclasses.replace(head, names=[known.column])
    head.save(out)
    result.table.to_csv(out / "predictions.csv", index=False)
    suggested = out / "suggested.csv"
    suggested.unlink(missing_ok=True)
    if suggest:
        pd.DataFrame({"path": result.suggested, known.column: "", CHOSEN: "yes"}).to_csv(suggested, index=False)
    lines = classified_lines(result.fitted, result.table)
    facts = {"title": f"{len(result.table)} images", "verdict": lines[-1], "column": known.column}
    recipe = images.encoder.config.recipe
    contact_sheet(result.table, result.suggested, known.table, target, images.files, recipe, facts, out / "sheet.html")
    print("\n".join(f"classify: {line}" for line in lines))
    print(f"classify: review {out / 'sheet.html'}; all predictions: {out / 'predictions.csv'}")
    if name:
        scores = {"score": result.fitted.score, "used": result.fitted.covered, "wrong": result.fitted.wrong}
        settings = {"target": target, "kind": head.kind, "strength": head.strength, "error": error}
        told = {"file": str(labels), "sha256": file_hash(labels), "column": known.column, "images": len(rows)}
        register_head(name, uri, out, head, scores, settings, told, lines, [labels, out / "predictions.csv"])
    return images.rejected


def register_head(
    name: str,
    encoder: str,
    folder: Path,
    head: Head,
    scores: dict[str, float],
    settings: dict[str, Any],
    labels: dict[str, Any],
    lines: Sequence[str],
    files: Sequence[Path],
) -> None:
    """Registers a head in a folder, on an encoder, as a model that stands alone, and says so."""
    from simtrail.report.card import head_card
    from simtrail.tracking.derived import Derived, register_head

    place, about = origin(encoder)
    card = head_card(name, head, about, labels, lines)
    example = head.predict(np.zeros((1, head.arrays["seen"].shape[1]), np.float32))
    kinds = {"b": "boolean", "f": "double"}
    columns = {column: kinds.get(example[column].dtype.kind, "string") for column in example}
    derived = Derived(name, place, folder, about, card, settings, scores, labels, columns, files)
    version = register_head(derived)
    print(f"registered models:/{name}/{version}: use it with simtrail predict, or simtrail.load_predictor")


def predict(uri: str, paths: Sequence[str], out: Path) -> int:
    """Writes what a head predicts to `out`/predictions.csv; returns the number of files that could not be read."""
    from simtrail.downstream.head import Head

    encoder, folder = _encoder_and_head(uri)
    head = Head.load(folder)
    images = embedded(encoder, image_files(paths), out)
    if head.about and head.about["encoder_sha256"] != images.about["encoder_sha256"]:
        raise InputError(f"{uri}: learned with another encoder than {encoder} is now; run simtrail classify again")
    table = head.predict(images.features)
    table.insert(0, "path", images.paths)
    table.to_csv(out / "predictions.csv", index=False)
    used = f"{int(table['use'].sum())} may be used; " if "use" in table else ""
    print(f"predict: {len(table)} images: {used}{out / 'predictions.csv'}")
    return images.rejected


def _encoder_and_head(uri: str) -> tuple[str, Path]:
    """The URI of the encoder, and the folder of the head, of a registered model, or of a folder with a head."""
    folder = Path(uri)
    if uri.startswith("models:/") or (folder / WEIGHTS).is_file():
        folder = origin(uri)[0]
        if not (folder / HEAD_CONFIG).is_file():
            raise InputError(f"{uri}: an encoder without a head; teach it with simtrail classify")
        return uri, folder
    from simtrail.downstream.head import Head

    return Head.load(folder).about["model"], folder


def classified_lines(fitted: Fitted, table: pd.DataFrame) -> list[str]:
    """What the command says: the head, its accuracy, and how many images get a label at the promised error."""
    from simtrail.downstream.fitting import groups_needed

    head, free = fitted.head, table[table["given"].isna()]
    strength = f"k = {head.strength:.0f}" if head.kind == "knn" else f"C = {head.strength:g}"
    images = f"{len(table) - len(free)} labelled images"
    of = {"class": f"{images} of {len(head.names)} classes", "tags": f"{images} with {len(head.names)} tags"}
    score = {"class": "accuracy", "tags": "accuracy of all decisions about tags", "number": "R²"}[head.target]
    first = f"{head.kind} ({strength}) on {of.get(head.target, images)}: {score} {fitted.score:.3f} in cross-validation"
    fair = f"on average and as far as the {fitted.fair} labelled images that nobody chose are a fair sample"
    if np.isinf(head.threshold):
        needed = f"needs labelled images of at least {groups_needed(head.error)} groups, drawn at random"
        return [first, f"an error of {head.error:.0%} {needed}; use no prediction yet"]
    if head.target == "number":
        promise = f"the number is within ± {head.threshold:.4g} of the predicted one for {1 - head.error:.0%} of images"
        return [first, f"{promise}, {fair}"]
    used = f"{int(free['use'].sum())} of {len(free)} images get a label, the others are for you to look at"
    if head.target == "tags":
        used = f"for {int(free['use'].sum())} of {len(free)} images all tags are decided, for the others not all"
        return [first, f"{used}; of all decisions, at most {head.error:.0%} are wrong, {fair}"]
    return [first, f"{used}; of all images, at most {head.error:.0%} get a wrong one, {fair}"]
