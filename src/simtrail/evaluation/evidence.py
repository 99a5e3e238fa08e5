"""The evidence behind the numbers: tables, figures, the map, and what they add to the metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from simtrail.data.pack import PackedImages
from simtrail.evaluation import label_efficiency, saliency
from simtrail.evaluation.angles import ClassAngles, class_angles, examples, outliers
from simtrail.evaluation.assess import Assessment
from simtrail.evaluation.bands import band_groups, mean_spectra, occlusion, permutation
from simtrail.evaluation.classifiers import nearest
from simtrail.evaluation.figures import charts, map, pictures
from simtrail.evaluation.figures.spectra import importance_bars, spectra
from simtrail.evaluation.scores import TITLES
from simtrail.evaluation.structure import clusters, components, components_for, dimensions, duplicates, retrieval
from simtrail.evaluation.tasks import Result, Task
from simtrail.model.encoder import Encoder
from simtrail.params import Evaluate

QUERIES, NEAREST = 6, 5
SHOWN = 12  # images whose saliency is drawn
OCCLUDED = 500  # images whose bands are hidden
EXAMPLES = 30  # classes, the most frequent, whose images are shown


def gather(
    found: Assessment,
    encoder: Encoder,
    images: PackedImages,
    table: pd.DataFrame,
    features: np.ndarray,
    p: Evaluate,
    folder: Path,
) -> None:
    """Writes predictions.parquet, umap.parquet, map.html, tables/ and figures/ to a folder; adds to the metrics.

    `features` are those of all packed images, `table` the split table. All that is measured is of the test split, but
    for duplicates, which are sought among all images.
    """
    drawn, tables = folder / "figures", {}
    test = np.flatnonzero(table["split"] == "test")
    cumulative = components(features[test])
    found.metrics["features"] |= {f"components_{n}": components_for(cumulative, n / 100) for n in (90, 95, 99)}
    charts.explained_variance(cumulative, drawn / "explained_variance.png")
    tables["duplicates"] = _named(
        duplicates(features, table["sha256"].to_numpy(), table["block"].to_numpy(), seed=p.seed), table
    )
    columns = metadata(table)
    tables["dimensions"] = dimensions(features[test], columns.iloc[test])
    if len(tables["dimensions"]):
        charts.dimension_relations(tables["dimensions"], drawn / "dimensions.png")
    _map(features, images, table, columns, test, p.seed, folder)
    for number, (task, result) in enumerate(zip(found.tasks, found.results, strict=True)):
        angles = _task(task, result, features, found.metrics["tasks"][task.name], p, drawn)
        if number == 0:
            metrics, paths = found.metrics["tasks"][task.name], table["path"].to_numpy()
            tables |= _main(task, result, angles, features, images, paths, metrics, p, drawn)
    if found.tasks:
        tables |= _scores(found)
    if len(images.recipe.bands) > 3 or len(images.recipe.modalities) > 1:
        tables |= _bands(found, encoder, images, table, features, test, p, drawn)
    predictions(found, table).to_parquet(folder / "predictions.parquet")
    labels = table["label"].fillna("").to_numpy(dtype=str)
    _neighbours(features, images, table, labels, p.seed, drawn)
    _saliency(encoder, images, labels, test, p.seed, drawn)
    (folder / "tables").mkdir()
    for name, content in tables.items():
        content.to_csv(folder / f"tables/{name}.csv", index=False)


def _bands(
    found: Assessment,
    encoder: Encoder,
    images: PackedImages,
    table: pd.DataFrame,
    features: np.ndarray,
    test: np.ndarray,
    p: Evaluate,
    drawn: Path,
) -> dict[str, pd.DataFrame]:
    """Figures and tables of what single bands and modalities tell the encoder, and of the classes' spectra."""
    recipe, block = images.recipe, table["block"].to_numpy()
    fill = np.array(encoder.config.mean) * recipe.full_scale
    rows = np.random.default_rng(p.seed).permutation(test)[:OCCLUDED]

    def importance(groups: dict[str, list[int]]) -> pd.DataFrame:
        hidden = occlusion(encoder, images, rows, groups, fill, block[rows])
        if not found.tasks:
            return hidden
        task, c = found.tasks[0], found.results[0].penalty
        mixed = permutation(encoder, images, task, features, groups, c, balanced=p.balanced, seed=p.seed)
        return hidden.merge(mixed, on="group")

    bands, modalities = band_groups(recipe.bands, recipe.wavelengths, recipe.modalities)
    tables = {"importance_bands": importance(bands)}
    if modalities:
        tables["importance_modalities"] = importance(modalities)
    importance_bars(tables["importance_bands"], tables.get("importance_modalities"), drawn / "importance.png")
    if found.tasks:
        task = found.tasks[0]
        rows, labels, names = task.rows[task.test], task.labels[task.test], task.names
    else:
        rows, labels, names = test, np.zeros(len(test), int), ["test images"]
    unit = recipe.scale or 1.0
    ends = ([0.0] * len(recipe.bands), [1.0] * len(recipe.bands)) if recipe.mix else (recipe.low, recipe.high)
    low, high = (np.array(end) / unit for end in ends)
    tables["spectra"] = mean_spectra(images, rows, labels, names, low, high, seed=p.seed)
    quantity = "reflectance" if recipe.scale else "pixel value"
    spectra(tables["spectra"], recipe.wavelengths or None, drawn / "spectra.png", quantity)
    return tables


