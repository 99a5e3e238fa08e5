from __future__ import annotations

import pandas as pd

from simtrail.pipeline.headline import headline, write_plots

HISTORY = [
    {"epoch": 1, "loss": 4.0, "images_per_second": 100.0},
    {"epoch": 2, "loss": 3.0, "images_per_second": 140.0, "val_effective_rank": 5.0},
]
LABELLED = [row | ({"val_probe": 0.8, "val_knn": 0.7} if "val_effective_rank" in row else {}) for row in HISTORY]


def test_the_headline_has_a_few_flat_numbers_and_without_labels_those_that_need_none():
    probe = {"accuracy": 0.81234567, "accuracy_low": 0.7, "accuracy_high": 0.9, "balanced_accuracy": 0.75}
    scores = {"features": {"effective_rank": 12.3456789}, "tasks": {}}
    without = headline(scores, HISTORY, 2)
    assert without == {"effective_rank": 12.3457, "best_epoch": 2, "images_per_second": 120.0}
    scores["tasks"] = {"species": {"scores": {"linear_probe": probe, "knn": {"accuracy": 0.6}}}, "sex": {}}
    expected = {"linear_probe": 0.8123, "linear_probe_low": 0.7, "linear_probe_high": 0.9}
    assert headline(scores, HISTORY, 2) == expected | {"balanced_accuracy": 0.75, "knn": 0.6} | without


def test_plots_have_a_row_where_there_is_a_value(tmp_path):
    draws = {
        "classifier": ["linear_probe", "svc", "knn"] * 2,
        "draw": ["proportional"] * 6,
        "labels": [5] * 3 + [9] * 3,
    }
    table = pd.DataFrame(draws | {"mean": [0.1, 0.2, 0.3, 0.4, None, 0.6]})
    predictions = pd.DataFrame({"task": ["a", "b"], "truth": ["x", "y"], "linear_probe": ["z", "y"]})
    write_plots(LABELLED, {"label_efficiency": table}, predictions, tmp_path / "labels")

    def written(file: str) -> list[str]:
        return (tmp_path / file).read_text().splitlines()

    assert written("labels/accuracy.csv") == ["epoch,linear_probe,knn", "2,0.8,0.7"]
    assert written("labels/effective_rank.csv") == ["epoch,val_effective_rank", "2,5.0"]
    assert written("labels/label_efficiency.csv") == ["labels,linear_probe,knn", "5,0.1,0.3", "9,0.4,0.6"]
    assert written("labels/confusion.csv") == ["actual,predicted", "x,z"]
    write_plots(HISTORY, {}, pd.DataFrame(columns=["task", "truth"]), tmp_path / "none")
    assert [len(written(f"none/{name}.csv")) for name in ("accuracy", "label_efficiency", "confusion")] == [1, 1, 1]
    assert written("none/effective_rank.csv") == ["epoch,val_effective_rank", "2,5.0"]
