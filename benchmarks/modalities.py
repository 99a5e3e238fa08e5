"""How well RGB, ultraviolet and both distinguish species: `python benchmarks/modalities.py [--seeds 0 1 2]`.

Runs in a project whose demo data are prepared (`dvc repro prepare`); writes a table to results/modalities.csv. In the
demo, three pairs of species are equal in visible light and differ only in ultraviolet. For every encoder, the table has
the test accuracy of the linear probe on all species, and its accuracy when it chooses between the two species of a
pair. For encoders with the loss term cross, it has the recall at 1 between modalities: how often the RGB of an image is
nearest to the UV of the same image, among all test images, by aligned features.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd

from simtrail.data.demo import TWINS
from simtrail.evaluation.assess import features_of
from simtrail.evaluation.probe import linear_probe
from simtrail.evaluation.scores import scores_with_intervals
from simtrail.evaluation.structure import retrieval_between
from simtrail.evaluation.tasks import main_task
from simtrail.model.encoder import Encoder
from simtrail.params import changed, load_params
from simtrail.pipeline.training_run import training_run
from simtrail.pipeline.workspace import prepared

SEPARATE = {"pretrain.encoder.fusion": "separate"}
TERMS = ("fused", "intra", "cross")
VARIANTS = {
    "rgb alone": {"pretrain.encoder.modalities": ["rgb"]},
    "uv alone": {"pretrain.encoder.modalities": ["uv"]},
    "concat": {},
    "separate, intra": SEPARATE | {"pretrain.terms": dict(zip(TERMS, (1.0, 1.0, 0.0), strict=True))},
    "separate, intra and cross": SEPARATE | {"pretrain.terms": dict(zip(TERMS, (1.0, 1.0, 1.0), strict=True))},
    "concat and local": {"pretrain.terms.local": 1.0},
    "concat, 3 random bands a view": {"pretrain.augment.spectral.random_bands": {"p": 1.0, "n": 3}},
    "attention, intra and cross": {
        "pretrain.encoder.fusion": "attention",
        "pretrain.terms": dict(zip(TERMS, (1.0, 1.0, 1.0), strict=True)),
    },
}


def measured(encoder: Encoder) -> dict[str, float]:
    """Test accuracies with their intervals, and recalls."""
    _, table, _, images = prepared()
    task = main_task(table)
    assert task is not None
    features = features_of(encoder, images)
    probabilities = linear_probe(features[task.rows], task.labels, task.split, len(task.names)).probabilities
    truth, group = task.labels[task.test], task.group[task.test]
    row = _accuracy("accuracy", truth, probabilities.argmax(1), group)
    twin = {task.names.index(name): task.names.index(other) for a, b in TWINS for name, other in ((a, b), (b, a))}
    in_pairs = np.flatnonzero([c in twin for c in truth])
    other = np.array([twin[c] for c in truth[in_pairs]])
    correct = probabilities[in_pairs, truth[in_pairs]] > probabilities[in_pairs, other]
    row |= _accuracy("in pairs", truth[in_pairs], np.where(correct, truth[in_pairs], other), group[in_pairs])
    if encoder.modalities and encoder.config.terms.cross:
        test = np.flatnonzero(table["split"] == "test")
        rgb, uv = (encoder.features(iter([images.rows(test)]), name, aligned=True) for name in ("rgb", "uv"))
        recalls = retrieval_between(rgb, uv)
        row |= {"recall@1 rgb to uv": recalls["recall_at_1"], "recall@1 uv to rgb": recalls["recall_back_at_1"]}
        row["recall@1 by chance"] = recalls["chance_at_1"]
    return row


def _accuracy(name: str, truth: np.ndarray, predicted: np.ndarray, group: np.ndarray) -> dict[str, float]:
    scores, _ = scores_with_intervals(truth, predicted, group, int(max(truth.max(), predicted.max())) + 1, 1000, 0)
    return {name: scores["accuracy"], f"{name}, low": scores["accuracy_low"], f"{name}, high": scores["accuracy_high"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", default=list(VARIANTS), choices=VARIANTS, metavar="VARIANT")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results") / "modalities.csv")
    options = parser.parse_args()
    rows: list[dict[str, object]] = []
    for seed in options.seeds:
        for name in options.only:
            params = changed(load_params(), VARIANTS[name] | {"pretrain.seeds": [seed]}, "modalities.py")
            start = time.monotonic()
            encoder = training_run(params.pretrain, "benchmark").fit().encoder
            rows.append({"encoder": name, "seed": seed, "seconds": time.monotonic() - start} | measured(encoder))
            print(rows[-1], flush=True)
            pd.DataFrame(rows).round(3).to_csv(options.out, index=False)
    print(pd.DataFrame(rows).round(3).to_string(index=False))


if __name__ == "__main__":
    main()
