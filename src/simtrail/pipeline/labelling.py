"""What the commands that predict do: learn from a few labelled images, label many, and register what was learned."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from simtrail.data.sources import Source, image_files
from simtrail.errors import InputError
from simtrail.model import HEAD_CONFIG, WEIGHTS
from simtrail.pipeline.use import embedded, require_no_encoder
from simtrail.tracking.pull import encoder_hash, origin

if TYPE_CHECKING:
    from simtrail.downstream.classify import Labels
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
    from simtrail.downstream.head import NO_TAG, SEPARATOR
    from simtrail.report.sheet import contact_sheet

    _require_own(out, tuned=False)
    _require_name(name)
    given = image_files(paths)
    folders = [Path(path) for path in paths if Path(path).is_dir()]
    known, suggested = read_labels(labels, folders, label, group, target), out / "suggested.csv"
    same = suggested.exists() and suggested.samefile(labels)
    if suggested.exists() and not same:  # somebody may have filled it in
        filled = read_labels(suggested, folders, known.column, target=target)
        if more := {s.path.resolve() for s in filled.sources} - {s.path.resolve() for s in known.sources}:
            raise InputError(f"{suggested}: has {len(more)} labels that {labels} has not; use it instead, or remove it")
    if target == "tags" and not any(SEPARATOR in each or each == NO_TAG for each in known.labels):
        print(f"classify: warning: no label names several tags, or none ({NO_TAG}); is it --target class?")
    places: dict[Path, Source] = {}
    for source in [*given, *known.sources]:  # in this order, so that features are found in the next round
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
    with _naming(labels, known.column):
        result = classify(images.paths, images.features, *labelled, error, suggest, fair=fair, target=target)
    told = _labels(labels, known)
    head = dataclasses.replace(result.fitted.head, about=images.about | {"labels": _line(told)})
    if target == "number":
        head = dataclasses.replace(head, names=[known.column])
    head.save(out)
    result.table.to_csv(out / "predictions.csv", index=False)
    if suggested.exists() and not same:
        suggested.unlink()
    table = known.table.assign(path=names)
    if suggest:  # a whole table, so that nobody has to bring rows with other columns together
        more = pd.DataFrame({"path": result.suggested, CHOSEN: "yes"}, columns=table.columns)
        pd.concat([table, more.fillna("")]).to_csv(suggested, index=False)
    lines = classified_lines(result.fitted, result.table)
    facts = {"title": f"{len(result.table)} images", "verdict": lines[-1], "column": known.column}
    recipe = images.encoder.config.recipe
    contact_sheet(result.table, result.suggested, table, target, images.files, recipe, facts, out / "sheet.html")
    print("\n".join(f"classify: {line}" for line in lines))
    print(f"classify: review {out / 'sheet.html'}; all predictions: {out / 'predictions.csv'}")
    if name:
        scores = {"score": result.fitted.score, "used": result.fitted.covered, "wrong": result.fitted.wrong}
        settings = {"target": target, "kind": head.kind, "strength": head.strength, "error": error}
        files = [out / "predictions.csv"]
        parent = origin(uri)
        _register(name, parent[0], parent, out, head, scores, settings, told, lines, files)
    return images.rejected


def finetune(
    uri: str,
    labels: Path,
    folders: Sequence[Path],
    out: Path,
    label: str | None,
    group: str | None,
    epochs: int,
    error: float,
    name: str | None,
) -> None:
    """Fine-tunes an encoder on labelled images, and says whether it was worth it.

    Writes to the folder `out`: the encoder with its head, history.csv, and test.csv, the predictions for test images.
    With a `name`, they are registered as a model of this name.
    """
    from simtrail.downstream.classify import read_labels
    from simtrail.downstream.tuned import FOLDS, pack_images, tune
    from simtrail.model.encoder import Encoder
    from simtrail.report.wording import interval

    _require_own(out, tuned=True)
    _require_name(name)
    known = read_labels(labels, folders, label, group)
    folder, about = origin(uri)
    encoder = Encoder.load(folder)
    print(f"finetune: {len(known.labels)} labelled images, at most {epochs} epochs", flush=True)
    with _folder(out), tempfile.TemporaryDirectory(dir=out) as scratch:
        images, errors = pack_images([source.path for source in known.sources], encoder, Path(scratch))
        if errors:
            lines = [f"{known.sources[i].name}: {reason}" for i, reason in errors.items()]
            raise InputError("\n".join(lines[:20]) + "\ntake these rows out of the table of labels")
        names = [source.name for source in known.sources]
        with _naming(labels, known.column):
            result = tune(encoder, images, known.labels, known.groups, names, epochs, error)
    result.encoder.save(out)
    told = _labels(labels, known)
    new = {"parent_sha256": about["encoder_sha256"], "encoder_sha256": encoder_hash(out), "labels": _line(told)}
    head = dataclasses.replace(result.head, about=about | new)
    head.save(out)
    pd.DataFrame(result.history).to_csv(out / "history.csv", index=False)
    result.test.to_csv(out / "test.csv", index=False)
    value, low, high = (float(part[0]) for part in result.difference)
    before = float((result.test["frozen"] == result.test["truth"]).mean())
    verdict = "worth it" if low > 0 else "worse" if high < 0 else "this may be chance"
    unchanged = "no epoch was clearly better than the linear probe it began with"
    kept = f"epoch {result.epoch} kept" if result.epoch else unchanged
    learned = f"{len(head.labelled)} of {len(known.labels)} labelled images, of {len(head.names)} classes"
    first = f"fine-tuned on {learned} ({kept})"
    difference = f"difference {value:+.3f} (95 % interval {low:+.3f} – {high:+.3f}): {verdict}"
    if low == high == 0:
        difference = "both are right on the same images"
    lines = [
        f"{first}: accuracy {interval(result.scores, 'accuracy')} on {len(result.test)} test images",
        f"{result.frozen} on frozen features: {before:.3f}; {difference}",
    ]
    if not np.isfinite(head.threshold):
        groups, needed = len(np.unique(known.groups)), FOLDS * math.ceil(1 / error - 1)
        reason = f"too few groups, {groups} and not {needed}," if groups < needed else "too many errors on test images"
        enough = f"--error {math.ceil(100 / (groups // FOLDS + 1)) / 100}" if groups < needed else "a higher --error"
        lines.append(
            f"warning: {reason} to promise that at most {100 * error:g} % of the labels are wrong: predict will say of "
            f"no image that it may be used; label more images, or set {enough}"
        )
    print("\n".join(f"finetune: {line}" for line in lines))
    print(f"finetune: {out}: use it with simtrail predict {out} PATH…")
    if low <= 0:
        options = "".join(f" --{key} {value}" for key, value in (("label", label), ("group", group)) if value)
        classify = f"simtrail classify {uri} {labels} PATH…{options}"
        print(f"finetune: not shown to be better than {classify}, which learns from all labelled images")
    if name:
        scores = {
            "score": result.scores["accuracy"],
            "frozen": before,
            "gain": value,
            "gain_low": low,
            "gain_high": high,
        }
        settings = {"target": "class", "kind": "finetune", "epochs": epochs, "error": error}
        files = [out / "history.csv", out / "test.csv"]
        _register(name, out, (folder, about), out, head, scores, settings, told, lines, files, result.history)


def _require_own(out: Path, tuned: bool) -> None:
    """Raises InputError for a folder with an encoder or a head that another command made; `tuned`: for finetune."""
    require_no_encoder(out)
    if (out / HEAD_CONFIG).exists() and (out / WEIGHTS).exists() != tuned:
        other = "classify" if tuned else "finetune"
        raise InputError(f"{out}: has what simtrail {other} made; name another folder with --out")


@contextmanager
def _folder(out: Path) -> Iterator[None]:
    """Makes the folder, and removes it if it is empty at the end, as after an error."""
    out.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with suppress(OSError):  # it has files
            out.rmdir()


@contextmanager
def _naming(labels: Path, column: str) -> Iterator[None]:
    """Makes errors about labels name their table and column, or their folder."""
    try:
        yield
    except InputError as error:
        place = str(labels) if labels.is_dir() else f"{labels}, column {column!r}"
        raise InputError(str(error).replace("labels:", f"{place}:", 1)) from None


def _require_name(name: str | None) -> None:
    """Raises InputError, before anything is computed, for a name that can't be registered."""
    if name:
        from simtrail.tracking.derived import versions_of

        versions_of(name, heads=True)


