"""Charts of an evaluation's numbers, each written as PNG and SVG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable

from simtrail.evaluation.names import TITLES
from simtrail.evaluation.scores import BINS, Scores, confusion
from simtrail.report.figures.style import COLOURS, GREY, MARKERS, WIDTH, mark, save, shorten

CLASSES = 40  # more are unreadable on a page: only the most frequent are shown


def training_curve(history: list[dict[str, float]], kept: int, path: Path) -> None:
    """Draws the loss, the fractions of correct images and the effective rank, with the epoch whose weights are kept."""
    epochs = [row["epoch"] for row in history]
    validated = [row for row in history if not np.isnan(row.get("val_feature_std", np.nan))]
    validated_epochs = [row["epoch"] for row in validated]
    fractions = {"contrastive top-1, training": (epochs, [row["contrastive_top1"] for row in history])}
    names = {"knn": "kNN", "probe": "linear probe", "contrastive_top1": "contrastive top-1"}
    for name, title in names.items():
        if validated and f"val_{name}" in validated[0]:
            fractions[f"{title}, validation"] = (validated_epochs, [row[f"val_{name}"] for row in validated])
    figure, axes = plt.subplots(1, 3 if validated else 2, figsize=(WIDTH, 3.2))
    loss_marker = "o" if len(epochs) < 15 else ""
    axes[0].plot(epochs, [row["loss"] for row in history], color=COLOURS[0], marker=loss_marker, markersize=4)
    axes[0].set(xlabel="epoch", ylabel="loss")
    for (title, (x, y)), colour, marker in zip(fractions.items(), COLOURS[1:], MARKERS, strict=False):
        axes[1].plot(x, y, color=colour, label=title, marker=marker if len(x) < 15 else "", markersize=4)
    axes[1].set(xlabel="epoch", ylabel="fraction of the images", ylim=(0, 1))
    if validated:
        rank = [row["val_effective_rank"] for row in validated]
        rank_marker = "o" if len(validated_epochs) < 15 else ""
        axes[2].plot(validated_epochs, rank, color=COLOURS[5], marker=rank_marker, markersize=4)
        axes[2].set(xlabel="epoch", ylabel="effective rank, validation")
        axes[2].set_ylim(0, 1.1 * axes[2].get_ylim()[1])
        for axis in axes:
            line = axis.axvline(kept, color="#808080", linewidth=0.8, linestyle=":")
            axis.xaxis.get_major_locator().set_params(integer=True)
        line.set_label(f"epoch {kept}, whose weights are kept")
    figure.legend(ncol=2, loc="outside lower center")
    save(figure, path)


def score_bars(scores: dict[str, Scores], titles: dict[str, str], path: Path, images: int, groups: int) -> None:
    """Draws accuracy and balanced accuracy of every classifier and floor, with 95 % intervals."""
    names = list(scores)[::-1]
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 0.9 + 0.32 * len(names)), sharey=True)
    for axis, score in zip(axes, ("accuracy", "balanced_accuracy"), strict=True):
        values = np.array([[scores[n][score + bound] for bound in ("", "_low", "_high")] for n in names])
        colours = [COLOURS[0] if not titles[n].startswith(("floor", "teacher")) else GREY for n in names]
        errors = np.abs(values[:, 1:] - values[:, :1]).T
        axis.barh(range(len(names)), values[:, 0], xerr=errors, color=colours, height=0.65, capsize=3, ecolor="#404040")
        for i, (value, _, high) in enumerate(values):
            axis.text(high + 0.02, i, f"{value:.3f}", va="center", fontsize=8)
        axis.set(xlim=(0, 1.25), xticks=np.arange(0, 1.01, 0.25), xlabel=score.replace("_", " "))
    axes[0].set_yticks(range(len(names)), [titles[n] for n in names])
    size = f"{images} images of {groups} groups"
    figure.suptitle(f"Test split: {size}; error bars: 95 % intervals, bootstrapped over groups")
    save(figure, path)


def confusion_matrix(truth: np.ndarray, predicted: np.ndarray, names: list[str], path: Path) -> None:
    """Draws the confusion matrix of the 40 most frequent classes, as fractions of each true class (row)."""
    matrix = confusion(truth, predicted, len(names))
    shown, note = _most_frequent(matrix.sum(1) + matrix.sum(0))
    true_images = matrix.sum(1)[shown]
    matrix = matrix[np.ix_(shown, shown)]
    texts = np.where(matrix > 0, matrix.astype(str), "") if len(shown) <= 20 else None
    _class_matrix(
        matrix / np.maximum(true_images, 1)[:, None], [names[i] for i in shown], texts, "Blues", (0, 1),
        "fraction of the true class", f"Test split: {len(truth)} images{note}", path,
        ("predicted (linear probe)", "true"),
    )  # fmt: skip


def angle_heat_map(matrix_CC: np.ndarray, names: list[str], images: np.ndarray, path: Path) -> None:
    """Draws the mean angle, in degrees, between the images of two classes; the diagonal is within a class.

    It is a mean of true angles, not the angle of a mean cosine. `images` is the number of images of each class; classes
    without images are left out. Four or more classes are sorted by average-linkage clustering of these angles, so that
    similar classes are neighbours.
    """
    shown, note = _most_frequent(images)
    matrix = matrix_CC[np.ix_(shown, shown)]
    if len(shown) >= 4:
        from scipy.cluster.hierarchy import leaves_list, linkage
        from scipy.spatial.distance import squareform

        tree = linkage(squareform(matrix, checks=False), "average", optimal_ordering=True)
        order = leaves_list(tree)
        shown, matrix = shown[order], matrix[np.ix_(order, order)]
    texts = np.array([[f"{v:.0f}" if v == v else "–" for v in row] for row in matrix]) if len(shown) <= 15 else None
    limits = (float(np.nanmin(matrix)), float(np.nanmax(matrix)))
    title = f"{images[shown].sum()} images of {len(shown)} classes{note}"
    _class_matrix(matrix, [names[i] for i in shown], texts, "cividis", limits, "mean angle, degrees", title, path)


def run_curves(panels: dict[str, dict[str, tuple[list[int], list[float]]]], runs: list[str], path: Path) -> None:
    """Draws a panel per training measure with a line per run: panels[title][run] holds the epochs and the values."""
    figure, axes = plt.subplots(1, len(panels), figsize=(WIDTH, 2.6), squeeze=False)
    for axis, (title, lines) in zip(axes[0], panels.items(), strict=True):
        for i, run in enumerate(runs):
            if run in lines:
                colour, marker = mark(i)
                x, y = lines[run]
                axis.plot(x, y, color=colour, marker=marker if len(x) < 15 else "", markersize=4, label=run)
        axis.set(xlabel="epoch", ylabel=title)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend()
    save(figure, path)


def label_efficiency(summary: pd.DataFrame, full: dict[str, float], path: Path) -> None:
    """Draws test accuracy against the number of labelled images: a line per classifier, a panel per way to draw them.

    `summary` has the columns classifier, draw, labels, mean, low, high, seeds. `full` holds the accuracy with all
    labels of those classifiers that were fitted to all of them; a dashed line shows 90 % of it. Ways that drew the same
    images, since all classes have the same size, share a panel.
    """
    parts = summary.groupby("draw")
    panels = {f"{draw} draws": part.drop(columns="draw").reset_index(drop=True) for draw, part in parts}
    first, *others = panels.values()
    if len(others) == 1 and first.equals(others[0]):
        panels = {"balanced draws, which are proportional, too": first}
    figure, axes = plt.subplots(1, len(panels), figsize=(WIDTH, 3.3), sharey=True, squeeze=False)
    for axis, (title, drawn) in zip(axes[0], panels.items(), strict=True):
        for i, classifier in enumerate(summary["classifier"].unique()):
            part = drawn[drawn["classifier"] == classifier].sort_values("labels")
            axis.fill_between(part["labels"], part["low"], part["high"], color=COLOURS[i], alpha=0.2, linewidth=0)
            if classifier in full:
                axis.axhline(0.9 * full[classifier], color=COLOURS[i], linewidth=0.9, linestyle="--")
            style = {"color": COLOURS[i], "marker": MARKERS[i], "markersize": 4}
            axis.plot(part["labels"], part["mean"], label=TITLES.get(classifier, classifier), **style)
        axis.set(xscale="log", xlabel="labelled images", title=title)
        _log_ticks(axis, np.unique(drawn["labels"]))
    axes[0, 0].set_ylabel("accuracy, test split")
    dashes: dict[str, Any] = {"color": "#606060", "linewidth": 0.9, "linestyle": "--"}
    axes[0, 0].plot([], [], label="90 % of the accuracy with all labels", **dashes)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    seeds = int(summary["seeds"].max())
    figure.legend(
        handles, labels, ncol=2, loc="outside lower center", title=f"Bands: 95 % interval of the mean of {seeds} draws",
        title_fontsize=8,
    )  # fmt: skip
    save(figure, path)


def fine_tune_bars(table: pd.DataFrame, path: Path) -> None:
    """Draws accuracy after fine-tuning on few labels, from the encoder's weights and from scratch, with 95 % intervals.

    `table` has the columns fraction, images, start ('pretrained' or 'scratch'), accuracy, accuracy_low, accuracy_high.
    """
    sizes = table[["fraction", "images"]].drop_duplicates().sort_values("fraction")
    figure, axis = plt.subplots(figsize=(min(WIDTH, 2.4 + 1.1 * len(sizes)), 3.1))
    starts = {"pretrained": ("from the encoder", COLOURS[0], ""), "scratch": ("from scratch", GREY, "///")}
    for i, (start, (title, colour, hatch)) in enumerate(starts.items()):
        part = table[table["start"] == start].set_index("fraction").loc[sizes["fraction"]]
        x = np.arange(len(part)) + 0.4 * i - 0.2
        errors = np.abs(part[["accuracy_low", "accuracy_high"]].to_numpy().T - part["accuracy"].to_numpy())
        bars: dict[str, Any] = {
            "color": colour,
            "hatch": hatch,
            "edgecolor": "white",
            "capsize": 3,
            "ecolor": "#404040",
        }
        axis.bar(x, part["accuracy"], 0.38, yerr=errors, label=title, **bars)
        for center, value, high in zip(x, part["accuracy"], part["accuracy_high"], strict=True):
            axis.text(center, high + 0.015, f"{value:.2f}", ha="center", fontsize=8)
    texts = [f"{100 * f:g} %\n{n:.0f} images" for f, n in sizes.to_numpy()]
    axis.set_xticks(range(len(sizes)), texts)
    axis.set(xlabel="labelled training images", ylabel="accuracy, test split", ylim=(0, 1.1))
    axis.set_yticks(np.arange(0, 1.01, 0.25))
    title = "Error bars: 95 % intervals, bootstrapped over groups"
    figure.legend(loc="outside lower center", ncol=2, title=title, title_fontsize=8)
    save(figure, path)


def explained_variance(cumulative: np.ndarray, path: Path) -> None:
    """Draws the cumulative fraction of variance of the first 1, 2, … principal components; marks 90, 95 and 99 %."""
    figure, axis = plt.subplots(figsize=(4.6, 3.3))
    axis.plot(np.arange(1, len(cumulative) + 1), cumulative, color=COLOURS[0])
    for percent, colour, marker in zip((90, 95, 99), COLOURS[1:], MARKERS, strict=False):
        n = int(np.searchsorted(cumulative, percent / 100 - 1e-9)) + 1
        axis.vlines(n, 0, percent / 100, color=colour, linewidth=0.9, linestyle=":")
        axis.plot(n, percent / 100, color=colour, marker=marker, linestyle="", label=f"{percent} %: {n}")
    axis.set(xscale="log", xlabel="principal components", ylabel="fraction of the variance", ylim=(0, 1.03))
    _log_ticks(axis, np.array([1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, len(cumulative)]), len(cumulative))
    title = f"Components for a fraction of the variance of {len(cumulative)} features"
    figure.legend(loc="outside lower center", ncol=3, title=title, title_fontsize=8)
    save(figure, path)


def dimension_relations(table: pd.DataFrame, path: Path) -> None:
    """Draws R² between embedding dimensions and metadata columns; a star marks significant relations (q ≤ 0.05).

    `table` has the columns column, dimension, r2, p, q, with a row for each pair. The figure shows the (up to 12)
    dimensions with the highest R² for each column, at most 40 in all. Each dimension is sorted to the column for which
    its R² is highest.
    """
    columns = list(dict.fromkeys(table["column"]))
    strongest = table.sort_values("r2", ascending=False).groupby("column").head(max(1, min(12, 40 // len(columns))))
    first = strongest.drop_duplicates("dimension")
    shown = first.sort_values("column", key=lambda c: c.map(columns.index), kind="stable")["dimension"]
    r2, q = (table.pivot(index="column", columns="dimension", values=v).loc[columns, shown] for v in ("r2", "q"))
    figure, axis = plt.subplots(figsize=(WIDTH, min(1.6 + 0.24 * len(columns), 10.4)))
    image = axis.imshow(r2, cmap="cividis", vmin=0, vmax=max(float(np.nanmax(r2)), 1e-3), aspect="auto")
    for i, j in np.argwhere(q.to_numpy() <= 0.05):
        axis.plot(j, i, "*", color=_contrasting_colour(image, r2.iat[i, j]), markersize=5, markeredgewidth=0)
    axis.set_xticks(range(len(shown)), shown.astype(str).to_list(), rotation=90)
    axis.set_yticks(range(len(columns)), [shorten(str(c)) for c in columns])
    axis.set_xlabel("embedding dimension")
    dimensions = f"{len(shown)} of {table['dimension'].nunique()} dimensions"
    axis.set_title(f"{dimensions}; ★: significant, q ≤ 0.05 (Benjamini–Hochberg)")
    figure.colorbar(image, ax=axis, label="R²", pad=0.02)
    save(figure, path)


def per_class_bars(table: pd.DataFrame, path: Path) -> None:
    """Draws F1 of the 40 classes with most test images, with 95 % intervals and numbers of test images, best first.

    `table` has the columns class, images, f1, f1_low, f1_high.
    """
    shown, note = _most_frequent(table["images"].to_numpy())
    part = table.iloc[shown].sort_values("f1", kind="stable")
    figure, axis = plt.subplots(figsize=(WIDTH, 1 + 0.19 * len(part)))
    errors = np.abs(part[["f1_low", "f1_high"]].to_numpy().T - part["f1"].to_numpy())
    style: dict[str, Any] = {"color": COLOURS[0], "height": 0.7, "capsize": 2, "ecolor": "#404040"}
    axis.barh(range(len(part)), part["f1"], xerr=errors, **style)
    axis.set_yticks(
        range(len(part)), [f"{shorten(c)} ({n})" for c, n in zip(part["class"], part["images"], strict=True)]
    )
    axis.set(xlim=(0, 1.02), ylim=(-0.7, len(part) - 0.3))
    axis.set_xlabel("F1, linear probe (error bars: 95 % intervals over groups)")
    figure.suptitle(f"Classes with their number of test images, {table['images'].sum()} in total{note}")
    save(figure, path)


def reliability(confidence: np.ndarray, correct: np.ndarray, path: Path) -> None:
    """Draws accuracy against confidence, the probability of the predicted class, in 15 bins of equal width.

    The expected calibration error is the mean over images of the gap between accuracy and confidence in their bin (Guo
    et al. 2017, arXiv 1706.04599, eq. 3).
    """
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    images = np.bincount(bins, minlength=BINS)
    mean, accuracy = (
        np.bincount(bins, values, BINS) / np.maximum(images, 1) for values in (confidence, np.asarray(correct, float))
    )
    error = float((images * np.abs(mean - accuracy)).sum() / len(confidence))
    filled = images > 0
    figure, (axis, below) = plt.subplots(2, 1, figsize=(3.8, 4.4), sharex=True, height_ratios=(3, 1))
    axis.plot([0, 1], [0, 1], color="#808080", linewidth=0.9, linestyle="--", label="perfectly calibrated")
    axis.plot(mean[filled], accuracy[filled], color=COLOURS[0], marker="o", markersize=4, label="linear probe")
    axis.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="accuracy", title=f"Expected calibration error {error:.3f}")
    axis.legend(loc="upper left")
    below.bar((np.arange(BINS) + 0.5) / BINS, images, 0.9 / BINS, color=GREY)
    below.set(xlabel="confidence", ylabel="images")
    below.set_title(f"{len(confidence)} test images", fontsize=8)
    save(figure, path)


def ablation_panels(
    axes: dict[str, list[str]], measures: dict[str, tuple[np.ndarray, np.ndarray]], title: str, note: str, path: Path
) -> None:
    """Draws a panel per measure: a bar for every setting of one axis, or a heat map of two axes, rows × columns.

    `measures` holds the means, in the shape of the axes, and the bounds of their intervals, in that shape with a last
    axis of 2, NaN for no interval. `note` says which intervals they are. A NaN mean is labelled as failed. The bars of
    a measure whose means are all ≤ 1, such as an accuracy, have an axis that ends at 1.
    """
    (row_name, rows), *other_axes = axes.items()
    column_name, columns = other_axes[0] if other_axes else ("", [""])
    body = max(0.75 * len(columns), 2.2) if other_axes else 2.2
    width = 0.6 + 0.085 * max(map(len, rows)) + (body + 0.8) * len(measures)  # row labels only on the left
    height = 1.4 + 0.5 * len(rows) + (0.07 * max(map(len, columns)) if other_axes else 0)
    figure, panels = plt.subplots(1, len(measures), figsize=(width, height), squeeze=False, sharey=True)
    for panel, (measure, (means, bounds)) in zip(panels[0], measures.items(), strict=True):
        digits = 3 if np.nanmax(means) <= 1 else 1
        if other_axes:
            image = panel.imshow(means, cmap=plt.get_cmap("Blues").with_extremes(bad="#E0E0E0"), aspect="auto")
            panel.set_xticks(range(len(columns)), columns, rotation=0 if max(map(len, columns)) < 6 else 90)
            panel.set_title(measure, fontsize=10)
            panel.set_xlabel(column_name)
            panel.spines[:].set_visible(False)
        else:
            errors = np.maximum([means - bounds[:, 0], bounds[:, 1] - means], 0)  # an interval may not contain the mean
            style = {"color": COLOURS[0], "height": 0.65, "capsize": 3, "ecolor": "#404040"}
            panel.barh(range(len(rows)), means, xerr=errors, **style)
            highest = max(np.nanmax(means), np.nanmax(bounds, initial=0, where=~np.isnan(bounds)))
            panel.set(xlabel=measure, xlim=(0, 1 if digits == 3 else 1.05 * highest))
        for index, mean in np.ndenumerate(means):
            text = "failed" if np.isnan(mean) else f"{mean:.{digits}f}"
            if other_axes:
                style = {"ha": "center", "va": "center", "fontsize": 8}
                low, high = bounds[index]
                if not np.isnan(low):
                    text = f"{text}\n{low:.{digits}f}–{high:.{digits}f}"
                panel.text(index[1], index[0], text, color=_contrasting_colour(image, float(mean)), **style)
            else:
                end = np.nanmax([mean, bounds[index][1], 0])
                panel.annotate(text, (end, index[0]), (5, 0), textcoords="offset points", va="center", fontsize=8)
    panels[0, 0].set_yticks(range(len(rows)), rows)
    panels[0, 0].set_ylabel(row_name)
    if not other_axes:
        panels[0, 0].invert_yaxis()
    figure.suptitle(f"{title}\n{note}")
    save(figure, path)


def _class_matrix(
    matrix: np.ndarray,
    labels: list[str],
    cell_texts: np.ndarray | None,
    colours: str,
    limits: tuple[float, float],
    unit: str,
    title: str,
    path: Path,
    axes: tuple[str, str] = ("", ""),
) -> None:
    n, longest = len(labels), max(len(shorten(label)) for label in labels)
    side = min(0.3 * n + 0.07 * longest + 1.4, WIDTH)  # the labels below are as high as those on the left are wide
    figure, axis = plt.subplots(figsize=(max(side, 3.6), max(side, 3) + 0.7))
    image = axis.imshow(matrix, cmap=plt.get_cmap(colours).with_extremes(bad="#E0E0E0"), vmin=limits[0], vmax=limits[1])
    texts = [shorten(label) for label in labels]
    axis.set_xticks(range(n), texts, rotation=90)
    axis.set_yticks(range(n), texts)
    axis.set(xlabel=axes[0], ylabel=axes[1])
    axis.spines[:].set_visible(False)
    if cell_texts is not None:
        for (i, j), text in np.ndenumerate(cell_texts):
            color = _contrasting_colour(image, float(matrix[i, j]))
            axis.text(j, i, text, ha="center", va="center", fontsize=8, color=color)
    figure.colorbar(image, ax=axis, label=unit, location="top", shrink=0.7, pad=0.02)
    figure.suptitle(title)
    save(figure, path)


def _most_frequent(images: np.ndarray) -> tuple[np.ndarray, str]:
    """The numbers of the most frequent classes with images, sorted, and a note for the title if some are left out."""
    order = np.argsort(-images, kind="stable")
    shown = np.sort(order[: min(CLASSES, np.count_nonzero(images))])
    left_out = np.count_nonzero(images) - len(shown)
    return shown, f"; the {CLASSES} most frequent of {len(shown) + left_out} classes" if left_out else ""


def _contrasting_colour(image: ScalarMappable, value: float) -> str:
    """Black or white, whichever can be read on the colour of a value."""
    red, green, blue, _ = image.to_rgba(np.ma.masked_invalid([value]))[0]
    return "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.5 else "black"


def _log_ticks(axis: Axes, ticks: np.ndarray, largest: float = np.inf) -> None:
    """Labels ticks with plain numbers and drops those too close to the next larger one; the largest is always kept."""
    kept: list[float] = []
    for tick in sorted(ticks[ticks <= largest], reverse=True):
        if not kept or tick < kept[-1] / 1.6:
            kept.append(tick)
    axis.set_xticks(kept, [f"{tick:.0f}" for tick in kept])
    axis.minorticks_off()