def metadata(table: pd.DataFrame) -> pd.DataFrame:
    """The label first, then the columns of metadata.csv, those of numbers as numbers; without split, group and
    repetitions."""
    meta = {c.removeprefix("meta."): table[c] for c in table if c.startswith("meta.") and c != "meta.split"}
    label = {c: v for c, v in meta.items() if v.equals(table["label"])} or {"label": table["label"]}
    others = {c: v for c, v in meta.items() if not v.equals(table["group"]) and c not in label}
    columns = {}
    for name, values in (label | others).items():
        numbers = pd.to_numeric(values, errors="coerce")
        columns[name] = numbers if values.notna().any() and numbers.notna().equals(values.notna()) else values
    return pd.DataFrame(columns)


def _task(
    task: Task, result: Result, features: np.ndarray, metrics: dict[str, Any], p: Evaluate, drawn: Path
) -> ClassAngles:
    """The figures of a task, and its geometry."""
    known, truth = ~task.test, task.labels[task.test]
    own = features[task.rows]
    angles = class_angles(own[task.test], truth, len(task.names), seed=p.seed)
    metrics["geometry"] = {
        "angle_within": angles.within,
        "angle_between": angles.between,
        "silhouette": angles.silhouette,
        **retrieval(own[known], task.labels[known], own[task.test], truth, seed=p.seed),
        **clusters(own[task.test], truth, p.seed),
    }
    metrics["geometry"] = {k: v if v == v else None for k, v in metrics["geometry"].items()}  # JSON has no NaN
    images, groups = metrics["images"], metrics["groups"]
    charts.score_bars(result.scores, TITLES, drawn / f"scores-{task.name}.png", images, groups)
    charts.confusion_matrix(truth, result.predicted["linear_probe"], task.names, drawn / f"confusion-{task.name}.png")
    charts.per_class_bars(result.per_class, drawn / f"per_class-{task.name}.png")
    return angles


def _main(
    task: Task,
    result: Result,
    angles: ClassAngles,
    features: np.ndarray,
    images: PackedImages,
    paths: np.ndarray,
    metrics: dict[str, Any],
    p: Evaluate,
    drawn: Path,
) -> dict[str, pd.DataFrame]:
    """Figures and tables of the main task alone."""
    rows, truth = task.rows[task.test], task.labels[task.test]
    counts = np.bincount(truth, minlength=len(task.names))
    charts.angle_heat_map(angles.matrix, task.names, counts, drawn / "angles.png")
    charts.reliability(result.shares.max(1), result.shares.argmax(1) == truth, drawn / "reliability.png")
    shown = sorted(np.argsort(-counts, kind="stable")[: min(EXAMPLES, np.count_nonzero(counts))])
    chosen = {task.names[c]: {kind: rows[at] for kind, at in examples(angles, truth, c).items()} for c in shown}
    names = np.full(len(features), "", dtype=object)
    names[task.rows] = np.array(task.names, dtype=object)[task.labels]
    pictures.class_examples(images, chosen, names.tolist(), drawn / "class_examples.png")
    far = outliers(angles, truth)
    path = paths[rows[far["row"].to_numpy(int)]]
    tables = {"outliers": far.assign(row=path, label=names[rows[far["row"]]]).rename(columns={"row": "path"})}
    if p.label_efficiency_seeds:
        curve = label_efficiency.curve(
            features[task.rows],
            task.labels,
            len(task.names),
            task.split,
            seeds=range(p.label_efficiency_seeds),
            c=result.penalty,
            svc_c=result.svc_penalty,
            knn_k=p.knn.k,
            temperature=p.knn.temperature,
        )
        tables["label_efficiency"] = label_efficiency.summarise(curve)
        metrics["labels_needed"] = label_efficiency.labels_needed(curve)
        whole = curve[curve["labels"] == curve["labels"].max()].groupby("classifier", sort=False)["accuracy"].first()
        charts.label_efficiency(tables["label_efficiency"], whole.to_dict(), drawn / "label_efficiency.png")
    return tables


