"""The evidence behind the scores: tables, the map and the data of all figures; figures are drawn elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from simtrail.evaluation import label_efficiency, saliency
from simtrail.evaluation.angles import ClassAngles, class_angles, examples, outliers
from simtrail.evaluation.assess import Assessment, Embedded
from simtrail.evaluation.bands import band_groups, mean_spectra, occlusion, permutation
from simtrail.evaluation.classifiers import nearest
from simtrail.evaluation.structure import (
    clusters,
    components_needed,
    dimensions,
    duplicates,
    explained_variance,
    map_coordinates,
    retrieval,
)
from simtrail.evaluation.suspects import suspects
from simtrail.evaluation.tasks import Result, Task
from simtrail.params import Evaluate

QUERIES, NEIGHBOURS = 6, 5
SALIENCY_IMAGES = 12
OCCLUDED = 500  # images whose bands are hidden
EXAMPLE_CLASSES = 30  # the most frequent
EXAMPLES = 5  # images of each role
EXAMPLE_ROLES = ("nearest", "farthest", "others")  # the keys of angles.examples


@dataclass
class Evidence:
    """The results of an evaluation besides its metrics. Images are given by their rows in the split table.

    `arrays` has explained_variance (D,), saliency (n, H, W) of the images saliency_rows, and neighbours (Q, K) of the
    images neighbour_queries. With labels, it also has, for the main task: angles (C, C), example_classes (E,) as
    class numbers, and example_rows (E, 3, 5), where −1 means no image.
    """

    tables: dict[str, pd.DataFrame]
    predictions: pd.DataFrame  # a row per task and test image
    map: pd.DataFrame  # path, umap_1, umap_2
    arrays: dict[str, np.ndarray]

    def save(self, folder: Path) -> None:
        """Writes tables/NAME.csv, predictions.parquet, umap.parquet and evidence.npz."""
        (folder / "tables").mkdir()
        for name, table in self.tables.items():
            table.to_csv(folder / f"tables/{name}.csv", index=False)
        self.predictions.to_parquet(folder / "predictions.parquet")
        self.map.to_parquet(folder / "umap.parquet")
        np.savez(folder / "evidence.npz", **self.arrays)  # type: ignore[arg-type]


def gather(
    assessment: Assessment, embedded: Embedded, p: Evaluate, log: Callable[[str], None] = lambda line: None
) -> Evidence:
    """The evidence of the test split (duplicates, suspects: all images); adds measures to the assessment's metrics.

    `log` gets a line for each step.
    """
    log("duplicates, dimensions, neighbours, saliency")
    features, table, test, metrics = embedded.features, embedded.table, embedded.test, assessment.metrics
    cumulative = explained_variance(features[test])
    metrics["features"] |= {f"components_{n}": components_needed(cumulative, n / 100) for n in (90, 95, 99)}
    tables = {
        "duplicates": _duplicates(embedded, p.seed),
        "dimensions": dimensions(features[test], metadata(table).iloc[test]),
    }
    arrays: dict[str, Any] = {
        "explained_variance": cumulative,
        **_neighbours(embedded, p.seed),
        **_saliency(embedded, p.seed),
    }
    for task, result in zip(assessment.tasks, assessment.results, strict=True):
        task_features = features[task.rows]
        log(f"{task.name}: angles, retrieval, clusters")
        angles = class_angles(task_features[task.test], task.labels[task.test], len(task.names), seed=p.seed)
        metrics["tasks"][task.name]["geometry"] = _geometry(task, task_features, angles, p.seed)
        if task is assessment.tasks[0]:
            tables["outliers"] = _outliers(task, angles, table)
            arrays |= {"angles": angles.matrix, **_examples(task, angles)}
            if p.label_efficiency_seeds:
                log(f"{task.name}: label efficiency")
                curve = _label_efficiency(task, result, task_features, p)
                tables["label_efficiency"] = label_efficiency.summarise(curve)
                metrics["tasks"][task.name]["labels_needed"] = label_efficiency.labels_needed(curve)
    if assessment.tasks:
        tables |= _score_tables(assessment)
    log("suspected errors in the data")
    main = (assessment.tasks[0], assessment.results[0]) if assessment.tasks else None
    tables["suspects"], metrics["suspects"] = suspects(table, features, main, p)
    recipe = embedded.images.recipe
    if len(recipe.bands) > 3 or len(recipe.modalities) > 1:
        log("importance and spectra of the bands")
        tables |= _band_tables(assessment, embedded, p)
    log("map")
    return Evidence(tables, predictions(assessment, table), _map(embedded, p.seed), arrays)


def predictions(assessment: Assessment, table: pd.DataFrame) -> pd.DataFrame:
    """A row per task and test image: path, sha256, block, task, truth, the class from each classifier, confidence.

    confidence is the probability that the linear probe gives to its prediction.
    """
    parts = [pd.DataFrame(columns=["path", "sha256", "block", "task", "truth"])] if not assessment.tasks else []
    for task, result in zip(assessment.tasks, assessment.results, strict=True):
        rows, names = task.rows[task.test], np.array(task.names, dtype=object)
        part = table.iloc[rows][["path", "sha256", "block"]].assign(task=task.name, truth=names[task.labels[task.test]])
        part = part.assign(**{name: names[predicted] for name, predicted in result.predicted.items()})
        parts.append(part.assign(confidence=result.probabilities.max(1)))
    return pd.concat(parts, ignore_index=True)


def metadata(table: pd.DataFrame) -> pd.DataFrame:
    """The label and then the other columns of metadata.csv, numeric columns as numbers.

    The split, the group and copies of the label are left out.
    """
    meta = {c.removeprefix("meta."): table[c] for c in table if c.startswith("meta.") and c != "meta.split"}
    label = {c: v for c, v in meta.items() if v.equals(table["label"])} or {"label": table["label"]}
    rest = {c: v for c, v in meta.items() if not v.equals(table["group"]) and c not in label}
    columns = {}
    for name, values in (label | rest).items():
        numbers = pd.to_numeric(values, errors="coerce")
        columns[name] = numbers if values.notna().any() and numbers.notna().equals(values.notna()) else values
    return pd.DataFrame(columns)


def _geometry(task: Task, features: np.ndarray, angles: ClassAngles, seed: int) -> dict[str, float | None]:
    not_test, labels = ~task.test, task.labels
    measures = {
        "angle_within": angles.within,
        "angle_between": angles.between,
        "silhouette": angles.silhouette,
        **retrieval(features[not_test], labels[not_test], features[task.test], labels[task.test], seed=seed),
        **clusters(features[task.test], labels[task.test], seed),
    }
    return {name: value if value == value else None for name, value in measures.items()}  # JSON has no NaN


def _outliers(task: Task, angles: ClassAngles, table: pd.DataFrame) -> pd.DataFrame:
    """The images far from their class, with path and class name."""
    far = outliers(angles, task.labels[task.test])
    rows = task.rows[task.test][far["row"].to_numpy(int)]
    names = np.array(task.names, dtype=object)[far["label"].to_numpy(int)]
    return far.assign(row=table["path"].to_numpy()[rows], label=names).rename(columns={"row": "path"})


def _examples(task: Task, angles: ClassAngles) -> dict[str, np.ndarray]:
    """The rows of example images for the most frequent classes, in the order of the classes."""
    rows, labels = task.rows[task.test], task.labels[task.test]
    counts = np.bincount(labels, minlength=len(task.names))
    shown = np.sort(np.argsort(-counts, kind="stable")[: min(EXAMPLE_CLASSES, np.count_nonzero(counts))])
    example_rows = np.full((len(shown), len(EXAMPLE_ROLES), EXAMPLES), -1)
    for i, c in enumerate(shown):
        by_role = examples(angles, labels, c, EXAMPLES)
        for j, role in enumerate(EXAMPLE_ROLES):
            example_rows[i, j, : len(by_role[role])] = rows[by_role[role]]
    return {"example_classes": shown, "example_rows": example_rows}


def _label_efficiency(task: Task, result: Result, features: np.ndarray, p: Evaluate) -> pd.DataFrame:
    settings = label_efficiency.Settings(result.c, result.svc_c, p.knn.k, p.knn.temperature)
    seeds = range(p.label_efficiency_seeds)
    return label_efficiency.curve(features, task.labels, len(task.names), task.split, seeds=seeds, settings=settings)


def _score_tables(assessment: Assessment) -> dict[str, pd.DataFrame]:
    """The table of all scores with their intervals, and the table of the scores of each class."""
    pairs = list(zip(assessment.tasks, assessment.results, strict=True))
    rows = [
        {"task": task.name, "classifier": name, "score": score, "value": value}
        | {bound: scores[f"{score}_{bound}"] for bound in ("low", "high")}
        for task, result in pairs
        for name, scores in result.scores.items()
        for score, value in scores.items()
        if f"{score}_low" in scores
    ]
    per_class = pd.concat([result.per_class.assign(task=task.name) for task, result in pairs])
    first = ["task", "class", "images"]
    return {"scores": pd.DataFrame(rows), "per_class": per_class[first + [c for c in per_class if c not in first]]}


def _band_tables(assessment: Assessment, embedded: Embedded, p: Evaluate) -> dict[str, pd.DataFrame]:
    """The importance of bands and modalities to the encoder, and the spectra of the classes."""
    encoder, images, test = embedded.encoder, embedded.images, embedded.test
    recipe, block = images.recipe, embedded.table["block"].to_numpy()
    fill = np.array(encoder.config.mean) * recipe.full_scale
    hidden_rows = np.random.default_rng(p.seed).permutation(test)[:OCCLUDED]

    def importance(groups: dict[str, list[int]]) -> pd.DataFrame:
        angles = occlusion(encoder, images, hidden_rows, groups, fill, block[hidden_rows])
        if not assessment.tasks:
            return angles
        task, c = assessment.tasks[0], assessment.results[0].c
        drops = permutation(embedded, task, groups, c, balanced=p.balanced, seed=p.seed)
        return angles.merge(drops, on="group")

    bands, modalities = band_groups(recipe.bands, recipe.wavelengths, recipe.modalities)
    tables = {"importance_bands": importance(bands)}
    if modalities:
        tables["importance_modalities"] = importance(modalities)
    if assessment.tasks:
        task = assessment.tasks[0]
        rows, labels, names = task.rows[task.test], task.labels[task.test], task.names
    else:
        rows, labels, names = test, np.zeros(len(test), int), ["test images"]
    return tables | {"spectra": mean_spectra(images, rows, labels, names, recipe.bounds, seed=p.seed)}


def _map(embedded: Embedded, seed: int) -> pd.DataFrame:
    chosen, points = map_coordinates(embedded.features[embedded.test], seed)
    paths = embedded.table["path"].to_numpy()[embedded.test[chosen]]
    return pd.DataFrame({"path": paths, "umap_1": points[:, 0], "umap_2": points[:, 1]})


def _neighbours(embedded: Embedded, seed: int) -> dict[str, np.ndarray]:
    """A few test images, and for each of them the nearest images of the other splits."""
    features, bank = embedded.features, np.flatnonzero(embedded.table["split"] != "test")
    queries = np.random.default_rng(seed).permutation(embedded.test)[:QUERIES]
    return {"neighbour_queries": queries, "neighbours": bank[nearest(features[bank], features[queries], NEIGHBOURS)]}


def _saliency(embedded: Embedded, seed: int) -> dict[str, np.ndarray]:
    """Saliency maps of one image of each class or, without classes, of random images; at most `SALIENCY_IMAGES`."""
    labels, test = embedded.table["label"].fillna("").to_numpy(dtype=str), embedded.test
    order = np.random.default_rng(seed).permutation(test)
    one_per_class = len(set(labels[test])) > 1
    first = pd.Series(labels[order]).drop_duplicates().index if one_per_class else order[:SALIENCY_IMAGES].argsort()
    rows = order[np.asarray(first)[:SALIENCY_IMAGES]]
    return {"saliency_rows": rows, "saliency": saliency.occlusion(embedded.encoder, embedded.images.rows(rows))}


def _duplicates(embedded: Embedded, seed: int) -> pd.DataFrame:
    """Pairs of images that may be the same image, with their paths and splits."""
    table = embedded.table
    pairs = duplicates(embedded.features, table["sha256"].to_numpy(), table["block"].to_numpy(), seed=seed)
    path, split = table["path"].to_numpy(), table["split"].to_numpy()
    first, second = pairs["first"].to_numpy(int), pairs["second"].to_numpy(int)
    return pairs.assign(
        first=path[first],
        second=path[second],
        splits=[f"{a}, {b}" for a, b in zip(split[first], split[second], strict=True)],
    )
