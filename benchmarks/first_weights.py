"""What features are worth without training on these images, and what whitening does to them.

    python benchmarks/first_weights.py MODEL WEIGHTS PROJECT …

WEIGHTS are a file, or PROJECT/artifacts/pretrain, the encoder of a project. PROJECT is the folder of a prepared
project, such as those that benchmarks/out_of_the_box.py leaves. Prints the test accuracy of the linear probe and of kNN
for each of the features that `encoder.features: auto` chooses from, as they are and half-whitened (`pretrain.whiten`).
Adds rows to benchmarks/results/first_weights.csv.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import torch
import yaml
from common import add

from simtrail.evaluation.classifiers import knn_probabilities
from simtrail.evaluation.probe import linear_probe
from simtrail.evaluation.tasks import Task, main_task
from simtrail.model.encoder import Encoder
from simtrail.model.weights import load_weights
from simtrail.params import Evaluate, load_params
from simtrail.pipeline.training_run import encoder_config
from simtrail.pipeline.workspace import prepared
from simtrail.training.features import CHOICES


def main() -> None:
    model, weights, *projects = sys.argv[1], *(str(Path(text).resolve()) for text in sys.argv[2:])
    for project in projects:
        os.chdir(project)
        name, source = yaml.safe_load(Path("params.yaml").read_text())["data"]["name"], prepared()
        task = main_task(source.table)
        if task is None:
            print(f"{project}: no labels")
            continue
        settings = [f"data.name={name}", f"pretrain.encoder.model={model}", "pretrain.encoder.stem=standard"]
        torch.manual_seed(0)
        encoder = Encoder(encoder_config(load_params(settings=settings).pretrain, source))
        print("\n".join(load_weights(encoder, weights)))
        origin = Path(weights).name if Path(weights).is_file() else Path(weights).parent.parent.name
        for features in CHOICES:
            batches = np.array_split(task.rows, len(task.rows) // 256 + 1)
            judged = encoder.with_features(features)
            plain = judged.features(source.images.rows(rows) for rows in batches)
            judged.whiten(plain[task.split == "train"])
            white = judged.whitening(torch.from_numpy(plain)).numpy()
            scores = accuracies(plain, task, "") | accuracies(white, task, "_whitened")
            print(f"{name}, {features}: " + ", ".join(f"{k} {v:.3f}" for k, v in scores.items()), flush=True)
            row = {"case": f"{name} {origin} {features}", "set": name, "weights": origin, "features": str(features)}
            add({**row, **scores}, "first_weights", "case")


def accuracies(x: np.ndarray, task: Task, suffix: str) -> dict[str, float]:
    """The test accuracy of the linear probe and of kNN."""
    probe = linear_probe(x, task.labels, task.split, len(task.names)).probabilities
    bank, labels, knn = ~task.test, task.labels, Evaluate().knn
    near = knn_probabilities(x[bank], labels[bank], x[task.test], knn.k, knn.temperature, len(task.names))
    right = {"probe": probe, "knn": near}
    return {f"{kind}{suffix}": float((p.argmax(1) == labels[task.test]).mean()) for kind, p in right.items()}


if __name__ == "__main__":
    main()
