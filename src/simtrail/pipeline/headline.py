"""The few numbers and curves that DVC shows for every commit and experiment: metrics.json and the data of its plots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

History = list[dict[str, float]]
CLASSIFIERS = ["linear_probe", "knn"]  # the SVC is not fitted to many images


def headline(scores: dict[str, Any], history: History, kept_epoch: int) -> dict[str, float]:
    """The content of metrics.json: flat numbers; without labels only those that need none.

    Scores are of the main task on the test split: accuracies from 0 to 1, with the 95 % interval of the linear probe.
    `images_per_second` is the mean over all epochs of training.
    """
    numbers: dict[str, float] = {}
    for task in list(scores["tasks"].values())[:1]:
        probe = task["scores"]["linear_probe"]
        numbers |= {
            "linear_probe": probe["accuracy"],
            "linear_probe_low": probe["accuracy_low"],
            "linear_probe_high": probe["accuracy_high"],
            "balanced_accuracy": probe["balanced_accuracy"],
            "knn": task["scores"]["knn"]["accuracy"],
        }
    speed = sum(row["images_per_second"] for row in history) / len(history)
    numbers |= {"effective_rank": scores["features"]["effective_rank"], "best_epoch": kept_epoch}
    return {name: round(value, 4) for name, value in numbers.items()} | {"images_per_second": round(speed, 1)}


def write_plots(history: History, tables: dict[str, pd.DataFrame], predictions: pd.DataFrame, folder: Path) -> None:
    """Writes the data of `dvc plots` to a new folder, as CSV files.

    effective_rank and accuracy: validation by epoch. label_efficiency: mean test accuracy over proportional draws, by
    number of labels. confusion: the classes of the test images of the main task. Without labels, only the first has
    rows; an empty value would be drawn as 0.
    """
    curves = pd.DataFrame(history)
    accuracy = {"val_probe": "linear_probe", "val_knn": "knn"}
    efficiency = pd.DataFrame(columns=["labels", *CLASSIFIERS])
    if "label_efficiency" in tables:
        proportional = tables["label_efficiency"].query("draw == 'proportional'")
        efficiency = proportional.pivot(index="labels", columns="classifier", values="mean")[CLASSIFIERS].reset_index()
    main = predictions[predictions["task"] == predictions["task"].iloc[0]] if len(predictions) else predictions
    plots = {
        "effective_rank": curves.reindex(columns=["epoch", "val_effective_rank"]).dropna(),
        "accuracy": curves.reindex(columns=["epoch", *accuracy]).dropna().rename(columns=accuracy),
        "label_efficiency": efficiency,
        "confusion": main.reindex(columns=["truth", "linear_probe"]).set_axis(["actual", "predicted"], axis=1),
    }
    folder.mkdir()
    for name, table in plots.items():
        table.to_csv(folder / f"{name}.csv", index=False)
