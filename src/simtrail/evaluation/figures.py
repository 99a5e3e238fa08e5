"""The figures of an evaluation, as PNG files."""

from __future__ import annotations

import warnings
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure

from simtrail.augment.views import TwoViews
from simtrail.data.loader import to_unit
from simtrail.data.pack import PackedImages
from simtrail.evaluation.scores import Scores, confusion

# Okabe and Ito's colours, told apart with every kind of colour vision
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
MARKERS = ("o", "^", "s", "D", "v", "P", "X")
plt.rcParams.update(
    {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "figure.constrained_layout.use": True}
)


def training_curve(history: list[dict[str, float]], kept: int, path: Path) -> None:
    """The loss, and the validation measures with the epoch whose weights are kept."""
    epochs = [row["epoch"] for row in history]
    looks = [row for row in history if "val_feature_std" in row]
    shares = {"contrastive top-1, training": ([*epochs], [row["contrastive_top1"] for row in history])}
    for name in ("knn", "probe", "contrastive_top1"):
        if looks and f"val_{name}" in looks[0]:
            title = {"knn": "kNN", "probe": "linear probe", "contrastive_top1": "contrastive top-1"}[
                name
            ] + ", validation"
            shares[title] = ([row["epoch"] for row in looks], [row[f"val_{name}"] for row in looks])
    columns = 3 if looks else 2
    figure, axes = plt.subplots(1, columns, figsize=(4.2 * columns, 3.2))
    few = "o" if len(epochs) < 15 else ""
    axes[0].plot(epochs, [row["loss"] for row in history], color=COLOURS[0], marker=few)
    axes[0].set(xlabel="epoch", ylabel="loss")
    for (title, (x, y)), colour, marker in zip(shares.items(), COLOURS[1:], MARKERS, strict=False):
        axes[1].plot(x, y, color=colour, label=title, marker=marker if len(x) < 15 else "", markersize=4)
    axes[1].set(xlabel="epoch", ylabel="share of the images", ylim=(0, 1))
    axes[1].legend(fontsize=7, frameon=False, ncol=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    if looks:
        x = [row["epoch"] for row in looks]
        axes[2].plot(
            x, [row["val_effective_rank"] for row in looks], color=COLOURS[5], marker="o" if len(x) < 15 else ""
        )
        axes[2].set(xlabel="epoch", ylabel="effective rank, validation")
        axes[2].set_ylim(0, 1.1 * axes[2].get_ylim()[1])
        for axis in axes:
            axis.axvline(kept, color="#808080", linewidth=0.8, linestyle=":")
            axis.xaxis.get_major_locator().set_params(integer=True)
        axes[0].set_title(f"dotted: epoch {kept}, whose weights are kept", fontsize=9, loc="left")
    _write(figure, path)


def view_grid(images: PackedImages, rows: np.ndarray, two_views: TwoViews, seed: int, path: Path) -> None:
    """Images and two pairs of their views, a row each; further bands, three at a time, in false colour below."""
    recipe = images.recipe
    batch = to_unit(images.rows(rows), recipe.full_scale, torch.device("cpu"))
    drawn = [two_views(batch, seed, pair).chunk(2) for pair in (0, 1)]
    rgb = recipe.rgb or list(range(min(3, batch.shape[1])))
    others = [i for i in range(batch.shape[1]) if i not in rgb][:3]
    shown = [(", ".join(recipe.bands[i] for i in rgb) if others else "", rgb)] + (
        [(", ".join(recipe.bands[i] for i in others), others)] if others else []
    )
    columns = [
        ("image", batch),
        *((f"pair {i + 1}, view {j + 1}", v) for i, p in enumerate(drawn) for j, v in enumerate(p)),
    ]
    height = len(rows) * len(shown)
    figure, axes = plt.subplots(height, 5, figsize=(7, 1.4 * height + 0.3), squeeze=False)
    for i in range(len(rows)):
        for j, (name, bands) in enumerate(shown):
            for axis, (title, stack) in zip(axes[i * len(shown) + j], columns, strict=True):
                picture = stack[i, bands].numpy().transpose(1, 2, 0)
                if len(bands) == 2:
                    picture = np.dstack([picture, picture[..., :1]])
                axis.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
                axis.set(xticks=[], yticks=[])
                axis.spines[:].set_visible(False)
                if i == j == 0:
                    axis.set_title(title, fontsize=8)
            if name:
                axes[i * len(shown) + j, 0].set_ylabel(name, fontsize=7)
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


def ablation_panels(
    axes: dict[str, list[str]], measures: dict[str, tuple[np.ndarray, np.ndarray]], title: str, path: Path
) -> None:
    """A panel per measure: a bar for every setting of one axis, or a heat map of two, rows × columns.

    `measures` holds means and standard deviations, both of the shape of the axes; a mean that is NaN is drawn as
    missing, a standard deviation that is NaN not at all.
    """
    (down, rows), *across = axes.items()
    names, columns = across[0] if across else ("", [""])
    width = 1.6 + 0.085 * max(map(len, rows)) + (max(0.62 * len(columns), 2.2) if across else 2.2)
    height = 1.2 + 0.5 * len(rows) + (0.07 * max(map(len, columns)) if across else 0)
    figure, panels = plt.subplots(1, len(measures), figsize=(width * len(measures), height), squeeze=False, sharey=True)
    for panel, (measure, (means, deviations)) in zip(panels[0], measures.items(), strict=True):
        digits = 3 if np.nanmax(means) <= 1 else 1
        if across:
            drawn = panel.imshow(means, cmap="Blues", aspect="auto")
            panel.set_xticks(range(len(columns)), columns, rotation=0 if max(map(len, columns)) < 6 else 90)
            panel.set_title(measure, fontsize=10)
            panel.set_xlabel(names)
            panel.spines[:].set_visible(False)
        else:
            panel.barh(range(len(rows)), means, color=COLOURS[0], height=0.65, xerr=deviations, capsize=3)
            panel.set(xlabel=measure, xlim=(0, 1.3 * np.nanmax(means + np.nan_to_num(deviations))))
        for at, mean in np.ndenumerate(means):
            text = "failed" if np.isnan(mean) else f"{mean:.{digits}f}"
            spread = "" if np.isnan(deviations[at]) else f"± {deviations[at]:.{digits}f}"
            if across:
                dark = not np.isnan(mean) and drawn.norm(mean) > 0.55
                style = {"ha": "center", "va": "center", "fontsize": 8, "color": "white" if dark else "black"}
                panel.text(at[1], at[0], f"{text}\n{spread}".strip(), **style)
            else:
                end = np.nan_to_num(mean) + np.nan_to_num(deviations[at])
                panel.text(end, at[0], f"  {text} {spread}", va="center", fontsize=8)
    panels[0, 0].set_yticks(range(len(rows)), rows)
    panels[0, 0].set_ylabel(down)
    if not across:
        panels[0, 0].invert_yaxis()
    figure.suptitle(title, fontsize=12)
    _write(figure, path)


def _write(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, metadata={"Software": None})
    plt.close(figure)