def _labels(path: Path, known: Labels) -> dict[str, Any]:
    """What a head records about its labels; their table only if it is registered."""
    text = known.table.to_csv(index=False)
    return {
        "file": str(path),
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "column": known.column,
        "images": len(known.labels),
        "table": text,
    }


def _line(labels: dict[str, Any]) -> str:
    return f"{labels['file']}, column {labels['column']}, {labels['images']} images, sha256 {labels['sha256']}"


def _register(
    name: str,
    encoder: Path,
    parent: tuple[Path, dict[str, str]],
    folder: Path,
    head: Head,
    scores: dict[str, float],
    settings: dict[str, Any],
    labels: dict[str, Any],
    lines: Sequence[str],
    files: Sequence[Path],
    history: Sequence[dict[str, float]] = (),
) -> None:
    """Registers the head in a folder, with an encoder, as a model that stands alone, and says so.

    `parent` is the registered encoder that the other is, or was fine-tuned from.
    """
    from simtrail.report.card import head_card
    from simtrail.tracking.derived import Derived, register_head

    table = labels.pop("table")
    card = head_card(name, head, parent[1], labels, lines)
    example = head.predict(np.zeros((1, head.arrays["seen"].shape[1]), np.float32))
    kinds = {"b": "boolean", "f": "double"}
    columns = {column: kinds.get(example[column].dtype.kind, "string") for column in example}
    derived = Derived(name, encoder, folder, *parent, card, settings, scores, labels, columns, table, files, history)
    version = register_head(derived)
    print(f"registered models:/{name}/{version}: use it with simtrail predict, or simtrail.load_predictor")


