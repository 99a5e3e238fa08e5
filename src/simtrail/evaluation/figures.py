"""The figures of an evaluation, as PNG files."""

from __future__ import annotations

import warnings
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from simtrail.evaluation.scores import Scores, confusion

# Okabe and Ito's colours, told apart with every kind of colour vision
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
MARKERS = ("o", "^", "s", "D", "v", "P", "X")
plt.rcParams.update(
    {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "figure.constrained_layout.use": True}
)


def training_curve(history: list[dict[str, float]], path: Path) -> None:
    """Loss and contrastive top-1 against the epoch."""
    epochs = [row["epoch"] for row in history]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
    marker = "o" if len(epochs) < 15 else ""
    left.plot(epochs, [row["loss"] for row in history], color=COLOURS[0], marker=marker)
    left.set(xlabel="epoch", ylabel="NT-Xent loss")
    right.plot(epochs, [row["contrastive_top1"] for row in history], color=COLOURS[2], marker=marker)
    right.set(xlabel="epoch", ylabel="contrastive top-1", ylim=(0, 1))
    _write(figure, path)


def score_bars(scores: dict[str, Scores], titles: dict[str, str], path: Path, images: int, groups: int) -> None:
    """Accuracy and balanced accuracy of every classifier and floor, with 95 % intervals."""
    names = list(scores)[::-1]
    figure, axes = plt.subplots(1, 2, figsize=(9, 0.6 + 0.5 * len(names)), sharey=True)
    for axis, score in zip(axes, ("accuracy", "balanced_accuracy"), strict=True):
        values = np.array([[scores[n][score + bound] for bound in ("", "_low", "_high")] for n in names])
        errors = np.abs(values[:, 1:] - values[:, :1]).T
        colours = [COLOURS[0] if not titles[n].startswith("floor") else "#A0A0A0" for n in names]
        axis.barh(range(len(names)), values[:, 0], xerr=errors, color=colours, height=0.65, capsize=3, ecolor="#404040")
        for i, (value, _, high) in enumerate(values):
            axis.text(high + 0.015, i, f"{value:.3f}", va="center", fontsize=9)
        axis.set(xlim=(0, 1.1), xticks=np.arange(0, 1.01, 0.25), xlabel=score.replace("_", " "))
    axes[0].set_yticks(range(len(names)), [titles[n] for n in names])
    figure.suptitle(
        f"Test split: {images} images of {groups} groups; bars span 95 % of bootstraps over groups", fontsize=9
    )
    _write(figure, path)


def confusion_matrix(truth: np.ndarray, predicted: np.ndarray, names: list[str], path: Path) -> None:
    """Rows true, columns predicted, as shares of the true class."""
    matrix = confusion(truth, predicted, len(names))
    shown = np.flatnonzero(matrix.sum(1) + matrix.sum(0))
    matrix = matrix[np.ix_(shown, shown)]
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    n = len(shown)
    side = float(np.clip(0.32 * n + 2.2, 4, 16))
    figure, axis = plt.subplots(figsize=(side + 0.8, side))
    drawn = axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    labels = [names[i] for i in shown]
    size = 9 if n <= 30 else 5
    axis.set_xticks(range(n), labels, rotation=90, fontsize=size)
    axis.set_yticks(range(n), labels, fontsize=size)
    axis.set(xlabel="predicted (linear probe)", ylabel="true")
    if n <= 20:
        for i, j in zip(*np.nonzero(matrix), strict=True):
            axis.text(
                j,
                i,
                matrix[i, j],
                ha="center",
                va="center",
                fontsize=8,
                color="white" if share[i, j] > 0.5 else "black",
            )
    figure.colorbar(drawn, ax=axis, label="share of the true class", shrink=0.6)
    _write(figure, path)


def embedding_map(features: np.ndarray, labels: list[str] | None, seed: int, path: Path) -> np.ndarray:
    """The (N, 2) UMAP coordinates of (N, D) features, drawn to a file and coloured by label; seeded."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "n_jobs overridden by random_state": that is the point of a seed
        from umap import UMAP

        neighbours = min(15, len(features) - 1)
        points = UMAP(n_neighbors=neighbours, metric="cosine", random_state=seed).fit_transform(features)
    figure, axis = plt.subplots(figsize=(8, 5.5))
    if labels is None:
        axis.scatter(points[:, 0], points[:, 1], s=10, color=COLOURS[0], linewidths=0)
    else:
        text = np.array(labels)
        order, counts = np.unique(text, return_counts=True)
        named = order[np.argsort(-counts, kind="stable")][:28]
        if len(order) > len(named):
            other = ~np.isin(text, named)
            axis.scatter(
                points[other, 0],
                points[other, 1],
                s=8,
                color="#D0D0D0",
                linewidths=0,
                label=f"{len(order) - len(named)} other classes",
            )
        for i, name in enumerate(sorted(named)):
            here = text == name
            axis.scatter(
                points[here, 0],
                points[here, 1],
                s=14,
                color=COLOURS[i % 7],
                marker=MARKERS[i // 7 % 7],
                linewidths=0,
                label=name,
                alpha=0.85,
            )
        axis.legend(fontsize=8, markerscale=1.5, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    axis.set(xticks=[], yticks=[], xlabel="UMAP 1", ylabel="UMAP 2", title=f"Embeddings of {len(points)} test images")
    _write(figure, path)
    return points


def _write(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, metadata={"Software": None})
    plt.close(figure)
