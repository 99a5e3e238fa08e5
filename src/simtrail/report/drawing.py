"""The figures and the map of an evaluation, drawn from its metrics, tables and evidence."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from simtrail.data.pack import PackedImages
from simtrail.evaluation.evidence import EXAMPLE_ROLES, metadata
from simtrail.evaluation.names import TITLES
from simtrail.report.figures import charts, map, pictures
from simtrail.report.figures.spectra import importance_bars, spectra
from simtrail.report.map import map_page


@dataclass(frozen=True)
class Evaluation:
    """The results of the evaluate stage, with the images and the split table that they were computed from."""

    metrics: dict[str, Any]
    tables: dict[str, pd.DataFrame]  # without empty tables
    predictions: pd.DataFrame
    map: pd.DataFrame
    arrays: dict[str, np.ndarray]  # as in evaluation.evidence.Evidence
    images: PackedImages
    table: pd.DataFrame

    @cached_property
    def labels(self) -> list[str]:
        """The label of every packed image, '' for an image without a label."""
        return self.table["label"].fillna("").astype(str).to_list()

    @cached_property
    def main(self) -> str | None:
        """The name of the main task; None without labels."""
        return next(iter(self.metrics["tasks"]), None)

    def classes(self, task: str) -> pd.DataFrame:
        """The scores of each class of a task, in the order of the class numbers."""
        table = self.tables["per_class"]
        return table[table["task"] == task].reset_index(drop=True)


def draw(evaluation: Evaluation, seed: int, figures: Path, map_file: Path) -> None:
    """Writes every figure as PNG and SVG to a folder, and the interactive map to a file."""
    tables, arrays = evaluation.tables, evaluation.arrays
    charts.explained_variance(arrays["explained_variance"], figures / "explained_variance.png")
    if "dimensions" in tables:
        charts.dimension_relations(tables["dimensions"], figures / "dimensions.png")
    _draw_maps(evaluation, seed, figures, map_file)
    for task in evaluation.metrics["tasks"]:
        _draw_task(evaluation, task, figures)
    if evaluation.main is not None:
        _draw_main_task(evaluation, evaluation.main, figures)
    if "fine_tune" in tables:
        charts.fine_tune_bars(tables["fine_tune"], figures / "fine_tune.png")
    if "importance_bands" in tables:
        modalities = tables.get("importance_modalities")
        importance_bars(tables["importance_bands"], modalities, figures / "importance.png")
    if "suspects" in tables:
        _draw_suspects(evaluation, figures / "suspects.png")
    if "spectra" in tables:
        recipe = evaluation.images.recipe
        spectra(tables["spectra"], recipe.wavelengths or None, figures / "spectra.png", recipe.quantity)
    queries, nearest = arrays["neighbour_queries"], arrays["neighbours"]
    pictures.neighbours(evaluation.images, queries, nearest, evaluation.labels, figures / "neighbours.png")
    packed = evaluation.images.rows(arrays["saliency_rows"])
    titles = [evaluation.labels[row] for row in arrays["saliency_rows"]]
    display = pictures.rgb(packed, evaluation.images.recipe)
    pictures.saliency_grid(display, arrays["saliency"], titles, figures / "saliency.png")


def _draw_task(evaluation: Evaluation, task: str, figures: Path) -> None:
    metrics, classes = evaluation.metrics["tasks"][task], evaluation.classes(task)
    predictions, names = evaluation.predictions[evaluation.predictions["task"] == task], classes["class"].to_list()
    truth, predicted = (_class_numbers(predictions[column], names) for column in ("truth", "linear_probe"))
    path = figures / f"scores-{task}.png"
    charts.score_bars(metrics["scores"], TITLES, path, metrics["images"], metrics["groups"])
    charts.confusion_matrix(truth, predicted, names, figures / f"confusion-{task}.png")
    charts.per_class_bars(classes, figures / f"per_class-{task}.png")


def _draw_main_task(evaluation: Evaluation, task: str, figures: Path) -> None:
    """Draws the figures that only the main task has."""
    tables, arrays, classes = evaluation.tables, evaluation.arrays, evaluation.classes(task)
    predictions, names = evaluation.predictions[evaluation.predictions["task"] == task], classes["class"].to_list()
    charts.angle_heat_map(arrays["angles"], names, classes["images"].to_numpy(), figures / "angles.png")
    correct = (predictions["truth"] == predictions["linear_probe"]).to_numpy()
    charts.reliability(predictions["confidence"].to_numpy(), correct, figures / "reliability.png")
    examples = {
        names[c]: {role: rows[rows >= 0] for role, rows in zip(EXAMPLE_ROLES, class_rows, strict=True)}
        for c, class_rows in zip(arrays["example_classes"], arrays["example_rows"], strict=True)
    }
    pictures.class_examples(evaluation.images, examples, evaluation.labels, figures / "class_examples.png")
    if "label_efficiency" in tables:
        summary = tables["label_efficiency"]
        full_accuracy = (
            summary[summary["labels"] == summary["labels"].max()].groupby("classifier", sort=False)["mean"].first()
        )
        charts.label_efficiency(summary, full_accuracy.to_dict(), figures / "label_efficiency.png")


def _draw_suspects(evaluation: Evaluation, path: Path) -> None:
    """Draws the images among the suspects; there may be none, since groups and classes are suspects too."""
    images = evaluation.tables["suspects"].dropna(subset="path").head(pictures.SUSPECTS)
    if images.empty:
        return
    rows = pd.Index(evaluation.table["path"]).get_indexer(images["path"])
    captions = [
        (
            row.path,
            "no label" if pd.isna(row.given) else row.given,
            row.kind if pd.isna(row.suggested) else f"→ {row.suggested}",
        )
        for row in images.itertuples()
    ]
    pictures.suspects(evaluation.images, rows, captions, path)


def _draw_maps(evaluation: Evaluation, seed: int, figures: Path, map_file: Path) -> None:
    table, points = evaluation.table, evaluation.map[["umap_1", "umap_2"]].to_numpy()
    rows = pd.Index(table["path"]).get_indexer(evaluation.map["path"])
    labels = table["label"].fillna("(no label)").to_numpy(dtype=str)[rows].tolist()
    labels = labels if len(set(labels)) > 1 else None

    def thumbnails(indices: np.ndarray) -> np.ndarray:
        return pictures.thumbnails(evaluation.images, rows[indices])

    map.static_map(points, labels, None, figures / "map.png")
    map.static_map(points, labels, thumbnails, figures / "map_thumbnails.png")
    columns = pd.concat([metadata(table), table[["path"]]], axis=1).iloc[rows]
    map_page(points, thumbnails, columns, map_file, "Embeddings of the test images", seed)


def _class_numbers(values: pd.Series, names: list[str]) -> np.ndarray:
    return pd.Categorical(values, names).codes.astype(int)
