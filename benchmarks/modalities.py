"""What RGB, ultraviolet and both tell of the demo's twin species: `python benchmarks/modalities.py [--seeds 0 1 2]`.

Runs in a project whose demo data are prepared (`dvc repro prepare`); a table in results/modalities.csv. Three pairs of
the demo's species share all that visible light shows and differ in ultraviolet alone. For every encoder: the test
accuracy of the linear probe on all species; inside the pairs, between the two of a pair; and, of encoders trained
across modalities, how often the RGB of an image finds its own UV among all test images, by their aligned features.
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
    """Accuracies with their intervals, and recalls."""
    _, table, _, images = prepared()
    task = main_task(table)
    assert task is not None
    features = features_of(encoder, images)
    shares = linear_probe(features[task.rows], task.labels, task.split, len(task.names)).probabilities
    truth, group = task.labels[task.test], task.group[task.test]
    row = _accuracy("accuracy", truth, shares.argmax(1), group)
    twin = {task.names.index(name): task.names.index(other) for a, b in TWINS for name, other in ((a, b), (b, a))}
    inside = np.flatnonzero([c in twin for c in truth])
    other = np.array([twin[c] for c in truth[inside]])
    right = shares[inside, truth[inside]] > shares[inside, other]
    row |= _accuracy("in pairs", truth[inside], np.where(right, truth[inside], other), group[inside])
    if encoder.modalities and encoder.config.terms.cross:
        test = np.flatnonzero(table["split"] == "test")
        rgb, uv = (encoder.features(iter([images.rows(test)]), name, aligned=True) for name in ("rgb", "uv"))
        found = retrieval_between(rgb, uv)
        row |= {"recall@1 rgb to uv": found["recall_at_1"], "recall@1 uv to rgb": found["recall_back_at_1"]}
        row["recall@1 by chance"] = found["chance_at_1"]
    return row


def _accuracy(name: str, truth: np.ndarray, guess: np.ndarray, group: np.ndarray) -> dict[str, float]:
    scores, _ = scores_with_intervals(truth, guess, group, int(max(truth.max(), guess.max())) + 1, 1000, 0)
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
            begun = time.monotonic()
            encoder = training_run(params.pretrain, "benchmark").fit().encoder
            rows.append({"encoder": name, "seed": seed, "seconds": time.monotonic() - begun} | measured(encoder))
            print(rows[-1], flush=True)
            pd.DataFrame(rows).round(3).to_csv(options.out, index=False)
    print(pd.DataFrame(rows).round(3).to_string(index=False))


if __name__ == "__main__":
    main()
