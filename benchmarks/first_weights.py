"""What features are worth before any training: those of a network with the weights of a file.

    python benchmarks/first_weights.py MODEL FILE PROJECT …

PROJECT is the folder of a prepared project, such as those that benchmarks/out_of_the_box.py leaves. Prints the test
accuracy of the linear probe and of kNN for each of the features that `encoder.features: auto` chooses from.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import torch
import yaml

from simtrail.evaluation.classifiers import knn_probabilities
from simtrail.evaluation.probe import linear_probe
from simtrail.evaluation.tasks import main_task
from simtrail.model.encoder import Encoder
from simtrail.model.weights import load_weights
from simtrail.params import Evaluate, load_params
from simtrail.pipeline.training_run import encoder_config
from simtrail.pipeline.workspace import prepared
from simtrail.training.features import CHOICES


def main() -> None:
    model, file, projects = (
        sys.argv[1],
        str(Path(sys.argv[2]).resolve()),
        [Path(text).resolve() for text in sys.argv[3:]],
    )
    for project in projects:
        os.chdir(project)
        name, source = yaml.safe_load(Path("params.yaml").read_text())["data"]["name"], prepared()
        task, knn = main_task(source.table), Evaluate().knn
        if task is None:
            print(f"{project.name}: no labels")
            continue
        settings = [f"data.name={name}", f"pretrain.encoder.model={model}", "pretrain.encoder.stem=standard"]
        torch.manual_seed(0)
        encoder = Encoder(encoder_config(load_params(settings=settings).pretrain, source))
        print("\n".join(load_weights(encoder, file)))
        for features in CHOICES:
            batches = np.array_split(task.rows, len(task.rows) // 256 + 1)
            x = encoder.with_features(features).features(source.images.rows(rows) for rows in batches)
            probe = linear_probe(x, task.labels, task.split, len(task.names)).probabilities
            bank, labels = ~task.test, task.labels
            near = knn_probabilities(x[bank], labels[bank], x[task.test], knn.k, knn.temperature, len(task.names))
            accuracy = [(each.argmax(1) == labels[task.test]).mean() for each in (probe, near)]
            print(f"{project.name}, {features}: linear probe {accuracy[0]:.3f}, kNN {accuracy[1]:.3f}", flush=True)


if __name__ == "__main__":
    main()
