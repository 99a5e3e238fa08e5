"""Whether `simtrail classify` keeps its promise with 60 labels, and what suggested labels are worth beside random ones.

    python benchmarks/labels.py PROJECT [SEEDS]

PROJECT is a folder in which the pipeline has run, with labels. Promise: 60 test images, drawn at random, are labelled,
all other test images are predicted, with an error of 5 and 10 %. Rounds: 20 labelled training or validation images,
drawn at random, then 20 more in each round, at random or as suggested; scored on the test images. Adds rows to
benchmarks/results/labels.csv and draws labels-NAME.png.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import yaml

from simtrail.downstream.fitting import fit_head, next_to_label
from simtrail.evaluation.tasks import main_task

RESULTS = Path(__file__).parent / "results"
LABELLED, ERRORS = 60, (0.05, 0.1)
ROUND, ROUNDS = 20, 6


def main() -> None:
    project, seeds = Path(sys.argv[1]), range(int(sys.argv[2]) if len(sys.argv) > 2 else 5)
    name = yaml.safe_load((project / "params.yaml").read_text())["data"]["name"]
    table = pd.read_parquet(project / "artifacts/embed/embeddings.parquet")
    task = main_task(table)
    features = np.stack(table["vector"].to_list())[task.rows]
    labels, groups = np.array(task.names, dtype=object)[task.labels], task.group
    rows = [{"set": name, **row} for seed in seeds for row in promise(features, labels, groups, task.test, seed)]
    rows += [{"set": name, **row} for seed in seeds for row in rounds(features, labels, groups, task.test, seed)]
    file = RESULTS / "labels.csv"
    old = pd.read_csv(file) if file.exists() else pd.DataFrame(columns=["set"])
    pd.concat([old[old["set"] != name], pd.DataFrame(rows)]).to_csv(file, index=False, float_format="%.4g")
    found = pd.DataFrame(rows)
    kept = found[found["study"] == "promise"].groupby("promised")[["accuracy", "covered", "wrong", "wrong_of_used"]]
    print(kept.agg(["mean", "min", "max"]).round(3).to_string())
    curves = found[found["study"] == "rounds"]
    print(curves.groupby(["labels", "choice"])["accuracy"].agg(["mean", "std"]).unstack().round(3).to_string())
    draw(curves, RESULTS / f"labels-{name}.png")


def promise(features: np.ndarray, labels: np.ndarray, groups: np.ndarray, test: np.ndarray, seed: int) -> list[dict]:
    """Accuracy, coverage and error on the test images without label, for each promised error."""
    order = np.random.default_rng(seed).permutation(np.flatnonzero(test))
    learnt, others = order[:LABELLED], order[LABELLED:]
    others = others[~np.isin(groups[others], groups[learnt])]  # the twins of labelled images would be too easy
    rows = []
    for error in ERRORS:
        fitted = fit_head(features[learnt], labels[learnt], groups[learnt], error, seed=seed)
        p = fitted.head.probabilities(features[others])
        right = np.array(fitted.head.names)[p.argmax(1)] == labels[others]
        used = p.max(1) >= fitted.head.threshold
        rows.append(
            {
                "study": "promise",
                "seed": seed,
                "labels": LABELLED,
                "head": fitted.head.kind,
                "promised": error,
                "images": len(others),
                "accuracy": right.mean(),
                "covered": used.mean(),
                "wrong": (used & ~right).mean(),
                "wrong_of_used": (~right[used]).mean() if used.any() else np.nan,
            }
        )
    return rows


def rounds(features: np.ndarray, labels: np.ndarray, groups: np.ndarray, test: np.ndarray, seed: int) -> list[dict]:
    """Accuracy on the test images after each round of labels, chosen at random or as suggested."""
    pool, rows = np.flatnonzero(~test), []
    for choice in ("random", "suggested"):
        rng = np.random.default_rng(seed)
        learnt = rng.permutation(pool)[:ROUND]
        for _ in range(ROUNDS):
            head = fit_head(features[learnt], labels[learnt], groups[learnt], seed=seed).head
            predicted = np.array(head.names)[head.probabilities(features[test]).argmax(1)]
            accuracy = (predicted == labels[test]).mean()
            rows.append(
                {"study": "rounds", "seed": seed, "labels": len(learnt), "choice": choice, "accuracy": accuracy}
            )
            left = np.setdiff1d(pool, learnt)
            more = rng.permutation(len(left))[:ROUND]
            if choice == "suggested":
                more = next_to_label(head.doubt(features[left]), features[left], ROUND, seed)
            learnt = np.concatenate([learnt, left[more]])
    return rows


def draw(curves: pd.DataFrame, path: Path) -> None:
    figure, axes = plt.subplots(figsize=(5, 3.4), layout="constrained")
    for (choice, rows), colour, marker in zip(curves.groupby("choice"), ("#5d6b79", "#0a5c9e"), "os", strict=True):
        of = rows.groupby("labels")["accuracy"]
        axes.plot(of.mean().index, of.mean(), color=colour, marker=marker, label=f"{choice} labels")
        axes.fill_between(of.mean().index, of.min(), of.max(), color=colour, alpha=0.15)
    axes.set(xlabel="labelled images", ylabel="accuracy on test images")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
