"""What settings are worth: trains without and with them, and compares the accuracy on the same test images.

    python benchmarks/settings.py PROJECT SEEDS OPTION …

PROJECT is the folder of a project that is prepared and planned, such as those that benchmarks/out_of_the_box.py leaves;
all other settings are those of its plan. SEEDS are numbers, such as 0,1,2. An OPTION is NAME:KEY=VALUE,…, and
NAME:steps=0.6 shortens a training, to compare at equal processor time (see benchmarks/options.py). Prints the means
over the seeds of linear probe and kNN, and the differences to the plan alone with paired intervals; adds them to
benchmarks/results/settings.csv. Runs on a GPU if there is one, without any of the MLOps packages.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from common import add

from simtrail.evaluation.classifiers import knn_probabilities
from simtrail.evaluation.difference import paired
from simtrail.evaluation.probe import linear_probe
from simtrail.evaluation.tasks import main_task
from simtrail.params import Evaluate, changed, load_params
from simtrail.pipeline import workspace as ws
from simtrail.pipeline.training_run import training_run
from simtrail.training.loop import plan_steps


def main() -> None:
    project, seeds, options = Path(sys.argv[1]).resolve(), [int(n) for n in sys.argv[2].split(",")], sys.argv[3:]
    os.chdir(project)
    plain = np.mean([hits({}, 1.0, seed) for seed in seeds], 0)
    for option in options:
        name, _, text = option.partition(":")
        settings = {
            key: yaml.safe_load(value)
            for key, value in (part.split("=", 1) for part in re.split(r",(?=[\w.]+=)", text))
        }
        share = float(settings.pop("steps", 1.0))
        with_it = np.mean([hits(settings, share, seed) for seed in seeds], 0)
        row = {"set": project.name, "option": name, "seeds": len(seeds), **dict(compared(plain, with_it))}
        add({"which": f"{project.name}, {name}", **row}, "settings", "which")


def hits(settings: dict[str, Any], share: float, seed: int) -> np.ndarray:
    """(N, 2): whether the linear probe and kNN are correct on each of the N test images."""
    params = load_params(settings=["data.name=any"])
    source, plan = ws.prepared(), ws.read_json(ws.PLAN, "plan")["values"]
    params = changed(params, {**plan, "pretrain.seeds": [seed], **settings}, "benchmark")
    steps = round(share * plan_steps(len(source.pretraining_rows("train")), params.pretrain)[1])
    encoder = (
        training_run(changed(params, {"pretrain.max_steps": steps}, "benchmark").pretrain, "settings").fit().encoder
    )
    task, p = main_task(source.table), Evaluate().knn
    assert task is not None
    x = encoder.features(source.images.rows(part) for part in np.array_split(task.rows, len(task.rows) // 256 + 1))
    near = knn_probabilities(x[~task.test], task.labels[~task.test], x[task.test], p.k, p.temperature, len(task.names))
    probe = linear_probe(x, task.labels, task.split, len(task.names)).probabilities
    return np.stack([each.argmax(1) == task.labels[task.test] for each in (probe, near)], 1)


def compared(plain: np.ndarray, with_it: np.ndarray) -> Iterator[tuple[str, float]]:
    """The mean accuracies, and the differences with the ends of their intervals."""
    table = ws.prepared().table
    task = main_task(table)
    assert task is not None
    gain = paired(plain, with_it, table["block"].to_numpy()[task.rows[task.test]])
    for i, kind in enumerate(("probe", "knn")):
        yield f"{kind}_plain", round(float(plain[:, i].mean()), 3)
        yield kind, round(float(with_it[:, i].mean()), 3)
        for name, value in gain._asdict().items():
            yield f"{kind}_gain" if name == "value" else f"{kind}_gain_{name}", round(float(value[i]), 3)


if __name__ == "__main__":
    main()
