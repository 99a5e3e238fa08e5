"""Time and memory of the evaluation, part by part: `python benchmarks/evaluate.py`; writes a table to results/.

probe: the linear probe chooses among seven regularisation strengths on 50,000 × 512 features of ten classes, compared
with one fit of scikit-learn at one strength. neighbours: kNN of 10,000 queries in 50,000 features, compared with only
the matrix product and top-k. measures: every measure on 10,000 × 512 features of 30 classes. efficiency: the
label-efficiency curve of 5,000 × 512 training features of 43 classes, and the same with the linear probe fitted as
closely as for its score. memory: time and peak memory of the process for measures on 1,000,000 × 512 features. Names of
parts as arguments run only these.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch
from common import RESULTS, reset_peak, resident, save
from sklearn.linear_model import LogisticRegression

from simtrail.evaluation import label_efficiency
from simtrail.evaluation.angles import class_angles, outliers
from simtrail.evaluation.classifiers import knn_probabilities
from simtrail.evaluation.geometry import effective_rank, feature_std, uniformity
from simtrail.evaluation.probe import C_VALUES, fit_logistic, linear_probe, svc_probe
from simtrail.evaluation.scores import scores_with_intervals
from simtrail.evaluation.structure import (
    clusters,
    dimensions,
    duplicates,
    explained_variance,
    map_coordinates,
    retrieval,
)

FIVE = np.array(["train", "train", "train", "val", "test"])


def embeddings(n: int, width: int, classes: int, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Features like those of a ReLU network (positive, of unequal scales) and class numbers; the classes overlap."""
    rng = np.random.default_rng(0)
    centres = 0.12 * rng.normal(size=(classes, width)).astype(np.float32)
    labels = rng.integers(0, classes, n)
    features = np.empty((n, width), np.float32)
    scale = noise * np.linspace(2, 0.1, width, dtype=np.float32)
    for rows in np.array_split(np.arange(n), max(1, n // 10_000)):
        features[rows] = np.maximum(centres[labels[rows]] + scale * rng.normal(size=(len(rows), width)), 0)
    return features, labels


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def probe(images: int = 50_000) -> dict[str, float]:
    features, labels = embeddings(images, 512, 10)
    split = FIVE[np.arange(images) % 5]
    train = split == "train"
    standard = (features[train] - features[train].mean(0)) / features[train].std(0)
    return {
        f"linear probe, {len(C_VALUES)} strengths and the last fit": seconds(
            lambda: linear_probe(features, labels, split, 10)
        ),
        "scikit-learn, one strength": seconds(
            lambda: LogisticRegression(C=1e-2, max_iter=10_000).fit(standard, labels[train])
        ),
    }


def neighbours() -> dict[str, float]:
    features, labels = embeddings(60_000, 512, 10)
    bank, queries = features[:50_000], features[50_000:]
    tensors = [torch.nn.functional.normalize(torch.from_numpy(v)) for v in (bank, queries)]

    def bare() -> None:
        for chunk in tensors[1].split(335):
            (chunk @ tensors[0].T).topk(10)

    times = [
        (seconds(lambda: knn_probabilities(bank, labels[:50_000], queries, 10, 0.07, 10)), seconds(bare))
        for _ in range(5)
    ]
    knn_time, bare_time = np.median(times, 0)
    return {
        "kNN, 10,000 queries of 50,000": knn_time,
        "bare product and top-k": bare_time,
        "ratio": knn_time / bare_time,
    }


def measures() -> dict[str, float]:
    features, labels = embeddings(10_000, 512, 30)
    split, group = FIVE[np.arange(10_000) % 5], np.arange(10_000) // 2
    bank, test = split != "test", split == "test"
    x, y, rng = features[test], labels[test], np.random.default_rng(0)
    sha = group.astype(str)
    columns = pd.DataFrame(
        {"class": labels.astype(str), "length": rng.normal(size=10_000), "sex": rng.choice(["f", "m"], 10_000)}
    )
    probabilities = linear_probe(features, labels, split, 30).probabilities
    settings = label_efficiency.Settings(c=1e-3, svc_c=1.0, knn_k=10, temperature=0.07)
    parts: dict[str, Callable[[], object]] = {
        "linear probe": lambda: linear_probe(features, labels, split, 30),
        "SVC": lambda: svc_probe(features, labels, split),
        "kNN": lambda: knn_probabilities(features[bank], labels[bank], x, 10, 0.07, 30),
        "intervals, 8 classifiers": lambda: [
            scores_with_intervals(y, probabilities.argmax(1), group[test], 30, 1000, 0, probabilities) for _ in range(8)
        ],
        "label-free": lambda: (effective_rank(x), uniformity(x), feature_std(x), explained_variance(x)),
        "angles, outliers": lambda: outliers(class_angles(x, y, 30), y),
        "retrieval": lambda: retrieval(features[bank], labels[bank], x, y),
        "k-means": lambda: clusters(x, y, 0),
        "duplicates": lambda: duplicates(features, sha, group),
        "dimensions": lambda: dimensions(x, columns[test]),
        "label efficiency": lambda: label_efficiency.curve(
            features, labels, 30, split, seeds=range(5), settings=settings
        ),
        "UMAP": lambda: map_coordinates(x, 0),
    }
    times = {name: seconds(part) for name, part in parts.items()}
    return times | {"all": sum(times.values())}


def efficiency() -> dict[str, float]:
    features, labels = embeddings(8334, 512, 43)
    split = FIVE[np.arange(len(labels)) % 5]
    c, (_, svc_c) = linear_probe(features, labels, split, 43).c, svc_probe(features, labels, split)
    settings = label_efficiency.Settings(c, svc_c, knn_k=10, temperature=0.07)
    results, curves = {}, []
    for name, tolerance in (("label efficiency", label_efficiency.COARSE), ("label efficiency, close fits", 1e-5)):
        label_efficiency.COARSE = tolerance
        start = time.perf_counter()
        curves.append(label_efficiency.curve(features, labels, 43, split, seeds=range(5), settings=settings))
        results[name] = time.perf_counter() - start
    means = [curve.groupby(["classifier", "draw", "labels"])["accuracy"].mean() for curve in curves]
    return results | {"largest difference of mean accuracies": float((means[0] - means[1]).abs().max())}


def memory() -> dict[str, float]:
    """Seconds and peak memory of the process for each measure; with features (2.05 GB), interpreter and libraries."""
    features, labels = embeddings(1_000_000, 512, 30)
    rows = {}
    for name, part in {
        "nothing": lambda: None,
        "label-free": lambda: (effective_rank(features), uniformity(features), feature_std(features)),
        "principal components": lambda: explained_variance(features),
        "angles": lambda: class_angles(features, labels, 30),
        "retrieval": lambda: retrieval(features, labels, features[:2000], labels[:2000]),
        "k-means": lambda: clusters(features, labels, 0),
        "duplicates": lambda: duplicates(features, np.arange(1_000_000).astype(str), labels),
        "kNN": lambda: knn_probabilities(features, labels, features[:1000], 10, 0.07, 30),
        "linear probe, one strength": lambda: next(fit_logistic(features, labels, 30, (1e-5,), tolerance=1e-4)),
    }.items():
        reset_peak()
        rows[f"{name}, s"] = seconds(part)
        rows[f"{name}, peak GB"] = resident("VmHWM") / 1e9
    return rows


def quick() -> list[dict[str, Any]]:
    """Rows for the table of all benchmarks."""
    near, fits = neighbours(), probe(10_000)
    ours, theirs = list(near.values())[:2]
    seven, one = fits.values()
    return [
        {
            "what": "kNN of 10,000 in 50,000",
            "value": 1 / ours,
            "unit": "per second",
            "beside": "only product and top-k",
            "other": 1 / theirs,
        },
        {
            "what": "a fit of the linear probe, 10,000 × 512",
            "value": (len(C_VALUES) + 1) / seven,
            "unit": "per second",
            "beside": "a fit of scikit-learn",
            "other": 1 / one,
        },
    ]


def main() -> None:
    """Runs each part in a separate process."""
    if sys.argv[-1].endswith(".csv"):  # this is such a process
        pd.Series(globals()[sys.argv[1]]()).to_csv(sys.argv[2], header=False)
        return
    selected = sys.argv[1:] or ["probe", "neighbours", "measures", "efficiency", "memory"]
    with tempfile.TemporaryDirectory() as folder:
        for name in selected:
            subprocess.run([sys.executable, __file__, name, f"{folder}/{name}.csv"], check=True)
        parts = [pd.read_csv(f"{folder}/{name}.csv", names=["what", "value"]).assign(part=name) for name in selected]
    table = pd.concat(parts)[["part", "what", "value"]].round(3)
    if sys.argv[1:]:  # keeps the results of the other parts
        before = pd.read_csv(RESULTS / "evaluate-cpu.csv")[table.columns]
        table = pd.concat([before[~before["part"].isin(selected)], table])
    save(table, "evaluate-cpu")


if __name__ == "__main__":
    main()
