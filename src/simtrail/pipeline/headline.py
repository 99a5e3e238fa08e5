"""The few numbers and curves that DVC shows for every commit and experiment: metrics.json and the data of its plots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

History = list[dict[str, float]]
CLASSIFIERS = ("linear_probe", "svc", "knn")


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
    """Writes the data of `dvc plots` to a new folder: validation.csv, label_efficiency.csv and confusion.csv.

    The rows are: epochs with a validation; numbers of labels, with the mean accuracies over proportional draws; test
    images of the main task. Without labels, the last two have no rows.
    """
    measures = {"val_probe": "linear_probe", "val_knn": "knn", "val_effective_rank": "effective_rank"}
    validation = pd.DataFrame(history, columns=["epoch", *measures]).rename(columns=measures)
    efficiency = pd.DataFrame(columns=["labels", *CLASSIFIERS])
    if "label_efficiency" in tables:
        proportional = tables["label_efficiency"].query("draw == 'proportional'")
        efficiency = proportional.pivot(index="labels", columns="classifier", values="mean").reset_index()
    main = predictions[predictions["task"] == predictions["task"].iloc[0]] if len(predictions) else predictions
    confusion = main.reindex(columns=["truth", "linear_probe"]).set_axis(["actual", "predicted"], axis=1)
    folder.mkdir()
    validation.dropna(subset="effective_rank").to_csv(folder / "validation.csv", index=False)
    efficiency.to_csv(folder / "label_efficiency.csv", index=False)
    confusion.to_csv(folder / "confusion.csv", index=False)