def predict(uri: str, paths: Sequence[str], out: Path) -> int:
    """Writes what a head predicts to `out`/predictions.csv; returns the number of files that could not be read."""
    from simtrail.downstream.head import Head

    if (out / HEAD_CONFIG).exists():
        raise InputError(f"{out}: has what simtrail classify or finetune made; name another folder with --out")
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
    chosen = "" if fitted.fair in (0, len(table) - len(free)) else f" of the {fitted.fair} that nobody chose"
    first = f"{head.kind} ({strength}) on {of.get(head.target, images)}: {score} {fitted.score:.3f} in cross-validation"
    first += chosen
    fair = f"on average and as far as the {fitted.fair} labelled images that nobody chose are a fair sample"
    if np.isinf(head.threshold):
        needed = f"needs labelled images of at least {groups_needed(head.error)} groups, drawn at random"
        return [first, f"an error of {head.error:.0%} {needed}; use no prediction yet"]
    if head.target == "number":
        promise = f"the number is within ± {head.threshold:.4g} of the predicted one for {1 - head.error:.0%} of images"
        return [first, f"{promise}, {fair}"]
    if free.empty:
        return [first, "all images have a label: nothing is left to predict"]
    count = int(free["use"].sum())
    if head.target == "tags":
        used = f"for {count} of {len(free)} images all tags are decided"
        return [first, f"{used}; of all decisions, at most {head.error:.0%} are wrong, {fair}"]
    used = f"{count} of {len(free)} unlabelled images get a label, the others are for you to look at"
    wrong = f"at most {head.error:.0%} of the {len(free)} get a wrong one"
    if count:
        wrong += f", which is {min(1, head.error * len(free) / count):.0%} of those that get one"
    return [first, f"{used}; {wrong}: {fair}"]