def _scores(found: Assessment) -> dict[str, pd.DataFrame]:
    rows = [
        {"task": task.name, "classifier": name, "score": score, "value": value}
        | {bound: scores[f"{score}_{bound}"] for bound in ("low", "high")}
        for task, result in zip(found.tasks, found.results, strict=True)
        for name, scores in result.scores.items()
        for score, value in scores.items()
        if f"{score}_low" in scores
    ]
    each = [r.per_class.assign(task=t.name) for t, r in zip(found.tasks, found.results, strict=True)]
    first = ["task", "class", "images"]
    per_class = pd.concat(each)
    return {"scores": pd.DataFrame(rows), "per_class": per_class[first + [c for c in per_class if c not in first]]}


def predictions(found: Assessment, table: pd.DataFrame) -> pd.DataFrame:
    """A row per task and test image: task, path, sha256, block, truth, and the class each classifier says."""
    parts = [pd.DataFrame(columns=["path", "sha256", "block", "task", "truth"])] if not found.tasks else []
    for task, result in zip(found.tasks, found.results, strict=True):
        rows, names = task.rows[task.test], np.array(task.names, dtype=object)
        part = table.iloc[rows][["path", "sha256", "block"]].assign(task=task.name, truth=names[task.labels[task.test]])
        parts.append(part.assign(**{name: names[guess] for name, guess in result.predicted.items()}))
    return pd.concat(parts, ignore_index=True)


def _map(
    features: np.ndarray,
    images: PackedImages,
    table: pd.DataFrame,
    columns: pd.DataFrame,
    test: np.ndarray,
    seed: int,
    folder: Path,
) -> None:
    at, points = map.coordinates(features[test], seed)
    rows = test[at]
    places = pd.DataFrame({"path": table["path"].to_numpy()[rows], "umap_1": points[:, 0], "umap_2": points[:, 1]})
    places.to_parquet(folder / "umap.parquet")
    labels = table["label"].fillna("(no label)").to_numpy(dtype=str)[rows].tolist()
    labels = labels if len(set(labels)) > 1 else None

    def thumbnails(some: np.ndarray) -> np.ndarray:
        return pictures.thumbnails(images, rows[some])

    map.static_map(points, labels, None, folder / "figures/map.png")
    map.static_map(points, labels, thumbnails, folder / "figures/map_thumbnails.png")
    shown = pd.concat([columns, table[["path"]]], axis=1).iloc[rows]
    map.map_page(points, thumbnails, shown, folder / "map.html", "Embeddings of the test images", seed)


def _neighbours(
    features: np.ndarray, images: PackedImages, table: pd.DataFrame, labels: np.ndarray, seed: int, drawn: Path
) -> None:
    known, test = np.flatnonzero(table["split"] != "test"), np.flatnonzero(table["split"] == "test")
    queries = np.random.default_rng(seed).permutation(test)[:QUERIES]
    found = known[nearest(features[known], features[queries], NEAREST)]
    pictures.neighbours(images, queries, found, labels.tolist(), drawn / "neighbours.png")


def _saliency(
    encoder: Encoder, images: PackedImages, labels: np.ndarray, test: np.ndarray, seed: int, drawn: Path
) -> None:
    """Of one image of every class, or of any, where there are none."""
    order = np.random.default_rng(seed).permutation(test)
    first = pd.Series(labels[order]).drop_duplicates().index if len(set(labels[test])) > 1 else order[:SHOWN].argsort()
    rows = order[np.asarray(first)[:SHOWN]]
    packed = images.rows(rows)
    maps = saliency.occlusion(encoder, packed)
    pictures.saliency_grid(pictures.rgb(packed, images.recipe), maps, labels[rows].tolist(), drawn / "saliency.png")


def _named(pairs: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """Pairs of rows as pairs of paths, with their splits and labels."""
    path, split = table["path"].to_numpy(), table["split"].to_numpy()
    first, second = pairs["first"].to_numpy(int), pairs["second"].to_numpy(int)
    return pairs.assign(
        first=path[first],
        second=path[second],
        splits=[f"{a}, {b}" for a, b in zip(split[first], split[second], strict=True)],
    )
